/* attention_test.h: what the tests of attention share: the tensors of a case, with rows at odd strides, and a
 * run of a kernel over them. q[n_seq,q_len,heads,head_dim], k, v[n_seq,kv_stride,kv_heads,head_dim].
 * Source: op.h.
 */
#ifndef ATTENTION_TEST_H
#define ATTENTION_TEST_H

#include "kernel/kernel_test.h"

typedef struct shape {
    int64_t n_seq, q_len, kv_len, kv_stride;
    int32_t heads, kv_heads, head_dim;
} shape;

/* Tensors of one case; rows are padded so that a wrong stride shows. */
typedef struct tensors {
    shape s;
    moe_dtype dtype;
    int64_t ldq, ldkv, ldo, n_q, n_kv, n_o, n_lse;
    void *q, *k, *v, *dout;                 /* inputs */
    void *out, *lse, *delta, *dq, *dk, *dv; /* outputs */
} tensors;

static inline void poison_outputs(tensors *t) {
    t->out = poisoned(t->dtype, t->n_o);
    t->lse = poisoned(t->dtype, t->n_lse);
    t->delta = poisoned(t->dtype, t->n_lse);
    t->dq = poisoned(t->dtype, t->n_q);
    t->dk = poisoned(t->dtype, t->n_kv);
    t->dv = poisoned(t->dtype, t->n_kv);
}

static inline tensors make(shape s, moe_dtype dtype, uint64_t seed) {
    tensors t = {.s = s, .dtype = dtype};
    t.ldq = (int64_t)s.heads * s.head_dim + 5;
    t.ldkv = (int64_t)s.kv_heads * s.head_dim + 3;
    t.ldo = (int64_t)s.heads * s.head_dim + 1;
    t.n_q = s.n_seq * s.q_len * t.ldq;
    t.n_kv = s.n_seq * s.kv_stride * t.ldkv;
    t.n_o = s.n_seq * s.q_len * t.ldo;
    t.n_lse = s.n_seq * s.q_len * s.heads;
    t.q = random_array(dtype, t.n_q, 4 * seed);
    t.k = random_array(dtype, t.n_kv, 4 * seed + 1);
    t.v = random_array(dtype, t.n_kv, 4 * seed + 2);
    t.dout = random_array(dtype, t.n_o, 4 * seed + 3);
    poison_outputs(&t);
    return t;
}

/* The same inputs, outputs of its own. */
static inline tensors twin_of(const tensors *t) {
    tensors twin = *t;
    poison_outputs(&twin);
    return twin;
}

static inline void release_twin(tensors *t) {
    void *outputs[] = {t->out, t->lse, t->delta, t->dq, t->dk, t->dv};
    for (size_t i = 0; i < COUNT(outputs); ++i) free(outputs[i]);
}

static inline void release(tensors *t) {
    void *inputs[] = {t->q, t->k, t->v, t->dout};
    for (size_t i = 0; i < COUNT(inputs); ++i) free(inputs[i]);
    release_twin(t);
}

static inline moe_attention_args args_of(const tensors *t) {
    const shape *s = &t->s;
    return (moe_attention_args){.dtype = t->dtype,
                                .n_seq = s->n_seq,
                                .q_len = s->q_len,
                                .kv_len = s->kv_len,
                                .kv_stride = s->kv_stride,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .q = t->q,
                                .k = t->k,
                                .v = t->v,
                                .ldq = t->ldq,
                                .ldkv = t->ldkv,
                                .out = t->out,
                                .ldo = t->ldo,
                                .lse = t->lse,
                                .dout = t->dout,
                                .dq = t->dq,
                                .dk = t->dk,
                                .dv = t->dv,
                                .delta = t->delta};
}

static inline void run(const moei_kernels *k, int32_t threads, const tensors *t, bool backward) {
    moei_team team = test_team(threads);
    moe_attention_args a = args_of(t);
    k->attention(&team, &a);
    if (backward) k->attention_backward(&team, &a);
}

#endif
