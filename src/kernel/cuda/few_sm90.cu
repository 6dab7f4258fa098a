/* few_sm90.cu: the experts of up to 128 tokens. One kernel does gate, up and down, so that reading weights
 * never pauses, and a second one sums over experts. Weights are read once (twice for an expert with more than
 * 64 rows). There is no plan: every block finds out for itself who chose which expert.
 * A unit is twice 64 columns of an expert (gate and up, or down) times up to 64 rows that chose it. Units are
 * drawn in order, all of up's before down's, so what a unit waits for has been begun by a block that runs. In
 * a block, one thread loads weights, three warps load rows, and two warpgroups multiply units in turns, with
 * the weights as wgmma's A. Source: docs/kernels-cuda.md, few tokens.
 */
#include "kernel/cuda/act_fast.cuh"
#include "kernel/cuda/few_halves.cuh"
#include "kernel/cuda/few_sum.cuh"
#include "kernel/cuda/gemm_core.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

enum { HALVES = 2, COLUMNS = 64, BOX_BYTES = COLUMNS * TILE_K * 2 }; /* of a unit, its boxes of weights */
enum { STAGES = 5, WEIGHT_BYTES = HALVES * BOX_BYTES, ROW_BYTES = TILE_K * 2 };
enum { MOST_ROWS = MOEI_FEW_EXPERT_ROWS, STAGE_BYTES = WEIGHT_BYTES + MOST_ROWS * ROW_BYTES };
enum { BRINGERS = LOADERS - 32, ROWS_AT_ONCE = BRINGERS / 8, CONSUMER_WARPS = 4 };
/* Places for units that are known and not finished: each but the last two has a stage that is taken. */
enum { TOLD = 16 };
static_assert((int)MOEI_FEW_TOKENS <= 2 * (int)MOST_ROWS, "two entries an expert at most");
static_assert((int)TOLD > (int)STAGES + 3, "a unit's place is free again");
enum { CHOICES = MOEI_FEW_ROWS, EXPERTS = MOEI_FEW_EXPERTS, LISTED = EXPERTS + CHOICES / MOST_ROWS };
static_assert(1 + (int)LISTED <= (int)MOEI_FEW_COUNTERS, "counters");
static_assert(THREADS == LOADERS + 2 * 128 && CHOICES <= INT16_MAX,
              "roles of warpgroups, numbers of choices");
enum { TURN = 1, STORED = 3, SORTED = 5 }; /* barriers; of the first two one a warpgroup */

struct FewCall {
    moei_few_args p;
    FastAct act;
    bf16 *h, *rows; /* of each choice: [T, K, n], [T, K, d] */
};

struct Told {
    int32_t unit, position; /* stages before it */
};
struct FewShared {
    uint64_t full[STAGES], empty[STAGES], told[TOLD];
    Told unit[TOLD];
    int32_t n_listed, count[EXPERTS];        /* of an expert's choices, see Halves */
    Listed listed[LISTED];                   /* those that somebody chose, with more than MOST_ROWS twice */
    int16_t choice[CHOICES], token[CHOICES]; /* by expert */
};

struct Unit {
    bool up;
    int listed, slice;
};
struct Units {
    int listed, up, down; /* units of an expert */
    __device__ __forceinline__ int count() const { return listed * (up + down); }
    __device__ __forceinline__ Unit at(int u) const {
        const int first = listed * up;
        return u < first ? Unit{true, u / up, u % up} : Unit{false, (u - first) / down, (u - first) % down};
    }
};

/* Of a listed expert, units of up that are stored. Counted behind the units drawn; all 0 between calls. */
__device__ __forceinline__ uint32_t *stored_of(const moei_few_args &p, int listed) {
    return p.drawn + 1 + listed;
}

/* Choices by expert, whole block. Of an expert that is listed twice the first MOST_ROWS tokens and the
 * others each have their entry: every block sorts for itself, so what an entry holds must not hang on who
 * counts first. */
__device__ __forceinline__ void sort_by_block(const moei_few_args &p, FewShared &s) {
    enum { OWN = (CHOICES + THREADS - 1) / THREADS, FIRST_AT = 16 };
    const int thread = threadIdx.x, choices = (int)p.n_tokens * p.top_k;
    int chosen[OWN], rank[OWN];
    const auto half_of = [&](int i) { return Halves{(i * THREADS + thread) / p.top_k >= MOST_ROWS}; };
#pragma unroll
    for (int i = 0; i < OWN; ++i)
        chosen[i] = i * THREADS + thread < choices ? p.expert[i * THREADS + thread] : -1;
#pragma unroll
    for (int i = 0; i < OWN; ++i) rank[i] = chosen[i] >= 0 ? half_of(i).count(&s.count[chosen[i]]) : 0;
    __syncthreads();
    if (thread < 32) {
        const int each = (p.n_experts + 31) / 32, begin = min(thread * each, p.n_experts),
                  end = min(begin + each, p.n_experts);
        int own = 0; /* choices, and below them experts */
        for (int e = begin; e < end; ++e)
            own += (Halves::both(s.count[e]) << FIRST_AT) + Halves::parts(s.count[e], MOST_ROWS);
        const int upto = warp_prefix(own);
        if (thread == 31) s.n_listed = upto & ((1 << FIRST_AT) - 1);
        int at = (upto - own) & ((1 << FIRST_AT) - 1), first = (upto - own) >> FIRST_AT;
        for (int e = begin; e < end; ++e) {
            const int counted = s.count[e];
            s.count[e] = Halves::begin(first, counted);
            Halves::list(&s.listed[at], e, first, counted, MOST_ROWS);
            at += Halves::parts(counted, MOST_ROWS), first += Halves::both(counted);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        if (chosen[i] < 0) continue;
        const int at = half_of(i).place(s.count[chosen[i]], rank[i]), choice = i * THREADS + thread;
        s.choice[at] = (int16_t)choice, s.token[at] = (int16_t)(choice / p.top_k);
    }
}

/* Whole block; whoever asks for weights, which `choice` is nothing to, goes on at once. */
__device__ __forceinline__ void sort_choices(const moei_few_args &p, FewShared &s) {
    const int lane = threadIdx.x & 31, choices = (int)p.n_tokens * p.top_k;
    if (choices > 32) {
        sort_by_block(p, s);
    } else if (threadIdx.x < 32) {
        const int expert = lane < choices ? p.expert[lane] : -1,
                  listed = sort_by_warp(expert, lane / p.top_k, s.listed, s.choice, s.token);
        if (lane == 0) s.n_listed = listed;
        __syncwarp();
    }
    if (threadIdx.x < 32)
        named_barrier_arrive(SORTED, THREADS);
    else
        named_barrier(SORTED, THREADS);
}

/* Unit number `turn` of this block. */
__device__ __forceinline__ Told told_at(FewShared &s, int turn) {
    mbar_wait(smem_address(&s.told[turn % TOLD]), turn / TOLD & 1);
    return s.unit[turn % TOLD];
}
__device__ __forceinline__ void tell(FewShared &s, int turn, int unit, int position) {
    s.unit[turn % TOLD] = {unit, position};
    mbar_arrive(smem_address(&s.told[turn % TOLD]));
}

/* A unit's weights, one thread; draws the next one when the last of them are asked for. */
__device__ __forceinline__ int load_unit(FewShared &s, const CUtensorMap *map, uint32_t base,
                                         Ring<STAGES> &ring, uint32_t *drawn, int column, int second,
                                         int expert, int k_blocks) {
    int next = 0;
#pragma unroll 1
    for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
        if (kb == max(k_blocks - 3, 0)) next = (int)atomicAdd(drawn, 1);
        const uint32_t full = smem_address(&s.full[ring.stage]), to = base + ring.stage * STAGE_BYTES;
        mbar_wait(smem_address(&s.empty[ring.stage]), ring.phase ^ 1);
        mbar_arrive_expect(full, WEIGHT_BYTES);
        tma_load_box(to, map, full, column, kb * TILE_K, expert);
        tma_load_box(to + BOX_BYTES, map, full, second, kb * TILE_K, expert);
    }
    return next;
}
template <bool GATED>
__device__ __forceinline__ void load_units(const moei_few_args &p, FewShared &s, const Units &units,
                                           uint32_t base, const CUtensorMap *w1, const CUtensorMap *w2,
                                           int first) {
    Ring<STAGES> ring;
    const int up_blocks = (int)ceil_div(p.d, TILE_K), down_blocks = (int)ceil_div(p.n, TILE_K);
    int position = 0, turn = 0;
    for (int u = first; u < units.count(); ++turn) {
        const Unit unit = units.at(u);
        const int expert = s.listed[unit.listed].expert;
        tell(s, turn, u, position);
        if (unit.up) {
            const int column = unit.slice * COLUMNS * (GATED ? 1 : HALVES);
            u = load_unit(s, w1, base, ring, p.drawn, column, column + (GATED ? (int)p.n : (int)COLUMNS),
                          expert, up_blocks);
            position += up_blocks;
        } else {
            const int column = unit.slice * COLUMNS * HALVES;
            u = load_unit(s, w2, base, ring, p.drawn, column, column + COLUMNS, expert, down_blocks);
            position += down_blocks;
        }
    }
    for (int group = 0; group < 2; ++group) tell(s, turn + group, units.count(), position);
}

/* All of up's units of an expert are stored. */
__device__ __forceinline__ void await_stored(const uint32_t *count, uint32_t all) {
    for (uint32_t stored = 0; stored < all;) stored = load_acquire(count);
}

/* The rows of all units, a stage at a time beside its weights; eight threads a row. */
__device__ __forceinline__ void bring_rows(const FewCall &call, FewShared &s, const Units &units,
                                           uint32_t base) {
    const moei_few_args &p = call.p;
    const int chunk = threadIdx.x & 7, row0 = (threadIdx.x - 32) >> 3;
    Ring<STAGES> ring;
    for (int turn = 0, u; (u = told_at(s, turn).unit) < units.count(); ++turn) {
        const Unit unit = units.at(u);
        const Listed e = s.listed[unit.listed];
        const int16_t *const index = (unit.up ? s.token : s.choice) + e.first;
        const bf16 *const from = (unit.up ? (const bf16 *)p.x : call.h) + chunk * 8;
        const int64_t ld = unit.up ? p.ldx : p.n;
        const int width = (int)(unit.up ? p.d : p.n);
        if (!unit.up) await_stored(stored_of(p, unit.listed), (uint32_t)units.up);
#pragma unroll 1
        for (int k = 0; k < width; k += TILE_K, ring.next()) {
            const uint32_t to = base + ring.stage * STAGE_BYTES + WEIGHT_BYTES;
            const bool valid = k + chunk * 8 < width;
            mbar_wait(smem_address(&s.empty[ring.stage]), ring.phase ^ 1);
            for (int row = row0; row < e.rows; row += ROWS_AT_ONCE)
                cp_async16(to + row * ROW_BYTES + ((chunk ^ (row & 7)) << 4),
                           from + index[row] * ld + (valid ? k : 0), valid);
            cp_async_arrive(smem_address(&s.full[ring.stage]));
        }
    }
}

/* acc[half]: 64 columns of weights times N rows. Rows past the expert's are whatever stands there, as are
 * their sums. The other warpgroup's turn comes when all stages have been awaited. */
template <int N>
__device__ __forceinline__ void multiply_unit(float (&acc)[HALVES][N / 2], FewShared &s, uint32_t base,
                                              Ring<STAGES> ring, int k_blocks, int group) {
    const auto give_back = [&s](int stage) {
        if ((threadIdx.x & 31) == 0) mbar_arrive(smem_address(&s.empty[stage]));
    };
    int previous = 0;
#pragma unroll 1
    for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
        mbar_wait(smem_address(&s.full[ring.stage]), ring.phase);
        fence_async(); /* rows came by cp.async */
        const uint32_t at = base + ring.stage * STAGE_BYTES;
        const uint64_t a = matrix_descriptor(at, BOX_BYTES),
                       b = matrix_descriptor(at + WEIGHT_BYTES, BOX_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k16 = 0; k16 < TILE_K / 16; ++k16)
#pragma unroll
            for (int half = 0; half < HALVES; ++half)
                Wgmma<N, true, false>::mma(acc[half],
                                           a + k16 * descriptor_step16<true>() + half * (BOX_BYTES >> 4),
                                           b + k16 * descriptor_step16<false>(), (kb | k16) != 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (kb > 0) give_back(previous);
        previous = ring.stage;
    }
    named_barrier_arrive(TURN + 1 - group, 256);
    wgmma_wait<0>();
    give_back(previous);
}

/* Sums as a warpgroup has them -> to[choice, ld], from column `column` on. A lane has column l/4 (and + 8) of
 * rows 2(l%4) and the next; two lanes exchange one, so that either has two columns of one row.
 * value(j, i): the number of sum 4j + i. */
template <int N, class Value>
__device__ __forceinline__ void store_rows(const FewShared &s, const Listed &e, bf16 *to, int64_t ld,
                                           int column, int64_t width, const Value &value) {
    const int lane = threadIdx.x & 31, odd = lane >> 2 & 1;
    const int first = column + threadIdx.x / 32 % 4 * 16 + (lane >> 3) * 2;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        const int row = j * 8 + (lane & 3) * 2 + odd;
        if (j * 8 >= e.rows) break;
        bf16 *const at = to + s.choice[e.first + (row < e.rows ? row : 0)] * ld + first;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float even_row = value(j, 2 * i), odd_row = value(j, 2 * i + 1);
            const float got = __shfl_xor_sync(~0u, odd ? even_row : odd_row, 4);
            if (row < e.rows && first + i * 8 < width)
                *(uint32_t *)(at + i * 8) = odd ? bf16_pack(got, odd_row) : bf16_pack(even_row, got);
        }
    }
}

template <int N, bool GATED>
__device__ __forceinline__ void store_up(const FewCall &call, const FewShared &s, const Unit &unit,
                                         const Listed &e, const float (&acc)[HALVES][N / 2], int group) {
    const moei_few_args &p = call.p;
    by_path(call.act, [&](auto common) {
        if (GATED) {
            store_rows<N>(s, e, call.h, p.n, unit.slice * COLUMNS, p.n, [&](int j, int i) {
                return fast_point<true, decltype(common)::value>(call.act, acc[0][4 * j + i],
                                                                 acc[1][4 * j + i])
                    .value;
            });
        } else {
#pragma unroll
            for (int half = 0; half < HALVES; ++half)
                store_rows<N>(
                    s, e, call.h, p.n, (unit.slice * HALVES + half) * COLUMNS, p.n, [&](int j, int i) {
                        return fast_point<false, decltype(common)::value>(call.act, acc[half][4 * j + i], 0)
                            .value;
                    });
        }
    });
    named_barrier(STORED + group, 128);
    if (threadIdx.x % 128 != 0) return;
    count_release(stored_of(p, unit.listed));
}

template <int N, bool GATED>
__device__ __forceinline__ void finish_unit(const FewCall &call, FewShared &s, const Units &units,
                                            uint32_t base, const Told &told, int group) {
    const Unit unit = units.at(told.unit);
    const Listed e = s.listed[unit.listed];
    const int k_blocks = (int)ceil_div(unit.up ? call.p.d : call.p.n, TILE_K);
    const Ring<STAGES> ring = {told.position % STAGES, (uint32_t)(told.position / STAGES) & 1};
    float acc[HALVES][N / 2];
    multiply_unit<N>(acc, s, base, ring, k_blocks, group);
    if (unit.up) {
        store_up<N, GATED>(call, s, unit, e, acc, group);
        return;
    }
#pragma unroll
    for (int half = 0; half < HALVES; ++half)
        store_rows<N>(s, e, call.rows, call.p.d, (unit.slice * HALVES + half) * COLUMNS, call.p.d,
                      [&](int j, int i) { return acc[half][4 * j + i]; });
}

template <bool GATED>
__device__ __forceinline__ void multiply_units(const FewCall &call, FewShared &s, const Units &units,
                                               uint32_t base) {
    const int group = threadIdx.x / 128 - 1;
    if (group == 1) named_barrier_arrive(TURN, 256);
    for (int turn = group;; turn += 2) {
        const Told told = told_at(s, turn);
        if (told.unit >= units.count()) return;
        const int rows = s.listed[units.at(told.unit).listed].rows;
        named_barrier(TURN + group, 256);
        if (rows <= 16)
            finish_unit<16, GATED>(call, s, units, base, told, group);
        else if (rows <= 32)
            finish_unit<32, GATED>(call, s, units, base, told, group);
        else
            finish_unit<MOST_ROWS, GATED>(call, s, units, base, told, group);
    }
}

template <bool GATED>
__global__ void __maxnreg__(160) /* of 384 threads, which leaves room for blocks of the sums */
    few_kernel(const __grid_constant__ FewCall call, const __grid_constant__ CUtensorMap w1,
               const __grid_constant__ CUtensorMap w2) {
    extern __shared__ __align__(1024) char raw[];
    __shared__ FewShared s;
    const moei_few_args &p = call.p;
    const uint32_t base = smem_address(raw);
    for (int i = threadIdx.x; i < p.n_experts; i += THREADS) s.count[i] = 0;
    if (threadIdx.x == 0) {
        prefetch_map(&w1), prefetch_map(&w2);
        for (int i = 0; i < STAGES; ++i) mbar_init(smem_address(&s.full[i]), 1 + BRINGERS);
        for (int i = 0; i < STAGES; ++i) mbar_init(smem_address(&s.empty[i]), CONSUMER_WARPS);
        for (int i = 0; i < TOLD; ++i) mbar_init(smem_address(&s.told[i]), 1);
        mbar_init_done();
    }
    __syncthreads();
    let_next_start();
    await_earlier();
    int first = 0;
    if (threadIdx.x == 0) first = (int)atomicAdd(p.drawn, 1);
    sort_choices(p, s);
    const Units units = {s.n_listed, (int)ceil_div(p.n, GATED ? (int)COLUMNS : HALVES * COLUMNS),
                         (int)ceil_div(p.d, HALVES * COLUMNS)};
    if (threadIdx.x == 0)
        load_units<GATED>(p, s, units, base, &w1, &w2, first);
    else if (threadIdx.x >= LOADERS)
        multiply_units<GATED>(call, s, units, base);
    else if (threadIdx.x >= 32)
        bring_rows(call, s, units, base);
}

template <bool GATED> static cudaError_t launch_few(const moei_team *team, const FewCall &call) {
    const moei_few_args &p = call.p;
    const int64_t width = GATED ? 2 * p.n : p.n;
    const int bytes = STAGES * STAGE_BYTES;
    CUtensorMap w1, w2;
    int n_sm = 0;
    cudaError_t error = make_map(team, &w1, p.w1, width, p.d, p.n_experts, width, TILE_K, true);
    if (!error) error = make_map(team, &w2, p.w2, p.d, p.n, p.n_experts, p.d, TILE_K, true);
    if (!error) error = multiprocessors(&n_sm);
    if (!error)
        error = cudaFuncSetAttribute(few_kernel<GATED>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    return launch_early(few_kernel<GATED>, dim3((unsigned)n_sm), THREADS, bytes, stream_of(team), call, w1,
                        w2);
}

} // namespace moei

int moei_cuda_few(const moei_team *team, const moei_few_args *args) {
    using namespace moei;
    if (!moei_few_takes(args)) return cudaErrorNotSupported;
    if (args->w1_packed) return moei_cuda_few_packed(team, args);
    FewCall call = {*args, fast_act_of(args->act, args->act_numbers), (bf16 *)args->scratch, NULL};
    call.rows = call.h + args->n_tokens * args->top_k * args->n;
    const cudaError_t error =
        moe_act_gated(args->act) ? launch_few<true>(team, call) : launch_few<false>(team, call);
    return error ? error : launch_few_sum(team, *args, call.rows, MOEI_FEW_COUNTERS);
}

extern "C" bool moei_few__sm90(const moei_team *team, const moei_few_args *args) {
    return moei_cuda_few(team, args) != cudaErrorNotSupported;
}
