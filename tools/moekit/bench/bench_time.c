/* bench_time.c: lines timed in turns, so that a busy minute meets all of them alike; medians count.
 * Between two lines the ceilings are measured: multiply-adds in registers, of which the best counts, and
 * reading memory that no cache holds. Memory is shared with whoever else is on the machine and changes by the
 * minute, so a run is held against the readings straight before and after it, and the median share counts;
 * no run finds in a cache what an earlier one left there. On a GPU the ceilings are a dense product and a
 * copy, before every line; of both the best counts.
 */
#include "bench/bench.h"

#include <moekit/cuda.h>
#include <moekit/expert.h>
#include <moekit/op.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const size_t sweep_bytes = (size_t)256 << 20; /* more than any L3 share of a few cores */
enum { SWEEP_TASK = 1 << 20, DRAW_TASK = 1 << 16 };

void *bench_take(bench *b, size_t bytes) {
    void *memory = b->n_blocks < BENCH_BLOCKS ? moe_memory_alloc(b->ctx, bytes) : NULL;
    if (memory) b->block[b->n_blocks++] = (struct bench_block){memory, bytes};
    return memory;
}

/* Numbers on the host, drawn by all threads: every task has a stream of its own. */
typedef struct drawing {
    const bench *b;
    char *numbers;
    int64_t count;
} drawing;

static void draw_task(void *arg, int64_t task, void *scratch) {
    const drawing *d = arg;
    const int64_t at = task * DRAW_TASK, left = d->count - at;
    const moe_dtype dtype = d->b->problem.dtype;
    (void)scratch;
    moe_random_normal(1, MOE_DRAW_TEST, (uint32_t)d->b->n_blocks, (uint64_t)task, dtype,
                      d->numbers + (size_t)at * moe_dtype_bytes(dtype), left < DRAW_TASK ? left : DRAW_TASK,
                      0.3);
}

void *bench_numbers(bench *b, int64_t count) {
    const size_t bytes = (size_t)count * moe_dtype_bytes(b->problem.dtype);
    void *memory = bench_take(b, bytes), *host = b->gpu && memory ? moe_ctx_alloc(b->ctx, bytes) : memory;
    if (!host) return NULL;
    drawing d = {b, host, count};
    moe_parallel(b->ctx, (count + DRAW_TASK - 1) / DRAW_TASK, draw_task, &d);
    if (host == memory) return memory;
    const moe_status status = moe_memory_copy(b->ctx, memory, host, bytes);
    moe_ctx_free(b->ctx, host, bytes);
    return status == MOE_OK ? memory : NULL;
}

moe_status bench_open_device(bench *b) {
    return moe_cuda_stream(b->ctx) ? bench_gpu_open(b->ctx, b->problem.dtype, &b->gpu) : MOE_OK;
}

void bench_free(bench *b) {
    for (int i = 0; i < b->n_blocks; ++i) moe_memory_free(b->ctx, b->block[i].memory, b->block[i].bytes);
    moe_layer_destroy(b->layer);
    bench_gpu_close(b->gpu);
    b->gpu = NULL;
    b->peak = b->bandwidth = 0; /* of another dtype, perhaps */
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

/* The kernel of the problem's products. */
static const char *product_kernel(const bench *b) {
    return moe_ctx_kernel_of(b->ctx, b->problem.format ? "gemm_packed" : "gemm_rows", b->problem.dtype);
}

static moe_status measure_ceilings(bench *b) {
    double peak;
    moe_status status = moe_peak(b->ctx, b->problem.dtype, 0.005, &peak);
    if (status != MOE_OK) return status;
    b->peak = fmax(b->peak, peak);
    if (!b->sweep) {
        b->sweep = bench_take(b, sweep_bytes);
        if (!b->sweep) return MOE_ERR_MEMORY;
        memset(b->sweep, 0, sweep_bytes); /* pages that are there */
    }
    const double began = cli_seconds();
    moe_parallel(b->ctx, (int64_t)(sweep_bytes / SWEEP_TASK), sweep_task, b->sweep);
    b->bandwidth = (double)sweep_bytes / (cli_seconds() - began);
    return MOE_OK;
}

/* 2. Lines. */

static int compare_numbers(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sort_repeats(const bench *b, const double *from, double *to) {
    memcpy(to, from, (size_t)b->repeats * sizeof *to);
    qsort(to, (size_t)b->repeats, sizeof *to, compare_numbers);
}

static double median_of(const bench *b, const double *repeat) {
    double sorted[BENCH_REPEATS];
    sort_repeats(b, repeat, sorted);
    return sorted[b->repeats / 2];
}

static moe_status run_on_gpu(bench *b, bench_line *line, double *seconds) {
    bench_gpu_times times = {0};
    moe_status status = bench_gpu_time(b->gpu, line->run, line->arg, b->graph ? &line->graph : NULL, &times);
    if (status != MOE_OK) return status;
    b->peak = fmax(b->peak, bench_gpu_flop(b->gpu) / times.product);
    b->bandwidth = fmax(b->bandwidth, bench_gpu_bytes(b->gpu) / times.copy);
    *seconds = times.run;
    return MOE_OK;
}

static moe_status run_on_cpu(const bench_line *line, double *seconds) {
    double told = -1;
    const double began = cli_seconds();
    moe_status status = line->run(line->arg, &told);
    *seconds = told >= 0 ? told : cli_seconds() - began;
    return status;
}

/* Between two readings of memory; the second is the next line's first. */
static moe_status run_between(bench *b, const bench_line *line, double *seconds, double *bandwidth) {
    const double before = b->bandwidth;
    moe_status status = run_on_cpu(line, seconds);
    if (status == MOE_OK) status = measure_ceilings(b);
    *bandwidth = (before + b->bandwidth) / 2;
    return status;
}

static moe_status run_turn(bench *b, int64_t turn, bench_line *lines, int n_lines) {
    moe_status status = b->gpu ? MOE_OK : measure_ceilings(b);
    for (int i = 0; i < n_lines && status == MOE_OK; ++i) {
        double seconds = 0, bandwidth = 0;
        if (!lines[i].run) continue;
        status =
            b->gpu ? run_on_gpu(b, &lines[i], &seconds) : run_between(b, &lines[i], &seconds, &bandwidth);
        if (turn < 0) continue;
        lines[i].time[turn] = lines[i].parts > 0 ? seconds / (double)lines[i].parts : seconds;
        lines[i].bandwidth[turn] = bandwidth;
    }
    return status;
}

moe_status bench_measure(bench *b, bench_line *lines, int n_lines) {
    moe_status status = MOE_OK;
    /* turn -1 warms caches and threads */
    for (int64_t turn = -1; turn < b->repeats && status == MOE_OK; ++turn) {
        char text[64] = "warming up";
        if (turn >= 0)
            snprintf(text, sizeof text, "run %lld of %lld", (long long)turn + 1, (long long)b->repeats);
        cli_draw_line(b->args, text);
        status = run_turn(b, turn, lines, n_lines);
    }
    cli_erase_line(b->args);
    for (int i = 0; i < n_lines && b->gpu; ++i) bench_gpu_drop(b->gpu, lines[i].graph);
    if (!b->gpu && status == MOE_OK) b->bandwidth = median_of(b, lines[0].bandwidth);
    return status;
}

void bench_add(const bench *b, const bench_line *first, const bench_line *second, bench_line *sum) {
    sum->flop = first->flop + second->flop;
    sum->bytes = first->bytes + second->bytes;
    for (int64_t i = 0; i < b->repeats; ++i) {
        sum->time[i] = first->time[i] + second->time[i];
        sum->bandwidth[i] = (first->bandwidth[i] + second->bandwidth[i]) / 2;
    }
}

double bench_median(const bench *b, const bench_line *line) {
    return median_of(b, line->time);
}

/* A run's bytes, against what reading, or copying, would have moved in its time. */
static double bandwidth_share(const bench *b, const bench_line *line) {
    double share[BENCH_REPEATS];
    if (b->gpu) return line->bytes / bench_median(b, line) / b->bandwidth;
    for (int64_t i = 0; i < b->repeats; ++i) share[i] = line->bytes / line->time[i] / line->bandwidth[i];
    return median_of(b, share);
}

/* 3. Print. */

static void print_head_json(const bench *b) {
    if (b->gpu)
        printf("\"device\":\"%s\",\"product\":\"%s\",\"graph\":%s,", bench_gpu_name(b->gpu),
               bench_gpu_product(b->gpu), b->graph ? "true" : "false");
    printf("\"isa\":\"%s\",\"threads\":%d,", moe_ctx_isa(b->ctx), moe_ctx_threads(b->ctx));
}

void bench_print_head(bench *b, const char *subject, const moe_stats *stats) {
    const bool trains = strcmp(subject, "layer") == 0 && !b->inference;
    char text[160];
    bench_problem_print(&b->problem, text, sizeof text);
    b->first_line = true;
    if (b->args->json) {
        printf("{\"bench\":\"%s\",\"problem\":\"%s\",", subject, text);
        print_head_json(b);
        if (trains) printf("\"gradients\":\"%s\",", b->gradients);
        printf("\"kernel\":\"%s\",\"peak_gflops\":%.6g,\"bandwidth_gbs\":%.6g,\"load_max\":%.4g,"
               "\"load_cv\":%.4g,\"results\":[",
               product_kernel(b), b->peak * 1e-9, b->bandwidth * 1e-9, stats->load_max, stats->load_cv);
        return;
    }
    printf("%s %s\n", subject, text);
    if (b->gpu)
        printf("%s, %s%s; ceilings %.1f TFLOP/s (8192^3 by %s), %.0f GB/s copied", bench_gpu_name(b->gpu),
               moe_ctx_isa(b->ctx), b->graph ? ", graphs" : "", b->peak * 1e-12, bench_gpu_product(b->gpu),
               b->bandwidth * 1e-9);
    else
        printf("%s, %d threads; ceilings %.1f GFLOP/s in registers, %.1f GB/s read", moe_ctx_isa(b->ctx),
               moe_ctx_threads(b->ctx), b->peak * 1e-9, b->bandwidth * 1e-9);
    if (trains) printf("; gradients: %s", b->gradients);
    printf("; busiest expert %.2f x mean\n", stats->load_max);
}

/* What memory cannot give came from the caches: single tokens meet the same experts over and over. */
static void print_bandwidth(const bench *b, double bytes, double share) {
    if (share > 1.1)
        printf("; %6.2f GB/s, in caches", bytes * 1e-9);
    else
        printf("; %6.2f GB/s, %3.0f%% of %s", bytes * 1e-9, 100 * share, b->gpu ? "copying" : "reading");
}

void bench_print_line(bench *b, const bench_line *line) {
    double time[BENCH_REPEATS];
    sort_repeats(b, line->time, time);
    const double median = time[b->repeats / 2], flops = line->flop / median, bytes = line->bytes / median;
    if (b->args->json) {
        printf("%s{\"what\":\"%s\",\"ms\":%.6g,\"best_ms\":%.6g,\"gflops\":%.6g,\"peak_share\":%.4g,"
               "\"gbs\":%.6g,\"bandwidth_share\":%.4g}",
               b->first_line ? "" : ",", line->what, median * 1e3, time[0] * 1e3, flops * 1e-9,
               flops / b->peak, bytes * 1e-9, bandwidth_share(b, line));
    } else {
        printf("%-22s %9.3f ms (best %.3f) %9.2f %s, %3.0f%% of the peak", line->what, median * 1e3,
               time[0] * 1e3, flops * (b->gpu ? 1e-12 : 1e-9), b->gpu ? "TFLOP/s" : "GFLOP/s",
               100 * flops / b->peak);
        if (line->bytes > 0) print_bandwidth(b, bytes, bandwidth_share(b, line));
        printf("\n");
    }
    b->first_line = false;
}
