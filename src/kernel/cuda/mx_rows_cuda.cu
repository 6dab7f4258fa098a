/* mx_rows_cuda.cu: rows of numbers to and from 8 bits, for any NVIDIA GPU from sm_80.
 * values[rows, n] <-> code[rows, n], scale[rows, blocks of 32 columns]: four threads a block, 8 numbers each.
 * Source and format: kernel/mxfp8.h.
 */
#include "kernel/cuda/both.cuh"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { MX_THREADS = 256, MX_EACH = 8, MX_LANES = MOEI_MX_BLOCK / MX_EACH };

/* The numbers of a thread: `n` from element `at`. */
struct MxPart {
    int64_t block, at;
    int n;
};

__device__ __forceinline__ MxPart part_of(const moei_mx_rows_args &p) {
    const int64_t i = (int64_t)blockIdx.x * MX_THREADS + threadIdx.x, blocks = moei_mx_blocks(p.n);
    const int64_t block = i / MX_LANES, r = block / blocks;
    const int64_t j = block % blocks * MOEI_MX_BLOCK + i % MX_LANES * MX_EACH, left = p.n - j;
    const int n = r >= p.rows || left <= 0 ? 0 : left < MX_EACH ? (int)left : MX_EACH;
    return {block, r * p.n + j, n};
}

/* WHOLE: n is a multiple of 8, so that a thread's numbers are read and written as one. */
template <class T, bool WHOLE>
__global__ void __launch_bounds__(MX_THREADS) mx_save_kernel(const moei_mx_rows_args p) {
    const MxPart part = part_of(p);
    alignas(16) T raw[MX_EACH];
    float v[MX_EACH];
    alignas(8) uint8_t code[MX_EACH];
    int32_t most = 0;
    if (WHOLE && part.n > 0)
        for (int i = 0; i < (int)sizeof raw / 16; ++i)
            ((int4 *)raw)[i] = ((const int4 *)((const T *)p.values + part.at))[i];
#pragma unroll
    for (int i = 0; i < MX_EACH; ++i) {
        v[i] = i >= part.n ? 0.f : WHOLE ? load<T>(raw, i) : load<T>(p.values, part.at + i);
        most = max(most, moei_float_bits(v[i]) & 0x7fffffff);
    }
    for (int lane = 1; lane < MX_LANES; lane *= 2) most = max(most, __shfl_xor_sync(~0u, most, lane));
    if (part.n == 0) return;
    const int32_t scale = moei_mx_scale(most);
    const float factor = moei_mx_over_power(scale);
#pragma unroll
    for (int i = 0; i < MX_EACH; ++i) code[i] = moei_e4m3_round(v[i] * factor);
    if (threadIdx.x % MX_LANES == 0) p.scale[part.block] = (uint8_t)scale;
    if (WHOLE)
        *(uint2 *)(p.code + part.at) = *(const uint2 *)code;
    else
        for (int i = 0; i < part.n; ++i) p.code[part.at + i] = code[i];
}

template <class T, bool WHOLE>
__global__ void __launch_bounds__(MX_THREADS) mx_restore_kernel(const moei_mx_rows_args p) {
    const MxPart part = part_of(p);
    if (part.n == 0) return;
    const float power = moei_mx_power(p.scale[part.block]);
    alignas(8) uint8_t code[MX_EACH];
    alignas(16) T raw[MX_EACH];
    if (WHOLE) *(uint2 *)code = *(const uint2 *)(p.code + part.at);
#pragma unroll
    for (int i = 0; i < MX_EACH; ++i)
        if (i < part.n) {
            const float value = moei_e4m3_value(WHOLE ? code[i] : p.code[part.at + i]) * power;
            if (WHOLE)
                store<T>(raw, i, value);
            else
                store<T>(p.values, part.at + i, value);
        }
    if (WHOLE)
        for (int i = 0; i < (int)sizeof raw / 16; ++i)
            ((int4 *)((T *)p.values + part.at))[i] = ((const int4 *)raw)[i];
}

template <class T, bool WHOLE>
static void mx_launch(const moei_team *team, const moei_mx_rows_args *args, bool save) {
    const int64_t threads = args->rows * moei_mx_blocks(args->n) * MX_LANES;
    const unsigned blocks = (unsigned)ceil_div(threads, MX_THREADS);
    if (blocks == 0) return;
    if (save)
        mx_save_kernel<T, WHOLE><<<blocks, MX_THREADS, 0, stream_of(team)>>>(*args);
    else
        mx_restore_kernel<T, WHOLE><<<blocks, MX_THREADS, 0, stream_of(team)>>>(*args);
}

/* Numbers of the layer and codes begin at 16 bytes at least. */
template <class T> static void mx_rows(const moei_team *team, const moei_mx_rows_args *args, bool save) {
    const uintptr_t at = (uintptr_t)args->values | (uintptr_t)args->code;
    if (args->n % MX_EACH == 0 && at % 16 == 0)
        mx_launch<T, true>(team, args, save);
    else
        mx_launch<T, false>(team, args, save);
}

static void mx_rows_of(const moei_team *team, const moei_mx_rows_args *args, bool save) {
    if (args->dtype == MOE_F32)
        mx_rows<float>(team, args, save);
    else
        mx_rows<bf16>(team, args, save);
}

} // namespace moei

extern "C" void moei_mx_save__cuda(const moei_team *team, const moei_mx_rows_args *args) {
    moei::mx_rows_of(team, args, true);
}

extern "C" void moei_mx_restore__cuda(const moei_team *team, const moei_mx_rows_args *args) {
    moei::mx_rows_of(team, args, false);
}
