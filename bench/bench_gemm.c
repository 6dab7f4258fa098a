/* bench_gemm.c: how fast the grouped products of this machine run, and what share of its FMA peak that is.
 *   bench_gemm [problem [threads]]    problem: e8,t4096,d256,n256,k2 (experts, tokens, d, hidden width,
 * top-k) Products as a swiglu layer makes them: act x W1 [R,d]x[d,2n], store h W2 [R,n]x[n,d], act_grad dy
 * W2^T [R,d]x[d,n], outer dW2 = (w a)^T dy. Peak: registers only, the best so far, measured anew
 * before every line, as other processes come and go.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernel/kernel_list.h"

typedef struct problem {
    int64_t experts, tokens, d, n, k;
} problem;

typedef struct bench {
    moei_team team;
    problem size;
    int64_t rows, *offset;
    int32_t *a_row;
    float *x, *w1, *w2, *z, *h, *y, *dy, *dz, *wa, *dweight, *part, *dw2;
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Independent chains of multiply-add in registers: as many as hide the latency. */
typedef float lanes __attribute__((vector_size(32)));
enum { CHAINS = 12, PEAK_STEPS = 2000000 };
static void peak_task(void *arg, int64_t task, void *scratch) {
    lanes acc[CHAINS], x, y;
    (void)scratch;
    for (int i = 0; i < 8; ++i) x[i] = 0.999999f, y[i] = 1e-7f * (float)(task + 1);
    for (int c = 0; c < CHAINS; ++c) acc[c] = y * (float)c;
    for (int s = 0; s < PEAK_STEPS; ++s) {
#pragma GCC unroll 16
        for (int c = 0; c < CHAINS; ++c) acc[c] = acc[c] * x + y;
    }
    for (int c = 1; c < CHAINS; ++c) acc[0] += acc[c];
    ((float *)arg)[task * 16] = acc[0][0];
}

/* FLOP/s of all threads together. */
static double peak(const moei_team *team) {
    float sink[16 * 64];
    int64_t tasks = team->n_threads < 64 ? team->n_threads : 64;
    double best = 1e30;
    for (int i = 0; i < 5; ++i) {
        double start = now();
        moei_parallel(team, tasks, peak_task, sink);
        double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    return 2.0 * CHAINS * 8 * PEAK_STEPS * (double)tasks / best;
}

static void fail(const char *text) {
    fprintf(stderr, "bench_gemm: %s\n", text);
    exit(1);
}

static float *numbers(int64_t n) {
    float *p = aligned_alloc(64, ((size_t)n * sizeof *p + 63) / 64 * 64);
    if (!p) fail("the problem does not fit in memory");
    moe_random_normal(1, MOE_DRAW_TEST, 0, (uint64_t)n, MOE_F32, p, n, 1.0);
    return p;
}

static void setup(bench *b) {
    const problem *s = &b->size;
    int64_t rows = b->rows = s->tokens * s->k;
    b->offset = malloc((size_t)(s->experts + 1) * sizeof *b->offset);
    b->a_row = malloc((size_t)rows * sizeof *b->a_row);
    b->team.scratch = aligned_alloc(64, (size_t)b->team.n_threads * MOEI_THREAD_SCRATCH);
    b->team.pool = malloc(moei_pool_bytes(b->team.n_threads));
    if (!b->offset || !b->a_row || !b->team.scratch || !b->team.pool)
        fail("the problem does not fit in memory");
    moei_pool_start(b->team.pool, b->team.n_threads, b->team.scratch);
    for (int64_t g = 0; g <= s->experts; ++g) b->offset[g] = rows * g / s->experts;
    for (int64_t r = 0; r < rows; ++r) b->a_row[r] = (int32_t)(r * 7919 % s->tokens);
    b->x = numbers(s->tokens * s->d), b->dy = numbers(s->tokens * s->d), b->y = numbers(rows * s->d);
    b->w1 = numbers(s->experts * s->d * 2 * s->n), b->w2 = numbers(s->experts * s->n * s->d);
    b->z = numbers(rows * 2 * s->n), b->dz = numbers(rows * 2 * s->n);
    b->h = numbers(rows * s->n), b->wa = numbers(rows * s->n), b->dw2 = numbers(s->experts * s->n * s->d);
    b->dweight = numbers(rows), b->part = numbers(rows * moe_dweight_parts(s->n));
}

static moe_gemm_rows_args rows_args(const bench *b, moe_epilogue epilogue) {
    const problem *s = &b->size;
    moe_gemm_rows_args args = {.n_groups = (int32_t)s->experts, .offset = b->offset, .epilogue = epilogue};
    switch (epilogue) {
    case MOE_EPI_ACT:
        args.n = 2 * s->n, args.k = args.lda = s->d, args.a = b->x, args.a_row = b->a_row, args.b = b->w1;
        args.ldb = args.n, args.act = MOE_ACT_SWIGLU, args.c = b->z, args.ldc = args.n;
        args.h = b->h, args.ldh = s->n;
        break;
    case MOE_EPI_STORE:
        args.n = s->d, args.k = args.lda = s->n, args.a = b->h, args.b = b->w2, args.ldb = s->d;
        args.c = b->y, args.ldc = s->d;
        break;
    case MOE_EPI_ACT_GRAD:
        args.n = s->n, args.k = args.lda = s->d, args.a = b->dy, args.a_row = b->a_row, args.b = b->w2;
        args.ldb = s->d, args.b_trans = true, args.act = MOE_ACT_SWIGLU, args.z = b->z, args.dz = b->dz;
        args.ldz = 2 * s->n, args.wa = b->wa, args.ldwa = s->n;
        args.dweight = b->dweight, args.dweight_part = b->part;
        break;
    }
    args.b_group = args.n * args.k;
    return args;
}

static void run_rows(const bench *b, const moei_kernel_row *row, int which) {
    moe_gemm_rows_args args = rows_args(b, (moe_epilogue)which);
    ((moei_gemm_rows_fn *)row->fn)(&b->team, &args);
}

static void run_outer(const bench *b, const moei_kernel_row *row, int which) {
    const problem *s = &b->size;
    (void)which;
    moe_gemm_outer_args args = {.n_groups = (int32_t)s->experts,
                                .offset = b->offset,
                                .m = s->n,
                                .n = s->d,
                                .a = b->wa,
                                .lda = s->n,
                                .b = b->dy,
                                .ldb = s->d,
                                .b_row = b->a_row,
                                .c = b->dw2,
                                .ldc = s->d,
                                .c_group = s->n * s->d};
    ((moei_gemm_outer_fn *)row->fn)(&b->team, &args);
}

typedef struct bench_case {
    const char *name, *op;
    void (*run)(const bench *b, const moei_kernel_row *row, int which);
    int which, flop; /* FLOP = flop * R * d * n */
} bench_case;

static const bench_case cases[] = {
    {"act",      "gemm_rows",  run_rows,  MOE_EPI_ACT,      4},
    {"store",    "gemm_rows",  run_rows,  MOE_EPI_STORE,    2},
    {"act_grad", "gemm_rows",  run_rows,  MOE_EPI_ACT_GRAD, 2},
    {"outer",    "gemm_outer", run_outer, 0,                2},
};

/* Best of the runs that fit in half a second, three at least. */
static void measure(const bench *b, const bench_case *c, const moei_kernel_row *row, double *top) {
    const problem *s = &b->size;
    double best = 1e30, total = 0, now_peak = peak(&b->team);
    if (now_peak > *top) *top = now_peak;
    c->run(b, row, c->which);
    for (int i = 0; i < 3 || total < 0.5; ++i) {
        double start = now();
        c->run(b, row, c->which);
        double seconds = now() - start;
        total += seconds;
        if (seconds < best) best = seconds;
    }
    double rate = (double)c->flop * (double)b->rows * (double)s->d * (double)s->n / best;
    printf("%-9s %-20s %8.1f GFLOP/s %6.1f %% of %.1f %10.3f ms\n", c->name, row->name, rate * 1e-9,
           100 * rate / *top, *top * 1e-9, 1e3 * best);
}

int main(int argc, char **argv) {
    bench b = {.team.n_threads = argc > 2 ? atoi(argv[2]) : 1};
    problem *s = &b.size;
    const char *text = argc > 1 ? argv[1] : "e8,t4096,d256,n256,k2";
    int got = sscanf(text, "e%ld,t%ld,d%ld,n%ld,k%ld", &s->experts, &s->tokens, &s->d, &s->n, &s->k);
    if (got != 5 || s->experts < 1 || s->tokens < 1 || s->d < 1 || s->n < 1 || s->k < 1 ||
        b.team.n_threads < 1)
        fail("expected a problem like e8,t4096,d256,n256,k2 and a number of threads");
    setup(&b);
    printf("%s, %d thread(s)\n", text, (int)b.team.n_threads);
    double top = 0;
    size_t count;
    const moei_kernel_row *rows = moei_kernel_rows(&count);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; ++c) {
        for (size_t i = 0; i < count; ++i) {
            bool vector = rows[i].isa != MOEI_ISA_REF && moei_isa_supported(rows[i].isa);
            if (vector && strcmp(rows[i].op, cases[c].op) == 0) measure(&b, &cases[c], &rows[i], &top);
        }
    }
    return 0;
}
