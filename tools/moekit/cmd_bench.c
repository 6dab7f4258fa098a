/* cmd_bench.c: moekit bench: time of a layer, and of its grouped products alone, on random data.
 * Medians after a warm-up; the yardstick is the best of half a second of dense 512 x 512 x 512.
 */
#include "bench_presets.h"
#include "bench_problem.h"
#include "cli.h"

#include <moekit/expert.h>
#include <moekit/op.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_REPEATS = 1000, YARDSTICK = 512, MOST_BLOCKS = 16 };

static const cli_option options[] = {
    {"repeat",   'r', "N",    "timed runs, of which the median counts (7)"                           },
    {"run",      0,   "DIR",  "presets: where the runs go, DIR/PRESET each (runs/presets)"           },
    {"output",   'o', "FILE", "presets: where the page goes; else standard output"                   },
    {"move-old", 0,   NULL,   "presets: an existing run directory is first renamed DIR.1, DIR.2, ..."},
    {NULL,       0,   NULL,   NULL                                                                   }
};

typedef struct bench {
    cli_args *args;
    moe_ctx *ctx;
    bench_problem problem;
    int64_t repeats;
    double yardstick; /* GFLOP/s */
    bool first_line;
    void *block[MOST_BLOCKS]; /* freed together */
    size_t bytes[MOST_BLOCKS];
    int n_blocks;
    moe_layer *layer;
    moe_mat x, y, dy, dx; /* [T, d] */
} bench;

typedef moe_status (*bench_fn)(void *arg);

static int compare_times(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct timing {
    double median, best; /* seconds */
} timing;

static moe_status measure(const bench *b, bench_fn fn, void *arg, timing *result) {
    double time[MOST_REPEATS];
    for (int64_t i = -1; i < b->repeats; ++i) { /* run -1 warms caches and threads */
        double start = cli_seconds();
        moe_status status = fn(arg);
        if (status != MOE_OK) return status;
        if (i >= 0) time[i] = cli_seconds() - start;
    }
    qsort(time, (size_t)b->repeats, sizeof *time, compare_times);
    *result = (timing){.median = time[b->repeats / 2], .best = time[0]};
    return MOE_OK;
}

static moe_status print_time(bench *b, const char *what, bench_fn fn, void *arg, double flop) {
    timing time;
    moe_status status = measure(b, fn, arg, &time);
    if (status != MOE_OK) return status;
    double rate = flop / time.median * 1e-9, share = rate / b->yardstick;
    if (b->args->json)
        printf("%s{\"what\":\"%s\",\"ms\":%.6g,\"best_ms\":%.6g,\"gflops\":%.6g,\"share\":%.4g}",
               b->first_line ? "" : ",", what, time.median * 1e3, time.best * 1e3, rate, share);
    else
        printf("%-22s %9.3f ms (best %.3f) %9.2f GFLOP/s, %.0f%% of the yardstick\n", what, time.median * 1e3,
               time.best * 1e3, rate, 100 * share);
    b->first_line = false;
    return MOE_OK;
}

/* Random numbers that live as long as the bench; NULL where they do not fit. */
static void *take_numbers(bench *b, int64_t count) {
    size_t bytes = (size_t)count * moe_dtype_bytes(b->problem.dtype);
    void *block = b->n_blocks < MOST_BLOCKS ? moe_ctx_alloc(b->ctx, bytes) : NULL;
    if (!block) return NULL;
    moe_random_normal(1, MOE_DRAW_TEST, (uint32_t)b->n_blocks, 9, b->problem.dtype, block, count, 0.3);
    b->bytes[b->n_blocks] = bytes;
    return b->block[b->n_blocks++] = block;
}

/* One operation of op.h, to be timed. */
typedef struct operation {
    moe_ctx *ctx;
    moe_gemm_rows_args rows;
    moe_gemm_outer_args outer;
} operation;

static moe_status run_rows(void *arg) {
    const operation *op = arg;
    return moe_gemm_rows(op->ctx, &op->rows);
}

static moe_status run_outer(void *arg) {
    const operation *op = arg;
    return moe_gemm_outer(op->ctx, &op->outer);
}

static moe_status measure_yardstick(bench *b) {
    const int64_t n = YARDSTICK, offset[] = {0, n};
    void *a = take_numbers(b, n * n), *w = take_numbers(b, n * n), *c = take_numbers(b, n * n);
    if (!a || !w || !c) return MOE_ERR_MEMORY;
    operation op = {
        .ctx = b->ctx, .rows = {.dtype = b->problem.dtype, .n_groups = 1, .offset = offset, .n = n, .k = n}
    };
    op.rows.a = a;
    op.rows.b = w;
    op.rows.c = c;
    op.rows.lda = op.rows.ldb = op.rows.ldc = n;
    double best = INFINITY, start = cli_seconds();
    while (cli_seconds() - start < 0.5) { /* many runs: a busy machine must not make it short */
        double before = cli_seconds();
        moe_status status = run_rows(&op);
        if (status != MOE_OK) return status;
        best = fmin(best, cli_seconds() - before);
    }
    b->yardstick = 2.0 * (double)(n * n * n) / best * 1e-9;
    return MOE_OK;
}

static moe_status run_inference(void *arg) {
    const bench *b = arg;
    const moe_call call = {.size = sizeof call, .mode = MOE_INFER};
    return moe_layer_forward(b->layer, b->x, b->y, &call, NULL);
}

static moe_status run_training(void *arg) {
    const bench *b = arg;
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN};
    moe_status status = moe_layer_forward(b->layer, b->x, b->y, &call, NULL);
    return status == MOE_OK ? moe_layer_backward(b->layer, b->x, b->dy, b->dx) : status;
}

static moe_status make_layer(bench *b) {
    const bench_problem *p = &b->problem;
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .dtype = p->dtype,
                                 .d_model = p->d_model,
                                 .num_experts = p->n_experts,
                                 .top_k = p->top_k,
                                 .expert_hidden_size = p->hidden,
                                 .num_shared_experts = p->n_shared,
                                 .activation = p->activation,
                                 .aux_loss_coeff = 0.01f};
    moe_mat *const mats[] = {&b->x, &b->y, &b->dy, &b->dx};
    moe_param gate = {.size = sizeof gate};
    moe_status status = moe_layer_create(b->ctx, &desc, &b->layer);
    if (status == MOE_OK) status = moe_layer_reserve(b->layer, p->n_tokens, MOE_TRAIN);
    if (status == MOE_OK) status = moe_layer_param_by_name(b->layer, "gate.weight", &gate);
    if (status != MOE_OK) return status;
    for (size_t i = 0; i < sizeof mats / sizeof *mats; ++i) {
        *mats[i] = (moe_mat){NULL, p->n_tokens, p->d_model, p->d_model, p->dtype};
        mats[i]->data = take_numbers(b, p->n_tokens * p->d_model);
        if (!mats[i]->data) return MOE_ERR_MEMORY;
    }
    bench_problem_fill(p, b->x.data, gate.value);
    return MOE_OK;
}

static moe_status print_head(bench *b, const char *subject) {
    char text[128];
    moe_stats stats = {.size = sizeof stats};
    moe_status status = moe_layer_forward(b->layer, b->x, b->y, NULL, &stats);
    if (status != MOE_OK) return status;
    bench_problem_print(&b->problem, text, sizeof text);
    b->first_line = true;
    if (b->args->json)
        printf("{\"bench\":\"%s\",\"problem\":\"%s\",\"isa\":\"%s\",\"threads\":%d,\"kernel\":\"%s\","
               "\"yardstick_gflops\":%.6g,\"load_max\":%.4g,\"load_cv\":%.4g,\"results\":[",
               subject, text, moe_ctx_isa(b->ctx), moe_ctx_threads(b->ctx),
               moe_ctx_kernel(b->ctx, "gemm_rows"), b->yardstick, stats.load_max, stats.load_cv);
    else
        printf("%s %s\n%s, %d threads, yardstick %.1f GFLOP/s, busiest expert %.2f x mean\n", subject, text,
               moe_ctx_isa(b->ctx), moe_ctx_threads(b->ctx), b->yardstick, stats.load_max);
    return MOE_OK;
}

static moe_status bench_layer(bench *b) {
    double flop = bench_problem_flop(&b->problem);
    moe_status status = print_head(b, "layer");
    if (status == MOE_OK) status = print_time(b, "forward", run_inference, b, flop);
    if (status == MOE_OK) status = print_time(b, "forward and backward", run_training, b, 3 * flop);
    return status;
}

/* Where the layer's router sends the rows: offset[E+1] and, for every row, its token. */
static moe_status copy_routing(const bench *b, int64_t *offset, int32_t *row_token) {
    moe_routing_view view = {.size = sizeof view};
    moe_status status = moe_layer_routing(b->layer, &view);
    if (status != MOE_OK) return status;
    offset[0] = 0;
    for (int32_t e = 0; e < view.n_experts; ++e) offset[e + 1] = offset[e] + view.kept[e];
    for (int64_t i = 0; i < view.n_tokens * view.top_k; ++i)
        if (view.row_of[i] >= 0) row_token[view.row_of[i]] = (int32_t)(i / view.top_k);
    return MOE_OK;
}

/* Operands of the products of one expert stage: W1[E,d,wide] W2[E,n,d] Z[R,wide] H[R,n] rows[R,d]. */
typedef struct stage {
    int64_t *offset;    /* [E + 1] */
    int32_t *row_token; /* [R] */
    int64_t wide;
    moe_act act;
    void *w1, *w2, *z, *h, *rows;
} stage;

/* Forward: up with gather and activation, then down. */
static moe_status time_forward(bench *b, const stage *s, double flop) {
    const bench_problem *p = &b->problem;
    const int64_t d = p->d_model, n = p->hidden;
    operation op = {.ctx = b->ctx};
    op.rows = (moe_gemm_rows_args){.dtype = p->dtype,
                                   .n_groups = p->n_experts,
                                   .offset = s->offset,
                                   .n = s->wide,
                                   .k = d,
                                   .a = b->x.data,
                                   .lda = d,
                                   .a_row = s->row_token,
                                   .b = s->w1,
                                   .ldb = s->wide,
                                   .b_group = d * s->wide,
                                   .c = s->z,
                                   .ldc = s->wide,
                                   .epilogue = MOE_EPI_ACT,
                                   .act = s->act,
                                   .h = s->h,
                                   .ldh = n};
    moe_status status = print_time(b, "up, gather, activate", run_rows, &op, flop * (double)(d * s->wide));
    if (status != MOE_OK) return status;
    op.rows = (moe_gemm_rows_args){.dtype = p->dtype,
                                   .n_groups = p->n_experts,
                                   .offset = s->offset,
                                   .n = d,
                                   .k = n,
                                   .a = s->h,
                                   .lda = n,
                                   .b = s->w2,
                                   .ldb = d,
                                   .b_group = n * d,
                                   .c = s->rows,
                                   .ldc = d};
    return print_time(b, "down", run_rows, &op, flop * (double)(d * n));
}

/* The gradients of both weights. */
static moe_status time_gradients(bench *b, const stage *s, double flop) {
    const bench_problem *p = &b->problem;
    const int64_t d = p->d_model, n = p->hidden;
    operation op = {.ctx = b->ctx};
    op.outer = (moe_gemm_outer_args){.dtype = p->dtype,
                                     .n_groups = p->n_experts,
                                     .offset = s->offset,
                                     .m = d,
                                     .n = s->wide,
                                     .a = b->x.data,
                                     .lda = d,
                                     .a_row = s->row_token,
                                     .b = s->z,
                                     .ldb = s->wide,
                                     .c = s->w1,
                                     .ldc = s->wide,
                                     .c_group = d * s->wide};
    moe_status status = print_time(b, "gradient of up", run_outer, &op, flop * (double)(d * s->wide));
    if (status != MOE_OK) return status;
    op.outer = (moe_gemm_outer_args){.dtype = p->dtype,
                                     .n_groups = p->n_experts,
                                     .offset = s->offset,
                                     .m = n,
                                     .n = d,
                                     .a = s->h,
                                     .lda = n,
                                     .b = b->dy.data,
                                     .ldb = d,
                                     .b_row = s->row_token,
                                     .c = s->w2,
                                     .ldc = d,
                                     .c_group = n * d};
    return print_time(b, "gradient of down", run_outer, &op, flop * (double)(d * n));
}

static moe_status bench_products(bench *b) {
    const bench_problem *p = &b->problem;
    const int64_t E = p->n_experts, R = p->n_tokens * p->top_k, d = p->d_model, n = p->hidden;
    stage s = {.wide = n};
    moe_status status = moe_act_by_name(p->activation, &s.act, NULL);
    if (status == MOE_OK) status = print_head(b, "gemm");
    if (status != MOE_OK) return status;
    if (moe_act_gated(s.act)) s.wide = 2 * n;
    s.offset = moe_ctx_alloc(b->ctx, (size_t)(E + 1) * sizeof *s.offset);
    s.row_token = moe_ctx_alloc(b->ctx, (size_t)R * sizeof *s.row_token);
    s.w1 = take_numbers(b, E * d * s.wide);
    s.w2 = take_numbers(b, E * n * d);
    s.z = take_numbers(b, R * s.wide);
    s.h = take_numbers(b, R * n);
    s.rows = take_numbers(b, R * d);
    status = s.offset && s.row_token && s.w1 && s.w2 && s.z && s.h && s.rows ? MOE_OK : MOE_ERR_MEMORY;
    if (status == MOE_OK) status = copy_routing(b, s.offset, s.row_token);
    if (status == MOE_OK) status = time_forward(b, &s, 2.0 * (double)R);
    if (status == MOE_OK) status = time_gradients(b, &s, 2.0 * (double)R);
    moe_ctx_free(b->ctx, s.offset, (size_t)(E + 1) * sizeof *s.offset);
    moe_ctx_free(b->ctx, s.row_token, (size_t)R * sizeof *s.row_token);
    return status;
}

static int run_bench(cli_args *args, bench *b, bool layer, bool products) {
    int code = cli_settings_load(args, NULL, 0);
    if (code == 0) code = cli_context_create(args, NULL, 0, &b->ctx);
    if (code) return code;
    moe_status status = measure_yardstick(b);
    if (status == MOE_OK) status = make_layer(b);
    if (status == MOE_OK && layer) status = bench_layer(b);
    if (status == MOE_OK && layer && args->json) printf("]}\n");
    if (status == MOE_OK && products) status = bench_products(b);
    if (status == MOE_OK && products && args->json) printf("]}\n");
    if (status != MOE_OK) code = cli_fail(args, status, "%s", moe_ctx_error(b->ctx));
    for (int i = 0; i < b->n_blocks; ++i) moe_ctx_free(b->ctx, b->block[i], b->bytes[i]);
    moe_layer_destroy(b->layer);
    moe_ctx_destroy(b->ctx);
    return code;
}

static int run(cli_args *args) {
    bench b = {.args = args, .repeats = 7};
    moe_error error;
    const char *subject = args->n_operands > 0 ? args->operand[0] : "";
    if (strcmp(subject, "presets") == 0) return bench_presets(args);
    bool layer = strcmp(subject, "gemm") != 0, products = strcmp(subject, "layer") != 0;
    if (*subject && layer && products)
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "'%s' is no bench; say 'layer' or 'gemm', then a problem, or 'presets'", subject);
    if (args->n_set > 0 || args->n_operands > 2)
        return cli_fail(args, MOE_ERR_ARGUMENT, "'%s' takes one problem, and no keys or files",
                        *subject ? subject : "bench");
    moe_status status = bench_problem_parse(args->n_operands > 1 ? args->operand[1] : "", &b.problem, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    int code = cli_integer(args, "repeat", 1, MOST_REPEATS, &b.repeats);
    return code ? code : run_bench(args, &b, layer, products);
}

const cli_verb cmd_bench = {
    .name = "bench",
    .operands = "[layer|gemm] [PROBLEM] | presets [CONFIG.yaml]... [KEY=VALUE]...",
    .summary = "time a layer or its grouped products on random data; compare the presets",
    .about = "A problem is one string: e8,t4096,d256,n256,k2 are experts, tokens, model width, expert\n"
             "width and experts per token. More words: shared1, act=gelu, f64, skew=even (exactly\n"
             "balanced), skew=zipf1.0 (expert e is drawn with probability ~ 1/(e+1)). What is left out\n"
             "is as in the example.\n"
             "\n"
             "Prints the median time and GFLOP/s of the expert products: 6*T*K*d*n forward and three\n"
             "times that with backward (4 where the activation is not gated). The share is of the\n"
             "best run of a dense 512 x 512 x 512 product by the same kernels.\n"
             "\n"
             "presets trains the model of the files once with every preset (moe.preset) and prints a page\n"
             "with loss, bits per byte, balance, dropped rows and idle experts of each. The page tells\n"
             "what every preset sets. A loss that does not fall exits with 5.\n",
    .examples = "moekit bench layer e8,t4096,d256,n256,k2\n"
                "moekit bench gemm e64,t8192,d512,n256,k4,skew=zipf1.0 --threads 1 --isa avx2\n"
                "moekit bench presets configs/demo.yaml train.steps=400 -o docs/presets.md\n",
    .options = options,
    .makes_context = true,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "",
    .max_operands = 64,
    .run = run,
};
