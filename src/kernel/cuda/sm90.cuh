/* sm90.cuh: the Hopper instructions the kernels are made of, one function each (mma.cuh has older ones).
 * Shared-memory addresses are 32-bit; a cluster is a pair of blocks.
 * Source: PTX ISA 8.x, sections mbarrier, cp.async.bulk.tensor, wgmma.
 */
#ifndef MOEI_SM90_CUH
#define MOEI_SM90_CUH

#include "kernel/cuda/mma.cuh"

#include <cuda.h>

namespace moei {

/* Barriers with a phase. A fresh one is in phase 0; waiting for parity 1 on it passes at once. */
__device__ __forceinline__ void mbar_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void mbar_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbar_arrive_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* Arrives at the barrier of the same address in block `rank` of the cluster. Without a wider scope, which
 * would drain this warp's stores to memory first: what it announces is that tensor cores have finished
 * reading. */
__device__ __forceinline__ void mbar_arrive_at(uint32_t bar, uint32_t rank) {
    asm volatile("{\n .reg .b32 remote;\n"
                 " mapa.shared::cluster.u32 remote, %0, %1;\n"
                 " mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(bar),
                 "r"(rank)
                 : "memory");
}
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n .reg .pred done;\n"
                 "again:\n"
                 " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 " @done bra.uni over;\n"
                 " bra.uni again;\n"
                 "over:\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/* The same for what other blocks of the cluster have sent here. */
__device__ __forceinline__ void mbar_wait_sent(uint32_t bar, uint32_t parity) {
    asm volatile("{\n .reg .pred done;\n"
                 "again:\n"
                 " mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 " @done bra.uni over;\n"
                 " bra.uni again;\n"
                 "over:\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}
/* The same in two halves. */
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/* The float at the same shared-memory address in block `rank` of the cluster. */
__device__ __forceinline__ float load_of_rank(uint32_t address, uint32_t rank) {
    float v;
    asm volatile("{\n .reg .b32 remote;\n"
                 " mapa.shared::cluster.u32 remote, %1, %2;\n"
                 " ld.shared::cluster.f32 %0, [remote];\n}"
                 : "=f"(v)
                 : "r"(address), "r"(rank)
                 : "memory");
    return v;
}
/* A float to the same shared-memory address in block `rank` of the cluster; a barrier there counts its 4
 * bytes.
 */
__device__ __forceinline__ void send_to_rank(uint32_t address, float v, uint32_t bar, uint32_t rank) {
    asm volatile(
        "{\n .reg .b32 there, counts;\n"
        " mapa.shared::cluster.u32 there, %0, %3;\n"
        " mapa.shared::cluster.u32 counts, %2, %3;\n"
        " st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %1, [counts];\n}" ::"r"(address),
        "r"(__float_as_uint(v)), "r"(bar), "r"(rank)
        : "memory");
}
/* The same variable of block `rank` of the cluster. */
template <class T> __device__ __forceinline__ T *at_rank(T *variable, uint32_t rank) {
    uint64_t of_rank;
    asm("mapa.u64 %0, %1, %2;" : "=l"(of_rank) : "l"(variable), "r"(rank));
    return (T *)of_rank;
}
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Ordinary writes to shared memory before this are seen by wgmma and the copy engine after it. */
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* A word that blocks count in: what they wrote before they did is there afterwards. */
__device__ __forceinline__ void count_release(uint32_t *word) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t *from) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

/* Policy of what L2 need not keep: stored once, read by a later kernel when it is long gone. */
__device__ __forceinline__ uint64_t pass_through_l2() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
/* Arrives at a barrier once all copies of this thread so far have landed. */
__device__ __forceinline__ void cp_async_arrive(uint32_t bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y)
                 : "memory");
}
/* To the same address in both blocks of the pair; each block's own barrier counts the bytes. */
__device__ __forceinline__ void tma_load_pair(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x,
                                              int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "h"((uint16_t)3)
                 : "memory");
}

/* Brings a map, so that the first copy need not await it. */
__device__ __forceinline__ void prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* A box: columns from x on, rows from y on, of matrix z. */
__device__ __forceinline__ void tma_load_box(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y,
                                             int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* Ragged maps (tensor_map.cuh): row `row` of a group that ends at `row_end`; rows past the end read as zero
 * and are not written. */
enum { RAGGED_ROWS = 1 << 30 };
__device__ __forceinline__ void tma_load_pair_ragged(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                                     int x, int row, int row_end) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(RAGGED_ROWS - (row_end - row)), "r"(row_end),
                 "r"((int)RAGGED_ROWS), "h"((uint16_t)3)
                 : "memory");
}
__device__ __forceinline__ void tma_load_ragged_box(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x,
                                                    int row, int row_end) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(RAGGED_ROWS - (row_end - row)), "r"(row_end),
                 "r"((int)RAGGED_ROWS)
                 : "memory");
}
__device__ __forceinline__ void tma_load_ragged(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x,
                                                int half, int row, int row_end) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(half), "r"(RAGGED_ROWS - (row_end - row)), "r"(row_end),
                 "r"((int)RAGGED_ROWS)
                 : "memory");
}
/* From shared memory to column x of half `half`, or added to what is there. */
__device__ __forceinline__ void tma_store_ragged(const CUtensorMap *map, uint32_t src, int x, int half,
                                                 int row, int row_end) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group.L2::cache_hint"
                 " [%0, {%2, %3, %4, %5, %6}], [%1], %7;" ::"l"(map),
                 "r"(src), "r"(x), "r"(half), "r"(RAGGED_ROWS - (row_end - row)), "r"(row_end),
                 "r"((int)RAGGED_ROWS), "l"(pass_through_l2())
                 : "memory");
}
__device__ __forceinline__ void tma_add_ragged(const CUtensorMap *map, uint32_t src, int x, int half, int row,
                                               int row_end) {
    asm volatile("cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.bulk_group"
                 " [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
                 "r"(src), "r"(x), "r"(half), "r"(RAGGED_ROWS - (row_end - row)), "r"(row_end),
                 "r"((int)RAGGED_ROWS)
                 : "memory");
}
__device__ __forceinline__ void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* Until all but the last PENDING stores of this thread have read their shared memory. */
template <int PENDING> __device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

template <int REGS> __device__ __forceinline__ void registers_raise() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGS));
}
template <int REGS> __device__ __forceinline__ void registers_lower() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGS));
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* A matrix of 128-byte rows with the 128-byte swizzle.
 *   K-major:  a row is 64 values of k; 8-row groups are 1024 bytes apart; k + 16 is 32 bytes on.
 *   MN-major: a row is 64 values of m or n for one k; blocks of 64 are `block` bytes apart (64 rows of k);
 *             k + 16 is 2048 bytes on. */
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t block) {
    const uint64_t swizzle_128 = 1ull << 62;
    return swizzle_128 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(block >> 4) << 16 |
           (address & 0x3FFFF) >> 4;
}
template <bool MN_MAJOR> __device__ __forceinline__ constexpr uint64_t descriptor_step16() {
    return MN_MAJOR ? 2048 >> 4 : 32 >> 4;
}

/* 8x8 matrices from registers to shared memory; lane l gives the address of row l%8 of matrix l/8. */
__device__ __forceinline__ void stmatrix(uint32_t dst, const uint32_t (&v)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(v[0]),
                 "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}
__device__ __forceinline__ void stmatrix_transposed(uint32_t dst, const uint32_t (&v)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(dst),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}
__device__ __forceinline__ void shared_store4(uint32_t dst, float a) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(dst), "f"(a) : "memory");
}

} // namespace moei
#endif
