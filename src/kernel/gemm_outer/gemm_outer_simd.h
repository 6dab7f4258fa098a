/* gemm_outer_simd.h: grouped product over a ragged sum in vectors of f32.
 * A task is a block of C_g, at most MB x NB; the rows of the group are summed in blocks of KC from the
 * group's first, so an element's order depends on the group alone. Source: gemm_tile.h.
 */
#include <moekit/op.h>

#include "kernel/gemm_tile.h"
#include "kernel/kernel_list.h"

enum {
    MB = 252, /* rows of a task at most: a whole number of tiles of 14 and of 6 */
    MB_MIN = 42,
    A_PANEL = KC * MR + VF_N /* a panel [KC, MR]; the last store runs over by less than a vector */
};

typedef struct moei_outer_job {
    const moe_gemm_outer_args *args;
    int64_t block_rows, block_width;
} moei_outer_job;

typedef struct moei_outer_scratch {
    _Alignas(64) float b[KC * NB];
    float a[MB / MR * A_PANEL];
    float sum[MB * SUM_LD];
} moei_outer_scratch;
_Static_assert(MB % MR == 0, "a task's rows are whole tiles");
_Static_assert(sizeof(moei_outer_scratch) <= MOEI_THREAD_SCRATCH, "a task's blocks fit the thread's scratch");

/* A[k0 .. k0+kc, i0 .. i0+rows] -> panels of [kc, MR], the order in which the tile reads it. Rows of A are
 * read whole; a store may run over into the next row of its panel, which is written after it. */
static void pack_a(const moei_rows *a, int64_t i0, int64_t rows, int64_t k0, int64_t kc, float *out) {
    for (int64_t k = 0; k < kc; ++k) {
        int64_t from = row_start(a, k0 + k) + i0;
        for (int64_t i = 0; i < rows; i += MR) {
            vf x = vf_get(a->bf16, a->base, from + i, moei_min(MR, rows - i));
            vf_store(out + i / MR * A_PANEL + k * MR, x);
        }
    }
}

static __attribute__((noinline)) void tile_outer(int mr, const float *a, const float *b, int64_t kc,
                                                 float *sum, bool add) {
    tile_any(mr, a, 1, MR, b, kc, sum, add);
}

/* C from element `first` on (+)= the sums. */
static void store_block(const moe_gemm_outer_args *args, const float *sum, int64_t rows, int64_t width,
                        int64_t first) {
    bool bf16 = args->dtype == MOE_BF16 && !args->c_wide;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t at = first + i * args->ldc + j, left = width - j;
            vf x = vf_load(sum + i * SUM_LD + j);
            if (args->accumulate) x = vf_add(vf_get(bf16, args->c, at, left), x);
            vf_put(bf16, args->c, at, x, left);
        }
    }
}

static void outer_task(void *arg, int64_t task, void *memory) {
    const moei_outer_job *job = arg;
    const moe_gemm_outer_args *args = job->args;
    moei_outer_scratch *scratch = memory;
    int64_t across = moei_ceil_div(args->n, job->block_width), down = moei_ceil_div(args->m, job->block_rows);
    int64_t g = task / (across * down), i0 = task / across % down * job->block_rows;
    int64_t rows = moei_min(job->block_rows, args->m - i0), j0 = task % across * job->block_width;
    moei_columns cols = columns_of(j0, moei_min(job->block_width, args->n - j0));
    int64_t first = args->offset[g], end = args->offset[g + 1];
    bool bf16 = args->dtype == MOE_BF16;
    const moei_rows a = {args->a, args->lda, args->a_row, bf16}, b = {args->b, args->ldb, args->b_row, bf16};
    if (first == end && args->accumulate) return;
    for (int64_t k0 = first; k0 == first || k0 < end; k0 += KC) {
        int64_t kc = moei_min(KC, end - k0);
        pack_b(&b, &cols, k0, kc, scratch->b);
        pack_a(&a, i0, rows, k0, kc, scratch->a);
        for (int64_t p = 0; p < cols.panels; ++p) {
            for (int64_t i = 0; i < rows; i += MR)
                tile_outer((int)moei_min(MR, rows - i), scratch->a + i / MR * A_PANEL,
                           scratch->b + p * kc * NR, kc, scratch->sum + i * SUM_LD + p * NR, k0 > first);
        }
    }
    store_block(args, scratch->sum, rows, cols.width, g * args->c_group + i0 * args->ldc + j0);
}

/* Blocks of equal size, so that the last task is no shorter than the others by more than a tile. */
static int64_t even_block(int64_t size, int64_t limit, int64_t align) {
    int64_t even = moei_ceil_div(size, moei_ceil_div(size, limit));
    return moei_ceil_div(even, align) * align;
}

static int64_t count_tasks(const moei_outer_job *job) {
    const moe_gemm_outer_args *args = job->args;
    return args->n_groups * moei_ceil_div(args->m, job->block_rows) *
           moei_ceil_div(args->n, job->block_width);
}

static void gemm_outer_simd(const moei_team *team, const moe_gemm_outer_args *args) {
    moei_outer_job job = {
        .args = args, .block_rows = even_block(args->m, MB, MR), .block_width = even_block(args->n, NB, NR)};
    while (job.block_rows > MB_MIN && count_tasks(&job) < 4 * team->n_threads)
        job.block_rows = moei_ceil_div(job.block_rows / 2, MR) * MR;
    moei_parallel(team, count_tasks(&job), outer_task, &job);
}
