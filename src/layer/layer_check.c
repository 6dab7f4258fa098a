/* layer_check.c: whether the settings of a layer go together. A setting that would be ignored is refused.
 * Each rule: a setting is in use, what it needs is not there, and the text says what would be right.
 * Source: several of the reference systems ignore such settings silently; this list names each case.
 */
#include "experts/activation.h"
#include "experts/experts.h"
#include "layer/layer_desc.h"
#include "route/route.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

typedef struct checker {
    moe_error *error;
    moe_status status; /* of the first rule broken */
} checker;

static void rule(checker *c, bool used, bool right, const char *option, const char *reason) {
    if (c->status == MOE_OK && used && !right)
        c->status = moei_error_set(c->error, MOE_ERR_ARGUMENT, "%s: %s", option, reason);
}

static void check_shape(checker *c, const moe_layer_desc *d) {
    const bool routed = d->num_experts > 0, shared = d->num_shared_experts > 0;
    char outside[64], unknown[64];
    snprintf(outside, sizeof outside, "%d is outside 1 .. num_experts = %d", d->top_k, d->num_experts);
    snprintf(unknown, sizeof unknown, "%d is not MOE_F32, MOE_F64 or MOE_BF16", (int)d->dtype);
    rule(c, routed, d->top_k >= 1 && d->top_k <= d->num_experts, "top_k", outside);
    const bool all_kinds = *d->expert_kinds;
    rule(c, true, d->dtype == MOE_F32 || d->dtype == MOE_F64 || d->dtype == MOE_BF16, "dtype", unknown);
    rule(c, true, d->d_model > 0, "d_model", "0; a layer needs a width of at least 1");
    rule(c, true, routed || shared, "num_experts",
         "0 without shared experts; set num_experts or num_shared_experts");
    rule(c, routed && !all_kinds && !moei_experts_plain(d), d->expert_hidden_size > 0, "expert_hidden_size",
         "0; an expert needs at least 1");
    rule(c, shared, d->shared_expert_hidden_size > 0, "shared_expert_hidden_size",
         "0; a shared expert needs at least 1");
    rule(c, d->shared_expert_hidden_size > 0, shared, "shared_expert_hidden_size",
         "needs num_shared_experts");
    rule(c, shared, (int64_t)d->num_shared_experts * d->shared_expert_hidden_size <= 1 << 24,
         "shared_expert_hidden_size", "times num_shared_experts is above 16777216 columns");
    rule(c, *d->shared_expert_activation, shared, "shared_expert_activation", "needs num_shared_experts");
    rule(c, d->shared_expert_gate, shared, "shared_expert_gate", "needs num_shared_experts");
    rule(c, !moei_is(d->expert, "ffn"), routed, "expert", "is of the routed experts, and num_experts is 0");
    rule(c, d->top_k > 0, routed, "top_k", "is of the routed experts, and num_experts is 0");
    rule(c, d->top_k_min > 0, routed, "top_k_min", "is of the routed experts, and num_experts is 0");
    rule(c, d->num_groups_outer > 0, routed, "num_groups_outer",
         "is of the routed experts, and num_experts is 0");
    rule(c, d->latent_size > 0, routed, "latent_size", "is of the routed experts, and num_experts is 0");
    rule(c, d->output_bias, routed, "output_bias", "is of the routed experts, and num_experts is 0");
    rule(c, d->dropout > 0, routed, "dropout", "is of the routed experts, and num_experts is 0");
    rule(c, all_kinds, routed, "expert_kinds", "is of the routed experts, and num_experts is 0");
    rule(c, !moei_is(d->weight_apply, "output"), routed, "weight_apply",
         "is of the routed experts, and num_experts is 0");
    rule(c, moei_is(d->weight_apply, "input"), d->top_k == 1, "weight_apply",
         "input needs top_k 1, or num_experts 1: with more, a token has no one weight");
}

/* Fields that differ from their defaults, of rows from `first` up to `end` (offsets). */
static void rule_defaults(checker *c, const moe_layer_desc *d, size_t first, size_t end, const char *reason) {
    const moei_option_table table = moei_layer_option_table();
    for (size_t i = 0; i < table.count; ++i) {
        const moe_option *row = &table.row[i];
        char text[64];
        if (row->offset < first || row->offset >= end) continue;
        moei_option_get(row, d, text, sizeof text);
        rule(c, strcmp(text, row->initial) != 0, false, row->key, reason);
    }
}

/* Identity and zero have no hidden layer: what describes one has no use, unless a shared expert has one. */
static void check_plain(checker *c, const moe_layer_desc *d) {
    static const char reason[] =
        "needs expert ffn, a width in expert_kinds, or num_shared_experts: identity and zero have no hidden "
        "layer";
    if (!moei_experts_plain(d)) return;
    rule(c, d->dropout > 0, false, "dropout",
         "needs expert ffn or a width in expert_kinds: identity and zero have no hidden layer");
    if (d->num_shared_experts > 0) return;
    rule_defaults(c, d, offsetof(moe_layer_desc, activation), offsetof(moe_layer_desc, expert_bias), reason);
    rule(c, d->expert_bias, d->latent_size > 0, "expert_bias", reason);
    rule(c, d->expert_up_bias, false, "expert_up_bias", reason);
    rule(c, !moei_is(d->init_scheme, "normal"), false, "init_scheme", reason);
    rule(c, d->init_std_down != d->init_std, false, "init_std_down", reason);
    rule(c, !moei_is(d->recompute, "none"), false, "recompute", reason);
    rule(c, !moei_is(d->saved_dtype, "auto"), false, "saved_dtype", reason);
}

static void check_activation(checker *c, const moe_layer_desc *d) {
    const moei_activation *act = moei_activation_find(d->activation), *shared = act;
    if (d->num_shared_experts > 0) shared = moei_activation_find(d->shared_expert_activation);
    rule(c, true, shared, "shared_expert_activation", "is not one of those of activation");
    if (!shared) shared = act;
    const bool only_shared = d->num_experts == 0 || moei_experts_plain(d);
    rule(c, only_shared && !moei_is(d->activation, "swiglu"), act == shared, "activation",
         "only the shared experts have one, and shared_expert_activation tells it");
    if (only_shared) act = shared;
    const bool gated = moe_act_gated(act->act) || moe_act_gated(shared->act);
    const bool alpha = act->alpha > 0 || shared->alpha > 0;
    rule(c, !moei_is(d->glu_layout, "auto"), gated, "glu_layout",
         "needs a gated activation or shared_expert_activation: only they have gate and up columns");
    rule(c, d->activation_limit != 0, gated, "activation_limit",
         "needs a gated activation or shared_expert_activation: it clamps gate and up");
    rule(c, d->glu_linear_offset != 0, gated, "glu_linear_offset",
         "needs a gated activation or shared_expert_activation: it is added to up");
    rule(c, d->activation_alpha != 0, alpha, "activation_alpha",
         "needs activation or shared_expert_activation quick_geglu, quick_gelu or swigluoai");
    rule(c, d->expert_up_bias, !d->expert_bias, "expert_up_bias",
         "expert_bias already gives biases to both projections; set one of them");
}

static void check_kind(checker *c, const moe_layer_desc *d, const char *option, const moei_kind *kind) {
    char outside[96];
    snprintf(outside, sizeof outside, "a width of %s is outside 1 .. %d", kind->name, MOEI_KIND_WIDTH_MAX);
    rule(c, kind->is_width, kind->width >= 1 && kind->width <= MOEI_KIND_WIDTH_MAX, option, outside);
    rule(c, moei_is(kind->name, "identity"), moei_expert_in(d) == moei_expert_out(d), option,
         "identity gives back what it reads; set output_size to d_model, or a latent_size");
}

/* Whether there are as many kinds as experts, each able to stand in this layer. */
static void check_kinds(checker *c, const moe_layer_desc *d) {
    const char *list = d->expert_kinds;
    moei_kind kind = {.width = 1};
    int64_t n = 0;
    if (!*list) {
        snprintf(kind.name, sizeof kind.name, "%s", d->expert);
        check_kind(c, d, "expert", &kind);
        return;
    }
    for (; moei_kind_next(&list, &kind); n += kind.count) check_kind(c, d, "expert_kinds", &kind);
    char count[400];
    snprintf(
        count, sizeof count,
        "'%.200s' must have one entry for each of the %d experts of num_experts, 8x64 counting as 8, and "
        "has %lld",
        d->expert_kinds, d->num_experts, (long long)n);
    rule(c, true, !*list && n == d->num_experts, "expert_kinds", count);
}

static void check_experts(checker *c, const moe_layer_desc *d) {
    const bool ffn = moei_is(d->expert, "ffn"), mixed = *d->expert_kinds;
    const bool normal = moei_is(d->init_scheme, "normal"),
               megatron = moei_is(d->init_scheme, "megatron_scaled");
    const bool sigma =
        moei_is(d->init_scheme, "sigma_moe") || moei_is(d->router_init, "normal_fan_in_renorm");
    rule(c, mixed, ffn, "expert_kinds", "names each expert itself; leave expert at ffn");
    rule(c, d->dropout > 0, ffn, "dropout", "is built into ffn experts only; set expert ffn");
    rule(c, !moei_is(d->recompute, "none"), ffn || d->num_shared_experts > 0, "recompute",
         "is built into ffn experts only; set expert ffn or num_shared_experts");
    rule(c, !moei_is(d->saved_dtype, "auto"), ffn || d->num_shared_experts > 0, "saved_dtype",
         "is built into ffn experts only; set expert ffn or num_shared_experts");
    rule(c, !moei_is(d->saved_dtype, "auto"), moei_is(d->recompute, "none"), "saved_dtype",
         "recompute layer saves nothing; set recompute none");
    rule(c, d->expert_up_bias, ffn || d->num_shared_experts > 0, "expert_up_bias",
         "is built into ffn experts only; set expert ffn or num_shared_experts");
    rule(
        c, d->init_std != 0, moei_draws_by_std(d), "init_std",
        "draws nothing here: needs router_init normal, init_scheme normal or megatron_scaled, latent_size or "
        "shared_expert_gate");
    rule(c, megatron, d->init_std_down != 0, "init_scheme",
         "megatron_scaled needs init_std_down: init_std / sqrt(2 * layers) of the whole model");
    rule(c, d->init_std_down != 0, normal || megatron, "init_std_down",
         "is not used by this init_scheme; it has widths of its own");
    rule(c, d->init_std_scale != 0, sigma, "init_std_scale",
         "needs init_scheme sigma_moe or router_init normal_fan_in_renorm");
    rule(c, !moei_is(d->router_init, "normal"), d->num_experts > 0, "router_init",
         "there is no router: num_experts is 0");
    rule(c, moei_is(d->router_init, "normal_fan_in_renorm"), d->num_groups_outer == 0, "router_init",
         "normal_fan_in_renorm needs one level: num_groups_outer 0");
}

static void check_scores(checker *c, const moe_layer_desc *d) {
    const bool softmax = moei_is(d->score_function, "softmax"), late = softmax && !d->score_before_topk;
    const bool by_unit = !moei_is(d->routing_unit, "token"), by_task = moei_is(d->routing_unit, "task");
    rule(c, d->norm_topk_prob, !late, "norm_topk_prob",
         "weights scored after the selection already sum to 1; set score_before_topk or leave "
         "norm_topk_prob off");
    rule(c, moei_is(d->router_dtype, "f32") || moei_is(d->router_dtype, "fp32"), d->dtype != MOE_F64,
         "router_dtype", "f32 is narrower than this f64 layer; leave it at auto");
    rule(c, by_unit, !moei_is(d->router_type, "balanced"), "routing_unit",
         "router_type balanced hands out experts by the token; needs routing_unit token");
    rule(c, by_unit, !moei_router_kind_of(d).by_expert, "routing_unit",
         "router_type expert_choice lets experts take single tokens; needs routing_unit token");
    rule(c, by_task, d->num_tasks > 0, "routing_unit", "task needs num_tasks");
    rule(c, d->num_tasks > 0, by_task, "num_tasks", "needs routing_unit task");
    rule(c, d->input_jitter_eps > 0, moei_is(d->routing_unit, "token"), "input_jitter_eps",
         "jitters tokens; needs routing_unit token");
    rule(c, d->selection_bias, !late, "selection_bias",
         "softmax after the selection has no scores to select by; set score_before_topk, or another "
         "score_function");
    rule(c, d->selection_bias_update_rate > 0, d->selection_bias, "selection_bias_update_rate",
         "needs selection_bias");
    rule(c, d->selection_bias_recenter, d->selection_bias, "selection_bias_recenter", "needs selection_bias");
    rule(c, d->selection_bias_recenter, d->selection_bias_update_rate > 0, "selection_bias_recenter",
         "happens at updates; needs selection_bias_update_rate");
    rule(c, d->selection_bias_in_weights, d->selection_bias, "selection_bias_in_weights",
         "needs selection_bias");
    rule(c, d->selection_bias_in_weights, !softmax, "selection_bias_in_weights",
         "needs score_function sigmoid or sqrtsoftplus");
}

static void check_groups(checker *c, const moe_layer_desc *d) {
    const int64_t G = d->num_groups, kept = d->group_top_k, each = G > 0 ? d->num_experts / G : 0;
    const bool on = G > 0 || kept > 0;
    char limits[128], divide[80], held[160];
    snprintf(limits, sizeof limits,
             "is %" PRId64 " of num_groups %" PRId64 "; set num_groups, and 1 <= group_top_k <= num_groups",
             kept, G);
    snprintf(divide, sizeof divide, "%" PRId64 " groups do not divide num_experts %d", G, d->num_experts);
    snprintf(held, sizeof held,
             "is %d, but group_top_k %" PRId64 " of num_groups %" PRId64 " hold %" PRId64
             " of num_experts %d",
             d->top_k, kept, G, kept * each, d->num_experts);
    rule(c, !moei_is(d->group_score, "top2_sum"), on, "group_score", "needs num_groups");
    rule(c, on, G >= 1 && kept >= 1 && kept <= G, "group_top_k", limits);
    rule(c, on, each * G == d->num_experts, "num_groups", divide);
    rule(c, on, d->top_k <= kept * each, "top_k", held);
    rule(c, on, moei_is(d->router_type, "top_k"), "num_groups", "needs router_type top_k");
    rule(
        c, moei_is(d->group_score, "topn_sum"), kept <= d->top_k, "group_score",
        "topn_sum sums the top_k / group_top_k best of a group, rounded down; with fewer top_k that is none");
    rule(c, d->expert_dropout > 0, !on, "expert_dropout",
         "could leave a kept group without experts; needs num_groups 0");
}

static void check_router(checker *c, const moe_layer_desc *d) {
    const char *type = d->router_type;
    const bool top_k = moei_is(type, "top_k"), noisy = moei_router_kind_of(d).noisy;
    const bool sinkhorn = moei_router_kind_of(d).transports,
               megatron = moei_is(d->sinkhorn_variant, "megatron");
    const bool quantile = moei_router_kind_of(d).quantile;
    rule(c, d->top_k_min > 0, top_k, "top_k_min", "needs router_type top_k");
    rule(c, d->top_k_min > 0, d->top_k_min <= d->top_k, "top_k_min", "is more than top_k");
    rule(c, d->selection_bias, top_k, "selection_bias", "needs router_type top_k");
    rule(c, d->expert_dropout > 0, top_k || sinkhorn, "expert_dropout",
         "needs router_type top_k or sinkhorn");
    rule(c, d->token_rounding > 0, top_k, "token_rounding", "needs router_type top_k");
    rule(c, d->token_rounding > 0, moei_is(d->routing_unit, "token"), "token_rounding",
         "drops and adds single tokens; needs routing_unit token");
    rule(c, d->noise_epsilon != 0, noisy, "noise_epsilon", "needs router_type noisy_top_k");
    rule(c, d->load_loss_coeff > 0, noisy, "load_loss_coeff",
         "needs router_type noisy_top_k: the load is smooth through its noise");
    rule(c, !moei_is(d->sinkhorn_variant, "standard"), sinkhorn, "sinkhorn_variant",
         "needs router_type sinkhorn");
    rule(c, d->sinkhorn_iters > 0, sinkhorn, "sinkhorn_iters", "needs router_type sinkhorn");
    rule(c, d->sinkhorn_tol != 0, sinkhorn && megatron, "sinkhorn_tol",
         "needs router_type sinkhorn with sinkhorn_variant megatron; the others count iterations");
    rule(c, d->quantile_ema > 0, quantile, "quantile_ema", "needs router_type quantile");
    rule(c, quantile, d->top_k < d->num_experts, "router_type",
         "quantile needs top_k below num_experts: else there is nothing to balance");
    rule(c, d->force_bias_std > 0, moei_router_kind_of(d).forced, "force_bias_std",
         "needs router_type random");
}

/* The gate of this router decides nothing: only losses look at it. */
static void check_balanced(checker *c, const moe_layer_desc *d) {
    const bool balanced = moei_is(d->router_type, "balanced");
    const bool seen = d->aux_loss_coeff > 0 || d->seq_aux_loss_coeff > 0 || d->global_aux_loss_coeff > 0 ||
                      d->gshard_loss_coeff > 0 || d->entropy_loss_coeff > 0 || d->z_loss_coeff > 0;
    static const char blind[] =
        "router_type balanced looks at no score; needs a loss that does: aux_loss_coeff (but for "
        "aux_loss_type none), seq_aux_loss_coeff, global_aux_loss_coeff, gshard_loss_coeff, "
        "entropy_loss_coeff or z_loss_coeff";
    rule(c, d->fake_noise > 0, balanced, "fake_noise", "needs router_type balanced");
    rule(c, d->fake_skip_first > 0, balanced, "fake_skip_first", "needs router_type balanced");
    rule(c, balanced, d->num_experts - d->fake_skip_first >= d->top_k, "fake_skip_first",
         "leaves fewer than top_k of num_experts experts");
    rule(c, balanced, d->routed_scaling_factor == 1, "routed_scaling_factor",
         "the weights of router_type balanced are 1 / top_k");
    rule(c, balanced, !d->norm_topk_prob, "norm_topk_prob",
         "the weights of router_type balanced sum to 1 already");
    rule(c, balanced, !d->score_before_topk, "score_before_topk",
         "the weights of router_type balanced are no scores");
    rule(c, balanced, d->importance_loss_coeff == 0, "importance_loss_coeff",
         "the weights of router_type balanced are constants: nothing learns from them");
    if (!balanced) return;
    rule(c, !moei_is(d->score_function, "softmax"), seen, "score_function", blind);
    rule(c, !moei_is(d->router_dtype, "auto"), seen, "router_dtype", blind);
    rule(c, !moei_is(d->router_init, "normal"), seen, "router_init", blind);
    rule(c, d->router_bias, seen, "router_bias", blind);
    rule(c, d->input_jitter_eps > 0, seen, "input_jitter_eps", blind);
}

/* Two Sinkhorn routers have weights of their own. */
static void check_sinkhorn(checker *c, const moe_layer_desc *d) {
    const bool megatron = moei_is(d->sinkhorn_variant, "megatron"),
               sigma = moei_is(d->sinkhorn_variant, "sigma_moe");
    rule(c, megatron,
         moei_is(d->score_function, "softmax") && !d->norm_topk_prob && d->routed_scaling_factor == 1,
         "sinkhorn_variant",
         "the weights of megatron are softmax over all experts (sigmoid for top_k 1), neither normalised nor "
         "scaled; leave score_function, norm_topk_prob and routed_scaling_factor alone");
    rule(c, sigma, moei_is(d->score_function, "sigmoid"), "sinkhorn_variant",
         "the weights of sigma_moe are sigmoids; set score_function sigmoid");
}

/* True where a threshold matters to the policy. */
static bool has_threshold(const char *policy) {
    return moei_is(policy, "threshold") || moei_is(policy, "random");
}

static void check_top2(checker *c, const moe_layer_desc *d) {
    const bool top2 = moei_router_kind_of(d).top2;
    const bool limited = d->capacity_factor > 0 || d->capacity_factor_eval > 0;
    const int32_t Eo = d->num_groups_outer;
    const float threshold = 0.2f; /* the default, filled in whatever the policy */
    rule(c, top2, d->top_k == 2, "router_type", "gshard_top2 needs top_k 2");
    rule(c, top2, moei_is(d->score_function, "softmax"), "router_type",
         "gshard_top2 needs score_function softmax");
    rule(c, !moei_is(d->second_policy_train, "random"), top2, "second_policy_train",
         "needs router_type gshard_top2");
    rule(c, !moei_is(d->second_policy_eval, "all"), top2, "second_policy_eval",
         "needs router_type gshard_top2");
    rule(c, d->second_threshold_train != 0 && d->second_threshold_train != threshold,
         top2 && has_threshold(d->second_policy_train), "second_threshold_train",
         "needs router_type gshard_top2 with second_policy_train threshold or random");
    rule(c, d->second_threshold_eval != 0 && d->second_threshold_eval != threshold,
         top2 && has_threshold(d->second_policy_eval), "second_threshold_eval",
         "needs router_type gshard_top2 with second_policy_eval threshold or random");
    rule(c, Eo > 0, top2, "num_groups_outer", "two levels need router_type gshard_top2");
    rule(c, Eo > 0, Eo >= 2 && d->num_experts % Eo == 0 && d->num_experts / (Eo > 0 ? Eo : 1) >= 2,
         "num_groups_outer", "needs at least two outer and two inner experts, and must divide num_experts");
    rule(c, Eo > 0, moei_is(d->routing_unit, "token"), "num_groups_outer", "needs routing_unit token");
    rule(c, d->capacity_factor_inner != 0, Eo > 0, "capacity_factor_inner", "needs num_groups_outer");
    rule(c, Eo > 0, !limited || moei_is(d->drop_policy, "rank_major"), "num_groups_outer",
         "two levels fill their capacities by drop_policy rank_major");
    rule(c, Eo > 0, !d->pad_to_capacity, "pad_to_capacity", "is not for two levels");
    rule(c, d->second_place_loss_coeff > 0, top2, "second_place_loss_coeff", "needs router_type gshard_top2");
    rule(c, d->second_place_loss_coeff > 0, Eo == 0, "second_place_loss_coeff",
         "is not for two levels; needs num_groups_outer 0");
    rule(c, Eo > 0, !d->router_bias, "router_bias", "is not for two levels");
    rule(c, Eo > 0, d->input_jitter_eps == 0, "input_jitter_eps", "is not for two levels");
    rule(c, Eo > 0,
         d->aux_loss_coeff == 0 && d->seq_aux_loss_coeff == 0 && d->global_aux_loss_coeff == 0 &&
             d->entropy_loss_coeff == 0,
         "num_groups_outer",
         "two levels have no one score over all experts, which aux_loss_coeff (but for aux_loss_type none), "
         "seq_aux_loss_coeff, global_aux_loss_coeff and entropy_loss_coeff need; balance them by "
         "gshard_loss_coeff");
}

static void check_capacity(checker *c, const moe_layer_desc *d) {
    const float eval = d->capacity_factor_eval;
    const bool limited = d->capacity_factor > 0 || d->capacity_factor_eval > 0;
    const bool by_expert = moei_router_kind_of(d).by_expert;
    static const char need[] =
        "needs capacity_factor or capacity_factor_eval: a dropless layer has no capacity";
    rule(c, eval == MOE_ZERO, d->capacity_factor > 0, "capacity_factor_eval",
         "MOE_ZERO (-1) lifts the capacity of training; needs capacity_factor");
    rule(c, eval == MOE_ZERO, !by_expert, "capacity_factor_eval",
         "router_type expert_choice cannot do without a capacity: its experts choose that many");
    rule(c, d->pad_to_capacity, limited, "pad_to_capacity", need);
    rule(c, d->min_capacity != 0, limited, "min_capacity", need);
    rule(c, d->capacity_multiple > 1, limited, "capacity_multiple", need);
    rule(c, d->capacity_factor_inner != 0, limited, "capacity_factor_inner", need);
    rule(c, !moei_is(d->capacity_formula, "megatron"), limited, "capacity_formula", need);
    rule(c, !moei_is(d->capacity_group, "batch"), limited, "capacity_group", need);
    rule(c, !moei_is(d->drop_policy, "probs"), limited, "drop_policy", need);
    rule(c, d->token_rounding > 0, !limited, "token_rounding",
         "a capacity would drop rows of the tiles that it fills; needs capacity_factor 0");
    rule(c, d->pad_to_capacity, !by_expert, "pad_to_capacity",
         "router_type expert_choice fills every expert to its capacity; nothing is left to pad");
    rule(c, !moei_is(d->drop_policy, "probs"), !by_expert, "drop_policy",
         "router_type expert_choice drops nothing: no expert takes more than its capacity");
}

static void check_losses(checker *c, const moe_layer_desc *d) {
    const bool balance = d->aux_loss_coeff > 0 || d->seq_aux_loss_coeff > 0 || d->global_aux_loss_coeff > 0;
    static const char loss[] =
        "needs a balance loss: aux_loss_coeff (but for aux_loss_type none), seq_aux_loss_coeff or "
        "global_aux_loss_coeff";
    const bool one_sigmoid = moei_is(d->sinkhorn_variant, "megatron") && d->top_k == 1;
    const bool moved = moei_is(d->aux_loss_type, "sequence") || moei_is(d->aux_loss_type, "global");
    rule(c, moved, d->aux_loss_coeff == 0, "aux_loss_type",
         "makes aux_loss_coeff the coefficient of a loss that has its own; set one of the two");
    rule(c, moved, false, "aux_loss_type", "needs aux_loss_coeff");
    rule(c, !moei_is(d->aux_scores, "normalized"), balance, "aux_scores", loss);
    rule(c, moei_is(d->aux_scores, "raw"), !moei_is(d->score_function, "softmax") || one_sigmoid,
         "aux_scores",
         "raw: the scores of softmax sum to 1 as they are; needs score_function sigmoid or sqrtsoftplus, or "
         "sinkhorn_variant megatron with top_k 1");
    rule(c, !moei_is(d->aux_map, "actual"), balance, "aux_map", loss);
    rule(c, d->gshard_loss_coeff > 0, !moei_router_kind_of(d).by_expert, "gshard_loss_coeff",
         "counts first choices, and router_type expert_choice lets no token choose");
    rule(c, d->gshard_loss_coeff > 0, d->token_rounding == 0, "gshard_loss_coeff",
         "counts first choices, of which token_rounding drops some");
}

/* Without routed experts there is no router: its settings, from router_bias to aux_map, stay at their
 * defaults. */
static void check_no_router(checker *c, const moe_layer_desc *d) {
    rule_defaults(c, d, offsetof(moe_layer_desc, router_bias), offsetof(moe_layer_desc, init_scheme),
                  "is of the router, and num_experts is 0");
}

/* Of a range that begins at MOE_ZERO nothing else is below 0. */
static void check_negative(checker *c, const moe_layer_desc *d) {
    const moei_option_table table = moei_layer_option_table();
    for (size_t i = 0; i < table.count; ++i) {
        const moe_option *row = &table.row[i];
        if (row->type != MOE_OPT_FLOAT) continue;
        const float value = *(const float *)(const void *)((const char *)d + row->offset);
        rule(c, value < 0, value == MOE_ZERO, row->key, "is negative; MOE_ZERO (-1) is the one such value");
    }
}

moe_status moei_layer_desc_check(const moe_layer_desc *d, moe_error *error) {
    checker c = {error, MOE_OK};
    check_negative(&c, d);
    check_shape(&c, d);
    check_plain(&c, d);
    check_activation(&c, d);
    check_experts(&c, d);
    check_kinds(&c, d);
    if (d->num_experts == 0) {
        check_no_router(&c, d);
    } else {
        check_scores(&c, d);
        check_groups(&c, d);
        check_router(&c, d);
        check_balanced(&c, d);
        check_sinkhorn(&c, d);
        check_top2(&c, d);
        check_capacity(&c, d);
        check_losses(&c, d);
    }
    return c.status;
}
