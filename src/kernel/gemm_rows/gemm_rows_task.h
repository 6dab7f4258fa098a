/* gemm_rows_task.h: the grouped product over ragged rows but for the product itself: tasks and epilogues.
 * A task is (group, block of rows, block of at most NB columns); its sums are f32 and stand in
 * the thread's scratch. The epilogue runs on a tile of rows while it is in L1.
 * Include after the header of a tile (NR, NB, sum_at) and after SUMS. Formulas: moekit/op.h.
 */
#ifndef MOEI_GEMM_ROWS_TASK_H
#define MOEI_GEMM_ROWS_TASK_H

#include <moekit/op.h>

#include "kernel/act_simd.h"
#include "kernel/kernel_list.h"

enum {
    COLUMN_ALIGN = MOEI_DWEIGHT_COLS,
    SWEEP_ROWS = 2, /* up to so many rows take all columns of a row of B before those of the next */
};

/* Packed operands and sums of one task; a tile may write sums of rows past the last. */
typedef struct moei_rows_scratch {
    _Alignas(64) moei_operand b[WIDE_NB / NR * PANEL];
    moei_operand a[A_STRIP], strip[KC * NR];
    float sum[SUMS];
} moei_rows_scratch;
_Static_assert(SUMS / WIDE_NB >= WIDE_ROWS, "the sums of a wide task fit");
_Static_assert(sizeof(moei_rows_scratch) <= MOEI_THREAD_SCRATCH, "a task's blocks fit the thread's scratch");

typedef struct moei_rows_job {
    const moe_gemm_rows_args *args;
    bool gated;          /* a task's columns are a run of gates and the run of their ups */
    int64_t width;       /* columns to cut into blocks: n, or n/2 where gated */
    int64_t block_width; /* of one block */
    int64_t block_rows;
    int64_t n_tasks;
    int64_t done_rows; /* groups of so many rows at most are done already (gemm_rows_linear.h) */
    int32_t n_threads;
    bool bf16, c_bf16; /* storage of tensors, and of C */
    moei_act_rule rule;
} moei_rows_job;

typedef struct moei_rows_task {
    int64_t number;
    int32_t group;
    int64_t row, end;
    moei_columns cols;
} moei_rows_task;

/* A part of B for few rows: `steps` rows from k on of `width` columns; of the block of KC, `left` steps are
 * left with these. */
typedef struct moei_strip {
    const moei_rows *b;
    int64_t column, width;
    int64_t k, steps, left;
    const char *next; /* where the part that is read after it begins */
} moei_strip;

static int64_t group_tasks(const moei_rows_job *job, int32_t g) {
    const int64_t rows = job->args->offset[g + 1] - job->args->offset[g];
    if (rows <= job->done_rows) return 0;
    return moei_ceil_div(rows, job->block_rows) * moei_ceil_div(job->width, job->block_width);
}

static int64_t count_tasks(const moei_rows_job *job) {
    int64_t total = 0;
    for (int32_t g = 0; g < job->args->n_groups; ++g) total += group_tasks(job, g);
    return total;
}

/* Row blocks of a group follow each other, so that those after the first find the columns of B in a cache
 * that all threads share. */
static moei_rows_task find_task(const moei_rows_job *job, int64_t number) {
    const moe_gemm_rows_args *args = job->args;
    int64_t task = number;
    int32_t g = 0;
    for (; task >= group_tasks(job, g); ++g) task -= group_tasks(job, g);
    int64_t row_blocks = moei_ceil_div(args->offset[g + 1] - args->offset[g], job->block_rows);
    int64_t first = task / row_blocks * job->block_width;
    int64_t row = args->offset[g] + task % row_blocks * job->block_rows;
    moei_columns cols = columns_of(first, moei_min(job->block_width, job->width - first));
    if (job->gated) {
        cols.n_runs = 2;
        cols.first[1] = job->width + first;
    }
    return (moei_rows_task){number, g, row, moei_min(row + job->block_rows, args->offset[g + 1]), cols};
}

static moei_rows group_b(const moei_rows_job *job, int32_t g) {
    const moe_gemm_rows_args *args = job->args;
    return (moei_rows){byte_at(job->bf16, args->b, g * args->b_group), args->ldb, NULL, job->bf16};
}

/* The rows of A that are packed after those of `row` and k0: the task's next ones, or its first ones again
 * further along. */
static moei_fetch next_rows(const moei_rows_task *task, const moei_rows *a, int64_t row, int64_t k0,
                            int64_t k_end) {
    int64_t first = row + tile_height(task->end - row);
    if (first >= task->end) first = task->row, k0 += KC;
    if (k0 >= k_end) return (moei_fetch){.end = 0};
    return fetch_block(a, first, first + tile_height(task->end - first), k0, moei_min(KC, k_end - k0));
}

/* Rows k0 .. k0+steps of B, which are read after the ones before; past the last, those that begin the task
 * which this thread takes next if all go on in turn. */
static moei_fetch next_block(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *b,
                             int64_t k0, int64_t steps) {
    const moe_gemm_rows_args *args = job->args;
    const int64_t after = task->number + job->n_threads;
    if (args->b_packed) return (moei_fetch){.end = 0};
    if (k0 < args->k) return fetch_b(b, args->b_trans, &task->cols, k0, moei_min(steps, args->k - k0));
    if (after >= job->n_tasks) return (moei_fetch){.end = 0};
    const moei_rows_task next = find_task(job, after);
    const moei_rows next_b = group_b(job, next.group);
    return fetch_b(&next_b, args->b_trans, &next.cols, 0, moei_min(steps, args->k));
}

/* C tile out of the sums. */
static void store_tile(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                       const float *sum) {
    const moe_gemm_rows_args *args = job->args;
    int64_t first = task->cols.first[0], width = task->cols.width;
    int64_t bias = task->group * args->n + first;
    for (int i = 0; i < mr; ++i) {
        int64_t c = (row + i) * args->ldc + first;
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t left = width - j;
            vf x = vf_load(sum + sum_at(i, j));
            if (args->bias) x = vf_add(x, vf_get(job->bf16, args->bias, bias + j, left));
            if (args->accumulate) x = vf_add(vf_get(job->c_bf16, args->c, c + j, left), x);
            vf_put(job->c_bf16, args->c, c + j, x, left);
        }
    }
}

/* act(z) and its derivatives. The common activations without numbers of their own have fewer steps here than
 * in vec_rule. */
MOEI_INLINE vec_point act_point(const moe_act act, const moei_act_rule *rule, vf gate, vf up) {
    const vf zero = vf_zero(), one = vf_set1(1.0f);
    switch (act) {
    case MOE_ACT_RELU:
        return (vec_point){vf_max(zero, gate), vf_select(vf_lt(zero, gate), one, zero), zero};
    case MOE_ACT_GELU: {
        vf density, cdf = vf_normal_cdf(gate, &density);
        return (vec_point){vf_mul(gate, cdf), vf_fma(gate, density, cdf), zero};
    }
    case MOE_ACT_SWIGLU: {
        vf s = vf_sigmoid(gate), silu = vf_mul(gate, s);
        return (vec_point){vf_mul(silu, up), vf_mul(up, vf_fma(silu, vf_sub(one, s), s)), silu};
    }
    default:
        return vec_rule(rule, gate, up);
    }
}

/* What act_point knows when it is compiled; MOE_ACT_NONE: what the rule says. */
static moe_act act_known(const moe_gemm_rows_args *args) {
    const moe_act_numbers *own = &args->act_numbers;
    const bool plain = (own->alpha == 0 || own->alpha == 1) && own->limit == 0 && own->offset == 0;
    return plain ? args->act : MOE_ACT_NONE;
}

/* The bodies of act and act_grad know storage and activation when compiled: the tiles below choose. */
MOEI_INLINE void act_rows(const bool bf16, const moe_act act, const moei_rows_job *job,
                          const moei_rows_task *task, int64_t row, int mr, const float *sum) {
    const moe_gemm_rows_args *args = job->args;
    const bool gated = job->gated;
    int64_t first = task->cols.first[0], width = task->cols.width, up_at = task->cols.panels * NR;
    int64_t bias = task->group * args->n + first;
    for (int i = 0; i < mr; ++i) {
        int64_t c = (row + i) * args->ldc + first, h = (row + i) * args->ldh + first;
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t left = width - j;
            vf gate = vf_load(sum + sum_at(i, j)),
               up = gated ? vf_load(sum + sum_at(i, up_at + j)) : vf_zero();
            if (args->bias) gate = vf_add(gate, vf_get(bf16, args->bias, bias + j, left));
            if (args->bias && gated) up = vf_add(up, vf_get(bf16, args->bias, bias + job->width + j, left));
            if (args->c) vf_put(bf16, args->c, c + j, gate, left);
            if (args->c && gated) vf_put(bf16, args->c, c + job->width + j, up, left);
            vf_put(bf16, args->h, h + j, act_point(act, &job->rule, gate, up).value, left);
        }
    }
}

MOEI_INLINE void act_grad_rows(const bool bf16, const moe_act kind, const moei_rows_job *job,
                               const moei_rows_task *task, int64_t row, int mr, const float *sum) {
    const moe_gemm_rows_args *args = job->args;
    const bool gated = job->rule.gated;
    int64_t first = task->cols.first[0], width = task->cols.width, parts = moe_dweight_parts(args->n);
    for (int i = 0; i < mr; ++i) {
        int64_t r = row + i;
        int64_t z = r * args->ldz + first, wa = r * args->ldwa + first;
        vf w = vf_set1(args->row_weight ? ((const float *)args->row_weight)[r] : 1.0f), dot = vf_zero();
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t left = width - j;
            vf gate = vf_get(bf16, args->z, z + j, left);
            vf up = gated ? vf_get(bf16, args->z, z + args->n + j, left) : vf_zero();
            vec_point act = act_point(kind, &job->rule, gate, up);
            vf da = vf_load(sum + sum_at(i, j)), wda = vf_mul(w, da);
            vf_put(bf16, args->dz, z + j, vf_mul(wda, act.d_gate), left);
            if (gated) vf_put(bf16, args->dz, z + args->n + j, vf_mul(wda, act.d_up), left);
            vf_put(bf16, args->wa, wa + j, vf_mul(w, act.value), left);
            dot = vf_fma(da, act.value, dot);
            if (args->dweight && ((j + VF_N) % MOEI_DWEIGHT_COLS == 0 || left <= VF_N)) {
                ((float *)args->dweight_part)[r * parts + (first + j) / MOEI_DWEIGHT_COLS] = vf_sum(dot);
                dot = vf_zero();
            }
        }
    }
}

static void act_tile(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                     const float *sum) {
    switch (act_known(job->args)) {
    case MOE_ACT_RELU:
        if (job->bf16) act_rows(true, MOE_ACT_RELU, job, task, row, mr, sum);
        if (!job->bf16) act_rows(false, MOE_ACT_RELU, job, task, row, mr, sum);
        break;
    case MOE_ACT_GELU:
        if (job->bf16) act_rows(true, MOE_ACT_GELU, job, task, row, mr, sum);
        if (!job->bf16) act_rows(false, MOE_ACT_GELU, job, task, row, mr, sum);
        break;
    case MOE_ACT_SWIGLU:
        if (job->bf16) act_rows(true, MOE_ACT_SWIGLU, job, task, row, mr, sum);
        if (!job->bf16) act_rows(false, MOE_ACT_SWIGLU, job, task, row, mr, sum);
        break;
    default:
        if (job->bf16) act_rows(true, MOE_ACT_NONE, job, task, row, mr, sum);
        if (!job->bf16) act_rows(false, MOE_ACT_NONE, job, task, row, mr, sum);
    }
}

static void act_grad_tile(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                          const float *sum) {
    switch (act_known(job->args)) {
    case MOE_ACT_RELU:
        if (job->bf16) act_grad_rows(true, MOE_ACT_RELU, job, task, row, mr, sum);
        if (!job->bf16) act_grad_rows(false, MOE_ACT_RELU, job, task, row, mr, sum);
        break;
    case MOE_ACT_GELU:
        if (job->bf16) act_grad_rows(true, MOE_ACT_GELU, job, task, row, mr, sum);
        if (!job->bf16) act_grad_rows(false, MOE_ACT_GELU, job, task, row, mr, sum);
        break;
    case MOE_ACT_SWIGLU:
        if (job->bf16) act_grad_rows(true, MOE_ACT_SWIGLU, job, task, row, mr, sum);
        if (!job->bf16) act_grad_rows(false, MOE_ACT_SWIGLU, job, task, row, mr, sum);
        break;
    default:
        if (job->bf16) act_grad_rows(true, MOE_ACT_NONE, job, task, row, mr, sum);
        if (!job->bf16) act_grad_rows(false, MOE_ACT_NONE, job, task, row, mr, sum);
    }
}

static void fetch_rows(bool bf16, const void *base, int64_t ld, int64_t row, int mr, int64_t first,
                       int64_t width) {
    for (int i = 0; base && i < mr; ++i) {
        int64_t start = (row + i) * ld + first;
        const char *end = byte_at(bf16, base, start + width);
        for (const char *at = byte_at(bf16, base, start); at < end; at += LINE) __builtin_prefetch(at, 0, 2);
    }
}

/* What the epilogue will touch, asked for before the product: its rows are short pieces in many places, which
 * would be waited for one by one. */
static void fetch_epilogue(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr) {
    const moe_gemm_rows_args *args = job->args;
    int64_t first = task->cols.first[0], width = task->cols.width;
    bool gated = moe_act_gated(args->act);
    switch (args->epilogue) {
    case MOE_EPI_STORE:
        fetch_rows(job->c_bf16, args->c, args->ldc, row, mr, first, width);
        break;
    case MOE_EPI_ACT:
        fetch_rows(job->bf16, args->h, args->ldh, row, mr, first, width);
        fetch_rows(job->bf16, args->c, args->ldc, row, mr, first, width);
        if (gated) fetch_rows(job->bf16, args->c, args->ldc, row, mr, job->width + first, width);
        break;
    case MOE_EPI_ACT_GRAD:
        fetch_rows(job->bf16, args->z, args->ldz, row, mr, first, width);
        fetch_rows(job->bf16, args->dz, args->ldz, row, mr, first, width);
        fetch_rows(job->bf16, args->wa, args->ldwa, row, mr, first, width);
        if (gated) fetch_rows(job->bf16, args->z, args->ldz, row, mr, args->n + first, width);
        if (gated) fetch_rows(job->bf16, args->dz, args->ldz, row, mr, args->n + first, width);
        break;
    }
}

static void epilogue(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                     const float *sum) {
    switch (job->args->epilogue) {
    case MOE_EPI_STORE:
        store_tile(job, task, row, mr, sum);
        break;
    case MOE_EPI_ACT:
        act_tile(job, task, row, mr, sum);
        break;
    case MOE_EPI_ACT_GRAD:
        act_grad_tile(job, task, row, mr, sum);
        break;
    }
}

/* dweight[r] from its parts, ascending. */
enum { DWEIGHT_ROWS = 1024 };
static void dweight_task(void *arg, int64_t task, void *memory) {
    const moe_gemm_rows_args *args = arg;
    int64_t parts = moe_dweight_parts(args->n), end = args->offset[args->n_groups];
    int64_t row = args->offset[0] + task * DWEIGHT_ROWS;
    (void)memory;
    for (int64_t r = row; r < moei_min(row + DWEIGHT_ROWS, end); ++r) {
        const float *part = (const float *)args->dweight_part + r * parts;
        float sum = 0;
        for (int64_t p = 0; p < parts; ++p) sum += part[p];
        ((float *)args->dweight)[r] = sum;
    }
}

/* Rows of the group that has most. */
static int64_t busiest(const moe_gemm_rows_args *args) {
    int64_t most = 0;
    for (int32_t g = 0; g < args->n_groups; ++g) {
        const int64_t rows = args->offset[g + 1] - args->offset[g];
        if (rows > most) most = rows;
    }
    return most;
}

static moei_rows_job rows_job(const moei_team *team, const moe_gemm_rows_args *args) {
    const bool gated = args->epilogue == MOE_EPI_ACT && moe_act_gated(args->act);
    return (moei_rows_job){.args = args,
                           .gated = gated,
                           .width = gated ? args->n / 2 : args->n,
                           .n_threads = team->n_threads,
                           .bf16 = args->dtype == MOE_BF16,
                           .c_bf16 = args->dtype == MOE_BF16 && !args->c_wide,
                           .rule = moei_act_rule_for(args->act, args->act_numbers)};
}

/* Columns of a task at most: the two runs of a gated one stand side by side in its sums. */
static int64_t widest_block(const moei_rows_job *job) {
    const bool wide = busiest(job->args) <= WIDE_ROWS && !job->args->b_trans;
    return (wide ? WIDE_NB : NB) / (job->gated ? 2 : 1);
}

/* Columns of a task at least, where threads would have nothing to do. Few rows take what lies in one run of
 * memory: a panel, or, of B stored as [n, k], as many rows. */
static int64_t narrowest_block(const moe_gemm_rows_args *args) {
    const bool few = busiest(args) <= FEW_ROWS;
    if (few && args->b_packed) return MOEI_PANEL;
    return few && args->b_trans && args->epilogue == MOE_EPI_STORE ? NR : 2 * COLUMN_ALIGN;
}

/* Cuts the groups of more than done_rows rows into tasks and runs them; then what needs all of a row's
 * columns. */
static void run_rows(const moei_team *team, const moe_gemm_rows_args *args, int64_t done_rows,
                     moe_task_fn task) {
    moei_rows_job job = rows_job(team, args);
    const int64_t even = moei_ceil_div(job.width, moei_ceil_div(job.width, widest_block(&job)));
    job.done_rows = done_rows;
    job.block_width = moei_ceil_div(even, COLUMN_ALIGN) * COLUMN_ALIGN;
    job.block_rows = MB;
    /* Few rows take as long as their weights do to be read: in small pieces, so that all threads end
     * together. */
    const int64_t tasks = (busiest(args) <= FEW_ROWS ? FEW_TASKS : 2) * (int64_t)team->n_threads;
    const int64_t narrowest = narrowest_block(args), align = moei_min(narrowest, COLUMN_ALIGN);
    while (job.block_rows > MB_MIN && count_tasks(&job) < 4 * team->n_threads) job.block_rows /= 2;
    while (job.block_width > narrowest && count_tasks(&job) < tasks)
        job.block_width = moei_ceil_div(job.block_width / 2, align) * align;
    job.n_tasks = count_tasks(&job);
    moei_parallel(team, job.n_tasks, task, &job);
    if (args->epilogue == MOE_EPI_ACT_GRAD && args->dweight) {
        int64_t rows = args->offset[args->n_groups] - args->offset[0];
        moei_parallel(team, moei_ceil_div(rows, DWEIGHT_ROWS), dweight_task, (void *)args);
    }
}

#endif
