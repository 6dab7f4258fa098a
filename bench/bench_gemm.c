/* bench_gemm.c: how fast the grouped products of this machine run, and what share of its peak that is.
 *   bench_gemm [problem [threads [isa]]]    problem: e8,t4096,d256,n256,k2[,bf16][,zipf][,packed=int4]
 * (experts, tokens, d, hidden width, top-k; loads by Zipf's law instead of even ones; a format of quant.h).
 * Products as a swiglu layer makes them: act x W1 [R,d]x[d,2n], store h W2 [R,n]x[n,d], both once more with
 * packed weights if asked, act_grad dy W2^T [R,d]x[d,n], outer dW2 += (w a)^T dy. Peak:
 * registers only, of the row's own instructions, the best so far, measured anew before every line, as other
 * processes come and go.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <moekit/quant.h>

#include "kernel/kernel_list.h"

typedef struct problem {
    int64_t experts, tokens, d, n, k;
    moe_dtype dtype;
    bool zipf;
    const char *format; /* of packed weights; NULL: none */
} problem;

typedef struct bench {
    moei_team team;
    problem size;
    int64_t rows, *offset;
    int32_t *a_row;
    moe_packed *packed[2]; /* w1, w2 */
    void *x, *w1, *w2, *z, *h, *y, *dy, *dz, *wa, *dweight, *part, *dw2;
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* FLOP/s of all threads together, by the row of `peak` for these instructions. */
static double peak(const moei_team *team, moei_isa isa, moe_dtype dtype) {
    moei_kernels table[MOEI_DTYPES];
    double best = 0;
    moei_kernel_select(isa, table);
    for (int i = 0; i < 5; ++i) {
        double start = now(), count = table[dtype].peak(team, 200000);
        double rate = count / (now() - start);
        if (rate > best) best = rate;
    }
    return best;
}

static void fail(const char *text) {
    fprintf(stderr, "bench_gemm: %s\n", text);
    exit(1);
}

/* In huge pages, as a context's own allocator does it. */
static void *memory(size_t bytes) {
    enum { HUGE = 2 << 20 };
    size_t whole = (bytes + HUGE - 1) / HUGE * HUGE;
    void *p = aligned_alloc(HUGE, whole ? whole : HUGE);
    if (!p) fail("the problem does not fit in memory");
    madvise(p, whole, MADV_HUGEPAGE);
    return p;
}

/* From N(0, std^2); of weights such that what they make is of size 1, as activations are in a model. */
static void *numbers(moe_dtype dtype, int64_t n, double std) {
    int64_t some = n < 1 << 20 ? n : 1 << 20, real = (int64_t)moe_dtype_bytes(dtype);
    char *p = memory((size_t)(n * real));
    moe_random_normal(1, MOE_DRAW_TEST, 0, (uint64_t)n, dtype, p, some, std);
    for (int64_t i = some; i < n; i += some)
        memcpy(p + i * real, p, (size_t)((n - i < some ? n - i : some) * real));
    return p;
}

/* offset[E + 1]: even loads, or load e in proportion to 1 / (e + 1). */
static void spread(const problem *s, int64_t rows, int64_t *offset) {
    double all = 0, sum = 0;
    for (int64_t g = 1; g <= s->experts; ++g) all += s->zipf ? 1.0 / (double)g : 1.0;
    offset[0] = 0;
    for (int64_t g = 1; g <= s->experts; ++g) {
        sum += s->zipf ? 1.0 / (double)g : 1.0;
        offset[g] = (int64_t)((double)rows * sum / all + 0.5);
    }
}

static moe_packed *pack(moe_ctx *ctx, const problem *s, const void *b, int64_t k, int64_t n, int32_t n_runs) {
    const moe_packed_desc desc = {.size = sizeof desc,
                                  .format = s->format,
                                  .dtype = s->dtype,
                                  .n_groups = (int32_t)s->experts,
                                  .k = k,
                                  .n = n,
                                  .n_runs = n_runs};
    moe_packed *packed = NULL;
    if (moe_packed_create(ctx, &desc, b, &packed) != MOE_OK) fail(moe_ctx_error(ctx));
    return packed;
}

/* The context stays as long as what it packed. */
static void pack_weights(bench *b) {
    const problem *s = &b->size;
    moe_ctx *ctx = NULL;
    if (!s->format) return;
    if (moe_ctx_create(NULL, &ctx, NULL) != MOE_OK) fail("no context");
    b->packed[0] = pack(ctx, s, b->w1, s->d, 2 * s->n, 2);
    b->packed[1] = pack(ctx, s, b->w2, s->n, s->d, 1);
}

static void setup(bench *b) {
    const problem *s = &b->size;
    int64_t rows = b->rows = s->tokens * s->k;
    b->offset = malloc((size_t)(s->experts + 1) * sizeof *b->offset);
    b->a_row = malloc((size_t)rows * sizeof *b->a_row);
    b->team.scratch = memory((size_t)b->team.n_threads * MOEI_THREAD_SCRATCH);
    b->team.pool = malloc(moei_pool_bytes(b->team.n_threads));
    if (!b->offset || !b->a_row || !b->team.scratch || !b->team.pool)
        fail("the problem does not fit in memory");
    moei_pool_start(b->team.pool, b->team.n_threads, b->team.scratch);
    spread(s, rows, b->offset);
    for (int64_t r = 0; r < rows; ++r) b->a_row[r] = (int32_t)(r * 7919 % s->tokens);
    moe_dtype t = s->dtype, wide = moei_wide(t);
    b->x = numbers(t, s->tokens * s->d, 1), b->dy = numbers(t, s->tokens * s->d, 1);
    b->w1 = numbers(t, s->experts * s->d * 2 * s->n, 1 / sqrt((double)s->d));
    b->w2 = numbers(t, s->experts * s->n * s->d, 1 / sqrt((double)s->n));
    b->z = numbers(t, rows * 2 * s->n, 1), b->dz = numbers(t, rows * 2 * s->n, 1);
    b->h = numbers(t, rows * s->n, 1), b->wa = numbers(t, rows * s->n, 1), b->y = numbers(t, rows * s->d, 1);
    b->dw2 = numbers(wide, s->experts * s->n * s->d, 1);
    b->dweight = numbers(wide, rows, 1), b->part = numbers(wide, rows * moe_dweight_parts(s->n), 1);
    pack_weights(b);
}

static moe_gemm_rows_args rows_args(const bench *b, moe_epilogue epilogue) {
    const problem *s = &b->size;
    moe_gemm_rows_args args = {
        .dtype = s->dtype, .n_groups = (int32_t)s->experts, .offset = b->offset, .epilogue = epilogue};
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

static void run_packed(const bench *b, const moei_kernel_row *row, int which) {
    moe_gemm_rows_args args = rows_args(b, (moe_epilogue)which);
    args.b_packed = b->packed[which == MOE_EPI_ACT ? 0 : 1];
    ((moei_gemm_rows_fn *)row->fn)(&b->team, &args);
}

static void run_outer(const bench *b, const moei_kernel_row *row, int which) {
    const problem *s = &b->size;
    (void)which;
    moe_gemm_outer_args args = {.dtype = s->dtype,
                                .n_groups = (int32_t)s->experts,
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
                                .c_group = s->n * s->d,
                                .accumulate = true,
                                .c_wide = true};
    ((moei_gemm_outer_fn *)row->fn)(&b->team, &args);
}

typedef struct bench_case {
    const char *name, *op;
    void (*run)(const bench *b, const moei_kernel_row *row, int which);
    int which, flop; /* FLOP = flop * R * d * n */
} bench_case;

static const bench_case cases[] = {
    {"act",          "gemm_rows",   run_rows,   MOE_EPI_ACT,      4},
    {"store",        "gemm_rows",   run_rows,   MOE_EPI_STORE,    2},
    {"act packed",   "gemm_packed", run_packed, MOE_EPI_ACT,      4},
    {"store packed", "gemm_packed", run_packed, MOE_EPI_STORE,    2},
    {"act_grad",     "gemm_rows",   run_rows,   MOE_EPI_ACT_GRAD, 2},
    {"outer",        "gemm_outer",  run_outer,  0,                2},
};

/* Best of the runs that fit in half a second, three at least. */
static void measure(const bench *b, const bench_case *c, const moei_kernel_row *row, double *top) {
    const problem *s = &b->size;
    double best = 1e30, total = 0, now_peak = peak(&b->team, row->isa, s->dtype);
    if (now_peak > top[row->isa]) top[row->isa] = now_peak;
    c->run(b, row, c->which);
    for (int i = 0; i < 3 || total < 0.5; ++i) {
        double start = now();
        c->run(b, row, c->which);
        double seconds = now() - start;
        total += seconds;
        if (seconds < best) best = seconds;
    }
    double rate = (double)c->flop * (double)b->rows * (double)s->d * (double)s->n / best;
    printf("%-12s %-20s %8.1f GFLOP/s %6.1f %% of %.1f %10.3f ms\n", c->name, row->name, rate * 1e-9,
           100 * rate / top[row->isa], top[row->isa] * 1e-9, 1e3 * best);
}

int main(int argc, char **argv) {
    bench b = {.team.n_threads = argc > 2 ? atoi(argv[2]) : 1};
    problem *s = &b.size;
    const char *text = argc > 1 ? argv[1] : "e8,t4096,d256,n256,k2";
    int got = sscanf(text, "e%ld,t%ld,d%ld,n%ld,k%ld", &s->experts, &s->tokens, &s->d, &s->n, &s->k);
    s->dtype = strstr(text, ",bf16") ? MOE_BF16 : MOE_F32;
    s->zipf = strstr(text, ",zipf");
    const char *packed = strstr(text, ",packed=");
    if (packed) s->format = packed + strlen(",packed=");
    if (got != 5 || s->experts < 1 || s->tokens < 1 || s->d < 1 || s->n < 1 || s->k < 1 ||
        b.team.n_threads < 1)
        fail("expected a problem like e8,t4096,d256,n256,k2,bf16,packed=int4 and a number of threads");
    setup(&b);
    printf("%s, %d thread(s)\n", text, (int)b.team.n_threads);
    double top[MOEI_ISA_COUNT] = {0};
    size_t count;
    const moei_kernel_row *rows = moei_kernel_rows(&count);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; ++c) {
        for (size_t i = 0; i < count; ++i) {
            bool vector = rows[i].isa != MOEI_ISA_REF && moei_isa_supported(rows[i].isa);
            if (argc > 3) vector = vector && strcmp(argv[3], moei_isa_name(rows[i].isa)) == 0;
            vector = vector && (s->format || cases[c].run != run_packed);
            if (vector && rows[i].serves >> s->dtype & 1 && strcmp(rows[i].op, cases[c].op) == 0)
                measure(&b, &cases[c], &rows[i], top);
        }
    }
    return 0;
}
