/* test_routes.c: a text evaluated along a recorded trace gives the bits of the recording, for every router
 * that can; a trace rules even over another model; wrong and broken files are told.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "format/safetensors.h"

#include <moekit/lm.h>

#include <math.h>

enum { BYTES = 1500, CONTEXT = 32, E = 8 };

static moe_ctx *make_ctx(uint64_t seed) {
    moe_ctx *ctx;
    moe_error error;
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1, .seed = seed};
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    return ctx;
}

/* Large weights: routes differ from token to token and from seed to seed. Layer 1 is dense. */
static moe_lm *make_model(moe_ctx *ctx, const char *const *pairs) {
    /* clang-format off */
    static const char *const tiny[] = {
        "model.d_model", "16",  "model.n_layers", "3",  "model.n_heads", "2",  "model.context", "32",
        "model.init_std", "0.3",  "moe.num_experts", "8",  "moe.expert_hidden_size", "8",
        "moe_layer_freq", "2",  NULL
    };
    /* clang-format on */
    moe_lm_config *config;
    moe_lm *lm = NULL;
    moe_error error;
    assert_ok(moe_lm_config_create(&config, &error), &error);
    for (const char *const *p = tiny; *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    for (const char *const *p = pairs; p && *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    if (moe_lm_create(ctx, config, &lm) != MOE_OK) fail_msg("%s", moe_ctx_error(ctx));
    moe_lm_config_destroy(config);
    return lm;
}

static char *put_text(void **state, const char *name, uint64_t seed) {
    char text[BYTES], *path = scratch_path(state, name);
    for (int i = 0; i < BYTES; ++i) text[i] = (char)('a' + scratch_random(&seed) % 12);
    scratch_put(path, text, BYTES);
    return path;
}

static moe_status eval(moe_lm *lm, const char *text, const char *record, const char *replay, double *bits) {
    const moe_lm_eval_options options = {
        .size = sizeof options, .record_routes = record, .replay_routes = replay};
    moe_lm_eval_result result = {.size = sizeof result};
    moe_status status = moe_lm_eval(lm, text, &options, &result);
    if (status == MOE_OK) *bits = result.bits_per_byte;
    return status;
}

static void must_eval(moe_ctx *ctx, moe_lm *lm, const char *text, const char *record, const char *replay,
                      double *bits) {
    if (eval(lm, text, record, replay, bits) != MOE_OK) fail_msg("%s", moe_ctx_error(ctx));
}

static void same_files(const char *a, const char *b) {
    moelm_safetensors *p, *q;
    moe_error error;
    assert_ok(moelm_safetensors_open(a, &p, &error), &error);
    assert_ok(moelm_safetensors_open(b, &q, &error), &error);
    assert_int_equal(moelm_safetensors_count(p), moelm_safetensors_count(q));
    for (size_t i = 0; i < moelm_safetensors_count(p); ++i) {
        const moelm_st_tensor *x = moelm_safetensors_at(p, i), *y = moelm_safetensors_find(q, x->name);
        assert_non_null(y);
        assert_int_equal(x->bytes, y->bytes);
        if (memcmp(x->data, y->data, x->bytes) != 0) fail_msg("%s differs", x->name);
    }
    moelm_safetensors_close(p);
    moelm_safetensors_close(q);
}

static const char *const deepseek[] = {"moe.preset", "deepseek_v3", NULL};
static const char *const lucidrains[] = {"moe.preset", "lucidrains", NULL};
static const char *const sigma[] = {"moe.preset", "sigma_moe", NULL};
static const char *const noisy[] = {"moe.preset", "t2t_noisy", NULL};
static const char *const expert_choice[] = {"moe.router_type", "expert_choice", NULL};
static const char *const hash[] = {"moe.router_type", "hash", "moe.top_k", "1", NULL};
static const char *const full[] = {"moe.capacity_factor", "0.7", "moe.router_bias", "true", NULL};
static const char *const wide[] = {"moe.router_dtype", "f64", NULL};
static const char *const *const routers[] = {NULL,          deepseek, lucidrains, sigma, noisy,
                                             expert_choice, hash,     full,       wide};

/* The same bits a byte, and recording the replay writes the same file. */
static void test_replay_is_record(void **state) {
    char *text = put_text(state, "text", 1), *first = scratch_path(state, "first"),
         *second = scratch_path(state, "second");
    for (size_t i = 0; i < sizeof routers / sizeof *routers; ++i) {
        moe_ctx *ctx = make_ctx(3);
        moe_lm *lm = make_model(ctx, routers[i]);
        double live = 0, replayed = 0;
        must_eval(ctx, lm, text, first, NULL, &live);
        must_eval(ctx, lm, text, second, first, &replayed);
        if (live != replayed) fail_msg("router %zu: %.17g, then %.17g", i, live, replayed);
        same_files(first, second);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
    free(text), free(first), free(second);
}

/* Another model along the trace of the first: the routes are the trace's, its own would differ. */
static void test_replay_rules(void **state) {
    char *text = put_text(state, "text", 1), *first = scratch_path(state, "first"),
         *second = scratch_path(state, "second");
    moe_ctx *ctx = make_ctx(3), *other_ctx = make_ctx(4);
    moe_lm *lm = make_model(ctx, NULL), *other = make_model(other_ctx, NULL);
    double bits = 0, own = 0, led = 0;
    must_eval(ctx, lm, text, first, NULL, &bits);
    must_eval(other_ctx, other, text, NULL, NULL, &own);
    must_eval(other_ctx, other, text, second, first, &led);
    assert_true(own != led);
    same_files(first, second);
    moe_lm_destroy(lm), moe_lm_destroy(other);
    moe_ctx_destroy(ctx), moe_ctx_destroy(other_ctx);
    free(text), free(first), free(second);
}

static void test_file(void **state) {
    char *text = put_text(state, "text", 1), *path = scratch_path(state, "routes");
    moe_ctx *ctx = make_ctx(3);
    moe_lm *lm = make_model(ctx, NULL);
    moelm_safetensors *file;
    moe_error error;
    double bits = 0;
    must_eval(ctx, lm, text, path, NULL, &bits);
    assert_ok(moelm_safetensors_open(path, &file, &error), &error);
    assert_int_equal(moelm_safetensors_count(file), 4); /* of layers 0 and 2 */
    assert_string_equal(moelm_safetensors_metadata(file, "format"), "moekit-routes");
    assert_string_equal(moelm_safetensors_metadata(file, "bytes"), "1500");
    assert_string_equal(moelm_safetensors_metadata(file, "window"), "32");
    const moelm_st_tensor *expert = moelm_safetensors_find(file, "layer.2.expert"),
                          *weight = moelm_safetensors_find(file, "layer.2.weight");
    int64_t windows = strtoll(moelm_safetensors_metadata(file, "windows"), NULL, 10);
    assert_int_equal(windows, 1 + (1499 - 32 + 15) / 16);
    assert_int_equal(expert->dim[0], windows * 32);
    assert_int_equal(expert->dim[1], 2);
    for (int64_t t = 0; t < expert->dim[0]; ++t) {
        int32_t e[2];
        float w[2];
        memcpy(e, (const char *)expert->data + t * 8, 8);
        memcpy(w, (const char *)weight->data + t * 8, 8);
        assert_true(e[0] != e[1] && e[0] >= 0 && e[0] < E && e[1] >= 0 && e[1] < E);
        assert_true(w[0] >= w[1] && fabsf(w[0] + w[1] - 1) < 1e-5F);
    }
    moelm_safetensors_close(file);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(text), free(path);
}

/* Writes `from` again without `leave_out`, and with the first expert and weight of layer 0 where they are not
 * 0. */
static void forge(const char *from, const char *to, const char *leave_out, int32_t expert, float weight) {
    moelm_safetensors *file;
    moelm_st_tensor tensor[8];
    moelm_st_pair pair[8];
    moe_error error;
    size_t n = 0, n_pairs = 0;
    static int32_t changed[1 << 16];
    static float weights[1 << 16];
    assert_ok(moelm_safetensors_open(from, &file, &error), &error);
    for (size_t i = 0; i < moelm_safetensors_count(file); ++i) {
        tensor[n] = *moelm_safetensors_at(file, i);
        if (strcmp(tensor[n].name, leave_out) == 0) continue;
        if (strcmp(tensor[n].name, "layer.0.expert") == 0) {
            assert_true(tensor[n].bytes <= sizeof changed);
            memcpy(changed, tensor[n].data, tensor[n].bytes);
            if (expert) changed[0] = expert;
            tensor[n].data = changed;
        }
        if (strcmp(tensor[n].name, "layer.0.weight") == 0) {
            assert_true(tensor[n].bytes <= sizeof weights);
            memcpy(weights, tensor[n].data, tensor[n].bytes);
            if (weight != 0) weights[0] = weight;
            tensor[n].data = weights;
        }
        ++n;
    }
    for (size_t i = 0; i < moelm_safetensors_metadata_count(file); ++i) {
        pair[n_pairs] = moelm_safetensors_metadata_at(file, i);
        n_pairs += strcmp(pair[n_pairs].key, leave_out) != 0;
    }
    assert_ok(moelm_safetensors_write(to, tensor, n, pair, n_pairs, &error), &error);
    moelm_safetensors_close(file);
}

static void must_refuse(moe_ctx *ctx, moe_lm *lm, const char *text, const char *path, const char *words) {
    double bits;
    moe_status status = eval(lm, text, NULL, path, &bits);
    if (status != MOE_ERR_INPUT || !strstr(moe_ctx_error(ctx), words))
        fail_msg("%s: \"%s\" lacks \"%s\"", moe_status_name(status), moe_ctx_error(ctx), words);
}

static void test_wrong_files(void **state) {
    char *text = put_text(state, "text", 1), *other = put_text(state, "other", 2),
         *path = scratch_path(state, "routes"), *bad = scratch_path(state, "bad");
    moe_ctx *ctx = make_ctx(3);
    moe_lm *lm = make_model(ctx, NULL);
    double bits = 0, again = 0;
    must_eval(ctx, lm, text, path, NULL, &bits);
    must_refuse(ctx, lm, other, path, "recorded with text_sha256 ");
    must_refuse(ctx, lm, text, text, "");
    must_refuse(ctx, lm, text, "missing.safetensors", "missing.safetensors");
    forge(path, bad, "format", 0, 0);
    must_refuse(ctx, lm, text, bad, "no file of routes: its metadata lacks 'format'");
    forge(path, bad, "layer.2.expert", 0, 0);
    must_refuse(ctx, lm, text, bad, "layer.2.expert");
    forge(path, bad, "", 99, 0);
    must_refuse(ctx, lm, text, bad, "layer.0.expert[0, 0] is 99; this layer has experts 0 .. 7");
    forge(path, bad, "", -77, 0);
    must_refuse(ctx, lm, text, bad, "is -77");
    int twice = 0;
    for (int32_t expert = 1; expert < 8; ++expert) { /* one of them is that of slot 1 */
        forge(path, bad, "", expert, 0);
        if (eval(lm, text, NULL, bad, &again) == MOE_OK) continue;
        must_refuse(ctx, lm, text, bad, "bad: replay_expert: token 0, slot 1 names expert");
        ++twice;
    }
    assert_int_equal(twice, 1);
    forge(path, bad, "", 0, NAN);
    must_refuse(ctx, lm, text, bad, "bad: layer.0.weight[0, 0] is nan; a routing weight is finite");
    forge(path, bad, "", 0, -INFINITY);
    must_refuse(ctx, lm, text, bad, "bad: layer.0.weight[0, 0] is -inf");
    forge(path, bad, "layer.2.weight", 0, 0); /* the router weighs what is chosen */
    must_eval(ctx, lm, text, NULL, bad, &again);
    assert_true(fabs(again - bits) < 1e-5);
    forge(path, bad, "", 0, 0);
    assert_int_equal(truncate(bad, 3000), 0);
    must_refuse(ctx, lm, text, bad, "bad: ");
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(text), free(other), free(path), free(bad);
}

static void test_other_models(void **state) {
    static const char *const settings[][2] = {
        {"moe_layer_freq",  "3" },
        {"moe.top_k",       "1" },
        {"model.n_layers",  "4" },
        {"moe.num_experts", "4" },
        {"model.context",   "16"}
    };
    static const char *const words[] = {"routes: tensor 'layer.2.", "layer.0.expert",
                                        "recorded with layers 3, ", "this layer has experts 0 .. 3",
                                        "recorded with window 32, "};
    char *text = put_text(state, "text", 1), *path = scratch_path(state, "routes");
    moe_ctx *ctx = make_ctx(3);
    moe_lm *lm = make_model(ctx, NULL);
    double bits = 0;
    must_eval(ctx, lm, text, path, NULL, &bits);
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i) {
        const char *const pairs[] = {settings[i][0], settings[i][1], NULL};
        moe_lm *unlike = make_model(ctx, pairs);
        must_refuse(ctx, unlike, text, path, words[i]);
        moe_lm_destroy(unlike);
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(text), free(path);
}

static void test_two_levels(void **state) {
    /* clang-format off */
    static const char *const pairs[] = {
        "moe.router_type", "gshard_top2",  "moe.num_groups_outer", "2",  "moe.aux_loss_coeff", "0",
        "moe.capacity_factor", "0.75",  "moe.drop_policy", "rank_major",  NULL
    };
    /* clang-format on */
    char *text = put_text(state, "text", 1), *path = scratch_path(state, "routes");
    moe_ctx *ctx = make_ctx(3);
    moe_lm *lm = make_model(ctx, pairs);
    double bits = 0, again = 0;
    must_eval(ctx, lm, text, path, NULL, &bits);
    must_eval(ctx, lm, text, NULL, path, &again);
    assert_true(again == bits);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(text), free(path);
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_replay_is_record), IN_SCRATCH(test_replay_rules), IN_SCRATCH(test_file),
        IN_SCRATCH(test_wrong_files),      IN_SCRATCH(test_other_models), IN_SCRATCH(test_two_levels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
