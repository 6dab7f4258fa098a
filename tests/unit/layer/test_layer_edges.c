/* test_layer_edges.c: capacities, ties, NaN and padding only, over layers in which every two values of
 * options meet. What is full, equal, broken or absent has one meaning for every router. Source: the promises
 * of moe.h; the layers are those of support/cover.h.
 */
#include "support/trial.h"

#include "layer/layer.h"

enum { T = TRIAL_TOKENS };

/* A layer of the trial, with its inputs, ready to run. */
typedef struct bench {
    moe_ctx *ctx;
    moe_layer *layer;
    trial_inputs in;
    moe_mat y, dx;
    moe_stats stats;
    moe_routing_view view; /* of the last forward that succeeded; all zero without a router */
} bench;

static bench start(trial *d, moe_dtype dtype) {
    bench b = {.ctx = test_ctx(NULL, 2), .in = trial_begin(d, dtype), .stats = {.size = sizeof b.stats}};
    if (moe_layer_create(b.ctx, &d->desc, &b.layer) != MOE_OK)
        fail_msg("%s:%s", moe_ctx_error(b.ctx), d->settings);
    must(b.ctx, moe_layer_reserve(b.layer, T, MOE_TRAIN));
    trial_draw_params(b.ctx, b.layer);
    b.y = test_output(dtype, T, b.in.dy.cols);
    b.dx = test_output(dtype, T, b.in.x.cols);
    return b;
}

/* trial_tell_all points into the struct, so it is called where the struct stays. */
static moe_status forward(bench *b) {
    const moe_status status = moe_layer_forward(b->layer, b->in.x, b->y, &b->in.call, &b->stats);
    b->view = (moe_routing_view){.size = sizeof b->view};
    if (status == MOE_OK && moe_layer_get_desc(b->layer)->num_experts > 0)
        must(b->ctx, moe_layer_routing(b->layer, &b->view));
    return status;
}

static void stop(bench *b) {
    trial_end(&b->in);
    free(b->y.data), free(b->dx.data);
    moe_layer_destroy(b->layer);
    moe_ctx_destroy(b->ctx);
}

static bool all_finite(moe_mat mat) {
    bool all = true;
    for (int64_t t = 0; t < mat.rows; ++t)
        for (int64_t c = 0; c < mat.cols; ++c) all = all && isfinite(test_at(mat, t, c));
    return all;
}

#define hold(d, what)                                                                                        \
    do {                                                                                                     \
        if (!(what)) fail_msg("%s:%s", #what, (d)->settings);                                                \
    } while (0)

/* --- capacity --- */

/* Rows of expert e among the tokens of one capacity group, kept or all. */
static int64_t rows_of(const bench *b, int64_t first, int64_t n, int32_t e, bool kept) {
    int64_t rows = 0;
    for (int64_t slot = first * b->view.top_k; slot < (first + n) * b->view.top_k; ++slot)
        rows += b->view.expert[slot] == e && (!kept || b->view.row_of[slot] >= 0);
    return rows;
}

/* Two levels fill their capacities while they route: what they dropped stands in the statistics only. */
static void check_counts(const trial *d, const bench *b) {
    const bool two_levels = d->desc.num_groups_outer > 0;
    int64_t routed = 0, kept = 0, dead = 0;
    for (int32_t e = 0; e < b->view.n_experts; ++e) {
        hold(d, b->view.kept[e] == rows_of(b, 0, T, e, true));
        hold(d, b->view.kept[e] <= b->view.routed[e]);
        hold(d, b->view.capacity >= 0 || b->view.kept[e] == b->view.routed[e]);
        routed += b->view.routed[e];
        kept += b->view.kept[e];
        dead += b->view.routed[e] == 0;
    }
    hold(d, two_levels ? b->stats.n_routed >= routed : b->stats.n_routed == routed);
    hold(d, b->stats.n_kept == kept && b->stats.n_dropped == b->stats.n_routed - kept);
    hold(d, b->stats.n_dead == dead);
}

/* No group gives an expert more than its capacity, by the formula and its real tokens; one that drops is
 * full. The capacity told is that of the fullest group. */
static void check_capacity(const trial *d, const bench *b) {
    const moei_capacity *rule = &b->layer->capacity;
    const int64_t n = rule->by_sequence ? b->in.call.sequence_length : T;
    int64_t most = 0;
    if (b->view.capacity < 0 || d->desc.num_groups_outer > 0) return;
    for (int64_t first = 0; first < T; first += n) {
        int64_t real = n;
        for (int64_t t = first; b->in.call.token_mask && t < first + n; ++t) real -= !b->in.mask[t];
        const int64_t C = rule->rows(rule, b->in.call.mode, false, real, moe_layer_get_desc(b->layer)->top_k,
                                     b->view.n_experts);
        if (C > most) most = C;
        hold(d, b->view.group_capacity[first / n] == C);
        for (int32_t e = 0; e < b->view.n_experts; ++e) {
            const int64_t asked = rows_of(b, first, n, e, false), kept = rows_of(b, first, n, e, true);
            hold(d, kept <= C && (kept == asked || kept == C));
        }
    }
    hold(d, b->view.capacity == most && b->view.n_groups == T / n);
}

static void check_masked(const trial *d, const bench *b) {
    for (int64_t slot = 0; b->in.call.token_mask && slot < T * b->view.top_k; ++slot)
        hold(d, b->in.mask[slot / b->view.top_k] || (b->view.expert[slot] < 0 && b->view.row_of[slot] == -1));
}

static bool capacity_is_kept(trial *d) {
    if (d->problem->desc.num_experts == 0) return false;
    bench b = start(d, MOE_F32);
    trial_tell_all(d, &b.in);
    for (int mode = MOE_INFER; mode <= MOE_TRAIN; ++mode) {
        b.in.call.mode = (moe_mode)mode;
        must(b.ctx, forward(&b));
        check_counts(d, &b);
        check_capacity(d, &b);
        check_masked(d, &b);
        hold(d, all_finite(b.y));
    }
    stop(&b);
    return true;
}

/* --- ties --- */

static void clear_gate(bench *b) {
    for (int32_t i = 0; i < moe_layer_param_count(b->layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(b->ctx, moe_layer_param(b->layer, i, &param));
        if (strncmp(param.name, "gate", 4) != 0) continue;
        memset(param.value, 0, (size_t)trial_numbers(&param) * moe_dtype_bytes(param.dtype));
    }
}

/* How many slots of a token are filled by ranking its experts: there a tie shows. */
static int32_t ranked_slots(const moe_layer_desc *d, int32_t top_k) {
    if (d->num_groups_outer > 0) return 0;
    if (trial_is(d->router_type, "gshard_top2")) return 1; /* a policy may draw the second */
    const bool ranks = trial_is(d->router_type, "top_k") || trial_is(d->router_type, "noisy_top_k") ||
                       trial_is(d->router_type, "sinkhorn") || trial_is(d->router_type, "quantile");
    return ranks ? top_k : 0;
}

/* A gate of zeros: all experts are equal. In inference the lower ones win; training too goes on. */
static bool ties_go_to_the_lower_expert(trial *d) {
    if (d->problem->desc.num_experts == 0) return false;
    bench b = start(d, MOE_F32);
    trial_tell_all(d, &b.in);
    clear_gate(&b);
    b.in.call.mode = MOE_INFER;
    must(b.ctx, forward(&b));
    for (int64_t t = 0; t < T; ++t)
        for (int32_t k = 0; k < ranked_slots(&d->desc, b.view.top_k); ++k)
            hold(d, b.view.expert[t * b.view.top_k + k] == k || (b.in.call.token_mask && !b.in.mask[t]));
    b.in.call.mode = MOE_TRAIN;
    must(b.ctx, forward(&b));
    hold(d, all_finite(b.y) && isfinite(b.stats.loss));
    must(b.ctx, moe_layer_backward(b.layer, b.in.x, b.in.dy, b.dx));
    hold(d, all_finite(b.dx));
    stop(&b);
    return true;
}

/* --- numbers that are none --- */

static bool poisoned(moe_mat mat) {
    const unsigned char *byte = mat.data;
    bool all = true;
    for (size_t i = 0; i < test_bytes(mat); ++i) all = all && byte[i] == 0xff;
    return all;
}

/* A NaN in a token: where the router reads tokens, the call is refused by the token's name and leaves y as it
 * was; the layer goes on with the next. */
static bool nan_names_its_token(trial *d) {
    const int64_t bad = 8; /* no masked one */
    const moe_layer_desc *desc = &d->problem->desc;
    const bool reads = !trial_is(desc->routing_unit, "task") && !trial_is(desc->router_type, "random");
    if (desc->num_experts == 0 || !reads) return false;
    bench b = start(d, MOE_F32);
    trial_tell_all(d, &b.in);
    b.in.call.mode = MOE_INFER;
    float *spoilt = (float *)b.in.x.data + bad * b.in.x.cols, kept = *spoilt;
    *spoilt = NAN;
    const moe_status status = forward(&b);
    if (status != MOE_ERR_NUMERIC) fail_msg("%s of a NaN:%s", moe_status_name(status), d->settings);
    hold(d, poisoned(b.y) && strstr(moe_ctx_error(b.ctx), "token"));
    *spoilt = kept;
    must(b.ctx, forward(&b));
    hold(d, all_finite(b.y));
    stop(&b);
    return true;
}

/* --- padding only --- */

/* Nothing is routed, no loss and no gradient of the router or its experts. */
static bool padding_only(trial *d) {
    bench b = start(d, MOE_F64);
    trial_tell_all(d, &b.in);
    memset(b.in.mask, 0, sizeof b.in.mask);
    b.in.call.token_mask = b.in.mask;
    must(b.ctx, forward(&b));
    hold(d, b.stats.n_tokens == 0 && b.stats.n_routed == 0 && b.stats.n_kept == 0 && b.stats.loss == 0);
    hold(d, all_finite(b.y) && isfinite(b.stats.router_entropy) && isfinite(b.stats.load_cv));
    must(b.ctx, moe_layer_backward(b.layer, b.in.x, b.in.dy, b.dx));
    hold(d, all_finite(b.dx));
    for (int32_t i = 0; i < moe_layer_param_count(b.layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(b.ctx, moe_layer_param(b.layer, i, &param));
        const bool routed = strncmp(param.name, "gate", 4) == 0 || strncmp(param.name, "experts", 7) == 0;
        for (int64_t j = 0; routed && param.grad && j < trial_numbers(&param); ++j)
            hold(d, ((const double *)param.grad)[j] == 0);
    }
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    stop(&b);
    return true;
}

static void capacity(void **state) {
    (void)state;
    trial_holds("capacity is kept", capacity_is_kept, 2);
}
static void ties(void **state) {
    (void)state;
    trial_holds("ties go to the lower expert", ties_go_to_the_lower_expert, 2);
}
static void nans(void **state) {
    (void)state;
    trial_holds("NaN names its token", nan_names_its_token, 5);
}
static void padding(void **state) {
    (void)state;
    trial_holds("padding only", padding_only, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capacity),
        cmocka_unit_test(ties),
        cmocka_unit_test(nans),
        cmocka_unit_test(padding),
    };
    return cmocka_run_group_tests(tests, trial_make_set, trial_free_set);
}
