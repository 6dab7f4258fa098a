/* layer_experts.c: the experts of a call: x[T,d] -> y[T,d_out], and back.
 * y = sum_k weight expert(x W_in) W_out + bias + sigmoid(x . w) shared(x); each part only where it is
 * described. Source: Automodel and Megatron core (latent experts, shared gate); sigma-MoE (output bias).
 */
#include "layer/layer_experts.h"
#include "kernel/kernel.h"

#include "combine/combine.h"
#include "core/real.h"
#include "experts/experts.h"
#include "layer/layer_desc.h"
#include "layer/layer_path.h"

bool moei_layer_weighs_input(const moe_layer *layer) {
    return moei_is(layer->desc.weight_apply, "input");
}

bool moei_layer_gathers(const moe_layer *layer) {
    return layer->experts.ops->contiguous || moei_layer_weighs_input(layer);
}

static moe_mat matrix(const moe_layer *layer, void *data, int64_t rows, int64_t cols) {
    return (moe_mat){data, rows, cols, cols, layer->desc.dtype};
}

static moe_mat latent(const moe_layer *layer, void *data) {
    return matrix(layer, data, layer->batch.x.rows, layer->desc.latent_size);
}

/* What the routed experts read: the tokens, or the tokens in the latent width. */
static moe_mat expert_input(const moe_layer *layer) {
    return layer->desc.latent_size > 0 ? latent(layer, layer->saved.latent_in) : layer->batch.x;
}

static moe_expert_io routed_io(const moe_layer *layer, const moei_scratch *s) {
    const moei_plan *plan = &layer->plan;
    const moe_draws *draws = layer->batch.draws;
    return (moe_expert_io){.size = sizeof(moe_expert_io),
                           .mode = layer->batch.mode,
                           .n_experts = plan->n_experts,
                           .n_rows = plan->n_rows,
                           .offset = plan->offset,
                           .row_token = plan->row_token,
                           .row_weight = plan->row_weight,
                           .in = expert_input(layer),
                           .step = layer->batch.step,
                           .row_slot = plan->row_slot,
                           .dropout_keep = draws ? draws->dropout_keep : NULL,
                           .saved = layer->saved.expert_rows,
                           .scratch = s->experts};
}

/* The tokens in expert order, weighted where the weight stands at the input. */
static void gather_input(moe_layer *layer, const moei_scratch *s, moe_expert_io *io) {
    const moe_mat in = expert_input(layer);
    io->in = matrix(layer, s->in_rows, layer->plan.n_rows, in.cols);
    io->row_token = NULL;
    io->row_weight = NULL; /* it stands at the input, or the layer applies it around the kind */
    moei_rows_gather(layer->ctx, &layer->plan, in,
                     moei_layer_weighs_input(layer) ? layer->plan.row_weight : NULL, io->in);
}

static moe_status run_experts(const moe_layer *layer, bool forward, const moe_expert_io *io) {
    const moe_expert_ops *ops = layer->experts.ops;
    moei_expert_ask(layer->ctx);
    return moei_expert_answer(layer->ctx, ops, forward ? "forward" : "backward",
                              (forward ? ops->forward : ops->backward)(layer->experts.self, io));
}

/* What kernels that need no plan are told of few tokens; false: not of these, or with these experts. */
static bool few_args(const moe_layer *layer, const moei_scratch *s, moei_few_args *args) {
    const moe_mat x = layer->batch.x;
    if (layer->batch.mode != MOE_INFER || layer->experts.ops != &moei_expert_ffn ||
        layer->desc.latent_size > 0 || moei_layer_weighs_input(layer) ||
        layer->capacity.factor[MOE_INFER] > 0)
        return false;
    *args = (moei_few_args){.dtype = x.dtype,
                            .n_tokens = x.rows,
                            .d = x.cols,
                            .n_experts = layer->routing.n_experts,
                            .top_k = layer->routing.top_k,
                            .x = x.data,
                            .ldx = x.stride,
                            .expert = layer->routing.expert,
                            .scratch = s->experts,
                            .drawn = layer->device.drawn,
                            .accumulate = layer->shared.ops != NULL};
    return moei_ffn_few_args(layer->experts.self, args);
}

bool moei_layer_takes_few(const moe_layer *layer, const moei_scratch *s) {
    moei_few_args args;
    return few_args(layer, s, &args);
}

/* Experts and sum of few tokens; false: nothing was done. */
static bool few_forward(const moe_layer *layer, const moei_scratch *s, moe_mat y) {
    moei_few_args args;
    if (!layer->plan_due || !few_args(layer, s, &args)) return false;
    args.weight = moei_plan_slot_weight(&layer->plan, &layer->routing);
    args.y = y.data;
    args.ldy = y.stride;
    return layer->ctx->kernels[layer->desc.dtype]->few(&layer->ctx->team, &args);
}

/* The experts' rows, and their sums. */
static moe_status planned_forward(moe_layer *layer, const moei_scratch *s, moe_mat y) {
    const moei_around *w = &layer->around;
    const bool shared = layer->shared.ops != NULL;
    const bool keep_rows = layer->saved.out_rows && layer->batch.mode == MOE_TRAIN;
    const moe_mat rows = matrix(layer, keep_rows ? layer->saved.out_rows : s->rows, layer->plan.n_rows,
                                moei_expert_out(&layer->desc));
    const void *weight =
        moei_layer_weighs_input(layer) ? NULL : moei_plan_slot_weight(&layer->plan, &layer->routing);
    if (layer->desc.latent_size > 0) {
        moei_product(layer->ctx, layer->batch.x, w->latent_in, false, expert_input(layer), false);
        if (w->latent_in_bias) moei_add_bias(layer->ctx, NULL, w->latent_in_bias, expert_input(layer));
    }
    moe_expert_io io = routed_io(layer, s);
    io.out = rows;
    if (moei_layer_gathers(layer)) gather_input(layer, s, &io);
    MOEI_TRY(run_experts(layer, true, &io));
    if (layer->desc.latent_size > 0) {
        const moe_mat out = latent(layer, layer->saved.latent_out);
        moei_combine(layer->ctx, &layer->plan, weight, rows, out, false);
        moei_product(layer->ctx, out, w->latent_out, false, y, shared);
        if (w->latent_out_bias) moei_add_bias(layer->ctx, NULL, w->latent_out_bias, y);
    } else {
        moei_combine(layer->ctx, &layer->plan, weight, rows, y, shared);
    }
    return MOE_OK;
}

static moe_status routed_forward(moe_layer *layer, const moei_scratch *s, moe_mat y) {
    if (!few_forward(layer, s, y)) {
        if (layer->plan_due) layer->path->plan(layer, s);
        layer->plan_due = false;
        MOEI_TRY(planned_forward(layer, s, y));
    }
    if (layer->desc.output_bias) moei_add_bias(layer->ctx, layer->batch.mask, layer->around.output_bias, y);
    return MOE_OK;
}

static moe_expert_io shared_io(const moe_layer *layer, const moei_scratch *s) {
    return (moe_expert_io){.size = sizeof(moe_expert_io),
                           .mode = layer->batch.mode,
                           .n_experts = 1,
                           .n_rows = layer->batch.x.rows,
                           .offset = moei_one_group(layer->ctx, s->shared_offset),
                           .in = layer->batch.x,
                           .step = layer->batch.step,
                           .saved = layer->saved.shared_rows,
                           .scratch = s->shared};
}

static moe_mat gate_column(const moe_layer *layer, void *data) {
    return (moe_mat){data, layer->batch.x.rows, 1, 1, moei_wide(layer->desc.dtype)};
}

/* wide gate[T,1] = sigmoid(gate); y[t] *= gate[t] */
static void apply_gate(moe_ctx *ctx, moe_mat gate, moe_mat y) {
    ctx->kernels[y.dtype]->sigmoid_gate(
        &ctx->team,
        &(moei_sigmoid_gate_args){
            .dtype = y.dtype, .rows = y.rows, .n = y.cols, .gate = gate.data, .y = y.data, .ld = y.stride});
}

/* wide dgate[T,1] *= gate (1 - gate); then dweight[d] += dgate^T x and, where wanted, dx += dgate weight. */
static void gate_backward(moe_ctx *ctx, moe_mat gate, moe_mat dgate, moe_mat x, const void *weight,
                          void *dweight, moe_mat dx) {
    ctx->kernels[x.dtype]->sigmoid_gate_grad(&ctx->team, &(moei_sigmoid_gate_args){.dtype = x.dtype,
                                                                                   .rows = x.rows,
                                                                                   .n = x.cols,
                                                                                   .gate = gate.data,
                                                                                   .dgate = dgate.data,
                                                                                   .weight = weight,
                                                                                   .y = dx.data,
                                                                                   .ld = dx.stride});
    moei_column_sums(ctx, x, dgate.data, dweight);
}

static moe_status shared_forward(moe_layer *layer, const moei_scratch *s, moe_mat y) {
    moe_expert_io io = shared_io(layer, s);
    io.out = y;
    MOEI_TRY(layer->shared.ops->forward(layer->shared.self, &io));
    if (!layer->desc.shared_expert_gate) return MOE_OK;
    const moe_mat gate = gate_column(layer, layer->saved.shared_gate);
    moei_product(layer->ctx, layer->batch.x, layer->around.shared_gate, true, gate, false);
    apply_gate(layer->ctx, gate, y);
    return MOE_OK;
}

moe_status moei_layer_experts_forward(moe_layer *layer, const moei_scratch *s, moe_mat y) {
    if (layer->shared.ops) MOEI_TRY(shared_forward(layer, s, y));
    return layer->experts.ops ? routed_forward(layer, s, y) : MOE_OK;
}

static moe_status shared_backward(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_mat dx) {
    const moe_mat x = layer->batch.x;
    moe_expert_io io = shared_io(layer, s);
    io.dout = dy;
    io.din = dx;
    io.overwrite_grad = layer->overwrite_grad;
    io.row_weight = layer->saved.shared_gate; /* of a gated one: its gate is the weight of its rows */
    io.drow_weight = s->shared_dgate;
    MOEI_TRY(layer->shared.ops->backward(layer->shared.self, &io));
    if (!layer->desc.shared_expert_gate) return MOE_OK;
    gate_backward(layer->ctx, gate_column(layer, layer->saved.shared_gate),
                  gate_column(layer, s->shared_dgate), x, layer->around.shared_gate,
                  layer->around_grad.shared_gate, dx);
    return MOE_OK;
}

/* The gradient of the routed experts' output goes to rows; contiguous kinds get it weighted. */
static void gather_gradient(moe_layer *layer, const moei_scratch *s, moe_mat dout, moe_expert_io *io) {
    const moei_plan *plan = &layer->plan;
    io->dout = matrix(layer, s->dout_rows, plan->n_rows, dout.cols);
    io->drow_weight = NULL;
    gather_input(layer, s, io);
    moei_rows_gather(layer->ctx, plan, dout, moei_layer_weighs_input(layer) ? NULL : plan->row_weight,
                     io->dout);
    if (moei_layer_weighs_input(layer)) return;
    moei_rows_weight_gradient(layer->ctx, plan, dout,
                              matrix(layer, layer->saved.out_rows, plan->n_rows, dout.cols), s->drow_weight);
}

/* Beside the products of the parameters' gradients, where the device has room for both. in_rows: the
 * router's part is in them. */
static void sum_row_gradients(moe_layer *layer, const moei_scratch *s, moe_mat drows, moe_mat din,
                              bool accumulate, bool in_rows) {
    const moei_plan *plan = &layer->plan;
    moei_beside_step(layer->ctx, MOEI_BESIDE_ENTER);
    if (layer->router_done)
        layer->path->route_backward_sum(layer, s, drows, din, accumulate, in_rows);
    else if (moei_layer_weighs_input(layer))
        moei_combine(layer->ctx, plan, moei_plan_slot_weight(plan, &layer->routing), drows, din, accumulate);
    else
        moei_combine_backward(layer->ctx, plan, drows, din, accumulate);
}

/* The router's way back, which needs no more than the weights' gradients. */
typedef struct router_part {
    moe_layer *layer;
    const moei_scratch *s;
    moe_mat dx;
    moei_router_rides rides;
} router_part;

static void queue_router_part(void *arg) {
    router_part *part = arg;
    moe_layer *layer = part->layer;
    layer->router_done = layer->path->route_backward_first(layer, part->s, part->dx, &part->rides);
    if (!layer->router_done) return;
    layer->ctx->ride = &part->rides.product;
    if (part->rides.rows.factor) layer->ctx->plus = &part->rides.rows;
}

/* What the launch of the parameters' gradients left of it. The sum of the rows may outlast both. */
static moe_status end_router_part(moe_layer *layer, const moei_scratch *s) {
    if (layer->ctx->ride) MOEI_TRY(moe_gemm_outer(layer->ctx, layer->ctx->ride));
    layer->path->route_backward_end(layer, s);
    return MOE_OK;
}

/* Rows are read, tokens written and, added to, read; of each row's products with its token, two operations a
 * weight. */
static double sum_intensity(const moe_layer *layer) {
    const double rows = (double)layer->plan.n_rows, tokens = (double)layer->batch.x.rows;
    const double real = (double)moe_dtype_bytes(layer->desc.dtype);
    const double bytes = real * (rows + 2 * tokens) * moei_expert_in(&layer->desc);
    double weights = 0;
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (layer->param[i].experts == &layer->experts) weights += (double)layer->param[i].bytes / real;
    const double operations = 2 * rows * weights / layer->experts.n_experts;
    return operations > 0 ? bytes / operations : 0;
}

/* Without dx nothing runs beside: the products keep all of the device. Of several kinds the last to mark need
 * not be the last to write rows. The sum of the rows begins with the router's part where that can come first.
 */
static void offer_sum(router_part *part) {
    const moe_layer *layer = part->layer;
    if (!part->dx.data || layer->experts.ops == &moei_expert_mixed) return;
    const bool first =
        layer->path->route_backward_first && layer->desc.latent_size == 0 && !moei_layer_weighs_input(layer);
    const moei_offer offer = {first ? queue_router_part : NULL, part, sum_intensity(layer)};
    moei_beside_offer(layer->ctx, &offer);
}

/* din[T, d_in] (+)= the rows' gradients; data NULL: only the weights' gradient is wanted. */
static moe_status rows_backward(moe_layer *layer, const moei_scratch *s, moe_mat dout, moe_mat din,
                                bool accumulate) {
    const bool at_input = moei_layer_weighs_input(layer);
    const moe_mat drows = matrix(layer, din.data || at_input ? s->rows : NULL, layer->plan.n_rows,
                                 moei_expert_in(&layer->desc));
    moe_expert_io io = routed_io(layer, s);
    io.dout = dout;
    io.din = drows;
    io.drow_weight = s->drow_weight;
    io.overwrite_grad = layer->overwrite_grad && layer->experts.ops->overwrites;
    if (moei_layer_gathers(layer)) gather_gradient(layer, s, dout, &io);
    router_part part = {.layer = layer, .s = s, .dx = din};
    offer_sum(&part);
    moe_status status = run_experts(layer, false, &io);
    if (status == MOE_OK && at_input)
        moei_rows_weight_gradient(layer->ctx, &layer->plan, expert_input(layer), drows, s->drow_weight);
    if (status == MOE_OK && layer->router_done) status = end_router_part(layer, s);
    const bool in_rows = part.rides.rows.factor && !layer->ctx->plus;
    if (status == MOE_OK && din.data) sum_row_gradients(layer, s, drows, din, accumulate, in_rows);
    moei_beside_step(layer->ctx, MOEI_BESIDE_END);
    layer->ctx->ride = NULL, layer->ctx->plus = NULL;
    return status;
}

static moe_status routed_backward(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_mat dx) {
    const bool shared = layer->shared.ops != NULL;
    const moei_around *w = &layer->around, *dw = &layer->around_grad;
    if (layer->desc.output_bias) moei_bias_backward(layer->ctx, layer->batch.mask, dy, dw->output_bias);
    if (layer->desc.latent_size == 0) return rows_backward(layer, s, dy, dx, shared);
    const moe_mat dout = latent(layer, s->dlatent_out), din = latent(layer, s->dlatent_in);
    moei_product_weight(layer->ctx, latent(layer, layer->saved.latent_out), dy, dw->latent_out);
    moei_product(layer->ctx, dy, w->latent_out, true, dout, false);
    MOEI_TRY(rows_backward(layer, s, dout, din, false));
    moei_product_weight(layer->ctx, layer->batch.x, din, dw->latent_in);
    if (dw->latent_in_bias) moei_bias_backward(layer->ctx, NULL, din, dw->latent_in_bias);
    if (dw->latent_out_bias) moei_bias_backward(layer->ctx, NULL, dy, dw->latent_out_bias);
    if (dx.data) moei_product(layer->ctx, din, w->latent_in, true, dx, shared);
    return MOE_OK;
}

moe_status moei_layer_experts_backward(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_mat dx) {
    if (layer->shared.ops) MOEI_TRY(shared_backward(layer, s, dy, dx));
    return layer->experts.ops ? routed_backward(layer, s, dy, dx) : MOE_OK;
}
