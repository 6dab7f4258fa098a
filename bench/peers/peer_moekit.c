/* peer_moekit.c: this project's layer among its peers, through the public header. Its router works out live
 * scores although the routes are given, as in any training step; nothing is taken off for that.
 */
#include "peer.h"

#include <moekit/moe.h>
#include <moekit/quant.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct peer {
    moe_ctx *ctx;
    moe_layer *layer;
    moe_dtype dtype;
    int64_t d_model;
    void *dw1, *dw2;
};

static moe_error refused;

PEER_API const char *peer_error(const peer *p) {
    return p ? moe_ctx_error(p->ctx) : refused.text;
}

PEER_API void peer_about(char *text, size_t size) {
    snprintf(text, size, "moekit %s", moe_version_string());
}

PEER_API void peer_destroy(peer *p) {
    if (!p) return;
    moe_layer_destroy(p->layer);
    moe_ctx_destroy(p->ctx);
    free(p);
}

static moe_status set_weights(peer *p, const char *name, const void *from, void **grad) {
    moe_param param = {.size = sizeof param};
    moe_status status = moe_layer_param_by_name(p->layer, name, &param);
    if (status != MOE_OK) return status;
    const int64_t count = param.dim[0] * param.dim[1] * param.dim[2];
    memcpy(param.value, from, (size_t)count * moe_dtype_bytes(p->dtype));
    *grad = param.grad;
    return MOE_OK;
}

/* For inference the weights are laid out once, as those of peers are, or packed. */
static moe_status pack_weights(peer *p, const char *format) {
    const moe_quant_desc desc = {
        .size = sizeof desc, .format = *format ? format : "bf16x2", .drop_weights = true};
    return moe_layer_quantize(p->layer, &desc);
}

static moe_status build(peer *p, const peer_problem *problem) {
    const moe_ctx_desc machine = {.size = sizeof machine, .n_threads = problem->n_threads, .seed = 1};
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .dtype = p->dtype,
                                 .d_model = problem->d_model,
                                 .num_experts = problem->n_experts,
                                 .top_k = problem->top_k,
                                 .expert_hidden_size = problem->hidden,
                                 .router_frozen = true};
    moe_status status = moe_ctx_create(&machine, &p->ctx, &refused);
    if (status == MOE_OK) status = moe_layer_create(p->ctx, &desc, &p->layer);
    if (status == MOE_OK && problem->bf16) /* gradients of weights as frameworks have them */
        status = moe_layer_set_grad_dtype(p->layer, MOE_BF16);
    if (status == MOE_OK)
        status = moe_layer_reserve(p->layer, problem->n_tokens, problem->training ? MOE_TRAIN : MOE_INFER);
    if (status == MOE_OK) status = set_weights(p, "experts.up.weight", problem->w1, &p->dw1);
    if (status == MOE_OK) status = set_weights(p, "experts.down.weight", problem->w2, &p->dw2);
    if (status == MOE_OK && !problem->training && (problem->bf16 || *problem->format))
        status = pack_weights(p, problem->format);
    return status;
}

PEER_API peer *peer_create(const peer_problem *problem) {
    peer *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->dtype = problem->bf16 ? MOE_BF16 : MOE_F32;
    p->d_model = problem->d_model;
    if (build(p, problem) == MOE_OK) return p;
    if (p->ctx) snprintf(refused.text, sizeof refused.text, "%s", moe_ctx_error(p->ctx));
    peer_destroy(p);
    return NULL;
}

static moe_mat rows(const peer *p, const peer_batch *batch, void *data) {
    return (moe_mat){data, batch->n_tokens, p->d_model, p->d_model, p->dtype};
}

static moe_status forward(peer *p, const peer_batch *batch, moe_mode mode) {
    const moe_call call = {.size = sizeof call,
                           .mode = mode,
                           .replay_expert = batch->expert,
                           .replay_weight = batch->weight,
                           .overwrite_grad = mode == MOE_TRAIN};
    return moe_layer_forward(p->layer, rows(p, batch, batch->x), rows(p, batch, batch->y), &call, NULL);
}

PEER_API int peer_forward(peer *p, const peer_batch *batch) {
    return forward(p, batch, MOE_INFER) != MOE_OK;
}

PEER_API int peer_step(peer *p, const peer_batch *batch) {
    return forward(p, batch, MOE_TRAIN) != MOE_OK ||
           moe_layer_backward(p->layer, rows(p, batch, batch->x), rows(p, batch, batch->dy),
                              rows(p, batch, batch->dx)) != MOE_OK;
}

PEER_API void peer_gradients(const peer *p, const void **dw1, const void **dw2) {
    *dw1 = p->dw1;
    *dw2 = p->dw2;
}
