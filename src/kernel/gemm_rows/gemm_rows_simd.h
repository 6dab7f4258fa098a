/* gemm_rows_simd.h: grouped product over ragged rows in vectors of f32.
 * bf16 is widened to f32 where operands are packed. Tasks and epilogues: gemm_rows_task.h.
 * Source: loops after BLIS (gemm_tile.h).
 */
#include <moekit/op.h>

#include "kernel/gemm_tile.h"

enum {
    MB = 504,       /* rows of a task at most: whole tiles of 14 and of 6, also when halved twice */
    MB_MIN = 126,   /* and at least, where threads would have nothing to do */
    A_LD = KC + 16, /* row stride of packed A */
    STREAM_ROWS = 4 /* up to so many rows read B where it is: packing would cost as much as the product */
};

#include "kernel/gemm_rows/gemm_packed_simd.h"
#include "kernel/gemm_rows/gemm_rows_task.h"

typedef struct moei_rows_scratch {
    _Alignas(64) float b[NB / NR * PANEL];
    float a[MR * A_LD];
    float sum[MB * SUM_LD];
    float block[STREAM_ROWS * SUM_LD];
} moei_rows_scratch;
_Static_assert(sizeof(moei_rows_scratch) <= MOEI_THREAD_SCRATCH, "a task's blocks fit the thread's scratch");

/* Rows of A, one after another with stride A_LD: the tile then reads all of them from one register. A
 * multiple of eight numbers a row, as words of packed weights have; past the last they are zeros. */
static void pack_a(const moei_rows *a, int64_t row, int mr, int64_t k0, int64_t kc, float *out) {
    for (int i = 0; i < mr; ++i) {
        int64_t from = row_start(a, row + i) + k0, k = 0;
        for (; k < kc; k += VF_N) vf_store(out + i * A_LD + k, vf_get(a->bf16, a->base, from + k, kc - k));
        for (; k % 8 != 0; k += VF_N) vf_store(out + i * A_LD + k, vf_zero());
    }
}

/* VF_N columns of B stored as [n, k], `width` of which exist, and up to VF_N steps -> rows of a panel. */
MOEI_INLINE void turn_block(const bool bf16, const void *base, int64_t from, int64_t ld, int64_t width,
                            int64_t kc, float *to) {
    vf block[VF_N];
    if (width >= VF_N && kc >= VF_N) { /* the common case, free of what the edges need */
        MOEI_UNROLL
        for (int64_t i = 0; i < VF_N; ++i) block[i] = vf_get(bf16, base, from + i * ld, VF_N);
        vf_transpose(block);
        MOEI_UNROLL
        for (int64_t i = 0; i < VF_N; ++i) vf_store(to + i * NR, block[i]);
        return;
    }
    for (int64_t i = 0; i < VF_N; ++i)
        block[i] = i < width ? vf_get(bf16, base, from + i * ld, kc) : vf_zero();
    vf_transpose(block);
    for (int64_t i = 0; i < moei_min(VF_N, kc); ++i) vf_store(to + i * NR, block[i]);
}

/* pack_b for B stored as [n, k]; the next VF_N of its rows are asked for, into L2, as rows a page apart would
 * take each other's places in L1. */
static void pack_b_trans(const moei_rows *b, const moei_columns *cols, int64_t k0, int64_t kc, float *out) {
    for (int64_t j = 0; j < cols->n_runs * cols->panels * NR; j += VF_N) {
        int64_t run = j / (cols->panels * NR), in_run = j % (cols->panels * NR);
        int64_t from = (cols->first[run] + in_run) * b->ld + k0, left = cols->width - in_run;
        float *to = out + j / NR * PANEL + j % NR;
        for (int64_t k = 0; k < kc; k += VF_N) {
            for (int64_t i = VF_N; i < moei_min(2 * VF_N, left); ++i)
                __builtin_prefetch(byte_at(b->bf16, b->base, from + i * b->ld + k), 0, 2);
            if (b->bf16)
                turn_block(true, b->base, from + k, b->ld, left, kc - k, to + k * NR);
            else
                turn_block(false, b->base, from + k, b->ld, left, kc - k, to + k * NR);
        }
    }
}

static __attribute__((noinline)) void tile_rows(int mr, const float *a, const float *b, int64_t kc,
                                                float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, b, NR, kc, sum, add);
}

static inline vf cell(const moei_rows *rows, int64_t i) {
    return vf_set1(rows->bf16 ? moei_bf16_value(((const uint16_t *)rows->base)[i])
                              : ((const float *)rows->base)[i]);
}

/* B_g[k0 .. k0+kc, run] times a few rows, B read where it is, four rows of it at a time: the chain of
 * every element is that of the tile. */
static void stream_block(const moei_rows *a, const moei_rows_task *task, const moei_rows *b, int64_t column,
                         int64_t k0, int64_t k_left, float *block) {
    int64_t rows = task->end - task->row, width = task->cols.width, kc = moei_min(KC, k_left), ldb = b->ld;
    for (int64_t k = 0; k < kc; k += 4) {
        int64_t steps = moei_min(4, kc - k);
        for (int64_t i = 0; i < rows; ++i) {
            int64_t x = row_start(a, task->row + i) + k0 + k;
            for (int64_t j = 0; j < width; j += VF_N) {
                float *at = block + i * SUM_LD + j;
                int64_t from = (k0 + k) * ldb + column + j;
                vf acc = k ? vf_load(at) : vf_zero();
                for (int64_t s = AHEAD; s < AHEAD + 4 && i == 0; ++s)
                    if (k + s < k_left) __builtin_prefetch(byte_at(b->bf16, b->base, from + s * ldb));
                if (steps == 4) {
                    acc = vf_fma(cell(a, x), vf_get(b->bf16, b->base, from, width - j), acc);
                    acc = vf_fma(cell(a, x + 1), vf_get(b->bf16, b->base, from + ldb, width - j), acc);
                    acc = vf_fma(cell(a, x + 2), vf_get(b->bf16, b->base, from + 2 * ldb, width - j), acc);
                    acc = vf_fma(cell(a, x + 3), vf_get(b->bf16, b->base, from + 3 * ldb, width - j), acc);
                } else {
                    for (int64_t s = 0; s < steps; ++s)
                        acc =
                            vf_fma(cell(a, x + s), vf_get(b->bf16, b->base, from + s * ldb, width - j), acc);
                }
                vf_store(at, acc);
            }
        }
    }
}

static void stream_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                        const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    int mr = (int)(task->end - task->row);
    for (int64_t k0 = 0; k0 == 0 || k0 < args->k; k0 += KC) {
        for (int32_t run = 0; run < task->cols.n_runs; ++run) {
            float *sum = scratch->sum + run * task->cols.panels * NR;
            float *block = k0 == 0 ? sum : scratch->block;
            stream_block(a, task, b, task->cols.first[run], k0, args->k - k0, block);
            for (int i = 0; i < mr && k0; ++i) {
                for (int64_t j = i * SUM_LD; j < i * SUM_LD + task->cols.width; j += VF_N)
                    vf_store(sum + j, vf_add(vf_load(sum + j), vf_load(block + j)));
            }
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* The same of packed weights. Whole panels are written, so that the second run comes after the first. */
static void stream_packed(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                          moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moe_packed *p = args->b_packed;
    const moei_columns *cols = &task->cols;
    const int mr = (int)(task->end - task->row);
    for (int32_t run = 0; run < cols->n_runs; ++run) {
        for (int64_t k0 = 0; k0 < args->k; k0 += KC) {
            const int64_t kc = moei_min(KC, args->k - k0);
            pack_a(a, task->row, mr, k0, kc, scratch->a);
            for (int64_t j = 0; j < cols->width; j += MOEI_PANEL)
                packed_panel(mr, p, packed_block(p, task->group, cols->first[run] + j, k0), scratch->a, A_LD,
                             kc, scratch->sum + run * cols->panels * NR + j, k0 > 0);
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

static void block_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                       const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    int64_t panels = cols->n_runs * cols->panels, tiles = moei_ceil_div(task->end - task->row, MR) * panels;
    for (int64_t k0 = 0; k0 == 0 || k0 < args->k; k0 += KC) {
        int64_t kc = moei_min(KC, args->k - k0);
        if (args->b_packed)
            unpack_b(args->b_packed, task->group, cols, k0, kc, scratch->b);
        else if (args->b_trans)
            pack_b_trans(b, cols, k0, kc, scratch->b);
        else
            pack_b(b, cols, k0, kc, scratch->b);
        moei_fetch block = next_block(job, task, b, k0 + KC, KC);
        int64_t block_share = fetch_share(&block, tiles);
        int mr;
        for (int64_t row = task->row; row < task->end; row += mr) {
            mr = tile_height(task->end - row);
            float *sum = args->k <= KC ? scratch->sum : scratch->sum + (row - task->row) * SUM_LD;
            moei_fetch rows = next_rows(task, a, row, k0, args->k);
            int64_t rows_share = fetch_share(&rows, panels);
            if (k0 + KC >= args->k) fetch_epilogue(job, task, row, mr);
            pack_a(a, row, mr, k0, kc, scratch->a);
            for (int64_t p = 0; p < panels; ++p) {
                fetch_lines(&rows, rows_share);
                fetch_lines(&block, block_share);
                tile_rows(mr, scratch->a, scratch->b + p * PANEL, kc, sum + p * NR, k0 > 0);
            }
            if (k0 + KC >= args->k) epilogue(job, task, row, mr, sum);
        }
    }
}

static void rows_task(void *arg, int64_t number, void *memory) {
    const moei_rows_job *job = arg;
    const moe_gemm_rows_args *args = job->args;
    const moei_rows_task task = find_task(job, number);
    const moei_rows a = {args->a, args->lda, args->a_row, job->bf16}, b = group_b(job, task.group);
    const bool few = task.end - task.row <= STREAM_ROWS;
    if (few && args->b_packed)
        stream_packed(job, &task, &a, memory);
    else if (few && !args->b_trans)
        stream_task(job, &task, &a, &b, memory);
    else
        block_task(job, &task, &a, &b, memory);
}
