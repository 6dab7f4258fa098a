/* trial.h: one step of a layer of the covering set: inputs, what the call tells, and everything that came
 * out. x[T,d], dy[T,d_out] -> y, dx, loss, routes, gradients; parameters are drawn, so that no bias is zero.
 * Source: support/cover.h makes the layers.
 */
#ifndef MOEKIT_TEST_TRIAL_H
#define MOEKIT_TEST_TRIAL_H

#include "support/cover.h"

enum { TRIAL_TOKENS = 24 };

typedef struct trial {
    const cover_problem *problem;
    moe_layer_desc desc; /* the problem's, in the dtype of the trial */
    int number;
    char settings[COVER_TEXT];
} trial;

static inline bool trial_is(const char *value, const char *name) {
    return strcmp(value, name) == 0;
}

/* --- one step of a layer, kept --- */

typedef struct trial_outcome {
    moe_mat y, dx;
    moe_stats stats;
    int32_t slots;
    int32_t *expert; /* [T, slots]; NULL without a router */
    double *grad;    /* all gradients, one after another */
    int64_t n_grads;
} trial_outcome;

static inline void trial_forget(trial_outcome *o) {
    free(o->y.data), free(o->dx.data), free(o->expert), free(o->grad);
}

static inline int64_t trial_numbers(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

static inline void trial_keep_grads(moe_ctx *ctx, moe_layer *layer, trial_outcome *o) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (!param.grad) continue;
        const moe_mat grad = {param.grad, 1, trial_numbers(&param), trial_numbers(&param), param.dtype};
        o->grad = realloc(o->grad, (size_t)(o->n_grads + grad.cols) * sizeof *o->grad);
        assert_non_null(o->grad);
        for (int64_t j = 0; j < grad.cols; ++j) o->grad[o->n_grads++] = test_at(grad, 0, j);
    }
}

/* Biases begin at zero: every path shall be alive. */
static inline void trial_draw_params(moe_ctx *ctx, moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        moe_random_normal(test_seed(), MOE_DRAW_TEST, 940 + (uint32_t)i, 0, param.dtype, param.value,
                          trial_numbers(&param), 0.4);
    }
}

static inline void trial_keep_routing(moe_ctx *ctx, moe_layer *layer, trial_outcome *o, int64_t rows) {
    moe_routing_view view = {.size = sizeof view};
    if (moe_layer_get_desc(layer)->num_experts == 0) return;
    must(ctx, moe_layer_routing(layer, &view));
    o->slots = view.top_k;
    o->expert = malloc((size_t)(rows * view.top_k + 1) * sizeof *o->expert);
    assert_non_null(o->expert);
    memcpy(o->expert, view.expert, (size_t)(rows * view.top_k) * sizeof *o->expert);
}

static inline trial_outcome trial_step(const trial *d, int32_t n_threads, const moe_call *call, moe_mat x,
                                       moe_mat dy) {
    moe_ctx *ctx = test_ctx(NULL, n_threads);
    moe_layer *layer = NULL;
    trial_outcome o = {.stats = {.size = sizeof o.stats}};
    if (moe_layer_create(ctx, &d->desc, &layer) != MOE_OK) fail_msg("%s:%s", moe_ctx_error(ctx), d->settings);
    must(ctx, moe_layer_reserve(layer, TRIAL_TOKENS, MOE_TRAIN));
    trial_draw_params(ctx, layer);
    o.y = test_output(x.dtype, x.rows, dy.cols);
    o.dx = test_output(x.dtype, x.rows, x.cols);
    if (moe_layer_forward(layer, x, o.y, call, &o.stats) != MOE_OK)
        fail_msg("%s:%s", moe_ctx_error(ctx), d->settings);
    trial_keep_routing(ctx, layer, &o, x.rows);
    must(ctx, moe_layer_backward(layer, x, dy, o.dx));
    trial_keep_grads(ctx, layer, &o);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return o;
}

static inline void trial_same_bits(const trial *d, const char *what, const trial_outcome *a,
                                   const trial_outcome *b) {
    if (memcmp(a->y.data, b->y.data, test_bytes(a->y)) != 0 ||
        memcmp(a->dx.data, b->dx.data, test_bytes(a->dx)) != 0 || a->n_grads != b->n_grads ||
        (a->n_grads > 0 && memcmp(a->grad, b->grad, (size_t)a->n_grads * sizeof *a->grad) != 0) ||
        !test_same_stats(&a->stats, &b->stats))
        fail_msg("%s: other bits:%s", what, d->settings);
}

/* --- inputs --- */

typedef struct trial_inputs {
    moe_mat x, dy;
    int32_t id[TRIAL_TOKENS]; /* tokens keep their number where they are moved, for hash routing */
    int32_t task[TRIAL_TOKENS];
    uint8_t mask[TRIAL_TOKENS];
    moe_call call; /* plain; trial_tell points it to the above */
} trial_inputs;

static inline trial_inputs trial_begin(trial *d, moe_dtype dtype) {
    d->desc = cover_desc(d->problem, dtype);
    const moe_layer_desc *desc = &d->desc;
    const int64_t out = desc->output_size > 0 ? desc->output_size : desc->d_model;
    trial_inputs in = {.x = test_random(dtype, TRIAL_TOKENS, desc->d_model, 1000 + (uint32_t)d->number),
                       .dy = test_random(dtype, TRIAL_TOKENS, out, 2000 + (uint32_t)d->number),
                       .call = test_train_call};
    for (int32_t t = 0; t < TRIAL_TOKENS; ++t) {
        in.id[t] = 3 * t + 1;
        in.mask[t] = t % 5 != 2;
        if (desc->num_tasks > 0) in.task[t] = (t + 1) % desc->num_tasks;
    }
    return in;
}

/* Points the call to what this router looks at. */
static inline void trial_tell(const trial *d, trial_inputs *in) {
    const bool hashes = trial_is(d->desc.router_type, "hash") && d->desc.num_experts > 0;
    if (hashes && trial_is(d->desc.routing_unit, "token")) in->call.token_id = in->id;
    if (d->desc.num_tasks > 0) in->call.task = in->task;
}

/* The same, with the problem's mask and sequences. */
static inline void trial_tell_all(const trial *d, trial_inputs *in) {
    trial_tell(d, in);
    if (d->problem->masked) in->call.token_mask = in->mask;
    in->call.sequence_length = TRIAL_TOKENS / d->problem->n_sequences;
}

static inline void trial_end(trial_inputs *in) {
    free(in->x.data), free(in->dy.data);
}

/* --- the set, one by one --- */

static cover_set trial_set; /* made once a program, by trial_make_set */

/* Holds the property for every layer it applies to: at least one in `every`. */
static inline void trial_holds(const char *name, bool (*property)(trial *d), int every) {
    int held = 0;
    for (int i = 0; i < trial_set.n_problems; ++i) {
        trial d = {.problem = &trial_set.problem[i], .number = i};
        cover_describe(d.problem, d.settings);
        held += property(&d);
    }
    fprintf(stderr, "%s: %d of %d layers\n", name, held, trial_set.n_problems);
    assert_true(held * every >= trial_set.n_problems);
}

static inline int trial_make_set(void **state) {
    (void)state;
    trial_set = cover_make(test_seed());
    return 0;
}
static inline int trial_free_set(void **state) {
    (void)state;
    cover_free(&trial_set);
    return 0;
}

#endif
