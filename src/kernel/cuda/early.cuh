/* early.cuh: kernels that may start before the one ahead of them in the stream has ended (programmatic
 * launches). Before await_earlier, such a kernel reads only what it knows to be older than the kernels ahead,
 * and writes nothing that they may still read; it may prefetch into L2. Every such kernel calls
 * await_earlier, at least in one block, so the next kernel knows that all earlier ones are done. Source: CUDA
 * programming guide, programmatic dependent launch, cooperative launch.
 */
#ifndef MOEI_EARLY_CUH
#define MOEI_EARLY_CUH

#include <cuda_runtime.h>
#include <stdint.h>

namespace moei {

/* The next kernel of the stream may start; all that earlier ones wrote is there. Code for GPUs before Hopper
 * has neither. */
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void await_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void prefetch_line(const void *from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

/* A launch's configuration with the attributes that are asked for. */
struct Launch {
    cudaLaunchAttribute attribute[2];
    cudaLaunchConfig_t config = {};

    Launch(dim3 grid, int threads, int64_t shared, cudaStream_t stream) {
        config.gridDim = grid, config.blockDim = dim3((unsigned)threads);
        config.dynamicSmemBytes = (size_t)shared, config.stream = stream, config.attrs = attribute;
    }
    Launch(const Launch &) = delete;
    cudaLaunchAttributeValue &add(cudaLaunchAttributeID id) {
        cudaLaunchAttribute &next = attribute[config.numAttrs++];
        next = {};
        next.id = id;
        return next.val;
    }
    Launch &early() {
        add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
        return *this;
    }
    /* Of a kernel that is built for any GPU: where its code has the instructions. */
    template <class Kernel> Launch &early_where_built(Kernel *kernel) {
        cudaFuncAttributes about;
        if (cudaFuncGetAttributes(&about, (const void *)kernel) == cudaSuccess && about.ptxVersion >= 90)
            return early();
        return *this;
    }
    template <class... Args> cudaError_t operator()(void (*kernel)(Args...), const Args &...args) {
        return cudaLaunchKernelEx(&config, kernel, args...);
    }
};

template <class... Args>
static cudaError_t launch_early(void (*kernel)(Args...), dim3 grid, int threads, int64_t shared,
                                cudaStream_t stream, const Args &...args) {
    return Launch(grid, threads, shared, stream).early()(kernel, args...);
}

} // namespace moei
#endif
