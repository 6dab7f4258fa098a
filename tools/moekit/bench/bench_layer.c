/* bench_layer.c: moekit bench layer: forward, backward and decode of one layer, what its router costs and
 * what it keeps. A skew is told to the layer as recorded routes; the router's own cost is taken where it
 * routes itself. Bytes are those that have to move: weights of the experts met and their gradients,
 * tokens in and out, Z in training.
 */
#include "bench/bench.h"

#include <moekit/expert.h>
#include <moekit/op.h>

#include <string.h>

enum { FORWARD, DECODE, ROUTE, TRAIN_FORWARD, BACKWARD, N_LINES };

moe_status bench_forward(const bench *b, moe_mode mode, moe_stats *stats) {
    const moe_call call = {.size = sizeof call,
                           .mode = mode,
                           .replay_expert = b->expert,
                           .overwrite_grad = mode == MOE_TRAIN && b->stores};
    return moe_layer_forward(b->layer, b->x, b->y, &call, stats);
}

/* The routes of a skew, from the host to where the layer reads them. */
static moe_status send_routes(bench *b) {
    const bench_problem *p = &b->problem;
    const size_t bytes = (size_t)p->n_tokens * (size_t)p->top_k * sizeof *b->expert;
    int32_t *host = moe_ctx_alloc(b->ctx, bytes);
    b->expert = host ? bench_take(b, bytes) : NULL;
    moe_status status = MOE_ERR_MEMORY;
    if (b->expert) {
        bench_problem_route(p, host);
        status = moe_memory_copy(b->ctx, b->expert, host, bytes);
    }
    moe_ctx_free(b->ctx, host, bytes);
    return status;
}

moe_status bench_make_layer(bench *b) {
    const bench_problem *p = &b->problem;
    const moe_layer_desc desc = bench_problem_layer(p);
    moe_mat *const mats[] = {&b->x, &b->y, &b->dy, &b->dx};
    moe_status status = bench_open_device(b);
    if (status == MOE_OK) status = moe_layer_create(b->ctx, &desc, &b->layer);
    if (status == MOE_OK && b->narrow) status = moe_layer_set_grad_dtype(b->layer, MOE_BF16);
    if (status == MOE_OK)
        status = moe_layer_reserve(b->layer, p->n_tokens, b->inference ? MOE_INFER : MOE_TRAIN);
    const moe_quant_desc packed = {
        .size = sizeof packed, .format = p->format, .group = p->group, .drop_weights = true};
    if (status == MOE_OK && p->format) status = moe_layer_quantize(b->layer, &packed);
    if (status != MOE_OK) return status;
    for (size_t i = 0; i < sizeof mats / sizeof *mats; ++i) {
        *mats[i] = (moe_mat){NULL, p->n_tokens, p->d_model, p->d_model, p->dtype};
        mats[i]->data = bench_numbers(b, p->n_tokens * p->d_model);
        if (!mats[i]->data) return MOE_ERR_MEMORY;
    }
    if (p->skew == BENCH_RANDOM) return MOE_OK;
    return send_routes(b);
}

static moe_status run_inference(void *arg, double *seconds) {
    (void)seconds;
    return bench_forward(arg, MOE_INFER, NULL);
}

static moe_status run_training(void *arg, double *seconds) {
    (void)seconds;
    return bench_forward(arg, MOE_TRAIN, NULL);
}

static moe_status run_backward(void *arg, double *seconds) {
    (void)seconds;
    const bench *b = arg;
    return moe_layer_backward(b->layer, b->x, b->dy, b->dx);
}

/* Tokens one by one, each with experts of its own; a few, so that a turn is short. */
typedef struct decode {
    const bench *b;
    int64_t next, n; /* tokens of a turn */
} decode;

static moe_status run_decode(void *arg, double *seconds) {
    decode *d = arg;
    const bench *b = d->b;
    (void)seconds;
    for (int64_t i = 0; i < d->n; ++i, d->next = (d->next + 1) % b->problem.n_tokens) {
        const int64_t at = d->next * b->problem.d_model * (int64_t)moe_dtype_bytes(b->problem.dtype);
        moe_mat x = b->x, y = b->y;
        x.rows = y.rows = 1;
        x.data = (char *)x.data + at;
        y.data = (char *)y.data + at;
        const moe_call call = {.size = sizeof call,
                               .replay_expert = b->expert ? b->expert + d->next * b->problem.top_k : NULL};
        moe_status status = moe_layer_forward(b->layer, x, y, &call, NULL);
        if (status != MOE_OK) return status;
    }
    return MOE_OK;
}

/* The router's and the plan's share of a forward that routes itself. Kernels of a GPU are not told one by
 * one. */
static moe_status run_route(void *arg, double *seconds) {
    const bench *b = arg;
    size_t count;
    moe_status status = moe_time_start(b->ctx);
    if (status == MOE_OK) status = moe_layer_forward(b->layer, b->x, b->y, NULL, NULL);
    const moe_time *row = moe_time_rows(b->ctx, &count);
    for (size_t i = 0; i < count; ++i)
        if (strcmp(row[i].name, "route") == 0) *seconds = row[i].seconds;
    moe_time_stop(b->ctx);
    return status;
}

/* Experts that n_tokens meet. */
static moe_status count_experts(const bench *b, double *met) {
    moe_routing_view view = {.size = sizeof view};
    moe_status status = moe_layer_routing(b->layer, &view);
    if (status != MOE_OK) return status;
    const size_t bytes = (size_t)view.n_experts * sizeof *view.kept;
    int64_t *kept = moe_ctx_alloc(b->ctx, bytes);
    if (!kept) return MOE_ERR_MEMORY;
    status = moe_memory_copy(b->ctx, kept, view.kept, bytes);
    *met = b->problem.n_shared;
    for (int32_t e = 0; status == MOE_OK && e < view.n_experts; ++e) *met += kept[e] > 0;
    moe_ctx_free(b->ctx, kept, bytes);
    return status;
}

/* Bytes of one expert's matrices, in memory. */
static moe_status expert_bytes(const bench *b, double *bytes) {
    const bench_problem *p = &b->problem;
    moe_layer_bytes measured = {.size = sizeof measured};
    const moe_status status = moe_layer_measure(b->layer, p->n_tokens, MOE_INFER, &measured);
    *bytes = p->format ? (double)measured.packed / (p->n_experts + p->n_shared)
                       : (double)moe_dtype_bytes(p->dtype) * (double)bench_problem_weights(p);
    return status;
}

/* Pre-activations: of every matrix of an expert but the last, a number a row and column. */
static double z_bytes(const bench_problem *p) {
    const double columns = (double)bench_problem_weights(p) / p->d_model - p->hidden;
    return (double)moe_dtype_bytes(p->dtype) * (double)p->n_tokens * (p->top_k + p->n_shared) * columns;
}

static double mib(double bytes) {
    return bytes / (1 << 20);
}

/* What a training layer holds, beside the caller's x and the design's Td + 2TKn numbers (TKn ungated). */
static void print_memory(const bench *b) {
    const bench_problem *p = &b->problem;
    moe_layer_bytes bytes = {.size = sizeof bytes};
    if (b->inference || moe_layer_measure(b->layer, p->n_tokens, MOE_TRAIN, &bytes) != MOE_OK) return;
    const double number = (double)moe_dtype_bytes(p->dtype), T = (double)p->n_tokens;
    const double x = number * T * p->d_model;
    const double z = z_bytes(p);
    const double kept = x + (double)bytes.saved;
    const double peak = kept + (double)(bytes.params + bytes.grads + bytes.scratch);
    if (b->args->json)
        printf(",\"memory\":{\"saved\":%zu,\"scratch\":%zu,\"params\":%zu,\"grads\":%zu,\"x_and_saved\":%.0f,"
               "\"x_and_z\":%.0f}",
               bytes.saved, bytes.scratch, bytes.params, bytes.grads, kept, x + z);
    else
        printf("training keeps %.1f MiB with x, %.2f times the %.1f of x and Z; scratch %.1f, in all %.1f\n",
               mib(kept), kept / (x + z), mib(x + z), mib((double)bytes.scratch), mib(peak));
}

size_t bench_gradient_bytes(const bench *b) {
    const moe_dtype dtype = b->problem.dtype;
    return moe_dtype_bytes(dtype == MOE_BF16 && !b->narrow ? MOE_F32 : dtype);
}

/* Those of the experts met are read and written where they are added to; stored, those of all are written,
 * which are zeros where no row came. */
static double gradients_moved(const bench *b, double met) {
    const bench_problem *p = &b->problem;
    const double passes = b->stores ? p->n_experts + p->n_shared : 2 * met;
    return passes * (double)bench_problem_weights(p) * (double)bench_gradient_bytes(b);
}

static void fill_lines(bench *b, decode *one, double met, double weights, bench_line *lines) {
    const bench_problem *p = &b->problem;
    const double number = (double)moe_dtype_bytes(p->dtype);
    const double tokens = number * (double)p->n_tokens * p->d_model,
                 flop = bench_problem_flop(p, p->n_tokens);
    const double z = z_bytes(p);
    /* clang-format off */
    const bench_line filled[N_LINES] = {
        [FORWARD] = {.what = "forward",
                     .run = run_inference,
                     .flop = flop,
                     .bytes = met * weights + 2 * tokens},
        [DECODE] = {.what = "decode, 1 token",
                    .run = run_decode,
                    .arg = one,
                    .parts = one->n,
                    .flop = bench_problem_flop(p, 1),
                    .bytes = weights * (p->top_k + p->n_shared)},
        [ROUTE] = {.what = "route"},
        [TRAIN_FORWARD] = {.what = "forward for training", .run = run_training, .flop = flop},
        [BACKWARD] = {.what = "backward", .run = run_backward, .flop = 2 * flop},
    };
    /* clang-format on */
    memcpy(lines, filled, sizeof filled);
    lines[ROUTE].run = b->gpu ? NULL : run_route;
    lines[TRAIN_FORWARD].bytes = lines[FORWARD].bytes + z;
    lines[BACKWARD].bytes = met * weights + gradients_moved(b, met) + 3 * tokens + z;
    for (int i = 0; i < N_LINES; ++i)
        if (!lines[i].arg) lines[i].arg = b;
}

static void print_route(const bench *b, const bench_line *line, const bench_line *forward) {
    const double route = bench_median(b, line), share = route / bench_median(b, forward);
    if (b->args->json)
        printf(",\"route_ms\":%.6g,\"route_share\":%.4g", route * 1e3, share);
    else
        printf("%-22s %9.3f ms, %.1f%% of the forward\n", "router and plan", route * 1e3, 100 * share);
}

moe_status bench_layer(bench *b) {
    bench_line lines[N_LINES], sum = {.what = "forward and backward"};
    moe_stats stats = {.size = sizeof stats};
    decode one = {b, 0, b->problem.n_tokens < 32 ? b->problem.n_tokens : 32};
    double met, weights;
    moe_status status = bench_forward(b, MOE_INFER, &stats);
    if (status == MOE_OK) status = count_experts(b, &met);
    if (status == MOE_OK) status = expert_bytes(b, &weights);
    if (status != MOE_OK) return status;
    fill_lines(b, &one, met, weights, lines);
    status = bench_measure(b, lines, b->inference ? TRAIN_FORWARD : N_LINES);
    if (status != MOE_OK) return status;
    bench_print_head(b, "layer", &stats);
    bench_print_line(b, &lines[FORWARD]);
    if (!b->inference) {
        bench_print_line(b, &lines[TRAIN_FORWARD]);
        bench_print_line(b, &lines[BACKWARD]);
        bench_add(b, &lines[TRAIN_FORWARD], &lines[BACKWARD], &sum);
        bench_print_line(b, &sum);
    }
    bench_print_line(b, &lines[DECODE]);
    if (b->args->json) printf("]");
    if (lines[ROUTE].run) print_route(b, &lines[ROUTE], &lines[FORWARD]);
    print_memory(b);
    if (b->args->json) printf("}\n");
    return MOE_OK;
}
