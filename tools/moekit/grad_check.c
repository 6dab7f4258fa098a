/* grad_check.c: central differences of fourth order against moe_layer_backward, number by number.
 * D(h) = (f(+h) - f(-h)) / 2h;  (4 D(h/2) - D(h)) / 3 has an error of order h^4.
 * Source: Richardson 1911; these steps keep truncation and f64 rounding below 1e-9.
 */
#include "grad_check.h"

#include <moekit/op.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The second step is for numbers near a kink: few are nearer than that. */
static const double steps[] = {2e-4, 1.25e-5};
/* Where the function is smooth D(h) and D(h/2) differ by order h^2; a kink within h makes that order h or
 * 1, and the slope is off by as much. */
static const double kink = 2e-7;

typedef struct bench {
    moe_ctx *ctx;
    moe_layer *layer;
    int64_t T, d, d_out;
    double *x, *y, *dx, *g;
    int32_t *rows; /* [T, slots] of the unperturbed run: a change means another routing */
    int32_t *experts;
    bool routed, rerouted;
    bool restarts;   /* counts of the global balance loss begin anew with each forward */
    double *buffers; /* what restarting would move, one after another */
    double scale;    /* of the losses, at least 1: rounding of the objective grows with them */
    moe_call call;
} bench;

static moe_mat view(const bench *b, double *data) {
    return (moe_mat){data, b->T, b->d, b->d, MOE_F64};
}

static moe_mat out_view(const bench *b, double *data) {
    return (moe_mat){data, b->T, b->d_out, b->d_out, MOE_F64};
}

static int64_t count_of(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

/* Copies the layer's buffers (biases of the selection) to b->buffers, or back. Returns how many numbers. */
static int64_t copy_buffers(bench *b, bool back) {
    int64_t n = 0;
    for (int32_t i = 0; i < moe_layer_param_count(b->layer); ++i) {
        moe_param param = {.size = sizeof param};
        if (moe_layer_param(b->layer, i, &param) != MOE_OK || !param.buffer) continue;
        const size_t bytes = (size_t)count_of(&param) * sizeof(double);
        if (b->buffers)
            memcpy(back ? param.value : b->buffers + n, back ? b->buffers + n : param.value, bytes);
        n += count_of(&param);
    }
    return n;
}

/* A loss that counts since the last end of a step is a function only of the first forward after one. */
static moe_status restart_step(bench *b) {
    if (!b->restarts) return MOE_OK;
    const moe_status status = moe_layer_end_step(b->layer, NULL);
    copy_buffers(b, true);
    return status;
}

static moe_status forward(bench *b, double *objective) {
    moe_stats stats = {.size = sizeof stats};
    moe_status status = restart_step(b);
    if (status != MOE_OK) return status;
    status = moe_layer_forward(b->layer, view(b, b->x), out_view(b, b->y), &b->call, &stats);
    if (status != MOE_OK) return status;
    *objective = stats.loss;
    if (b->scale == 0) b->scale = fmax(1, fabs(stats.loss));
    for (int64_t i = 0; i < b->T * b->d_out; ++i) *objective += b->y[i] * b->g[i];
    if (!b->routed) return MOE_OK;
    moe_routing_view routing = {.size = sizeof routing};
    status = moe_layer_routing(b->layer, &routing);
    if (status != MOE_OK) return status;
    size_t bytes = (size_t)(b->T * routing.top_k) * sizeof(int32_t);
    b->rerouted = b->rerouted || memcmp(routing.expert, b->experts, bytes) != 0 ||
                  memcmp(routing.row_of, b->rows, bytes) != 0;
    return MOE_OK;
}

static moe_status difference(bench *b, double *number, double h, double *slope) {
    const double kept = *number;
    double above = 0, below = 0;
    *number = kept + h;
    moe_status status = forward(b, &above);
    *number = kept - h;
    if (status == MOE_OK) status = forward(b, &below);
    *number = kept;
    *slope = (above - below) / (2 * h);
    return status;
}

/* The slope at *number; *smooth is false where a kink is within reach. */
static moe_status slope_of(bench *b, double *number, double *slope, bool *smooth) {
    *smooth = false;
    for (size_t i = 0; i < sizeof steps / sizeof *steps && !*smooth; ++i) {
        double coarse, fine;
        b->rerouted = false;
        moe_status status = difference(b, number, steps[i], &coarse);
        if (status == MOE_OK) status = difference(b, number, steps[i] / 2, &fine);
        if (status != MOE_OK) return status;
        *slope = (4 * fine - coarse) / 3;
        *smooth = !b->rerouted && fabs(coarse - fine) <= kink * (b->scale + fabs(fine));
    }
    return MOE_OK;
}

/* Checks `n` numbers against their gradients and adds the tensor to the result. */
static moe_status check_tensor(bench *b, const char *name, double *value, const double *grad, int64_t n,
                               grad_check_result *result) {
    if (result->n_tensors == GRAD_CHECK_TENSORS) return MOE_ERR_UNSUPPORTED;
    grad_check_tensor *tensor = &result->tensor[result->n_tensors++];
    *tensor = (grad_check_tensor){0};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        double slope;
        bool smooth;
        const moe_status status = slope_of(b, &value[i], &slope, &smooth);
        if (status != MOE_OK) return status;
        if (!smooth) {
            ++tensor->skipped;
            continue;
        }
        tensor->largest = fmax(tensor->largest, fabs(slope));
        double off = fabs(slope - grad[i]);
        if (!(off <= worst)) worst = off; /* a NaN gradient must not hide */
        ++tensor->checked;
    }
    tensor->error = worst / fmax(tensor->largest, 1e-3 * b->scale);
    if (!(tensor->error <= result->worst)) result->worst = tensor->error;
    result->checked += tensor->checked;
    result->skipped += tensor->skipped;
    return MOE_OK;
}

/* Biases begin at zero and weights small: the check wants every path alive. */
static moe_status draw_inputs(bench *b, uint64_t seed) {
    moe_random_normal(seed, MOE_DRAW_TEST, 1, 0, MOE_F64, b->x, b->T * b->d, 1.0);
    moe_random_normal(seed, MOE_DRAW_TEST, 2, 0, MOE_F64, b->g, b->T * b->d_out, 1.0);
    for (int32_t i = 0; i < moe_layer_param_count(b->layer); ++i) {
        moe_param param = {.size = sizeof param};
        moe_status status = moe_layer_param(b->layer, i, &param);
        if (status != MOE_OK) return status;
        moe_random_normal(seed, MOE_DRAW_TEST, 3 + (uint32_t)i, 0, MOE_F64, param.value, count_of(&param),
                          0.5);
    }
    return MOE_OK;
}

static moe_status remember_routing(bench *b) {
    moe_routing_view routing = {.size = sizeof routing};
    moe_status status = moe_layer_routing(b->layer, &routing);
    if (status != MOE_OK) return status;
    const size_t slots = (size_t)(b->T * routing.top_k);
    b->rows = calloc(slots + 1, sizeof *b->rows);
    b->experts = calloc(slots + 1, sizeof *b->experts);
    if (!b->rows || !b->experts) return MOE_ERR_MEMORY;
    memcpy(b->experts, routing.expert, slots * sizeof(int32_t));
    memcpy(b->rows, routing.row_of, slots * sizeof(int32_t));
    b->routed = true;
    return MOE_OK;
}

/* A forward whose routes the others are held to, or told. */
static moe_status first_forward(bench *b, bool replay) {
    double objective;
    moe_status status = forward(b, &objective);
    if (status == MOE_OK && moe_layer_get_desc(b->layer)->num_experts > 0) status = remember_routing(b);
    if (status != MOE_OK || !replay) return status;
    b->call.replay_expert = b->experts;
    return forward(b, &objective);
}

static moe_status check_all(bench *b, bool replay, grad_check_result *result) {
    moe_status status = first_forward(b, replay);
    if (status == MOE_OK)
        status = moe_layer_backward(b->layer, view(b, b->x), out_view(b, b->g), view(b, b->dx));
    if (status == MOE_OK) status = check_tensor(b, "x", b->x, b->dx, b->T * b->d, result);
    for (int32_t i = 0; status == MOE_OK && i < moe_layer_param_count(b->layer); ++i) {
        moe_param param = {.size = sizeof param};
        status = moe_layer_param(b->layer, i, &param);
        if (status == MOE_OK && param.grad)
            status = check_tensor(b, param.name, param.value, param.grad, count_of(&param), result);
    }
    return status;
}

static moe_status prepare(bench *b, const grad_check_options *options) {
    moe_layer_desc desc = options->desc;
    desc.size = sizeof desc;
    desc.dtype = MOE_F64;
    if (desc.d_model == 0) desc.d_model = 6;
    if (desc.expert_hidden_size == 0) desc.expert_hidden_size = 5;
    moe_status status = options->kind ? moe_expert_register(b->ctx, options->kind) : MOE_OK;
    if (status == MOE_OK) status = moe_layer_create(b->ctx, &desc, &b->layer);
    if (status == MOE_OK) status = moe_layer_reserve(b->layer, options->n_tokens, MOE_TRAIN);
    if (status != MOE_OK) return status;
    b->T = options->n_tokens;
    b->d = desc.d_model;
    b->d_out = moe_layer_get_desc(b->layer)->output_size;
    b->call = options->call ? *options->call : (moe_call){.mode = MOE_TRAIN, .step = 3};
    b->call.size = sizeof b->call;
    const size_t numbers = (size_t)(b->T * b->d) + 1, outputs = (size_t)(b->T * b->d_out) + 1;
    b->x = calloc(numbers, sizeof *b->x);
    b->y = calloc(outputs, sizeof *b->y);
    b->dx = calloc(numbers, sizeof *b->dx);
    b->g = calloc(outputs, sizeof *b->g);
    b->restarts = moe_layer_get_desc(b->layer)->global_aux_loss_coeff > 0;
    b->buffers = calloc((size_t)copy_buffers(b, false) + 1, sizeof *b->buffers);
    if (!b->x || !b->y || !b->dx || !b->g || !b->buffers) return MOE_ERR_MEMORY;
    status = draw_inputs(b, options->seed);
    copy_buffers(b, false);
    return status;
}

static void dismantle(bench *b) {
    free(b->x);
    free(b->y);
    free(b->dx);
    free(b->g);
    free(b->rows);
    free(b->experts);
    free(b->buffers);
    moe_layer_destroy(b->layer);
    moe_ctx_destroy(b->ctx);
}

moe_status grad_check(const grad_check_options *options, grad_check_result *result, moe_error *error) {
    const moe_ctx_desc ctx_desc = {
        .size = sizeof ctx_desc, .isa = "ref", .n_threads = 1, .seed = options->seed};
    bench b = {0};
    *result = (grad_check_result){0};
    moe_status status = moe_ctx_create(&ctx_desc, &b.ctx, error);
    if (status != MOE_OK) return status;
    status = prepare(&b, options);
    if (status == MOE_OK) status = check_all(&b, options->replay, result);
    if (status != MOE_OK && error) {
        error->status = status;
        snprintf(error->text, sizeof error->text, "%s", moe_ctx_error(b.ctx));
    }
    dismantle(&b);
    return status;
}
