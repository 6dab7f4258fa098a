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
    STRIP_K = 64,   /* rows of the strips of B that few rows use; whole ones fill KC */
    FEW_ROWS = VF_N == 16 ? 32 : 8, /* up to so many rows take B where it is, a strip at a time, */
    FEW_ROWS_TRANS = 0,             /* none of them B stored as [n, k], */
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

static __attribute__((noinline)) void tile_panel(int mr, const float *a, const float *b, int64_t kc,
                                                 float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, b, 0, kc, sum, add);
}

/* The same with rows of B where they are, ldb apart, of which a chain goes on. It begins a line, as where its
 * loops stand is worth some per cent to few rows. */
static __attribute__((noinline, aligned(64))) void
tile_direct(int mr, const float *a, const float *b, int64_t ldb, int64_t kc, float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, b, ldb, kc, sum, add);
}

/* Chains of `rows` sums go on by B[k0 .. k0+kc, column .. column+width], which is read where it is if it can
 * be. */
static void strip_product(int rows, const float *a, const moei_rows *b, int64_t column, int64_t width,
                          int64_t k0, int64_t kc, float *strip, float *sum, bool add) {
    const float *from = (const float *)b->base + k0 * b->ld + column;
    int64_t ld = b->ld;
    if (b->bf16 || width < NR) {
        for (int64_t k = 0; k < kc; ++k)
            pack_edge(b->bf16, b->base, row_start(b, k0 + k) + column, width, strip + k * NR);
        from = strip;
        ld = NR;
    }
    for (int i = 0, mr; i < rows; i += mr) {
        mr = tile_height(rows - i);
        tile_direct(mr, a + i * A_LD, from, ld, kc, sum + i * SUM_LD, add);
    }
}

/* Few rows: a strip of B is used as soon as it is in L1, so that reading memory never pauses. */
static void stream_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                        const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    const int mr = (int)(task->end - task->row);
    const int64_t panels = cols->n_runs * cols->panels;
    fetch_all(fetch_b(b, false, cols, 0, moei_min(STRIP_K, args->k)));
    for (int64_t k = 0; k == 0 || k < args->k; k += STRIP_K) {
        const bool first = k < KC, chain = k % KC != 0,
                   ends = k % KC + STRIP_K == KC || k + STRIP_K >= args->k;
        float *block = first ? scratch->sum : scratch->sum + FEW_ROWS * SUM_LD;
        moei_fetch fetch = next_block(job, task, b, k + STRIP_K, STRIP_K);
        const int64_t share = fetch_share(&fetch, panels);
        if (!chain) pack_a(a, task->row, mr, k, moei_min(KC, args->k - k), scratch->a);
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t j = p % cols->panels * NR;
            fetch_lines(&fetch, share);
            strip_product(mr, scratch->a + k % KC, b, cols->first[p / cols->panels] + j,
                          moei_min(NR, cols->width - j), k, moei_min(STRIP_K, args->k - k), scratch->strip,
                          block + p * NR, chain);
        }
        for (int i = 0; i < mr && ends && !first; ++i) {
            for (int64_t j = i * SUM_LD; j < i * SUM_LD + panels * NR; j += VF_N)
                vf_store(scratch->sum + j, vf_add(vf_load(scratch->sum + j), vf_load(block + j)));
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

#include "kernel/gemm_rows/gemm_rows_block.h"
