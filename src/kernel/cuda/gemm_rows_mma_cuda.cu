/* gemm_rows_mma_cuda.cu: grouped product over ragged rows, bf16, on the tensor cores of any GPU from sm_80.
 * C[r, :] = A[a_row[r], :] B_g, then the epilogue; formulas: moekit/op.h. Any width, stride and address: what
 * is not made of whole pieces of 16 bytes is loaded number by number. A block has a tile (mma_tile.cuh) of
 * 128 rows of one group, and of B 128 columns; of a gated ACT, two times 32 gates and the 32 ups that go with
 * them.
 */
#include "kernel/cuda/act_fast.cuh"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/mma_tile.cuh"

namespace moei {

struct MmaRows {
    moe_gemm_rows_args p;
    FastAct act;
    bool gated, two_halves; /* two_halves: the tile has gates and ups */
    unsigned column_tiles;
};

/* B column of a column of the tile, and where its half ends. */
struct Column {
    int64_t at, end;
};
__device__ __forceinline__ Column column_of(const MmaRows &args, int c) {
    const int64_t n = args.p.n, tile = blockIdx.x % args.column_tiles;
    if (!args.two_halves) return {tile * TILE + c, n};
    const int64_t half = c / (WARP_TILE / 2) % 2,
                  j = tile * (TILE / 2) + c / WARP_TILE * (WARP_TILE / 2) + c % (WARP_TILE / 2);
    return {half * (n / 2) + j, (half + 1) * (n / 2)};
}

/* How many of a lane's eight columns exist. */
__device__ __forceinline__ int count_of(const Column &column) {
    return (int)max((int64_t)0, min((int64_t)EIGHT, column.end - column.at));
}

template <class C>
__device__ __forceinline__ void mma_store(const MmaRows &args, const RowTile &tile, const Part &acc,
                                          unsigned char *ring) {
    const moe_gemm_rows_args &p = args.p;
    const Column own = column_of(args, own_column());
    const bf16 *bias = p.bias ? (const bf16 *)p.bias + tile.group * p.n + own.at : NULL;
    store_tile(acc, ring, (C *)p.c + own.at, p.ldc, tile.first, tile.end, count_of(own), p.accumulate, bias);
}

/* Z = product + bias, kept where asked; H = act(Z). Gated: four lanes a row, gates and their ups. */
template <bool GATED, bool COMMON>
__device__ __forceinline__ void mma_act(const MmaRows &args, const RowTile &tile, const Part &acc,
                                        unsigned char *ring) {
    enum { PER_ROW = GATED ? 4 : 8 };
    const moe_gemm_rows_args &p = args.p;
    const int unit = threadIdx.x % PER_ROW, c = threadIdx.x / 32 % 2 * WARP_TILE + unit * EIGHT;
    const Column own = column_of(args, c);
    const int n = count_of(own);
    const int64_t other = p.n / 2;
    const bf16 *bias = (const bf16 *)p.bias + tile.group * p.n + own.at;
    const Eight none = {}, gate_bias = p.bias ? read_eight(bias, n) : none,
                up_bias = GATED && p.bias ? read_eight(bias + other, n) : none;
    each_row<PER_ROW>(acc, ring, [&](int row, const Slab &slab, int at) {
        const int64_t r = tile.first + row;
        if (r >= tile.end) return;
        Eight gate = slab.take(at, unit), up = GATED ? slab.take(at, unit + 4) : none, h;
#pragma unroll
        for (int i = 0; i < EIGHT; ++i) {
            gate.v[i] += gate_bias.v[i], up.v[i] += up_bias.v[i];
            h.v[i] = fast_point<GATED, COMMON>(args.act, gate.v[i], up.v[i]).value;
        }
        bf16 *z = (bf16 *)p.c + r * p.ldc + own.at;
        if (p.c) write_eight(z, n, gate);
        if (p.c && GATED) write_eight(z + other, n, up);
        write_eight((bf16 *)p.h + r * p.ldh + own.at, n, h);
    });
}

/* The product is dA': dZ = w act'(Z) dA', wA = w act(Z), and 64 columns' share of <dA', act(Z)>. */
template <bool GATED, bool COMMON>
__device__ __forceinline__ void mma_act_grad(const MmaRows &args, const RowTile &tile, const Part &acc,
                                             unsigned char *ring) {
    static_assert((int)MOEI_DWEIGHT_COLS == (int)WARP_TILE, "a warp's row is one part of dweight");
    const moe_gemm_rows_args &p = args.p;
    const Column own = column_of(args, own_column());
    const int n = count_of(own);
    const int64_t part = own.at / MOEI_DWEIGHT_COLS, parts = ceil_div(p.n, MOEI_DWEIGHT_COLS);
    each_row<8>(acc, ring, [&](int row, const Slab &slab, int at) {
        const int64_t r = tile.first + row;
        const bool live = r < tile.end && n > 0;
        float dot = 0.f;
        if (live) {
            const float w = p.row_weight ? ((const float *)p.row_weight)[r] : 1.f;
            const Eight da = slab.take(at, threadIdx.x & 7);
            const bf16 *z = (const bf16 *)p.z + r * p.ldz + own.at;
            Eight gate = read_eight(z, n), up = GATED ? read_eight(z + p.n, n) : Eight{}, wa;
#pragma unroll
            for (int i = 0; i < EIGHT; ++i) {
                const ActPoint point = fast_point<GATED, COMMON>(args.act, gate.v[i], up.v[i]);
                if (i < n) dot = fmaf(da.v[i], point.value, dot);
                gate.v[i] = w * da.v[i] * point.d_gate, up.v[i] = w * da.v[i] * point.d_up;
                wa.v[i] = w * point.value;
            }
            bf16 *dz = (bf16 *)p.dz + r * p.ldz + own.at;
            write_eight(dz, n, gate);
            if (GATED) write_eight(dz + p.n, n, up);
            write_eight((bf16 *)p.wa + r * p.ldwa + own.at, n, wa);
        }
        if (!p.dweight) return;
#pragma unroll
        for (int d = 1; d < 8; d *= 2) dot += __shfl_xor_sync(~0u, dot, d);
        if (live && (threadIdx.x & 7) == 0) ((float *)p.dweight_part)[r * parts + part] = dot;
    });
}

__device__ __forceinline__ void finish(const MmaRows &args, const RowTile &tile, const Part &acc,
                                       unsigned char *ring) {
    if (args.p.epilogue == MOE_EPI_STORE)
        return args.p.c_wide ? mma_store<float>(args, tile, acc, ring)
                             : mma_store<bf16>(args, tile, acc, ring);
    const bool grad = args.p.epilogue == MOE_EPI_ACT_GRAD;
    by_path(args.act, [&](auto common) {
        constexpr bool COMMON = common.value;
        if (grad)
            args.gated ? mma_act_grad<true, COMMON>(args, tile, acc, ring)
                       : mma_act_grad<false, COMMON>(args, tile, acc, ring);
        else
            args.gated ? mma_act<true, COMMON>(args, tile, acc, ring)
                       : mma_act<false, COMMON>(args, tile, acc, ring);
    });
}

template <bool B_TRANS, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) mma_rows_kernel(const __grid_constant__ MmaRows args) {
    __shared__ __align__(128) unsigned char ring[RING_BYTES];
    const moe_gemm_rows_args &p = args.p;
    const RowTile tile = find_row_tile(p.offset, p.n_groups, p.n_rows, blockIdx.x / args.column_tiles, TILE);
    if (tile.group < 0) return;
    const bf16 *group = (const bf16 *)p.b + tile.group * p.b_group;
    AlongSum<ALIGNED> a(p.k, [&](int i) {
        const int64_t r = min(tile.first + i, tile.end - 1);
        return (const bf16 *)p.a + (p.a_row ? p.a_row[r] : r) * p.lda;
    });
    Part acc;
    if constexpr (B_TRANS) {
        AlongSum<ALIGNED> b(p.k, [&](int c) {
            const Column column = column_of(args, c);
            return group + min(column.at, column.end - 1) * p.ldb;
        });
        multiply_tile(acc, a, b, smem_address(ring), p.k);
    } else {
        const Column column = column_of(args, AcrossSum<ALIGNED>::own_piece() * EIGHT);
        AcrossSum<ALIGNED> b(group, p.ldb, NULL, 0, p.k, column.at, column.end);
        multiply_tile(acc, a, b, smem_address(ring), p.k);
    }
    finish(args, tile, acc, ring);
}

/* Whether A and B are made of whole pieces that begin at 16 bytes. */
static bool pieces_are_whole(const MmaRows &args) {
    const moe_gemm_rows_args &p = args.p;
    return aligned16(p.a) && aligned16(p.b) && p.k % EIGHT == 0 && p.n % (args.two_halves ? 16 : 8) == 0 &&
           p.lda % EIGHT == 0 && p.ldb % EIGHT == 0 && (p.n_groups == 1 || p.b_group % EIGHT == 0);
}

} // namespace moei

using namespace moei;

void moei_cuda_gemm_rows_mma(const moei_team *team, const moe_gemm_rows_args *p) {
    MmaRows args = {*p, fast_act_of(p->act, p->act_numbers), moe_act_gated(p->act), false, 0};
    args.two_halves = p->epilogue == MOE_EPI_ACT && args.gated;
    args.column_tiles =
        (unsigned)ceil_div(args.two_halves ? p->n / 2 : p->n, args.two_halves ? TILE / 2 : TILE);
    const int64_t row_tiles = row_tiles_most(p, TILE);
    const bool aligned = pieces_are_whole(args);
    auto *kernel = p->b_trans ? aligned ? mma_rows_kernel<true, true> : mma_rows_kernel<true, false>
                   : aligned ? mma_rows_kernel<false, true>
                              : mma_rows_kernel<false, false>;
    /* In one dimension, the column tiles of a row tile side by side: they share its A in L2. */
    kernel<<<(unsigned)(row_tiles * args.column_tiles), THREADS, 0, stream_of(team)>>>(args);
    if (p->epilogue == MOE_EPI_ACT_GRAD && p->dweight)
        moei_cuda_sum_dweight(team, p, ceil_div(p->n, MOEI_DWEIGHT_COLS));
}
