/* gemm_rows_simd.h: grouped product over ragged rows in vectors of f32.
 * A task is (group, block of rows, block of at most NB columns); its sums [rows, NB] and its packed operands
 * stand in the thread's scratch. The epilogue runs on a tile of rows while it is in L1.
 * Source: loops after BLIS (gemm_tile.h); formulas of the epilogues in moekit/op.h.
 */
#include <moekit/op.h>

#include "kernel/gemm_tile.h"
#include "kernel/kernel_list.h"

enum {
    MB = 504,        /* rows of a task at most: whole tiles of 14 and of 6, also when halved twice */
    MB_MIN = 126,    /* and at least, where threads would have nothing to do */
    A_LD = KC + 16,  /* row stride of packed A */
    STREAM_ROWS = 4, /* up to so many rows read B where it is: packing would cost as much as the product */
    COLUMN_ALIGN = MOEI_DWEIGHT_COLS
};

typedef struct moei_rows_job {
    const moe_gemm_rows_args *args;
    bool gated;          /* a task's columns are a run of gates and the run of their ups */
    int64_t width;       /* columns to cut into blocks: n, or n/2 where gated */
    int64_t block_width; /* of one block */
    int64_t block_rows;
} moei_rows_job;

typedef struct moei_rows_task {
    int32_t group;
    int64_t row, end;
    moei_columns cols;
} moei_rows_task;

typedef struct moei_rows_scratch {
    _Alignas(64) float b[KC * NB];
    float a[MR * A_LD];
    float sum[MB * SUM_LD];
    float block[STREAM_ROWS * SUM_LD];
} moei_rows_scratch;
_Static_assert(sizeof(moei_rows_scratch) <= MOEI_THREAD_SCRATCH, "a task's blocks fit the thread's scratch");

static int64_t group_tasks(const moei_rows_job *job, int32_t g) {
    int64_t rows = job->args->offset[g + 1] - job->args->offset[g];
    return moei_ceil_div(rows, job->block_rows) * moei_ceil_div(job->width, job->block_width);
}

static int64_t count_tasks(const moei_rows_job *job) {
    int64_t total = 0;
    for (int32_t g = 0; g < job->args->n_groups; ++g) total += group_tasks(job, g);
    return total;
}

static moei_rows_task find_task(const moei_rows_job *job, int64_t task) {
    const moe_gemm_rows_args *args = job->args;
    int32_t g = 0;
    for (; task >= group_tasks(job, g); ++g) task -= group_tasks(job, g);
    int64_t column_blocks = moei_ceil_div(job->width, job->block_width);
    int64_t first = task % column_blocks * job->block_width;
    int64_t row = args->offset[g] + task / column_blocks * job->block_rows;
    moei_columns cols = columns_of(first, moei_min(job->block_width, job->width - first));
    if (job->gated) {
        cols.n_runs = 2;
        cols.first[1] = job->width + first;
    }
    return (moei_rows_task){g, row, moei_min(row + job->block_rows, args->offset[g + 1]), cols};
}

/* Rows of A, one after another with stride A_LD: the tile then reads all of them from one register. */
static void pack_a(const moei_rows *a, int64_t row, int mr, int64_t k0, int64_t kc, float *out) {
    for (int i = 0; i < mr; ++i) {
        const float *from = row_at(a, row + i) + k0;
        for (int64_t k = 0; k < kc; k += VF_N) vf_store(out + i * A_LD + k, vf_load_upto(from + k, kc - k));
    }
}

/* pack_b for B stored as [n, k]: VF_N columns of VF_N elements at a time are transposed in registers. */
static void pack_b_trans(const float *b, int64_t ldb, const moei_columns *cols, int64_t k0, int64_t kc,
                         float *out) {
    for (int32_t run = 0; run < cols->n_runs; ++run) {
        for (int64_t j = 0; j < cols->panels * NR; j += VF_N) {
            float *to = out + (run * cols->panels + j / NR) * kc * NR + j % NR;
            const float *from = b + (cols->first[run] + j) * ldb + k0;
            for (int64_t k = 0; k < kc; k += VF_N) {
                vf block[VF_N];
                for (int64_t i = 0; i < VF_N; ++i) {
                    block[i] = j + i < cols->width ? vf_load_upto(from + i * ldb + k, kc - k) : vf_zero();
                    if (j + i + VF_N < cols->width) __builtin_prefetch(from + (i + VF_N) * ldb + k);
                }
                vf_transpose(block);
                for (int64_t i = 0; i < moei_min(VF_N, kc - k); ++i) vf_store(to + (k + i) * NR, block[i]);
            }
        }
    }
}

static __attribute__((noinline)) void tile_rows(int mr, const float *a, const float *b, int64_t kc,
                                                float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, b, kc, sum, add);
}

/* B_g[k0 .. k0+kc, run] times a few rows, B read where it is, four rows of it at a time: the chain of
 * every element is that of the tile. */
static void stream_block(const moei_rows *a, const moei_rows_task *task, const float *b, int64_t ldb,
                         int64_t k0, int64_t k_left, float *block) {
    int64_t rows = task->end - task->row, width = task->cols.width, kc = moei_min(KC, k_left);
    for (int64_t k = 0; k < kc; k += 4) {
        int64_t steps = moei_min(4, kc - k);
        for (int64_t i = 0; i < rows; ++i) {
            const float *x = row_at(a, task->row + i) + k0 + k;
            for (int64_t j = 0; j < width; j += VF_N) {
                float *at = block + i * SUM_LD + j;
                const float *from = b + k * ldb + j;
                vf acc = k ? vf_load(at) : vf_zero();
                if (steps == 4 && width - j >= VF_N) {
                    for (int64_t s = AHEAD; s < AHEAD + 4 && i == 0; ++s)
                        if (k + s < k_left) __builtin_prefetch(from + s * ldb);
                    acc = vf_fma(vf_set1(x[0]), vf_load(from), acc);
                    acc = vf_fma(vf_set1(x[1]), vf_load(from + ldb), acc);
                    acc = vf_fma(vf_set1(x[2]), vf_load(from + 2 * ldb), acc);
                    acc = vf_fma(vf_set1(x[3]), vf_load(from + 3 * ldb), acc);
                } else {
                    for (int64_t s = 0; s < steps; ++s)
                        acc = vf_fma(vf_set1(x[s]), vf_load_upto(from + s * ldb, width - j), acc);
                }
                vf_store(at, acc);
            }
        }
    }
}

/* C tile out of the sums. */
static void store_tile(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                       const float *sum) {
    const moe_gemm_rows_args *args = job->args;
    int64_t first = task->cols.first[0], width = task->cols.width;
    const float *bias = args->bias ? (const float *)args->bias + task->group * args->n + first : NULL;
    for (int i = 0; i < mr; ++i) {
        float *c = (float *)args->c + (row + i) * args->ldc + first;
        for (int64_t j = 0; j < width; j += VF_N) {
            vf x = vf_load(sum + i * SUM_LD + j);
            if (bias) x = vf_add(x, vf_load_upto(bias + j, width - j));
            if (args->accumulate) x = vf_add(vf_load_upto(c + j, width - j), x);
            vf_store_upto(c + j, x, width - j);
        }
    }
}

MOEI_INLINE vf act_value(moe_act act, vf gate, vf up) {
    vf density;
    switch (act) {
    case MOE_ACT_RELU:
        return vf_max(vf_zero(), gate);
    case MOE_ACT_GELU:
        return vf_mul(gate, vf_normal_cdf(gate, &density));
    case MOE_ACT_SWIGLU:
        return vf_mul(vf_mul(gate, vf_sigmoid(gate)), up);
    case MOE_ACT_NONE:
        break;
    }
    return gate;
}

static void act_tile(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                     const float *sum) {
    const moe_gemm_rows_args *args = job->args;
    int64_t first = task->cols.first[0], width = task->cols.width, up_at = task->cols.panels * NR;
    const float *bias = args->bias ? (const float *)args->bias + task->group * args->n + first : NULL;
    for (int i = 0; i < mr; ++i) {
        float *c = args->c ? (float *)args->c + (row + i) * args->ldc + first : NULL;
        float *h = (float *)args->h + (row + i) * args->ldh + first;
        const float *s = sum + i * SUM_LD;
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t left = width - j;
            vf gate = vf_load(s + j), up = job->gated ? vf_load(s + up_at + j) : vf_zero();
            if (bias) gate = vf_add(gate, vf_load_upto(bias + j, left));
            if (bias && job->gated) up = vf_add(up, vf_load_upto(bias + job->width + j, left));
            if (c) vf_store_upto(c + j, gate, left);
            if (c && job->gated) vf_store_upto(c + job->width + j, up, left);
            vf_store_upto(h + j, act_value(args->act, gate, up), left);
        }
    }
}

/* act(z) and its derivatives. */
typedef struct moei_act_vec {
    vf value, d_gate, d_up;
} moei_act_vec;

MOEI_INLINE moei_act_vec act_grad(moe_act act, vf gate, vf up) {
    const vf zero = vf_zero(), one = vf_set1(1.0f);
    switch (act) {
    case MOE_ACT_RELU:
        return (moei_act_vec){vf_max(zero, gate), vf_select(vf_lt(zero, gate), one, zero), zero};
    case MOE_ACT_GELU: {
        vf density, cdf = vf_normal_cdf(gate, &density);
        return (moei_act_vec){vf_mul(gate, cdf), vf_fma(gate, density, cdf), zero};
    }
    case MOE_ACT_SWIGLU: {
        vf s = vf_sigmoid(gate), silu = vf_mul(gate, s);
        return (moei_act_vec){vf_mul(silu, up), vf_mul(up, vf_fma(silu, vf_sub(one, s), s)), silu};
    }
    case MOE_ACT_NONE:
        break;
    }
    return (moei_act_vec){gate, one, zero};
}

static void act_grad_tile(const moei_rows_job *job, const moei_rows_task *task, int64_t row, int mr,
                          const float *sum) {
    const moe_gemm_rows_args *args = job->args;
    bool gated = moe_act_gated(args->act);
    int64_t first = task->cols.first[0], width = task->cols.width, parts = moe_dweight_parts(args->n);
    for (int i = 0; i < mr; ++i) {
        int64_t r = row + i;
        const float *z = (const float *)args->z + r * args->ldz + first, *s = sum + i * SUM_LD;
        float *dz = (float *)args->dz + r * args->ldz + first,
              *wa = (float *)args->wa + r * args->ldwa + first;
        vf w = vf_set1(args->row_weight ? ((const float *)args->row_weight)[r] : 1.0f), dot = vf_zero();
        for (int64_t j = 0; j < width; j += VF_N) {
            int64_t left = width - j;
            vf gate = vf_load_upto(z + j, left), up = gated ? vf_load_upto(z + args->n + j, left) : vf_zero();
            moei_act_vec act = act_grad(args->act, gate, up);
            vf da = vf_load(s + j), wda = vf_mul(w, da);
            vf_store_upto(dz + j, vf_mul(wda, act.d_gate), left);
            if (gated) vf_store_upto(dz + args->n + j, vf_mul(wda, act.d_up), left);
            vf_store_upto(wa + j, vf_mul(w, act.value), left);
            dot = vf_fma(da, act.value, dot);
            if (args->dweight && ((j + VF_N) % MOEI_DWEIGHT_COLS == 0 || left <= VF_N)) {
                ((float *)args->dweight_part)[r * parts + (first + j) / MOEI_DWEIGHT_COLS] = vf_sum(dot);
                dot = vf_zero();
            }
        }
    }
}

static void fetch_rows(const void *base, int64_t ld, int64_t row, int mr, int64_t first, int64_t width) {
    for (int i = 0; base && i < mr; ++i) {
        const float *at = (const float *)base + (row + i) * ld + first;
        for (int64_t j = 0; j < width; j += LINE) __builtin_prefetch(at + j, 0, 2);
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
        fetch_rows(args->c, args->ldc, row, mr, first, width);
        break;
    case MOE_EPI_ACT:
        fetch_rows(args->h, args->ldh, row, mr, first, width);
        fetch_rows(args->c, args->ldc, row, mr, first, width);
        if (gated) fetch_rows(args->c, args->ldc, row, mr, job->width + first, width);
        break;
    case MOE_EPI_ACT_GRAD:
        fetch_rows(args->z, args->ldz, row, mr, first, width);
        fetch_rows(args->dz, args->ldz, row, mr, first, width);
        fetch_rows(args->wa, args->ldwa, row, mr, first, width);
        if (gated) fetch_rows(args->z, args->ldz, row, mr, args->n + first, width);
        if (gated) fetch_rows(args->dz, args->ldz, row, mr, args->n + first, width);
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

static void stream_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                        const float *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    int mr = (int)(task->end - task->row);
    for (int64_t k0 = 0; k0 == 0 || k0 < args->k; k0 += KC) {
        for (int32_t run = 0; run < task->cols.n_runs; ++run) {
            const float *from = b + k0 * args->ldb + task->cols.first[run];
            float *sum = scratch->sum + run * task->cols.panels * NR;
            float *block = k0 == 0 ? sum : scratch->block;
            stream_block(a, task, from, args->ldb, k0, args->k - k0, block);
            for (int i = 0; i < mr && k0; ++i) {
                for (int64_t j = i * SUM_LD; j < i * SUM_LD + task->cols.width; j += VF_N)
                    vf_store(sum + j, vf_add(vf_load(sum + j), vf_load(block + j)));
            }
        }
    }
    epilogue(job, task, task->row, mr, scratch->sum);
}

static void rows_task(void *arg, int64_t number, void *memory) {
    const moei_rows_job *job = arg;
    const moe_gemm_rows_args *args = job->args;
    moei_rows_scratch *scratch = memory;
    moei_rows_task task = find_task(job, number);
    const moei_rows a = {args->a, args->lda, args->a_row};
    const moei_rows b = {(const float *)args->b + task.group * args->b_group, args->ldb, NULL};
    if (!args->b_trans && task.end - task.row <= STREAM_ROWS) {
        stream_task(job, &task, &a, b.base, scratch);
        return;
    }
    for (int64_t k0 = 0; k0 == 0 || k0 < args->k; k0 += KC) {
        int64_t kc = moei_min(KC, args->k - k0);
        if (args->b_trans)
            pack_b_trans(b.base, args->ldb, &task.cols, k0, kc, scratch->b);
        else
            pack_b(&b, &task.cols, k0, kc, scratch->b);
        for (int64_t row = task.row; row < task.end; row += MR) {
            int mr = (int)moei_min(MR, task.end - row);
            float *sum = args->k <= KC ? scratch->sum : scratch->sum + (row - task.row) * SUM_LD;
            if (k0 + KC >= args->k) fetch_epilogue(job, &task, row, mr);
            pack_a(&a, row, mr, k0, kc, scratch->a);
            for (int64_t p = 0; p < task.cols.n_runs * task.cols.panels; ++p)
                tile_rows(mr, scratch->a, scratch->b + p * kc * NR, kc, sum + p * NR, k0 > 0);
            if (k0 + KC >= args->k) epilogue(job, &task, row, mr, sum);
        }
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

static void gemm_rows_simd(const moei_team *team, const moe_gemm_rows_args *args) {
    bool gated = args->epilogue == MOE_EPI_ACT && moe_act_gated(args->act);
    int64_t width = gated ? args->n / 2 : args->n, limit = gated ? NB / 2 : NB;
    int64_t even = moei_ceil_div(width, moei_ceil_div(width, limit));
    moei_rows_job job = {.args = args,
                         .gated = gated,
                         .width = width,
                         .block_width = moei_ceil_div(even, COLUMN_ALIGN) * COLUMN_ALIGN,
                         .block_rows = MB};
    while (job.block_rows > MB_MIN && count_tasks(&job) < 4 * team->n_threads) job.block_rows /= 2;
    moei_parallel(team, count_tasks(&job), rows_task, &job);
    if (args->epilogue == MOE_EPI_ACT_GRAD && args->dweight) {
        int64_t rows = args->offset[args->n_groups] - args->offset[0];
        moei_parallel(team, moei_ceil_div(rows, DWEIGHT_ROWS), dweight_task, (void *)args);
    }
}
