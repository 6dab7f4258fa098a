/* test_layer_bad_input.c: what a layer says to wrong descriptors, shapes, numbers and moments.
 * Every refusal has a status, a text that names the fault, and leaves the layer usable.
 */
#include "support/layer_fixture.h"

#include <limits.h>

static moe_layer_desc good_desc(void) {
    return (moe_layer_desc){
        .size = sizeof(moe_layer_desc), .d_model = 13, .num_experts = 5, .top_k = 2, .expert_hidden_size = 7};
}

static void refused(moe_ctx *ctx, moe_layer_desc desc, moe_status status, const char *words) {
    moe_layer *layer = NULL;
    assert_int_equal(moe_layer_create(ctx, &desc, &layer), status);
    assert_null(layer);
    if (!strstr(moe_ctx_error(ctx), words)) fail_msg("'%s' lacks '%s'", moe_ctx_error(ctx), words);
}

static void descriptors_are_checked(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc d;
    d = good_desc(), d.size = 3, refused(ctx, d, MOE_ERR_ARGUMENT, "size");
    d = good_desc(), d.d_model = 0, refused(ctx, d, MOE_ERR_ARGUMENT, "d_model");
    d = good_desc(), d.top_k = 6,
    refused(ctx, d, MOE_ERR_ARGUMENT, "top_k: 6 is outside 1 .. num_experts = 5");
    d = good_desc(), d.top_k = -1, refused(ctx, d, MOE_ERR_ARGUMENT, "top_k");
    d = good_desc(), d.num_experts = -2, refused(ctx, d, MOE_ERR_ARGUMENT, "num_experts");
    d = good_desc(), d.num_experts = 0, refused(ctx, d, MOE_ERR_ARGUMENT, "num_shared_experts");
    d = good_desc(), d.expert_hidden_size = 0, refused(ctx, d, MOE_ERR_ARGUMENT, "expert_hidden_size");
    d = good_desc(), d.activation = "swiglo", refused(ctx, d, MOE_ERR_ARGUMENT, "swiglo");
    d = good_desc(), d.score_function = "cosine", refused(ctx, d, MOE_ERR_ARGUMENT, "score_function");
    d = good_desc(), d.drop_policy = "random", refused(ctx, d, MOE_ERR_ARGUMENT, "drop_policy");
    d = good_desc(), d.expert = "conv", refused(ctx, d, MOE_ERR_ARGUMENT, "conv");
    d = good_desc(), d.norm_topk_prob = true, refused(ctx, d, MOE_ERR_ARGUMENT, "score_before_topk");
    d = good_desc(), d.capacity_factor = -1, refused(ctx, d, MOE_ERR_ARGUMENT, "capacity_factor");
    d = good_desc(), d.aux_loss_coeff = NAN, refused(ctx, d, MOE_ERR_ARGUMENT, "aux_loss_coeff");
    d = good_desc(), d.input_jitter_eps = 1, refused(ctx, d, MOE_ERR_ARGUMENT, "input_jitter_eps");
    d = good_desc(), d.dtype = (moe_dtype)9,
    refused(ctx, d, MOE_ERR_ARGUMENT, "dtype: 9 is not MOE_F32, MOE_F64 or MOE_BF16");
    moe_ctx_destroy(ctx);
}

static void options_are_parsed(void **state) {
    (void)state;
    moe_layer_desc d = good_desc();
    moe_error error;
    assert_int_equal(moe_layer_desc_set(&d, "moe.num_experts", "16", NULL), MOE_OK);
    assert_int_equal(d.num_experts, 16);
    assert_int_equal(moe_layer_desc_set(&d, "moe_router_topk", "4", NULL), MOE_OK); /* NeMo's name */
    assert_int_equal(d.top_k, 4);
    assert_int_equal(moe_layer_desc_set(&d, "activation", "gelu", NULL), MOE_OK);
    assert_string_equal(d.activation, "gelu");
    assert_int_equal(moe_layer_desc_set(&d, "moe.num_expert", "4", &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "moe.num_experts"));
    assert_int_equal(moe_layer_desc_set(&d, "moe.top_k", "two", &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "two"));
    assert_int_equal(moe_layer_desc_set(&d, "moe.top_k", "99999999999", &error), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_desc_set(&d, "moe.aux_loss_coeff", "nan", &error), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_desc_set(&d, "moe.aux_loss_coeff", "-1e-50", &error), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_desc_set(&d, "moe.aux_loss_coeff", "1e-50", &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "1e-50 is too near 0"));
    assert_int_equal(moe_layer_desc_set(&d, "moe.expert_bias", "maybe", &error), MOE_ERR_ARGUMENT);
    assert_int_equal(d.top_k, 4); /* refusals change nothing */
}

static void contexts_are_checked(void **state) {
    (void)state;
    moe_ctx *ctx = NULL;
    moe_error error;
    moe_ctx_desc d = {.size = 1};
    assert_int_equal(moe_ctx_create(&d, &ctx, &error), MOE_ERR_ARGUMENT);
    d = (moe_ctx_desc){.size = sizeof d, .isa = "mmx"};
    assert_int_equal(moe_ctx_create(&d, &ctx, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "avx512"));
    static const char *const either[] = {"neon", "avx2"}; /* no machine has both */
    static const char *const needs[] = {"'neon', which needs 64-bit Arm;",
                                        "'avx2', which needs AVX2 and FMA;"};
    int lacking = 0;
    for (int i = 0; i < 2; ++i) {
        d = (moe_ctx_desc){.size = sizeof d, .isa = either[i]};
        if (moe_ctx_create(&d, &ctx, &error) == MOE_OK) {
            moe_ctx_destroy(ctx);
            ctx = NULL;
            continue;
        }
        ++lacking;
        assert_int_equal(error.status, MOE_ERR_UNSUPPORTED);
        if (!strstr(error.text, needs[i]) || !strstr(error.text, "' is its best")) fail_msg("%s", error.text);
    }
    assert_true(lacking >= 1);
    d = (moe_ctx_desc){.size = sizeof d, .isa = "sm90"};
    assert_int_equal(moe_ctx_create(&d, &ctx, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "CPU"));
    d = (moe_ctx_desc){.size = sizeof d, .n_threads = -3};
    assert_int_equal(moe_ctx_create(&d, &ctx, &error), MOE_ERR_ARGUMENT);
    d = (moe_ctx_desc){.size = sizeof d, .device_index = 1};
    assert_int_equal(moe_ctx_create(&d, &ctx, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "device_index: 1 names a GPU"));
    d = (moe_ctx_desc){.size = sizeof d, .device = MOE_CUDA};
    assert_int_equal(moe_ctx_create(&d, &ctx, &error), MOE_ERR_UNSUPPORTED);
    assert_null(ctx);
}

/* MOEKIT_ISA is for every context of a program: the name of a GPU's kernels lowers nothing on the CPU. */
static void a_gpus_isa_in_the_environment_is_for_gpus(void **state) {
    (void)state;
    char *before = getenv("MOEKIT_ISA") ? strdup(getenv("MOEKIT_ISA")) : NULL;
    unsetenv("MOEKIT_ISA");
    moe_ctx *ctx = test_ctx(NULL, 1);
    const char *best = moe_ctx_isa(ctx);
    setenv("MOEKIT_ISA", "sm90", 1);
    moe_ctx *beside = test_ctx(NULL, 1);
    assert_string_equal(moe_ctx_isa(beside), best);
    moe_ctx_destroy(beside);
    moe_ctx_destroy(ctx);
    if (before)
        setenv("MOEKIT_ISA", before, 1);
    else
        unsetenv("MOEKIT_ISA");
    free(before);
}

/* An allocator that gives out after `left` bytes: every failure is a status, and nothing leaks or dies. */
static void *limited_alloc(void *user, size_t bytes, size_t align) {
    size_t *left = user;
    if (bytes > *left) return NULL;
    *left -= bytes;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void limited_free(void *user, void *ptr, size_t bytes) {
    *(size_t *)user += bytes;
    free(ptr);
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    int refused_count = 0, served = 0;
    for (size_t budget = 1 << 10; budget < (size_t)4 << 20; budget += budget / 9) {
        size_t left = budget;
        moe_ctx_desc desc = {
            .size = sizeof desc, .n_threads = 1, .host = {limited_alloc, limited_free, &left}
        };
        moe_ctx *ctx = NULL;
        moe_status status = moe_ctx_create(&desc, &ctx, NULL);
        moe_layer *layer = NULL;
        moe_layer_desc layer_desc = good_desc();
        layer_desc.d_model = 64, layer_desc.expert_hidden_size = 64, layer_desc.num_shared_experts = 1;
        if (status == MOE_OK) status = moe_layer_create(ctx, &layer_desc, &layer);
        if (status == MOE_OK) status = moe_layer_reserve(layer, 128, MOE_TRAIN);
        assert_true(status == MOE_OK || status == MOE_ERR_MEMORY);
        status == MOE_OK ? ++served : ++refused_count;
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
        assert_int_equal(left, budget); /* all given back, to the byte */
    }
    assert_true(served > 0 && refused_count > 10);
}

/* A refused larger reserve leaves the smaller one in force. */
static void a_refused_reserve_changes_nothing(void **state) {
    (void)state;
    for (size_t budget = (size_t)3 << 20; budget < (size_t)6 << 20; budget += 65536) {
        size_t left = budget;
        moe_ctx_desc ctx_desc = {
            .size = sizeof ctx_desc, .n_threads = 1, .host = {limited_alloc, limited_free, &left}
        };
        moe_ctx *ctx = NULL;
        assert_int_equal(moe_ctx_create(&ctx_desc, &ctx, NULL), MOE_OK);
        moe_layer_desc desc = good_desc();
        moe_layer *layer = NULL;
        must(ctx, moe_layer_create(ctx, &desc, &layer));
        must(ctx, moe_layer_reserve(layer, 16, MOE_TRAIN));
        moe_mat x = test_random(MOE_F32, 16, 13, 1), y = test_output(MOE_F32, 16, 13);
        moe_mat again = test_output(MOE_F32, 16, 13), dx = test_output(MOE_F32, 16, 13);
        must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
        moe_status status = moe_layer_reserve(layer, 8192, MOE_TRAIN);
        assert_true(status == MOE_OK || status == MOE_ERR_MEMORY);
        must(ctx, moe_layer_forward(layer, x, again, &test_train_call, NULL));
        must(ctx, moe_layer_backward(layer, x, y, dx));
        assert_memory_equal(y.data, again.data, test_bytes(y));
        free(x.data), free(y.data), free(again.data), free(dx.data);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
        assert_int_equal(left, budget);
    }
}

/* A call that is refused before it begins leaves the pending backward as it was. */
static void a_refused_call_leaves_the_backward(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc desc = good_desc();
    desc.router_type = "noisy_top_k";
    moe_layer *layer = test_layer(ctx, &desc, 9);
    moe_mat x = test_random(MOE_F32, 9, 13, 1), y = test_output(MOE_F32, 9, 13);
    moe_mat first = test_random(MOE_F32, 9, 5, 2), second = test_random(MOE_F32, 9, 5, 3);
    moe_mat want = test_output(MOE_F32, 9, 13), got = test_output(MOE_F32, 9, 13);
    moe_draws draws = {.size = sizeof draws, .noise = first.data},
              others = {.size = sizeof others, .noise = second.data};
    moe_call call = test_train_call, refused = test_train_call;
    call.draws = &draws;
    refused.draws = &others;
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    must(ctx, moe_layer_backward(layer, x, y, want));
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    refused.mode = (moe_mode)7;
    assert_int_equal(moe_layer_forward(layer, x, y, &refused, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "mode"));
    refused.mode = MOE_TRAIN;
    refused.loss_scale = NAN;
    assert_int_equal(moe_layer_forward(layer, x, y, &refused, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "loss_scale"));
    must(ctx, moe_layer_backward(layer, x, y, got));
    assert_memory_equal(got.data, want.data, test_bytes(want));
    free(x.data), free(y.data), free(want.data), free(got.data), free(first.data), free(second.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* What the router did can be asked for after a forward that succeeded, not before one or after a failure. */
static void routing_is_told_after_success_only(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc desc = good_desc();
    moe_layer *layer = test_layer(ctx, &desc, 9);
    moe_mat x = test_random(MOE_F32, 9, 13, 1), y = test_output(MOE_F32, 9, 13);
    moe_routing_view view = {.size = sizeof view};
    assert_int_equal(moe_layer_routing(layer, &view), MOE_ERR_STATE);
    must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
    must(ctx, moe_layer_routing(layer, &view));
    ((float *)x.data)[3] = NAN;
    assert_int_equal(moe_layer_forward(layer, x, y, NULL, NULL), MOE_ERR_NUMERIC);
    assert_int_equal(moe_layer_routing(layer, &view), MOE_ERR_STATE);
    free(x.data), free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void shapes_dtypes_and_moments(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_layer_desc desc = good_desc();
    moe_layer *layer = NULL;
    moe_mat x = test_random(MOE_F32, 9, 13, 1), y = test_output(MOE_F32, 9, 13), bad;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    assert_int_equal(moe_layer_forward(layer, x, y, NULL, NULL), MOE_ERR_STATE); /* not reserved */
    assert_int_equal(moe_layer_reserve(layer, -1, MOE_TRAIN), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_reserve(layer, INT_MAX, MOE_TRAIN), MOE_ERR_ARGUMENT);
    must(ctx, moe_layer_reserve(layer, 8, MOE_INFER));
    assert_int_equal(moe_layer_forward(layer, x, y, NULL, NULL), MOE_ERR_STATE); /* 9 > 8 */
    must(ctx, moe_layer_reserve(layer, 9, MOE_INFER));
    assert_int_equal(moe_layer_forward(layer, x, y, &test_train_call, NULL), MOE_ERR_STATE);
    assert_int_equal(moe_layer_backward(layer, x, y, y), MOE_ERR_STATE);
    must(ctx, moe_layer_reserve(layer, 9, MOE_TRAIN));
    bad = x, bad.dtype = MOE_F64;
    assert_int_equal(moe_layer_forward(layer, bad, y, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "dtype"));
    bad = x, bad.cols = 12;
    assert_int_equal(moe_layer_forward(layer, bad, y, NULL, NULL), MOE_ERR_ARGUMENT);
    bad = x, bad.stride = 5;
    assert_int_equal(moe_layer_forward(layer, bad, y, NULL, NULL), MOE_ERR_ARGUMENT);
    bad = x, bad.stride = INT64_MAX / 4; /* 9 rows of it overflow */
    assert_int_equal(moe_layer_forward(layer, bad, y, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "x: stride 2305843009213693951; rows may lie 536870912"));
    bad = y, bad.stride = (1 << 29) + 1;
    assert_int_equal(moe_layer_forward(layer, x, bad, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "y: stride 536870913"));
    bad = x, bad.data = NULL;
    assert_int_equal(moe_layer_forward(layer, bad, y, NULL, NULL), MOE_ERR_ARGUMENT);
    bad = y, bad.rows = 8;
    assert_int_equal(moe_layer_forward(layer, x, bad, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_forward(layer, x, x, NULL, NULL), MOE_ERR_ARGUMENT);
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    moe_mat dx = test_output(MOE_F32, 9, 13);
    assert_int_equal(moe_layer_backward(layer, x, y, x), MOE_ERR_ARGUMENT);
    must(ctx, moe_layer_backward(layer, x, y, dx));
    assert_int_equal(moe_layer_backward(layer, x, y, dx), MOE_ERR_STATE); /* one a forward */
    moe_param param = {.size = sizeof param};
    assert_int_equal(moe_layer_param(layer, 99, &param), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_param_by_name(layer, "gate.wait", &param), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "the nearest is 'gate.weight'"));
    assert_int_equal(moe_layer_param_by_name(layer, "experts.up.wieght", &param), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "the nearest is 'experts.up.weight'"));
    free(x.data), free(y.data), free(dx.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void within(moe_ctx *ctx, moe_status status, const char *words) {
    assert_int_equal(status, MOE_ERR_ARGUMENT);
    if (!strstr(moe_ctx_error(ctx), words)) fail_msg("'%s' lacks '%s'", moe_ctx_error(ctx), words);
}

/* Data that begins within an element is told by its name: read as such it would be undefined in C. */
static void data_begins_with_an_element(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc desc = good_desc();
    desc.dtype = MOE_F64, desc.score_function = "sigmoid", desc.selection_bias = true;
    desc.selection_bias_update_rate = 0.1f;
    moe_layer *layer = test_layer(ctx, &desc, 9);
    const moe_mat x = test_random(MOE_F64, 9, 13, 1), y = test_output(MOE_F64, 9, 13);
    const moe_mat dx = test_output(MOE_F64, 9, 13);
    static const int64_t numbers[64];
    const char *odd = (const char *)numbers + 4;
    moe_mat off = x;
    off.data = (char *)x.data + 4;
    within(ctx, moe_layer_forward(layer, off, y, NULL, NULL), "x: data is at 0x");
    within(ctx, moe_layer_forward(layer, x, off, NULL, NULL), "y: data is at 0x");
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    within(ctx, moe_layer_backward(layer, off, y, dx), "x: data is at 0x");
    within(ctx, moe_layer_backward(layer, x, off, dx), "dy: data is at 0x");
    within(ctx, moe_layer_backward(layer, x, y, off), "dx: data is at 0x");
    must(ctx, moe_layer_backward(layer, x, y, dx));
    moe_call call = {.size = sizeof call, .replay_expert = (const int32_t *)numbers};
    call.replay_weight = odd;
    within(ctx, moe_layer_forward(layer, x, y, &call, NULL), "moe_call: replay_weight is at 0x");
    call.replay_weight = NULL;
    odd += 1;
    memcpy(&call.replay_expert, &odd, sizeof odd);
    within(ctx, moe_layer_forward(layer, x, y, &call, NULL), "moe_call: replay_expert is at 0x");
    moe_draws draws = {.size = sizeof draws};
    memcpy(&draws.expert_dropout, &odd, sizeof odd);
    call = test_train_call, call.draws = &draws;
    within(ctx, moe_layer_forward(layer, x, y, &call, NULL), "moe_draws: expert_dropout is at 0x");
    const int64_t *counts;
    memcpy(&counts, &odd, sizeof odd);
    within(ctx, moe_layer_end_step(layer, counts), "moe_layer_end_step: counts is at 0x");
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    free(x.data), free(y.data), free(dx.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void bad_numbers_name_their_token(void **state) {
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (size_t isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        moe_layer_desc desc = good_desc();
        moe_layer *layer = test_layer(ctx, &desc, 40);
        moe_mat x = test_random(MOE_F32, 40, 13, 1), y = test_output(MOE_F32, 40, 13);
        moe_mat poison = test_output(MOE_F32, 40, 13);
        for (size_t v = 0; v < 3; ++v) {
            float *spoilt = (float *)x.data + 23 * 13 + 5, kept = *spoilt;
            *spoilt = values[v];
            assert_int_equal(moe_layer_forward(layer, x, y, NULL, NULL), MOE_ERR_NUMERIC);
            assert_non_null(strstr(moe_ctx_error(ctx), "token 23"));
            assert_memory_equal(y.data, poison.data, test_bytes(y)); /* outputs only on success */
            *spoilt = kept;
        }
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL)); /* and it goes on */
        free(x.data), free(y.data), free(poison.data);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
}

/* Legal extremes: no token, one expert, all experts, prime widths, an expert without tokens, all on one. */
static void extremes_are_legal(void **state) {
    (void)state;
    static const struct {
        int32_t d, E, K, n;
        int64_t T;
    } cases[] = {
        {13,  5,   2, 7,  0 },
        {1,   1,   1, 1,  3 },
        {13,  6,   6, 7,  11},
        {101, 3,   2, 97, 5 },
        {13,  128, 8, 7,  2 },
        {31,  64,  1, 3,  33}
    };
    for (size_t isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        for (size_t c = 0; c < sizeof cases / sizeof *cases; ++c) {
            moe_layer_desc desc = {.size = sizeof desc,
                                   .d_model = cases[c].d,
                                   .num_experts = cases[c].E,
                                   .top_k = cases[c].K,
                                   .expert_hidden_size = cases[c].n,
                                   .aux_loss_coeff = 1,
                                   .z_loss_coeff = 1};
            moe_layer *layer = test_layer(ctx, &desc, cases[c].T);
            moe_mat x = test_random(MOE_F32, cases[c].T, cases[c].d, 1),
                    y = test_output(MOE_F32, cases[c].T, cases[c].d);
            moe_mat dx = test_output(MOE_F32, cases[c].T, cases[c].d);
            moe_stats stats = {.size = sizeof stats};
            must(ctx, moe_layer_forward(layer, x, y, &test_train_call, &stats));
            must(ctx, moe_layer_backward(layer, x, y, dx));
            assert_int_equal(stats.n_kept, cases[c].K * cases[c].T);
            assert_true(isfinite(stats.loss) && isfinite(stats.load_cv));
            for (int64_t t = 0; t < cases[c].T; ++t)
                for (int64_t i = 0; i < cases[c].d; ++i)
                    assert_true(isfinite(test_at(y, t, i)) && isfinite(test_at(dx, t, i)));
            free(x.data), free(y.data), free(dx.data);
            moe_layer_destroy(layer);
        }
        moe_ctx_destroy(ctx);
    }
}

static void all_tokens_on_one_expert(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_layer_desc desc = good_desc();
    desc.top_k = 1;
    moe_layer *layer = test_layer(ctx, &desc, 64);
    moe_mat x = test_random(MOE_F32, 64, 13, 1), y = test_output(MOE_F32, 64, 13);
    for (int64_t t = 0; t < 64; ++t) memcpy((float *)x.data + t * 13, x.data, 13 * sizeof(float));
    moe_stats stats = {.size = sizeof stats};
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, &stats));
    assert_int_equal(stats.n_dead, 4);
    assert_true(fabs(stats.load_max - 5) < 1e-9);
    assert_true(stats.load_entropy < 1e-9);
    for (int64_t t = 1; t < 64; ++t)
        assert_memory_equal(y.data, (float *)y.data + t * 13, 13 * sizeof(float));
    free(x.data), free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* Equal logits: the lower expert index wins. */
static void ties_go_to_the_lower_expert(void **state) {
    (void)state;
    for (size_t isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        moe_layer_desc desc = good_desc();
        desc.num_experts = 37;
        desc.top_k = 3;
        moe_layer *layer = test_layer(ctx, &desc, 8);
        moe_mat x = test_random(MOE_F32, 8, 13, 1), y = test_output(MOE_F32, 8, 13);
        moe_param gate = {.size = sizeof gate};
        must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
        memset(gate.value, 0, 37 * 13 * sizeof(float));
        moe_routing_view view = {.size = sizeof view};
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
        must(ctx, moe_layer_routing(layer, &view));
        for (int64_t t = 0; t < 8; ++t)
            for (int32_t k = 0; k < 3; ++k) assert_int_equal(view.expert[t * 3 + k], k);
        free(x.data), free(y.data);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
}

/* What measure tells is what reserve takes, and saved memory is 2Td-free: Z and routing only. */
static void memory_is_what_was_measured(void **state) {
    (void)state;
    size_t left = (size_t)1 << 30, before;
    moe_ctx_desc ctx_desc = {
        .size = sizeof ctx_desc, .n_threads = 1, .host = {limited_alloc, limited_free, &left}
    };
    moe_ctx *ctx = NULL;
    assert_int_equal(moe_ctx_create(&ctx_desc, &ctx, NULL), MOE_OK);
    moe_layer_desc desc = good_desc();
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    moe_layer_bytes bytes = test_measure(ctx, layer, 100);
    before = left;
    must(ctx, moe_layer_reserve(layer, 100, MOE_TRAIN));
    assert_int_equal(before - left, bytes.grads + bytes.saved + bytes.scratch);
    size_t z = 100 * 2 * 2 * 7 * sizeof(float), routing = 100 * (5 + 1 + 3 * 2) * 4 + 5 * 3 * 8;
    assert_true(bytes.saved >= z + routing && bytes.saved < z + routing + 16 * 64);
    before = left;
    moe_mat x = test_random(MOE_F32, 100, 13, 1), y = test_output(MOE_F32, 100, 13),
            dx = test_output(MOE_F32, 100, 13);
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, x, y, dx));
    assert_int_equal(left, before); /* nothing allocates after reserve */
    free(x.data), free(y.data), free(dx.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    assert_int_equal(left, (size_t)1 << 30);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptors_are_checked),
        cmocka_unit_test(options_are_parsed),
        cmocka_unit_test(contexts_are_checked),
        cmocka_unit_test(a_gpus_isa_in_the_environment_is_for_gpus),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(shapes_dtypes_and_moments),
        cmocka_unit_test(a_refused_reserve_changes_nothing),
        cmocka_unit_test(routing_is_told_after_success_only),
        cmocka_unit_test(a_refused_call_leaves_the_backward),
        cmocka_unit_test(data_begins_with_an_element),
        cmocka_unit_test(bad_numbers_name_their_token),
        cmocka_unit_test(extremes_are_legal),
        cmocka_unit_test(all_tokens_on_one_expert),
        cmocka_unit_test(ties_go_to_the_lower_expert),
        cmocka_unit_test(memory_is_what_was_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
