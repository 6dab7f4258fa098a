/* gemm_packed_mma_cuda.cu: grouped product of rows in bf16 with packed weights, any GPU from sm_80. C[r, :] =
 * A[a_row[r], :] B_g, then the epilogue; formulas: moekit/op.h. A block has up to TILE rows of one group and
 * a run of panels, which it multiplies one after the other as packed_units.cuh does.
 * For decoding: every TILE rows read their expert's weights once more. Source: packed_units.cuh.
 */
#include "kernel/cuda/act_exact.cuh"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/packed_units.cuh"

namespace moei {

enum { WARPS = 8, THREADS = 32 * WARPS };
/* A table leaves room for two stages. */
template <int CODES> using RowsShared = UnitShared<CODES, WARPS, Way<CODES>::BY_TABLE ? 2 : 3>;

struct PackedRowsCall {
    moe_gemm_rows_args p;
    PackedB b;
    ActRule rule;
    int32_t span, across; /* panels of a block, blocks of a row tile */
    bool whole;
};

/* Units are panels begin .. end - 1 of the tile's rows. */
template <class C, bool GATED> struct RowUnits {
    enum { SHARES = GATED ? WARPS / 2 : WARPS };
    const PackedRowsCall &call;
    RowTile tile;
    int begin, end, rows;
    bool whole;
    const bf16 *row;

    __device__ __forceinline__ RowUnits(const PackedRowsCall &given, const RowTile &own)
        : call(given), tile(own) {
        const int lane_row = (threadIdx.x & 31) >> 2;
        begin = (int)(blockIdx.x % call.across) * call.span, end = min(begin + call.span, call.b.panels);
        rows = (int)min((int64_t)TILE, tile.end - tile.first), whole = call.whole;
        const int64_t r = tile.first + (lane_row < rows ? lane_row : 0);
        row = (const bf16 *)call.p.a + (call.p.a_row ? call.p.a_row[r] : r) * call.p.lda;
    }
    __device__ __forceinline__ PackedUnit open(int turn) const {
        const int panel = begin + turn;
        if (panel >= end) return {0, row, 0};
        return {tile.group * call.b.group_bytes + panel * call.b.panel_bytes, row, rows};
    }
    __device__ __forceinline__ void await() const {}
    __device__ __forceinline__ void start(int) const {}
    __device__ __forceinline__ void stop(int) const {}
    __device__ __forceinline__ void finish(int turn, const UnitParts *part) const {
        const moe_gemm_rows_args &p = call.p;
        const int64_t width = call.b.width;
        for (int i = threadIdx.x; i < rows * PANEL; i += THREADS) {
            const int64_t r = tile.first + i / PANEL, j = (int64_t)(begin + turn) * PANEL + i % PANEL;
            if (j >= width) continue;
            const int64_t bias = tile.group * p.n + j;
            const float z =
                whole_sum<SHARES>(part, i / PANEL, i % PANEL) + (p.bias ? load<bf16>(p.bias, bias) : 0.f);
            if (p.epilogue == MOE_EPI_STORE) {
                store<C>(p.c, r * p.ldc + j, z + (p.accumulate ? load<C>(p.c, r * p.ldc + j) : 0.f));
                continue;
            }
            float up = 0.f;
            if (GATED)
                up = whole_sum<SHARES>(part + SHARES, i / PANEL, i % PANEL) +
                     (p.bias ? load<bf16>(p.bias, bias + width) : 0.f);
            if (p.c) store<bf16>(p.c, r * p.ldc + j, z);
            if (p.c && GATED) store<bf16>(p.c, r * p.ldc + width + j, up);
            store<bf16>(p.h, r * p.ldh + j, act_point(call.rule, z, up).value);
        }
    }
};

template <class C, int CODES, bool GATED>
__global__ void __launch_bounds__(THREADS, 2)
    packed_rows_kernel(const __grid_constant__ PackedRowsCall call) {
    extern __shared__ __align__(16) char raw[];
    RowsShared<CODES> &s = *(RowsShared<CODES> *)raw;
    const RowTile tile = find_row_tile(call.p.offset, call.p.n_groups, call.p.n_rows,
                                       blockIdx.x / (unsigned)call.across, TILE);
    if (tile.group < 0) return;
    s.table.put(call.b.value);
    __syncthreads();
    RowUnits<C, GATED> units(call, tile);
    const Walk<CODES, RowUnits<C, GATED>::SHARES> walk(call.b);
    const Places<CODES> places(s);
    multiply_packed_units(call.b, s, walk, places, units);
}

enum { BLOCKS = 1056 }; /* about; few of them wait, as one that begins finds its rows first */
template <class C, int CODES, bool GATED> static void launch(PackedRowsCall call, cudaStream_t stream) {
    const moe_gemm_rows_args &p = call.p;
    const auto kernel = packed_rows_kernel<C, CODES, GATED>;
    const int bytes = (int)sizeof(RowsShared<CODES>);
    static_assert(sizeof(RowsShared<CODES>) <= 99 * 1024, "what any GPU from sm_80 gives a block");
    const int64_t tiles = row_tiles_most(&p, TILE);
    const int64_t span = ceil_div(call.b.panels * tiles, BLOCKS);
    call.span = (int32_t)(span < call.b.panels ? span : call.b.panels);
    call.across = (int32_t)ceil_div(call.b.panels, call.span);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    /* In one dimension, those of a row tile side by side: the other two of a grid end at 65535. */
    kernel<<<(unsigned)(call.across * tiles), THREADS, bytes, stream>>>(call);
}
template <class C, bool GATED> static void launch_codes(const PackedRowsCall &call, cudaStream_t stream) {
    switch (call.b.codes) {
    case BYTES:
        return launch<C, BYTES, GATED>(call, stream);
    case INTEGERS:
        return launch<C, INTEGERS, GATED>(call, stream);
    case TABLE_EXPONENTS:
        return launch<C, TABLE_EXPONENTS, GATED>(call, stream);
    case TABLE:
        return launch<C, TABLE, GATED>(call, stream);
    }
}

} // namespace moei

void moei_cuda_gemm_packed_mma(const moei_team *team, const moe_gemm_rows_args *args) {
    using namespace moei;
    PackedRowsCall call = {};
    call.p = *args, call.b = packed_b_of(args->b_packed),
    call.rule = act_rule_of(args->act, args->act_numbers);
    call.whole = args->k % 8 == 0 && args->lda % 8 == 0 && aligned16(args->a);
    if (args->b_packed->n_runs == 2) return launch_codes<bf16, true>(call, stream_of(team));
    if (args->c_wide) return launch_codes<float, false>(call, stream_of(team));
    launch_codes<bf16, false>(call, stream_of(team));
}
