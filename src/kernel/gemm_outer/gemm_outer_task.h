/* gemm_outer_task.h: the grouped product over a ragged sum but for the product itself: tasks and the store of
 * C. A task is a block of C_g, at most MB x NB, whose f32 sums stand in the thread's scratch; of a group of
 * at most WHOLE_SUM rows, whose operand B is packed whole, it may be TALL_MB high. Include after the header
 * of a tile (NR, NB, sum_at, MR) and after these. Formula: moekit/op.h.
 */
#ifndef MOEI_GEMM_OUTER_TASK_H
#define MOEI_GEMM_OUTER_TASK_H

#include <moekit/op.h>

#include "kernel/kernel_list.h"

typedef struct moei_outer_job {
    const moe_gemm_outer_args *args;
    int64_t block_rows, tall_rows, block_width;
    int64_t n_tasks;
    int32_t n_threads;
    bool c_bf16, streams; /* storage of C; it is stored past the caches */
} moei_outer_job;

/* Task -> group, rows i0 .. i0+rows and columns of C_g. */
typedef struct moei_outer_task {
    int64_t number, group, i0, rows;
    moei_columns cols;
} moei_outer_task;

/* Rows of C that a task of the group has. */
static int64_t task_rows(const moei_outer_job *job, int64_t g) {
    const int64_t *offset = job->args->offset;
    return offset[g + 1] - offset[g] <= WHOLE_SUM ? job->tall_rows : job->block_rows;
}

static int64_t group_tasks(const moei_outer_job *job, int64_t g) {
    const moe_gemm_outer_args *args = job->args;
    return moei_ceil_div(args->m, task_rows(job, g)) * moei_ceil_div(args->n, job->block_width);
}

static int64_t count_tasks(const moei_outer_job *job) {
    int64_t total = 0;
    for (int32_t g = 0; g < job->args->n_groups; ++g) total += group_tasks(job, g);
    return total;
}

static moei_outer_task find_task(const moei_outer_job *job, int64_t number) {
    const moe_gemm_outer_args *args = job->args;
    int64_t task = number, g = 0;
    for (; task >= group_tasks(job, g); ++g) task -= group_tasks(job, g);
    const int64_t across = moei_ceil_div(args->n, job->block_width), rows = task_rows(job, g);
    int64_t i0 = task / across * rows, j0 = task % across * job->block_width;
    return (moei_outer_task){.number = number,
                             .group = g,
                             .i0 = i0,
                             .rows = moei_min(rows, args->m - i0),
                             .cols = columns_of(j0, moei_min(job->block_width, args->n - j0))};
}

static moei_rows operand_a(const moe_gemm_outer_args *args) {
    return (moei_rows){args->a, args->lda, args->a_row, args->dtype == MOE_BF16};
}

static moei_rows operand_b(const moe_gemm_outer_args *args) {
    return (moei_rows){args->b, args->ldb, args->b_row, args->dtype == MOE_BF16};
}

/* Rows i .. i+rows of a task's block of C, if caches are to have them. */
static moei_fetch fetch_c(const moei_outer_job *job, const moei_outer_task *task, int64_t i, int64_t rows) {
    const moe_gemm_outer_args *args = job->args;
    const bool bf16 = job->c_bf16;
    const moei_rows c = {byte_at(bf16, args->c, task->group * args->c_group), args->ldc, NULL, bf16};
    if (job->streams) return (moei_fetch){.end = 0};
    int64_t first = task->i0 + i;
    return fetch_block(&c, first, first + rows, task->cols.first[0], task->cols.width);
}

/* What is read soon and asked for while tiles are multiplied. */
typedef struct moei_ahead {
    moei_fetch a, b;
    int64_t share_a, share_b; /* lines beside each tile */
} moei_ahead;

/* Rows k .. k+KC of a task's operands; beyond the task's own, the first rows of the task that this thread
 * takes next if all go on in turn, if there is one. */
static moei_ahead what_is_next(const moei_outer_job *job, const moei_outer_task *task, int64_t k,
                               int64_t tiles) {
    const moe_gemm_outer_args *args = job->args;
    const moei_rows a = operand_a(args), b = operand_b(args);
    moei_outer_task next = *task;
    moei_ahead ahead = {.share_a = 0};
    if (k >= args->offset[task->group + 1]) {
        if (task->number + job->n_threads >= job->n_tasks) return ahead;
        next = find_task(job, task->number + job->n_threads);
        k = args->offset[next.group];
    }
    int64_t end = moei_min(k + KC, args->offset[next.group + 1]);
    ahead.a = fetch_block(&a, k, end, next.i0, moei_min(next.rows, MB));
    ahead.b = fetch_block(&b, k, end, next.cols.first[0], next.cols.width);
    ahead.share_a = fetch_share(&ahead.a, tiles);
    ahead.share_b = fetch_share(&ahead.b, tiles);
    return ahead;
}

static inline void fetch_ahead(moei_ahead *ahead) {
    fetch_lines(&ahead->a, ahead->share_a);
    fetch_lines(&ahead->b, ahead->share_b);
}

/* Rows of C = their sums, in whole pairs of vectors. */
static void stream_rows(const moei_outer_job *job, int64_t first, int64_t rows, int64_t width,
                        const float *sum) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; j += NR) {
            int64_t at = first + i * job->args->ldc + j;
            vf x = vf_load(sum + sum_at(i, j)), y = vf_load(sum + sum_at(i, j + VF_N));
            if (job->c_bf16) {
                vf_stream_bf16((uint16_t *)job->args->c + at, x, y);
            } else {
                vf_stream((float *)job->args->c + at, x);
                vf_stream((float *)job->args->c + at + VF_N, y);
            }
        }
    }
    vf_stream_end();
}

/* Rows i0 .. i0+rows of the block of C (+)= their sums. */
static void store_rows(const moei_outer_job *job, const moei_outer_task *task, int64_t i0, int64_t rows,
                       const float *sum) {
    const moe_gemm_outer_args *args = job->args;
    const bool bf16 = job->c_bf16;
    int64_t width = task->cols.width;
    int64_t first = task->group * args->c_group + (task->i0 + i0) * args->ldc + task->cols.first[0];
    if (job->streams) {
        stream_rows(job, first, rows, width, sum);
        return;
    }
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t at = first + i * args->ldc + j, left = width - j;
            vf x = vf_load(sum + sum_at(i, j));
            if (args->accumulate) x = vf_add(vf_get(bf16, args->c, at, left), x);
            vf_put(bf16, args->c, at, x, left);
        }
    }
}

/* Blocks of equal size, so that the last task is no shorter than the others by more than a tile. */
static int64_t even_block(int64_t size, int64_t limit, int64_t align) {
    int64_t even = moei_ceil_div(size, moei_ceil_div(size, limit));
    return moei_ceil_div(even, align) * align;
}

/* New gradients of more bytes than a cache would keep until somebody reads them: stored past it, as lines
 * that are written whole need not be read. */
enum { STREAM_BYTES = 8 << 20 };
_Static_assert(NR == 2 * VF_N, "a panel is a pair of vectors");
static bool is_streamed(const moe_gemm_outer_args *args, bool c_bf16) {
    const int64_t real = c_bf16 ? 2 : 4;
    const bool whole = args->n % NR == 0 && args->ldc * real % LINE == 0 &&
                       args->c_group * real % LINE == 0 && (uintptr_t)args->c % LINE == 0;
    return whole && !args->accumulate && args->n_groups * args->m * args->n * real >= STREAM_BYTES;
}

static void run_outer(const moei_team *team, const moe_gemm_outer_args *args, moe_task_fn task) {
    const bool c_bf16 = args->dtype == MOE_BF16 && !args->c_wide;
    moei_outer_job job = {.args = args,
                          .n_threads = team->n_threads,
                          .c_bf16 = c_bf16,
                          .streams = is_streamed(args, c_bf16),
                          .block_rows = even_block(args->m, MB, MR),
                          .tall_rows = even_block(args->m, TALL_MB, MR),
                          .block_width = even_block(args->n, NB, NR)};
    while (job.tall_rows > MB_MIN && count_tasks(&job) < 4 * team->n_threads) {
        job.tall_rows = moei_ceil_div(job.tall_rows / 2, MR) * MR;
        job.block_rows = moei_min(job.block_rows, job.tall_rows);
    }
    job.n_tasks = count_tasks(&job);
    moei_parallel(team, job.n_tasks, task, &job);
}

#endif
