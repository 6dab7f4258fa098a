/* attention_simd.h: causal grouped-query attention in vectors, forward and backward, f32 or bf16.
 * q, out [n_seq*q_len, heads*head_dim], k, v [n_seq*kv_stride, kv_heads*head_dim], lse, delta
 * [n_seq*q_len, heads]. Source: Milakov & Gimelshein 2018 (online softmax), Dao et al. 2022 (blocks).
 *
 * Up to LANES rows of one head are owned and kept transposed: column d of all rows is one run of lanes. The
 * other side passes by in blocks of BLOCK rows, one number broadcast at a time. So all products are of two
 * kinds, block_product and block_outer, and maxima and sums of the softmax run down lanes. Forward owns
 * queries, backward keys. Where a block crosses the diagonal, each vector of lanes takes only the rows that
 * some lane of it sees or is seen by. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_ATTENTION_SIMD_H
#define MOEI_ATTENTION_SIMD_H

#include <math.h>

#include "kernel/attention/attention_keys.h"
#include "kernel/attention/attention_tile.h"

static float scale_of(const moe_attention_args *a) {
    return a->scale != 0.0F ? a->scale : (float)(1.0 / sqrt((double)a->head_dim));
}

static inline lane_rows rows_of(const moe_attention_args *a, const void *base, int64_t at, int64_t ld) {
    return (lane_rows){a->dtype == MOE_BF16, (void *)(uintptr_t)base, at, ld};
}

static void fill_run(float *x, int64_t n, float value) {
    for (int64_t i = 0; i < n; ++i) x[i] = value;
}

/* Running maximum and sum of the softmax of each lane. */
typedef struct softmax {
    float max[LANES], sum[LANES];
} softmax;

/* e^x of what is at most 0, or hardly more. */
static inline vf exp_down(vf x) {
    return vf_exp_of(vf_max(vf_set1(-105.0F), x));
}

/* One block of the online softmax for one vector of lanes: score [n][LANES] becomes exp(score - max);
 * returns by how much everything summed before must shrink. */
static inline vf softmax_block(float *score, int64_t n, float *max, float *sum) {
    vf old = vf_load(max), top = old;
    for (int64_t j = 0; j < n; ++j) top = vf_max(vf_load(score + j * LANES), top);
    vf shrink = exp_down(vf_sub(old, top)), total = vf_mul(vf_load(sum), shrink);
    for (int64_t j = 0; j < n; ++j) {
        vf p = exp_down(vf_sub(vf_load(score + j * LANES), top));
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
    float k[MOEI_HEAD_DIM_MAX * BLOCK], v[MOEI_HEAD_DIM_MAX * BLOCK]; /* copies */
} forward_scratch;

/* The owned queries against n keys. first_seen: of key 0 the first lane that sees it, so that a lane before
 * first_seen + i does not see key i. A vector whose stop is not above 0 sees none of them. */
static void forward_keys(forward_scratch *s, whole_rows k, whole_rows v, int64_t n, int64_t dim, int64_t vecs,
                         int64_t first_seen) {
    stairs of = {.falling = true, .rows = n};
    int64_t key = 0;
    for (int64_t i = 0; i < vecs; ++i) {
        const int64_t lane = i * VF_N, stop = moei_min(n, lane + VF_N - first_seen);
        float *score = s->score + key * LANES + lane;
        of.stop[i] = stop;
        block_product(k.x + key * k.ld, k.ld, stop - key, s->q + lane, LANES, dim, score, false, vecs - i);
        for (; key < stop; ++key, score += LANES) fill_run(score, first_seen + key - lane, -INFINITY);
    }
    for (int64_t i = 0; i < vecs; ++i) {
        const int64_t at = i * VF_N;
        vf shrink = softmax_block(s->score + at, of.stop[i], s->state.max + at, s->state.sum + at);
        for (int64_t d = 0; d < dim; ++d) {
            float *out = s->out + d * LANES + at;
            vf_store(out, vf_mul(vf_load(out), shrink));
        }
    }
    block_outer(v, dim, s->score, s->out, &of, vecs);
}

/* Queries first .. first+n-1 of sequence `seq` against all keys they see. */
static void forward_block(const moe_attention_args *a, int64_t seq, int64_t head, int64_t first, int64_t n,
                          forward_scratch *s) {
    int64_t dim = a->head_dim, vecs = (n + VF_N - 1) / VF_N, row = seq * a->q_len + first;
    int64_t position = moei_kv_len(a, seq) - a->q_len + first, kv_head = head / (a->heads / a->kv_heads);
    const lane_rows to = rows_of(a, a->out, row * a->ldo + head * dim, a->ldo);
    ask_rows(to, n, dim);
    const whole_rows q = pass_by(rows_of(a, a->q, row * a->ldq + head * dim, a->ldq), n, dim, s->k);
    pack_lanes(s->q, q, n, dim, scale_of(a));
    fill_run(s->state.max, LANES, -INFINITY);
    fill_run(s->state.sum, LANES, 0.0F);
    fill_run(s->out, whole_vectors(dim) * LANES, 0.0F);
    for (int64_t j = 0; j < position + n; j += BLOCK) {
        int64_t keys = moei_min(BLOCK, position + n - j);
        int64_t at = (moei_kv_row(a, seq) + j) * a->ldkv + kv_head * dim;
        const whole_rows k = pass_by(rows_of(a, a->k, at, a->ldkv), keys, dim, s->k);
        const whole_rows v = pass_by(rows_of(a, a->v, at, a->ldkv), keys, dim, s->v);
        forward_keys(s, k, v, keys, dim, vecs, j - position);
    }
    float *lse = a->lse, *sum = s->state.sum;
    for (int64_t i = 0; lse && i < n; ++i) lse[(row + i) * a->heads + head] = s->state.max[i] + logf(sum[i]);
    for (int64_t lane = 0; lane < LANES; lane += VF_N)
        vf_store(sum + lane, vf_div(vf_set1(1.0F), vf_load(sum + lane)));
    unpack_lanes(to, s->out, n, dim, sum);
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
    float k[MOEI_HEAD_DIM_MAX * LANES], k_row[MOEI_HEAD_DIM_MAX * BLOCK];
} decode_scratch;

/* score[keys] -> weights in place, every sum in the order of softmax_block; returns the shrink factor. */
static vf decode_softmax(float *score, int64_t keys, float *max, float *sum) {
    int64_t whole = (keys + VF_N - 1) / VF_N * VF_N;
    vf old = vf_load(max), top = old;
    fill_run(score + keys, whole - keys, -INFINITY);
    for (int64_t j = 0; j < whole; j += VF_N) top = vf_max(vf_load(score + j), top);
    top = vf_set1(vf_max_lane(top));
    vf shrink = exp_down(vf_sub(old, top)), total = vf_mul(vf_load(sum), shrink);
    for (int64_t j = 0; j < whole; j += VF_N) vf_store(score + j, exp_down(vf_sub(vf_load(score + j), top)));
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
    int64_t dim = a->head_dim, kv_head = head / (a->heads / a->kv_heads), kv_len = moei_kv_len(a, seq);
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
    for (int64_t j = 0; j < kv_len; j += BLOCK) {
        int64_t keys = moei_min(BLOCK, kv_len - j);
        int64_t at = (moei_kv_row(a, seq) + j) * a->ldkv + kv_head * dim;
        lane_rows v = rows_of(a, a->v, at, a->ldkv);
        const whole_rows k = pass_by(rows_of(a, a->k, at, a->ldkv), keys, dim, s->k_row);
        pack_lanes(s->k, k, keys, dim, 1.0F);
        for (int64_t h = 0; h < n; ++h) {
            block_product(s->q + h * dim, 0, 1, s->k, LANES, dim, s->score, false, (keys + VF_N - 1) / VF_N);
            vf shrink = decode_softmax(s->score, keys, s->max[h], s->sum[h]);
            if (bf16)
                decode_output(true, s->out + h * dim, dim, shrink, s->score, v, keys);
            else
                decode_output(false, s->out + h * dim, dim, shrink, s->score, v, keys);
        }
    }
    for (int64_t h = 0; h < n; ++h) {
        const vf over = vf_div(vf_set1(1.0F), vf_load(s->sum[h]));
        for (int64_t d = 0; d < dim; d += VF_N) {
            vf mean = vf_mul(vf_load_upto(s->out + h * dim + d, dim - d), over);
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

/* A backward task's blocks, and where they lie in a thread's scratch. */
typedef struct grad_blocks {
    int64_t columns;        /* head_dim in whole vectors */
    float *weight, *dscore; /* [BLOCK][LANES] */
    float *k, *v, *dk, *dv; /* [head_dim][LANES] of the keys owned */
    float *k_row;           /* [LANES][columns] of them */
    float *q, *dout;        /* [BLOCK][columns]: copies of the queries that pass by */
    float *dq;              /* [..][columns], whatever room is left */
} grad_blocks;

static grad_blocks grad_blocks_in(const moe_attention_args *a, float *scratch) {
    const int64_t columns = whole_vectors(a->head_dim), block = LANES * columns;
    float *of_dim = scratch + 2 * BLOCK * LANES;
    return (grad_blocks){columns,
                         scratch,
                         scratch + BLOCK * LANES,
                         of_dim,
                         of_dim + block,
                         of_dim + 2 * block,
                         of_dim + 3 * block,
                         of_dim + 4 * block,
                         of_dim + 5 * block,
                         of_dim + 6 * block,
                         of_dim + 7 * block};
}
_Static_assert((2 * BLOCK + 7 * MOEI_HEAD_DIM_MAX) * LANES * sizeof(float) <= MOEI_THREAD_SCRATCH,
               "attention's blocks fit a thread's scratch");

/* Whether dq of a whole sequence fits too, for all heads of a group. */
static bool dq_fits(const moe_attention_args *a) {
    const int64_t rows = 7 * LANES + a->heads / a->kv_heads * a->q_len;
    const int64_t numbers = 2 * BLOCK * LANES + rows * whole_vectors(a->head_dim);
    return numbers * (int64_t)sizeof(float) <= MOEI_THREAD_SCRATCH;
}

/* weight = exp(score - lse) in place of the score; dscore = weight * (dweight - delta) in place of dweight.
 */
static inline void grad_vector(float *score, float *dweight, vf lse, vf delta) {
    vf p = exp_down(vf_sub(vf_load(score), lse));
    vf_store(score, p);
    vf_store(dweight, vf_mul(p, vf_sub(vf_load(dweight), delta)));
}

/* A head of one sequence. */
typedef struct grad_place {
    int64_t seq, head, kv_head;
} grad_place;

static void own_keys(const moe_attention_args *a, grad_place at, int64_t first, int64_t n,
                     const grad_blocks *s) {
    const int64_t dim = a->head_dim, row = (at.seq * a->kv_stride + first) * a->ldkv + at.kv_head * dim;
    pack_lanes(s->v, pass_by(rows_of(a, a->v, row, a->ldkv), n, dim, s->k_row), n, dim, 1.0F);
    pack_lanes(s->k, copy_rows(rows_of(a, a->k, row, a->ldkv), n, dim, s->k_row), n, dim, scale_of(a));
}

/* Weights and gradients of scores of the queries row .. end-1 that pass by, for the first `vecs` vectors of
 * keys. diagonal: a query sees as many keys as its own number. lse and delta are those of query 0. */
static void score_grads(const moe_attention_args *a, const grad_blocks *s, whole_rows q, whole_rows dout,
                        int64_t row, int64_t end, int64_t vecs, bool diagonal, const float *lse,
                        const float *delta) {
    float *weight = s->weight + row * LANES, *dscore = s->dscore + row * LANES;
    block_product(q.x + row * q.ld, q.ld, end - row, s->k, LANES, a->head_dim, weight, false, vecs);
    block_product(dout.x + row * dout.ld, dout.ld, end - row, s->v, LANES, a->head_dim, dscore, false, vecs);
    for (; row < end; ++row, weight += LANES, dscore += LANES) {
        const vf norm = vf_set1(lse[row * a->heads]), mean = vf_set1(delta[row * a->heads]);
        if (diagonal) fill_run(weight + row + 1, vecs * VF_N - row - 1, -INFINITY);
        for (int64_t v = 0; v < vecs * VF_N; v += VF_N) grad_vector(weight + v, dscore + v, norm, mean);
    }
}

/* Queries i .. i+queries-1 of a head against the keys first .. first+n-1, which are owned: adds to dk and dv
 * if `keys`, and to dq[queries][columns] unless NULL. Blocks meet on the diagonal or not at all: i >= first.
 */
static void grad_pair(const moe_attention_args *a, grad_place at, int64_t first, int64_t n, int64_t i,
                      int64_t queries, const grad_blocks *s, float *dq, bool keys) {
    const int64_t dim = a->head_dim, row = at.seq * a->q_len + i, vecs = (n + VF_N - 1) / VF_N;
    const float *lse = (const float *)a->lse + row * a->heads + at.head;
    const float *delta = (const float *)a->delta + row * a->heads + at.head;
    const bool diagonal = i == first;
    stairs of = {.falling = false, .rows = queries};
    const int64_t from_q = row * a->ldq + at.head * dim, from_dout = row * a->ldo + at.head * dim;
    const whole_rows q = pass_by(rows_of(a, a->q, from_q, a->ldq), queries, dim, s->q);
    const whole_rows dout = pass_by(rows_of(a, a->dout, from_dout, a->ldo), queries, dim, s->dout);
    for (int64_t v = diagonal ? 0 : vecs - 1, r = 0; v < vecs; ++v) {
        const int64_t stop = of.stop[v] = v + 1 == vecs ? queries : moei_min(queries, (v + 1) * VF_N);
        score_grads(a, s, q, dout, r, stop, v + 1, diagonal, lse, delta);
        if (dq)
            block_product(s->dscore + r * LANES, LANES, stop - r, s->k_row, s->columns,
                          moei_min(n, (v + 1) * VF_N), dq + r * s->columns, true, s->columns / VF_N);
        r = stop;
    }
    if (!keys) return;
    block_outer(dout, dim, s->weight, s->dv, &of, vecs);
    block_outer(q, dim, s->dscore, s->dk, &of, vecs);
}

static void store_dq(const moe_attention_args *a, grad_place at, int64_t i, int64_t queries, const float *dq,
                     int64_t columns) {
    const vf scale = vf_set1(scale_of(a));
    for (int64_t r = 0; r < queries; ++r) {
        const int64_t to = (at.seq * a->q_len + i + r) * a->ldq + at.head * a->head_dim;
        for (int64_t c = 0; c < a->head_dim; c += VF_N)
            vf_put(a->dtype == MOE_BF16, a->dq, to + c, vf_mul(vf_load(dq + r * columns + c), scale),
                   a->head_dim - c);
    }
}

/* dk and dv of the keys from `first` on; dq of all queries that see them is added to s->dq if `queries_too`.
 */
static void key_block(const moe_attention_args *a, grad_place at, int64_t first, const grad_blocks *s,
                      bool queries_too) {
    const int64_t dim = a->head_dim, n = moei_min(LANES, a->kv_len - first), group = a->heads / a->kv_heads;
    const int64_t row = (at.seq * a->kv_stride + first) * a->ldkv + at.kv_head * dim;
    const lane_rows dk = rows_of(a, a->dk, row, a->ldkv), dv = rows_of(a, a->dv, row, a->ldkv);
    ask_rows(dk, n, dim);
    ask_rows(dv, n, dim);
    own_keys(a, at, first, n, s);
    fill_run(s->dk, s->columns * LANES, 0.0F);
    fill_run(s->dv, s->columns * LANES, 0.0F);
    for (int64_t h = 0; h < group; ++h)
        for (int64_t i = first; i < a->q_len; i += BLOCK) {
            at.head = at.kv_head * group + h;
            float *dq = queries_too ? s->dq + (h * a->q_len + i) * s->columns : NULL;
            grad_pair(a, at, first, n, i, moei_min(BLOCK, a->q_len - i), s, dq, true);
        }
    float scale[LANES], one[LANES];
    fill_run(scale, LANES, scale_of(a));
    fill_run(one, LANES, 1.0F);
    unpack_lanes(dk, s->dk, n, dim, scale);
    unpack_lanes(dv, s->dv, n, dim, one);
}

/* All gradients of a group of heads in one pass. */
static void group_grad_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    const int64_t group = a->heads / a->kv_heads;
    grad_place at = {task / a->kv_heads, 0, task % a->kv_heads};
    grad_blocks s = grad_blocks_in(a, scratch);
    fill_run(s.dq, group * a->q_len * s.columns, 0.0F);
    for (int64_t first = 0; first < a->kv_len; first += LANES) key_block(a, at, first, &s, true);
    for (int64_t h = 0; h < group; ++h) {
        at.head = at.kv_head * group + h;
        store_dq(a, at, 0, a->q_len, s.dq + h * a->q_len * s.columns, s.columns);
    }
}

/* In two passes dk and dv alone, a block of keys a task, */
static void key_grad_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    const int64_t pairs = a->n_seq * a->kv_heads, pair = task % pairs;
    const grad_place at = {pair / a->kv_heads, 0, pair % a->kv_heads};
    const grad_blocks s = grad_blocks_in(a, scratch);
    key_block(a, at, task / pairs * LANES, &s, false);
}

/* and dq, a block of queries a task; it takes the room of dk. Late queries see the most keys and go first. */
static void query_grad_task(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    const int64_t blocks = (a->q_len + BLOCK - 1) / BLOCK, pairs = a->n_seq * a->heads, pair = task % pairs;
    const int64_t i = (blocks - 1 - task / pairs) * BLOCK, queries = moei_min(BLOCK, a->q_len - i);
    const grad_place at = {pair / a->heads, pair % a->heads, pair % a->heads / (a->heads / a->kv_heads)};
    const grad_blocks s = grad_blocks_in(a, scratch);
    fill_run(s.dk, queries * s.columns, 0.0F);
    for (int64_t first = 0; first <= i; first += LANES) {
        const int64_t n = moei_min(LANES, a->kv_len - first);
        own_keys(a, at, first, n, &s);
        grad_pair(a, at, first, n, i, queries, &s, s.dk, false);
    }
    store_dq(a, at, i, queries, s.dk, s.columns);
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

/* One pass makes five products of each two blocks but has few tasks, of equal length; two passes make seven
 * and share them out among any number of threads, unless a sequence is a single block of keys. Both add up
 * the same numbers in the same order, so that the number of threads may choose and leaves the bits alone. */
static bool in_one_pass(const moei_team *team, const moe_attention_args *a) {
    const int64_t tasks = a->n_seq * a->kv_heads, rounds = moei_ceil_div(tasks, team->n_threads);
    return dq_fits(a) && (a->kv_len <= LANES || 5 * rounds * team->n_threads <= 7 * tasks);
}

static inline void attention_backward(const moei_team *team, const moe_attention_args *args) {
    const int64_t blocks = (args->q_len + BLOCK - 1) / BLOCK;
    moei_parallel(team, args->n_seq * args->q_len, delta_task, (void *)args);
    if (in_one_pass(team, args)) {
        moei_parallel(team, args->n_seq * args->kv_heads, group_grad_task, (void *)args);
    } else {
        moei_parallel(team, blocks * args->n_seq * args->heads, query_grad_task, (void *)args);
        moei_parallel(team, blocks * args->n_seq * args->kv_heads, key_grad_task, (void *)args);
    }
}

#endif
