/* decode_sm90.cu: the experts of up to 16 tokens, where reading weights is all the time there is, in two
 * kernels: gate and up with the activation, then down with the sum over experts. No plan and no rows: a
 * chosen expert is multiplied with all tokens, and what a token did not ask for is left out after that. Two
 * blocks share the sums of 32 columns. In a block one warp has the weights brought, boxes of 128 x 32, eight
 * multiply them as they come, one brings what down multiplies, one finishes: it adds up the parts of 16
 * columns, always in one order, so bits do not change from run to run. Multiprocessors read at rates of their
 * own, so slices are drawn by a counter, and few boxes are on their way: more of them wait for each other.
 * Down's first ones come while up is at work. Source: performance.md section 5, after FlashInfer's two
 * kernels for small batches.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/early.cuh"
#include "kernel/cuda/gemm_core.cuh"
#include "kernel/cuda/tensor_map.cuh"

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
enum { CHOICES = MOEI_FEW_ROWS, EXPERTS = MOEI_FEW_EXPERTS, SHARED_MOST = 220 * 1024 };

struct FewCall {
    moei_few_args p;
    ActRule rule;
};

struct FewShared {
    uint64_t full[BOXES], empty[BOXES], fed[FED], eaten[FED]; /* boxes of weights; down's factors */
    uint64_t received, taken[SHARES]; /* all parts of this block's columns; by each block, what it was sent */
    uint64_t told[DRAWN];
    int32_t slice[DRAWN];                               /* as drawn */
    volatile int32_t n_finished;                        /* slices this block has the sums of */
    uint32_t chosen[EXPERTS / 32];                      /* bits */
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
__host__ __device__ __forceinline__ int64_t hidden_blocks(const moei_few_args &p) {
    return ceil_div(p.n, BOX_K);
}

/* A box: columns from x on, rows from y on, of matrix z. */
__device__ __forceinline__ void tma_load_box(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y,
                                             int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
__device__ __forceinline__ void bulk_load(uint32_t dst, const void *from, int bytes, uint32_t bar) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
        "l"(from), "r"(bytes), "r"(bar)
        : "memory");
}
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
/* Where factor (step k, token t) stands among those of 16 x 8 tiles, in bytes. */
template <int TILES> __device__ __forceinline__ int64_t factor_at(int64_t k, int t) {
    return ((k / 16 * TILES + t / 8) * 32 + t % 8 * 4 + k % 8 / 2) * 8 + k % 16 / 8 * 4 + k % 2 * 2;
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

/* The block's steps of all tokens, as factors; zeros past both. By the multiplying warps. */
template <int TILES>
__device__ __forceinline__ void put_tokens(const moei_few_args &p, const Work &work, char *to) {
    const int chunks = work.length() * (BOX_K / 8);
    for (int i = threadIdx.x; i < chunks * TILES * 8; i += 32 * MULTIPLIERS) {
        const int t = i / chunks, k = i % chunks * 8;
        const int64_t from = (int64_t)work.begin * BOX_K + k;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (t < p.n_tokens && from < p.d) v = *(const uint4 *)((const bf16 *)p.x + t * p.ldx + from);
        const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) *(uint32_t *)(to + factor_at<TILES>(k + 2 * j, t)) = pair[j];
    }
}

/* Slice number `turn` of this cluster, or one past the last. */
__device__ __forceinline__ int slice_at(FewShared &s, int turn) {
    mbar_wait(smem_address(&s.told[turn % DRAWN]), turn / DRAWN & 1);
    return *(const volatile int32_t *)&s.slice[turn % DRAWN];
}

/* Draws slices and has them brought: one thread of each block, the first block's tells both. A slice's place
 * is free when DRAWN - 2 more have been summed: nobody sends parts of two more before all have read its
 * number. */
template <class Bring>
__device__ __forceinline__ void draw_slices(FewShared &s, const Work &work, uint32_t *drawn, Bring bring) {
    int slice = (int)(blockIdx.x / SHARES);
    for (int turn = 0;; ++turn) {
        const uint32_t told = smem_address(&s.told[turn % DRAWN]),
                       place = smem_address(&s.slice[turn % DRAWN]);
        if (work.rank == 0)
            while (s.n_finished < turn - (DRAWN - 3)) {
            }
        mbar_arrive_expect(told, sizeof(int32_t));
        if (work.rank == 0)
            for (uint32_t to = 0; to < SHARES; ++to) send(place, told, to, slice);
        else
            slice = slice_at(s, turn);
        if (slice >= work.slices) return;
        bring(slice);
        if (work.rank == 0) slice = (int)(gridDim.x / SHARES + atomicAdd(drawn, 1));
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
    if (lane == 0) s.n_finished = turn + 1;
    if (lane < SHARES) mbar_arrive_at(smem_address(&s.taken[rank]), (uint32_t)lane);
}

/* The weights of an expert for a lane's tokens, 0 where it is not chosen. */
template <int TILES>
__device__ __forceinline__ void find_weights(const moei_few_args &p, const FewShared &s, int expert,
                                             float (&weight)[TILES][2], bool (&chosen)[TILES][2]) {
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int token = t * 8 + (threadIdx.x & 3) * 2 + i;
            int found = -1;
            for (int k = 0; k < p.top_k && token < p.n_tokens; ++k)
                if (s.choice[token * p.top_k + k] == expert) found = token * p.top_k + k;
            chosen[t][i] = found >= 0;
            weight[t][i] = found >= 0 ? p.weight[found] : 0.f;
        }
}

/* Factors of down from up's sums: lane l has columns l/4 and l/4 + 8, tokens 2(l%4) and the next. */
template <int TILES, bool GATED>
__device__ __forceinline__ void finish_up(const FewCall &call, FewShared &s, const Work &work,
                                          const char *receive) {
    const moei_few_args &p = call.p;
    const int lane = threadIdx.x & 31, blocks = (int)hidden_blocks(p);
    for (int turn = 0, u; (u = slice_at(s, turn)) < work.slices; ++turn) {
        float weight[TILES][2], sum[GROUPS][TILES][4];
        bool chosen[TILES][2];
        const int e = u / work.of_expert, slice = u % work.of_expert;
        const int column = slice * SLICE + work.rank * 16 + (lane >> 2);
        char *to = (char *)p.scratch + (int64_t)e * blocks * FACTORS * TILES;
        find_weights<TILES>(p, s, s.listed[e], weight, chosen);
        receive_sums<TILES>(sum, s, work.rank, receive, turn);
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int col = column + i / 2 * 8;
                const float z = GATED ? sum[0][t][i] : sum[0][t][i] + sum[1][t][i];
                const float value = chosen[t][i % 2] && col < p.n
                                        ? weight[t][i % 2] * act_point(call.rule, z, sum[1][t][i]).value
                                        : 0;
                *(bf16 *)(to + factor_at<TILES>(col, t * 8 + (lane & 3) * 2 + i % 2)) =
                    __float2bfloat16(value);
            }
        if (slice < work.of_expert - 1) continue;
        /* The last block of steps goes on to its end: zeros, as what weights stand for there are. */
        const int from = work.of_expert * SLICE / 16 * TILES * FACTOR_BYTES;
        for (int at = from + lane * 8; at < blocks * FACTORS * TILES; at += 32 * 8)
            *(uint2 *)(to + at) = make_uint2(0, 0);
    }
}
template <int TILES>
__device__ __forceinline__ void finish_down(const moei_few_args &p, FewShared &s, const Work &work,
                                            const char *receive) {
    const int lane = threadIdx.x & 31;
    for (int turn = 0, u; (u = slice_at(s, turn)) < work.slices; ++turn) {
        float sum[GROUPS][TILES][4];
        receive_sums<TILES>(sum, s, work.rank, receive, turn);
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int token = t * 8 + (lane & 3) * 2 + i % 2,
                          col = u * SLICE + work.rank * 16 + (lane >> 2) + i / 2 * 8;
                if (token >= p.n_tokens || col >= p.d) continue;
                bf16 *y = (bf16 *)p.y + token * p.ldy + col;
                *y = __float2bfloat16((p.accumulate ? __bfloat162float(*y) : 0.f) + sum[0][t][i] +
                                      sum[1][t][i]);
            }
    }
}

__device__ __forceinline__ void open_block(FewShared &s, const CUtensorMap *map, int threads) {
    for (int i = threadIdx.x; i < EXPERTS / 32; i += threads) s.chosen[i] = 0;
    if (threadIdx.x == 0) {
        asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
        for (int i = 0; i < BOXES; ++i) mbar_init(smem_address(&s.full[i]), 1);
        for (int i = 0; i < BOXES; ++i) mbar_init(smem_address(&s.empty[i]), GROUP_WARPS);
        for (int i = 0; i < FED; ++i) mbar_init(smem_address(&s.fed[i]), 1);
        for (int i = 0; i < FED; ++i) mbar_init(smem_address(&s.eaten[i]), GROUP_WARPS);
        for (int i = 0; i < SHARES; ++i) mbar_init(smem_address(&s.taken[i]), 1);
        for (int i = 0; i < DRAWN; ++i) mbar_init(smem_address(&s.told[i]), 1);
        s.n_finished = 0;
        mbar_init(smem_address(&s.received), 1);
        mbar_init_done();
    }
    __syncwarp();
    cluster_sync();
}

template <int TILES, bool GATED>
__global__ void __cluster_dims__(SHARES, 1, 1) __launch_bounds__(UP_THREADS, 1)
    few_up_kernel(const __grid_constant__ FewCall call, const __grid_constant__ CUtensorMap map) {
    extern __shared__ __align__(1024) char raw[];
    __shared__ FewShared s;
    const moei_few_args &p = call.p;
    const int warp = threadIdx.x / 32, across = GATED ? 2 : 1;
    char *receive = raw + BOXES * BOX_BYTES, *x = receive + PARTS * TILES * PART_BYTES;
    Work work;
    work.rank = (int)cluster_rank();
    work.share((int)ceil_div(p.d, BOX_K));
    open_block(s, &map, UP_THREADS);
    await_earlier();
    read_choices(p, s, UP_THREADS, [&] { put_tokens<TILES>(p, work, x); });
    work.of_expert = (int)ceil_div(p.n, SLICE);
    work.slices = work.of_expert * s.n_listed;
    if (warp < MULTIPLIERS) {
        const uint32_t factors = smem_address(x);
        multiply_slices<TILES>(
            s, work, work.length() * across, smem_address(raw), smem_address(receive),
            [=](int i) { return factors + i / across * FACTORS * TILES; }, [] {});
    } else if (warp == FINISHER) {
        finish_up<TILES, GATED>(call, s, work, receive);
    } else if (threadIdx.x == 32 * LOADER) {
        BoxLoader loader = {s, &map, smem_address(raw), {}};
        if (blockIdx.x == 0) p.drawn[1] = 0;
        __threadfence();
        let_next_start();
        draw_slices(s, work, p.drawn, [&](int u) {
            const int expert = s.listed[u / work.of_expert], column = u % work.of_expert * SLICE;
            for (int k = work.begin; k < work.end; ++k)
                for (int half = 0; half < across; ++half)
                    loader.bring(half * (int)p.n + column, k * BOX_K, expert);
        });
    }
    __syncwarp();
    cluster_sync(); /* the other may still write here */
}

template <int TILES>
__global__ void __cluster_dims__(SHARES, 1, 1) __launch_bounds__(DOWN_THREADS, 1)
    few_down_kernel(const __grid_constant__ FewCall call, const __grid_constant__ CUtensorMap map) {
    extern __shared__ __align__(1024) char raw[];
    __shared__ FewShared s;
    const moei_few_args &p = call.p;
    const int warp = threadIdx.x / 32;
    char *receive = raw + BOXES * BOX_BYTES, *h = receive + PARTS * TILES * PART_BYTES;
    Work work;
    work.rank = (int)cluster_rank();
    open_block(s, &map, DOWN_THREADS);
    let_next_start();
    read_choices(p, s, DOWN_THREADS, [] {}); /* there when up, which awaited them, let this kernel start */
    work.of_expert = (int)hidden_blocks(p);
    work.slices = (int)ceil_div(p.d, SLICE);
    work.share(s.n_listed * work.of_expert);
    if (warp < MULTIPLIERS) {
        const uint32_t factors = smem_address(h);
        Ring<FED> at = {warp / GROUP_WARPS, 0};
        multiply_slices<TILES>(
            s, work, work.length(), smem_address(raw), smem_address(receive),
            [&](int) {
                mbar_wait(smem_address(&s.fed[at.stage]), at.phase);
                return factors + at.stage * FACTORS * TILES;
            },
            [&] {
                release(&s.eaten[at.stage]);
                at.skip(GROUPS);
            });
    } else if (warp == FINISHER) {
        await_earlier();
        finish_down<TILES>(p, s, work, receive);
    } else if (threadIdx.x == 32 * LOADER) {
        BoxLoader loader = {s, &map, smem_address(raw), {}};
        draw_slices(s, work, p.drawn + 1, [&](int u) {
            for (int i = work.begin; i < work.end; ++i)
                loader.bring(u * SLICE, i % work.of_expert * BOX_K, s.listed[i / work.of_expert]);
        });
    } else if (threadIdx.x == 32 * FEEDER) {
        Ring<FED> at;
        await_earlier();
        asm volatile("fence.proxy.async;" ::: "memory"); /* up stored them as any kernel does */
        if (blockIdx.x == 0) p.drawn[0] = 0;
        /* A block without boxes has nobody to wait for, and would fall behind the numbers of slices. */
        for (int turn = 0; work.length() > 0 && slice_at(s, turn) < work.slices; ++turn)
            for (int i = work.begin; i < work.end; ++i, at.next()) {
                const uint32_t full = smem_address(&s.fed[at.stage]);
                mbar_wait(smem_address(&s.eaten[at.stage]), at.phase ^ 1);
                mbar_arrive_expect(full, FACTORS * TILES);
                bulk_load(smem_address(h) + at.stage * FACTORS * TILES,
                          (const char *)p.scratch + (int64_t)i * FACTORS * TILES, FACTORS * TILES, full);
            }
    }
    __syncwarp();
    cluster_sync(); /* the other may still write here */
}

/* `slices` at most; rest: bytes of shared memory beside the boxes. */
template <class Kernel>
static cudaError_t launch_slices(Kernel *kernel, const moei_team *team, const moei_few_args *args,
                                 int64_t slices, int threads, int64_t rest, const CUtensorMap &map) {
    const int64_t bytes = BOXES * BOX_BYTES + rest;
    if (bytes > SHARED_MOST) return cudaErrorNotSupported;
    int n_sm = 0;
    cudaError_t error = multiprocessors(&n_sm);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error) return error;
    const int64_t clusters = slices < n_sm / SHARES ? slices : n_sm / SHARES;
    return launch_early(kernel, dim3((unsigned)(clusters * SHARES)), threads, bytes, stream_of(team),
                        FewCall{*args, act_rule_of(args->act, args->act_numbers)}, map);
}

template <int TILES, bool GATED>
static cudaError_t launch_few(const moei_team *team, const moei_few_args *args) {
    const int64_t width = GATED ? 2 * args->n : args->n, blocks = ceil_div(args->d, BOX_K),
                  receive = PARTS * TILES * PART_BYTES, share = ceil_div(blocks, SHARES);
    CUtensorMap w1, w2;
    cudaError_t error = make_box_map(team, &w1, args->w1, width, args->d, args->n_experts, BOX_K);
    if (!error) error = make_box_map(team, &w2, args->w2, args->d, args->n, args->n_experts, BOX_K);
    if (!error)
        error = launch_slices(few_up_kernel<TILES, GATED>, team, args,
                              args->n_tokens * args->top_k * ceil_div(args->n, SLICE), UP_THREADS,
                              receive + share * FACTORS * TILES, w1);
    if (error) return error;
    error = launch_slices(few_down_kernel<TILES>, team, args, ceil_div(args->d, SLICE), DOWN_THREADS,
                          receive + FED * FACTORS * TILES, w2);
    /* What up has drawn, down would have cleared. */
    if (error) cudaMemsetAsync(args->drawn, 0, 2 * sizeof *args->drawn, stream_of(team));
    return error;
}

template <bool GATED> static cudaError_t launch_tiles(const moei_team *team, const moei_few_args *args) {
    return args->n_tokens <= 8 ? launch_few<1, GATED>(team, args) : launch_few<2, GATED>(team, args);
}

static bool few_fits(const moei_few_args *a) {
    return a->dtype == MOE_BF16 && a->act != MOE_ACT_NONE && a->n_tokens > 0 &&
           a->n_tokens <= MOEI_FEW_TOKENS && a->n_tokens * a->top_k <= CHOICES && a->n_experts <= EXPERTS &&
           a->d % 8 == 0 && a->ldx % 8 == 0 && a->n % 8 == 0 && aligned16(a->x) && aligned16(a->w1) &&
           aligned16(a->w2);
}

} // namespace moei

int moei_cuda_decode(const moei_team *team, const moei_few_args *args) {
    if (!moei::few_fits(args)) return cudaErrorNotSupported;
    return moe_act_gated(args->act) ? moei::launch_tiles<true>(team, args)
                                    : moei::launch_tiles<false>(team, args);
}

extern "C" bool moei_few__sm90(const moei_team *team, const moei_few_args *args) {
    return moei_cuda_decode(team, args) != cudaErrorNotSupported;
}
