/* few_slices.cuh: how the blocks of Hopper's kernels for few tokens (decode_sm90.cu) share their work: who
 * has which columns, whose weights come when, and where sums meet. A slice is 32 columns of a product with up
 * to 16 tokens; two blocks share its sum, and each gets 16 of the columns. In a block one warp has the
 * weights brought, boxes of 128 x 32, eight multiply them as they come, one finishes: it adds up the parts of
 * 16 columns, always in one order, so bits do not change from run to run. Multiprocessors read at rates of
 * their own, so slices are drawn by a counter, and few boxes are on their way: more of them wait for each
 * other. Source: FlashInfer's two kernels for small batches; docs/kernels-cuda-log.md for what was tried.
 */
#ifndef MOEI_FEW_SLICES_CUH
#define MOEI_FEW_SLICES_CUH

#include "kernel/cuda/gemm_core.cuh"

namespace moei {

enum { SHARES = 2 }; /* blocks of a cluster */
enum { SLICE = 32, BOX_K = 128, BOX_BYTES = SLICE * BOX_K * 2 };
/* Warps of a block: those that multiply, in two groups of which one has the even boxes, gates, one the odd
 * ones, and one each that loads weights, finishes and, of down, feeds factors. */
enum { MULTIPLIERS = 8, GROUPS = 2, GROUP_WARPS = MULTIPLIERS / GROUPS, LOADER = 8, FINISHER, FEEDER };
enum { UP_THREADS = 32 * FEEDER, DOWN_THREADS = UP_THREADS + 32 };
/* Boxes of weights in shared memory, and of down those whose factors are there: as many of either group, as
 * one that came to a barrier a round early would be let through. */
enum { BOXES = 4, FED = 8 };
/* Of 16 x 8 results in f32 and 16 x 8 factors in bf16, as mma has them; of a box's factors, a tile of 8
 * tokens. */
enum { PART_BYTES = 512, FACTOR_BYTES = 256, FACTORS = BOX_K / 16 * FACTOR_BYTES };
enum { PARTS = SHARES * MULTIPLIERS }; /* of a sum */
enum { DRAWN = 4 };                    /* slices between being drawn and being finished */
enum { CHOICES = MOEI_FEW_ROWS, EXPERTS = MOEI_FEW_EXPERTS };

struct FewShared {
    uint64_t full[BOXES], empty[BOXES], fed[FED], eaten[FED]; /* boxes of weights; down's factors */
    uint64_t received, taken[SHARES]; /* all parts of this block's columns; by each block, what it was sent */
    uint64_t told[DRAWN], summed[2];  /* by turns: a slice has its number; its sums are known */
    int32_t slice[DRAWN];             /* as drawn */
    uint32_t chosen[EXPERTS / 32];    /* bits */
    int32_t choice[CHOICES], listed[CHOICES], n_listed; /* expert[T,K]; those chosen, each once */
};

/* What there is to do: slices, of which a block sums blocks [begin, end) of BOX_K steps. Of up a slice is one
 * expert's, of down all experts'. */
struct Work {
    int rank, slices, begin, end, of_expert; /* slices (up) or blocks (down) of an expert */
    __device__ __forceinline__ void share(int blocks) {
        begin = (int)((int64_t)blocks * rank / SHARES), end = (int)((int64_t)blocks * (rank + 1) / SHARES);
    }
    __device__ __forceinline__ int length() const { return end - begin; }
};

/* To the same address in block `rank`, whose barrier counts the bytes. */
__device__ __forceinline__ void send(uint32_t to, uint32_t bar, uint32_t rank, const float (&v)[4]) {
    asm volatile(
        "{\n .reg .b32 there, counts;\n"
        " mapa.shared::cluster.u32 there, %0, %2;\n"
        " mapa.shared::cluster.u32 counts, %1, %2;\n"
        " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, "
        "[counts];\n}" ::"r"(to),
        "r"(bar), "r"(rank), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
        : "memory");
}
__device__ __forceinline__ void send(uint32_t to, uint32_t bar, uint32_t rank, int32_t v) {
    asm volatile(
        "{\n .reg .b32 there, counts;\n"
        " mapa.shared::cluster.u32 there, %0, %2;\n"
        " mapa.shared::cluster.u32 counts, %1, %2;\n"
        " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %3, [counts];\n}" ::"r"(to),
        "r"(bar), "r"(rank), "r"(v)
        : "memory");
}

__device__ __forceinline__ void open_block(FewShared &s, const CUtensorMap *map, int threads) {
    for (int i = threadIdx.x; i < EXPERTS / 32; i += threads) s.chosen[i] = 0;
    if (threadIdx.x == 0) {
        asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
        for (int i = 0; i < BOXES; ++i) mbar_init(smem_address(&s.full[i]), 1);
        for (int i = 0; i < BOXES; ++i) mbar_init(smem_address(&s.empty[i]), GROUP_WARPS);
        for (int i = 0; i < FED; ++i) mbar_init(smem_address(&s.fed[i]), 1);
        for (int i = 0; i < FED; ++i) mbar_init(smem_address(&s.eaten[i]), 32 * GROUP_WARPS);
        for (int i = 0; i < SHARES; ++i) mbar_init(smem_address(&s.taken[i]), 1);
        for (int i = 0; i < DRAWN; ++i) mbar_init(smem_address(&s.told[i]), 1);
        for (int i = 0; i < 2; ++i) mbar_init(smem_address(&s.summed[i]), 1);
        mbar_init(smem_address(&s.received), 1);
        mbar_init_done();
    }
    __syncwarp();
    cluster_sync();
}

/* The experts that somebody chose, by number. Whole warp. */
__device__ __forceinline__ void list_experts(FewShared &s) {
    const int lane = threadIdx.x & 31;
    uint32_t bits = s.chosen[lane];
    const int own = __popc(bits), upto = warp_prefix(own);
    if (lane == 31) s.n_listed = upto;
    for (int at = upto - own; bits; bits &= bits - 1) s.listed[at++] = lane * 32 + __ffs(bits) - 1;
    __syncwarp();
}

/* Reads the choices and lists the experts, while the multiplying warps do `meanwhile`; the loading warp waits
 * for none of that. Whole block. */
template <class Meanwhile>
__device__ __forceinline__ void read_choices(const moei_few_args &p, FewShared &s, int threads,
                                             Meanwhile meanwhile) {
    for (int i = threadIdx.x; i < p.n_tokens * p.top_k; i += threads) {
        const int expert = p.expert[i];
        s.choice[i] = expert;
        if (expert >= 0) atomicOr(&s.chosen[expert / 32], 1u << expert % 32);
    }
    __syncthreads();
    if (threadIdx.x / 32 == LOADER) {
        list_experts(s);
        named_barrier_arrive(1, threads);
        return;
    }
    if (threadIdx.x / 32 < MULTIPLIERS) meanwhile();
    named_barrier(1, threads);
}

/* Slice number `turn` of this cluster, or one past the last. */
__device__ __forceinline__ int slice_at(FewShared &s, int turn) {
    mbar_wait(smem_address(&s.told[turn % DRAWN]), turn / DRAWN & 1);
    return *(const volatile int32_t *)&s.slice[turn % DRAWN];
}

/* Draws slices and has them brought: one thread of each block, the first block's tells both. A slice's place
 * is free when DRAWN - 2 more have been summed: nobody sends parts of two more before all have read its
 * number. No barrier of theirs can be a round ahead: what is not told yet is not summed. After each slice
 * that was brought one is drawn, so `drawn` is 0 again after the last. */
template <class Bring>
__device__ __forceinline__ void draw_slices(FewShared &s, const Work &work, uint32_t *drawn, Bring bring) {
    int slice = (int)(blockIdx.x / SHARES);
    for (int turn = 0;; ++turn) {
        const uint32_t told = smem_address(&s.told[turn % DRAWN]),
                       place = smem_address(&s.slice[turn % DRAWN]);
        if (work.rank == 0) mbar_wait(smem_address(&s.summed[turn % 2]), (turn / 2 & 1) ^ 1);
        mbar_arrive_expect(told, sizeof(int32_t));
        if (work.rank == 0)
            for (uint32_t to = 0; to < SHARES; ++to) send(place, told, to, slice);
        else
            slice = slice_at(s, turn);
        if (slice >= work.slices) return;
        bring(slice);
        if (work.rank == 0) slice = (int)(gridDim.x / SHARES + atomicInc(drawn, (uint32_t)work.slices - 1));
    }
}

/* Brings boxes, one thread. */
struct BoxLoader {
    FewShared &s;
    const CUtensorMap *map;
    uint32_t boxes;
    Ring<BOXES> box;
    __device__ __forceinline__ void bring(int column, int row, int expert) {
        const uint32_t full = smem_address(&s.full[box.stage]);
        mbar_wait(smem_address(&s.empty[box.stage]), box.phase ^ 1);
        mbar_arrive_expect(full, BOX_BYTES);
        tma_load_box(boxes + box.stage * BOX_BYTES, map, full, column, row, expert);
        box.next();
    }
};

/* A warp's 32 steps of a box, all its columns, against all tokens. */
template <int TILES>
__device__ __forceinline__ void multiply_box(float (&acc)[SHARES][TILES][4], uint32_t box, uint32_t factors) {
    const int lane = threadIdx.x & 31, quarter = threadIdx.x / 32 % GROUP_WARPS;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int k16 = quarter * 2 + i, row = k16 * 16 + (lane & 7) + (lane >> 4) * 8;
        uint32_t a[SHARES][4];
#pragma unroll
        for (int m = 0; m < SHARES; ++m) {
            const int chunk = m * 2 + (lane >> 3 & 1);
            ldmatrix_transposed(a[m], box + row * 64 + ((chunk ^ (row >> 1 & 3)) << 4));
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            uint32_t b0, b1;
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                         : "=r"(b0), "=r"(b1)
                         : "r"(factors + (k16 * TILES + t) * FACTOR_BYTES + lane * 8));
#pragma unroll
            for (int m = 0; m < SHARES; ++m) mma16816(acc[m][t], a[m][0], a[m][1], a[m][2], a[m][3], b0, b1);
        }
    }
}
__device__ __forceinline__ void release(uint64_t *bar) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) mbar_arrive(smem_address(bar));
}

/* The warp's parts of slice number `turn`, each to the block that has its columns. odd: they are sums of the
 * slice's odd boxes; by that, and not by the group that had them, a part has its place in the sum. */
template <int TILES>
__device__ __forceinline__ void send_parts(const float (&acc)[SHARES][TILES][4], FewShared &s, int rank,
                                           uint32_t receive, int turn, int odd) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int part = (odd * SHARES + rank) * GROUP_WARPS + warp % GROUP_WARPS;
#pragma unroll
    for (int owner = 0; owner < SHARES; ++owner) {
        mbar_wait(smem_address(&s.taken[owner]), (turn & 1) ^ 1);
#pragma unroll
        for (int t = 0; t < TILES; ++t)
            send(receive + (part * TILES + t) * PART_BYTES + lane * 16, smem_address(&s.received), owner,
                 acc[owner][t]);
    }
}

/* All slices of the block, by the multiplying warps. Of every slice boxes first .. first+count-1 of all that
 * come; a group has every other one. factors: box of the slice -> where those are; done: they are given
 * back. */
template <int TILES, class Begin, class End>
__device__ __forceinline__ void multiply_slices(FewShared &s, const Work &work, int count, uint32_t boxes,
                                                uint32_t receive, Begin factors, End done) {
    const int group = threadIdx.x / 32 / GROUP_WARPS;
    Ring<BOXES> box = {group, 0};
    int turn = 0;
    int64_t first = 0;
    for (; slice_at(s, turn) < work.slices; ++turn, first += count) {
        float acc[SHARES][TILES][4] = {};
        const int odd = (int)((group + first) % GROUPS);
        for (int i = odd; i < count; i += GROUPS, box.skip(GROUPS)) {
            const uint32_t from = factors(i);
            mbar_wait(smem_address(&s.full[box.stage]), box.phase);
            multiply_box<TILES>(acc, boxes + box.stage * BOX_BYTES, from);
            release(&s.empty[box.stage]);
            done();
        }
        send_parts<TILES>(acc, s, work.rank, receive, turn, odd);
    }
}

/* Sums of slice number `turn`, of this block's 16 columns: of its even and of its odd boxes. Whole warp. */
template <int TILES>
__device__ __forceinline__ void receive_sums(float (&sum)[GROUPS][TILES][4], FewShared &s, int rank,
                                             const char *receive, int turn) {
    const int lane = threadIdx.x & 31;
    const uint32_t received = smem_address(&s.received);
    if (lane == 0) mbar_arrive_expect(received, PARTS * TILES * PART_BYTES);
    __syncwarp();
    mbar_wait(received, turn & 1);
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            float4 all = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < PARTS / GROUPS; ++i) {
                const int part = g * (PARTS / GROUPS) + i;
                const float4 v = *(const float4 *)(receive + (part * TILES + t) * PART_BYTES + lane * 16);
                all.x += v.x, all.y += v.y, all.z += v.z, all.w += v.w;
            }
            sum[g][t][0] = all.x, sum[g][t][1] = all.y, sum[g][t][2] = all.z, sum[g][t][3] = all.w;
        }
    __syncwarp();
    if (lane == 0 && rank == 0) mbar_arrive(smem_address(&s.summed[turn % 2])); /* who draws waits for it */
    if (lane < SHARES) mbar_arrive_at(smem_address(&s.taken[rank]), (uint32_t)lane);
}

} // namespace moei

#endif
