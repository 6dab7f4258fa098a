/* device_cuda.c: memory, copies and the stream of a CUDA context, through the CUDA runtime.
 * One state a context: the stream its kernels queue on, and a word of host memory that they report in.
 * Source: CUDA Runtime API; a stream of our own that does not wait for the legacy default stream.
 */
#include "core/ctx.h"
#include "device/device.h"

#include <moekit/cuda.h>

#include <cuda_runtime_api.h>

/* Multiprocessors for what runs beside products: so many for a byte that it moves for each operation of
 * theirs, in pairs, which products take them in; 2 to 12, and an eighth at most: a GPU may be a slice of one.
 * docs/kernels-cuda.md says which were measured. */
enum { SPARE_LEAST = 2, SPARE_MOST = 12, SPARE_SHARE = 8 };
static const double spare_of_intensity = 9800;

typedef struct cuda_state {
    cudaStream_t own;   /* made by us; ctx->team.stream may be the caller's */
    cudaStream_t side;  /* of lower priority */
    cudaStream_t first; /* ctx->team.stream while calls queue on `side` */
    cudaEvent_t mark, done;
    bool offered, marked, entered;
    int index, capability, multiprocessors;
    int urgency; /* the highest launch priority */
} cuda_state;

static moe_status told(moe_ctx *ctx, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return MOE_OK;
    return moe_ctx_fail(ctx, error == cudaErrorMemoryAllocation ? MOE_ERR_MEMORY : MOE_ERR_DEVICE,
                        "device cuda: %s: %s", what, cudaGetErrorString(error));
}

static moe_status choose(moe_ctx *ctx, cuda_state *state) {
    int count = 0, major = 0, minor = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED,
                            "device cuda: this machine has no CUDA GPU that works (%s)",
                            error != cudaSuccess ? cudaGetErrorString(error) : "none found");
    if (ctx->desc.device_index < 0 || ctx->desc.device_index >= count)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "device_index: %d is outside 0 .. %d, the GPUs of this machine",
                            ctx->desc.device_index, count - 1);
    state->index = ctx->desc.device_index;
    MOEI_TRY(told(ctx, cudaSetDevice(state->index), "cudaSetDevice"));
    MOEI_TRY(told(ctx, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, state->index),
                  "cudaDeviceGetAttribute"));
    MOEI_TRY(told(ctx, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, state->index),
                  "cudaDeviceGetAttribute"));
    MOEI_TRY(told(
        ctx, cudaDeviceGetAttribute(&state->multiprocessors, cudaDevAttrMultiProcessorCount, state->index),
        "cudaDeviceGetAttribute"));
    state->capability = 10 * major + minor;
    if (major >= 8) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED,
                        "device cuda: GPU %d has compute capability %d.%d; 8.0 (Ampere) or newer is needed",
                        state->index, major, minor);
}

/* What the runtime allocates, and streams that kernels queue on, are those of the calling thread's GPU. */
static moe_status need_own_gpu(moe_ctx *ctx) {
    const cuda_state *state = ctx->device_state;
    int current = state->index;
    MOEI_TRY(told(ctx, cudaGetDevice(&current), "cudaGetDevice"));
    if (current == state->index) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_STATE,
                        "device cuda: this thread's current GPU is %d, but the context's is %d; call "
                        "cudaSetDevice(%d) first",
                        current, state->index, state->index);
}

static int32_t cuda_capability(const moe_ctx *ctx) {
    const cuda_state *state = ctx->device_state;
    return state->capability;
}

static void cuda_close(moe_ctx *ctx) {
    cuda_state *state = ctx->device_state;
    if (!state) return;
    if (state->own) cudaStreamDestroy(state->own);
    if (state->side) cudaStreamDestroy(state->side);
    if (state->mark) cudaEventDestroy(state->mark);
    if (state->done) cudaEventDestroy(state->done);
    if (ctx->fault) cudaFreeHost(ctx->fault);
    moe_ctx_free(ctx, state, sizeof *state);
    ctx->device_state = NULL;
}

static moe_status make_streams(moe_ctx *ctx, cuda_state *state) {
    int least = 0, greatest = 0;
    MOEI_TRY(
        told(ctx, cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange"));
    state->urgency = greatest;
    MOEI_TRY(told(ctx, cudaStreamCreateWithPriority(&state->own, cudaStreamNonBlocking, greatest),
                  "cudaStreamCreate"));
    MOEI_TRY(told(ctx, cudaStreamCreateWithPriority(&state->side, cudaStreamNonBlocking, least),
                  "cudaStreamCreate"));
    MOEI_TRY(told(ctx, cudaEventCreateWithFlags(&state->mark, cudaEventDisableTiming), "cudaEventCreate"));
    return told(ctx, cudaEventCreateWithFlags(&state->done, cudaEventDisableTiming), "cudaEventCreate");
}

void *moei_cuda_encode(void) {
    void *encode = NULL;
    enum cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault,
                                         &found) == cudaSuccess)
        return found == cudaDriverEntryPointSuccess ? encode : NULL;
    cudaGetLastError(); /* an older driver is no fault of a kernel */
    return NULL;
}

static moe_status cuda_open(moe_ctx *ctx) {
    cuda_state *state = moe_ctx_alloc(ctx, sizeof *state);
    if (!state) return moei_ctx_no_memory(ctx, "a CUDA context");
    *state = (cuda_state){0};
    ctx->device_state = state;
    MOEI_TRY(choose(ctx, state));
    MOEI_TRY(make_streams(ctx, state));
    MOEI_TRY(told(ctx, cudaHostAlloc((void **)&ctx->fault, sizeof *ctx->fault, cudaHostAllocMapped),
                  "cudaHostAlloc"));
    ctx->fault->first = UINT64_MAX;
    ctx->team.stream = state->own;
    ctx->team.encode = moei_cuda_encode();
    return MOE_OK;
}

static void *cuda_alloc(moe_ctx *ctx, size_t bytes) {
    void *ptr = NULL;
    size_t available = 0, total = 0;
    if (need_own_gpu(ctx) != MOE_OK) return NULL;
    const cudaError_t error = cudaMalloc(&ptr, bytes ? bytes : 1);
    if (error == cudaSuccess) return ptr;
    cudaGetLastError(); /* it is told here, not by the next check */
    if (error != cudaErrorMemoryAllocation) {
        told(ctx, error, "cudaMalloc");
        return NULL;
    }
    cudaMemGetInfo(&available, &total);
    moe_ctx_fail(ctx, MOE_ERR_MEMORY, "device cuda: cannot allocate %zu bytes; %zu of %zu are free", bytes,
                 available, total);
    return NULL;
}

static void cuda_free(moe_ctx *ctx, void *ptr, size_t bytes) {
    (void)ctx;
    (void)bytes;
    cudaFree(ptr); /* waits for what still uses it */
}

static bool is_of_device(const void *ptr) {
    struct cudaPointerAttributes about;
    if (cudaPointerGetAttributes(&about, ptr) == cudaSuccess) return about.type == cudaMemoryTypeDevice;
    cudaGetLastError(); /* an address it does not know is no fault that the next check should tell */
    return false;
}

/* What the host can reach is awaited: of pinned memory the runtime's copy returns before it is done. */
static moe_status cuda_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes) {
    const cudaStream_t stream = ctx->team.stream;
    MOEI_TRY(told(ctx, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy"));
    return is_of_device(to) && is_of_device(from) ? MOE_OK : told(ctx, cudaStreamSynchronize(stream), "copy");
}

static moe_status cuda_clear(moe_ctx *ctx, void *ptr, size_t bytes) {
    return told(ctx, cudaMemsetAsync(ptr, 0, bytes, ctx->team.stream), "clear");
}

static int32_t spare_for(int multiprocessors, double intensity) {
    const int32_t share = multiprocessors / SPARE_SHARE / 2 * 2;
    const int32_t most = share < SPARE_MOST ? share : SPARE_MOST;
    const double wanted = intensity * spare_of_intensity;
    if (wanted >= most) return most;
    return wanted > SPARE_LEAST ? ((int32_t)(wanted + 0.5) + 1) / 2 * 2 : SPARE_LEAST;
}

/* A step that fails is told by cuda_check. */
static void cuda_beside(moe_ctx *ctx, moei_beside step) {
    cuda_state *state = ctx->device_state;
    if (step == MOEI_BESIDE_OFFER) state->offered = true;
    if (step == MOEI_BESIDE_MARK && state->offered) {
        cudaEventRecord(state->mark, ctx->team.stream);
        state->marked = true;
        ctx->team.spare = spare_for(state->multiprocessors, ctx->offer.intensity);
        ctx->team.urgency = state->urgency;
    }
    if (step == MOEI_BESIDE_ENTER) {
        if (!state->marked) cudaEventRecord(state->mark, ctx->team.stream);
        cudaStreamWaitEvent(state->side, state->mark, 0);
        state->first = ctx->team.stream;
        state->entered = true;
        ctx->team.stream = state->side;
    }
    if (step != MOEI_BESIDE_END) return;
    if (state->entered) {
        cudaEventRecord(state->done, state->side);
        ctx->team.stream = state->first;
        cudaStreamWaitEvent(state->first, state->done, 0);
    }
    state->offered = state->marked = state->entered = false;
    ctx->team.spare = 0;
}

/* What a kernel reported is told once. */
static moe_status cuda_check(moe_ctx *ctx) {
    MOEI_TRY(need_own_gpu(ctx));
    MOEI_TRY(told(ctx, cudaGetLastError(), "a kernel or an earlier CUDA call of this thread failed"));
    const uint64_t fault = *(volatile uint64_t *)&ctx->fault->first;
    if (fault == UINT64_MAX) return MOE_OK;
    ctx->fault->first = UINT64_MAX;
    const int layer = (int)(fault >> MOEI_FAULT_LAYER_BIT), token = (int)(fault >> MOEI_FAULT_TOKEN_BIT);
    if ((fault & 0xff) == MOEI_FAULT_REPLAY)
        return moe_ctx_fail(
            ctx, MOE_ERR_ARGUMENT,
            "replay_expert of layer %d: token %d names an expert that is not there, or one twice; "
            "it was left out",
            layer, token);
    return moe_ctx_fail(
        ctx, MOE_ERR_NUMERIC,
        "router of layer %d: token %d has a NaN or infinite logit or bias and was left out; look "
        "for NaN or infinity in the layer's input or in gate.weight",
        layer, token);
}

static moe_status cuda_wait(moe_ctx *ctx) {
    MOEI_TRY(told(ctx, cudaStreamSynchronize(ctx->team.stream), "what was queued failed"));
    return cuda_check(ctx);
}

const moei_device moei_device_cuda = {.name = "cuda",
                                      .open = cuda_open,
                                      .close = cuda_close,
                                      .capability = cuda_capability,
                                      .alloc = cuda_alloc,
                                      .free = cuda_free,
                                      .copy = cuda_copy,
                                      .clear = cuda_clear,
                                      .beside = cuda_beside,
                                      .wait = cuda_wait,
                                      .check = cuda_check};

moe_status moe_cuda_set_stream(moe_ctx *ctx, void *stream) {
    if (!ctx) return MOE_ERR_ARGUMENT;
    const cuda_state *state = ctx->device_state;
    if (!state)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_cuda_set_stream: this context is on the CPU; make it with "
                            "device MOE_CUDA");
    ctx->team.stream = stream ? stream : state->own;
    return MOE_OK;
}

void *moe_cuda_stream(const moe_ctx *ctx) {
    return ctx ? ctx->team.stream : NULL;
}
