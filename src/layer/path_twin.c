/* path_twin.c: the CPU twin of a layer on a device: a layer with a gate and no experts, on the CPU context
 * inside the device's. It routes what the device's kernels do not (waiting for the copies), counts
 * statistics, and does what happens once a step. x[T,d], gate -> routing, plan; drow_weight[R], dx -> gate
 * gradients, dx.
 */
#include "kernel/kernel.h"
#include "layer/layer_path.h"

enum { MOST_EXPERTS = 65535 }; /* blocks along a grid's second and third axes */
enum { DRAWN_BYTES = MOEI_FEW_COUNTERS * sizeof(uint32_t) };

/* --- making and reserving ------------------------------------------------------------------------------- */

moe_status moei_twin_tell(const moe_layer *layer, moe_status status) {
    return status == MOE_OK ? MOE_OK
                            : moe_ctx_fail(layer->ctx, status, "%s", moe_ctx_error(layer->ctx->host));
}

static size_t counts_bytes(const moe_layer *layer) {
    return (size_t)layer->desc.num_experts * sizeof *layer->device.step_rows;
}

moe_status moei_twin_create(moe_layer *layer) {
    if (layer->desc.num_experts > MOST_EXPERTS)
        return moe_ctx_fail(layer->ctx, MOE_ERR_UNSUPPORTED, "num_experts: %d; on a device %d are served",
                            layer->desc.num_experts, MOST_EXPERTS);
    moe_layer *twin = moe_ctx_alloc(layer->ctx, sizeof *twin);
    if (!twin) return moei_ctx_no_memory(layer->ctx, "the router of a layer, on the CPU");
    *twin =
        (moe_layer){.ctx = layer->ctx->host, .desc = layer->desc, .path = &moei_path_cpu, .max_tokens = -1};
    twin->desc.undrawn = layer->desc.undrawn || layer->desc.unowned;
    twin->desc.unowned = false; /* it has copies */
    layer->twin = twin;
    MOEI_TRY(moei_twin_tell(layer, moei_layer_create_gate(twin)));
    layer->device.step_rows = moei_memory_alloc(layer->ctx, counts_bytes(layer));
    layer->device.drawn = moei_memory_alloc(layer->ctx, DRAWN_BYTES);
    if (!layer->device.step_rows || !layer->device.drawn)
        return moei_ctx_no_memory(layer->ctx, "counts of rows by expert");
    layer->path = moei_path_device_serves(layer) ? &moei_path_device : &moei_path_twin;
    MOEI_TRY(moei_memory_clear(layer->ctx, layer->device.drawn, DRAWN_BYTES));
    return moei_memory_clear(layer->ctx, layer->device.step_rows, counts_bytes(layer));
}

void moei_twin_destroy(moe_layer *layer) {
    moei_layer_device *device = &layer->device;
    if (!layer->twin) return;
    moe_ctx *inner = layer->twin->ctx;
    moe_layer_destroy(layer->twin);
    moe_ctx_free(inner, device->host_block, device->host_bytes);
    moei_memory_free(layer->ctx, device->block, device->bytes);
    moei_memory_free(layer->ctx, device->step_rows, counts_bytes(layer));
    moei_memory_free(layer->ctx, device->drawn, DRAWN_BYTES);
}

/* Host copies of what a call brings. */
static void carve_host(moe_layer *layer, moei_arena *arena, int64_t T, moe_mode mode) {
    moei_layer_device *device = &layer->device;
    const moe_layer_desc *d = &layer->desc;
    device->mask = moei_arena_array(arena, T, 1, sizeof *device->mask);
    if (layer->path != &moei_path_twin) return;
    const size_t real = moe_dtype_bytes(d->dtype);
    device->x = moei_arena_array(arena, T, d->d_model, real);
    if (mode == MOE_TRAIN) device->dx = moei_arena_array(arena, T, d->d_model, real);
    device->task = moei_arena_array(arena, T, 1, sizeof *device->task);
    device->token_id = moei_arena_array(arena, T, 1, sizeof *device->token_id);
    device->replay_expert = moei_arena_array(arena, T, layer->router.n_slots, sizeof *device->replay_expert);
    device->replay_weight =
        moei_arena_array(arena, T, layer->router.n_slots, moe_dtype_bytes(layer->router.dtype));
}

/* Capacities of every number of real tokens, so that the device need not know the formulas. */
static moe_status fill_capacities(moe_layer *layer, int64_t T) {
    moei_layer_device *device = &layer->device;
    const size_t bytes = (size_t)(T + 1) * sizeof(int32_t);
    moei_arena arena = {device->block, 0};
    device->n_valid = moei_arena_take(&arena, sizeof *device->n_valid);
    for (int mode = MOE_INFER; mode <= MOE_TRAIN; ++mode) {
        int32_t *table = moei_arena_take(&arena, bytes), *view = moei_memory_open(layer->ctx, table, bytes);
        if (!view) return moei_ctx_no_memory(layer->ctx, "capacities, counted on the host");
        for (int64_t n = 0; n <= T; ++n)
            view[n] = (int32_t)layer->capacity.rows(&layer->capacity, (moe_mode)mode, false, n,
                                                    layer->capacity.top_k, layer->desc.num_experts);
        MOEI_TRY(moei_memory_close(layer->ctx, table, view, bytes));
        device->capacity_of[mode] = table;
    }
    return MOE_OK;
}

moe_status moei_twin_reserve(moe_layer *layer, int64_t T, moe_mode mode) {
    moei_layer_device *device = &layer->device;
    moe_layer *twin = layer->twin;
    moei_arena host = {0};
    const size_t bytes = 3 * MOEI_ALIGN_LARGE + 2 * (size_t)(T + 1) * sizeof(int32_t);
    twin->max_sequences = layer->max_sequences;
    MOEI_TRY(moei_twin_tell(layer, moe_layer_reserve(twin, T, mode)));
    carve_host(layer, &host, T, mode);
    void *host_block = moe_ctx_alloc(twin->ctx, host.used), *block = moei_memory_alloc(layer->ctx, bytes);
    if (!host_block || !block) {
        moe_ctx_free(twin->ctx, host_block, host.used);
        moei_memory_free(layer->ctx, block, bytes);
        if (!host_block)
            return moei_twin_tell(layer, moei_ctx_no_memory(twin->ctx, "copies of calls, on the CPU"));
        return moei_ctx_no_memory(layer->ctx, "capacities of batches");
    }
    moe_ctx_free(twin->ctx, device->host_block, device->host_bytes);
    moei_memory_free(layer->ctx, device->block, device->bytes);
    device->host_block = host_block;
    device->host_bytes = host.used;
    device->block = block;
    device->bytes = bytes;
    host = (moei_arena){host_block, 0};
    carve_host(layer, &host, T, mode);
    return fill_capacities(layer, T);
}

/* --- copies --- */

static moe_status copy_matrix(const moe_layer *layer, moe_mat to, moe_mat from) {
    const size_t real = moe_dtype_bytes(to.dtype), row = (size_t)to.cols * real;
    if (to.stride == to.cols && from.stride == from.cols)
        return moei_memory_copy(layer->ctx, to.data, from.data, (size_t)to.rows * row);
    for (int64_t r = 0; r < to.rows; ++r)
        MOEI_TRY(moei_memory_copy(layer->ctx, (char *)to.data + (size_t)(r * to.stride) * real,
                                  (const char *)from.data + (size_t)(r * from.stride) * real, row));
    return MOE_OK;
}

/* One array from one memory to the other; either may be absent. */
typedef struct piece {
    void *to;
    const void *from;
    size_t bytes;
} piece;

static moe_status copy_pieces(const moe_layer *layer, const piece *list, size_t count) {
    for (size_t i = 0; i < count; ++i)
        if (list[i].to && list[i].from)
            MOEI_TRY(moei_memory_copy(layer->ctx, list[i].to, list[i].from, list[i].bytes));
    return MOE_OK;
}

/* The batch as the twin sees it: its arrays on the host. x only where the twin routes. */
static moe_status fetch_batch(moe_layer *layer) {
    const moei_layer_device *device = &layer->device;
    const moei_batch *batch = &layer->batch;
    moei_batch *ours = &layer->twin->batch;
    const size_t T = (size_t)batch->x.rows,
                 slots = T * (size_t)moei_router_slots(&layer->router, batch->mode);
    const piece list[] = {
        {device->mask,          batch->mask,          T                                           },
        {device->task,          batch->task,          (size_t)batch->n_sequences * sizeof(int32_t)},
        {device->token_id,      batch->token_id,      T * sizeof(int32_t)                         },
        {device->replay_expert, batch->replay_expert, slots * sizeof(int32_t)                     },
        {device->replay_weight, batch->replay_weight, slots * moe_dtype_bytes(layer->router.dtype)}
    };
    MOEI_TRY(copy_pieces(layer, list, sizeof list / sizeof *list));
    *ours = *batch;
    ours->mask = batch->mask ? device->mask : NULL;
    ours->task = batch->task ? device->task : NULL;
    ours->token_id = batch->token_id ? device->token_id : NULL;
    ours->replay_expert = batch->replay_expert ? device->replay_expert : NULL;
    ours->replay_weight = batch->replay_weight ? device->replay_weight : NULL;
    ours->n_valid = moei_real_tokens(ours, 0, batch->x.rows);
    layer->twin->loss_scale = layer->loss_scale;
    if (!device->x) return MOE_OK;
    ours->x = (moe_mat){device->x, batch->x.rows, batch->x.cols, batch->x.cols, batch->x.dtype};
    return copy_matrix(layer, ours->x, batch->x);
}

/* The gate's parameters; they stand first in both lists. `buffers`: only what is not trained. */
static moe_status copy_gate(const moe_layer *layer, bool to_twin, bool buffers) {
    for (int32_t i = 0; i < layer->twin->n_params; ++i) {
        const moei_layer_param *theirs = &layer->param[i], *ours = &layer->twin->param[i];
        if (buffers && !ours->own.buffer) continue;
        MOEI_TRY(moei_memory_copy(layer->ctx, to_twin ? ours->own.value : theirs->own.value,
                                  to_twin ? theirs->own.value : ours->own.value, ours->bytes));
    }
    return MOE_OK;
}

static moe_status copy_gate_grads(const moe_layer *layer, bool to_twin) {
    for (int32_t i = 0; i < layer->twin->n_params; ++i) {
        const moei_layer_param *theirs = &layer->param[i], *ours = &layer->twin->param[i];
        if (ours->grad)
            MOEI_TRY(moei_memory_copy(layer->ctx, to_twin ? ours->grad : theirs->grad,
                                      to_twin ? theirs->grad : ours->grad, ours->grad_bytes));
    }
    return MOE_OK;
}

static moei_scratch twin_scratch(const moe_layer *layer) {
    return moei_layer_scratch(layer->twin);
}

/* What stands by row (and the combining weights), to where the experts look. */
static moe_status send_rows(moe_layer *layer, const moei_scratch *s) {
    const moei_plan *plan = &layer->twin->plan;
    const size_t R = (size_t)plan->n_rows, wide = moe_dtype_bytes(plan->weight_dtype);
    const size_t slots = (size_t)plan->n_tokens * (size_t)plan->top_k;
    moei_layer_plan_rows(layer, s);
    const piece list[] = {
        {layer->plan.row_token,   plan->row_token,   R * sizeof(int32_t)},
        {layer->plan.row_slot,    plan->row_slot,    R * sizeof(int32_t)},
        {layer->plan.row_weight,  plan->row_weight,  R * wide           },
        {layer->plan.slot_weight, plan->slot_weight, slots * wide       }
    };
    return copy_pieces(layer, list, sizeof list / sizeof *list);
}

/* What the twin routed, to where the experts and the caller look. */
static moe_status send_routing(moe_layer *layer, const moei_scratch *s) {
    const moei_routing *from = &layer->twin->routing;
    const moei_plan *plan = &layer->twin->plan;
    moei_routing *to = &layer->routing;
    moei_plan *sent = &layer->plan;
    const void *selection = layer->router.kind.ranks_plans ? from->selection : NULL;
    const size_t T = (size_t)from->n_tokens, E = (size_t)from->n_experts, slots = T * (size_t)from->top_k;
    const size_t real = moe_dtype_bytes(from->dtype);
    const piece list[] = {
        {to->expert,          from->expert,          slots * sizeof(int32_t)                        },
        {to->weight,          from->weight,          slots * real                                   },
        {to->selection,       selection,             T * E * real                                   },
        {sent->offset,        plan->offset,          (E + 1) * sizeof(int64_t)                      },
        {sent->routed,        plan->routed,          E * sizeof(int64_t)                            },
        {sent->kept,          plan->kept,            E * sizeof(int64_t)                            },
        {sent->capacity,      plan->capacity,        (size_t)plan->n_groups * sizeof(int64_t)       },
        {to->levels.capacity, from->levels.capacity, (size_t)from->levels.n_groups * sizeof(int64_t)},
        {sent->row_of,        plan->row_of,          slots * sizeof(int32_t)                        }
    };
    to->levels.n_groups = from->levels.n_groups;
    to->n_tokens = sent->n_tokens = from->n_tokens;
    to->top_k = sent->top_k = from->top_k;
    sent->n_rows = plan->n_rows;
    sent->n_groups = plan->n_groups;
    MOEI_TRY(copy_pieces(layer, list, sizeof list / sizeof *list));
    return send_rows(layer, s);
}

moe_status moei_twin_fetch_routing(moe_layer *layer) {
    moe_layer *twin = layer->twin;
    const moei_routing *from = &layer->routing;
    const size_t T = (size_t)from->n_tokens, E = (size_t)from->n_experts, slots = T * (size_t)from->top_k;
    const size_t real = moe_dtype_bytes(from->dtype);
    MOEI_TRY(fetch_batch(layer));
    const moei_scratch ours = twin_scratch(layer);
    moei_routing_open(&twin->router, &ours.route, twin->batch.mode, &twin->routing);
    const piece list[] = {
        {twin->routing.expert, from->expert,       slots * sizeof(int32_t)},
        {twin->routing.weight, from->weight,       slots * real           },
        {twin->routing.prob,   from->prob,         T * E * real           },
        {twin->routing.lse,    from->lse,          T * real               },
        {twin->plan.routed,    layer->plan.routed, E * sizeof(int64_t)    },
        {twin->plan.kept,      layer->plan.kept,   E * sizeof(int64_t)    }
    };
    twin->routing.n_tokens = twin->plan.n_tokens = from->n_tokens;
    return copy_pieces(layer, list, sizeof list / sizeof *list);
}

/* --- the path --- */

static moe_status route(moe_layer *layer, const moei_scratch *s) {
    MOEI_TRY(fetch_batch(layer));
    const moei_scratch ours = twin_scratch(layer);
    MOEI_TRY(copy_gate(layer, true, false));
    MOEI_TRY(moei_twin_tell(layer, moei_path_cpu.route(layer->twin, &ours)));
    return send_routing(layer, s);
}

static moe_status measure(moe_layer *layer, const moei_scratch *s, moe_stats *stats) {
    (void)s;
    const moei_scratch ours = twin_scratch(layer);
    if (stats) stats->n_tokens = layer->twin->batch.n_valid;
    return moei_path_cpu.measure(layer->twin, &ours, stats);
}

static moe_status index_rows(moe_layer *layer, const moei_scratch *s) {
    const moei_scratch ours = twin_scratch(layer);
    MOEI_TRY(moei_path_cpu.index(layer->twin, &ours));
    return send_rows(layer, s);
}

static moe_status route_backward(moe_layer *layer, const moei_scratch *s, moe_mat dx) {
    const moei_scratch ours = twin_scratch(layer);
    const moei_plan *plan = &layer->twin->plan;
    const moe_mat mirror = {dx.data ? layer->device.dx : NULL, dx.rows, dx.cols, dx.cols, dx.dtype};
    MOEI_TRY(moei_memory_copy(layer->ctx, ours.drow_weight, s->drow_weight,
                              (size_t)plan->n_rows * moe_dtype_bytes(plan->weight_dtype)));
    MOEI_TRY(copy_gate_grads(layer, true));
    if (dx.data) MOEI_TRY(copy_matrix(layer, mirror, dx));
    MOEI_TRY(moei_twin_tell(layer, moei_path_cpu.route_backward(layer->twin, &ours, mirror)));
    MOEI_TRY(copy_gate_grads(layer, false));
    return dx.data ? copy_matrix(layer, dx, mirror) : MOE_OK;
}

const moei_layer_path moei_path_twin = {"twin",         route, NULL, measure, index_rows,
                                        route_backward, NULL,  NULL, NULL};

/* --- once a step --- */

moe_status moei_twin_end_step(moe_layer *layer, const int64_t *counts) {
    moe_layer *twin = layer->twin;
    MOEI_TRY(layer->ctx->device->wait(layer->ctx));
    MOEI_TRY(copy_gate(layer, true, true));
    if (layer->path == &moei_path_device)
        MOEI_TRY(moei_memory_copy(layer->ctx, twin->step.rows, layer->device.step_rows, counts_bytes(layer)));
    MOEI_TRY(moei_twin_tell(layer, moe_layer_end_step(twin, counts)));
    MOEI_TRY(moei_memory_clear(layer->ctx, layer->device.step_rows, counts_bytes(layer)));
    return copy_gate(layer, false, true);
}
