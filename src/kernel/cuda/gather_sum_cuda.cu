/* gather_sum_cuda.cu: out[t] (+)= sum_k weight[t,k] * rows[row_of[t,k]], f32 sum, k ascending, for any NVIDIA
 * GPU from sm_80. For bf16 in 16-byte pieces, a thread has eight columns of one token and its K loads in
 * flight together; otherwise it has one column. Source: SonicMoE (Guo et al. 2025), aggregation by gathering,
 * not scattering.
 */
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { THREADS = 256 };

/* A thread has one column of one token. */
template <class T> __global__ void gather_sum_kernel(const moe_gather_sum_args p) {
    const int64_t t = blockIdx.x, j = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (j >= p.n) return;
    float sum = p.accumulate ? load<T>(p.out, t * p.ld_out + j) : 0.f;
    for (int64_t slot = t * p.top_k; slot < (t + 1) * p.top_k; ++slot) {
        const int32_t r = __ldg(p.row_of + slot);
        if (r < 0) continue;
        const float w = p.weight ? __ldg((const float *)p.weight + slot) : 1.f;
        sum = fmaf(w, load<T>(p.rows, r * p.ld_rows + j), sum);
    }
    store<T>(p.out, t * p.ld_out + j, sum);
}

__device__ __forceinline__ void add_scaled(float (&sum)[8], uint4 v, float w) {
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum[2 * i] = fmaf(w, bf16_low(pair[i]), sum[2 * i]);
        sum[2 * i + 1] = fmaf(w, bf16_high(pair[i]), sum[2 * i + 1]);
    }
}

/* K rows at a time; k0 walks over top_k in steps of K. */
template <int K> __global__ void gather_sum8_kernel(const moe_gather_sum_args p) {
    const int chunks = (int)(p.n / 8);
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x, token = index / chunks;
    if (token >= p.n_tokens) return;
    const int64_t column = (index - token * chunks) * 8;
    const uint16_t *rows = (const uint16_t *)p.rows + column;
    float sum[8] = {0};
    uint4 *out = (uint4 *)((uint16_t *)p.out + token * p.ld_out + column);
    if (p.accumulate) add_scaled(sum, *out, 1);
    for (int k0 = 0; k0 < p.top_k; k0 += K) {
        uint4 v[K];
        float w[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int64_t slot = token * p.top_k + k0 + k;
            const int row = k0 + k < p.top_k ? __ldg(p.row_of + slot) : -1;
            w[k] = p.weight && row >= 0 ? __ldg((const float *)p.weight + slot) : 1.f;
            v[k] = row >= 0 ? __ldcs((const uint4 *)(rows + row * p.ld_rows)) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) add_scaled(sum, v[k], w[k]);
    }
    *out = make_uint4(bf16_pack(sum[0], sum[1]), bf16_pack(sum[2], sum[3]), bf16_pack(sum[4], sum[5]),
                      bf16_pack(sum[6], sum[7]));
}

static bool in_pieces(const moe_gather_sum_args *a) {
    return a->dtype == MOE_BF16 && a->n % 8 == 0 && a->ld_rows % 8 == 0 && a->ld_out % 8 == 0 &&
           aligned16(a->rows) && aligned16(a->out);
}

} // namespace moei

extern "C" void moei_gather_sum__cuda(const moei_team *team, const moe_gather_sum_args *args) {
    using namespace moei;
    const cudaStream_t stream = stream_of(team);
    if (args->n_tokens == 0 || args->n == 0) return;
    if (in_pieces(args)) {
        const unsigned blocks = (unsigned)ceil_div(args->n_tokens * (args->n / 8), THREADS);
        auto *kernel = args->top_k <= 2   ? gather_sum8_kernel<2>
                       : args->top_k <= 4 ? gather_sum8_kernel<4>
                                          : gather_sum8_kernel<8>;
        kernel<<<blocks, THREADS, 0, stream>>>(*args);
        return;
    }
    auto *kernel = args->dtype == MOE_F32 ? gather_sum_kernel<float> : gather_sum_kernel<bf16>;
    kernel<<<dim3((unsigned)args->n_tokens, (unsigned)ceil_div(args->n, THREADS)), THREADS, 0, stream>>>(
        *args);
}
