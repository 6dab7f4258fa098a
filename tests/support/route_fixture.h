/* route_fixture.h: a layer whose logits are given: d_model = num_experts and an identity gate, so logits = x.
 * The numbers of the reference systems use logits Lg(t,e) = 2 sin(0.9 t (e + 1) + 0.4 e).
 */
#ifndef MOEKIT_TEST_ROUTE_FIXTURE_H
#define MOEKIT_TEST_ROUTE_FIXTURE_H

#include "support/layer_fixture.h"

typedef struct route_bench {
    moe_ctx *ctx;
    moe_layer *layer;
    moe_mat logits, y;
    moe_routing_view view;
    moe_stats stats;
} route_bench;

static inline moe_mat golden_logits(int64_t T, int64_t E, const double *offset) {
    moe_mat mat = test_output(MOE_F64, T, E);
    for (int64_t t = 0; t < T; ++t)
        for (int64_t e = 0; e < E; ++e)
            ((double *)mat.data)[t * E + e] =
                2 * sin(0.9 * (double)t * (double)(e + 1) + 0.4 * (double)e) + (offset ? offset[e] : 0);
    return mat;
}

/* Takes over `logits`, f64. */
static inline route_bench route_begin(moe_layer_desc desc, moe_mat logits) {
    route_bench b = {.ctx = test_ctx("ref", 2), .logits = logits};
    moe_param gate = {.size = sizeof gate};
    desc.size = sizeof desc;
    desc.dtype = MOE_F64;
    desc.d_model = desc.num_experts = (int32_t)logits.cols;
    desc.expert_hidden_size = 1;
    must(b.ctx, moe_layer_create(b.ctx, &desc, &b.layer));
    must(b.ctx, moe_layer_reserve(b.layer, logits.rows, MOE_TRAIN));
    must(b.ctx, moe_layer_param_by_name(b.layer, "gate.weight", &gate));
    for (int64_t i = 0; i < logits.cols * logits.cols; ++i)
        ((double *)gate.value)[i] = i % (logits.cols + 1) == 0;
    b.y = test_output(MOE_F64, logits.rows, logits.cols);
    return b;
}

static inline void route_run(route_bench *b, const moe_call *call) {
    b->stats.size = sizeof b->stats;
    b->view.size = sizeof b->view;
    must(b->ctx, moe_layer_forward(b->layer, b->logits, b->y, call, &b->stats));
    must(b->ctx, moe_layer_routing(b->layer, &b->view));
}

static inline void route_end(route_bench *b) {
    moe_layer_destroy(b->layer);
    moe_ctx_destroy(b->ctx);
    free(b->logits.data);
    free(b->y.data);
}

static inline double *route_param(const route_bench *b, const char *name) {
    moe_param param = {.size = sizeof param};
    must(b->ctx, moe_layer_param_by_name(b->layer, name, &param));
    return param.value;
}

/* The weight of expert e for token t; 0 where it was not chosen. */
static inline double route_weight(const route_bench *b, int64_t t, int32_t e) {
    for (int32_t k = 0; k < b->view.top_k; ++k)
        if (b->view.expert[t * b->view.top_k + k] == e)
            return ((const double *)b->view.weight)[t * b->view.top_k + k];
    return 0;
}

/* Experts of a token as bits. */
static inline uint32_t route_set(const route_bench *b, int64_t t) {
    uint32_t set = 0;
    for (int32_t k = 0; k < b->view.top_k; ++k)
        if (b->view.expert[t * b->view.top_k + k] >= 0) set |= 1u << b->view.expert[t * b->view.top_k + k];
    return set;
}

static inline void near(double got, double want) {
    if (!(fabs(got - want) <= 1e-6)) fail_msg("got %.9g, want %.9g", got, want);
}

static const moe_call route_train = {.size = sizeof(moe_call), .mode = MOE_TRAIN, .step = 5};

/* Creating this layer is refused, and the text names `word`. */
static inline void route_refused(moe_layer_desc desc, const char *word) {
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_layer *layer = NULL;
    desc.size = sizeof desc;
    if (desc.d_model == 0) desc.d_model = 4;
    desc.expert_hidden_size = 1;
    assert_int_equal(moe_layer_create(ctx, &desc, &layer), MOE_ERR_ARGUMENT);
    if (!strstr(moe_ctx_error(ctx), word)) fail_msg("'%s' does not name %s", moe_ctx_error(ctx), word);
    moe_ctx_destroy(ctx);
}

#endif
