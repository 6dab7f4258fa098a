/* layer_path.h: who routes: the three ways from tokens to a plan and back, behind one table.
 * "cpu": plain C on the host's memory. "device": kernels of the layer's device, which never waits. "twin":
 * the layer is on a device that cannot do its router or losses, so a CPU twin routes and the plan is copied.
 */
#ifndef MOEI_LAYER_PATH_H
#define MOEI_LAYER_PATH_H

#include "kernel/kernel.h"
#include "layer/layer.h"

/* The router's share of others' launches. */
typedef struct moei_router_rides {
    moe_gemm_outer_args product; /* of the gate's gradient, for the launch of the parameters' */
    moei_rows_plus rows; /* its part of dx, for the product of the rows' gradients; factor NULL: not so */
} moei_router_rides;

struct moei_layer_path {
    const char *name;
    /* Fills layer->routing and layer->plan from layer->batch. */
    moe_status (*route)(moe_layer *layer, const moei_scratch *s);
    /* Makes the plan that `route` left due; NULL: it leaves none. */
    void (*plan)(const moe_layer *layer, const moei_scratch *s);
    /* After the experts: counts for the step, and the losses where stats are wanted (NULL: nobody asks). */
    moe_status (*measure)(moe_layer *layer, const moei_scratch *s, moe_stats *stats);
    /* At the beginning of backward: the rows of layer->plan again, which forward left in scratch that other
     * layers use too. */
    moe_status (*index)(moe_layer *layer, const moei_scratch *s);
    /* s->drow_weight and the losses -> gradients of the gate, added, and of x, added to dx (data NULL: not
     * wanted). */
    moe_status (*route_backward)(moe_layer *layer, const moei_scratch *s, moe_mat dx);
    /* The same by kernels only, begun ahead of the parameters' gradients, beside which the rest may run.
     * False: not for this router or call, and nothing was done. NULL: never. For the caller to queue are then
     * what rides, and after it the end; and dx (+)= the router's part, if that is not in the rows, and the
     * sums of the tokens' `drows`. */
    bool (*route_backward_first)(moe_layer *layer, const moei_scratch *s, moe_mat dx,
                                 moei_router_rides *rides);
    void (*route_backward_sum)(moe_layer *layer, const moei_scratch *s, moe_mat drows, moe_mat dx,
                               bool accumulate, bool in_rows);
    void (*route_backward_end)(moe_layer *layer, const moei_scratch *s);
};

extern const moei_layer_path moei_path_cpu, moei_path_device, moei_path_twin;

/* Whether the kernels of a device do all that this layer's router, plan and losses ask for. */
bool moei_path_device_serves(const moe_layer *layer);

/* Gives a layer on a device its twin and its path. After the gate is made. */
moe_status moei_twin_create(moe_layer *layer);
void moei_twin_destroy(moe_layer *layer);
/* Memory of the twin for T tokens, and of what the device's path needs beyond the layer's. */
moe_status moei_twin_reserve(moe_layer *layer, int64_t T, moe_mode mode);
/* moe_layer_end_step of a layer on a device. */
moe_status moei_twin_end_step(moe_layer *layer, const int64_t *counts);
/* Copies the batch's mask, and the routing and plan of a device, to the twin; for what only the CPU counts.
 */
moe_status moei_twin_fetch_routing(moe_layer *layer);
/* What the twin found wrong, told by the layer's context. */
moe_status moei_twin_tell(const moe_layer *layer, moe_status status);

#endif
