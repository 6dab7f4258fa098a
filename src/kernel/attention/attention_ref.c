/* attention_ref.c: the oracle of causal grouped-query attention, forward and backward.
 * q, out [n_seq*q_len, heads*head_dim], k, v [n_seq*kv_stride, kv_heads*head_dim], lse, delta
 * [n_seq*q_len, heads]; any dtype in f64 arithmetic. Source: Vaswani et al. 2017, eq. 1; Ainslie et al.
 * 2023 (groups); Dao et al. 2022, algorithm 4 (backward from lse).
 */
#include <math.h>

#include "core/real.h"
#include "kernel/attention/attention_keys.h"
#include "kernel/kernel_list.h"

static double scale_of(const moe_attention_args *a) {
    return a->scale != 0.0F ? (double)a->scale : 1.0 / sqrt((double)a->head_dim);
}

/* Where a head's numbers of one query row or one key row begin. */
static int64_t query_at(const moe_attention_args *a, int64_t row, int64_t head) {
    return row * a->ldq + head * a->head_dim;
}
static int64_t out_at(const moe_attention_args *a, int64_t row, int64_t head) {
    return row * a->ldo + head * a->head_dim;
}
static int64_t key_at(const moe_attention_args *a, int64_t row, int64_t head) {
    return row * a->ldkv + head / (a->heads / a->kv_heads) * a->head_dim;
}

static double dot(const moe_attention_args *a, const void *x, int64_t xi, const void *y, int64_t yi) {
    double sum = 0.0;
    for (int64_t d = 0; d < a->head_dim; ++d)
        sum += moei_real_load(a->dtype, x, xi + d) * moei_real_load(a->dtype, y, yi + d);
    return sum;
}

/* One task: one head of one query row. The maximum comes first, so nothing overflows. */
static void forward_query(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    (void)scratch;
    int64_t row = task / a->heads, head = task % a->heads, seq = row / a->q_len;
    int64_t seen = moei_kv_len(a, seq) - a->q_len + row % a->q_len + 1, key0 = moei_kv_row(a, seq);
    double scale = scale_of(a), max = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < seen; ++j)
        max = fmax(max, scale * dot(a, a->q, query_at(a, row, head), a->k, key_at(a, key0 + j, head)));
    double acc[MOEI_HEAD_DIM_MAX] = {0};
    for (int64_t j = 0; j < seen; ++j) {
        double s = scale * dot(a, a->q, query_at(a, row, head), a->k, key_at(a, key0 + j, head));
        double p = exp(s - max);
        sum += p;
        for (int64_t d = 0; d < a->head_dim; ++d)
            acc[d] += p * moei_real_load(a->dtype, a->v, key_at(a, key0 + j, head) + d);
    }
    for (int64_t d = 0; d < a->head_dim; ++d)
        moei_real_store(a->dtype, a->out, out_at(a, row, head) + d, acc[d] / sum);
    if (a->lse) moei_real_store(moei_wide(a->dtype), a->lse, row * a->heads + head, max + log(sum));
}

void moei_attention__ref(const moei_team *team, const moe_attention_args *args) {
    moei_parallel(team, args->n_seq * args->q_len * args->heads, forward_query, (void *)args);
}

/* The weight of key row `key` for query `row` and the gradient of its score. */
static double weight_grad(const moe_attention_args *a, int64_t row, int64_t key, int64_t head, double *p) {
    double s = scale_of(a) * dot(a, a->q, query_at(a, row, head), a->k, key_at(a, key, head));
    double dp = dot(a, a->dout, out_at(a, row, head), a->v, key_at(a, key, head));
    *p = exp(s - moei_real_load(moei_wide(a->dtype), a->lse, row * a->heads + head));
    return *p * (dp - moei_real_load(moei_wide(a->dtype), a->delta, row * a->heads + head));
}

/* delta = <dout, out> (which is the sum over keys of p * dp), then dq = scale * sum of ds * k. */
static void backward_query(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    (void)scratch;
    int64_t row = task / a->heads, head = task % a->heads, key0 = row / a->q_len * a->kv_stride;
    int64_t at = out_at(a, row, head);
    moei_real_store(moei_wide(a->dtype), a->delta, row * a->heads + head, dot(a, a->dout, at, a->out, at));
    double acc[MOEI_HEAD_DIM_MAX] = {0};
    for (int64_t j = 0; j <= row % a->q_len; ++j) {
        double p, ds = weight_grad(a, row, key0 + j, head, &p);
        for (int64_t d = 0; d < a->head_dim; ++d)
            acc[d] += ds * moei_real_load(a->dtype, a->k, key_at(a, key0 + j, head) + d);
    }
    for (int64_t d = 0; d < a->head_dim; ++d)
        moei_real_store(a->dtype, a->dq, query_at(a, row, head) + d, scale_of(a) * acc[d]);
}

/* One task: one kv head of one key row; it sums over the heads of its group, then over the queries. */
static void backward_key(void *arg, int64_t task, void *scratch) {
    const moe_attention_args *a = arg;
    (void)scratch;
    int64_t seq = task / a->kv_heads / a->kv_len, j = task / a->kv_heads % a->kv_len;
    int64_t group = a->heads / a->kv_heads, first = task % a->kv_heads * group, key = seq * a->kv_stride + j;
    double dk[MOEI_HEAD_DIM_MAX] = {0}, dv[MOEI_HEAD_DIM_MAX] = {0};
    for (int64_t head = first; head < first + group; ++head)
        for (int64_t row = seq * a->q_len + j; row < (seq + 1) * a->q_len; ++row) {
            double p, ds = weight_grad(a, row, key, head, &p);
            for (int64_t d = 0; d < a->head_dim; ++d) {
                dk[d] += ds * moei_real_load(a->dtype, a->q, query_at(a, row, head) + d);
                dv[d] += p * moei_real_load(a->dtype, a->dout, out_at(a, row, head) + d);
            }
        }
    for (int64_t d = 0; d < a->head_dim; ++d) {
        moei_real_store(a->dtype, a->dk, key_at(a, key, first) + d, scale_of(a) * dk[d]);
        moei_real_store(a->dtype, a->dv, key_at(a, key, first) + d, dv[d]);
    }
}

void moei_attention_backward__ref(const moei_team *team, const moe_attention_args *args) {
    moei_parallel(team, args->n_seq * args->q_len * args->heads, backward_query, (void *)args);
    moei_parallel(team, args->n_seq * args->kv_len * args->kv_heads, backward_key, (void *)args);
}
