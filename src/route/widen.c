/* widen.c: the door of a router that computes in a wider type than its layer's: x and parameters go in
 * converted, gradients come out rounded once. x[T,d], gate -> real copies; real gradients -> added to the
 * layer's. Source: moe_router_dtype of Megatron core, which casts at the same two places.
 */
#include "core/memory.h"
#include "kernel/kernel.h"
#include "route/select.h"

static void **field_of(moei_gate *gate, const moei_gate_param *param) {
    return (void **)(void *)((char *)gate + param->offset);
}

static void *value_of(const moei_gate *gate, const moei_gate_param *param) {
    return *(void *const *)(const void *)((const char *)gate + param->offset);
}

static moe_mat matrix_of(const moei_gate_param *param, void *data, moe_dtype dtype) {
    const int64_t cols = param->dim[param->n_dim - 1];
    return (moe_mat){data, param->dim[0] * param->dim[1] * param->dim[2] / cols, cols, cols, dtype};
}

/* Gradients are kept in the type that sums are. */
static moe_dtype grad_dtype(const moei_router *router) {
    return moei_wide(router->desc->dtype);
}

/* Whether kernels take tokens and gate as they are stored and give wide logits; what else the router reads of
 * the tokens (jitter, sequences, inner gates) it computes with. */
static bool has_wide_product(const moei_router *router) {
    return router->desc->dtype == MOE_BF16 && router->dtype == MOE_F32 && router->unit == MOEI_UNIT_TOKEN &&
           !moei_two_levels(router);
}

static bool is_factor(const moei_gate_param *param) {
    return param->offset == offsetof(moei_gate, weight) || param->offset == offsetof(moei_gate, noise);
}

moei_route_wide moei_route_wide_carve(const moei_router *router, moei_arena *arena, int64_t T, bool train) {
    moei_route_wide wide = {0};
    moei_gate_param param[MOEI_GATE_PARAMS];
    const int32_t count = moei_router_params(router, param);
    const size_t real = moe_dtype_bytes(router->dtype);
    if (router->dtype == router->desc->dtype) return wide;
    const bool factors = train || !has_wide_product(router);
    if (factors) wide.x = moei_arena_array(arena, T, router->d_model, real);
    if (train) wide.dx = moei_arena_array(arena, T, router->d_model, real);
    for (int32_t i = 0; i < count; ++i) {
        const moe_mat shape = matrix_of(&param[i], NULL, router->dtype);
        if (moei_gate_dtype(router, param[i].buffer) != router->dtype && (factors || !is_factor(&param[i])))
            *field_of(&wide.gate, &param[i]) = moei_arena_array(arena, shape.rows, shape.cols, real);
        if (train && !param[i].buffer && grad_dtype(router) != router->dtype)
            *field_of(&wide.grad, &param[i]) = moei_arena_array(arena, shape.rows, shape.cols, real);
    }
    return wide;
}

/* to (+)= from */
static void convert(const moei_route_job *job, moe_mat from, moe_mat to, bool add) {
    job->ctx->kernels[to.dtype]->convert(&job->ctx->team, &(moei_convert_args){.dtype = to.dtype,
                                                                               .from_dtype = from.dtype,
                                                                               .rows = to.rows,
                                                                               .n = to.cols,
                                                                               .from = from.data,
                                                                               .ld_from = from.stride,
                                                                               .to = to.data,
                                                                               .ld_to = to.stride,
                                                                               .accumulate = add});
}

static const moei_route_job *widen(const moei_route_job *job, moei_wide_job *wide, bool factors) {
    const moei_router *router = job->router;
    const moe_mat x = job->batch->x;
    moei_gate_param param[MOEI_GATE_PARAMS];
    const int32_t count = moei_router_params(router, param);
    if (router->dtype == router->desc->dtype) return job;
    wide->batch = *job->batch;
    if (factors) {
        wide->batch.x = (moe_mat){job->scratch.wide.x, x.rows, x.cols, x.cols, router->dtype};
        convert(job, x, wide->batch.x, false);
    }
    wide->gate = *job->gate;
    for (int32_t i = 0; i < count; ++i) {
        void *copy = value_of(&job->scratch.wide.gate, &param[i]);
        if (!copy || (!factors && is_factor(&param[i]))) continue;
        const moe_dtype own = moei_gate_dtype(router, param[i].buffer);
        convert(job, matrix_of(&param[i], value_of(job->gate, &param[i]), own),
                matrix_of(&param[i], copy, router->dtype), false);
        *field_of(&wide->gate, &param[i]) = copy;
    }
    wide->job = *job;
    wide->job.batch = &wide->batch;
    wide->job.gate = &wide->gate;
    return &wide->job;
}

static void clear(const moei_route_job *job, moe_mat mat) {
    moei_memory_clear(job->ctx, mat.data, (size_t)(mat.rows * mat.cols) * moe_dtype_bytes(mat.dtype));
}

const moei_route_job *moei_widen(const moei_route_job *job, moei_wide_job *wide) {
    return widen(job, wide, true);
}

const moei_route_job *moei_widen_forward(const moei_route_job *job, moei_wide_job *wide) {
    return widen(job, wide, !has_wide_product(job->router) || moei_has_jitter(job));
}

void moei_widen_gradients(const moei_route_job *job, moei_gate *grad, moe_mat *dx) {
    const moei_router *router = job->router;
    moei_gate_param param[MOEI_GATE_PARAMS];
    const int32_t count = moei_router_params(router, param);
    if (router->dtype == router->desc->dtype) return;
    for (int32_t i = 0; i < count; ++i) {
        void *copy = value_of(&job->scratch.wide.grad, &param[i]);
        if (!copy || !value_of(grad, &param[i])) continue;
        clear(job, matrix_of(&param[i], copy, router->dtype));
        *field_of(grad, &param[i]) = copy;
    }
    if (!dx->data) return;
    *dx = (moe_mat){job->scratch.wide.dx, dx->rows, dx->cols, dx->cols, router->dtype};
    clear(job, *dx);
}

void moei_narrow_gradients(const moei_route_job *job, const moei_gate *from, moe_mat from_dx,
                           const moei_gate *grad, moe_mat dx) {
    const moei_router *router = job->router;
    moei_gate_param param[MOEI_GATE_PARAMS];
    const int32_t count = moei_router_params(router, param);
    if (router->dtype == router->desc->dtype) return;
    for (int32_t i = 0; i < count; ++i) {
        void *copy = value_of(from, &param[i]), *to = value_of(grad, &param[i]);
        if (copy != to)
            convert(job, matrix_of(&param[i], copy, router->dtype),
                    matrix_of(&param[i], to, grad_dtype(router)), true);
    }
    if (dx.data) convert(job, from_dx, dx, true);
}
