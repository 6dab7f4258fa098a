/* layer.c: makes and destroys a layer: its gate, its experts, its list of parameters.
 * gate[E,d]; experts and the shared expert come from the public table of moekit/expert.h.
 * Source: docs/architecture.md, which walks one call.
 */
#include "layer/layer.h"

#include "core/desc.h"
#include "core/real.h"
#include "core/rng.h"
#include "experts/activation.h"
#include "experts/experts.h"
#include "layer/layer_desc.h"
#include "layer/layer_path.h"

#include <moekit/op.h>

#include <stdio.h>
#include <string.h>

static size_t history_bytes(const moe_layer_desc *d) {
    return (size_t)d->num_experts * sizeof(int64_t);
}

/* N(0, std^2) into one of the layer's own; the gate's then as its initialisation wants it. */
static moe_status draw_param(moe_layer *layer, const moei_layer_param *param, uint64_t stream, double std,
                             bool gate) {
    const moe_layer_desc *d = &layer->desc;
    if (d->undrawn || d->unowned) return MOE_OK; /* it is zeros already, or not here */
    void *view = moei_memory_open(layer->ctx, param->own.value, param->bytes);
    if (!view) return moei_ctx_no_memory(layer->ctx, "%s, drawn on the host", param->name);
    const int64_t n = param->own.dim[0] * param->own.dim[1] * param->own.dim[2];
    moei_normal_draw(&layer->ctx->team, &(moei_normal){.seed = layer->ctx->desc.seed,
                                                       .purpose = MOE_DRAW_INIT,
                                                       .layer = (uint32_t)d->layer_index,
                                                       .step = stream,
                                                       .dtype = param->own.dtype,
                                                       .x = view,
                                                       .n = n,
                                                       .std = std});
    if (gate) moei_gate_renorm(d, view);
    return moei_memory_close(layer->ctx, param->own.value, view, param->bytes);
}

static moe_status create_gate_params(moe_layer *layer) {
    const moe_layer_desc *d = &layer->desc;
    moei_gate_param param[MOEI_GATE_PARAMS];
    const int32_t count = moei_router_params(&layer->router, param);
    for (int32_t i = 0; i < count; ++i) {
        const moe_param shape = {
            .name = param[i].name,
            .dtype = moei_gate_dtype(&layer->router, param[i].buffer),
            .n_dim = param[i].n_dim,
            .dim = {param[i].dim[0], param[i].dim[1], param[i].dim[2]},
            .buffer = param[i].buffer
        };
        void **value = (void **)(void *)((char *)&layer->gate + param[i].offset);
        void **grad = (void **)(void *)((char *)&layer->gate_grad + param[i].offset);
        MOEI_TRY(moei_layer_add_param(layer, &shape, value, d->router_frozen ? NULL : grad));
        if (param[i].std > 0)
            MOEI_TRY(draw_param(layer, &layer->param[layer->n_params - 1], UINT64_MAX - (uint64_t)i,
                                param[i].std, *value == layer->gate.weight));
    }
    return MOE_OK;
}

moe_status moei_layer_create_gate(moe_layer *layer) {
    const moe_layer_desc *d = &layer->desc;
    moe_error error;
    if (moei_capacity_init(d, moei_router_kind_of(d).by_expert, &layer->capacity, &error) != MOE_OK)
        return moe_ctx_fail(layer->ctx, error.status, "%s", error.text);
    MOEI_TRY(moei_router_init(layer->ctx, d, &layer->capacity, &layer->router));
    MOEI_TRY(create_gate_params(layer));
    layer->history.count = moe_ctx_alloc(layer->ctx, history_bytes(d));
    layer->step.rows = moe_ctx_alloc(layer->ctx, history_bytes(d));
    layer->step.quantile = moe_ctx_alloc(layer->ctx, history_bytes(d));
    if (!layer->history.count || !layer->step.rows || !layer->step.quantile)
        return moei_ctx_no_memory(layer->ctx, "counts of rows by expert");
    moei_layer_clear_step(layer);
    return MOE_OK;
}

/* Adds the parameters of one group of experts to the layer's list, under "prefix.name". */
static moe_status list_params(moe_layer *layer, moei_experts *experts) {
    const int32_t count = experts->ops->param_count(experts->self);
    for (int32_t i = 0; i < count; ++i) {
        moe_param param = {.size = sizeof param};
        moei_layer_param *entry = moei_layer_new_param(layer);
        if (!entry) return moei_ctx_no_memory(layer->ctx, "list of parameters");
        if (experts->ops != &moei_expert_mixed) /* which has looked at those of its kinds */
            MOEI_TRY(moei_expert_check_param(layer->ctx, experts->ops, experts->self, i, MOEI_EXPERT_NAME));
        MOEI_TRY(experts->ops->param(experts->self, i, &param));
        *entry = (moei_layer_param){.experts = experts, .index = i};
        moei_layer_count_param(entry, &param);
        snprintf(entry->name, sizeof entry->name, "%s.%s", experts->prefix, param.name);
        ++layer->n_params;
    }
    return MOE_OK;
}

static moe_status create_experts(moe_layer *layer, moei_experts *experts, const moe_expert_ops *ops,
                                 const moe_expert_desc *desc) {
    MOEI_TRY(moei_expert_create(layer->ctx, ops, desc, &experts->self));
    experts->ops = ops;
    experts->n_experts = desc->n_experts;
    return list_params(layer, experts);
}

static moe_expert_desc expert_desc(const moe_layer_desc *d) {
    const bool drawn = !d->undrawn;
    return (moe_expert_desc){.size = sizeof(moe_expert_desc),
                             .dtype = d->dtype,
                             .n_experts = d->num_experts,
                             .d_in = moei_expert_in(d),
                             .d_hidden = d->expert_hidden_size,
                             .d_out = moei_expert_out(d),
                             .activation = d->activation,
                             .glu_layout = d->glu_layout,
                             .activation_alpha = d->activation_alpha,
                             .activation_limit = d->activation_limit,
                             .glu_linear_offset = d->glu_linear_offset,
                             .bias = d->expert_bias,
                             .up_bias = d->expert_up_bias,
                             .dropout = d->dropout,
                             .recompute = moei_is(d->recompute, "layer"),
                             .saved_mxfp8 = moei_is(d->saved_dtype, "mxfp8"),
                             .kinds = d->expert_kinds,
                             .init_scheme = drawn ? d->init_scheme : "normal",
                             .init_std = drawn ? (float)moei_number(d->init_std, 0) : 0,
                             .init_std_down = drawn ? (float)moei_number(d->init_std_down, 0) : 0,
                             .init_std_scale = (float)moei_number(d->init_std_scale, 0),
                             .layer_index = d->layer_index,
                             .unowned = d->unowned};
}

/* All shared experts see every token, so together they are one FFN of their summed width. */
static moe_expert_desc shared_desc(const moe_layer_desc *d) {
    moe_expert_desc shared = expert_desc(d);
    shared.n_experts = 1;
    shared.d_in = d->d_model;
    shared.d_hidden = d->num_shared_experts * d->shared_expert_hidden_size;
    shared.d_out = d->output_size;
    shared.activation = d->shared_expert_activation;
    if (d->num_experts > 0 && !moei_experts_plain(d) && !moei_is(shared.activation, d->activation)) {
        /* What the routed experts' activation takes is said of it; another one has its own. */
        const moei_activation *routed = moei_activation_find(d->activation);
        if (routed->alpha > 0) shared.activation_alpha = 0;
        if (moe_act_gated(routed->act)) shared.activation_limit = shared.glu_linear_offset = 0;
    }
    shared.dropout = 0;
    shared.kinds = "";
    shared.stream = 1;
    return shared;
}

/* A matrix of the layer's own, drawn from N(0, std^2). Stream: any number no expert or gate uses. */
static moe_status add_matrix(moe_layer *layer, const char *name, int64_t rows, int64_t cols, uint64_t stream,
                             void **value, void **grad) {
    const moe_layer_desc *d = &layer->desc;
    const moe_param shape = {
        .name = name, .dtype = d->dtype, .n_dim = 2, .dim = {rows, cols, 1}
    };
    MOEI_TRY(moei_layer_add_param(layer, &shape, value, grad));
    return draw_param(layer, &layer->param[layer->n_params - 1], stream, moei_number(d->init_std, 0), false);
}

/* A vector of the layer's own; it begins at zero. */
static moe_status add_vector(moe_layer *layer, const char *name, int64_t n, void **value, void **grad) {
    const moe_param shape = {
        .name = name, .dtype = layer->desc.dtype, .n_dim = 1, .dim = {n, 1, 1}
    };
    return moei_layer_add_param(layer, &shape, value, grad);
}

/* Latent projections, the shared experts' gate and the output bias. */
static moe_status create_around(moe_layer *layer) {
    const moe_layer_desc *d = &layer->desc;
    moei_around *w = &layer->around, *dw = &layer->around_grad;
    const uint64_t stream = UINT64_MAX - 64;
    if (d->latent_size > 0) {
        MOEI_TRY(add_matrix(layer, "latent.in.weight", d->d_model, d->latent_size, stream, &w->latent_in,
                            &dw->latent_in));
        MOEI_TRY(add_matrix(layer, "latent.out.weight", d->latent_size, d->output_size, stream - 1,
                            &w->latent_out, &dw->latent_out));
    }
    if (d->latent_size > 0 && d->expert_bias) {
        MOEI_TRY(
            add_vector(layer, "latent.in.bias", d->latent_size, &w->latent_in_bias, &dw->latent_in_bias));
        MOEI_TRY(
            add_vector(layer, "latent.out.bias", d->output_size, &w->latent_out_bias, &dw->latent_out_bias));
    }
    if (d->shared_expert_gate)
        MOEI_TRY(add_matrix(layer, "shared_gate.weight", 1, d->d_model, stream - 2, &w->shared_gate,
                            &dw->shared_gate));
    if (!d->output_bias) return MOE_OK;
    return add_vector(layer, "output.bias", d->output_size, &w->output_bias, &dw->output_bias);
}

static moe_status create_routed(moe_layer *layer, const moe_expert_desc *desc) {
    const char *kind = layer->desc.expert;
    const moe_expert_ops *ops = *desc->kinds ? &moei_expert_mixed : moei_expert_find(layer->ctx, kind);
    if (ops) return create_experts(layer, &layer->experts, ops, desc);
    return moe_ctx_fail(
        layer->ctx, MOE_ERR_ARGUMENT,
        "expert: '%s' is not known; built in are ffn, identity and zero, others are registered with "
        "moe_expert_register",
        kind);
}

static moe_status create_parts(moe_layer *layer) {
    const moe_layer_desc *d = &layer->desc;
    layer->experts.prefix = "experts";
    layer->shared.prefix = "shared";
    if (d->num_experts > 0) {
        const moe_expert_desc desc = expert_desc(d);
        MOEI_TRY(moei_layer_create_gate(layer));
        if (layer->ctx->host) MOEI_TRY(moei_twin_create(layer));
        MOEI_TRY(create_routed(layer, &desc));
    }
    if (d->num_shared_experts > 0) {
        const moe_expert_desc desc = shared_desc(d);
        MOEI_TRY(create_experts(layer, &layer->shared, &moei_expert_ffn, &desc));
    }
    return create_around(layer);
}

/* Names that no table lists are kept by the layer: the caller's may go when the layer is made. */
static moe_status keep_names(moe_layer *layer) {
    moe_layer_desc *d = &layer->desc;
    const char **name[MOEI_LAYER_NAMES] = {&d->expert, &d->expert_kinds};
    for (int i = 0; i < MOEI_LAYER_NAMES; ++i) {
        const size_t bytes = strlen(*name[i]) + 1;
        layer->name[i] = moe_ctx_alloc(layer->ctx, bytes);
        if (!layer->name[i]) return moei_ctx_no_memory(layer->ctx, "names of experts");
        *name[i] = memcpy(layer->name[i], *name[i], bytes);
    }
    return MOE_OK;
}

static void free_names(moe_layer *layer) {
    for (int i = 0; i < MOEI_LAYER_NAMES; ++i)
        if (layer->name[i]) moe_ctx_free(layer->ctx, layer->name[i], strlen(layer->name[i]) + 1);
}

moe_status moe_layer_create(moe_ctx *ctx, const moe_layer_desc *desc, moe_layer **out) {
    MOEI_TRY(moei_ctx_need(ctx, "moe_layer_create", "layer", out));
    moe_layer_desc filled;
    moe_error error;
    if (moei_layer_desc_fill(desc, &filled, &error) != MOE_OK)
        return moe_ctx_fail(ctx, error.status, "%s", error.text);
    if (!ctx->kernels[filled.dtype]->gemm_rows)
        return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED, "dtype: %s is not served on %s; MOE_F32 is",
                            moei_dtype_name(filled.dtype), ctx->device->name);
    moe_layer *layer = moe_ctx_alloc(ctx, sizeof *layer);
    if (!layer) return moei_ctx_no_memory(ctx, "a layer");
    *layer = (moe_layer){.ctx = ctx, .desc = filled, .path = &moei_path_cpu, .max_tokens = -1};
    moe_status status = keep_names(layer);
    if (status == MOE_OK) status = create_parts(layer);
    if (status != MOE_OK) {
        moe_layer_destroy(layer);
        return status;
    }
    *out = layer;
    return MOE_OK;
}

static void destroy_experts(moei_experts *experts) {
    if (experts->ops) experts->ops->destroy(experts->self);
}

void moe_layer_destroy(moe_layer *layer) {
    if (!layer) return;
    moe_ctx *ctx = layer->ctx;
    moei_twin_destroy(layer);
    moei_layer_free_grads(layer);
    for (int32_t i = 0; i < layer->n_params && !layer->desc.unowned; ++i)
        moei_memory_free(ctx, layer->param[i].own.value, layer->param[i].bytes);
    destroy_experts(&layer->experts);
    destroy_experts(&layer->shared);
    moe_ctx_free(ctx, layer->step.rows, history_bytes(&layer->desc));
    moe_ctx_free(ctx, layer->step.quantile, history_bytes(&layer->desc));
    moe_ctx_free(ctx, layer->history.count, history_bytes(&layer->desc));
    moe_ctx_free(ctx, layer->param, (size_t)layer->n_params_max * sizeof *layer->param);
    moei_memory_free(ctx, layer->saved_block, layer->saved_bytes);
    if (!layer->scratch_owner) moei_memory_free(ctx, layer->scratch_block, layer->scratch_bytes);
    free_names(layer);
    moe_ctx_free(ctx, layer, sizeof *layer);
}

const moe_layer_desc *moe_layer_get_desc(const moe_layer *layer) {
    return layer ? &layer->desc : NULL;
}

bool moe_layer_routes_on_device(const moe_layer *layer) {
    return layer && layer->path == &moei_path_device;
}

const char *moe_layer_company(const moe_layer *layer) {
    static const char *const by_token[] = {"top_k",    "noisy_top_k", "sinkhorn",
                                           "quantile", "hash",        "gshard_top2"};
    if (layer && layer->ctx->host) return "kernels of a GPU for few tokens add in another order";
    if (!layer || layer->desc.num_experts == 0) return NULL;
    const moe_layer_desc *desc = &layer->desc;
    const char *policy = desc->second_policy_eval;
    bool alone = false;
    if (moei_desc_limited(desc)) return "with a capacity its neighbours decide what is dropped";
    if (strcmp(desc->routing_unit, "token") != 0) return "what is routed is no token";
    for (size_t i = 0; i < sizeof by_token / sizeof *by_token; ++i)
        alone = alone || strcmp(desc->router_type, by_token[i]) == 0;
    if (!alone) return "this router asks where in the batch a token stands";
    if (strcmp(desc->router_type, "gshard_top2") == 0 &&
        (strcmp(policy, "random") == 0 || strcmp(policy, "sample") == 0))
        return "the second choice is drawn by where in the batch a token stands";
    return NULL;
}
