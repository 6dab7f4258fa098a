/* act_pass_cuda.cu: activation, dropout and routing weight of each row, for any NVIDIA GPU from sm_80.
 * Z[R, n or 2n] <-> A[R, n]; formulas: kernel/stage.h. A warp a row, four numbers a lane at a time: one draw.
 * The activations are those of kernel/act.h, in f64 as on the CPU.
 */
#include "kernel/cuda/both.cuh"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { THREADS = 128 };

/* Factors of numbers j .. j+3 of a row's slot. */
__device__ __forceinline__ void dropout_factors(const moei_act_pass_args &p, int64_t r, int64_t j,
                                                double (&factor)[4]) {
    const int64_t slot = p.row_slot ? p.row_slot[r] : r;
    const double grow = 1 / (1 - p.dropout);
    uint32_t word[4] = {0};
    for (int i = 0; i < 4; ++i) factor[i] = 1;
    if (p.dropout <= 0 || slot < 0) return;
    if (!p.dropout_keep)
        moei_random_words(p.seed, MOE_DRAW_DROPOUT, p.layer, p.step,
                          (uint64_t)slot * MOEI_DRAWS_OF_SLOT + (uint64_t)j / 4, word);
    for (int i = 0; i < 4 && j + i < p.n; ++i) {
        const bool keep =
            p.dropout_keep ? p.dropout_keep[slot * p.n + j + i] != 0 : moei_uniform(word[i]) >= p.dropout;
        factor[i] = keep ? grow : 0;
    }
}

template <class T, bool GRAD>
__global__ void __launch_bounds__(THREADS) act_pass_kernel(const moei_act_pass_args p) {
    const int64_t r = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (r >= p.n_rows) return;
    const bool pairs = p.rule.gated && p.rule.interleaved;
    const int64_t z = r * (p.rule.gated ? 2 * p.n : p.n), a = r * p.n;
    const double weight = GRAD && p.row_weight ? (double)((const float *)p.row_weight)[r] : 1;
    double dweight = 0, factor[4];
    for (int64_t j0 = (threadIdx.x & 31) * 4; j0 < p.n; j0 += 128) {
        dropout_factors(p, r, j0, factor);
        for (int i = 0; i < 4 && j0 + i < p.n; ++i) {
            const int64_t j = j0 + i, gate = pairs ? 2 * j : j, up = pairs ? 2 * j + 1 : p.n + j;
            const moei_act_point point = moei_act_rule_at(&p.rule, (double)load<T>(p.z, z + gate),
                                                          p.rule.gated ? (double)load<T>(p.z, z + up) : 0);
            const double value = point.value * factor[i];
            if (!GRAD) {
                store<T>(p.a, a + j, (float)value);
                continue;
            }
            const double da = (double)load<T>(p.a, a + j), through = weight * factor[i] * da;
            dweight += da * value;
            store<T>(p.z, z + gate, (float)(through * point.d_gate));
            if (p.rule.gated) store<T>(p.z, z + up, (float)(through * point.d_up));
            store<T>(p.a, a + j, (float)(weight * value));
        }
    }
    if (!GRAD || !p.drow_weight) return;
    dweight = warp_sum(dweight);
    if ((threadIdx.x & 31) == 0) ((float *)p.drow_weight)[r] = (float)dweight;
}

template <bool GRAD> static void launch(const moei_team *team, const moei_act_pass_args *args) {
    const unsigned blocks = (unsigned)ceil_div(args->n_rows * 32, THREADS);
    if (blocks == 0) return;
    if (args->dtype == MOE_F32)
        act_pass_kernel<float, GRAD><<<blocks, THREADS, 0, stream_of(team)>>>(*args);
    else
        act_pass_kernel<bf16, GRAD><<<blocks, THREADS, 0, stream_of(team)>>>(*args);
}

} // namespace moei

extern "C" void moei_act_pass__cuda(const moei_team *team, const moei_act_pass_args *args) {
    moei::launch<false>(team, args);
}

extern "C" void moei_act_pass_grad__cuda(const moei_team *team, const moei_act_pass_args *args) {
    moei::launch<true>(team, args);
}
