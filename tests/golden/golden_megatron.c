/* golden_megatron.c: recorded runs of Megatron-core's router functions.
 * logits, probs, maps [T, E]. The layer's tokens are the logits (its gate is the identity), and expert e
 * answers with unit vector e, so y is the dense matrix of weights and dx the gradient of the logits.
 * Source: Megatron core, megatron/core/transformer/moe as of 2026-08.
 */
#include "golden.h"

#include <math.h>
#include <string.h>

static const char *const scores[] = {"softmax",      "softmax",      "sigmoid", "sigmoid",
                                     "sqrtsoftplus", "sqrtsoftplus", NULL};
static const char *const drop_policies[] = {"probs", "probs", "position", "position", NULL};

/* A dense [T, E] tensor. NULL, and the case has failed, where there is none. */
static const golden_tensor *dense(golden_case *c, const char *name, int64_t T, int64_t E) {
    return golden_need(c, name, 2, (int64_t[]){T, E});
}

static moe_layer_desc router_of(int64_t n_experts, int64_t top_k) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .d_model = (int32_t)n_experts,
                            .num_experts = (int32_t)n_experts,
                            .top_k = (int32_t)top_k,
                            .expert_hidden_size = 1,
                            .expert = "unit"};
}

/* Options that Megatron's score function takes. */
static void read_score(golden_case *c, moe_layer_desc *d) {
    d->score_function = golden_choice(c, "score_function", "softmax", scores);
    const bool softmax = strcmp(d->score_function, "softmax") == 0;
    const bool before = golden_bool(c, "use_pre_softmax", false);
    d->score_before_topk = before || !softmax;
    d->norm_topk_prob = !softmax && d->top_k > 1;
    d->routed_scaling_factor = (float)golden_real(c, "scaling_factor", 0);
}

static golden_pass pass_of(const golden_tensor *x, const double *dy) {
    return (golden_pass){.n_tokens = golden_dim(x, 0),
                         .d_in = golden_dim(x, 1),
                         .d_out = golden_dim(x, 1),
                         .x = x->value,
                         .dy = dy};
}

static const moe_call train = {.size = sizeof train, .mode = MOE_TRAIN};

void golden_megatron_topk(golden_case *c) {
    const golden_tensor *logits = dense(c, "logits", -1, -1);
    if (!logits) return;
    const int64_t T = golden_dim(logits, 0), E = golden_dim(logits, 1);
    moe_layer_desc desc = router_of(E, golden_int_required(c, "topk"));
    read_score(c, &desc);
    desc.num_groups = (int32_t)golden_int(c, "num_groups", 0);
    desc.group_top_k = (int32_t)golden_int(c, "group_topk", 0);
    if (desc.num_groups > 0) desc.group_score = "topn_sum";
    static const golden_param bias = {"gate.selection_bias", "expert_bias", GOLDEN_AS_IS};
    desc.selection_bias = golden_find(c, bias.recorded);
    if (!golden_options_done(c) || !golden_register_unit(c)) return;
    moe_layer *layer = golden_layer(c, &desc, T);
    const golden_tensor *dprobs = golden_find(c, "d_probs"); /* the gradient that is put in */
    golden_pass pass = pass_of(logits, dprobs ? dprobs->value : NULL);
    if (!layer || !golden_identity_gate(c, layer)) return;
    if (desc.selection_bias) golden_set_params(c, layer, &bias, 1);
    if (!golden_forward(c, layer, &train, &pass)) return;
    golden_compare(c, "probs", pass.y, T * E, GOLDEN_VALUE);
    double *map = golden_alloc(c, (size_t)(T * E), sizeof *map);
    for (int64_t i = 0; i < T * desc.top_k; ++i)
        if (pass.view.expert[i] >= 0) map[i / desc.top_k * E + pass.view.expert[i]] = 1;
    golden_compare(c, "routing_map", map, T * E, GOLDEN_EXACT);
    if (pass.dy && golden_backward(c, layer, &pass))
        golden_compare(c, "d_logits", pass.dx, T * E, GOLDEN_GRADIENT);
}

/* --- losses ------------------------------------------------------------------------------------------- */

/* One loss alone: its value with its coefficient, and what it adds to the logits' gradient. */
static void compare_loss(golden_case *c, const moe_layer_desc *desc, const golden_tensor *logits,
                         const char *loss, const char *gradient) {
    golden_pass pass = pass_of(logits, NULL);
    moe_layer *layer = golden_layer(c, desc, pass.n_tokens);
    if (!layer || !golden_identity_gate(c, layer) || !golden_forward(c, layer, &train, &pass)) return;
    golden_compare_one(c, loss, pass.stats.loss, GOLDEN_VALUE);
    golden_compare(c, "tokens_per_expert", golden_counts(c, pass.view.routed, desc->num_experts),
                   desc->num_experts, GOLDEN_EXACT);
    pass.dy = golden_alloc(c, (size_t)logits->count, sizeof *pass.dy); /* zeros */
    if (golden_backward(c, layer, &pass))
        golden_compare(c, gradient, pass.dx, logits->count, GOLDEN_GRADIENT);
}

void golden_megatron_losses(golden_case *c) {
    const golden_tensor *logits = dense(c, "logits", -1, -1);
    if (!logits) return;
    moe_layer_desc desc = router_of(golden_dim(logits, 1), golden_int_required(c, "topk"));
    read_score(c, &desc);
    moe_layer_desc with_aux = desc, with_z = desc;
    with_aux.aux_loss_coeff = (float)golden_real(c, "moe_aux_loss_coeff", 0);
    if (with_aux.aux_loss_coeff > 0) with_aux.aux_map = "plain";
    with_z.z_loss_coeff = (float)golden_real(c, "moe_z_loss_coeff", 0);
    if (!golden_options_done(c) || !golden_register_unit(c)) return;
    compare_loss(c, &with_aux, logits, "aux_loss", "d_aux");
    compare_loss(c, &with_z, logits, "z_loss", "d_z");
}

/* --- sinkhorn ----------------------------------------------------------------------------------------- */

void golden_megatron_sinkhorn(golden_case *c) {
    const golden_tensor *logits = dense(c, "logits", -1, -1), *indices = dense(c, "indices", -1, -1);
    if (!logits || !indices) return;
    moe_layer_desc desc = router_of(golden_dim(logits, 1), golden_dim(indices, 1));
    desc.router_type = "sinkhorn";
    desc.sinkhorn_variant = "megatron";
    desc.sinkhorn_tol = (float)golden_real(c, "tol", 1e-4);
    if (!golden_options_done(c) || !golden_register_unit(c)) return;
    golden_pass pass = pass_of(logits, NULL);
    moe_layer *layer = golden_layer(c, &desc, pass.n_tokens);
    if (!layer || !golden_identity_gate(c, layer) || !golden_forward(c, layer, &train, &pass)) return;
    golden_compare(c, "indices", golden_view_expert(c, &pass), indices->count, GOLDEN_EXACT);
    if (!pass.view.selection) {
        golden_fail(c, "the routing view shows no selection scores");
        return;
    }
    double *norm = golden_alloc(c, (size_t)logits->count, sizeof *norm);
    for (int64_t i = 0; i < logits->count; ++i) norm[i] = (double)((const float *)pass.view.selection)[i];
    golden_compare(c, "norm", norm, logits->count, GOLDEN_VALUE);
}

/* --- given routes: dropping and permuting ------------------------------------------------------------- */

typedef struct given {
    int64_t T, E, K;
    const golden_tensor *map, *probs; /* [T, E]; probs may be NULL */
    moe_call call;                    /* replays them */
} given;

/* K 0: as many as the busiest token has. */
static bool read_given(golden_case *c, int64_t K, given *routes) {
    const golden_tensor *map = dense(c, "routing_map", -1, -1);
    if (!map) return false;
    *routes = (given){golden_dim(map, 0), golden_dim(map, 1), K, map, golden_find(c, "probs"), train};
    const int64_t T = routes->T, E = routes->E;
    if (routes->probs && routes->probs->count != T * E) golden_fail(c, "tensor 'probs' must be [T, E]");
    for (int64_t t = 0; t < T; ++t) {
        int64_t chosen = 0;
        for (int64_t e = 0; e < E; ++e) chosen += map->value[t * E + e] != 0;
        if (K == 0 && chosen > routes->K) routes->K = chosen;
        if (K > 0 && chosen > K) golden_fail(c, "token %lld has more than topk experts", (long long)t);
    }
    if (c->failed) return false;
    int32_t *expert = golden_alloc(c, (size_t)(T * routes->K), sizeof *expert);
    float *weight = golden_alloc(c, (size_t)(T * routes->K), sizeof *weight);
    for (int64_t t = 0; t < T; ++t) {
        int64_t slot = t * routes->K;
        for (int64_t e = 0; e < E; ++e)
            if (map->value[t * E + e] != 0) {
                expert[slot] = (int32_t)e;
                weight[slot++] = routes->probs ? (float)routes->probs->value[t * E + e] : 1;
            }
        while (slot < (t + 1) * routes->K) expert[slot++] = -1;
    }
    routes->call.replay_expert = expert;
    routes->call.replay_weight = weight;
    return true;
}

/* [T, E]: 1 where the route has a row. */
static double *kept_map(golden_case *c, const given *routes, const moe_routing_view *view) {
    double *kept = golden_alloc(c, (size_t)(routes->T * routes->E), sizeof *kept);
    for (int64_t i = 0; i < routes->T * routes->K; ++i)
        if (view->row_of[i] >= 0) kept[i / routes->K * routes->E + view->expert[i]] = 1;
    return kept;
}

static double *sum_columns(golden_case *c, const given *routes, const double *map) {
    double *sum = golden_alloc(c, (size_t)routes->E, sizeof *sum);
    for (int64_t i = 0; i < routes->T * routes->E; ++i) sum[i % routes->E] += map[i] != 0;
    return sum;
}

/* The reference fills a padded expert with tokens of probability 0, by the tie order of a top-k; ours are
 * rows without a token. What is fixed is how many rows each expert gets. */
static void compare_padding(golden_case *c, const given *routes, const moe_layer_desc *desc,
                            const golden_tensor *final_map, double *kept) {
    golden_rows rows = {0};
    moe_layer_desc recording = *desc;
    recording.expert = "recorder";
    if (!golden_register_recorder(c, &rows)) return;
    moe_layer *layer = golden_layer(c, &recording, routes->T);
    golden_pass pass = {
        .n_tokens = routes->T, .d_in = routes->E, .d_out = routes->E, .x = routes->map->value};
    if (!layer || !golden_identity_gate(c, layer) || !golden_forward(c, layer, &routes->call, &pass)) return;
    const double *recorded = sum_columns(c, routes, final_map->value);
    for (int64_t e = 0; e < routes->E; ++e)
        if ((double)(rows.offset[e + 1] - rows.offset[e]) != recorded[e])
            golden_fail(c, "expert %lld has %lld rows with padding, recorded %g", (long long)e,
                        (long long)(rows.offset[e + 1] - rows.offset[e]), recorded[e]);
    for (int64_t i = 0; i < routes->T * routes->E; ++i)
        if (routes->map->value[i] == 0) kept[i] = final_map->value[i];
    golden_note(c, "padding compared by rows an expert");
}

/* Which tokens 'position' keeps hangs on the tie order of a top-k in the reference: ours are the earliest.
 * How many there are is fixed, and that each keeps its probability. */
static void compare_position(golden_case *c, const given *routes, const golden_tensor *final_map,
                             const double *kept, const double *y) {
    const int64_t count = routes->T * routes->E;
    const double *given_probs = routes->probs ? routes->probs->value : routes->map->value;
    double *recorded = golden_alloc(c, (size_t)count, sizeof *recorded);
    double *theirs = golden_alloc(c, (size_t)count, sizeof *theirs);
    int64_t never = 0, other = 0;
    for (int64_t i = 0; i < count; ++i) {
        recorded[i] = final_map->value[i] != 0 && routes->map->value[i] != 0;
        theirs[i] = given_probs[i] * recorded[i];
        never += kept[i] != 0 && routes->map->value[i] == 0;
        other += y[i] != given_probs[i] * kept[i];
    }
    if (never > 0) golden_fail(c, "%lld rows are kept that were never routed", (long long)never);
    if (other > 0) golden_fail(c, "%lld kept probabilities are not those given", (long long)other);
    golden_compare(c, "final_probs", theirs, count, GOLDEN_VALUE);
    const double *mine = sum_columns(c, routes, kept), *counts = sum_columns(c, routes, recorded);
    for (int64_t e = 0; e < routes->E; ++e)
        if (mine[e] != counts[e])
            golden_fail(c, "expert %lld keeps %g, recorded %g", (long long)e, mine[e], counts[e]);
    ++c->n_compared;
    golden_note(c, "position: counts only, as the file says of itself");
}

/* Equal probabilities at the edge of an expert's capacity (K = 1 makes all of them 1): which of them stay is
 * the tie order of the reference's top-k, ours is the lower token. Their rows are taken from the record,
 * where it keeps as many of just that probability. */
static void settle_ties(golden_case *c, const given *routes, const golden_tensor *final_map, double *kept,
                        double *y) {
    int64_t n_ties = 0;
    for (int64_t e = 0; routes->probs && e < routes->E; ++e) {
        double edge = INFINITY; /* smallest probability that we keep */
        int64_t mine = 0, theirs = 0;
        for (int64_t i = e; i < routes->T * routes->E; i += routes->E)
            if (kept[i] != 0) edge = fmin(edge, routes->probs->value[i]);
        for (int64_t i = e; i < routes->T * routes->E; i += routes->E) {
            const bool tied = routes->map->value[i] != 0 && routes->probs->value[i] == edge;
            mine += tied && kept[i] != 0;
            theirs += tied && final_map->value[i] != 0;
        }
        for (int64_t i = e; mine == theirs && i < routes->T * routes->E; i += routes->E) {
            if (routes->map->value[i] == 0 || routes->probs->value[i] != edge) continue;
            n_ties += kept[i] != final_map->value[i];
            kept[i] = final_map->value[i];
            y[i] = kept[i] * edge;
        }
    }
    if (n_ties > 0)
        golden_note(c, "%lld rows of equal probability in the reference's order", (long long)n_ties);
}

void golden_megatron_dropping(golden_case *c) {
    given routes;
    const int64_t K = golden_int_required(c, "topk");
    const char *policy = golden_choice(c, "drop_policy", "probs", drop_policies);
    const bool pad = golden_bool(c, "pad", false), by_position = strcmp(policy, "position") == 0;
    const float factor = (float)golden_real(c, "capacity_factor", 1);
    golden_skip(c, "note");
    if (!golden_options_done(c) || !read_given(c, K, &routes) || !golden_register_unit(c)) return;
    const golden_tensor *final_map = dense(c, "final_map", routes.T, routes.E);
    moe_layer_desc desc = router_of(routes.E, K);
    desc.capacity_factor = factor;
    desc.capacity_formula = "megatron";
    desc.drop_policy = policy;
    desc.pad_to_capacity = pad;
    moe_layer *layer = golden_layer(c, &desc, routes.T);
    golden_pass pass = {.n_tokens = routes.T, .d_in = routes.E, .d_out = routes.E, .x = routes.map->value};
    if (!layer || !golden_identity_gate(c, layer) || !golden_forward(c, layer, &routes.call, &pass)) return;
    double *kept = kept_map(c, &routes, &pass.view);
    if (!by_position) settle_ties(c, &routes, final_map, kept, pass.y);
    if (!by_position) golden_compare(c, "final_probs", pass.y, routes.T * routes.E, GOLDEN_VALUE);
    if (by_position) compare_position(c, &routes, final_map, kept, pass.y);
    if (pad) compare_padding(c, &routes, &desc, final_map, kept);
    if (!by_position) golden_compare(c, "final_map", kept, routes.T * routes.E, GOLDEN_EXACT);
}

void golden_megatron_permute(golden_case *c) {
    given routes;
    golden_rows rows = {0};
    const golden_tensor *x = dense(c, "x", -1, -1);
    if (!x || !golden_options_done(c) || !read_given(c, 0, &routes) || !golden_register_recorder(c, &rows))
        return;
    moe_layer_desc desc = router_of(routes.E, routes.K);
    desc.d_model = (int32_t)golden_dim(x, 1);
    desc.expert = "recorder";
    moe_layer *layer = golden_layer(c, &desc, routes.T);
    if (!layer) return;
    golden_zero_param(c, layer, "gate.weight");
    golden_pass pass = pass_of(x, NULL);
    if (!golden_forward(c, layer, &routes.call, &pass)) return;
    double *token = golden_alloc(c, (size_t)rows.n_rows, sizeof *token);
    double *prob = golden_alloc(c, (size_t)rows.n_rows, sizeof *prob);
    for (int64_t i = 0; i < routes.T * routes.K; ++i) {
        const int32_t r = pass.view.row_of[i];
        if (r < 0) continue;
        token[r] = (double)(i / routes.K);
        prob[r] = (double)((const float *)pass.view.weight)[i];
    }
    golden_compare(c, "permuted", rows.in, rows.n_rows * rows.width, GOLDEN_VALUE);
    golden_compare(c, "sorted_indices", token, rows.n_rows, GOLDEN_EXACT);
    golden_compare(c, "permuted_probs", prob, rows.n_rows, GOLDEN_VALUE);
}
