/* attention_simd.h: causal grouped-query attention in vectors, forward and backward, f32 or bf16.
 * q, out [n_seq*q_len, heads*head_dim], k, v [n_seq*kv_stride, kv_heads*head_dim], lse, delta
 * [n_seq*q_len, heads]. Source: Milakov & Gimelshein 2018 (online softmax), Dao et al. 2022 (blocks).
 *
 * A task owns a block of up to LANES rows of one head, kept transposed: column d of all rows is one run
 * of lanes. The other side passes by in blocks of BLOCK rows and is read where it lies, one number
 * broadcast at a time. So every product is the same one (block_product), maxima and sums of the softmax
 * run down lanes, and only the owned rows are ever packed. Forward and dq own queries; dk and dv own
 * keys. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_ATTENTION_SIMD_H
#define MOEI_ATTENTION_SIMD_H

#include <math.h>

#include "kernel/kernel_list.h"

/* A product keeps TILE_ROWS x TILE_VECS sums in registers: 16 of 32, or 8 of 16 in AVX2. */
enum { LANES = 64, BLOCK = 64, TILE_ROWS = 4, TILE_VECS = VF_N == 8 ? 2 : 4 };

static float scale_of(const moe_attention_args *a) {
    return a->scale != 0.0F ? a->scale : (float)(1.0 / sqrt((double)a->head_dim));
}

/* Rows of a tensor, f32 or bf16: element (row, column) is number at + row * ld + column. */
typedef struct lane_rows {
    bool bf16;
    void *base;
    int64_t at, ld;
} lane_rows;

static inline lane_rows rows_of(const moe_attention_args *a, const void *base, int64_t at, int64_t ld) {
    return (lane_rows){a->dtype == MOE_BF16, (void *)(uintptr_t)base, at, ld};
}

/* to[c][r] = scale * from[r][c], lanes from `rows` up to whole vectors are zero. */
static void pack_lanes(float *to, lane_rows from, int64_t rows, int64_t columns, float scale) {
    vf block[VF_N], factor = vf_set1(scale);
    for (int64_t r = 0; r < rows; r += VF_N)
        for (int64_t c = 0; c < columns; c += VF_N) {
            int64_t left = moei_min(VF_N, columns - c);
            for (int64_t i = 0; i < VF_N; ++i) {
                int64_t row = from.at + (r + i) * from.ld + c;
                vf x = r + i >= rows ? vf_zero() : vf_get(from.bf16, from.base, row, left);
                block[i] = vf_mul(x, factor);
            }
            vf_transpose(block);
            for (int64_t i = 0; i < left; ++i) vf_store(to + (c + i) * LANES + r, block[i]);
        }
}

/* to[r][c] = scale * from[c][r] */
static void unpack_lanes(lane_rows to, const float *from, int64_t rows, int64_t columns, float scale) {
    vf block[VF_N], factor = vf_set1(scale);
    for (int64_t r = 0; r < rows; r += VF_N)
        for (int64_t c = 0; c < columns; c += VF_N) {
            int64_t left = moei_min(VF_N, columns - c);
            for (int64_t i = 0; i < VF_N; ++i)
                block[i] = i < left ? vf_mul(vf_load(from + (c + i) * LANES + r), factor) : vf_zero();
            vf_transpose(block);
            for (int64_t i = 0; i < VF_N && r + i < rows; ++i)
                vf_put(to.bf16, to.base, to.at + (r + i) * to.ld + c, block[i], left);
        }
}

/* One operand of a product where it lies: element (row, step) at x + row * by_row + step * by_step. */
typedef struct strided {
    const float *x;
    int64_t by_row, by_step;
} strided;

/* Rows that pass by, as f32: where they lie, or a widened copy in `room`, [BLOCK][head_dim]. */
static strided pass_by(lane_rows x, int64_t rows, int64_t columns, float *room) {
    if (!x.bf16) return (strided){(const float *)x.base + x.at, x.ld, 1};
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += VF_N)
            vf_store_upto(room + r * columns + c, vf_get(true, x.base, x.at + r * x.ld + c, columns - c),
                          columns - c);
    return (strided){room, columns, 1};
}

static inline strided turned(strided x) {
    return (strided){x.x, x.by_step, x.by_row};
}

/* c[row][lane] = (c[row][lane] if add) + sum over steps, ascending, of x(row, step) * y[step][lane]. */
__attribute__((always_inline)) static inline void tile(strided x, const float *y, int64_t steps, float *c,
                                                       bool add, int rows, int vecs) {
    vf sum[TILE_ROWS][TILE_VECS];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vecs; ++v) sum[r][v] = add ? vf_load(c + r * LANES + v * VF_N) : vf_zero();
    for (int64_t t = 0; t < steps; ++t)
        for (int r = 0; r < rows; ++r) {
            vf one = vf_set1(x.x[r * x.by_row + t * x.by_step]);
            for (int v = 0; v < vecs; ++v)
                sum[r][v] = vf_fma(one, vf_load(y + t * LANES + v * VF_N), sum[r][v]);
        }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vecs; ++v) vf_store(c + r * LANES + v * VF_N, sum[r][v]);
}

/* The same over any number of rows and the first `vecs` vectors of lanes. */
static void block_product(strided x, int64_t rows, const float *y, int64_t steps, float *c, bool add,
                          int64_t vecs) {
    for (int64_t r = 0; r < rows; r += rows - r < TILE_ROWS ? 1 : TILE_ROWS) {
        strided at = {x.x + r * x.by_row, x.by_row, x.by_step};
        bool tall = rows - r >= TILE_ROWS;
        for (int64_t v = 0; v < vecs; v += vecs - v < TILE_VECS ? 1 : TILE_VECS) {
            const float *from = y + v * VF_N;
            float *to = c + r * LANES + v * VF_N;
            bool wide = vecs - v >= TILE_VECS;
            if (tall && wide)
                tile(at, from, steps, to, add, TILE_ROWS, TILE_VECS);
            else if (tall)
                tile(at, from, steps, to, add, TILE_ROWS, 1);
            else if (wide)
                tile(at, from, steps, to, add, 1, TILE_VECS);
            else
                tile(at, from, steps, to, add, 1, 1);
        }
    }
}

static void fill_run(float *x, int64_t n, float value) {
    for (int64_t i = 0; i < n; ++i) x[i] = value;
}

/* Running maximum and sum of the softmax of each lane. */
typedef struct softmax {
    float max[LANES], sum[LANES];
} softmax;

/* One block of the online softmax for one vector of lanes: score [n][LANES] becomes exp(score - max);
 * returns by how much everything summed before must shrink. */
static inline vf softmax_block(float *score, int64_t n, float *max, float *sum) {
    vf old = vf_load(max), top = old;
    for (int64_t j = 0; j < n; ++j) top = vf_max(vf_load(score + j * LANES), top);
    vf shrink = vf_exp(vf_sub(old, top)), total = vf_mul(vf_load(sum), shrink);
    for (int64_t j = 0; j < n; ++j) {
        vf p = vf_exp(vf_sub(vf_load(score + j * LANES), top));
        vf_store(score + j * LANES, p);
        total = vf_add(total, p);
    }
    vf_store(max, top);
    vf_store(sum, total);
    return shrink;
}

typedef struct forward_scratch {
    softmax state;
    float score[BLOCK * LANES];
    float q[MOEI_HEAD_DIM_MAX * LANES], out[MOEI_HEAD_DIM_MAX * LANES];
    float k[MOEI_HEAD_DIM_MAX * BLOCK], v[MOEI_HEAD_DIM_MAX * BLOCK]; /* widened bf16 */
} forward_scratch;

/* Queries first .. first+n-1 of sequence `seq` against all keys they see. */
static void forward_block(const moe_attention_args *a, int64_t seq, int64_t head, int64_t first, int64_t n,
                          forward_scratch *s) {
    int64_t dim = a->head_dim, vecs = (n + VF_N - 1) / VF_N, row = seq * a->q_len + first;
    int64_t position = a->kv_len - a->q_len + first, kv_head = head / (a->heads / a->kv_heads);
    pack_lanes(s->q, rows_of(a, a->q, row * a->ldq + head * dim, a->ldq), n, dim, scale_of(a));
    fill_run(s->state.max, LANES, -INFINITY);
    fill_run(s->state.sum, LANES, 0.0F);
    fill_run(s->out, dim * LANES, 0.0F);
    for (int64_t j = 0; j < position + n; j += BLOCK) {
        int64_t keys = moei_min(BLOCK, position + n - j);
        int64_t at = (seq * a->kv_stride + j) * a->ldkv + kv_head * dim;
        strided k = pass_by(rows_of(a, a->k, at, a->ldkv), keys, dim, s->k);
        strided v = turned(pass_by(rows_of(a, a->v, at, a->ldkv), keys, dim, s->v));
        block_product(k, keys, s->q, dim, s->score, false, vecs);
        for (int64_t i = 0; i < keys; ++i) /* a lane before the key does not see it */
            fill_run(s->score + i * LANES, moei_min(n, j + i - position), -INFINITY);
        for (int64_t lane = 0; lane < vecs * VF_N; lane += VF_N) {
            vf shrink = softmax_block(s->score + lane, keys, s->state.max + lane, s->state.sum + lane);
            for (int64_t d = 0; d < dim; ++d) {
                float *out = s->out + d * LANES + lane;
                vf_store(out, vf_mul(vf_load(out), shrink));
            }
        }
        block_product(v, dim, s->score, keys, s->out, true, vecs);
    }
    for (int64_t lane = 0; lane < vecs * VF_N; lane += VF_N)
        for (int64_t d = 0; d < dim; ++d) {
            float *out = s->out + d * LANES + lane;
            vf_store(out, vf_div(vf_load(out), vf_load(s->state.sum + lane)));
        }
    unpack_lanes(rows_of(a, a->out, row * a->ldo + head * dim, a->ldo), s->out, n, dim, 1.0F);
    float *lse = a->lse;
    for (int64_t i = 0; lse && i < n; ++i)
        lse[(row + i) * a->heads + head] = s->state.max[i] + logf(s->state.sum[i]);
}

/* Late queries see the most keys: they go first, so that no thread ends alone with a long task. */
static void forward_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    int64_t blocks = (a->q_len + LANES - 1) / LANES, pairs = a->n_seq * a->heads;
    int64_t first = (blocks - 1 - task / pairs) * LANES, pair = task % pairs;
    forward_block(a, pair / a->heads, pair % a->heads, first, moei_min(LANES, a->q_len - first), scratch);
}

/* Heads of a group that share one packed block of keys when there is a single query. */
enum { DECODE_HEADS = 8 };

typedef struct decode_scratch {
    float max[DECODE_HEADS][VF_N], sum[DECODE_HEADS][VF_N]; /* all lanes of a head the same */
    float score[BLOCK], q[DECODE_HEADS * MOEI_HEAD_DIM_MAX], out[DECODE_HEADS * MOEI_HEAD_DIM_MAX];
    float k[MOEI_HEAD_DIM_MAX * LANES];
} decode_scratch;

/* score[keys] -> weights in place, every sum in the order of softmax_block; returns the shrink factor. */
static vf decode_softmax(float *score, int64_t keys, float *max, float *sum) {
    int64_t whole = (keys + VF_N - 1) / VF_N * VF_N;
    vf old = vf_load(max), top = old;
    fill_run(score + keys, whole - keys, -INFINITY);
    for (int64_t j = 0; j < whole; j += VF_N) top = vf_max(vf_load(score + j), top);
    top = vf_set1(vf_max_lane(top));
    vf shrink = vf_exp(vf_sub(old, top)), total = vf_mul(vf_load(sum), shrink);
    for (int64_t j = 0; j < whole; j += VF_N) vf_store(score + j, vf_exp(vf_sub(vf_load(score + j), top)));
    for (int64_t j = 0; j < keys; ++j) total = vf_add(total, vf_set1(score[j]));
    vf_store(max, top);
    vf_store(sum, total);
    return shrink;
}

/* out[n] = out * shrink + sum over keys, ascending, of weight[key] * v[key][n] */
MOEI_INLINE void decode_output(const bool bf16, float *out, int64_t n, vf shrink, const float *weight,
                               lane_rows v, int64_t keys) {
    int64_t d = 0;
    for (; d + 2 * VF_N <= n; d += 2 * VF_N) {
        vf s0 = vf_mul(vf_load(out + d), shrink), s1 = vf_mul(vf_load(out + d + VF_N), shrink);
        for (int64_t j = 0; j < keys; ++j) {
            int64_t at = v.at + j * v.ld + d;
            s0 = vf_fma(vf_get(bf16, v.base, at, VF_N), vf_set1(weight[j]), s0);
            s1 = vf_fma(vf_get(bf16, v.base, at + VF_N, VF_N), vf_set1(weight[j]), s1);
        }
        vf_store(out + d, s0);
        vf_store(out + d + VF_N, s1);
    }
    for (; d < n; d += VF_N) {
        int64_t left = moei_min(VF_N, n - d);
        vf sum = vf_mul(vf_load_n(out + d, left), shrink);
        for (int64_t j = 0; j < keys; ++j)
            sum = vf_fma(vf_get(bf16, v.base, v.at + j * v.ld + d, left), vf_set1(weight[j]), sum);
        vf_store_n(out + d, sum, left);
    }
}

/* One query a sequence: lanes would stand empty, so here lanes run over the keys of a packed block and
 * over head_dim. Same blocks, same order of every sum: the same bits as forward_block. */
static void decode_heads(const moe_attention_args *a, int64_t seq, int64_t head, int64_t n,
                         decode_scratch *s) {
    int64_t dim = a->head_dim, kv_head = head / (a->heads / a->kv_heads);
    bool bf16 = a->dtype == MOE_BF16;
    float *lse = a->lse;
    vf scale = vf_set1(scale_of(a));
    fill_run(s->max[0], n * VF_N, -INFINITY);
    fill_run(s->sum[0], n * VF_N, 0.0F);
    fill_run(s->out, n * dim, 0.0F);
    for (int64_t i = 0; i < n * dim; i += VF_N) {
        vf q = vf_get(bf16, a->q, seq * a->ldq + head * dim + i, n * dim - i);
        vf_store_upto(s->q + i, vf_mul(scale, q), n * dim - i);
    }
    for (int64_t j = 0; j < a->kv_len; j += BLOCK) {
        int64_t keys = moei_min(BLOCK, a->kv_len - j);
        int64_t at = (seq * a->kv_stride + j) * a->ldkv + kv_head * dim;
        lane_rows v = rows_of(a, a->v, at, a->ldkv);
        pack_lanes(s->k, rows_of(a, a->k, at, a->ldkv), keys, dim, 1.0F);
        for (int64_t h = 0; h < n; ++h) {
            strided one = {s->q + h * dim, 0, 1};
            block_product(one, 1, s->k, dim, s->score, false, (keys + VF_N - 1) / VF_N);
            vf shrink = decode_softmax(s->score, keys, s->max[h], s->sum[h]);
            if (bf16)
                decode_output(true, s->out + h * dim, dim, shrink, s->score, v, keys);
            else
                decode_output(false, s->out + h * dim, dim, shrink, s->score, v, keys);
        }
    }
    for (int64_t h = 0; h < n; ++h) {
        for (int64_t d = 0; d < dim; d += VF_N) {
            vf mean = vf_div(vf_load_upto(s->out + h * dim + d, dim - d), vf_load(s->sum[h]));
            vf_put(bf16, a->out, seq * a->ldo + (head + h) * dim + d, mean, dim - d);
        }
        if (lse) lse[seq * a->heads + head + h] = s->max[h][0] + logf(s->sum[h][0]);
    }
}

static void decode_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    int64_t group = a->heads / a->kv_heads, parts = (group + DECODE_HEADS - 1) / DECODE_HEADS;
    int64_t seq = task / parts / a->kv_heads, kv_head = task / parts % a->kv_heads;
    int64_t first = task % parts * DECODE_HEADS;
    decode_heads(a, seq, kv_head * group + first, moei_min(DECODE_HEADS, group - first), scratch);
}

static inline void attention_forward(const moei_team *team, const moe_attention_args *args) {
    int64_t parts = (args->heads / args->kv_heads + DECODE_HEADS - 1) / DECODE_HEADS;
    if (args->q_len == 1)
        moei_parallel(team, args->n_seq * args->kv_heads * parts, decode_task, (void *)args);
    else
        moei_parallel(team, (args->q_len + LANES - 1) / LANES * args->n_seq * args->heads, forward_task,
                      (void *)args);
}

typedef struct backward_scratch {
    float weight[BLOCK * LANES], dscore[BLOCK * LANES];
    float lse[LANES], delta[LANES];
    float x[MOEI_HEAD_DIM_MAX * LANES], y[MOEI_HEAD_DIM_MAX * LANES]; /* q, dout or k, v */
    float dx[MOEI_HEAD_DIM_MAX * LANES], dy[MOEI_HEAD_DIM_MAX * LANES];
    float pass_x[MOEI_HEAD_DIM_MAX * BLOCK], pass_y[MOEI_HEAD_DIM_MAX * BLOCK]; /* widened bf16 */
} backward_scratch;
_Static_assert(sizeof(backward_scratch) <= MOEI_THREAD_SCRATCH, "attention's blocks fit a thread's scratch");

/* weight = exp(score - lse) in place of the score; dscore = weight * (dweight - delta) in place of dweight.
 */
static inline void grad_vector(float *score, float *dweight, vf lse, vf delta) {
    vf p = vf_exp(vf_sub(vf_load(score), lse));
    vf_store(score, p);
    vf_store(dweight, vf_mul(p, vf_sub(vf_load(dweight), delta)));
}

/* dq of queries first .. first+n-1: lanes are queries, keys pass by. */
static void query_grad_block(const moe_attention_args *a, int64_t seq, int64_t head, int64_t first, int64_t n,
                             backward_scratch *s) {
    int64_t dim = a->head_dim, vecs = (n + VF_N - 1) / VF_N, row = seq * a->q_len + first;
    int64_t kv_head = head / (a->heads / a->kv_heads);
    pack_lanes(s->x, rows_of(a, a->q, row * a->ldq + head * dim, a->ldq), n, dim, scale_of(a));
    pack_lanes(s->y, rows_of(a, a->dout, row * a->ldo + head * dim, a->ldo), n, dim, 1.0F);
    fill_run(s->dx, dim * LANES, 0.0F);
    for (int64_t i = 0; i < LANES; ++i) {
        int64_t at = (row + (i < n ? i : 0)) * a->heads + head; /* lanes past n: any finite number */
        s->lse[i] = ((const float *)a->lse)[at];
        s->delta[i] = ((const float *)a->delta)[at];
    }
    for (int64_t j = 0; j < first + n; j += BLOCK) {
        int64_t keys = moei_min(BLOCK, first + n - j),
                at = (seq * a->kv_stride + j) * a->ldkv + kv_head * dim;
        strided k = pass_by(rows_of(a, a->k, at, a->ldkv), keys, dim, s->pass_x);
        strided v = pass_by(rows_of(a, a->v, at, a->ldkv), keys, dim, s->pass_y);
        block_product(k, keys, s->x, dim, s->weight, false, vecs);
        block_product(v, keys, s->y, dim, s->dscore, false, vecs);
        for (int64_t i = 0; i < keys; ++i) {
            float *score = s->weight + i * LANES, *dweight = s->dscore + i * LANES;
            fill_run(score, moei_min(n, j + i - first), -INFINITY);
            for (int64_t lane = 0; lane < vecs * VF_N; lane += VF_N)
                grad_vector(score + lane, dweight + lane, vf_load(s->lse + lane), vf_load(s->delta + lane));
        }
        block_product(turned(k), dim, s->dscore, keys, s->dx, true, vecs);
    }
    unpack_lanes(rows_of(a, a->dq, row * a->ldq + head * dim, a->ldq), s->dx, n, dim, scale_of(a));
}

/* dk and dv of keys first .. first+n-1: lanes are keys, the queries of all heads of the group pass by. */
static void key_grad_block(const moe_attention_args *a, int64_t seq, int64_t kv_head, int64_t first,
                           int64_t n, backward_scratch *s) {
    int64_t dim = a->head_dim, vecs = (n + VF_N - 1) / VF_N, group = a->heads / a->kv_heads;
    int64_t mine = (seq * a->kv_stride + first) * a->ldkv + kv_head * dim;
    pack_lanes(s->x, rows_of(a, a->k, mine, a->ldkv), n, dim, scale_of(a));
    pack_lanes(s->y, rows_of(a, a->v, mine, a->ldkv), n, dim, 1.0F);
    fill_run(s->dx, dim * LANES, 0.0F);
    fill_run(s->dy, dim * LANES, 0.0F);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
        for (int64_t i = first; i < a->q_len; i += BLOCK) {
            int64_t queries = moei_min(BLOCK, a->q_len - i), row = seq * a->q_len + i;
            lane_rows q_rows = rows_of(a, a->q, row * a->ldq + head * dim, a->ldq);
            lane_rows dout_rows = rows_of(a, a->dout, row * a->ldo + head * dim, a->ldo);
            strided q = pass_by(q_rows, queries, dim, s->pass_x);
            strided dout = pass_by(dout_rows, queries, dim, s->pass_y);
            block_product(q, queries, s->x, dim, s->weight, false, vecs);
            block_product(dout, queries, s->y, dim, s->dscore, false, vecs);
            for (int64_t r = 0; r < queries; ++r) {
                float *score = s->weight + r * LANES, *dweight = s->dscore + r * LANES;
                vf lse = vf_set1(((const float *)a->lse)[(row + r) * a->heads + head]);
                vf delta = vf_set1(((const float *)a->delta)[(row + r) * a->heads + head]);
                int64_t seen = i + r - first + 1; /* lanes after the query's own position are not seen */
                fill_run(score + seen, n - seen, -INFINITY);
                for (int64_t lane = 0; lane < vecs * VF_N; lane += VF_N)
                    grad_vector(score + lane, dweight + lane, lse, delta);
            }
            block_product(turned(dout), dim, s->weight, queries, s->dy, true, vecs);
            block_product(turned(q), dim, s->dscore, queries, s->dx, true, vecs);
        }
    unpack_lanes(rows_of(a, a->dk, mine, a->ldkv), s->dx, n, dim, scale_of(a));
    unpack_lanes(rows_of(a, a->dv, mine, a->ldkv), s->dy, n, dim, 1.0F);
}

static void query_grad_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    int64_t blocks = (a->q_len + LANES - 1) / LANES, pairs = a->n_seq * a->heads;
    int64_t first = (blocks - 1 - task / pairs) * LANES, pair = task % pairs;
    query_grad_block(a, pair / a->heads, pair % a->heads, first, moei_min(LANES, a->q_len - first), scratch);
}

static void key_grad_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    int64_t pairs = a->n_seq * a->kv_heads, first = task / pairs * LANES, pair = task % pairs;
    key_grad_block(a, pair / a->kv_heads, pair % a->kv_heads, first, moei_min(LANES, a->kv_len - first),
                   scratch);
}

/* delta = <dout, out>, which is the sum over keys of weight * dweight. */
static void delta_task(void *arg, int64_t row, void *scratch) {
    const moe_attention_args *a = arg;
    (void)scratch;
    for (int64_t head = 0; head < a->heads; ++head) {
        int64_t at = row * a->ldo + head * a->head_dim;
        bool bf16 = a->dtype == MOE_BF16;
        vf sum = vf_zero();
        for (int64_t d = 0; d < a->head_dim; d += VF_N) {
            int64_t left = a->head_dim - d;
            sum = vf_fma(vf_get(bf16, a->dout, at + d, left), vf_get(bf16, a->out, at + d, left), sum);
        }
        ((float *)a->delta)[row * a->heads + head] = vf_sum(sum);
    }
}

static inline void attention_backward(const moei_team *team, const moe_attention_args *args) {
    moei_parallel(team, args->n_seq * args->q_len, delta_task, (void *)args);
    moei_parallel(team, (args->q_len + LANES - 1) / LANES * args->n_seq * args->heads, query_grad_task,
                  (void *)args);
    moei_parallel(team, (args->kv_len + LANES - 1) / LANES * args->n_seq * args->kv_heads, key_grad_task,
                  (void *)args);
}

#endif
