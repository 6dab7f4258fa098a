/* golden_automodel.c: recorded runs of NeMo Automodel's MoE.
 * x, out [.., d]; indices, weights [T, K] of the gate alone, which knows no token mask; experts [E, d, 2n].
 * Source: NeMo Automodel, nemo_automodel/components/moe as of 2026-08.
 */
#include "golden.h"

#include <math.h>
#include <string.h>

static const char *const scores[] = {
    "softmax",           "softmax", "softmax_with_bias", "softmax",      "sigmoid", "sigmoid",
    "sigmoid_with_bias", "sigmoid", "sqrtsoftplus",      "sqrtsoftplus", NULL};
static const char *const activations[] = {"swiglu",      "swiglu",      "swigluoai", "swigluoai",
                                          "quick_geglu", "quick_geglu", "geglu",     "geglu",
                                          "relu2",       "relu2",       NULL};
static const golden_param params[] = {
    {"gate.weight",         "gate_weight",                     GOLDEN_AS_IS     },
    {"gate.bias",           "gate_bias",                       GOLDEN_AS_IS     },
    {"experts.up.weight",   "experts_gate_and_up_projs",       GOLDEN_AS_IS     },
    {"experts.down.weight", "experts_down_projs",              GOLDEN_AS_IS     },
    {"experts.up.bias",     "experts_gate_up_proj_bias",       GOLDEN_AS_IS     },
    {"experts.down.bias",   "experts_down_proj_bias",          GOLDEN_AS_IS     },
    {"latent.in.weight",    "fc1_latent_proj_weight",          GOLDEN_TRANSPOSED},
    {"latent.out.weight",   "fc2_latent_proj_weight",          GOLDEN_TRANSPOSED},
    {"latent.in.bias",      "fc1_latent_proj_bias",            GOLDEN_AS_IS     },
    {"latent.out.bias",     "fc2_latent_proj_bias",            GOLDEN_AS_IS     },
    {"shared_gate.weight",  "shared_expert_gate_weight",       GOLDEN_AS_IS     },
    {"shared.down.weight",  "shared_experts_down_proj_weight", GOLDEN_TRANSPOSED},
    {"shared.down.bias",    "shared_experts_down_proj_bias",   GOLDEN_AS_IS     },
};
/* A gated MLP keeps gate and up apart; ours are the halves of one parameter. An ungated one has no gate. */
static const golden_param gated_shared[] = {
    {"shared.up.weight", "shared_experts_gate_proj_weight", GOLDEN_TRANSPOSED | GOLDEN_FIRST_HALF },
    {"shared.up.weight", "shared_experts_up_proj_weight",   GOLDEN_TRANSPOSED | GOLDEN_SECOND_HALF},
    {"shared.up.bias",   "shared_experts_gate_proj_bias",   GOLDEN_FIRST_HALF                     },
    {"shared.up.bias",   "shared_experts_up_proj_bias",     GOLDEN_SECOND_HALF                    },
};
static const golden_param plain_shared[] = {
    {"shared.up.weight", "shared_experts_up_proj_weight", GOLDEN_TRANSPOSED},
    {"shared.up.bias",   "shared_experts_up_proj_bias",   GOLDEN_AS_IS     },
};
static const golden_param bias_only[] = {
    {"gate.selection_bias", "buffer_gate_e_score_correction_bias", GOLDEN_AS_IS},
};

#define COUNT(table) (sizeof(table) / sizeof *(table))

typedef struct automodel {
    moe_layer_desc desc;
    const char *score_func; /* as recorded */
    bool fake, late;        /* late: softmax over the selected */
    bool has_bias;          /* the correction bias exists, whether or not it is used */
    bool unsorted;          /* the reference's top-k leaves its picks in any order */
    bool zero_mask;         /* rejected groups keep a score of 0 in the reference */
    double update_rate;
    moe_call call;
    golden_pass pass;
} automodel;

static const char *recorded_score(golden_case *c) {
    const char *name = json_string_value(json_object_get(c->option, "score_func"));
    char *copy = golden_alloc(c, name ? strlen(name) : 0, 1);
    return name ? strcpy(copy, name) : copy;
}

static void read_experts(golden_case *c, automodel *run) {
    moe_layer_desc *d = &run->desc;
    d->d_model = (int32_t)golden_int_required(c, "dim");
    d->expert_hidden_size = (int32_t)golden_int_required(c, "moe_inter_dim");
    d->latent_size = (int32_t)golden_int(c, "moe_latent_size", 0);
    d->expert_bias = golden_bool(c, "expert_bias", false);
    d->activation = golden_choice(c, "expert_activation", "swiglu", activations);
    double alpha = golden_real(c, "activation_alpha", 1.702), limit = golden_real(c, "activation_limit", 7);
    double swiglu_limit = golden_real(c, "swiglu_limit", 0);
    if (strcmp(d->activation, "swigluoai") == 0 || strcmp(d->activation, "quick_geglu") == 0) {
        d->activation_alpha = (float)alpha;
        d->activation_limit = limit > 0 ? (float)limit : 1e6f; /* 0 is no limit there, the default here */
    } else if (strcmp(d->activation, "swiglu") == 0)
        d->activation_limit = (float)swiglu_limit;
    d->weight_apply = golden_bool(c, "apply_router_weight_after_down", false) ? "output" : "hidden";
    d->num_shared_experts = (int32_t)golden_int(c, "n_shared_experts", 0);
    int64_t shared = golden_int(c, "shared_expert_inter_dim", d->expert_hidden_size);
    const char *shared_activation = golden_choice(c, "shared_expert_activation", "swiglu", activations);
    bool shared_gate = golden_bool(c, "shared_expert_gate", false);
    if (d->num_shared_experts == 0) return;
    d->shared_expert_hidden_size = (int32_t)shared;
    d->shared_expert_activation = shared_activation;
    d->shared_expert_gate = shared_gate;
}

static void read_groups(golden_case *c, automodel *run) {
    const int64_t groups = golden_int(c, "n_expert_groups", 1), kept = golden_int(c, "n_limited_groups", 1);
    const bool ignored =
        strcmp(run->score_func, "softmax") == 0 || strcmp(run->score_func, "sqrtsoftplus") == 0;
    if (groups <= 1 || ignored) return;
    run->desc.num_groups = (int32_t)groups;
    run->desc.group_top_k = (int32_t)kept;
    run->desc.group_score = strcmp(run->score_func, "sigmoid") == 0 && !run->has_bias ? "max" : "top2_sum";
    run->zero_mask = strcmp(run->score_func, "sigmoid_with_bias") != 0;
}

/* What the gate computes with its correction bias: softmax leaves it alone. */
static void read_bias(golden_case *c, automodel *run) {
    moe_layer_desc *d = &run->desc;
    run->update_rate = golden_real(c, "gate_bias_update_factor", 0);
    bool forced = golden_bool(c, "force_e_score_correction_bias", false);
    run->has_bias = run->update_rate > 0 || forced || golden_find(c, bias_only[0].recorded);
    bool in_weights = golden_bool(c, "router_weight_uses_score_correction_bias", false);
    if (!run->has_bias || strcmp(run->score_func, "softmax") == 0) return;
    d->selection_bias = true;
    d->selection_bias_update_rate = (float)run->update_rate;
    d->selection_bias_in_weights = in_weights && strcmp(run->score_func, "sigmoid") == 0;
}

static void read_gate(golden_case *c, automodel *run) {
    moe_layer_desc *d = &run->desc;
    run->score_func = recorded_score(c);
    d->score_function = golden_choice(c, "score_func", "", scores);
    bool before = golden_bool(c, "softmax_before_topk", false);
    run->late = strcmp(run->score_func, "softmax") == 0 && !before;
    run->unsorted = strcmp(run->score_func, "sigmoid_with_bias") == 0;
    d->score_before_topk = !run->late;
    d->num_experts = (int32_t)golden_int_required(c, "n_routed_experts");
    d->top_k = (int32_t)golden_int_required(c, "n_activated_experts");
    bool norm = golden_bool(c, "norm_topk_prob", false) && d->top_k > 1;
    d->norm_topk_prob = norm && !run->late; /* scored late, weights sum to 1 already */
    d->routed_scaling_factor = (float)golden_real(c, "route_scale", 1);
    d->router_bias = golden_bool(c, "router_bias", false);
    d->router_frozen = !golden_bool(c, "train_gate", true);
    read_bias(c, run);
    read_groups(c, run);
    d->aux_loss_coeff = (float)golden_real(c, "aux_loss_coeff", 0);
    if (d->aux_loss_coeff > 0 && !norm && strcmp(d->score_function, "softmax") != 0) d->aux_scores = "raw";
}

/* The fake gate replaces the router whole. */
static void read_fake(golden_case *c, automodel *run) {
    run->fake = json_is_number(json_object_get(c->option, "fake_gate_noise"));
    float noise = (float)golden_real(c, "fake_gate_noise", 0);
    int32_t skip = (int32_t)golden_int(c, "skip_first_n_experts", 0);
    if (!run->fake) return;
    moe_layer_desc *d = &run->desc, read = *d;
    *d = (moe_layer_desc){.size = sizeof *d,
                          .d_model = read.d_model,
                          .num_experts = read.num_experts,
                          .top_k = read.top_k,
                          .expert_hidden_size = read.expert_hidden_size,
                          .latent_size = read.latent_size,
                          .expert_bias = read.expert_bias,
                          .activation = read.activation,
                          .activation_alpha = read.activation_alpha,
                          .activation_limit = read.activation_limit,
                          .weight_apply = read.weight_apply,
                          .num_shared_experts = read.num_shared_experts,
                          .shared_expert_hidden_size = read.shared_expert_hidden_size,
                          .shared_expert_activation = read.shared_expert_activation,
                          .shared_expert_gate = read.shared_expert_gate,
                          .router_type = "balanced",
                          .fake_noise = noise,
                          .fake_skip_first = skip};
}

static void read_options(golden_case *c, automodel *run) {
    run->desc.size = sizeof run->desc;
    read_gate(c, run);
    read_experts(c, run);
    read_fake(c, run);
    golden_skip(c, "note");      /* the objective: sum(out*dout) + aux_loss_coeff * aux_loss */
    golden_skip(c, "inter_dim"); /* of dense layers */
    golden_skip(c, "dtype");
    golden_skip(c, "enable_routing_replay");
    golden_skip(c, "router_weights_fp32"); /* all is fp32 in these files */
    golden_skip(c, "gate_precision");
}

static bool read_tensors(golden_case *c, automodel *run) {
    const int64_t d = run->desc.d_model;
    const golden_tensor *x = golden_find(c, "x"), *dout = golden_find(c, "dout");
    if (!x || x->count % d != 0 || (dout && dout->count != x->count)) {
        golden_fail(c, "tensors 'x' and 'dout' must be [.., dim]");
        return false;
    }
    run->pass = (golden_pass){
        .n_tokens = x->count / d, .d_in = d, .d_out = d, .x = x->value, .dy = dout ? dout->value : NULL};
    const golden_tensor *mask = golden_find(c, "token_mask");
    run->call = (moe_call){.size = sizeof run->call, .mode = MOE_TRAIN};
    if (mask && mask->count != run->pass.n_tokens) golden_fail(c, "tensor 'token_mask' must be [T]");
    if (mask && !c->failed) run->call.token_mask = golden_bytes(c, mask);
    return !c->failed;
}

/* --- rejected groups ---------------------------------------------------------------------------------- */

/* What the reference ranks for one token: biased scores, times 0 in rejected groups. */
static void zero_masked_scores(golden_case *c, const automodel *run, int64_t t, double *z) {
    const moe_layer_desc *d = &run->desc;
    const golden_tensor *gate = golden_find(c, "gate_weight"), *gate_bias = golden_find(c, "gate_bias");
    const golden_tensor *bias = golden_find(c, bias_only[0].recorded);
    const int32_t E = d->num_experts, each = E / d->num_groups;
    double sum = 0;
    for (int32_t e = 0; e < E; ++e) {
        double logit = gate_bias ? gate_bias->value[e] : 0;
        for (int64_t j = 0; j < d->d_model; ++j)
            logit += run->pass.x[t * d->d_model + j] * gate->value[e * d->d_model + j];
        z[e] = strcmp(d->score_function, "softmax") == 0 ? exp(logit) : 1 / (1 + exp(-logit));
        sum += exp(logit);
    }
    for (int32_t e = 0; e < E; ++e) {
        if (strcmp(d->score_function, "softmax") == 0) z[e] /= sum;
        if (bias) z[e] += bias->value[e];
    }
    double *group = golden_alloc(c, (size_t)d->num_groups, sizeof *group);
    for (int32_t g = 0; g < d->num_groups; ++g) {
        double first = -INFINITY, second = -INFINITY;
        for (int32_t e = g * each; e < (g + 1) * each; ++e) {
            second = fmax(second, fmin(first, z[e]));
            first = fmax(first, z[e]);
        }
        group[g] = strcmp(d->group_score, "max") == 0 || each < 2 ? first : first + second;
    }
    for (int32_t g = 0; g < d->num_groups; ++g) {
        int32_t better = 0;
        for (int32_t other = 0; other < d->num_groups; ++other) better += group[other] > group[g];
        for (int32_t e = g * each; better >= d->group_top_k && e < (g + 1) * each; ++e) z[e] = 0;
    }
}

/* Whether the K recorded experts are the best of those scores, in order. */
static bool are_best(const automodel *run, const double *z, const double *recorded) {
    double last = INFINITY;
    for (int64_t k = 0; k < run->desc.top_k; ++k) {
        const double mine = z[(int32_t)recorded[k]];
        int64_t above = 0;
        for (int32_t e = 0; e < run->desc.num_experts; ++e) above += z[e] > mine + 1e-6;
        if (above > k || mine > last + 1e-6) return false;
        last = mine;
    }
    return true;
}

/* Turns a token's picks and weights into the recorded order, where they are the same experts. */
static void follow_order(const double *recorded, int64_t K, double *expert, double *weight) {
    for (int64_t k = 0; k < K; ++k)
        for (int64_t j = k + 1; j < K && expert[k] != recorded[k]; ++j) {
            if (expert[j] != recorded[k]) continue;
            const double e = expert[j], w = weight[j];
            expert[j] = expert[k], weight[j] = weight[k];
            expert[k] = e, weight[k] = w;
        }
}

/* The reference multiplies the scores of rejected groups by 0, so they beat negative biased scores of the
 * kept ones (pitfall 15 of the notes); moekit masks by minus infinity. Where that explains the recorded
 * experts of a token they are replayed. Returns [T, K] to replay, or NULL where nothing differs. */
static const int32_t *compare_indices(golden_case *c, automodel *run, double *weight) {
    const int64_t T = run->pass.n_tokens, K = run->desc.top_k;
    const golden_tensor *recorded = golden_find(c, "indices");
    if (!recorded) return NULL;
    double *mine = golden_view_expert(c, &run->pass);
    double *z = golden_alloc(c, (size_t)run->desc.num_experts, sizeof *z);
    int64_t n_replayed = 0;
    for (int64_t t = 0; run->unsorted && recorded->count == T * K && t < T; ++t)
        follow_order(&recorded->value[t * K], K, &mine[t * K], &weight[t * K]);
    for (int64_t t = 0; run->zero_mask && recorded->count == T * K && t < T; ++t) {
        if (memcmp(&mine[t * K], &recorded->value[t * K], (size_t)K * sizeof *mine) == 0) continue;
        zero_masked_scores(c, run, t, z);
        if (!are_best(run, z, &recorded->value[t * K])) continue;
        memcpy(&mine[t * K], &recorded->value[t * K], (size_t)K * sizeof *mine);
        ++n_replayed;
    }
    golden_compare(c, "indices", mine, T * K, GOLDEN_EXACT);
    if (n_replayed == 0 || c->failed) return NULL;
    golden_note(c, "%lld of %lld tokens replayed: the reference's zero mask chose from a rejected group",
                (long long)n_replayed, (long long)T);
    int32_t *replay = golden_alloc(c, (size_t)(T * K), sizeof *replay);
    for (int64_t i = 0; i < T * K; ++i) replay[i] = (int32_t)mine[i];
    return replay;
}

/* The noisy fake gate draws from the reference's own generator, and the draws are not recorded: its
 * indices and weights become inputs, and are held against what the method allows. */
static void replay_noisy(golden_case *c, automodel *run) {
    const int64_t T = run->pass.n_tokens, K = run->desc.top_k;
    const golden_tensor *indices = golden_need(c, "indices", 2, (int64_t[]){T, K});
    const golden_tensor *weights = golden_need(c, "weights", 2, (int64_t[]){T, K});
    if (!indices || !weights) return;
    const double least = (1 - (double)run->desc.fake_noise) / (double)K;
    int32_t *expert = golden_alloc(c, (size_t)(T * K), sizeof *expert);
    for (int64_t i = 0; i < T * K; ++i) {
        expert[i] = (int32_t)indices->value[i];
        if (expert[i] < run->desc.fake_skip_first || expert[i] >= run->desc.num_experts ||
            weights->value[i] < least - 1e-6)
            golden_fail(c, "slot %lld: expert %d, weight %g are not of a noisy fake gate", (long long)i,
                        expert[i], weights->value[i]);
    }
    run->call.replay_expert = expert;
    run->call.replay_weight = golden_floats(c, weights);
    golden_note(c, "indices and weights replayed: the draws of the noisy fake gate are not recorded");
}

/* The gate alone, of all tokens: a masked token has no route in the layer, but has one in the file. */
static void compare_gate(golden_case *c, automodel *run, moe_layer *layer) {
    if (run->desc.fake_noise > 0) {
        replay_noisy(c, run);
        return;
    }
    moe_call call = {.size = sizeof call};
    if (!golden_forward(c, layer, &call, &run->pass)) return;
    double *weight = golden_view_weight(c, &run->pass);
    run->call.replay_expert = compare_indices(c, run, weight);
    call.replay_expert = run->call.replay_expert;
    if (call.replay_expert) {
        if (!golden_forward(c, layer, &call, &run->pass)) return;
        weight = golden_view_weight(c, &run->pass);
    }
    golden_compare(c, "weights", weight, run->pass.n_tokens * run->desc.top_k, GOLDEN_VALUE);
}

/* The update happens whether or not the bias is used, so a layer whose score ignores it lends none. */
static void compare_bias(golden_case *c, automodel *run, moe_layer *layer) {
    const int64_t *counts = NULL; /* the layer's own */
    if (c->failed || run->update_rate <= 0) return;
    if (!run->desc.selection_bias) {
        const moe_layer_desc desc = {.size = sizeof desc,
                                     .d_model = run->desc.d_model,
                                     .num_experts = run->desc.num_experts,
                                     .top_k = run->desc.top_k,
                                     .expert_hidden_size = 1,
                                     .score_function = "sigmoid",
                                     .score_before_topk = true,
                                     .selection_bias = true,
                                     .selection_bias_update_rate = (float)run->update_rate};
        layer = golden_layer(c, &desc, 1);
        if (!layer) return;
        golden_set_params(c, layer, bias_only, COUNT(bias_only));
        counts = run->pass.view.routed;
    }
    moe_param bias = {.size = sizeof bias};
    if (moe_layer_end_step(layer, counts) != MOE_OK ||
        moe_layer_param_by_name(layer, "gate.selection_bias", &bias) != MOE_OK) {
        golden_fail(c, "bias update: %s", moe_ctx_error(c->ctx));
        return;
    }
    const float *updated = golden_fetch(c, bias.value, (size_t)bias.dim[0] * sizeof *updated);
    double *value = golden_alloc(c, (size_t)bias.dim[0], sizeof *value);
    for (int64_t e = 0; e < bias.dim[0]; ++e) value[e] = (double)updated[e];
    golden_compare(c, "bias_after_update", value, bias.dim[0], GOLDEN_VALUE);
}

static void compare_layer(golden_case *c, automodel *run, moe_layer *layer, const golden_param *shared,
                          size_t n_shared) {
    const int64_t count = run->pass.n_tokens * run->desc.d_model;
    if (!golden_forward(c, layer, &run->call, &run->pass)) return;
    golden_compare(c, "out", run->pass.y, count, GOLDEN_VALUE);
    golden_compare_one(c, "aux_loss", run->pass.stats.aux_loss, GOLDEN_VALUE);
    golden_compare(c, "expert_load", golden_counts(c, run->pass.view.routed, run->desc.num_experts),
                   run->desc.num_experts, GOLDEN_EXACT);
    if (run->pass.dy && golden_backward(c, layer, &run->pass)) {
        golden_compare(c, "d_x", run->pass.dx, count, GOLDEN_GRADIENT);
        golden_compare_grads(c, layer, params, COUNT(params));
        golden_compare_grads(c, layer, shared, n_shared);
    }
    compare_bias(c, run, layer);
}

void golden_automodel(golden_case *c) {
    automodel run = {0};
    read_options(c, &run);
    if (!golden_options_done(c) || !read_tensors(c, &run)) return;
    const bool gated = golden_find(c, "shared_experts_gate_proj_weight");
    const golden_param *shared = gated ? gated_shared : plain_shared;
    const size_t n_shared = gated ? COUNT(gated_shared) : COUNT(plain_shared);
    moe_layer *layer = golden_layer(c, &run.desc, run.pass.n_tokens);
    if (!layer || !golden_set_params(c, layer, params, COUNT(params))) return;
    golden_set_params(c, layer, shared, n_shared);
    if (run.desc.selection_bias) golden_set_params(c, layer, bias_only, COUNT(bias_only));
    if (run.fake) golden_zero_param(c, layer, "gate.weight"); /* the fake gate has none */
    compare_gate(c, &run, layer);
    compare_layer(c, &run, layer, shared, n_shared);
}
