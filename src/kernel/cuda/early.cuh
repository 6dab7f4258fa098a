/* early.cuh: kernels that may start before the one ahead of them in the stream has ended (programmatic
 * launches). Until await_earlier they read nothing that a kernel may have written; they may ask for it in L2.
 * Source: CUDA programming guide, programmatic dependent launch, cooperative launch.
 */
#ifndef MOEI_EARLY_CUH
#define MOEI_EARLY_CUH

#include <cuda_runtime.h>

namespace moei {

/* The next kernel of the stream may start; all that earlier ones wrote is there. */
__device__ __forceinline__ void let_next_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void await_earlier() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ __forceinline__ void prefetch_line(const void *from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

template <class... Args>
static cudaError_t launch_early(void (*kernel)(Args...), dim3 grid, int threads, int64_t shared,
                                cudaStream_t stream, const Args &...args) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3((unsigned)threads),
    config.dynamicSmemBytes = (size_t)shared;
    config.stream = stream, config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

} // namespace moei
#endif
