/* 02_train_step.c: a layer learns a toy by plain gradient descent: forward, backward, step. The toy has three
 * kinds of tokens, each turned in its own way, so that experts have something to divide between them.
 * cc 02_train_step.c $(pkg-config --cflags --libs moekit)
 */
#include <moekit/moe.h>
#include <moekit/op.h>

#include <stdio.h>

enum { T = 192, D = 16, STEPS = 400 };

/* y[t] = x[t] with its columns shifted by the kind of the token; the first three columns tell the kind. */
static void make_toy(float *x, float *wanted) {
    moe_random_normal(7, MOE_DRAW_TEST, 0, 0, MOE_F32, x, T * D, 1.0);
    for (int t = 0; t < T; ++t)
        for (int i = 0; i < D; ++i) {
            if (i < 3) x[t * D + i] = i == t % 3 ? 3.0f : 0.0f;
            wanted[t * D + (i + 1 + t % 3) % D] = x[t * D + i];
        }
}

/* Half the mean squared difference; dy is its gradient. */
static double compare(const float *y, const float *wanted, float *dy) {
    double sum = 0;
    for (int i = 0; i < T * D; ++i) {
        dy[i] = (y[i] - wanted[i]) / T;
        sum += 0.5 / T * (double)(y[i] - wanted[i]) * (double)(y[i] - wanted[i]);
    }
    return sum;
}

static moe_status descend(moe_layer *layer, float rate) {
    for (int32_t p = 0; p < moe_layer_param_count(layer); ++p) {
        moe_param param = {.size = sizeof param};
        moe_status status = moe_layer_param(layer, p, &param);
        if (status != MOE_OK) return status;
        float *value = param.value;
        const float *grad = param.grad;
        for (int64_t i = 0; i < param.dim[0] * param.dim[1] * param.dim[2]; ++i) value[i] -= rate * grad[i];
    }
    return MOE_OK;
}

static moe_status train(moe_layer *layer, double *first, double *last) {
    static float x[T * D], y[T * D], wanted[T * D], dy[T * D];
    const moe_mat in = {.data = x, .rows = T, .cols = D}, out = {.data = y, .rows = T, .cols = D};
    const moe_mat dout = {.data = dy, .rows = T, .cols = D}, no_dx = {.rows = T, .cols = D};
    moe_stats stats = {.size = sizeof stats};
    make_toy(x, wanted);
    for (int step = 0; step < STEPS; ++step) {
        const moe_call call = {
            .size = sizeof call, .mode = MOE_TRAIN, .step = (uint64_t)step, .overwrite_grad = true};
        moe_status status = moe_layer_forward(layer, in, out, &call, &stats);
        if (status != MOE_OK) return status;
        *last = compare(y, wanted, dy);
        if (step == 0) *first = *last;
        if (step % 100 == 0 || step == STEPS - 1)
            printf("step %3d  loss %.4f  balance loss %.3f  busiest expert %.2f x mean\n", step, *last,
                   stats.aux_loss, stats.load_max);
        status = moe_layer_backward(layer, in, dout, no_dx);
        if (status == MOE_OK) status = descend(layer, 0.1f);
        if (status != MOE_OK) return status;
    }
    return MOE_OK;
}

int main(void) {
    moe_error error;
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    double first = 0, last = 0;
    const moe_ctx_desc ctx_desc = {.size = sizeof ctx_desc, .seed = 1};
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .d_model = D,
                                 .num_experts = 6,
                                 .top_k = 2,
                                 .expert_hidden_size = 32,
                                 .aux_loss_coeff = 0.01f,
                                 .init_std = 0.2f};
    if (moe_ctx_create(&ctx_desc, &ctx, &error) != MOE_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    if (moe_layer_create(ctx, &desc, &layer) != MOE_OK || moe_layer_reserve(layer, T, MOE_TRAIN) != MOE_OK ||
        train(layer, &first, &last) != MOE_OK) {
        fprintf(stderr, "%s\n", moe_ctx_error(ctx));
        moe_ctx_destroy(ctx);
        return 1;
    }
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return last < 0.2 * first ? 0 : 1;
}
