/* bench_gpu.c: a GPU's clock and ceilings for moekit bench.
 * Everything goes on the context's stream: event, C = A A [8192, 8192], event, C = A, event, run, event.
 * Source: the CUDA driver API and cuBLAS, by the names and numbers of their C interfaces.
 */
#include "bench/bench_gpu.h"

#include <moekit/cuda.h>
#include <moekit/expert.h>
#include <moekit/op.h>

#include <dlfcn.h>
#include <string.h>

enum { SIDE = 8192, EVENTS = 4, TASK = 1 << 20 };

typedef struct driver {
    int (*event_create)(void **event, unsigned flags);
    int (*event_record)(void *event, void *stream);
    int (*event_synchronize)(void *event);
    int (*event_elapsed)(float *ms, void *from, void *to);
    int (*event_destroy)(void *event);
    int (*copy)(uintptr_t to, uintptr_t from, size_t bytes, void *stream);
    int (*capture_begin)(void *stream, int mode);
    int (*capture_end)(void *stream, void **graph);
    int (*graph_instantiate)(void **exec, void *graph, unsigned long long flags);
    int (*graph_destroy)(void *graph);
    int (*graph_launch)(void *exec, void *stream);
    int (*graph_exec_destroy)(void *exec);
    int (*device)(int *device);
    int (*device_name)(char *name, int size, int device);
    int (*error_text)(int error, const char **text);
} driver;

typedef struct blas {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, void *stream);
    int (*product)(void *handle, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                   const void *a, int type_a, int lda, const void *b, int type_b, int ldb, const void *beta,
                   void *c, int type_c, int ldc, int compute, int algorithm);
} blas;

/* cublasGemmEx's numbers. */
enum { CUDA_R_32F = 0, CUDA_R_16BF = 14, CUBLAS_COMPUTE_32F = 68, CUBLAS_GEMM_DEFAULT = -1 };
enum { CAPTURE_THREAD_LOCAL = 1 };

struct bench_gpu {
    moe_ctx *ctx;
    moe_dtype dtype;
    void *driver_library, *blas_library;
    driver api;
    blas cublas;
    void *handle; /* of cuBLAS; NULL: our own product */
    void *event[EVENTS];
    void *a, *c; /* [SIDE, SIDE] */
    size_t bytes;
    char name[100];
};

typedef struct symbol {
    const char *name;
    void *to; /* a pointer to a function */
} symbol;

/* The first name that is missing; NULL: all are there. */
static const char *load(void *library, const symbol *list, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        void *found = dlsym(library, list[i].name);
        if (!found) return list[i].name;
        memcpy(list[i].to, &found, sizeof found);
    }
    return NULL;
}

static moe_status told(bench_gpu *gpu, int error, const char *what) {
    const char *text = "unknown";
    if (error == 0) return MOE_OK;
    gpu->api.error_text(error, &text);
    return moe_ctx_fail(gpu->ctx, MOE_ERR_DEVICE, "bench: %s: %s", what, text);
}

static moe_status open_driver(bench_gpu *gpu) {
    driver *api = &gpu->api;
    const symbol list[] = {
        {"cuEventCreate",               &api->event_create      },
        {"cuEventRecord",               &api->event_record      },
        {"cuEventSynchronize",          &api->event_synchronize },
        {"cuEventElapsedTime",          &api->event_elapsed     },
        {"cuEventDestroy_v2",           &api->event_destroy     },
        {"cuMemcpyDtoDAsync_v2",        &api->copy              },
        {"cuStreamBeginCapture_v2",     &api->capture_begin     },
        {"cuStreamEndCapture",          &api->capture_end       },
        {"cuGraphInstantiateWithFlags", &api->graph_instantiate },
        {"cuGraphDestroy",              &api->graph_destroy     },
        {"cuGraphLaunch",               &api->graph_launch      },
        {"cuGraphExecDestroy",          &api->graph_exec_destroy},
        {"cuCtxGetDevice",              &api->device            },
        {"cuDeviceGetName",             &api->device_name       },
        {"cuGetErrorString",            &api->error_text        },
    };
    int device = 0;
    gpu->driver_library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const char *missing =
        gpu->driver_library ? load(gpu->driver_library, list, sizeof list / sizeof *list) : "libcuda.so.1";
    if (missing)
        return moe_ctx_fail(gpu->ctx, MOE_ERR_UNSUPPORTED, "bench: the CUDA driver has no %s", missing);
    moe_status status = told(gpu, api->device(&device), "cuCtxGetDevice");
    if (status == MOE_OK)
        status = told(gpu, api->device_name(gpu->name, sizeof gpu->name, device), "cuDeviceGetName");
    for (int i = 0; i < EVENTS && status == MOE_OK; ++i)
        status = told(gpu, api->event_create(&gpu->event[i], 0), "cuEventCreate");
    return status;
}

/* Without cuBLAS the product is our own. */
static void open_blas(bench_gpu *gpu) {
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    blas *b = &gpu->cublas;
    const symbol list[] = {
        {"cublasCreate_v2",    &b->create    },
        {"cublasDestroy_v2",   &b->destroy   },
        {"cublasSetStream_v2", &b->set_stream},
        {"cublasGemmEx",       &b->product   }
    };
    for (size_t i = 0; i < sizeof names / sizeof *names && !gpu->blas_library; ++i)
        gpu->blas_library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!gpu->blas_library || load(gpu->blas_library, list, sizeof list / sizeof *list)) return;
    if (b->create(&gpu->handle) != 0) {
        gpu->handle = NULL;
        return;
    }
    b->set_stream(gpu->handle, moe_cuda_stream(gpu->ctx));
}

/* One piece of the random operand, from a stream of its own. */
static void draw(void *arg, int64_t task, void *scratch) {
    const bench_gpu *gpu = arg;
    (void)scratch;
    moe_random_normal(2, MOE_DRAW_TEST, 1, (uint64_t)task, gpu->dtype,
                      (char *)gpu->c + (size_t)task * TASK * moe_dtype_bytes(gpu->dtype), TASK, 1);
}

/* A is drawn on the host; while that lasts, `c` is the host's. */
static moe_status fill(bench_gpu *gpu) {
    void *host = moe_ctx_alloc(gpu->ctx, gpu->bytes);
    if (!host) return MOE_ERR_MEMORY;
    gpu->c = host;
    moe_parallel(gpu->ctx, (int64_t)SIDE * SIDE / TASK, draw, gpu);
    gpu->c = NULL;
    const moe_status status = moe_memory_copy(gpu->ctx, gpu->a, host, gpu->bytes);
    moe_ctx_free(gpu->ctx, host, gpu->bytes);
    return status;
}

moe_status bench_gpu_open(moe_ctx *ctx, moe_dtype dtype, bench_gpu **gpu) {
    bench_gpu *made = moe_ctx_alloc(ctx, sizeof *made);
    if (!made) return MOE_ERR_MEMORY;
    *made = (bench_gpu){.ctx = ctx, .dtype = dtype, .bytes = (size_t)SIDE * SIDE * moe_dtype_bytes(dtype)};
    moe_status status = open_driver(made);
    if (status == MOE_OK) {
        open_blas(made);
        made->a = moe_memory_alloc(ctx, made->bytes);
        status = made->a ? fill(made) : MOE_ERR_MEMORY;
    }
    if (status == MOE_OK && !(made->c = moe_memory_alloc(ctx, made->bytes))) status = MOE_ERR_MEMORY;
    if (status == MOE_OK)
        *gpu = made;
    else
        bench_gpu_close(made);
    return status;
}

void bench_gpu_close(bench_gpu *gpu) {
    if (!gpu) return;
    if (gpu->handle) gpu->cublas.destroy(gpu->handle);
    for (int i = 0; i < EVENTS; ++i)
        if (gpu->event[i]) gpu->api.event_destroy(gpu->event[i]);
    moe_memory_free(gpu->ctx, gpu->a, gpu->bytes);
    moe_memory_free(gpu->ctx, gpu->c, gpu->bytes);
    if (gpu->blas_library) dlclose(gpu->blas_library);
    if (gpu->driver_library) dlclose(gpu->driver_library);
    moe_ctx_free(gpu->ctx, gpu, sizeof *gpu);
}

const char *bench_gpu_name(const bench_gpu *gpu) {
    return gpu->name;
}

const char *bench_gpu_product(const bench_gpu *gpu) {
    return gpu->handle ? "cuBLAS" : "moe_gemm_rows";
}

double bench_gpu_flop(const bench_gpu *gpu) {
    (void)gpu;
    return 2.0 * SIDE * SIDE * SIDE;
}

double bench_gpu_bytes(const bench_gpu *gpu) {
    return 2.0 * (double)gpu->bytes;
}

static moe_status queue_product(bench_gpu *gpu) {
    const float one = 1, zero = 0;
    const int type = gpu->dtype == MOE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    if (gpu->handle) {
        const int error =
            gpu->cublas.product(gpu->handle, 0, 0, SIDE, SIDE, SIDE, &one, gpu->a, type, SIDE, gpu->a, type,
                                SIDE, &zero, gpu->c, type, SIDE, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        if (error == 0) return MOE_OK;
        return moe_ctx_fail(gpu->ctx, MOE_ERR_DEVICE, "bench: cublasGemmEx answered %d", error);
    }
    const moe_gemm_rows_args args = {.dtype = gpu->dtype,
                                     .n_groups = 1,
                                     .n_rows = SIDE,
                                     .n = SIDE,
                                     .k = SIDE,
                                     .a = gpu->a,
                                     .lda = SIDE,
                                     .b = gpu->a,
                                     .ldb = SIDE,
                                     .c = gpu->c,
                                     .ldc = SIDE};
    return moe_gemm_rows(gpu->ctx, &args);
}

static moe_status capture(bench_gpu *gpu, moe_status (*run)(void *arg, double *seconds), void *arg,
                          void **exec) {
    void *stream = moe_cuda_stream(gpu->ctx), *graph = NULL;
    double ignored;
    moe_status status =
        told(gpu, gpu->api.capture_begin(stream, CAPTURE_THREAD_LOCAL), "cuStreamBeginCapture");
    if (status != MOE_OK) return status;
    status = run(arg, &ignored);
    const int error = gpu->api.capture_end(stream, &graph);
    if (status == MOE_OK) status = told(gpu, error, "cuStreamEndCapture");
    if (status == MOE_OK)
        status = told(gpu, gpu->api.graph_instantiate(exec, graph, 0), "cuGraphInstantiateWithFlags");
    if (graph) gpu->api.graph_destroy(graph);
    return status;
}

static moe_status elapsed(bench_gpu *gpu, int from, double *seconds) {
    float ms = 0;
    const moe_status status =
        told(gpu, gpu->api.event_elapsed(&ms, gpu->event[from], gpu->event[from + 1]), "cuEventElapsedTime");
    *seconds = (double)ms * 1e-3;
    return status;
}

moe_status bench_gpu_time(bench_gpu *gpu, moe_status (*run)(void *arg, double *seconds), void *arg,
                          void **graph, bench_gpu_times *times) {
    void *stream = moe_cuda_stream(gpu->ctx);
    const driver *api = &gpu->api;
    moe_status status = graph && !*graph ? capture(gpu, run, arg, graph) : MOE_OK;
    int error = status == MOE_OK ? api->event_record(gpu->event[0], stream) : 0;
    if (status == MOE_OK) status = queue_product(gpu);
    if (status != MOE_OK) return status;
    if (!error) error = api->event_record(gpu->event[1], stream);
    if (!error) error = api->copy((uintptr_t)gpu->c, (uintptr_t)gpu->a, gpu->bytes, stream);
    if (!error) error = api->event_record(gpu->event[2], stream);
    if (!error && graph) error = api->graph_launch(*graph, stream);
    if (error) return told(gpu, error, "queueing");
    if (!graph) status = run(arg, &times->run);
    if (status == MOE_OK) status = told(gpu, api->event_record(gpu->event[3], stream), "cuEventRecord");
    if (status == MOE_OK) status = told(gpu, api->event_synchronize(gpu->event[3]), "cuEventSynchronize");
    if (status == MOE_OK) status = moe_ctx_wait(gpu->ctx);
    if (status == MOE_OK) status = elapsed(gpu, 0, &times->product);
    if (status == MOE_OK) status = elapsed(gpu, 1, &times->copy);
    return status == MOE_OK ? elapsed(gpu, 2, &times->run) : status;
}

void bench_gpu_drop(bench_gpu *gpu, void *graph) {
    if (graph) gpu->api.graph_exec_destroy(graph);
}
