/* gemm_rows_pairs.h: grouped product over ragged rows of bf16, for the families that multiply pairs.
 * Tasks, epilogues: gemm_rows_task.h; packing: gemm_pairs.h. Include after gemm_tile_dp.h or gemm_tile_amx.h.
 * Source: loops after BLIS; blocks by the measured sizes of docs/kernels.md.
 */
#include <moekit/op.h>

enum {
    MB = 448,    /* rows of a task at most: whole tiles of 14 and of 32 */
    MB_MIN = 96, /* and at least, where threads would have nothing to do */
};

#include "kernel/gemm_rows/gemm_rows_task.h"

typedef struct moei_pairs_scratch {
    _Alignas(64) uint16_t b[KC * NB];
    uint16_t a[MR * A_LD];
    uint16_t strip[STRIP_K * NR];
    float sum[(MB + MR) * SUM_LD];
} moei_pairs_scratch;
_Static_assert(sizeof(moei_pairs_scratch) <= MOEI_THREAD_SCRATCH, "a task's blocks fit the thread's scratch");

/* Rows of A one after another with stride A_LD, zeros up to padded(kc). */
static void pack_a(const moei_rows *a, int64_t row, int mr, int64_t k0, int64_t kc, uint16_t *out) {
    for (int i = 0; i < mr; ++i) {
        const uint16_t *from = bf16_at(a, row + i) + k0;
        for (int64_t k = 0; k < kc; k += 32)
            _mm512_storeu_si512(out + i * A_LD + k, load_bf16(from + k, kc - k));
    }
}

/* Few rows: a strip of B is packed in L1 and used at once, so that reading memory never pauses. */
static void stream_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                        const moei_rows *b, moei_pairs_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    int mr = (int)(task->end - task->row);
    for (int64_t k = 0; k < args->k; k += STRIP_K) {
        int64_t steps = moei_min(STRIP_K, args->k - k), next = moei_min(STRIP_K, args->k - k - steps);
        moei_fetch fetch = fetch_of(b, args->b_trans, cols, k + steps, next);
        int64_t share = fetch_share(&fetch, cols->n_runs * cols->panels, steps);
        if (k % KC == 0) pack_a(a, task->row, mr, k, moei_min(KC, args->k - k), scratch->a);
        for (int64_t p = 0; p < cols->n_runs * cols->panels; ++p) {
            int64_t j = p % cols->panels * NR;
            pack_strip_any(b, args->b_trans, cols->first[p / cols->panels] + j, moei_min(NR, cols->width - j),
                           k, steps, scratch->strip);
            tile_pairs(mr, scratch->a + k % KC, scratch->strip, padded(steps), scratch->sum + p * NR, k > 0,
                       &fetch, share);
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* The block of B that this thread packs after the one at k0: the next one of the sum, or the first of the
 * task it is likely to get next. */
static moei_fetch next_block(const moei_rows_job *job, int64_t number, const moei_rows_task *task,
                             const moei_rows *b, int64_t k0) {
    const moe_gemm_rows_args *args = job->args;
    int64_t k1 = k0 + KC;
    if (k1 < args->k) return fetch_of(b, args->b_trans, &task->cols, k1, moei_min(KC, args->k - k1));
    if (number + job->n_threads >= job->n_tasks) return (moei_fetch){.end = 0};
    moei_rows_task next = find_task(job, number + job->n_threads);
    moei_rows of_next = {byte_at(true, args->b, next.group * args->b_group), args->ldb, NULL, true};
    return fetch_of(&of_next, args->b_trans, &next.cols, 0, moei_min(KC, args->k));
}

static void block_task(const moei_rows_job *job, int64_t number, const moei_rows_task *task,
                       const moei_rows *a, const moei_rows *b, moei_pairs_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    int64_t panels = cols->n_runs * cols->panels, strips = moei_ceil_div(task->end - task->row, MR);
    for (int64_t k0 = 0; k0 < args->k; k0 += KC) {
        int64_t kc = moei_min(KC, args->k - k0);
        bool last = k0 + KC >= args->k;
        pack_b(b, args->b_trans, cols, k0, kc, scratch->b);
        moei_fetch fetch = next_block(job, number, task, b, k0);
        int64_t share = fetch_share(&fetch, panels * strips, kc);
        for (int64_t row = task->row; row < task->end; row += MR) {
            int mr = (int)moei_min(MR, task->end - row);
            float *sum = args->k <= KC ? scratch->sum : scratch->sum + (row - task->row) * SUM_LD;
            if (last) fetch_epilogue(job, task, row, mr);
            pack_a(a, row, mr, k0, kc, scratch->a);
            for (int64_t p = 0; p < panels; ++p)
                tile_pairs(mr, scratch->a, scratch->b + p * padded(kc) * NR, padded(kc), sum + p * NR, k0 > 0,
                           &fetch, share);
            if (last) epilogue(job, task, row, mr, sum);
        }
    }
}

static void rows_task(void *arg, int64_t number, void *memory) {
    const moei_rows_job *job = arg;
    const moe_gemm_rows_args *args = job->args;
    moei_rows_task task = find_task(job, number);
    const moei_rows a = {args->a, args->lda, args->a_row, true};
    const moei_rows b = {byte_at(true, args->b, task.group * args->b_group), args->ldb, NULL, true};
    tiles_begin();
    if (task.end - task.row <= STREAM_ROWS)
        stream_task(job, &task, &a, &b, memory);
    else
        block_task(job, number, &task, &a, &b, memory);
    tiles_end();
}
