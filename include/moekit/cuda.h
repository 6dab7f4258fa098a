/* cuda.h: what is special about a CUDA context. No CUDA header is needed: a stream is a cudaStream_t.
 *
 * A context made with moe_ctx_desc.device = MOE_CUDA computes on one GPU (compute capability 8.0 or newer).
 *   - Memory. Pointers of matrices, parameters, gradients and of every array of moe_call and moe_routing_view
 *     are device memory (moe_memory_alloc, or your own cudaMalloc). Descriptors, moe_stats and moe_param
 *     themselves are in host memory, and so are the arrays of moe_draws except dropout_keep.
 *   - Streams. Calls queue on the context's stream and return. If the device does the routing
 *     (moe_layer_routes_on_device), forward and backward neither wait nor allocate and can be captured in a
 *     CUDA graph, as long as forward is not asked for moe_stats. Filling these waits, and so do
 *     moe_layer_routing and moe_layer_end_step.
 *   - Errors. What a kernel finds wrong (a NaN or infinite logit) is reported by the next call that looks, at
 *     the latest by moe_ctx_wait. The token concerned was left out as if it were masked.
 *   - Replay. On Hopper a replay (moe_call.replay_expert) runs other router kernels than the selection did,
 *     so its weights may differ from the recorded ones in the last bits. Pass replay_weight to have those.
 *   - Types. The layer runs in MOE_F32 and MOE_BF16, and so do those operations of op.h that a layer needs;
 *     the others are MOE_ERR_UNSUPPORTED. Custom experts must set moe_expert_ops.on_device.
 *   - Kernels are those of isa "sm90" on a Hopper GPU (for MOE_BF16) and of "cuda" elsewhere: moe_ctx_isa.
 *     moe_ctx_desc.isa or MOEKIT_ISA can choose the lower one.
 *   - Several GPUs. The context's GPU must be the calling thread's current one (cudaSetDevice).
 *     moe_ctx_create makes it so for its own thread. Otherwise allocations, calls of layers and moe_ctx_wait
 *     are MOE_ERR_STATE.
 */
#ifndef MOEKIT_CUDA_H
#define MOEKIT_CUDA_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sets the cudaStream_t, of the context's GPU, that later calls queue on; NULL: the context's own. The
 * default stream is cudaStreamLegacy. Later calls do not wait for what was queued on another stream. */
MOE_API moe_status moe_cuda_set_stream(moe_ctx *ctx, void *stream);
/* The stream in use; NULL for a context on the CPU. */
MOE_API void *moe_cuda_stream(const moe_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
