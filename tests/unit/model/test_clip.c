/* test_clip.c: model.clip_qkv alone, forward and backward, on qkv[R, C] set by hand: inside, outside and at
 * the bound, f32 and bf16, rows of a whole task and of a part. Source: lm/model/clip.c, which tells what
 * torch does at the bound itself.
 */
#include "model_fixture.h"

#include "model/model.h"

/* All are bf16 numbers, the bound is 0.5. */
static const struct {
    float x, clipped;
    bool kept;
} cases[] = {
    {0.25F,     0.25F,   true },
    {-0.375F,   -0.375F, true },
    {0.0F,      0.0F,    true },
    {0.5F,      0.5F,    true },
    {-0.5F,     -0.5F,   true },
    {3.0F,      0.5F,    false},
    {-7.0F,     -0.5F,   false},
    {INFINITY,  0.5F,    false},
    {-INFINITY, -0.5F,   false},
};
enum { N_CASES = sizeof cases / sizeof *cases, ROWS = 21 }; /* a task and five rows */

static void put(const moe_lm *lm, void *block, int64_t i, float x) {
    if (lm->dtype == MOE_BF16)
        ((uint16_t *)block)[i] = moei_bf16_round(x);
    else
        ((float *)block)[i] = x;
}

static float get(const moe_lm *lm, const void *block, int64_t i) {
    return lm->dtype == MOE_BF16 ? moei_bf16_value(((const uint16_t *)block)[i]) : ((const float *)block)[i];
}

/* What stands at i: cases and gradients that do not repeat in step. */
static float gradient(int64_t i) {
    return (float)(i % 5 + 1) * (i % 2 ? -0.5F : 0.5F);
}

static void check(moe_ctx *ctx, const char *dtype, bool clips) {
    const char *const pairs[] = {"model.dtype", dtype, "model.clip_qkv", clips ? "0.5" : "0", NULL};
    moe_lm *lm = model_make(ctx, pairs);
    must(ctx, moe_lm_reserve(lm, 1, ROWS, MOE_TRAIN));
    const moelm_saved *s = &lm->blocks[1].saved;
    const int64_t n = ROWS * moelm_qkv_cols(lm);
    for (int64_t i = 0; i < n; ++i) {
        put(lm, s->qkv, i, cases[i % N_CASES].x);
        put(lm, lm->memory.dqkv, i, gradient(i));
    }
    moelm_clip(lm, s, ROWS);
    moelm_clip_backward(lm, s, ROWS);
    for (int64_t i = 0; i < n; ++i) {
        const bool kept = !clips || cases[i % N_CASES].kept;
        const float want = clips ? cases[i % N_CASES].clipped : cases[i % N_CASES].x;
        if (get(lm, s->qkv, i) != want)
            fail_msg("%s: %g became %g, not %g", dtype, (double)cases[i % N_CASES].x,
                     (double)get(lm, s->qkv, i), (double)want);
        if (get(lm, lm->memory.dqkv, i) != (kept ? gradient(i) : 0.0F))
            fail_msg("%s: the gradient at %g is %g", dtype, (double)cases[i % N_CASES].x,
                     (double)get(lm, lm->memory.dqkv, i));
    }
    moe_lm_destroy(lm);
}

static void test_by_hand(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 2);
    for (int clips = 0; clips < 2; ++clips) {
        check(ctx, "f32", clips != 0);
        check(ctx, "bf16", clips != 0);
    }
    moe_ctx_destroy(ctx);
}

/* A bound that bf16 has no number for is the nearest that it has, above (0.3) or below (0.7): what is clipped
 * becomes that, and what was that is within. */
static void test_rounded_bound(void **state) {
    (void)state;
    static const struct {
        const char *bound;
        float nearest, above; /* the next number */
    } cases_of[] = {
        {"0.3", 0.30078125F, 0.302734375F},
        {"0.7", 0.69921875F, 0.703125F   },
    };
    moe_ctx *ctx = test_ctx("ref", 1);
    for (size_t i = 0; i < sizeof cases_of / sizeof *cases_of; ++i) {
        const char *const pairs[] = {"model.dtype", "bf16", "model.clip_qkv", cases_of[i].bound, NULL};
        const float x[] = {cases_of[i].nearest, -cases_of[i].nearest, cases_of[i].above, -cases_of[i].above};
        moe_lm *lm = model_make(ctx, pairs);
        must(ctx, moe_lm_reserve(lm, 1, 1, MOE_TRAIN));
        const moelm_saved *s = &lm->blocks[0].saved;
        for (int j = 0; j < 4; ++j) {
            put(lm, s->qkv, j, x[j]);
            put(lm, lm->memory.dqkv, j, 2.0F);
        }
        moelm_clip(lm, s, 1);
        moelm_clip_backward(lm, s, 1);
        for (int j = 0; j < 4; ++j) {
            assert_true(get(lm, s->qkv, j) == copysignf(cases_of[i].nearest, x[j]));
            assert_true(get(lm, lm->memory.dqkv, j) == (j < 2 ? 2.0F : 0.0F));
        }
        moe_lm_destroy(lm);
    }
    moe_ctx_destroy(ctx);
}

/* In inference nothing remembers what was within. */
static void test_inference(void **state) {
    (void)state;
    static const char *const pairs[] = {"model.clip_qkv", "0.5", NULL};
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_lm *lm = model_make(ctx, pairs);
    must(ctx, moe_lm_reserve(lm, 1, 1, MOE_INFER));
    const moelm_saved *s = &lm->blocks[0].saved;
    assert_null(s->kept);
    put(lm, s->qkv, 0, 3.0F);
    put(lm, s->qkv, 1, NAN);
    moelm_clip(lm, s, 1);
    assert_true(get(lm, s->qkv, 0) == 0.5F);
    assert_true(isnan(get(lm, s->qkv, 1)));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_rounded_bound),
        cmocka_unit_test(test_inference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
