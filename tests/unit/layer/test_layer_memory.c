/* test_layer_memory.c: a reserve that is refused changes nothing, wherever the memory ran out, and says what
 * for; so does what is made.
 * An allocator fails at its n-th allocation, for every n in turn.
 * Source: moekit/moe.h; "Measure, reserve, run" of docs/architecture.md.
 */
#include "support/bare_kind.h"
#include "support/layer_fixture.h"

#include <moekit/quant.h>

enum { T = 16, D = 13, LARGER = 128 };

static moe_layer_desc good_desc(void) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .d_model = D,
                            .num_experts = 5,
                            .expert_hidden_size = 7,
                            .num_shared_experts = 1,
                            .expert_bias = true};
}

typedef struct meter {
    int64_t left;  /* allocations until one fails; negative: none does */
    int64_t bytes; /* in use */
} meter;

static void *metered_alloc(void *user, size_t bytes, size_t align) {
    meter *m = user;
    if (m->left == 0) return NULL;
    if (m->left > 0) --m->left;
    m->bytes += (int64_t)bytes;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void metered_free(void *user, void *ptr, size_t bytes) {
    ((meter *)user)->bytes -= (int64_t)bytes;
    free(ptr);
}

static int gradients_shown(moe_ctx *ctx, const moe_layer *layer) {
    int shown = 0;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        shown += param.grad != NULL;
    }
    return shown;
}

/* Reserves for T tokens in `before`, then for more tokens in training with the `n`-th allocation failing.
 * False once nothing fails any more. */
static bool refused_at(int64_t n, moe_mode before) {
    meter m = {.left = -1};
    moe_ctx_desc ctx_desc = {
        .size = sizeof ctx_desc, .n_threads = 1, .host = {metered_alloc, metered_free, &m}
    };
    moe_call call = {.size = sizeof call, .mode = before, .step = 7};
    moe_layer_desc desc = good_desc();
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    assert_int_equal(moe_ctx_create(&ctx_desc, &ctx, NULL), MOE_OK);
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, before));
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D),
            dx = test_output(MOE_F32, T, D);
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    const int64_t used = m.bytes;
    const int shown = gradients_shown(ctx, layer);
    m.left = n;
    const moe_status status = moe_layer_reserve(layer, LARGER, MOE_TRAIN);
    m.left = -1;
    if (status != MOE_OK) {
        moe_routing_view view = {.size = sizeof view};
        assert_int_equal(status, MOE_ERR_MEMORY);
        assert_non_null(strstr(moe_ctx_error(ctx), ": cannot allocate ")); /* for what is said before */
        assert_int_equal(m.bytes, used);
        assert_int_equal(gradients_shown(ctx, layer), shown);
        must(ctx, moe_layer_routing(layer, &view)); /* still that of the last forward */
        if (before == MOE_TRAIN) must(ctx, moe_layer_backward(layer, x, y, dx));
    } else {
        assert_true(gradients_shown(ctx, layer) > 0);
    }
    free(x.data), free(y.data), free(dx.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    assert_int_equal(m.bytes, 0);
    return status != MOE_OK;
}

static void a_refused_reserve_changes_nothing(void **state) {
    (void)state;
    int64_t infer = 0, train = 0;
    while (refused_at(infer, MOE_INFER)) ++infer;
    while (refused_at(train, MOE_TRAIN)) ++train;
    assert_int_equal(train, 2); /* the two blocks: gradients are there */
    assert_true(infer > train);
}

/* --- what is made, not reserved --- */

/* Makes a context, a layer, and whatever packing it and timing it take, where the n-th allocation fails.
 * False once nothing fails any more. */
static bool make_at(int64_t n, const moe_layer_desc *desc, const char *format) {
    meter m = {.left = n};
    const moe_ctx_desc ctx_desc = {
        .size = sizeof ctx_desc, .n_threads = 2, .host = {metered_alloc, metered_free, &m}
    };
    const moe_quant_desc quant = {.size = sizeof quant, .format = format};
    moe_error error = {0};
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    moe_status status = moe_ctx_create(&ctx_desc, &ctx, &error);
    if (status == MOE_OK) status = moe_layer_create(ctx, desc, &layer);
    if (status == MOE_OK) status = moe_time_start(ctx);
    if (status == MOE_OK && format) status = moe_layer_quantize(layer, &quant);
    if (status != MOE_OK) {
        const char *text = ctx ? moe_ctx_error(ctx) : error.text;
        assert_int_equal(status, MOE_ERR_MEMORY);
        if (!strstr(text, ": cannot allocate ")) fail_msg("allocation %lld: '%s'", (long long)n, text);
    }
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    assert_int_equal(m.bytes, 0);
    return status != MOE_OK;
}

/* And nothing stays behind. */
static void a_refused_create_says_what_for(void **state) {
    (void)state;
    static const char *const kinds[] = {NULL, "4,identity,4,zero,9"};
    for (int i = 0; i < 4; ++i) {
        moe_layer_desc desc = good_desc();
        int64_t n = 0;
        desc.expert_kinds = kinds[i % 2];
        desc.latent_size = i < 2 ? 0 : 6;
        desc.router_bias = i >= 2;
        while (make_at(n, &desc, desc.expert_kinds ? NULL : "int8")) ++n;
        assert_true(n > 15);
    }
}

static moe_status forward_zero(void *self, const moe_expert_io *io) {
    (void)self;
    for (int64_t r = 0; r < io->n_rows; ++r)
        for (int64_t j = 0; j < io->out.cols; ++j) ((float *)io->out.data)[r * io->out.stride + j] = 0;
    return MOE_OK;
}

/* A kind without a backward serves inference only, alone or beside others. */
static void inference_only_kinds_are_not_reserved_for_training(void **state) {
    (void)state;
    const moe_expert_ops ops = bare_kind("lookup", forward_zero, NULL);
    moe_ctx *ctx = test_ctx(NULL, 1);
    must(ctx, moe_expert_register(ctx, &ops));
    for (int mixed = 0; mixed < 2; ++mixed) {
        moe_layer_desc desc = good_desc();
        moe_layer *layer = NULL;
        if (mixed)
            desc.expert_kinds = "4,zero,lookup,4,4";
        else
            desc.expert = "lookup";
        must(ctx, moe_layer_create(ctx, &desc, &layer));
        assert_int_equal(moe_layer_reserve(layer, T, MOE_TRAIN), MOE_ERR_UNSUPPORTED);
        if (!strstr(moe_ctx_error(ctx), "'lookup' has no backward")) fail_msg("'%s'", moe_ctx_error(ctx));
        assert_int_equal(gradients_shown(ctx, layer), 0);
        must(ctx, moe_layer_reserve(layer, T, MOE_INFER));
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

static size_t saved_bytes(moe_ctx *ctx, const moe_layer_desc *desc, moe_mode mode) {
    moe_layer_bytes bytes = {.size = sizeof bytes};
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, desc, &layer));
    must(ctx, moe_layer_measure(layer, LARGER, mode, &bytes));
    moe_layer_destroy(layer);
    return bytes.saved;
}

/* Of the two arrays [T,E] that a router makes, training keeps the one that its gradient reads, and inference
 * none: softmax its scores, others their logits, and only the plain map of a balance loss asks for both. */
static void only_what_backward_reads_is_kept(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc softmax = good_desc();
    softmax.num_experts = 16;
    softmax.score_before_topk = true;
    moe_layer_desc sigmoid = softmax, plain = softmax;
    sigmoid.score_function = plain.score_function = "sigmoid";
    plain.aux_map = "plain";
    plain.aux_loss_coeff = 0.1f;
    const size_t array = LARGER * 16 * sizeof(float), kept = saved_bytes(ctx, &softmax, MOE_TRAIN);
    assert_int_equal(saved_bytes(ctx, &sigmoid, MOE_TRAIN), kept);
    assert_int_equal(saved_bytes(ctx, &plain, MOE_TRAIN), kept + array);
    assert_true(saved_bytes(ctx, &softmax, MOE_INFER) < array);
    assert_true(saved_bytes(ctx, &sigmoid, MOE_INFER) < array);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_backward_reads_is_kept),
        cmocka_unit_test(a_refused_create_says_what_for),
        cmocka_unit_test(a_refused_reserve_changes_nothing),
        cmocka_unit_test(inference_only_kinds_are_not_reserved_for_training),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
