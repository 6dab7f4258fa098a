/* grads_fixture.h: what the tests of parameters' gradients share: one step, all gradients one after another.
 * grad[n] in f64, of every parameter that has one, in the order of moe_layer_param.
 * Source: moekit/moe.h.
 */
#ifndef MOEKIT_TEST_GRADS_FIXTURE_H
#define MOEKIT_TEST_GRADS_FIXTURE_H

#include "support/layer_fixture.h"

#include "core/real.h"

static inline moe_param grads_param(moe_ctx *ctx, const moe_layer *layer, int32_t index) {
    moe_param param = {.size = sizeof param};
    must(ctx, moe_layer_param(layer, index, &param));
    return param;
}

typedef struct grads_variant {
    const char *name;
    moe_layer_desc desc;
} grads_variant;
enum { GRADS_D = 24 };

/* A layer of width GRADS_D, not reserved yet. */
static inline moe_layer *grads_make(moe_ctx *ctx, const grads_variant *v, moe_dtype dtype) {
    moe_layer *layer = NULL;
    moe_layer_desc desc = v->desc;
    desc.size = sizeof desc;
    desc.dtype = dtype;
    desc.d_model = GRADS_D;
    desc.expert_hidden_size = 19;
    desc.init_std = 0.3F;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    return layer;
}

static inline int64_t grads_count(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

/* NaN everywhere. */
static inline void grads_poison(moe_ctx *ctx, const moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, layer, i);
        if (param.grad)
            memset(param.grad, 0xff, (size_t)grads_count(&param) * moe_dtype_bytes(param.grad_dtype));
    }
}

/* One step of T tokens in sequences of 9, and all gradients, of which there are at most `most`. */
static inline int64_t grads_step(moe_ctx *ctx, moe_layer *layer, int64_t T, bool overwrite, double *grad,
                                 int64_t most) {
    const moe_layer_desc *desc = moe_layer_get_desc(layer);
    moe_mat x = test_random(desc->dtype, T, desc->d_model, 1),
            dy = test_random(desc->dtype, T, desc->d_model, 2),
            y = test_output(desc->dtype, T, desc->d_model), dx = test_output(desc->dtype, T, desc->d_model);
    moe_call call = test_train_call;
    int64_t n = 0;
    call.sequence_length = 9;
    call.overwrite_grad = overwrite;
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, layer, i);
        const int64_t count = param.grad ? grads_count(&param) : 0;
        assert_true(n + count <= most);
        for (int64_t j = 0; j < count; ++j) grad[n++] = moei_real_load(param.grad_dtype, param.grad, j);
    }
    free(x.data), free(dy.data), free(y.data), free(dx.data);
    return n;
}

#endif
