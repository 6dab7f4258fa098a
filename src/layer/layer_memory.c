/* layer_memory.c: how much memory a layer takes, taking it, and the map of what lies where.
 * saved: prob[T,E] or logits[T,E], lse[T] expert,weight,row_of[T,K] Z[R,..]; scratch: logits[T,E] row_*[R]
 * rows[R,d] ... Source: zstd's workspace phases; measure and carve are the same code, so they cannot
 * disagree.
 */
#include "core/real.h"
#include "experts/experts.h"
#include "kernel/kernel.h"
#include "layer/layer_desc.h"
#include "layer/layer_experts.h"
#include "layer/layer_path.h"

static int64_t max_rows(const moe_layer *layer, moei_extent extent) {
    if (layer->desc.num_experts == 0) return 0;
    const int64_t routed = moei_router_max_rows(&layer->router, extent);
    const int64_t planned =
        moei_plan_max_rows(&layer->capacity, extent, layer->desc.top_k, layer->desc.num_experts);
    return planned > routed ? planned : routed;
}

static void carve_routing(moe_layer *layer, moei_arena *arena, moei_extent extent) {
    const int64_t E = layer->desc.num_experts, K = layer->router.n_slots;
    const int64_t T = extent.tokens;
    layer->routing = moei_routing_carve(&layer->router, arena, extent);
    layer->plan = (moei_plan){.n_experts = (int32_t)E,
                              .top_k = (int32_t)K,
                              .capacity = moei_arena_array(
                                  arena, moei_capacity_groups(&layer->capacity, extent), 1, sizeof(int64_t)),
                              .offset = moei_arena_array(arena, E + 1, 1, sizeof(int64_t)),
                              .routed = moei_arena_array(arena, E, 1, sizeof(int64_t)),
                              .kept = moei_arena_array(arena, E, 1, sizeof(int64_t)),
                              .row_of = moei_arena_array(arena, T, K, sizeof(int32_t)),
                              .weight_dtype = moei_wide(layer->desc.dtype)};
}

void moei_layer_carve_saved(moe_layer *layer, moei_arena *arena, moei_extent extent) {
    const int64_t T = extent.tokens, R = max_rows(layer, extent);
    const size_t real = moe_dtype_bytes(layer->desc.dtype);
    layer->saved = (moei_saved){0};
    if (layer->desc.num_experts > 0) carve_routing(layer, arena, extent);
    if (layer->desc.latent_size > 0 && layer->experts.ops) {
        layer->saved.latent_in = moei_arena_array(arena, T, layer->desc.latent_size, real);
        layer->saved.latent_out = moei_arena_array(arena, T, layer->desc.latent_size, real);
    }
    if (layer->desc.shared_expert_gate && layer->shared.ops)
        layer->saved.shared_gate =
            moei_arena_array(arena, T, 1, moe_dtype_bytes(moei_wide(layer->desc.dtype)));
    if (extent.mode != MOE_TRAIN) return;
    if (layer->experts.ops) {
        const moe_expert_ops *ops = layer->experts.ops;
        layer->saved.expert_rows = moei_arena_take(arena, ops->saved_bytes(layer->experts.self, R));
        if (ops->contiguous && !moei_layer_weighs_input(layer))
            layer->saved.out_rows = moei_arena_array(arena, R, moei_expert_out(&layer->desc), real);
    }
    if (layer->shared.ops)
        layer->saved.shared_rows =
            moei_arena_take(arena, layer->shared.ops->saved_bytes(layer->shared.self, T));
}

static void carve_plan_rows(const moe_layer *layer, moei_arena *arena, moei_extent extent, moei_scratch *s) {
    const int64_t T = extent.tokens, R = max_rows(layer, extent);
    const moe_dtype dtype = moei_wide(layer->desc.dtype);
    s->row_token = moei_arena_array(arena, R, 1, sizeof(int32_t));
    s->row_slot = moei_arena_array(arena, R, 1, sizeof(int32_t));
    s->row_weight = moei_arena_array(arena, R, 1, moe_dtype_bytes(dtype));
    if (layer->router.dtype != dtype)
        s->slot_weight = moei_arena_array(arena, T, moei_router_slots(&layer->router, extent.mode),
                                          moe_dtype_bytes(dtype));
}

void moei_layer_plan_rows(moe_layer *layer, const moei_scratch *s) {
    layer->plan.row_token = s->row_token;
    layer->plan.row_slot = s->row_slot;
    layer->plan.row_weight = s->row_weight;
    layer->plan.slot_weight = s->slot_weight;
    layer->plan.part_count = s->part_count;
    layer->plan.drop_room = s->drop_room;
}

/* What a router needs, a twin's too. */
static void carve_router_scratch(const moe_layer *layer, moei_arena *arena, moei_extent extent,
                                 moei_scratch *s) {
    const moe_layer_desc *d = &layer->desc;
    const int64_t E = d->num_experts, slots = extent.tokens * moei_router_slots(&layer->router, extent.mode);
    s->route = moei_route_scratch_carve(&layer->router, arena, extent);
    s->loss = moei_loss_carve(d, layer->router.dtype, arena, extent);
    carve_plan_rows(layer, arena, extent, s);
    if (layer->twin)
        s->tile_count = moei_arena_take(arena, moei_plan_scratch_bytes(extent.tokens, slots, E));
    else
        s->part_count = moei_arena_array(arena, moei_plan_parts(slots), E, sizeof *s->part_count);
    if (!layer->twin && !layer->router.kind.by_expert && moei_drops_by_weight(&layer->capacity))
        s->drop_room = moei_arena_array(arena, slots, 1, sizeof *s->drop_room);
    if (extent.mode != MOE_TRAIN) return;
    s->drow_weight =
        moei_arena_array(arena, max_rows(layer, extent), 1, moe_dtype_bytes(moei_wide(d->dtype)));
    s->dweight = moei_arena_array(arena, slots, 1, moe_dtype_bytes(layer->router.dtype));
    if (!layer->twin) return;
    s->aux_grad = moei_arena_array(arena, E + 1, 1, sizeof *s->aux_grad);
    if (layer->ctx->kernels[d->dtype]->gate_grad && !d->router_bias && !d->router_frozen &&
        moei_gate_grad_serves(E, d->d_model))
        s->gate_grad = moei_arena_take(arena, moei_gate_grad_carve(extent.tokens, E, d->d_model).bytes);
}

/* What the routed experts need. */
static void carve_routed_scratch(const moe_layer *layer, moei_arena *arena, moei_extent extent,
                                 moei_scratch *s) {
    const moe_layer_desc *d = &layer->desc;
    const moe_mode mode = extent.mode;
    const int64_t T = extent.tokens, R = max_rows(layer, extent);
    const size_t real = moe_dtype_bytes(d->dtype);
    const int64_t d_in = moei_expert_in(d), d_out = moei_expert_out(d);
    const bool train = mode == MOE_TRAIN, gathers = moei_layer_gathers(layer);
    s->rows = moei_arena_array(arena, R, d_in > d_out ? d_in : d_out, real);
    if (gathers) s->in_rows = moei_arena_array(arena, R, d_in, real);
    if (train && gathers) s->dout_rows = moei_arena_array(arena, R, d_out, real);
    if (train && d->latent_size > 0) {
        s->dlatent_in = moei_arena_array(arena, T, d->latent_size, real);
        s->dlatent_out = moei_arena_array(arena, T, d->latent_size, real);
    }
    s->experts = moei_arena_take(arena, layer->experts.ops->scratch_bytes(layer->experts.self, R, mode));
}

moei_scratch moei_layer_carve_scratch(const moe_layer *layer, moei_arena *arena, moei_extent extent) {
    const int64_t T = extent.tokens;
    const moe_mode mode = extent.mode;
    moei_scratch s = {0};
    if (layer->desc.num_experts > 0) carve_router_scratch(layer, arena, extent, &s);
    if (layer->experts.ops) carve_routed_scratch(layer, arena, extent, &s);
    if (layer->shared.ops) {
        s.shared = moei_arena_take(arena, layer->shared.ops->scratch_bytes(layer->shared.self, T, mode));
        s.shared_offset[1] = T;
        if (layer->desc.shared_expert_gate && mode == MOE_TRAIN)
            s.shared_dgate = moei_arena_array(arena, T, 1, moe_dtype_bytes(moei_wide(layer->desc.dtype)));
    }
    return s;
}

moei_scratch moei_layer_scratch(const moe_layer *layer) {
    const moei_batch *batch = &layer->batch;
    const int64_t sequences = batch->n_sequences > 0 ? batch->n_sequences : 1;
    const moei_extent extent = {batch->x.rows, sequences, batch->mode};
    moei_arena arena = {layer->scratch_owner ? layer->scratch_owner->scratch_block : layer->scratch_block, 0};
    return moei_layer_carve_scratch(layer, &arena, extent);
}

/* Where nobody limits them, sequences may be as short as one token. */
static moei_extent extent_of(const moe_layer *layer, int64_t max_tokens, moe_mode mode) {
    const int64_t tokens = max_tokens > 1 ? max_tokens : 1, limit = layer->max_sequences;
    return (moei_extent){max_tokens, limit > 0 && limit < tokens ? limit : tokens, mode};
}

static moe_layer_bytes measure(moe_layer *layer, moei_extent extent) {
    const moe_mode mode = extent.mode;
    moe_layer_bytes bytes = {.size = sizeof bytes};
    for (int32_t i = 0; i < layer->n_params && !layer->desc.unowned; ++i) {
        bytes.params += layer->param[i].bytes;
        if (mode == MOE_TRAIN && moei_layer_is_trained(&layer->param[i]))
            bytes.grads += layer->param[i].grad_bytes;
    }
    bytes.packed = layer->experts.packed_bytes + layer->shared.packed_bytes;
    moei_arena saved = {0}, scratch = {0};
    moei_layer_carve_saved(layer, &saved, extent);
    moei_layer_carve_scratch(layer, &scratch, extent);
    bytes.saved = saved.used;
    bytes.scratch = scratch.used;
    if (mode == MOE_INFER) return bytes;
    /* A layer in training is also called for inference, where more may be scratch: nothing is saved. */
    moei_arena infer = {0};
    extent.mode = MOE_INFER;
    moei_layer_carve_scratch(layer, &infer, extent);
    if (infer.used > bytes.scratch) bytes.scratch = infer.used;
    return bytes;
}

static moe_layer_bytes measure_batches(const moe_layer *layer, int64_t max_tokens, moe_mode mode) {
    moe_layer copy = *layer; /* carving writes pointers, so it carves a copy */
    return measure(&copy, extent_of(layer, max_tokens, mode));
}

void moei_layer_free_grads(moe_layer *layer) {
    for (int32_t i = 0; i < layer->n_params; ++i) moei_layer_free_grad(layer, &layer->param[i]);
}

void moei_layer_free_grad(moe_layer *layer, moei_layer_param *param) {
    if (!layer->desc.unowned) moei_memory_free(layer->ctx, param->grad, param->grad_bytes);
    param->grad = NULL;
}

/* Tells every owner where its gradients are. */
static void bind_grads(moe_layer *layer) {
    for (int32_t i = 0; i < layer->n_params; ++i) {
        const moei_layer_param *param = &layer->param[i];
        if (!param->grad) continue;
        if (param->experts)
            param->experts->ops->bind_grad(param->experts->self, param->index, param->grad);
        else
            *param->grad_slot = param->grad;
    }
}

/* All gradients, zeroed, or none; nothing to do where an earlier reserve made them or the caller lends them.
 */
static moe_status allocate_grads(moe_layer *layer) {
    if (layer->desc.unowned || moei_layer_has_grads(layer)) return MOE_OK;
    for (int32_t i = 0; i < layer->n_params; ++i) {
        moei_layer_param *param = &layer->param[i];
        if (!moei_layer_is_trained(param)) continue;
        param->grad = moei_memory_alloc(layer->ctx, param->grad_bytes);
        if (param->grad && moei_memory_clear(layer->ctx, param->grad, param->grad_bytes) == MOE_OK) continue;
        moei_layer_free_grads(layer);
        return moei_ctx_no_memory(layer->ctx, "gradient of %s", param->name);
    }
    bind_grads(layer);
    return MOE_OK;
}

/* The kind of routed expert that cannot be trained; NULL: all can. */
static const char *forward_only(const moe_layer *layer) {
    const moe_expert_ops *ops = layer->experts.ops;
    if (!ops) return NULL;
    if (ops == &moei_expert_mixed) return moei_expert_mixed_forward_only(layer->experts.self);
    return ops->backward ? NULL : ops->name;
}

static moe_status check_reserve(const moe_layer *layer, int64_t max_tokens, moe_mode mode) {
    const int32_t slots = layer->router.n_slots, most = INT32_MAX / (slots > 0 ? slots : 1);
    if (max_tokens < 0 || max_tokens > most)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "max_tokens: %lld is outside 0 .. %d (rows are counted in 32 bits)",
                            (long long)max_tokens, most);
    if (max_rows(layer, extent_of(layer, max_tokens, mode)) > INT32_MAX)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_ARGUMENT,
            "max_tokens: pad_to_capacity makes %lld rows of %lld tokens, but rows are counted in "
            "32 bits; reserve fewer tokens",
            (long long)max_rows(layer, extent_of(layer, max_tokens, mode)), (long long)max_tokens);
    if (mode != MOE_INFER && mode != MOE_TRAIN)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "mode: %d is neither MOE_INFER nor MOE_TRAIN",
                            (int)mode);
    if (mode == MOE_TRAIN && layer->packed)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "mode: moe_layer_quantize has packed the weights of this layer's experts for "
                            "inference; %s",
                            layer->dropped ? "drop_weights left no others, so only a new layer can be trained"
                                           : "choose MOE_INFER, or call it with NULL first");
    const char *kind = mode == MOE_TRAIN ? forward_only(layer) : NULL;
    if (kind)
        return moe_ctx_fail(layer->ctx, MOE_ERR_UNSUPPORTED,
                            "expert '%s' has no backward; reserve for MOE_INFER", kind);
    return MOE_OK;
}

/* A block of `bytes`, the present one where it is large enough; NULL when it does not fit. */
static void *block_of(moe_ctx *ctx, void *have, size_t have_bytes, size_t bytes) {
    return have && bytes <= have_bytes ? have : moei_memory_alloc(ctx, bytes);
}

/* Puts `fresh` in place of *block, whose contents are not wanted any more. */
static void replace_block(moe_ctx *ctx, void **block, size_t *have, void *fresh, size_t bytes) {
    if (fresh == *block) return;
    moei_memory_free(ctx, *block, *have);
    *block = fresh;
    *have = bytes;
}

/* Blocks first, gradients last, and only then is anything put in place: a refusal leaves the layer as it was.
 */
static moe_status allocate(moe_layer *layer, const moe_layer_bytes *bytes, moe_mode mode) {
    moe_ctx *ctx = layer->ctx;
    const bool shares = layer->scratch_owner != NULL;
    void *saved = block_of(ctx, layer->saved_block, layer->saved_bytes, bytes->saved), *scratch = NULL;
    moe_status status = saved ? MOE_OK : moei_ctx_no_memory(ctx, "what a layer keeps of a batch");
    if (status == MOE_OK && !shares) {
        scratch = block_of(ctx, layer->scratch_block, layer->scratch_bytes, bytes->scratch);
        if (!scratch) status = moei_ctx_no_memory(ctx, "scratch of a layer");
    }
    if (status == MOE_OK && mode == MOE_TRAIN) status = allocate_grads(layer);
    if (status != MOE_OK) {
        if (scratch != layer->scratch_block) moei_memory_free(ctx, scratch, bytes->scratch);
        if (saved != layer->saved_block) moei_memory_free(ctx, saved, bytes->saved);
        return status;
    }
    replace_block(ctx, &layer->saved_block, &layer->saved_bytes, saved, bytes->saved);
    if (!shares) replace_block(ctx, &layer->scratch_block, &layer->scratch_bytes, scratch, bytes->scratch);
    return MOE_OK;
}

static moe_status check_shared_scratch(const moe_layer *layer, size_t bytes) {
    if (!layer->scratch_owner || bytes <= layer->scratch_owner->scratch_bytes) return MOE_OK;
    return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                        "shared scratch: the owner has %zu bytes, this layer needs %zu; reserve the owner "
                        "first and for as much",
                        layer->scratch_owner->scratch_bytes, bytes);
}

moe_status moe_layer_measure(const moe_layer *layer, int64_t max_tokens, moe_mode mode,
                             moe_layer_bytes *bytes) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_reserve(layer, max_tokens, mode));
    const moe_layer_bytes measured = measure_batches(layer, max_tokens, mode);
    return moei_ctx_desc_write(layer->ctx, bytes, &measured, sizeof measured, "moe_layer_bytes");
}

moe_status moe_layer_reserve(moe_layer *layer, int64_t max_tokens, moe_mode mode) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_reserve(layer, max_tokens, mode));
    const moe_layer_bytes bytes = measure_batches(layer, max_tokens, mode);
    MOEI_TRY(check_shared_scratch(layer, bytes.scratch));
    MOEI_TRY(allocate(layer, &bytes, mode));
    const moei_extent extent = extent_of(layer, max_tokens, mode);
    moei_arena arena = {layer->saved_block, 0};
    layer->has_routing = layer->can_backward = false;
    layer->max_tokens = -1; /* until the twin has its part: what it is refused leaves nothing reserved */
    moei_layer_carve_saved(layer, &arena, extent);
    if (layer->twin) MOEI_TRY(moei_twin_reserve(layer, max_tokens, mode));
    layer->max_tokens = max_tokens;
    layer->reserved_sequences = extent.sequences;
    layer->mode = mode;
    return MOE_OK;
}

moe_status moe_layer_limit_sequences(moe_layer *layer, int64_t max_sequences) {
    if (!layer) return MOE_ERR_ARGUMENT;
    if (max_sequences < 0)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "max_sequences: %lld; it is 1 or more, or 0 for as many as there are tokens",
                            (long long)max_sequences);
    layer->max_sequences = max_sequences;
    return MOE_OK;
}

bool moei_layer_by_sequence(const moe_layer *layer) {
    return layer->desc.num_experts > 0 &&
           (layer->capacity.by_sequence || moei_loss_by_sequence(&layer->desc));
}

moe_status moe_layer_share_scratch(moe_layer *layer, moe_layer *owner) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(layer->ctx, "moe_layer_share_scratch", "owner", owner));
    if (owner == layer || owner->ctx != layer->ctx)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_ARGUMENT,
            "moe_layer_share_scratch: owner is %s; it must be another layer of the same context",
            owner == layer ? "the layer itself" : "of another context");
    if (owner->scratch_owner)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_STATE,
            "moe_layer_share_scratch: owner uses the scratch of a third layer; name that one");
    if (layer->scratch_block)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "moe_layer_share_scratch: the layer is reserved; share before its first reserve");
    layer->scratch_owner = owner;
    owner->lends_scratch = true;
    return MOE_OK;
}
