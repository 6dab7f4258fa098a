/* bench_time.c: lines timed in turns, so that a busy minute meets all of them alike; medians count.
 * Between two turns the ceilings are measured: multiply-adds in registers, and reading memory that no cache
 * holds. Of a ceiling the best counts.
 */
#include "bench.h"

#include <moekit/expert.h>
#include <moekit/op.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const size_t sweep_bytes = (size_t)256 << 20; /* more than any L3 share of a few cores */
enum { SWEEP_TASK = 1 << 20 };

void *bench_take(bench *b, size_t bytes) {
    void *memory = b->n_blocks < BENCH_BLOCKS ? moe_ctx_alloc(b->ctx, bytes) : NULL;
    if (!memory) return NULL;
    memset(memory, 0, bytes);
    b->block[b->n_blocks++] = (struct bench_block){memory, bytes};
    return memory;
}

void *bench_numbers(bench *b, int64_t count) {
    void *numbers = bench_take(b, (size_t)count * moe_dtype_bytes(b->problem.dtype));
    if (numbers)
        moe_random_normal(1, MOE_DRAW_TEST, (uint32_t)b->n_blocks, 9, b->problem.dtype, numbers, count, 0.3);
    return numbers;
}

void bench_free(bench *b) {
    for (int i = 0; i < b->n_blocks; ++i) moe_ctx_free(b->ctx, b->block[i].memory, b->block[i].bytes);
    moe_layer_destroy(b->layer);
    b->n_blocks = 0;
    b->layer = NULL;
    b->sweep = NULL;
    b->expert = NULL;
}

/* 1. Ceilings. */

/* Sums a piece in four chains and leaves the sum, so that it is read. */
static void sweep_task(void *arg, int64_t task, void *scratch) {
    const uint64_t *word = (const uint64_t *)arg + task * (SWEEP_TASK / (int64_t)sizeof(uint64_t));
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < SWEEP_TASK / sizeof *word; i += 8)
        for (size_t j = 0; j < 8; ++j) sum[j] += word[i + j];
    memcpy(scratch, sum, sizeof sum);
}

static moe_status measure_ceilings(bench *b) {
    double peak;
    moe_status status = moe_peak(b->ctx, b->problem.dtype, 0.005, &peak);
    if (status != MOE_OK) return status;
    b->peak = fmax(b->peak, peak);
    if (!b->sweep) b->sweep = bench_take(b, sweep_bytes);
    if (!b->sweep) return MOE_ERR_MEMORY;
    const double began = cli_seconds();
    moe_parallel(b->ctx, (int64_t)(sweep_bytes / SWEEP_TASK), sweep_task, b->sweep);
    b->bandwidth = fmax(b->bandwidth, (double)sweep_bytes / (cli_seconds() - began));
    return MOE_OK;
}

/* 2. Lines. */

static moe_status run_line(const bench_line *line, double *seconds) {
    double told = -1;
    const double began = cli_seconds();
    moe_status status = line->run(line->arg, &told);
    *seconds = told >= 0 ? told : cli_seconds() - began;
    return status;
}

moe_status bench_measure(bench *b, bench_line *lines, int n_lines) {
    for (int64_t i = -1; i < b->repeats; ++i) { /* turn -1 warms caches and threads */
        moe_status status = measure_ceilings(b);
        for (int j = 0; j < n_lines && status == MOE_OK; ++j) {
            double seconds;
            status = run_line(&lines[j], &seconds);
            if (i >= 0) lines[j].time[i] = seconds;
        }
        if (status != MOE_OK) return status;
    }
    return MOE_OK;
}

void bench_add(const bench *b, const bench_line *first, const bench_line *second, bench_line *sum) {
    sum->flop = first->flop + second->flop;
    sum->bytes = first->bytes + second->bytes;
    for (int64_t i = 0; i < b->repeats; ++i) sum->time[i] = first->time[i] + second->time[i];
}

static int compare_times(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sort_times(const bench *b, const bench_line *line, double *time) {
    memcpy(time, line->time, (size_t)b->repeats * sizeof *time);
    qsort(time, (size_t)b->repeats, sizeof *time, compare_times);
}

double bench_median(const bench *b, const bench_line *line) {
    double time[BENCH_REPEATS];
    sort_times(b, line, time);
    return time[b->repeats / 2];
}

/* 3. Print. */

void bench_print_head(bench *b, const char *subject, const moe_stats *stats) {
    char text[160];
    bench_problem_print(&b->problem, text, sizeof text);
    b->first_line = true;
    if (b->args->json)
        printf("{\"bench\":\"%s\",\"problem\":\"%s\",\"isa\":\"%s\",\"threads\":%d,\"kernel\":\"%s\","
               "\"peak_gflops\":%.6g,\"bandwidth_gbs\":%.6g,\"load_max\":%.4g,\"load_cv\":%.4g,\"results\":[",
               subject, text, moe_ctx_isa(b->ctx), moe_ctx_threads(b->ctx),
               moe_ctx_kernel(b->ctx, "gemm_rows"), b->peak * 1e-9, b->bandwidth * 1e-9, stats->load_max,
               stats->load_cv);
    else
        printf("%s %s\n%s, %d threads; ceilings %.1f GFLOP/s in registers, %.1f GB/s read; busiest expert "
               "%.2f x mean\n",
               subject, text, moe_ctx_isa(b->ctx), moe_ctx_threads(b->ctx), b->peak * 1e-9,
               b->bandwidth * 1e-9, stats->load_max);
}

void bench_print_line(bench *b, const bench_line *line) {
    double time[BENCH_REPEATS];
    sort_times(b, line, time);
    const double median = time[b->repeats / 2], flops = line->flop / median, bytes = line->bytes / median;
    if (b->args->json) {
        printf("%s{\"what\":\"%s\",\"ms\":%.6g,\"best_ms\":%.6g,\"gflops\":%.6g,\"peak_share\":%.4g,"
               "\"gbs\":%.6g,\"bandwidth_share\":%.4g}",
               b->first_line ? "" : ",", line->what, median * 1e3, time[0] * 1e3, flops * 1e-9,
               flops / b->peak, bytes * 1e-9, bytes / b->bandwidth);
    } else {
        printf("%-22s %9.3f ms (best %.3f) %9.2f GFLOP/s, %3.0f%% of the peak", line->what, median * 1e3,
               time[0] * 1e3, flops * 1e-9, 100 * flops / b->peak);
        if (line->bytes > 0)
            printf("; %6.2f GB/s, %3.0f%% of reading", bytes * 1e-9, 100 * bytes / b->bandwidth);
        printf("\n");
    }
    b->first_line = false;
}
