/* check.cuh: what the parts of check_moe share: its count of checks, distances, the grouped products it asks
 * for, and a product by plain CUDA-core loops in f32. args as of op.h, in device memory.
 * Source: moekit/op.h.
 */
#ifndef BENCH_GPU_CHECK_CUH
#define BENCH_GPU_CHECK_CUH

#include "gpu_common.cuh"

inline int n_failed, n_checked;
inline uint64_t seed;
inline moei_team team;
inline bool portable; /* ISA=cuda: the kernels of every GPU */

/* The parts: the grouped products of the first `n_cases` shapes, and what routes, sums and serves tokens. */
void check_products(size_t n_cases);
void check_tokens();

/* An activation and its numbers. */
struct Act {
    moe_act act;
    moe_act_numbers numbers;
};
inline const Act swiglu = {MOE_ACT_SWIGLU, {}}, gelu = {MOE_ACT_GELU, {}}, relu2 = {MOE_ACT_RELU2, {}};
inline const Act clamped = {
    MOE_ACT_SWIGLU, {1.702, 1.5, 1}
};

inline void verdict(const char *what, double error, double limit, bool guards) {
    ++n_checked;
    const bool good = error <= limit && guards; /* NaN fails */
    if (!good) ++n_failed;
    if (!good || getenv("VERBOSE"))
        printf("%s %-64s error %.2e limit %.0e%s\n", good ? "ok  " : "FAIL", what, error, limit,
               guards ? "" : " GUARD OVERWRITTEN");
}
/* ||got - want|| / ||want||; NaN anywhere is NaN. */
template <class T> double distance(const std::vector<T> &got, const std::vector<double> &want) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        const double d = (double)(float)got[i] - want[i];
        diff += d * d, norm += want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

inline void gemm_rows(const moe_gemm_rows_args &args, moei_schedule schedule) {
    if (portable)
        moei_gemm_rows__cuda(&team, &args);
    else
        CUDA_OK(moei_cuda_gemm_rows(&team, &args, schedule));
    CUDA_OK(cudaDeviceSynchronize());
}
inline void gemm_outer(const moe_gemm_outer_args &args) {
    if (portable)
        moei_gemm_outer__cuda(&team, &args);
    else
        CUDA_OK(moei_cuda_gemm_outer(&team, &args));
    CUDA_OK(cudaDeviceSynchronize());
}

static __global__ void product_ref(const bf16 *a, int64_t lda, const int *a_row, const bf16 *b, bool trans,
                                   const bf16 *bias, const int64_t *offset, int groups, int64_t n, int64_t k,
                                   float *out) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, r = i / n, j = i % n;
    if (r >= offset[groups]) return;
    int g = 0;
    while (r >= offset[g + 1]) ++g;
    const bf16 *row = a + (a_row ? a_row[r] : r) * lda, *w = b + g * n * k;
    float sum = 0;
    for (int64_t x = 0; x < k; ++x)
        sum += __bfloat162float(row[x]) * __bfloat162float(trans ? w[j * k + x] : w[x * n + j]);
    out[i] = sum + (bias ? __bfloat162float(bias[g * n + j]) : 0.f);
}
#endif
