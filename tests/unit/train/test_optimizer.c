/* test_optimizer.c: which parameters AdamW steps, and whose gradients its norm counts.
 * A model of two layers; parameters of experts are frozen after their gradients were made (moe_layer_freeze).
 * Source: train/optimizer.h.
 */
#include "unit/model/model_fixture.h"

#include "train/optimizer.h"

#include <math.h>

#define FROZEN "blocks.1.ffn.experts.up.weight"

static const moelm_train_config train = {.beta1 = 0.9, .beta2 = 0.95, .adam_eps = 1e-8, .weight_decay = 0.1};

static moelm_slot *slot_of(const moelm_optimizer *o, const char *name) {
    for (int32_t i = 0; i < o->count; ++i)
        if (strcmp(o->slot[i].param.name, name) == 0) return &o->slot[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

static void freeze(moe_ctx *ctx, moe_lm *lm, bool frozen) {
    moe_layer *layer = moe_lm_layer(lm, 1);
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (strcmp(param.name, "experts.up.weight") == 0) must(ctx, moe_layer_freeze(layer, i, frozen));
    }
}

/* One step; how many parameters moved, and whether FROZEN did. */
static int step(const moelm_optimizer *o, int64_t number, bool *moved) {
    float *before[64];
    int n = 0;
    assert_true(o->count <= 64);
    for (int32_t i = 0; i < o->count; ++i) {
        const size_t bytes = (size_t)model_numbers(&o->slot[i].param) * sizeof(float);
        before[i] = malloc(bytes);
        assert_non_null(before[i]);
        memcpy(before[i], o->slot[i].param.value, bytes);
    }
    must(o->ctx, moelm_optimizer_step(o, &train, number, 0.01, 1));
    for (int32_t i = 0; i < o->count; ++i) {
        const moe_param *p = &o->slot[i].param;
        const bool other = memcmp(before[i], p->value, (size_t)model_numbers(p) * sizeof(float)) != 0;
        if (strcmp(p->name, FROZEN) == 0) *moved = other;
        n += other;
        free(before[i]);
    }
    return n;
}

static void test_what_is_frozen_later(void **state) {
    (void)state;
    bool moved;
    double all, rest, of_frozen;
    moelm_optimizer o;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    must(ctx, moe_lm_reserve(lm, 1, 8, MOE_TRAIN));
    must(ctx, moelm_optimizer_create(ctx, lm, &o));
    for (int32_t i = 0; i < o.count; ++i)
        for (int64_t j = 0; o.slot[i].m && j < model_numbers(&o.slot[i].param); ++j)
            ((float *)o.slot[i].param.grad)[j] = 0.5F;
    const int stepped = step(&o, 1, &moved);
    assert_true(moved);
    must(ctx, moelm_optimizer_norm(&o, &all));
    freeze(ctx, lm, true);
    must(ctx, moelm_optimizer_norm(&o, &rest));
    of_frozen = 0.25 * (double)model_numbers(&slot_of(&o, FROZEN)->param);
    if (!(fabs(all * all - rest * rest - of_frozen) < 1e-9 * all * all))
        fail_msg("norm %g, %g without %g", all, rest, sqrt(of_frozen));
    assert_int_equal(step(&o, 2, &moved), stepped - 1);
    assert_false(moved);
    const float m = *(const float *)slot_of(&o, FROZEN)->m;
    freeze(ctx, lm, false);
    assert_int_equal(step(&o, 3, &moved), stepped);
    assert_true(moved);
    const float after = *(const float *)slot_of(&o, FROZEN)->m; /* beta1 m + (1 - beta1) g: its own, one on */
    assert_true(fabsf(after - (0.9F * m + 0.1F * 0.5F)) < 1e-6F);
    moelm_optimizer_destroy(&o);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_is_frozen_later)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
