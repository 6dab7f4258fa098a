/* test_own_kind.c: models trained with a kind of expert of the caller's own, y = w * x by element, w [E, d].
 * What the optimizer keeps is wide whatever a kind says of its gradients.
 */
#include "unit/train/train_fixture.h"

#include <moekit/op.h>

#include "core/real.h"

#include <math.h>

#define LAST "checkpoints/step-00000012"

typedef struct scale {
    moe_ctx *ctx;
    moe_expert_desc desc;
    void *weight, *grad;
    moe_dtype grad_dtype; /* what moe_expert_ops.user points at */
} scale;

static int64_t numbers(const scale *s) {
    return (int64_t)s->desc.n_experts * s->desc.d_in;
}

static size_t weight_bytes(const scale *s) {
    return (size_t)numbers(s) * moe_dtype_bytes(s->desc.dtype);
}

static moe_status scale_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    scale *s = moe_ctx_alloc(ctx, sizeof *s);
    if (!s) return MOE_ERR_MEMORY;
    *s = (scale){.ctx = ctx, .desc = *desc, .grad_dtype = *(const moe_dtype *)desc->user};
    s->weight = moe_ctx_alloc(ctx, weight_bytes(s));
    if (!s->weight) return MOE_ERR_MEMORY;
    moe_random_normal(moe_ctx_seed(ctx), MOE_DRAW_INIT, (uint32_t)desc->layer_index, desc->stream,
                      desc->dtype, s->weight, numbers(s), 1.0);
    *self = s;
    return MOE_OK;
}

static void scale_destroy(void *self) {
    scale *s = self;
    moe_ctx_free(s->ctx, s->weight, weight_bytes(s));
    moe_ctx_free(s->ctx, s, sizeof *s);
}

static int32_t scale_param_count(const void *self) {
    (void)self;
    return 1;
}

static moe_status scale_param(const void *self, int32_t index, moe_param *param) {
    const scale *s = self;
    (void)index;
    *param = (moe_param){
        .size = sizeof *param,
        .name = "scale.weight",
        .dtype = s->desc.dtype,
        .n_dim = 2,
        .dim = {s->desc.n_experts, s->desc.d_in, 1},
        .value = s->weight,
        .grad = s->grad,
        .grad_dtype = s->grad_dtype
    };
    return MOE_OK;
}

static void scale_bind_grad(void *self, int32_t index, void *grad) {
    (void)index;
    ((scale *)self)->grad = grad;
}

static size_t scale_saved_bytes(const void *self, int64_t max_rows) {
    (void)self, (void)max_rows;
    return 0;
}

static size_t scale_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    (void)self, (void)max_rows, (void)mode;
    return 0;
}

static double row_at(const moe_mat *mat, int64_t row, int64_t col) {
    return moei_real_load(mat->dtype, mat->data, row * mat->stride + col);
}

static moe_status scale_forward(void *self, const moe_expert_io *io) {
    const scale *s = self;
    const int64_t d = s->desc.d_in;
    for (int32_t e = 0; e < io->n_experts; ++e)
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r)
            for (int64_t i = 0; i < d; ++i)
                moei_real_store(io->out.dtype, io->out.data, r * io->out.stride + i,
                                row_at(&io->in, r, i) * moei_real_load(s->desc.dtype, s->weight, e * d + i));
    return MOE_OK;
}

static moe_status scale_backward(void *self, const moe_expert_io *io) {
    const scale *s = self;
    const int64_t d = s->desc.d_in;
    for (int32_t e = 0; e < io->n_experts; ++e)
        for (int64_t i = 0; i < d; ++i) {
            double sum = moei_real_load(s->grad_dtype, s->grad, e * d + i);
            for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) {
                const double dout = row_at(&io->dout, r, i);
                sum += dout * row_at(&io->in, r, i);
                if (io->din.data)
                    moei_real_store(io->din.dtype, io->din.data, r * io->din.stride + i,
                                    dout * moei_real_load(s->desc.dtype, s->weight, e * d + i));
            }
            moei_real_store(s->grad_dtype, s->grad, e * d + i, sum);
        }
    return MOE_OK;
}

static moe_expert_ops scale_kind(moe_dtype *grad_dtype) {
    return (moe_expert_ops){.size = sizeof(moe_expert_ops),
                            .name = "scale",
                            .contiguous = true,
                            .user = grad_dtype,
                            .create = scale_create,
                            .destroy = scale_destroy,
                            .param_count = scale_param_count,
                            .param = scale_param,
                            .bind_grad = scale_bind_grad,
                            .saved_bytes = scale_saved_bytes,
                            .scratch_bytes = scale_scratch_bytes,
                            .forward = scale_forward,
                            .backward = scale_backward};
}

/* Gradients rounded to bf16 train as f32 ones do, but for the rounding, and to the bit on resuming. */
static void test_bf16_gradients(void **state) {
    static const char *const pairs[] = {"model.dtype", "bf16", "moe.expert", "scale", NULL};
    moe_dtype wide = MOE_F32, narrow = MOE_BF16;
    const moe_expert_ops plain = scale_kind(&wide), halved = scale_kind(&narrow);
    train_result of_wide = train_run(state, &(train_setup){.dir = "wide", .pairs = pairs, .kind = &plain});
    train_must(&of_wide);
    train_result whole = train_run(state, &(train_setup){.dir = "whole", .pairs = pairs, .kind = &halved});
    train_must(&whole);
    assert_true(whole.last.loss < whole.first_loss);
    assert_true(whole.first_loss == of_wide.first_loss);
    assert_true(whole.last.loss != of_wide.last.loss);
    if (!(fabs(whole.last.loss - of_wide.last.loss) < 0.01))
        fail_msg("loss %g, with f32 gradients %g", whole.last.loss, of_wide.last.loss);
    train_result part =
        train_run(state, &(train_setup){.dir = "parts", .stop_after = 6, .pairs = pairs, .kind = &halved});
    train_must_fail(&part, MOE_ERR_INTERRUPTED, "stopped after step");
    part = train_run(state, &(train_setup){.dir = "parts", .resume = true, .pairs = pairs, .kind = &halved});
    train_must(&part);
    assert_true(part.last.loss == whole.last.loss);
    train_same_file(state, "whole", "parts", LAST "/model.safetensors");
    train_same_file(state, "whole", "parts", LAST "/optimizer.safetensors");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bf16_gradients, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
