/* bench.h: what the benches of layers share: the problem in memory, lines that are timed in turns, and the
 * ceilings of this machine, measured between them.
 */
#ifndef MOEKIT_BENCH_H
#define MOEKIT_BENCH_H

#include "bench/bench_gpu.h"
#include "bench/bench_problem.h"
#include "cli.h"

enum { BENCH_REPEATS = 1000, BENCH_BLOCKS = 16 };

typedef struct bench {
    cli_args *args;
    moe_ctx *ctx;
    bench_problem problem;
    int64_t repeats;
    double peak;           /* operations a second, the best so far */
    double bandwidth;      /* bytes a second: on a GPU the best so far, else the last, then the median */
    void *sweep;           /* what the bandwidth is read from */
    bench_gpu *gpu;        /* NULL: on the CPU */
    bool graph;            /* what a GPU runs is replayed */
    bool inference;        /* no training */
    const char *gradients; /* how backward keeps those of weights: add, store or bf16 */
    bool stores, narrow;   /* and so: it stores them; those of experts are bf16 */
    bool first_line;
    struct bench_block {
        void *memory;
        size_t bytes;
    } block[BENCH_BLOCKS]; /* freed together */
    int n_blocks;
    moe_layer *layer;
    moe_mat x, y, dy, dx; /* [T, d] */
    int32_t *expert;      /* [T, K] of a skew; NULL: the router decides */
} bench;

/* One thing that is timed. `run` may write the seconds that count; else those from call to return do, or
 * those on the stream of a GPU. */
typedef struct bench_line {
    const char *what;
    moe_status (*run)(void *arg, double *seconds); /* NULL: not on this device */
    void *arg;
    int64_t parts;      /* a run is so many equal pieces, of which one is told; 0: 1 */
    void *graph;        /* bench_gpu_time's */
    double flop, bytes; /* of one run; 0: not told */
    double time[BENCH_REPEATS];
    double bandwidth[BENCH_REPEATS]; /* of the memory around each run */
} bench_line;

/* bench_time.c */
/* Memory of the device that lives as long as the bench: as it is, or random numbers of the problem's dtype;
 * NULL: no room. */
void *bench_take(bench *b, size_t bytes);
void *bench_numbers(bench *b, int64_t count);
void bench_free(bench *b);
/* Opens the clock of the context's GPU, if it has one. */
moe_status bench_open_device(bench *b);
/* Runs all lines once to warm up, then `repeats` times in turns with a look at the ceilings. */
moe_status bench_measure(bench *b, bench_line *lines, int n_lines);
/* A line whose every repeat took what those of two others took. */
void bench_add(const bench *b, const bench_line *first, const bench_line *second, bench_line *sum);
double bench_median(const bench *b, const bench_line *line);
/* The head, which tells the ceilings, is printed after measuring; each line then, and the end (of JSON). */
void bench_print_head(bench *b, const char *subject, const moe_stats *stats);
void bench_print_line(bench *b, const bench_line *line);

/* bench_layer.c and bench_products.c: one problem; return after printing. */
moe_status bench_make_layer(bench *b);
/* Bytes of one number of the gradients of experts' weights. */
size_t bench_gradient_bytes(const bench *b);
moe_status bench_layer(bench *b);
moe_status bench_products(bench *b);
/* One forward in the mode, with the problem's routes. */
moe_status bench_forward(const bench *b, moe_mode mode, moe_stats *stats);

#endif
