/* gemm_rows_pairs.h: grouped product over ragged rows of bf16, for the families that multiply pairs.
 * Tasks, epilogues: gemm_rows_task.h; packing: gemm_pairs.h. Include after gemm_packed_dp.h or
 * gemm_packed_amx.h.
 * Source: loops after BLIS; blocks by the measured sizes of docs/kernels.md.
 */
#include <moekit/op.h>

enum { MB_MIN = 96 /* rows of a task at least, where threads would have nothing to do */ };

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
    const int64_t panels = cols->n_runs * cols->panels;
    int mr = (int)(task->end - task->row);
    fetch_all(fetch_b(b, false, cols, 0, moei_min(STRIP_K, args->k)));
    for (int64_t k = 0; k < args->k; k += STRIP_K) {
        int64_t steps = moei_min(STRIP_K, args->k - k);
        moei_fetch fetch = next_block(job, task, b, k + STRIP_K, STRIP_K);
        int64_t share = fetch_share(&fetch, panels);
        if (k % KC == 0) pack_a(a, task->row, mr, k, moei_min(KC, args->k - k), scratch->a);
        for (int64_t p = 0; p < panels + STRIP_LAG; ++p) {
            const int64_t done = p - STRIP_LAG;
            if (p < panels) {
                const moei_b_strip strip = strip_of(b, false, cols, p, k, steps);
                fetch_lines(&fetch, share);
                strip_ready(&strip, scratch->strip + (p & STRIP_LAG) * (STRIP_K * NR));
            }
            if (done >= 0) {
                const moei_b_strip strip = strip_of(b, false, cols, done, k, steps);
                strip_product(mr, scratch->a + a_at(0, k % KC), &strip,
                              scratch->strip + (done & STRIP_LAG) * (STRIP_K * NR),
                              scratch->sum + sum_at(0, done * NR), k > 0);
            }
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* Panel p of the task's columns, of B stored as [n, k]: NR rows, which are one run of memory. Past the last
 * panel the first one of the task that this thread takes next if all go on in turn. */
static moei_fetch fetch_panel(const moei_rows_job *job, const moei_rows_task *task, int64_t p) {
    const int64_t after = task->number + job->n_threads;
    moei_rows_task of = *task;
    if (p == task->cols.n_runs * task->cols.panels) {
        if (after >= job->n_tasks) return (moei_fetch){.end = 0};
        of = find_task(job, after);
        p = 0;
    }
    const moei_rows b = group_b(job, of.group);
    const moei_b_strip strip = strip_of(&b, true, &of.cols, p, 0, job->args->k);
    return fetch_block(&b, strip.column, strip.column + strip.width, 0, job->args->k);
}

/* The same of B stored as [n, k], panel by panel: the next one is asked for in the order of memory. */
static void stream_trans(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                         const moei_rows *b, moei_rows_scratch *scratch) {
    const int64_t k_all = job->args->k, panels = task->cols.n_runs * task->cols.panels;
    const int mr = (int)(task->end - task->row);
    if (task->number < job->n_threads) fetch_all(fetch_panel(job, task, 0));
    for (int64_t p = 0; p < panels; ++p) {
        moei_fetch fetch = fetch_panel(job, task, p + 1);
        const int64_t share = fetch_share(&fetch, moei_ceil_div(k_all, KC));
        for (int64_t k = 0; k < k_all; k += KC) {
            const moei_b_strip strip = strip_of(b, true, &task->cols, p, k, moei_min(KC, k_all - k));
            fetch_lines(&fetch, share);
            pack_a(a, task->row, mr, k, strip.kc, scratch->a);
            strip_ready(&strip, scratch->strip);
            strip_product(mr, scratch->a, &strip, scratch->strip, scratch->sum + sum_at(0, p * NR), k > 0);
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

/* A run of columns of packed weights along steps k0 .. end, for which A is packed. */
typedef struct moei_packed_run {
    int32_t run;
    int64_t k0, end, a_chain; /* numbers of A for each PACKED_K steps */
} moei_packed_run;

/* What is read after the panel with column j: the next panel, the next run, the next steps begin, or the task
 * that this thread takes next if all go on in turn; or, of the last, nothing new. */
static const unsigned char *after_panel(const moei_rows_job *job, const moei_rows_task *task,
                                        const moei_packed_run *at, int64_t j) {
    const moe_packed *p = job->args->b_packed;
    const int64_t first = task->cols.first[at->run];
    if (j + MOEI_PANEL < task->cols.width)
        return moei_packed_block(p, task->group, at->k0, first + j + MOEI_PANEL);
    if (at->run + 1 < task->cols.n_runs)
        return moei_packed_block(p, task->group, at->k0, task->cols.first[at->run + 1]);
    if (at->end < job->args->k) return moei_packed_block(p, task->group, at->end, task->cols.first[0]);
    const int64_t after = task->number + job->n_threads;
    if (after >= job->n_tasks) return moei_packed_block(p, task->group, at->k0, first + j);
    const moei_rows_task next = find_task(job, after);
    return moei_packed_block(p, next.group, 0, next.cols.first[0]);
}

static void packed_run(const moei_rows_job *job, const moei_rows_task *task, const moei_packed_run *at,
                       moei_rows_scratch *scratch) {
    const moei_columns *cols = &task->cols;
    const moe_packed *p = job->args->b_packed;
    for (int64_t j = 0; j < cols->width; j += MOEI_PANEL) {
        float *sum = scratch->sum + sum_at(0, at->run * cols->panels * NR + j);
        const unsigned char *panel = moei_packed_block(p, task->group, 0, cols->first[at->run] + j);
        const unsigned char *after = after_panel(job, task, at, j);
        for (int64_t k = at->k0; k < at->end; k += PACKED_K) {
            const bool last = k + PACKED_K >= at->end;
            const moei_packed_part part = {.p = p,
                                           .panel = panel,
                                           .width = moei_min(MOEI_PANEL, cols->width - j),
                                           .k = k,
                                           .kc = moei_min(PACKED_K, at->end - k),
                                           .next = last ? after : moei_panel_block(p, panel, k + PACKED_K)};
            few_packed_panel((int)(task->end - task->row), &part,
                             (moei_pairs_use){.a = scratch->b + (k - at->k0) / PACKED_K * at->a_chain,
                                              .sum = sum,
                                              .panels = cols->n_runs * cols->panels,
                                              .add = k > 0},
                             scratch->strip);
        }
    }
}

/* Numbers of A, which stands where B has its place on the other paths. */
enum { PACKED_A = WIDE_NB / NR * PANEL };
_Static_assert(PACKED_A >= (MB + STRIP_ROWS - 1) / STRIP_ROWS * PACKED_A_STRIP,
               "a chain of a task's rows has room");

/* Steps k0 .. end of all rows of a task -> strips, PACKED_K steps of all of them after the others, a_chain
 * numbers. Rows are read whole, and each is asked for while the one before is copied. */
static void pack_chains(const moe_packed *p, const moei_rows *a, const moei_rows_task *task, int64_t k0,
                        int64_t end, int64_t a_chain, uint16_t *out) {
    for (int64_t i = 0; i < task->end - task->row; ++i) {
        const uint16_t *next = bf16_at(a, moei_min(task->row + i + 1, task->end - 1)) + k0;
        uint16_t *to = out + i / STRIP_ROWS * PACKED_A_STRIP + a_at(i % STRIP_ROWS, 0);
        for (int64_t j = 0; j < end - k0; j += LINE / 2) _mm_prefetch((const char *)(next + j), _MM_HINT_T1);
        for (int64_t k = k0; k < end; k += PACKED_K, to += a_chain) {
            const int64_t kc = moei_min(PACKED_K, end - k);
            pack_a(a, task->row + i, 1, k, kc, to);
            order_steps(p, kc, to);
        }
    }
}

/* Packed weights, whose panels are read along the sum, as long a way as A is packed for. */
static void stream_packed(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                          moei_rows_scratch *scratch) {
    const int64_t rows = task->end - task->row, k_all = job->args->k;
    const int64_t a_chain = moei_ceil_div(rows, STRIP_ROWS) * PACKED_A_STRIP;
    const int64_t span = PACKED_A / a_chain * PACKED_K;
    for (int64_t k0 = 0; k0 < k_all; k0 += span) {
        const int64_t end = moei_min(k0 + span, k_all);
        pack_chains(job->args->b_packed, a, task, k0, end, a_chain, scratch->b);
        for (int32_t run = 0; run < task->cols.n_runs; ++run) {
            const moei_packed_run at = {run, k0, end, a_chain};
            packed_run(job, task, &at, scratch);
        }
    }
    const int64_t panels = task->cols.n_runs * task->cols.panels;
    for (int64_t row = task->row; row < task->end; row += MR)
        epilogue(job, task, row, (int)moei_min(MR, task->end - row),
                 scratch->sum + strip_sums_at(row - task->row, panels));
}

/* False: as many rows are done. */
static bool few_rows(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                     const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const int64_t rows = task->end - task->row;
    if (args->b_packed) {
        if (rows > few_packed_rows(args->b_packed)) return false;
        stream_packed(job, task, a, scratch);
        return true;
    }
    if (rows > (args->b_trans ? FEW_ROWS_TRANS : FEW_ROWS_STREAMED)) return false;
    if (args->b_trans)
        stream_trans(job, task, a, b, scratch);
    else
        stream_task(job, task, a, b, scratch);
    return true;
}

#include "kernel/gemm_rows/gemm_rows_block.h"
