/* gemm_rows_pairs.h: grouped product over ragged rows of bf16, for the families that multiply pairs.
 * Tasks, epilogues: gemm_rows_task.h; packing: gemm_pairs.h. Include after gemm_tile_dp.h or gemm_tile_amx.h.
 * Source: loops after BLIS; blocks by the measured sizes of docs/kernels.md.
 */
#include <moekit/op.h>

enum { MB_MIN = 96 /* rows of a task at least, where threads would have nothing to do */ };

#include "kernel/gemm_rows/gemm_packed_pairs.h"
#include "kernel/gemm_rows/gemm_rows_task.h"

/* Rows of A -> a strip, zeros up to padded(kc). */
static void pack_a(const moei_rows *a, int64_t row, int mr, int64_t k0, int64_t kc, uint16_t *out) {
    for (int i = 0; i < mr; ++i) {
        const uint16_t *from = bf16_at(a, row + i) + k0;
        for (int64_t k = 0; k < kc; k += 32)
            _mm512_storeu_si512(out + a_at(i, k), load_bf16(from + k, kc - k));
    }
}

/* B[k .. k+steps, panel p of the columns] */
static moei_b_strip strip_of(const moei_rows *b, bool b_trans, const moei_columns *cols, int64_t p, int64_t k,
                             int64_t steps) {
    const int64_t j = p % cols->panels * NR;
    return (moei_b_strip){.b = b,
                          .b_trans = b_trans,
                          .column = cols->first[p / cols->panels] + j,
                          .width = moei_min(NR, cols->width - j),
                          .k0 = k,
                          .kc = steps};
}

/* Few rows: a strip of B is used as soon as it is in L1, so that reading memory never pauses; or the one
 * before it, STRIP_LAG. */
static void stream_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                        const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    int mr = (int)(task->end - task->row);
    int64_t strip_k = args->b_trans ? KC : STRIP_K; /* where k runs along memory, in longer pieces */
    const int64_t lag = args->b_trans ? 0 : STRIP_LAG, panels = cols->n_runs * cols->panels;
    fetch_all(fetch_b(b, args->b_trans, cols, 0, moei_min(strip_k, args->k)));
    for (int64_t k = 0; k < args->k; k += strip_k) {
        int64_t steps = moei_min(strip_k, args->k - k);
        moei_fetch fetch = next_block(job, task, b, k + strip_k, strip_k);
        int64_t share = fetch_share(&fetch, panels);
        if (k % KC == 0) pack_a(a, task->row, mr, k, moei_min(KC, args->k - k), scratch->a);
        for (int64_t p = 0; p < panels + lag; ++p) {
            const int64_t done = p - lag;
            if (p < panels) {
                const moei_b_strip strip = strip_of(b, args->b_trans, cols, p, k, steps);
                fetch_lines(&fetch, share);
                strip_ready(&strip, scratch->strip + (p & lag) * (STRIP_K * NR));
            }
            if (done >= 0) {
                const moei_b_strip strip = strip_of(b, args->b_trans, cols, done, k, steps);
                strip_product(mr, scratch->a + a_at(0, k % KC), &strip,
                              scratch->strip + (done & lag) * (STRIP_K * NR),
                              scratch->sum + sum_at(0, done * NR), k > 0);
            }
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* The same of packed weights, whose panels are read along the sum: the next lines are the next in memory. */
static void stream_packed(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                          moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    int mr = (int)(task->end - task->row);
    for (int64_t k0 = 0; k0 < args->k; k0 += KC) {
        int64_t kc = moei_min(KC, args->k - k0);
        pack_a(a, task->row, mr, k0, kc, scratch->a);
        for (int64_t p = 0; p < cols->n_runs * cols->panels; ++p) {
            int64_t column = cols->first[p / cols->panels] + p % cols->panels * NR;
            moei_pairs_use sums = {.a = scratch->a, .sum = scratch->sum + sum_at(0, p * NR), .add = k0 > 0};
            if (FUSES_PACKED) {
                multiply_few(mr, args->b_packed, task->group, column, k0, kc, sums);
                continue;
            }
            unpack_strip(args->b_packed, task->group, column, k0, kc, scratch->strip);
            tile_panel(mr, scratch->a, scratch->strip, padded(kc), sums.sum, sums.add);
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* False: as many rows are done. */
static bool few_rows(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                     const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const int64_t rows = task->end - task->row;
    if (args->b_packed) {
        if (rows > FEW_ROWS_PACKED) return false;
        stream_packed(job, task, a, scratch);
        return true;
    }
    if (rows > (args->b_trans ? FEW_ROWS_TRANS : FEW_ROWS_STREAMED)) return false;
    stream_task(job, task, a, b, scratch);
    return true;
}

#include "kernel/gemm_rows/gemm_rows_block.h"
