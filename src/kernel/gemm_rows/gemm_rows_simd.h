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
    FEW_ROWS = VF_N == 16 ? 32 : 8, /* up to so many rows take B where it is, a strip at a time; */
    FEW_ROWS_PACKED = 4,            /* these packed weights, multiplied as they are read */
    A_STRIP = (FEW_ROWS > MR ? FEW_ROWS : MR) * A_LD,
    SUMS = (MB + MR) * SUM_LD,
    FETCHES_B = 1, /* the next block of B is asked for while this one is multiplied */
};

#include "kernel/gemm_rows/gemm_packed_simd.h"
#include "kernel/gemm_rows/gemm_rows_task.h"

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

/* KC steps of B -> panels, however it is stored. */
static void ready_b(const moe_gemm_rows_args *args, int32_t g, const moei_rows *b, const moei_columns *cols,
                    int64_t k0, int64_t kc, float *out) {
    if (args->b_packed)
        unpack_b(args->b_packed, g, cols, k0, kc, out);
    else if (args->b_trans)
        pack_b_trans(b, cols, k0, kc, out);
    else
        pack_b(b, cols, k0, kc, out);
}

static __attribute__((noinline)) void tile_panel(int mr, const float *a, const float *b, int64_t kc,
                                                 float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, (moei_tile_b){b, 0}, kc, sum, add);
}

/* The same with rows of B where they are, ldb apart, of which a chain goes on. It begins a line, as where its
 * loops stand is worth some per cent to few rows. */
static __attribute__((noinline, aligned(64))) void
tile_direct(int mr, const float *a, const float *b, int64_t ldb, int64_t kc, float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, (moei_tile_b){b, ldb}, kc, sum, add);
}

/* Chains of `rows` sums go on by a strip of B, which is read where it is if it can be. */
static void linear_product(int rows, const float *a, const moei_strip *s, float *packed, float *sum) {
    const moei_rows *b = s->b;
    const float *from = (const float *)b->base + s->k * b->ld + s->column;
    int64_t ld = b->ld;
    if (b->bf16 || s->width < NR) {
        for (int64_t k = 0; k < s->steps; ++k)
            pack_edge(b->bf16, b->base, row_start(b, s->k + k) + s->column, s->width, packed + k * NR);
        from = packed;
        ld = NR;
    }
    for (int i = 0, mr; i < rows; i += mr) {
        mr = tile_height(rows - i);
        tile_direct(mr, a + i * A_LD + s->k % KC, from, ld, s->steps, sum + i * SUM_LD, s->k % KC != 0);
    }
}

/* The same for whole panels and few rows, a row of B after the other. */
MOEI_INLINE void sweep_rows(const int mr, const bool bf16, const float *a, const moei_strip *s, float *sum) {
    const int64_t ld = s->b->ld, at = s->k * ld + s->column;
    const float *x = a + s->k % KC;
    for (int64_t j = 0; j < s->width; j += NR, sum += NR) {
        vf acc[SWEEP_ROWS][NV];
        MOEI_UNROLL
        for (int i = 0; i < mr; ++i) {
            MOEI_UNROLL
            for (int v = 0; v < NV; ++v)
                acc[i][v] = s->k % KC == 0 ? vf_zero() : vf_load(sum + i * SUM_LD + v * VF_N);
        }
        for (int64_t k = 0; k < s->steps; ++k) {
            vf row[NV];
            MOEI_UNROLL
            for (int v = 0; v < NV; ++v) {
                row[v] = vf_get(bf16, s->b->base, at + k * ld + j + v * VF_N, VF_N);
                if (v * VF_N * (bf16 ? 2 : 4) % LINE == 0)
                    __builtin_prefetch(byte_at(bf16, s->next, k * ld + j + v * VF_N), 0, 2);
            }
            MOEI_UNROLL
            for (int i = 0; i < mr; ++i) {
                MOEI_UNROLL
                for (int v = 0; v < NV; ++v) acc[i][v] = vf_fma(vf_set1(x[i * A_LD + k]), row[v], acc[i][v]);
            }
        }
        MOEI_UNROLL
        for (int i = 0; i < mr; ++i) {
            MOEI_UNROLL
            for (int v = 0; v < NV; ++v) vf_store(sum + i * SUM_LD + v * VF_N, acc[i][v]);
        }
    }
}
MOEI_INLINE void sweep_fixed(const int mr, const float *a, const moei_strip *s, float *sum) {
    if (s->b->bf16)
        sweep_rows(mr, true, a, s, sum);
    else
        sweep_rows(mr, false, a, s, sum);
}

/* Few rows of packed weights. Whole panels are written, so that the second run comes after the first. */
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
                packed_panel(mr, p, moei_packed_block(p, task->group, k0, cols->first[run] + j), scratch->a,
                             A_LD, kc, scratch->sum + run * cols->panels * NR + j, k0 > 0);
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* False: as many rows are done. */
static bool few_rows(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                     const moei_rows *b, moei_rows_scratch *scratch) {
    (void)b;
    if (!job->args->b_packed || task->end - task->row > FEW_ROWS_PACKED) return false;
    stream_packed(job, task, a, scratch);
    return true;
}

#include "kernel/gemm_rows/gemm_rows_block.h"
#include "kernel/gemm_rows/gemm_rows_linear.h"
