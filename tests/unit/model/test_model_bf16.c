/* test_model_bf16.c: a model that stores bf16 against the same model in f32 with the same (rounded) weights,
 * and its checkpoints. Bounds: norms within 2e-2 for logits; gradients have gone through all layers twice,
 * 5e-2. Source: moekit/lm.h.
 */
#include "unit/model/model_fixture.h"

#include "core/real.h"
#include "format/safetensors.h"

enum { N_SEQ = 3, LENGTH = 29, ROWS = N_SEQ * LENGTH, VOCAB = 23 };

static const char *const bf16[] = {"model.dtype", "bf16", NULL};
static const char *const tied[] = {
    "model.dtype", "bf16", "model.tie_embeddings", "true", "moe.num_shared_experts", "1", NULL};

static void copy_params(moe_ctx *ctx, moe_lm *from, moe_lm *to) {
    assert_int_equal(moe_lm_param_count(from), moe_lm_param_count(to));
    for (int32_t i = 0; i < moe_lm_param_count(from); ++i) {
        moe_param a = {.size = sizeof a}, b = {.size = sizeof b};
        must(ctx, moe_lm_param(from, i, &a));
        must(ctx, moe_lm_param(to, i, &b));
        assert_int_equal(a.dtype, a.buffer ? MOE_F32 : MOE_BF16);
        assert_int_equal(a.grad_dtype, MOE_F32);
        for (int64_t j = 0; j < model_numbers(&a); ++j)
            moei_real_store(b.dtype, b.value, j, moei_real_load(a.dtype, a.value, j));
    }
}

/* |a - b| / |b| */
static double norm_distance(const float *a, const float *b, int64_t n) {
    double distance = 0, norm = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double d = (double)a[i] - (double)b[i];
        distance += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(distance / norm);
}

/* The gradients of a drawn text: of each parameter how far they are off. */
static void compare_draw(moe_ctx *ctx, moe_lm *lm, moe_lm *wide, int32_t draw, double *off) {
    int32_t tokens[ROWS + 1];
    float *have = calloc(2 * ROWS * VOCAB, sizeof *have), *want = have + ROWS * VOCAB;
    double loss[2];
    assert_non_null(have);
    model_tokens(tokens, ROWS + 1, VOCAB, 3 + (uint64_t)draw);
    must(ctx, moe_lm_logits(lm, tokens, N_SEQ, LENGTH, have));
    must(ctx, moe_lm_logits(wide, tokens, N_SEQ, LENGTH, want));
    const double logits_off = norm_distance(have, want, ROWS * VOCAB);
    if (!(logits_off < 2e-2)) fail_msg("logits are off by %.3g of their norm", logits_off);
    free(have);
    moe_lm_zero_grad(lm);
    moe_lm_zero_grad(wide);
    must(ctx, moe_lm_loss(lm, tokens, tokens + 1, N_SEQ, LENGTH, 1, 1, &loss[0], NULL));
    must(ctx, moe_lm_loss(wide, tokens, tokens + 1, N_SEQ, LENGTH, 1, 1, &loss[1], NULL));
    assert_true(fabs(loss[0] - loss[1]) < 1e-2 * loss[1]);
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param a = {.size = sizeof a}, b = {.size = sizeof b};
        must(ctx, moe_lm_param(lm, i, &a));
        must(ctx, moe_lm_param(wide, i, &b));
        off[i] = a.grad ? norm_distance(a.grad, b.grad, model_numbers(&a)) : 0;
        assert_true(isfinite(off[i]));
    }
}

static double middle(double a, double b, double c) {
    return fmax(fmin(a, b), fmin(fmax(a, b), c));
}

/* The middle of three texts: of one, a single token whose gradient nearly cancels may be off by a quarter of
 * itself and be most of the distance (two draws of 150 pass the bound so); a wrong term is in all of them. */
static void compare(moe_ctx *ctx, moe_lm *lm, moe_lm *wide) {
    const int32_t n = moe_lm_param_count(lm);
    double *off = calloc(3 * (size_t)n, sizeof *off);
    assert_non_null(off);
    must(ctx, moe_lm_reserve(lm, N_SEQ, LENGTH, MOE_TRAIN));
    must(ctx, moe_lm_reserve(wide, N_SEQ, LENGTH, MOE_TRAIN));
    for (int32_t draw = 0; draw < 3; ++draw) compare_draw(ctx, lm, wide, draw, off + draw * n);
    for (int32_t i = 0; i < n; ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        const double grad_off = middle(off[i], off[n + i], off[2 * n + i]);
        if (!(grad_off < 5e-2))
            fail_msg("the gradient of %s is off by %.3g of its norm", param.name, grad_off);
    }
    free(off);
}

/* Every expert is chosen: where one of two nearly equal ones is left out, rounding decides which. */
static void test_near_f32(void **state) {
    (void)state;
    static const char *const narrow[] = {"model.dtype", "bf16", "moe.top_k", "4", NULL};
    static const char *const wide[] = {"moe.top_k", "4", NULL};
    static const char *const narrow_tied[] = {
        "model.dtype", "bf16", "moe.top_k", "4", "model.tie_embeddings", "true", "moe.num_shared_experts",
        "1",           NULL};
    static const char *const wide_tied[] = {
        "moe.top_k", "4", "model.tie_embeddings", "true", "moe.num_shared_experts", "1", NULL};
    /* gains of many numbers: the gradients of few may nearly cancel, and rounding is then most of them */
    static const char *const narrow_normed[] = {
        "model.dtype", "bf16", "moe.top_k", "4", "model.qk_norm", "full", "model.d_model", "64", NULL};
    static const char *const wide_normed[] = {"moe.top_k", "4", "model.qk_norm", "full", "model.d_model",
                                              "64",        NULL};
    static const char *const *const pairs[][2] = {
        {narrow,        wide       },
        {narrow_tied,   wide_tied  },
        {narrow_normed, wide_normed}
    };
    for (int i = 0; i < 3; ++i) {
        moe_ctx *ctx = test_ctx(NULL, 2);
        moe_lm *a = model_make(ctx, pairs[i][0]), *b = model_make(ctx, pairs[i][1]);
        copy_params(ctx, a, b);
        compare(ctx, a, b);
        moe_lm_destroy(a);
        moe_lm_destroy(b);
        moe_ctx_destroy(ctx);
    }
}

/* Written as BF16 and read without a rounding, in Mixtral's form and in our own. */
static void test_checkpoints(void **state) {
    static const char *const *const pairs[] = {bf16, tied};
    for (int i = 0; i < 2; ++i) {
        moe_ctx *ctx = test_ctx(NULL, 1);
        moe_lm *lm = model_make(ctx, pairs[i]);
        char *path = scratch_path(state, i ? "own" : "mixtral");
        must(ctx, moe_lm_save(lm, path));
        moelm_safetensors *file;
        moe_error error;
        assert_ok(moelm_safetensors_open(path, &file, &error), &error);
        for (size_t t = 0; t < moelm_safetensors_count(file); ++t)
            assert_int_equal(moelm_safetensors_at(file, t)->dtype, MOELM_ST_BF16);
        moelm_safetensors_close(file);
        moe_lm *back = model_load(ctx, path);
        for (int32_t p = 0; p < moe_lm_param_count(lm); ++p) {
            moe_param a = {.size = sizeof a}, b = {.size = sizeof b};
            must(ctx, moe_lm_param(lm, p, &a));
            must(ctx, moe_lm_param(back, p, &b));
            assert_int_equal(b.dtype, MOE_BF16);
            assert_memory_equal(a.value, b.value, (size_t)model_numbers(&a) * 2);
        }
        moe_lm_destroy(back);
        must(ctx, moe_lm_load_as(ctx, path, "f32", &back));
        for (int32_t p = 0; p < moe_lm_param_count(lm); ++p) {
            moe_param a = {.size = sizeof a}, b = {.size = sizeof b};
            must(ctx, moe_lm_param(lm, p, &a));
            must(ctx, moe_lm_param(back, p, &b));
            assert_int_equal(b.dtype, MOE_F32);
            for (int64_t j = 0; j < model_numbers(&a); ++j)
                assert_true(moei_real_load(a.dtype, a.value, j) == moei_real_load(b.dtype, b.value, j));
        }
        moe_lm *none = NULL;
        must_fail(ctx, moe_lm_load_as(ctx, path, "f16", &none), MOE_ERR_ARGUMENT, "bf16");
        free(path);
        moe_lm_destroy(back);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
}

/* Greedy text with the cache is the argmax of whole passes: a row's bits do not depend on who stands beside
 * it. */
static void test_generate(void **state) {
    (void)state;
    enum { NEW = 12 };
    moe_ctx *ctx = test_ctx(NULL, 3);
    moe_lm *lm = model_make(ctx, bf16);
    const moe_lm_sampler greedy = {.size = sizeof greedy};
    int32_t text[4 + NEW];
    float logits[(4 + NEW) * VOCAB];
    model_taken taken = {.n = 0};
    model_tokens(text, 4, VOCAB, 5);
    must(ctx, moe_lm_generate(lm, text, 4, NEW, &greedy, model_take, &taken));
    assert_int_equal(taken.n, NEW);
    must(ctx, moe_lm_reserve(lm, 1, 4 + NEW, MOE_INFER));
    for (int i = 0; i < NEW; ++i) {
        must(ctx, moe_lm_logits(lm, text, 1, 4 + i, logits));
        const float *last = logits + (3 + i) * VOCAB;
        int32_t best = 0;
        for (int32_t v = 1; v < VOCAB; ++v)
            if (last[v] > last[best]) best = v;
        assert_int_equal(taken.token[i], best);
        text[4 + i] = best;
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_f32),
        cmocka_unit_test_setup_teardown(test_checkpoints, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_generate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
