/* gemm_outer_mma_cuda.cu: grouped product over a ragged sum, bf16, on the tensor cores of any GPU from sm_80.
 * C_g[m, n] (+)= sum over the rows r of group g of A[a_row[r], m] B[b_row[r], n], r ascending; moekit/op.h.
 * Any width, stride and address: what is not made of whole pieces of 16 bytes is loaded number by number. A
 * block has a tile (mma_tile.cuh) of 128 x 128 of one group.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/mma_tile.cuh"

namespace moei {

struct MmaOuter {
    moe_gemm_outer_args p;
    unsigned tiles_m, tiles_n;
};

template <bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) mma_outer_kernel(const __grid_constant__ MmaOuter args) {
    __shared__ __align__(128) unsigned char ring[RING_BYTES];
    const moe_gemm_outer_args &p = args.p;
    const unsigned tile = blockIdx.x / args.tiles_n;
    const int64_t n0 = (int64_t)(blockIdx.x % args.tiles_n) * TILE,
                  m0 = (int64_t)(tile % args.tiles_m) * TILE;
    const int64_t g = tile / args.tiles_m;
    const int64_t begin = p.offset ? p.offset[g] : 0, end = p.offset ? p.offset[g + 1] : p.n_rows;
    const int piece = AcrossSum<ALIGNED>::own_piece() * EIGHT;
    AcrossSum<ALIGNED> a(p.a, p.lda, p.a_row, begin, end, m0 + piece, p.m);
    AcrossSum<ALIGNED> b(p.b, p.ldb, p.b_row, begin, end, n0 + piece, p.n);
    Part acc;
    multiply_tile(acc, a, b, smem_address(ring), end - begin);
    const int64_t column = n0 + own_column(), at = g * p.c_group + column;
    const int columns = (int)max((int64_t)0, min((int64_t)EIGHT, p.n - column));
    if (p.c_wide)
        store_tile(acc, ring, (float *)p.c + at, p.ldc, m0, p.m, columns, p.accumulate, NULL);
    else
        store_tile(acc, ring, (bf16 *)p.c + at, p.ldc, m0, p.m, columns, p.accumulate, NULL);
}

} // namespace moei

using namespace moei;

void moei_cuda_gemm_outer_mma(const moei_team *team, const moe_gemm_outer_args *p) {
    const MmaOuter args = {*p, (unsigned)ceil_div(p->m, TILE), (unsigned)ceil_div(p->n, TILE)};
    const bool aligned = aligned16(p->a) && aligned16(p->b) && p->m % EIGHT == 0 && p->n % EIGHT == 0 &&
                         p->lda % EIGHT == 0 && p->ldb % EIGHT == 0;
    auto *kernel = aligned ? mma_outer_kernel<true> : mma_outer_kernel<false>;
    kernel<<<args.tiles_m * args.tiles_n *(unsigned)p->n_groups, THREADS, 0, stream_of(team)>>>(args);
}
