/* decode_sm90.cu: the experts of up to 16 tokens, where reading weights is all the time there is, in two
 * kernels: gate and up with the activation, then down with the sum over experts. No plan and no rows: a
 * chosen expert is multiplied with all tokens, and what a token did not ask for is left out after that.
 * Blocks share slices of columns (few_slices.cuh); down has a warp more, which brings what it multiplies.
 * Down's first boxes come while the last of up is summed. Source: docs/kernels-cuda.md, few tokens.
 */
#include "kernel/cuda/act_exact.cuh"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/early.cuh"
#include "kernel/cuda/few_slices.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

/* Bytes of shared memory: a block has more than half of a multiprocessor's, so that none gets two while
 * another gets none. */
enum { SHARED_LEAST = 116 * 1024, SHARED_MOST = 220 * 1024 };
static_assert(SHARED_MOST + sizeof(FewShared) <= 227 * 1024, "shared memory of a block");

struct FewCall {
    moei_few_args p;
    ActRule rule;
};

__host__ __device__ __forceinline__ int64_t hidden_blocks(const moei_few_args &p) {
    return ceil_div(p.n, BOX_K);
}

/* Where factor (step k, token t) stands among those of 16 x 8 tiles, in bytes. */
template <int TILES> __device__ __forceinline__ int64_t factor_at(int64_t k, int t) {
    return ((k / 16 * TILES + t / 8) * 32 + t % 8 * 4 + k % 8 / 2) * 8 + k % 16 / 8 * 4 + k % 2 * 2;
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
        const int last = work.slices - (int)gridDim.x / SHARES; /* from here on, a slice is a block's last */
        BoxLoader loader = {s, &map, smem_address(raw), {}};
        draw_slices(s, work, p.drawn, [&](int u) {
            if (u >= last) let_next_start();
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
                /* By every lane: that all have read when one arrives is nothing that racecheck can see. */
                mbar_arrive(smem_address(&s.eaten[at.stage]));
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
    const int64_t needed = BOXES * BOX_BYTES + rest,
                  bytes = needed > SHARED_LEAST ? needed : (int64_t)SHARED_LEAST;
    if (bytes > SHARED_MOST) return cudaErrorNotSupported;
    int n_sm = 0;
    cudaError_t error = multiprocessors(&n_sm);
    /* The limit is the function's, of all host threads: no less than another's call may need. */
    if (!error)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MOST);
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
    return launch_slices(few_down_kernel<TILES>, team, args, ceil_div(args->d, SLICE), DOWN_THREADS,
                         receive + FED * FACTORS * TILES, w2);
}

template <bool GATED> static cudaError_t launch_tiles(const moei_team *team, const moei_few_args *args) {
    return args->n_tokens <= 8 ? launch_few<1, GATED>(team, args) : launch_few<2, GATED>(team, args);
}

static bool few_fits(const moei_few_args *a) {
    return a->dtype == MOE_BF16 && a->act != MOE_ACT_NONE && a->n_tokens > 0 &&
           a->n_tokens <= MOEI_FEW_TOKENS && a->n_tokens * a->top_k <= CHOICES && a->n_experts <= EXPERTS &&
           a->d % 8 == 0 && a->ldx % 8 == 0 && a->n % 8 == 0 && aligned16(a->x) &&
           (a->w1_packed || (aligned16(a->w1) && aligned16(a->w2)));
}

} // namespace moei

int moei_cuda_decode(const moei_team *team, const moei_few_args *args) {
    if (!moei::few_fits(args)) return cudaErrorNotSupported;
    if (args->w1_packed) return moei_cuda_decode_packed(team, args);
    return moe_act_gated(args->act) ? moei::launch_tiles<true>(team, args)
                                    : moei::launch_tiles<false>(team, args);
}

extern "C" bool moei_few__sm90(const moei_team *team, const moei_few_args *args) {
    return moei_cuda_decode(team, args) != cudaErrorNotSupported;
}
