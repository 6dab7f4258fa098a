/* test_model.c: a model made from its configuration: names, shapes, counts, initial values, refusals.
 * Shapes: tiny models; the counts are worked out by hand beside each.
 * Source: lm.h, section 2.
 */
#include "unit/model/model_fixture.h"

static void test_names_and_shapes(void **state) {
    (void)state;
    static const char *const pairs[] = {"model.moe_layer_freq", "2", "model.ffn_hidden_size", "10", NULL};
    static const struct {
        const char *name;
        int32_t n_dim;
        int64_t dim[3];
    } right[] = {
        {"embed.weight",                     2, {23, 16}   },
        {"blocks.0.norm.weight",             1, {16}       },
        {"blocks.0.qkv.weight",              2, {16, 32}   }, /* 4 + 2 + 2 heads of 4 */
        {"blocks.0.out.weight",              2, {16, 16}   },
        {"blocks.0.ffn_norm.weight",         1, {16}       },
        {"blocks.0.ffn.gate.weight",         2, {4, 16}    },
        {"blocks.0.ffn.experts.up.weight",   3, {4, 16, 24}},
        {"blocks.0.ffn.experts.down.weight", 3, {4, 12, 16}},
        {"blocks.1.norm.weight",             1, {16}       },
        {"blocks.1.qkv.weight",              2, {16, 32}   },
        {"blocks.1.out.weight",              2, {16, 16}   },
        {"blocks.1.ffn_norm.weight",         1, {16}       },
        {"blocks.1.ffn.shared.up.weight",    3, {1, 16, 20}},
        {"blocks.1.ffn.shared.down.weight",  3, {1, 10, 16}},
        {"final_norm.weight",                1, {16}       },
        {"head.weight",                      2, {23, 16}   },
    };
    enum { N = sizeof right / sizeof *right };
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    assert_int_equal(moe_lm_param_count(lm), N);
    int64_t total = 0;
    for (int32_t i = 0; i < N; ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        assert_string_equal(param.name, right[i].name);
        assert_int_equal(param.n_dim, right[i].n_dim);
        assert_memory_equal(param.dim, right[i].dim, (size_t)param.n_dim * sizeof *param.dim);
        assert_null(param.grad);
        total += model_numbers(&param);
    }
    moe_lm_info info = {.size = sizeof info};
    moe_lm_get_info(lm, &info);
    assert_int_equal(info.params_total, total);
    /* two of the four experts of 3 * 16 * 12 numbers stay idle */
    assert_int_equal(info.params_active, total - 2 * 3 * 16 * 12);
    assert_int_equal(info.n_kv_heads, 2);
    assert_int_equal(info.head_dim, 4);
    assert_int_equal(info.context, 32);
    moe_param param = {.size = sizeof param};
    must_fail(ctx, moe_lm_param(lm, N, &param), MOE_ERR_ARGUMENT, "parameter 16");
    assert_non_null(moe_lm_layer(lm, 1));
    assert_null(moe_lm_layer(lm, 2));
    assert_null(moe_lm_layer(lm, -1));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* The gains of queries and keys: of one head, or of all heads of a token. */
static void test_qk_norms(void **state) {
    (void)state;
    static const struct {
        const char *setting;
        int64_t q, k;
    } right[] = {
        {"head", 6,  6 },
        {"full", 24, 12}
    };
    for (int i = 0; i < 2; ++i) {
        const char *const pairs[] = {"model.qk_norm", right[i].setting, "model.head_dim", "6", NULL};
        moe_ctx *ctx = test_ctx(NULL, 1);
        moe_lm *lm = model_make(ctx, pairs);
        const moe_param q = model_param(lm, "blocks.1.q_norm.weight"),
                        k = model_param(lm, "blocks.1.k_norm.weight");
        assert_int_equal(q.n_dim, 1);
        assert_int_equal(k.n_dim, 1);
        assert_int_equal(q.dim[0], right[i].q);
        assert_int_equal(k.dim[0], right[i].k);
        assert_true(((float *)q.value)[0] == 1.0F && ((float *)k.value)[k.dim[0] - 1] == 1.0F);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
}

/* What a common scale of all queries and keys does not change where they are normed, it changes elsewhere. */
static void test_qk_norms_take_scale_away(void **state) {
    (void)state;
    enum { LENGTH = 9, VOCAB = 23, COLS = 32, QK = 24, D = 16 };
    static const char *const settings[] = {"none", "head", "full"};
    int32_t tokens[LENGTH];
    float before[LENGTH * VOCAB], after[LENGTH * VOCAB];
    model_tokens(tokens, LENGTH, VOCAB, 1);
    for (int i = 0; i < 3; ++i) {
        const char *const pairs[] = {"model.qk_norm", settings[i], "model.norm_eps", "1e-20", NULL};
        moe_ctx *ctx = test_ctx(NULL, 1);
        moe_lm *lm = model_make(ctx, pairs);
        must(ctx, moe_lm_reserve(lm, 1, LENGTH, MOE_INFER));
        must(ctx, moe_lm_logits(lm, tokens, 1, LENGTH, before));
        float *qkv = model_param(lm, "blocks.0.qkv.weight").value;
        for (int r = 0; r < D; ++r)
            for (int c = 0; c < QK; ++c) qkv[r * COLS + c] *= 4.0F;
        must(ctx, moe_lm_logits(lm, tokens, 1, LENGTH, after));
        const double moved = model_distance(after, before, LENGTH * VOCAB);
        if (i > 0 ? moved > 1e-5 : moved < 1e-3) fail_msg("%s: logits moved by %g", settings[i], moved);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
}

static double spread(const moe_param *param) {
    double sum = 0;
    int64_t n = model_numbers(param);
    for (int64_t i = 0; i < n; ++i)
        sum += (double)((float *)param->value)[i] * (double)((float *)param->value)[i];
    return sqrt(sum / (double)n);
}

/* N(0, std^2) with the branch ends scaled down, norms of one, no two tensors alike, the seed's own. */
static void test_initial_values(void **state) {
    (void)state;
    static const char *const pairs[] = {"model.d_model", "96", "model.vocab_size", "128", "model.init_std",
                                        "0.05",          NULL};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs), *same = model_make(ctx, pairs);
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param a = {.size = sizeof a}, b = {.size = sizeof b};
        must(ctx, moe_lm_param(lm, i, &a));
        must(ctx, moe_lm_param(same, i, &b));
        int64_t n = model_numbers(&a);
        assert_memory_equal(a.value, b.value, (size_t)n * sizeof(float));
        double right = a.n_dim == 1 ? 1.0 : strstr(a.name, ".out.") ? 0.05 / 2.0 : 0.05; /* 2 = sqrt(2 L) */
        if (fabs(spread(&a) - right) > 5 * right / sqrt(2.0 * (double)n))
            fail_msg("%s: spread %g, right %g", a.name, spread(&a), right);
        for (int32_t j = 0; j < i; ++j) {
            must(ctx, moe_lm_param(lm, j, &b));
            if (a.n_dim > 1 && b.n_dim > 1) assert_memory_not_equal(a.value, b.value, 64 * sizeof(float));
        }
    }
    moe_lm_destroy(same);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void expect_refusal(const char *const *pairs, moe_status status, const char *words) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm_config *config = model_config(pairs);
    moe_lm *lm = NULL;
    must_fail(ctx, moe_lm_create(ctx, config, &lm), status, words);
    assert_null(lm);
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
}

static void test_refusals(void **state) {
    (void)state;
    expect_refusal((const char *const[]){"model.n_heads", "5", NULL}, MOE_ERR_ARGUMENT, "n_heads");
    expect_refusal((const char *const[]){"model.n_kv_heads", "3", NULL}, MOE_ERR_ARGUMENT, "n_kv_heads");
    expect_refusal((const char *const[]){"moe.top_k", "5", NULL}, MOE_ERR_ARGUMENT, "top_k");
    expect_refusal((const char *const[]){"moe.expert", "nobody", NULL}, MOE_ERR_ARGUMENT, "nobody");
}

/* An allocator that refuses everything after `left` blocks. */
static int left;
static void *alloc_some(void *user, size_t bytes, size_t align) {
    (void)user;
    return left-- > 0 ? aligned_alloc(align, (bytes + align - 1) / align * align) : NULL;
}
static void free_some(void *user, void *ptr, size_t bytes) {
    (void)user, (void)bytes;
    free(ptr);
}

/* Each allocation fails once: an error, nothing lost, and the same call succeeds afterwards. */
static void test_no_memory(void **state) {
    (void)state;
    int32_t tokens[8], targets[8];
    model_tokens(tokens, 8, 23, 1);
    model_tokens(targets, 8, 23, 2);
    moe_ctx_desc desc = {
        .size = sizeof desc, .n_threads = 1, .seed = 3, .host = {alloc_some, free_some, NULL}
    };
    moe_lm_config *config = model_config(NULL);
    moe_ctx *ctx;
    left = 1000;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    int failures = 0;
    for (int allowed = 0;; ++allowed) {
        moe_lm *lm = NULL;
        left = allowed;
        moe_status status = moe_lm_create(ctx, config, &lm);
        if (status == MOE_OK) {
            status = moe_lm_reserve(lm, 2, 4, MOE_TRAIN);
            left = 1000;
            if (status != MOE_OK) must(ctx, moe_lm_reserve(lm, 2, 4, MOE_TRAIN));
            double loss, aux;
            must(ctx, moe_lm_loss(lm, tokens, targets, 2, 4, 0, 1.0F, &loss, &aux));
        }
        moe_lm_destroy(lm);
        if (status == MOE_OK) break;
        assert_int_equal(status, MOE_ERR_MEMORY);
        ++failures;
    }
    assert_true(failures > 10);
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
}

/* After reserve no call allocates. */
static void test_nothing_allocates_after_reserve(void **state) {
    (void)state;
    int32_t tokens[64];
    float logits[8 * 23];
    double loss, aux;
    model_tokens(tokens, 64, 23, 1);
    moe_ctx_desc desc = {
        .size = sizeof desc, .n_threads = 1, .seed = 3, .host = {alloc_some, free_some, NULL}
    };
    moe_ctx *ctx;
    left = 1000;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    moe_lm *lm = model_make(ctx, NULL);
    model_taken taken = {0};
    const moe_lm_sampler greedy = {.size = sizeof greedy};
    must(ctx, moe_lm_reserve(lm, 2, 32, MOE_TRAIN));
    must(ctx, moe_lm_generate(lm, tokens, 4, 60, &greedy, model_take, &taken));
    left = 0;
    must(ctx, moe_lm_loss(lm, tokens, tokens, 2, 32, 0, 1.0F, &loss, &aux));
    must(ctx, moe_lm_loss(lm, tokens, tokens, 4, 16, 0, 0.0F, &loss, &aux));
    must(ctx, moe_lm_logits(lm, tokens, 2, 4, logits));
    must(ctx, moe_lm_generate(lm, tokens, 4, 60, &greedy, model_take, &taken));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static size_t held; /* bytes that count_bytes has handed out and not got back */
static void *count_bytes(void *user, size_t bytes, size_t align) {
    (void)user;
    held += bytes;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void uncount_bytes(void *user, void *ptr, size_t bytes) {
    (void)user;
    held -= ptr ? bytes : 0;
    free(ptr);
}

/* What is measured is what is held, but for handles and names: nothing is held before. */
static void test_measured_is_held(void **state) {
    (void)state;
    /* clang-format off */
    static const char *const cases[][9] = {
        {NULL},
        {"model.dtype", "bf16", "model.moe_layer_freq", "2"},
        {"model.tie_embeddings", "true", "moe.num_shared_experts", "1", "moe.recompute", "layer"},
        {"model.qk_norm", "head"},
    };
    /* clang-format on */
    enum { HANDLES = 24 << 10 };
    moe_ctx_desc desc = {
        .size = sizeof desc, .n_threads = 2, .seed = 3, .host = {count_bytes, uncount_bytes, NULL}
    };
    for (int i = 0; i < 8; ++i) {
        const moe_mode mode = i % 2 ? MOE_TRAIN : MOE_INFER;
        const char *pairs[16] = {"model.d_model", "64", "moe.expert_hidden_size", "128"};
        memcpy(pairs + 4, cases[i / 2], sizeof cases[0]);
        size_t measured, more;
        moe_ctx *ctx;
        held = 0;
        assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
        const size_t before = held;
        moe_lm *lm = model_make(ctx, pairs);
        must(ctx, moe_lm_measure(lm, 16, 32, mode, &measured));
        must(ctx, moe_lm_reserve(lm, 16, 32, mode));
        const size_t is = held - before;
        if (measured > is || is - measured > HANDLES)
            fail_msg("case %d: %zu bytes are held, %zu were measured", i, is, measured);
        must(ctx, moe_lm_measure(lm, 1, 1, MOE_INFER, &more)); /* nothing is given back */
        assert_int_equal(more, measured);
        const int32_t token = 1;
        double loss, aux;
        must(ctx, moe_lm_loss(lm, &token, &token, 1, 1, 0, mode == MOE_TRAIN, &loss, &aux)); /* it works on */
        must_fail(ctx, moe_lm_measure(lm, 1, 33, mode, &more), MOE_ERR_ARGUMENT, "longer than the model");
        must_fail(ctx, moe_lm_measure(lm, 1 << 30, 1, mode, &more), MOE_ERR_ARGUMENT, "more than 1073741823");
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
        assert_int_equal(held, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qk_norms),         cmocka_unit_test(test_qk_norms_take_scale_away),
        cmocka_unit_test(test_names_and_shapes), cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_refusals),         cmocka_unit_test(test_measured_is_held),
        cmocka_unit_test(test_no_memory),        cmocka_unit_test(test_nothing_allocates_after_reserve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
