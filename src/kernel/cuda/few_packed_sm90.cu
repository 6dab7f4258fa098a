/* few_packed_sm90.cu: the experts of up to 16 tokens with packed weights, in three kernels: gate and up with
 * the activation, down, and the sums over experts. There is no plan: every block finds out for itself who
 * chose which expert, and multiplies these rows as packed_units.cuh does, a panel of columns at a time.
 * Panels are drawn from a counter, because multiprocessors read at different rates. Each kernel may start
 * before the one ahead has ended, and down's first weights arrive while up's last ones are multiplied.
 * Source: docs/kernels-cuda.md, packed weights.
 */
#include "kernel/cuda/act_exact.cuh"
#include "kernel/cuda/few_halves.cuh"
#include "kernel/cuda/few_sum.cuh"
#include "kernel/cuda/packed_units.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

enum { AHEAD = 4 }; /* turns whose units stand beside each other */

/* Blocks, as large as leaves every warp some steps of a sum; a multiprocessor has 16 warps. */
template <bool UP> struct FewBlock {
    enum { PER_SM = UP ? 1 : 2, WARPS = 16 / PER_SM, THREADS = 32 * WARPS };
    static_assert((int)MOEI_FEW_PACKED_ROWS <= (int)THREADS, "a thread a choice");
    static_assert((int)MOEI_FEW_PACKED_TOKENS <= 2 * (int)TILE, "two tiles of tokens at most");
};
/* Three stages: with two as with four some us more, of a hundred. */
template <int CODES, bool UP> using FewPackedShared = UnitShared<CODES, FewBlock<UP>::WARPS, 3>;

struct FewPackedCall {
    moei_few_args p;
    PackedB b;
    ActRule rule;
    bf16 *h;     /* [T, K, n] */
    float *sums; /* [T, K, d] */
};

struct Choices {
    int32_t drawn[AHEAD];
    int32_t count[MOEI_FEW_EXPERTS]; /* of an expert's choices, see Halves */
    int32_t before[16];              /* by warp */
    int32_t n_tiles;
    Listed tile[MOEI_FEW_PACKED_ROWS];
    int16_t choice[MOEI_FEW_PACKED_ROWS], token[MOEI_FEW_PACKED_ROWS]; /* by expert */
};

/* Choices by expert, in tiles of TILE, whole block. Of more than one tile the first TILE tokens and the
 * others each have theirs: every block sorts for itself, so what a tile holds must not hang on who counts
 * first. */
template <int THREADS> __device__ __forceinline__ void sort_by_block(Choices &s, int chosen, int token) {
    enum { OWN = MOEI_FEW_EXPERTS / THREADS, TILES_AT = 16 };
    const int thread = threadIdx.x, lane = thread & 31, warp = thread / 32;
    const Halves half = {token >= TILE};
    const int rank = chosen >= 0 ? half.count(&s.count[chosen]) : 0;
    __syncthreads();
    int own[OWN], sum = 0; /* by halves; choices, and in the upper half tiles */
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        own[i] = s.count[thread * OWN + i];
        sum += Halves::both(own[i]) + (Halves::parts(own[i], TILE) << TILES_AT);
    }
    int at = warp_prefix(sum);
    if (lane == 31) s.before[warp] = at;
    __syncthreads();
    for (int w = 0; w < warp; ++w) at += s.before[w];
    if (thread == THREADS - 1) s.n_tiles = at >> TILES_AT;
    at -= sum;
    int first = at & ((1 << TILES_AT) - 1), tile = at >> TILES_AT;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        s.count[thread * OWN + i] = Halves::begin(first, own[i]);
        Halves::list(&s.tile[tile], thread * OWN + i, first, own[i], TILE);
        tile += Halves::parts(own[i], TILE), first += Halves::both(own[i]);
    }
    __syncthreads();
    if (chosen < 0) return;
    const int place = half.place(s.count[chosen], rank);
    s.choice[place] = (int16_t)thread, s.token[place] = (int16_t)token;
}
/* token: of the thread's choice. */
template <int THREADS>
__device__ __forceinline__ void sort_packed_choices(const moei_few_args &p, Choices &s, int token) {
    const int thread = threadIdx.x, choices = (int)p.n_tokens * p.top_k;
    const int chosen = thread < choices ? p.expert[thread] : -1;
    if (choices > 32 || p.n_tokens > TILE) {
        sort_by_block<THREADS>(s, chosen, token);
    } else if (thread < 32) {
        const int tiles = sort_by_warp(chosen, token, s.tile, s.choice, s.token);
        if (thread == 0) s.n_tiles = tiles;
    }
    __syncthreads();
}

/* Unit u: a panel of a tile, of a panel all tiles. */
struct FewUnit {
    int panel, tile;
    static __device__ __forceinline__ FewUnit at(int u, int n_tiles) {
        const int panel = (int)((unsigned)u / (unsigned)n_tiles);
        return {panel, u - panel * n_tiles};
    }
};

/* Of each unit that is multiplied one is drawn, so the counter is 0 again after the last. */
template <bool GATED, bool UP> struct FewUnits {
    enum { whole = true, THREADS = FewBlock<UP>::THREADS };
    enum { SHARES = GATED ? FewBlock<UP>::WARPS / 2 : FewBlock<UP>::WARPS };
    const FewPackedCall &call;
    Choices &s;
    uint32_t *counter;
    int n_units, drawn;

    __device__ __forceinline__ PackedUnit open(int turn) {
        const int u = s.drawn[turn % AHEAD];
        if (u >= n_units) return {0, (const bf16 *)call.p.x, 0};
        const FewUnit unit = FewUnit::at(u, s.n_tiles);
        const Listed of = s.tile[unit.tile];
        const int lane_row = (threadIdx.x & 31) >> 2;
        const int at = of.first + (lane_row < of.rows ? lane_row : 0);
        return {of.expert * call.b.group_bytes + unit.panel * call.b.panel_bytes,
                UP ? (const bf16 *)call.p.x + s.token[at] * call.p.ldx : call.h + s.choice[at] * call.p.n,
                of.rows};
    }
    __device__ __forceinline__ void await() const {
        if (!UP) await_earlier();
    }
    __device__ __forceinline__ void start(int) {
        if (threadIdx.x == 0) drawn = (int)(2 * gridDim.x + atomicInc(counter, (uint32_t)n_units - 1));
    }
    __device__ __forceinline__ void stop(int turn) {
        if (threadIdx.x == 0) s.drawn[(turn + 2) % AHEAD] = drawn;
    }
    __device__ __forceinline__ void finish(int turn, const UnitParts *part) {
        const FewUnit unit = FewUnit::at(s.drawn[turn % AHEAD], s.n_tiles);
        const Listed of = s.tile[unit.tile];
        for (int i = threadIdx.x; i < of.rows * PANEL; i += THREADS) {
            const int r = i / PANEL, c = i % PANEL, column = unit.panel * PANEL + c;
            const int64_t choice = s.choice[of.first + r];
            if (column >= call.b.width) continue;
            const float z = whole_sum<SHARES>(part, r, c);
            if (UP)
                call.h[choice * call.p.n + column] = __float2bfloat16(
                    act_point(call.rule, z, GATED ? whole_sum<SHARES>(part + SHARES, r, c) : 0.f).value);
            else
                call.sums[choice * call.p.d + column] = z;
        }
    }
};

template <int CODES, bool GATED, bool UP>
__global__ void __launch_bounds__(FewBlock<UP>::THREADS, FewBlock<UP>::PER_SM)
    few_packed_kernel(const __grid_constant__ FewPackedCall call) {
    enum { THREADS = FewBlock<UP>::THREADS };
    extern __shared__ __align__(16) char raw[];
    __shared__ Choices s;
    FewPackedShared<CODES, UP> &shared = *(FewPackedShared<CODES, UP> *)raw;
    const moei_few_args &p = call.p;
    const int token = threadIdx.x / p.top_k;
    for (int i = threadIdx.x; i < MOEI_FEW_EXPERTS; i += THREADS) s.count[i] = 0;
    shared.table.put(call.b.value);
    if (threadIdx.x < 2) s.drawn[threadIdx.x] = (int32_t)(blockIdx.x + threadIdx.x * gridDim.x);
    /* All that can be known before choices are. */
    const Walk<CODES, FewUnits<GATED, UP>::SHARES> walk(call.b);
    const Places<CODES> places(shared);
    if (UP) await_earlier();
    let_next_start();
    __syncthreads();
    /* Of down, choices are there: up, which awaited them, let it start. */
    sort_packed_choices<THREADS>(p, s, token);
    FewUnits<GATED, UP> units = {call, s, p.drawn + !UP, s.n_tiles * call.b.panels, 0};
    multiply_packed_units(call.b, shared, walk, places, units);
}

template <int CODES, bool GATED, bool UP>
static cudaError_t launch_units(const moei_team *team, const FewPackedCall &call) {
    int n_sm = 0;
    const auto kernel = few_packed_kernel<CODES, GATED, UP>;
    const int bytes = (int)sizeof(FewPackedShared<CODES, UP>);
    cudaError_t error = multiprocessors(&n_sm);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    const int64_t units = call.p.n_tokens * call.p.top_k * call.b.panels,
                  blocks = FewBlock<UP>::PER_SM * (int64_t)n_sm;
    return launch_early(kernel, dim3((unsigned)(units < blocks ? units : blocks)), FewBlock<UP>::THREADS,
                        bytes, stream_of(team), call);
}
template <bool GATED, bool UP>
static cudaError_t launch_codes(const moei_team *team, const FewPackedCall &call) {
    switch (call.b.codes) {
    case BYTES:
        return launch_units<BYTES, GATED, UP>(team, call);
    case INTEGERS:
        return launch_units<INTEGERS, GATED, UP>(team, call);
    case TABLE_EXPONENTS:
        return launch_units<TABLE_EXPONENTS, GATED, UP>(team, call);
    case TABLE:
        break;
    }
    return launch_units<TABLE, GATED, UP>(team, call);
}

} // namespace moei

int moei_cuda_few_packed(const moei_team *team, const moei_few_args *args) {
    using namespace moei;
    FewPackedCall up = {*args, packed_b_of(args->w1_packed), act_rule_of(args->act, args->act_numbers), NULL,
                        NULL};
    up.h = (bf16 *)args->scratch;
    up.sums = (float *)(up.h + args->n_tokens * args->top_k * args->n);
    FewPackedCall down = up;
    down.b = packed_b_of(args->w2_packed);
    cudaError_t error =
        moe_act_gated(args->act) ? launch_codes<true, true>(team, up) : launch_codes<false, true>(team, up);
    if (error) return error;
    error = launch_codes<false, false>(team, down);
    return error ? error : launch_few_sum(team, *args, up.sums, 0);
}
