/* gpu_common.cuh: what the GPU check and the GPU benchmarks share: buffers, random data, device timing.
 * Buffers are poisoned and end in a guard; random numbers are hashes of seed and place.
 * Source: the CUDA runtime's reference.
 */
#ifndef BENCH_GPU_COMMON_CUH
#define BENCH_GPU_COMMON_CUH

extern "C" {
#include "device/device.h"
}

#include "kernel/cuda/cuda_kernel.h"
#include "kernel/kernel_list.h"

#include <algorithm>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <vector>

typedef __nv_bfloat16 bf16;

#define CUDA_OK(call)                                                                                        \
    do {                                                                                                     \
        int error_ = (int)(call);                                                                            \
        if (error_) {                                                                                        \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString((cudaError_t)error_));   \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

__device__ __host__ inline uint32_t mix(uint64_t x) {
    x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
    return (uint32_t)x;
}
/* Nearly normal: the sum of four uniform numbers, scaled to unit variance. */
__device__ inline float random_value(uint64_t seed, uint64_t i) {
    const uint32_t a = mix(seed * 0x9E3779B97F4A7C15ull + i), b = mix(seed * 0xD1B54A32D192ED03ull + i + 77);
    const float sum = (float)(a & 65535) + (float)(a >> 16) + (float)(b & 65535) + (float)(b >> 16);
    return (sum / 65536.f - 2.f) * 1.7320508f;
}
static __global__ void fill_kernel(bf16 *p, int64_t n, uint64_t seed, float scale) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        p[i] = __float2bfloat16(scale * random_value(seed, (uint64_t)i));
}
static __global__ void fill_kernel(float *p, int64_t n, uint64_t seed, float scale) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        p[i] = scale * random_value(seed, (uint64_t)i);
}

/* Device memory with a poisoned guard behind it. Poison (0xFF bytes) is NaN in bf16 and f32. */
template <class T> struct Buffer {
    enum { GUARD = 4096 };
    T *data = NULL;
    int64_t n = 0;
    Buffer() {}
    explicit Buffer(int64_t count) : n(count) {
        CUDA_OK(cudaMalloc(&data, (size_t)(n + GUARD) * sizeof(T)));
        poison();
    }
    Buffer(Buffer &&other) noexcept : data(other.data), n(other.n) { other.data = NULL; }
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data, other.data), std::swap(n, other.n);
        return *this;
    }
    ~Buffer() { cudaFree(data); }
    void poison() { CUDA_OK(cudaMemset(data, 0xFF, (size_t)(n + GUARD) * sizeof(T))); }
    void random(uint64_t seed, float scale) {
        fill_kernel<<<1024, 256>>>(data, n, seed, scale);
        CUDA_OK(cudaGetLastError());
    }
    void put(const std::vector<T> &v) {
        CUDA_OK(cudaMemcpy(data, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get() const {
        std::vector<T> v((size_t)n);
        CUDA_OK(cudaMemcpy(v.data(), data, (size_t)n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
    bool guard_intact() const {
        std::vector<uint8_t> g((size_t)GUARD * sizeof(T));
        CUDA_OK(cudaMemcpy(g.data(), data + n, g.size(), cudaMemcpyDeviceToHost));
        return std::all_of(g.begin(), g.end(), [](uint8_t b) { return b == 0xFF; });
    }
};

struct Timer {
    cudaEvent_t begin, end;
    Timer() {
        CUDA_OK(cudaEventCreate(&begin));
        CUDA_OK(cudaEventCreate(&end));
    }
    void start(cudaStream_t stream = 0) { CUDA_OK(cudaEventRecord(begin, stream)); }
    double stop_ms(cudaStream_t stream = 0) {
        float ms;
        CUDA_OK(cudaEventRecord(end, stream));
        CUDA_OK(cudaEventSynchronize(end));
        CUDA_OK(cudaEventElapsedTime(&ms, begin, end));
        return ms;
    }
};
/* A team whose kernels queue on `stream`. */
inline moei_team team_of(cudaStream_t stream) {
    static void *const encode = moei_cuda_encode();
    moei_team team = {};
    team.stream = stream, team.encode = encode;
    return team;
}
inline double median(std::vector<double> v) {
    if (v.empty()) return 0;
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}
#endif
