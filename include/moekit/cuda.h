/* cuda.h: what a CUDA context has beyond the others. No CUDA header is needed: a stream is a cudaStream_t.
 *
 * A context made with moe_ctx_desc.device = MOE_CUDA computes on one GPU (compute capability 8.0 or newer).
 *   - Pointers of matrices, parameters, gradients and of every array of moe_call and moe_routing_view are
 *     device memory (moe_memory_alloc, or the caller's cudaMalloc). Descriptors, moe_stats and moe_param
 *     themselves are the host's, and so are the arrays of moe_draws but for dropout_keep.
 *   - Calls queue on the context's stream and return. Forward and backward of a layer whose routing is the
 *     device's (moe_layer_routes_on_device) neither wait nor allocate and can be captured in a CUDA graph,
 *     as long as forward is not asked for moe_stats: filling them waits, as do moe_layer_routing and
 *     moe_layer_end_step.
 *   - What a kernel finds wrong (a NaN or infinite logit) is told by the next call that looks, at the latest
 *     by moe_ctx_wait; the token concerned was left out as if it were masked.
 *   - A replay (moe_call.replay_expert) goes by other kernels of the router than a Hopper GPU selects with:
 *     its weights are the record's but for their last bits. replay_weight gives it those.
 *   - The layer is served in MOE_F32 and MOE_BF16, the operations of op.h as far as a layer needs them,
 *     others are MOE_ERR_UNSUPPORTED. Custom experts say moe_expert_ops.on_device.
 *   - Kernels are those of isa "sm90" on a Hopper GPU (in MOE_BF16), of "cuda" elsewhere: moe_ctx_isa;
 *     moe_ctx_desc.isa or MOEKIT_ISA lowers them.
 *   - Where there are several GPUs the calling thread's current one (cudaSetDevice) is the context's, which
 *     moe_ctx_create makes it for its own thread; else allocations, layers' calls and moe_ctx_wait say so
 *     (MOE_ERR_STATE).
 */
#ifndef MOEKIT_CUDA_H
#define MOEKIT_CUDA_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The cudaStream_t that later calls queue on, of the context's GPU; NULL: the context's own. The default one
 * is cudaStreamLegacy. They do not wait for what was queued on another. */
MOE_API moe_status moe_cuda_set_stream(moe_ctx *ctx, void *stream);
/* The one in use; NULL for a context on the CPU. */
MOE_API void *moe_cuda_stream(const moe_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
