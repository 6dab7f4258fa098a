/* gemm_rows_linear.h: groups of few rows, whose products take as long as reading B does: B is read in the
 * order of memory, as only that keeps a processor's own prefetchers busy. A task is a chain of sums (KC
 * steps) of a slab of columns, so its part of B is one run of memory; who ends a slab's last chain adds its
 * chains in order, as the other path does, and runs the epilogue. Include last: a family has defined pack_a,
 * linear_product and FEW_ROWS. Source: split-K GEMV, as inference engines have it; the shape of it is ours.
 */
#ifndef MOEI_GEMM_ROWS_LINEAR_H
#define MOEI_GEMM_ROWS_LINEAR_H

#include <stdatomic.h>

#include "core/thread.h"

_Static_assert(SWEEP_ROWS == 2, "sweep_any has a body for each");

enum {
    SLABS = 64,             /* of a pass at most */
    SLAB_COLUMNS = 4096,    /* of a slab at most: its sums share L2 with what is asked for */
    SLAB_COLUMNS_MIN = 128, /* and at least: shorter runs are read slowly */
};

/* What the thread that runs a task needs, and the chains of slabs, which every thread may write. */
typedef struct moei_linear_scratch {
    _Alignas(64) moei_operand a[A_STRIP];
    moei_operand packed[KC * NR];
    float chains[];
} moei_linear_scratch;
enum { CHAIN_FLOATS = (MOEI_THREAD_SCRATCH - (int)sizeof(moei_linear_scratch)) / (int)sizeof(float) };

typedef struct moei_slab {
    int32_t group;
    int64_t row, end;
    int64_t first, width;     /* columns; of gates, and of ups as many */
    float *chains;            /* [chains][blocks][rows, SUM_LD] */
    atomic_int_fast64_t left; /* chains that are not done */
} moei_slab;

typedef struct moei_linear_job {
    moei_rows_job rows;
    int64_t chains; /* of a sum */
    int64_t n_tasks;
    int32_t n_slabs;
    moei_slab slab[SLABS];
} moei_linear_job;

/* 1. Slabs. */

/* Rows of a group at most: a block of columns of all their chains has to fit a thread's scratch. */
static int64_t linear_rows(const moe_gemm_rows_args *args) {
    if (args->b_trans || args->b_packed || args->k == 0) return 0;
    return moei_min(FEW_ROWS, CHAIN_FLOATS / SUM_LD / moei_ceil_div(args->k, KC));
}

static int64_t slab_blocks(const moei_linear_job *job, int64_t width) {
    return moei_ceil_div(width, widest_block(&job->rows));
}

static int64_t chain_floats(const moei_linear_job *job, const moei_slab *slab) {
    return slab_blocks(job, slab->width) * (slab->end - slab->row) * SUM_LD;
}

/* Columns of the next slab where `left` are left in its group and `all` in all groups: the nearer the end,
 * the narrower, so that all threads end together. */
static int64_t slab_width(const moei_linear_job *job, int64_t rows, int64_t left, int64_t all) {
    const int64_t share = moei_ceil_div(all * job->chains, 3 * job->rows.n_threads);
    const int64_t blocks = CHAIN_FLOATS / SUM_LD / (job->chains * rows);
    int64_t width = moei_min(moei_min(SLAB_COLUMNS, share), blocks * widest_block(&job->rows));
    if (width < SLAB_COLUMNS_MIN) width = SLAB_COLUMNS_MIN;
    return moei_min(left, moei_ceil_div(width, COLUMN_ALIGN) * COLUMN_ALIGN);
}

/* Where a pass begins: a group, and a column of it; columns of few rows from there on. */
typedef struct moei_linear_place {
    int32_t group;
    int64_t column, columns;
} moei_linear_place;

static bool is_few(const moei_linear_job *job, int32_t g) {
    const int64_t rows = job->rows.args->offset[g + 1] - job->rows.args->offset[g];
    return rows > 0 && rows <= job->rows.done_rows;
}

/* Fills a pass: as many slabs as there are places for and scratch holds; false: none are left. */
static bool next_pass(moei_linear_job *job, const moei_team *team, moei_linear_place *at) {
    const moe_gemm_rows_args *args = job->rows.args;
    int64_t used = 0;
    int32_t thread = 0;
    for (job->n_slabs = 0; at->group < args->n_groups && job->n_slabs < SLABS;) {
        const int64_t left = job->rows.width - at->column;
        if (!is_few(job, at->group) || left == 0) {
            ++at->group;
            at->column = 0;
            continue;
        }
        moei_slab *slab = &job->slab[job->n_slabs];
        *slab = (moei_slab){.group = at->group,
                            .row = args->offset[at->group],
                            .end = args->offset[at->group + 1],
                            .first = at->column};
        slab->width = slab_width(job, slab->end - slab->row, left, at->columns);
        const int64_t floats = job->chains * chain_floats(job, slab);
        if (used + floats > CHAIN_FLOATS) {
            used = 0;
            if (++thread == team->n_threads) break;
        }
        moei_linear_scratch *scratch = (void *)((char *)team->scratch + (size_t)thread * MOEI_THREAD_SCRATCH);
        slab->chains = scratch->chains + used;
        atomic_init(&slab->left, job->chains);
        used += floats;
        at->column += slab->width;
        at->columns -= slab->width;
        ++job->n_slabs;
    }
    job->n_tasks = job->n_slabs * job->chains;
    return job->n_slabs > 0;
}

/* 2. Tasks. */

/* A block of a slab's columns: what the epilogue takes. */
static moei_rows_task slab_block(const moei_linear_job *job, const moei_slab *slab, int64_t block) {
    const int64_t widest = widest_block(&job->rows), done = block * widest;
    moei_rows_task task = {.group = slab->group, .row = slab->row, .end = slab->end};
    task.cols = columns_of(slab->first + done, moei_min(widest, slab->width - done));
    if (job->rows.gated) {
        task.cols.n_runs = 2;
        task.cols.first[1] = job->rows.width + task.cols.first[0];
    }
    return task;
}

/* Steps of a strip: few, so that B is read in its order, but enough to be worth loading and storing the sums.
 */
static int64_t strip_steps(int64_t rows) {
    return rows <= SWEEP_ROWS ? 8 : rows <= 16 ? 64 : KC;
}

/* A strip of a slab: rows of B from k on. */
typedef struct moei_slab_strip {
    const moei_slab *slab; /* NULL: none */
    int64_t k;
} moei_slab_strip;

/* What a thread reads after k steps of a task: the task goes on, or the one begins that it takes next if all
 * go on in turn. */
static moei_slab_strip next_strip(const moei_linear_job *job, int64_t task, int64_t k) {
    if (k >= moei_min((task % job->chains + 1) * KC, job->rows.args->k)) {
        task += job->rows.n_threads;
        k = task % job->chains * KC;
    }
    if (task >= job->n_tasks) return (moei_slab_strip){NULL, 0};
    return (moei_slab_strip){&job->slab[task / job->chains], k};
}

/* Its first number. */
static const char *strip_begin(const moei_linear_job *job, moei_slab_strip at) {
    const moei_rows b = group_b(&job->rows, at.slab->group);
    return byte_at(b.bf16, b.base, row_start(&b, at.k) + at.slab->first);
}

static moei_fetch fetch_strip(const moei_linear_job *job, moei_slab_strip at) {
    if (!at.slab) return (moei_fetch){.end = 0};
    const moei_slab *slab = at.slab;
    const moei_rows b = group_b(&job->rows, slab->group);
    const int64_t steps = moei_min(strip_steps(slab->end - slab->row), job->rows.args->k - at.k);
    moei_columns cols = columns_of(slab->first, slab->width);
    if (job->rows.gated) {
        cols.n_runs = 2;
        cols.first[1] = job->rows.width + slab->first;
    }
    return fetch_b(&b, false, &cols, at.k, steps);
}

/* A slab's chains, in order, and what comes after the product. */
static void end_slab(const moei_linear_job *job, const moei_slab *slab) {
    const int64_t rows = slab->end - slab->row, blocks = slab_blocks(job, slab->width);
    const int64_t next = chain_floats(job, slab);
    for (int64_t i = 0; i < blocks; ++i) {
        const moei_rows_task task = slab_block(job, slab, i);
        const int64_t columns = task.cols.n_runs * task.cols.panels * NR;
        float *sum = slab->chains + i * rows * SUM_LD;
        for (int64_t chain = 1; chain < job->chains; ++chain) {
            const float *add = sum + chain * next;
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t j = r * SUM_LD; j < r * SUM_LD + columns; j += VF_N)
                    vf_store(sum + j, vf_add(vf_load(sum + j), vf_load(add + j)));
        }
        epilogue(&job->rows, &task, task.row, (int)rows, sum);
    }
}

static void sweep_any(int rows, const moei_operand *a, const moei_strip *strip, float *sum) {
    if (rows == 1)
        sweep_fixed(1, a, strip, sum);
    else
        sweep_fixed(2, a, strip, sum);
}

/* A strip of a slab of whole panels, in the order of memory. `next` is where the slab's columns are in what
 * is read after it. */
static void sweep_strip(const moei_linear_job *job, const moei_slab *slab, const moei_operand *a,
                        moei_strip strip, const char *next, float *sums) {
    const int rows = (int)(slab->end - slab->row);
    const int64_t widest = widest_block(&job->rows);
    for (int run = 0; run < (job->rows.gated ? 2 : 1); ++run) {
        float *sum = sums;
        for (int64_t done = 0; done < slab->width; done += widest, sum += rows * SUM_LD) {
            const int64_t at = run * job->rows.width + done;
            strip.column = slab->first + at;
            strip.width = moei_min(widest, slab->width - done);
            strip.next = byte_at(job->rows.bf16, next, at);
            sweep_any(rows, a, &strip, sum + run * strip.width);
        }
    }
}

/* The same panel by panel, and what is read after it is asked for row by row. */
static void tile_strip(const moei_linear_job *job, const moei_slab *slab, moei_linear_scratch *scratch,
                       moei_strip strip, moei_fetch fetch, float *sums) {
    const int64_t rows = slab->end - slab->row, blocks = slab_blocks(job, slab->width);
    const int64_t share = fetch_share(&fetch, (job->rows.gated ? 2 : 1) * moei_ceil_div(slab->width, NR));
    for (int64_t i = 0; i < blocks; ++i) {
        const moei_columns cols = slab_block(job, slab, i).cols;
        float *sum = sums + i * rows * SUM_LD;
        for (int run = 0; run < cols.n_runs; ++run) {
            for (int64_t j = 0; j < cols.width; j += NR, sum += NR) {
                strip.column = cols.first[run] + j;
                strip.width = moei_min(NR, cols.width - j);
                fetch_lines(&fetch, share);
                linear_product((int)rows, scratch->a, &strip, scratch->packed, sum);
            }
        }
    }
}

static void linear_task(void *arg, int64_t number, void *memory) {
    moei_linear_job *job = arg;
    const moe_gemm_rows_args *args = job->rows.args;
    moei_slab *slab = &job->slab[number / job->chains];
    moei_linear_scratch *scratch = memory;
    const moei_rows a = {args->a, args->lda, args->a_row, job->rows.bf16};
    const moei_rows b = group_b(&job->rows, slab->group);
    const int rows = (int)(slab->end - slab->row);
    const int64_t chain = number % job->chains, k0 = chain * KC, k_end = moei_min(k0 + KC, args->k);
    const int64_t steps = strip_steps(rows);
    const bool sweeps = rows <= SWEEP_ROWS && slab->width % NR == 0 && k_end % K_STEP == 0;
    float *sums = slab->chains + chain * chain_floats(job, slab);
    if (number < job->rows.n_threads) fetch_all(fetch_strip(job, (moei_slab_strip){slab, k0}));
    pack_a(&a, slab->row, rows, k0, k_end - k0, scratch->a);
    for (int64_t k = k0; k < k_end; k += steps) {
        const moei_strip strip = {.b = &b, .k = k, .steps = moei_min(steps, k_end - k), .left = k_end - k};
        const moei_slab_strip next = next_strip(job, number, k + steps);
        if (sweeps)
            sweep_strip(job, slab, scratch->a, strip,
                        strip_begin(job, next.slab ? next : (moei_slab_strip){slab, k}), sums);
        else
            tile_strip(job, slab, scratch, strip, fetch_strip(job, next), sums);
    }
    if (atomic_fetch_sub_explicit(&slab->left, 1, memory_order_acq_rel) == 1) end_slab(job, slab);
}

/* Does all groups of few rows; returns how many rows are few. */
static int64_t run_linear(const moei_team *team, const moe_gemm_rows_args *args) {
    moei_linear_job job = {.rows = rows_job(team, args), .chains = moei_ceil_div(args->k, KC)};
    moei_linear_place at = {.group = 0};
    job.rows.done_rows = linear_rows(args);
    for (int32_t g = 0; g < args->n_groups; ++g)
        if (is_few(&job, g)) at.columns += job.rows.width;
    while (next_pass(&job, team, &at)) moei_parallel(team, job.n_tasks, linear_task, &job);
    return job.rows.done_rows;
}

#endif
