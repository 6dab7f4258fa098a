/* gemm_outer_simd.h: grouped product over a ragged sum in vectors of f32.
 * A task is a block of C_g, at most MB x NB; the rows of the group are summed in blocks of KC from the
 * group's first, so an element's order depends on the group alone. Source: gemm_tile.h.
 */
#include <moekit/op.h>

#include "kernel/gemm_tile.h"

enum {
    MB = 252, /* rows of a task at most: a whole number of tiles of 14 and of 6 */
    MB_MIN = 42,
    TALL_MB = MB, /* A is packed for a whole task */
    WHOLE_SUM = 0,
    A_PANEL = KC * MR + VF_N /* a panel [KC, MR]; the last store runs over by less than a vector */
};

#include "kernel/gemm_outer/gemm_outer_task.h"

typedef struct moei_outer_scratch {
    _Alignas(64) float b[NB / NR * PANEL];
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
            for (int64_t v = 0; v < moei_min(MR, rows - i); v += VF_N) {
                vf x = vf_get(a->bf16, a->base, from + i + v, rows - i - v);
                vf_store(out + i / MR * A_PANEL + k * MR + v, x);
            }
        }
    }
}

static __attribute__((noinline)) void tile_outer(int mr, const float *a, const float *b, int64_t kc,
                                                 float *sum, bool add) {
    tile_any(mr, a, 1, MR, (moei_tile_b){b, 0}, kc, sum, add);
}

static void outer_task(void *arg, int64_t number, void *memory) {
    const moei_outer_job *job = arg;
    const moe_gemm_outer_args *args = job->args;
    moei_outer_scratch *scratch = memory;
    moei_outer_task task = find_task(job, number);
    int64_t first = args->offset[task.group], end = args->offset[task.group + 1];
    const moei_rows a = operand_a(args), b = operand_b(args);
    if (first == end && args->accumulate) return;
    int64_t tiles = task.cols.panels * moei_ceil_div(task.rows, MR);
    for (int64_t k0 = first; k0 == first || k0 < end; k0 += KC) {
        int64_t kc = moei_min(KC, end - k0);
        pack_b(&b, &task.cols, k0, kc, scratch->b);
        pack_a(&a, task.i0, task.rows, k0, kc, scratch->a);
        moei_ahead ahead = what_is_next(job, &task, k0 + KC, tiles);
        moei_fetch c = {.end = 0};
        if (k0 + KC >= end) c = fetch_c(job, &task, 0, task.rows);
        int64_t share = fetch_share(&c, tiles);
        for (int64_t p = 0; p < task.cols.panels; ++p) {
            for (int64_t i = 0; i < task.rows; i += MR) {
                fetch_ahead(&ahead);
                fetch_lines(&c, share);
                tile_outer((int)moei_min(MR, task.rows - i), scratch->a + i / MR * A_PANEL,
                           scratch->b + p * PANEL, kc, scratch->sum + i * SUM_LD + p * NR, k0 > first);
            }
        }
    }
    store_rows(job, &task, 0, task.rows, scratch->sum);
}
