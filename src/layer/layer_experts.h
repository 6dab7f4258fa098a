/* layer_experts.h: the experts of a call: routed and shared, and what a layer puts around them. */
#ifndef MOEI_LAYER_EXPERTS_H
#define MOEI_LAYER_EXPERTS_H

#include "layer/layer.h"

/* y[T, d_out] = shared(x) + routed(x), for the plan of this call. */
moe_status moei_layer_experts_forward(moe_layer *layer, const moei_scratch *s, moe_mat y);
/* dx (data NULL: not wanted) is written; s->drow_weight gets the gradient of each row's routing weight. */
moe_status moei_layer_experts_backward(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_mat dx);

/* Gathered rows carry the routing weight; outputs and gradients are then combined without it. */
bool moei_layer_weighs_input(const moe_layer *layer);
/* Rows are gathered for the experts instead of told by index. */
bool moei_layer_gathers(const moe_layer *layer);

#endif
