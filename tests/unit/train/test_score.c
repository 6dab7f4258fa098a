/* test_score.c: bits per byte against a plain sum over windows, and the analysis of eval.json against counts
 * made anew from the model's routing.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "train/score.h"

#include <jansson.h>
#include <math.h>

enum { CONTEXT = 16, VOCAB = 256, BYTES = 5003, E = 4, K = 2 };

static moe_ctx *make_ctx(void) {
    moe_ctx *ctx;
    moe_error error;
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1, .seed = 3};
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    return ctx;
}

/* Large initial weights, so that predictions and routing are far from even. */
static moe_lm *make_model(moe_ctx *ctx) {
    /* clang-format off */
    static const char *const pairs[] = {
        "model.d_model", "16",  "model.n_layers", "2",  "model.n_heads", "2",  "model.context", "16",
        "model.init_std", "0.3",  "moe.num_experts", "4",  "moe.expert_hidden_size", "8",
        "moe_layer_freq", "2",  NULL
    };
    /* clang-format on */
    moe_lm_config *config;
    moe_lm *lm;
    moe_error error;
    assert_ok(moe_lm_config_create(&config, &error), &error);
    for (const char *const *p = pairs; *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    if (moe_lm_create(ctx, config, &lm) != MOE_OK) fail_msg("%s", moe_ctx_error(ctx));
    moe_lm_config_destroy(config);
    return lm;
}

static void make_text(unsigned char *text, size_t bytes) {
    uint64_t seed = 9;
    for (size_t i = 0; i < bytes; ++i) text[i] = (unsigned char)('a' + scratch_random(&seed) % 12);
}

static double log_prob(const float *logits, int32_t target) {
    double sum = 0;
    for (int v = 0; v < VOCAB; ++v) sum += exp((double)logits[v]);
    return (double)logits[target] - log(sum);
}

/* Byte i is predicted in the first window that reaches it; windows start every half context. */
static double plain_bits(moe_lm *lm, const unsigned char *text, int64_t bytes) {
    double nats = log(VOCAB);
    int64_t n = bytes - 1, done = 0;
    assert_int_equal(moe_lm_reserve(lm, 1, CONTEXT, MOE_INFER), MOE_OK);
    for (int64_t start = 0; done < n; start += CONTEXT / 2) {
        int64_t length = n < CONTEXT ? n : CONTEXT, at = start + length > n ? n - length : start;
        int32_t tokens[CONTEXT];
        static float logits[CONTEXT * VOCAB];
        for (int64_t j = 0; j < length; ++j) tokens[j] = text[at + j];
        assert_int_equal(moe_lm_logits(lm, tokens, 1, length, logits), MOE_OK);
        for (int64_t j = done - at; j < length; ++j) nats -= log_prob(logits + j * VOCAB, text[at + j + 1]);
        done = at + length;
    }
    return nats / log(2);
}

static moe_status score(moe_lm *lm, const unsigned char *text, int64_t bytes, double *bits) {
    const moelm_reading reading = {.bytes = text, .n = bytes};
    return moelm_score(lm, &reading, lm->context, NULL, bits);
}

static void test_bits(void **state) {
    (void)state;
    static const int64_t sizes[] = {2, 3, 8, 16, 17, 18, 25, 26, 33, 1000};
    static unsigned char text[BYTES];
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    make_text(text, sizeof text);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        double bits, expect = plain_bits(lm, text, sizes[i]);
        assert_int_equal(score(lm, text, sizes[i], &bits), MOE_OK);
        if (!(fabs(bits - expect) < 1e-4 * expect))
            fail_msg("%lld bytes: %.9g bits, not %.9g", (long long)sizes[i], bits, expect);
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Ids are read as bytes are; what stands before a text costs nothing, and short windows see less. */
static void test_ids(void **state) {
    (void)state;
    enum { N = 100 };
    static unsigned char text[N];
    int32_t ids[N];
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    make_text(text, N);
    for (int i = 0; i < N; ++i) ids[i] = text[i];
    double all, bits, second;
    assert_int_equal(score(lm, text, N, &all), MOE_OK);
    moelm_reading reading = {.ids = ids, .n = N};
    assert_int_equal(moelm_score(lm, &reading, lm->context, NULL, &bits), MOE_OK);
    assert_true(bits == all);
    reading.begun = 1;
    assert_int_equal(moelm_score(lm, &reading, lm->context, NULL, &bits), MOE_OK);
    assert_true(fabs(all - bits - 8) < 1e-9 * all);
    reading.begun = 2;
    assert_int_equal(moelm_score(lm, &reading, lm->context, NULL, &second), MOE_OK);
    const double one = plain_bits(lm, text, 2) - 8;
    assert_true(fabs(bits - second - one) < 1e-4 * all);
    reading.begun = 0;
    assert_int_equal(moelm_score(lm, &reading, 4, NULL, &bits), MOE_OK);
    assert_true(bits != all);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_eval_refuses(void **state) {
    (void)state;
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    moe_lm_eval_result result = {.size = sizeof result};
    moe_tokenizer *tokenizer = NULL;
    moe_error error;
    assert_int_equal(moe_tokenizer_load("tests/golden/tokenizer/qwen.json", &tokenizer, &error), MOE_OK);
    moe_lm_eval_options options = {.size = sizeof options, .tokenizer = tokenizer};
    assert_int_equal(moe_lm_eval(lm, "tests/CMakeLists.txt", &options, &result), MOE_ERR_INPUT);
    assert_non_null(strstr(moe_ctx_error(ctx), "it is another model's"));
    options = (moe_lm_eval_options){.size = sizeof options, .window = -1};
    assert_int_equal(moe_lm_eval(lm, "tests/CMakeLists.txt", &options, &result), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "window is -1"));
    moe_tokenizer_destroy(tokenizer);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* A head of zeros knows nothing: 8 bits for every byte, also the first. */
static void test_knows_nothing(void **state) {
    (void)state;
    static unsigned char text[BYTES];
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    make_text(text, sizeof text);
    int n_zeroed = 0;
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        assert_int_equal(moe_lm_param(lm, i, &param), MOE_OK);
        bool head = param.n_dim == 2 && param.dim[0] == VOCAB && !strstr(param.name, "embed");
        if (head) memset(param.value, 0, (size_t)(param.dim[0] * param.dim[1]) * sizeof(float));
        n_zeroed += head;
    }
    assert_int_equal(n_zeroed, 1);
    double bits;
    assert_int_equal(score(lm, text, BYTES, &bits), MOE_OK);
    assert_true(fabs(bits / BYTES - 8) < 1e-6);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static double number_at(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) fail_msg("%s is no number", key);
    return json_number_value(value);
}

/* The whole text, cut into windows side by side, counted without the library's help. */
static void count_choices(moe_lm *lm, const unsigned char *text, double rows[E], double token[E][VOCAB]) {
    int64_t n = BYTES - 1, done = 0;
    while (done < n) {
        int64_t start = done + CONTEXT <= n ? done : n - CONTEXT;
        int32_t tokens[CONTEXT];
        static float logits[CONTEXT * VOCAB];
        moe_routing_view view = {.size = sizeof view};
        for (int64_t j = 0; j < CONTEXT; ++j) tokens[j] = text[start + j];
        assert_int_equal(moe_lm_logits(lm, tokens, 1, CONTEXT, logits), MOE_OK);
        assert_int_equal(moe_layer_routing(moe_lm_layer(lm, 0), &view), MOE_OK);
        for (int64_t j = done - start; j < CONTEXT; ++j) {
            token[view.expert[j * K]][tokens[j]]++;
            for (int k = 0; k < K; ++k) rows[view.expert[j * K + k]]++;
        }
        done = start + CONTEXT;
    }
}

static void check_typical(const json_t *list, double token[E][VOCAB], int e) {
    double all = BYTES - 1, of_expert = 0, last = INFINITY;
    for (int v = 0; v < VOCAB; ++v) of_expert += token[e][v];
    assert_true(json_array_size(list) > 0 && json_array_size(list) <= 12);
    for (size_t i = 0; i < json_array_size(list); ++i) {
        const json_t *entry = json_array_get(list, i);
        int v = (int)number_at(entry, "token");
        double total = 0, lift = number_at(entry, "lift");
        for (int other = 0; other < E; ++other) total += token[other][v];
        assert_true(number_at(entry, "count") == token[e][v]);
        assert_true(fabs(lift - token[e][v] / of_expert / (total / all)) < 1e-9 * lift);
        assert_true(lift <= last);
        last = lift;
    }
}

static void on_progress(void *user, int64_t done, int64_t bytes) {
    int64_t *before = user;
    assert_true(done > *before && done <= bytes && bytes == BYTES);
    *before = done;
}

static void test_analysis(void **state) {
    static unsigned char text[BYTES];
    static double token[E][VOCAB];
    double rows[E] = {0};
    char *text_path = scratch_path(state, "t.txt"), *json_path = scratch_path(state, "eval.json");
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    make_text(text, sizeof text);
    scratch_put(text_path, text, sizeof text);
    const moe_lm_baseline gzip = {"gzip", 2.5};
    int64_t done = 0;
    const moe_lm_eval_options options = {.size = sizeof options,
                                         .json_path = json_path,
                                         .checkpoint = "some/checkpoint",
                                         .baselines = &gzip,
                                         .n_baselines = 1,
                                         .on_progress = on_progress,
                                         .user = &done};
    moe_lm_eval_result result = {.size = sizeof result}, again = {.size = sizeof again};
    assert_int_equal(moe_lm_eval(lm, text_path, &options, &result), MOE_OK);
    assert_int_equal(moe_lm_eval(lm, text_path, NULL, &again), MOE_OK);
    assert_int_equal(result.n_bytes, BYTES);
    assert_int_equal(done, BYTES);
    assert_true(result.bits_per_byte == again.bits_per_byte);

    json_t *root = json_load_file(json_path, 0, NULL);
    assert_non_null(root);
    assert_int_equal(number_at(root, "bytes"), BYTES);
    assert_true(number_at(root, "bits_per_byte") == result.bits_per_byte);
    assert_string_equal(json_string_value(json_object_get(root, "text")), "t.txt");
    assert_string_equal(json_string_value(json_object_get(root, "checkpoint")), "some/checkpoint");
    assert_true(number_at(json_object_get(root, "baselines"), "gzip") == 2.5);
    assert_true(json_is_null(json_object_get(root, "foresight")));
    const json_t *layers = json_object_get(root, "layers"), *layer = json_array_get(layers, 0);
    assert_int_equal(json_array_size(layers), 1); /* the second layer is dense */
    count_choices(lm, text, rows, token);
    for (int e = 0; e < E; ++e) {
        const json_t *load = json_array_get(json_object_get(layer, "load"), (size_t)e);
        assert_true(json_number_value(load) == rows[e]);
        check_typical(json_array_get(json_object_get(layer, "typical"), (size_t)e), token, e);
    }
    double most = number_at(layer, "expert_entropy_bits") + 0.01;
    assert_true(most > 0.5 && most < log2(E) + 0.02);
    /* tokens are drawn alike everywhere, and the first layer sees little else than the token */
    assert_true(number_at(layer, "mi_token_bits") > 0.3 && number_at(layer, "mi_token_bits") < most);
    assert_true(number_at(layer, "mi_position_bits") < 0.05);
    assert_true(number_at(layer, "mi_previous_bits") < number_at(layer, "mi_token_bits"));
    assert_true(number_at(layer, "dropped") == 0);
    json_decref(root);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(text_path);
    free(json_path);
}

/* A model in training evaluates with the memory of its batch, and to the same figure. */
static void test_memory_of_a_batch(void **state) {
    (void)state;
    static unsigned char text[BYTES];
    make_text(text, BYTES);
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    double alone, training;
    assert_int_equal(score(lm, text, BYTES, &alone), MOE_OK);
    assert_true(lm->memory.max_rows > 1000);
    moe_lm_destroy(lm);
    lm = make_model(ctx);
    assert_int_equal(moe_lm_reserve(lm, 3, CONTEXT, MOE_TRAIN), MOE_OK);
    assert_int_equal(score(lm, text, BYTES, &training), MOE_OK);
    assert_int_equal(lm->memory.max_rows, 3 * CONTEXT);
    assert_true(fabs(training - alone) < 1e-9 * alone);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_bad_text(void **state) {
    char *path = scratch_path(state, "t.txt");
    moe_ctx *ctx = make_ctx();
    moe_lm *lm = make_model(ctx);
    moe_lm_eval_result result = {.size = sizeof result, .n_bytes = -1};
    assert_int_equal(moe_lm_eval(lm, path, NULL, &result), MOE_ERR_INPUT);
    assert_non_null(strstr(moe_ctx_error(ctx), "No such file"));
    scratch_put(path, "", 0);
    assert_int_equal(moe_lm_eval(lm, path, NULL, &result), MOE_ERR_INPUT);
    assert_non_null(strstr(moe_ctx_error(ctx), "is empty"));
    scratch_put(path, "abcdef", 6);
    for (int64_t most = -1; most <= 1; most += 2) {
        const moe_lm_eval_options options = {.size = sizeof options, .max_bytes = most};
        assert_int_equal(moe_lm_eval(lm, path, &options, &result), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(moe_ctx_error(ctx), "2 or more, or 0"));
    }
    assert_int_equal(result.n_bytes, -1); /* written on success only */
    const moe_lm_baseline bad[] = {
        {"gzip",   2.5     },
        {NULL,     2.5     },
        {"broken", INFINITY}
    };
    const struct {
        const moe_lm_baseline *list;
        size_t n;
        const char *words;
    } wrong[] = {
        {NULL,    3, "baselines is NULL"            },
        {bad,     2, "baselines[1].name is NULL"    },
        {bad + 2, 1, "baselines[0], broken, has inf"}
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
        const moe_lm_eval_options options = {
            .size = sizeof options, .baselines = wrong[i].list, .n_baselines = wrong[i].n};
        assert_int_equal(moe_lm_eval(lm, path, &options, &result), MOE_ERR_ARGUMENT);
        if (!strstr(moe_ctx_error(ctx), wrong[i].words)) fail_msg("%s", moe_ctx_error(ctx));
    }
    const moe_lm_eval_options two = {.size = sizeof two, .max_bytes = 2};
    assert_int_equal(moe_lm_eval(lm, path, &two, &result), MOE_OK);
    assert_int_equal(result.n_bytes, 2);
    moe_lm_destroy(lm);

    moe_lm_config *config;
    moe_error error;
    assert_ok(moe_lm_config_create(&config, &error), &error);
    assert_ok(moe_lm_config_set(config, "model.vocab_size", "32000", "test", &error), &error);
    assert_int_equal(moe_lm_create(ctx, config, &lm), MOE_OK);
    assert_int_equal(moe_lm_eval(lm, path, &two, &result), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(moe_ctx_error(ctx), "32000 tokens"));
    moe_lm_config_destroy(config);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_eval_refuses),
        cmocka_unit_test(test_knows_nothing),
        cmocka_unit_test(test_memory_of_a_batch),
        cmocka_unit_test_setup_teardown(test_analysis, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_bad_text, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
