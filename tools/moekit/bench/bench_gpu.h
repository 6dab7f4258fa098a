/* bench_gpu.h: what a bench on a GPU needs beside the layer: times by events of its stream, CUDA graphs, and
 * the two ceilings, a dense product and a copy. The driver and cuBLAS are looked for at run time; none is
 * linked.
 */
#ifndef MOEKIT_BENCH_GPU_H
#define MOEKIT_BENCH_GPU_H

#include <moekit/moe.h>

typedef struct bench_gpu bench_gpu;

/* Of the GPU of a CUDA context; the product is of the dtype. The context keeps the text of a failure. */
moe_status bench_gpu_open(moe_ctx *ctx, moe_dtype dtype, bench_gpu **gpu);
void bench_gpu_close(bench_gpu *gpu);                /* NULL: nothing */
const char *bench_gpu_name(const bench_gpu *gpu);    /* "NVIDIA H100 80GB HBM3" */
const char *bench_gpu_product(const bench_gpu *gpu); /* "cuBLAS" or "moe_gemm_rows" */

/* Queues the product and the copy, which keep the GPU busy while `run` is launched and leave nothing of it in
 * L2, then `run`, and waits. With a graph, which starts as NULL, `run` is captured the first time and
 * replayed from then on; bench_gpu_drop frees it. */
typedef struct bench_gpu_times {
    double run, product, copy; /* seconds */
} bench_gpu_times;
moe_status bench_gpu_time(bench_gpu *gpu, moe_status (*run)(void *arg, double *seconds), void *arg,
                          void **graph, bench_gpu_times *times);
void bench_gpu_drop(bench_gpu *gpu, void *graph); /* NULL: nothing */
/* Operations of the product, and bytes read and written by the copy. */
double bench_gpu_flop(const bench_gpu *gpu);
double bench_gpu_bytes(const bench_gpu *gpu);

#endif
