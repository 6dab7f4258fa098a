/* gate.c: what the router multiplies, and the logits. in[U,d] gate[E,d]^T + bias[E] -> logits[T,E].
 * U rows: the tokens, perhaps jittered; or one a sequence (the mean of its tokens, or its task's embedding),
 * whose logits all its tokens share. The random router then replaces the logits and passes gradients straight
 * through. Source: routing units of Kudugunta et al. 2021, "Beyond distillation";
 * moe_router_force_load_balancing of Megatron core.
 */
#include "kernel/kernel.h"
#include "route/select.h"

#include <string.h>

/* in[s] = mean over the real tokens of sequence s; 0 where there are none. */
static void mean_sequence(const moei_route_job *job, int64_t s) {
    const moei_batch *batch = job->batch;
    const moe_mat x = batch->x;
    const int64_t d = job->router->d_model, first = s * batch->sequence_length;
    const double n = (double)moei_real_tokens(batch, first, batch->sequence_length);
    for (int64_t i = 0; i < d; ++i) {
        double sum = 0;
        for (int64_t t = first; t < first + batch->sequence_length; ++t)
            if (!moei_masked(batch, t)) sum += moei_real_load(x.dtype, x.data, t * x.stride + i);
        moei_real_store(x.dtype, job->scratch.in, s * d + i, n > 0 ? sum / n : 0);
    }
}

static void sequence_task(void *arg, int64_t s, void *scratch) {
    (void)scratch;
    mean_sequence(arg, s);
}

static void gather_tasks(const moei_route_job *job) {
    const size_t row = (size_t)job->router->d_model * moe_dtype_bytes(job->routing->dtype);
    for (int64_t s = 0; s < job->batch->n_sequences; ++s)
        memcpy((char *)job->scratch.in + (size_t)s * row,
               (const char *)job->gate->task + (size_t)job->batch->task[s] * row, row);
}

/* The rows that the gate multiplies. */
static moe_mat gate_input(const moei_route_job *job) {
    const moei_router *router = job->router;
    const moe_mat x = job->batch->x;
    const int64_t rows = router->unit == MOEI_UNIT_TOKEN ? x.rows : job->batch->n_sequences;
    const moe_mat in = {job->scratch.in, rows, router->d_model, router->d_model, x.dtype};
    if (router->unit == MOEI_UNIT_TOKEN && !moei_has_jitter(job)) return x;
    if (router->unit == MOEI_UNIT_SEQUENCE)
        moei_parallel(&job->ctx->team, job->batch->n_sequences, sequence_task, (void *)(uintptr_t)job);
    else if (router->unit == MOEI_UNIT_TASK)
        gather_tasks(job);
    else
        moei_jitter(job, x, in, false);
    return in;
}

/* logits, or their gradient, of `rows` rows */
static moe_mat by_expert(const moei_route_job *job, int64_t rows, void *data) {
    const int64_t E = job->router->n_experts;
    return (moe_mat){data, rows, E, E, job->routing->dtype};
}

enum { COLUMNS_PER_TASK = 16 };

typedef struct unit_rows {
    const moei_route_job *job;
    void *logits;
} unit_rows;

/* A few columns: the last token first, so that a row is read before it is written. */
static void spread_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    const unit_rows *rows = arg;
    const int64_t E = rows->job->router->n_experts, length = rows->job->batch->sequence_length;
    const size_t real = moe_dtype_bytes(rows->job->routing->dtype), bytes = (size_t)(end - first) * real;
    char *columns = (char *)rows->logits + (size_t)first * real;
    for (int64_t t = rows->job->routing->n_tokens - 1; t >= 0; --t)
        memmove(columns + (size_t)(t * E) * real, columns + (size_t)(t / length * E) * real, bytes);
}

/* [U,E] -> [T,E] in place. */
static void spread_units(const moei_route_job *job, void *logits) {
    unit_rows rows = {job, logits};
    if (job->router->unit == MOEI_UNIT_TOKEN) return;
    moei_parallel_blocks(&job->ctx->team, job->router->n_experts, COLUMNS_PER_TASK, spread_task, &rows);
}

typedef struct unit_sums {
    const moei_route_job *job;
    void *dlogits;
} unit_sums;

/* Column e: the first sequence first, as its row is written over tokens that are summed already. */
static void sum_task(void *arg, int64_t e, void *scratch) {
    (void)scratch;
    const unit_sums *sums = arg;
    const int64_t E = sums->job->router->n_experts, length = sums->job->batch->sequence_length;
    const moe_dtype dtype = sums->job->routing->dtype;
    for (int64_t s = 0; s < sums->job->batch->n_sequences; ++s) {
        double sum = 0;
        for (int64_t t = s * length; t < (s + 1) * length; ++t)
            sum += moei_real_load(dtype, sums->dlogits, t * E + e);
        moei_real_store(dtype, sums->dlogits, s * E + e, sum);
    }
}

/* The way back: row s becomes the sum over the tokens of sequence s. */
static void gather_units(const moei_route_job *job, void *dlogits) {
    unit_sums sums = {job, dlogits};
    if (job->router->unit == MOEI_UNIT_TOKEN) return;
    moei_parallel(&job->ctx->team, job->router->n_experts, sum_task, &sums);
}

/* The random router's logits: N(0,1), and a bias drawn once an expert. */
static void force_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    const int64_t E = job->router->n_experts;
    const double *bias = arg;
    moei_draw_normal(job, MOE_DRAW_FORCED, job->batch->step, moei_draw_row(job, t), E, room);
    for (int64_t e = 0; e < E; ++e)
        moei_real_store(job->routing->dtype, job->routing->logits, t * E + e, room[e] + bias[e]);
}

static void force_logits(const moei_route_job *job) {
    const int64_t E = job->router->n_experts;
    double *bias = job->scratch.work;
    moei_draw_normal(job, MOE_DRAW_FORCED, MOEI_EVERY_STEP, 0, E, bias);
    for (int64_t e = 0; e < E; ++e) bias[e] *= (double)job->router->desc->force_bias_std;
    moei_each_token(job, force_token, bias);
}

void moei_gate_forward(const moei_route_job *job) {
    const moei_gate *gate = job->gate;
    const moei_routing *routing = job->routing;
    const moe_mat in = gate_input(job);
    moei_product(job->ctx, in, gate->weight, true, by_expert(job, in.rows, routing->logits), false);
    spread_units(job, routing->logits);
    if (gate->bias)
        moei_add_bias(job->ctx, NULL, gate->bias, by_expert(job, routing->n_tokens, routing->logits));
    if (job->router->kind.forced) force_logits(job);
    if (!gate->noise) return;
    moei_product(job->ctx, in, gate->noise, true, by_expert(job, in.rows, routing->noise_std), false);
    spread_units(job, routing->noise_std);
    moei_noise_add(job);
}

static void add_row(moe_dtype dtype, const void *from, int64_t from_at, double factor, void *to,
                    int64_t to_at, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        moei_real_store(dtype, to, to_at + i,
                        moei_real_load(dtype, to, to_at + i) +
                            factor * moei_real_load(dtype, from, from_at + i));
}

/* The gradient of the gate's input, in scratch.in, handed on to who it was made from. */
static void hand_back(const moei_route_job *job, const moei_gate *grad, moe_mat dx) {
    const moei_batch *batch = job->batch;
    const void *din = job->scratch.in;
    const int64_t d = job->router->d_model, length = batch->sequence_length;
    if (job->router->unit == MOEI_UNIT_TOKEN) {
        moei_jitter(job, (moe_mat){job->scratch.in, dx.rows, d, d, dx.dtype}, dx, true);
        return;
    }
    for (int64_t s = 0; s < batch->n_sequences; ++s) {
        if (job->router->unit == MOEI_UNIT_TASK) {
            if (grad->task) add_row(dx.dtype, din, s * d, 1, grad->task, batch->task[s] * d, d);
            continue;
        }
        const double n = (double)moei_real_tokens(batch, s * length, length);
        for (int64_t t = s * length; t < (s + 1) * length; ++t)
            if (!moei_masked(batch, t)) add_row(dx.dtype, din, s * d, 1 / n, dx.data, t * dx.stride, d);
    }
}

void moei_gate_backward(const moei_route_job *job, const moei_gate *grad, moe_mat dx) {
    const moei_route_scratch *s = &job->scratch;
    const moe_mat in = gate_input(job);
    const moe_mat dlogits = by_expert(job, in.rows, s->logits), dnoise = by_expert(job, in.rows, s->noise);
    gather_units(job, s->logits);
    if (grad->weight) moei_product_weight(job->ctx, dlogits, in, grad->weight);
    if (grad->bias) moei_column_sums(job->ctx, dlogits, NULL, grad->bias);
    if (job->gate->noise) gather_units(job, s->noise);
    if (grad->noise) moei_product_weight(job->ctx, dnoise, in, grad->noise);
    const bool direct = in.data == job->batch->x.data;
    const bool wanted = job->router->unit == MOEI_UNIT_TASK ? grad->task != NULL : dx.data != NULL;
    if (!wanted) return;
    /* A copy that the gate read has done its work: its memory now holds the gradient of that copy. */
    const moe_mat din = direct ? dx : (moe_mat){s->in, in.rows, in.cols, in.cols, in.dtype};
    moei_product(job->ctx, dlogits, job->gate->weight, false, din, direct);
    if (job->gate->noise) moei_product(job->ctx, dnoise, job->gate->noise, false, din, true);
    if (direct) return;
    dx.dtype = in.dtype;
    hand_back(job, grad, dx);
}
