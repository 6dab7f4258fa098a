/* layer_options.c: the layer's table of options: one entry a field of moe_layer_desc, in its order.
 * Names of NeMo (Megatron core), Automodel, Hugging Face, lucidrains, sigma-MoE and tensor2tensor are
 * aliases where they mean the same. A number whose 0 means "its own default" has 0 as its default here, and
 * MOE_ZERO among its values where 0 itself makes sense.
 */
#include "layer/layer_desc.h"

#include "dispatch/dispatch.h"
#include "experts/activation.h"
#include "route/names.h"

#include <stddef.h>

static const char *const glu_layouts[] = {"auto", "halves", "interleaved", NULL};
static const char *const weight_points[] = {"output", "hidden", "input", NULL};
static const char *const aux_types[] = {"batch", "sequence", "global", "none", NULL};
static const char *const aux_scores[] = {"normalized", "raw", NULL};
static const char *const aux_maps[] = {"actual", "plain", NULL};
static const char *const init_schemes[] = {"normal", "lucid_uniform", "sigma_moe", "megatron_scaled", NULL};
static const char *const recomputes[] = {"none", "layer", NULL};
static const char *const saved_dtypes[] = {"auto", "mxfp8", NULL};

/* The middle of an entry: type, field, default, limits, choices. */
#define BOOL(field)                   MOE_OPT_BOOL, offsetof(moe_layer_desc, field), "false", 0, 0, NULL
#define INT(field, initial, min, max) MOE_OPT_INT, offsetof(moe_layer_desc, field), initial, min, max, NULL
#define FLOAT(field, initial, max)    MOE_OPT_FLOAT, offsetof(moe_layer_desc, field), initial, 0, max, NULL
#define FLOAT_OR_ZERO(field, initial, max)                                                                   \
    MOE_OPT_FLOAT, offsetof(moe_layer_desc, field), initial, MOE_ZERO, max, NULL
#define CHOICE(field, initial, choices)                                                                      \
    MOE_OPT_CHOICE, offsetof(moe_layer_desc, field), initial, 0, 0, choices
#define NAME(field, initial) MOE_OPT_CHOICE, offsetof(moe_layer_desc, field), initial, 0, 0, NULL
enum { WIDTH_MAX = 1 << 20, EXPERTS_MAX = 65536 };

/* Two lines an entry read better than aligned columns. */
/* clang-format off */
static const moe_option options[] = {
    {"moe.d_model", "dim dmodel hidden_size n_embd", INT(d_model, "0", 0, WIDTH_MAX),
     "width of the tokens; a language model sets it from model.d_model"},
    {"moe.output_size", "v_dim output_dim", INT(output_size, "0", 0, WIDTH_MAX),
     "width of the layer's output; 0: d_model"},
    {"moe.num_experts", "num_moe_experts n_routed_experts num_local_experts n_experts moe_num_experts",
     INT(num_experts, "8", 0, EXPERTS_MAX),
     "routed experts; 0 makes the layer its shared expert, a dense FFN"},
    {"moe.num_groups_outer", "num_experts_outer", INT(num_groups_outer, "0", 0, EXPERTS_MAX),
     "two levels: outer experts, each with num_experts / num_groups_outer inner ones; 0: one level"},
    {"moe.top_k", "moe_router_topk n_activated_experts num_experts_per_tok k moe_k gating_top_n",
     INT(top_k, "0", 0, EXPERTS_MAX),
     "experts per token; 0: 2, or all where there are fewer"},
    {"moe.top_k_min", "", INT(top_k_min, "0", 0, EXPERTS_MAX),
     "training: each token draws its K from top_k_min .. top_k; 0: off"},
    {"moe.expert_hidden_size",
     "moe_ffn_hidden_size moe_inter_dim moe_intermediate_size expert_size hidden_dim moe_hidden_size",
     INT(expert_hidden_size, "256", 0, WIDTH_MAX),
     "hidden width of one expert"},
    {"moe.latent_size", "moe_latent_size", INT(latent_size, "0", 0, WIDTH_MAX),
     "routed experts work in this width between two projections; 0: off"},

    {"moe.expert", "", NAME(expert, "ffn"),
     "kind of expert: ffn, identity, zero, or a registered plug-in's name"},
    {"moe.expert_kinds", "", NAME(expert_kinds, ""),
     "unequal experts: a width or a kind for each, as 256,8x64,identity,zero (8x64: eight of 64); empty: all "
     "alike"},
    {"moe.activation", "expert_activation", CHOICE(activation, "swiglu", moei_activation_names),
     "of the hidden layer; those ending in glu, and swigluoai, are gated; "
     "gelu and geglu_exact by erf, gelu_tanh and geglu by tanh"},
    {"moe.glu_layout", "", CHOICE(glu_layout, "auto", glu_layouts),
     "gate and up columns of a gated activation; auto: interleaved for quick_geglu, else halves, gate first; "
     "gpt-oss' checkpoints are swigluoai, interleaved"},
    {"moe.activation_alpha", "", FLOAT_OR_ZERO(activation_alpha, "0", 1e3),
     "slope inside the sigmoid of quick_geglu, quick_gelu and swigluoai; 0: 1.702; -1: 0"},
    {"moe.activation_limit", "swiglu_limit activation_func_clamp_value",
     FLOAT_OR_ZERO(activation_limit, "0", 1e6),
     "clamps gate from above and up on both sides; 0: the activation's own, 7 for quick_geglu and "
     "swigluoai; -1: no clamp"},
    {"moe.glu_linear_offset", "", FLOAT_OR_ZERO(glu_linear_offset, "0", 1e3),
     "added to up; 0: the activation's own, 1 for quick_geglu and swigluoai; -1: 0"},
    {"moe.expert_bias", "", BOOL(expert_bias),
     "biases on both projections of every expert, and on those of latent_size"},
    {"moe.expert_up_bias", "", BOOL(expert_up_bias),
     "biases on the up projection of every expert only"},
    {"moe.output_bias", "", BOOL(output_bias),
     "one bias for all routed experts together, not weighted"},
    {"moe.dropout", "", FLOAT(dropout, "0", 0.999),
     "training: chance that a hidden activation of a routed expert is dropped; the others grow by 1/(1-p)"},
    {"moe.weight_apply", "", CHOICE(weight_apply, "output", weight_points),
     "where the routing weight multiplies: output and hidden give the same numbers, input needs top_k 1"},

    {"moe.num_shared_experts", "n_shared_experts", INT(num_shared_experts, "0", 0, 1024),
     "experts every token meets, fused into one FFN"},
    {"moe.shared_expert_hidden_size", "shared_expert_inter_dim",
     INT(shared_expert_hidden_size, "0", 0, WIDTH_MAX),
     "hidden width of each shared expert; 0: that of a routed one"},
    {"moe.shared_expert_activation", "", NAME(shared_expert_activation, ""),
     "activation of the shared experts; empty: that of the routed ones"},
    {"moe.shared_expert_gate", "moe_shared_expert_gate", BOOL(shared_expert_gate),
     "multiplies the shared experts' output by sigmoid(x . w)"},

    {"moe.router_bias", "", BOOL(router_bias),
     "a trained bias on the router's logits"},
    {"moe.router_frozen", "", BOOL(router_frozen),
     "the router keeps its parameters: no gradient"},
    {"moe.router_dtype", "moe_router_dtype gate_precision", CHOICE(router_dtype, "auto", moei_router_dtypes),
     "logits, scores, routing weights and losses; auto: f32, but f64 in f64 layers; f64 is slow but exact"},
    {"moe.input_jitter_eps", "moe_input_jitter_eps router_jitter_noise", FLOAT(input_jitter_eps, "0", 0.999),
     "training: only the router sees x * U(1-eps, 1+eps) (in transformers' Mixtral the experts do, too)"},
    {"moe.routing_unit", "", CHOICE(routing_unit, "token", moei_units),
     "what is routed: each token, each sequence by the mean of its tokens, or each task by its number"},
    {"moe.num_tasks", "", INT(num_tasks, "0", 0, EXPERTS_MAX),
     "tasks of routing_unit task"},

    {"moe.score_function", "moe_router_score_function score_func scoring_func",
     CHOICE(score_function, "softmax", moei_scores),
     "what turns router logits into scores"},
    {"moe.score_before_topk", "moe_router_pre_softmax softmax_before_topk", BOOL(score_before_topk),
     "score all experts, then select; else select, then score the selected"},
    {"moe.norm_topk_prob", "", BOOL(norm_topk_prob),
     "divide the selected weights by their sum; ignored for top_k 1; with softmax it needs score_before_topk, which Qwen's and OLMoE's code always means (model_type sets it)"},
    {"moe.routed_scaling_factor", "moe_router_topk_scaling_factor route_scale",
     FLOAT_OR_ZERO(routed_scaling_factor, "1", 1e6),
     "multiplies the routing weights; 0: 1; -1: 0"},

    {"moe.router_type", "", CHOICE(router_type, "top_k", moei_router_types),
     "how experts are chosen"},
    {"moe.num_groups", "n_expert_groups moe_router_num_groups n_group", INT(num_groups, "0", 0, EXPERTS_MAX),
     "groups of neighbouring experts, of which a token may use group_top_k; 0 or 1: off"},
    {"moe.group_top_k", "n_limited_groups moe_router_group_topk topk_group",
     INT(group_top_k, "0", 0, EXPERTS_MAX),
     "groups a token may use"},
    {"moe.group_score", "", CHOICE(group_score, "top2_sum", moei_group_scores),
     "score of a group: its two best summed, its best (Automodel's sigmoid without a selection bias), or its "
     "top_k / group_top_k best summed"},
    {"moe.selection_bias", "moe_router_enable_expert_bias", BOOL(selection_bias),
     "a bias on the scores that select, not on the weights: balancing without a loss"},
    {"moe.selection_bias_update_rate", "moe_router_bias_update_rate",
     FLOAT(selection_bias_update_rate, "0", 1e3),
     "step of the selection bias once an optimizer step; 0: it stays"},
    {"moe.selection_bias_recenter", "", BOOL(selection_bias_recenter),
     "subtract the selection bias's mean at each update"},
    {"moe.selection_bias_in_weights", "router_weight_uses_score_correction_bias",
     BOOL(selection_bias_in_weights),
     "take the weights from the biased scores too"},
    {"moe.expert_dropout", "", FLOAT(expert_dropout, "0", 0.999),
     "training: chance that a token cannot select an expert; never fewer than top_k are left"},
    {"moe.token_rounding", "", INT(token_rounding, "0", 0, 1 << 20),
     "training: rows of each expert are rounded to the nearest multiple of this, by dropping its lowest scores or adding its next best tokens; with fewer than half of it an expert gets none; 0: off"},
    {"moe.second_policy_train", "moe_second_policy_train",
     CHOICE(second_policy_train, "random", moei_second_policies),
     "gshard_top2, training: which second choices stay"},
    {"moe.second_policy_eval", "moe_second_policy_eval",
     CHOICE(second_policy_eval, "all", moei_second_policies),
     "gshard_top2, else: which second choices stay"},
    {"moe.second_threshold_train", "moe_second_threshold_train",
     FLOAT_OR_ZERO(second_threshold_train, "0", 1),
     "of second_policy_train threshold and random; 0: 0.2; -1: 0"},
    {"moe.second_threshold_eval", "moe_second_threshold_eval", FLOAT_OR_ZERO(second_threshold_eval, "0", 1),
     "of second_policy_eval threshold and random; 0: 0.2; -1: 0"},
    {"moe.noise_epsilon", "", FLOAT_OR_ZERO(noise_epsilon, "0", 1e3),
     "noisy_top_k: least width of the noise; 0: 0.01; -1: 0"},
    {"moe.sinkhorn_variant", "", CHOICE(sinkhorn_variant, "standard", moei_sinkhorns),
     "sinkhorn: the algorithm as published, or as Megatron core or sigma-MoE have it"},
    {"moe.sinkhorn_iters", "sinkhorn_n_iters", INT(sinkhorn_iters, "0", 0, 100000),
     "sinkhorn: iterations; 0: 3, or for megatron until sinkhorn_tol"},
    {"moe.sinkhorn_tol", "", FLOAT_OR_ZERO(sinkhorn_tol, "0", 1),
     "sinkhorn_variant megatron: where it stops; 0: 1e-4; -1: 0"},
    {"moe.quantile_ema", "moe_router_quantile_balancing_ema", FLOAT(quantile_ema, "0", 0.999999),
     "quantile: how much of the old bias stays at each update"},
    {"moe.fake_noise", "fake_gate_noise", FLOAT(fake_noise, "0", 1),
     "balanced: 0 is an exact round robin"},
    {"moe.fake_skip_first", "skip_first_n_experts", INT(fake_skip_first, "0", 0, EXPERTS_MAX),
     "balanced: so many experts, from the first on, are never used"},
    {"moe.force_bias_std", "", FLOAT(force_bias_std, "0", 1e3),
     "random: standard deviation of a bias drawn once for each expert"},

    {"moe.capacity_factor", "moe_expert_capacity_factor capacity_factor_train moe_capacity_factor_train",
     FLOAT(capacity_factor, "0", 1e6),
     "how full an expert may get, by capacity_formula; 0: dropless"},
    {"moe.capacity_factor_eval", "moe_capacity_factor_eval", FLOAT_OR_ZERO(capacity_factor_eval, "0", 1e6),
     "the same outside training; 0: capacity_factor; -1: dropless"},
    {"moe.capacity_factor_inner", "moe_capacity_factor_second_level",
     FLOAT_OR_ZERO(capacity_factor_inner, "0", 1e6),
     "two levels: the same for the inner experts; 0: capacity_factor; -1: dropless"},
    {"moe.capacity_formula", "", CHOICE(capacity_formula, "megatron", moei_capacity_formulas),
     "rows of an expert from factor, tokens, top_k and experts, as the named system counts them"},
    {"moe.min_capacity", "", INT(min_capacity, "0", MOE_ZERO, 1 << 30),
     "least rows of an expert; 0: the formula's own, but 1 at least outside training; -1: none"},
    {"moe.capacity_multiple", "", INT(capacity_multiple, "0", 0, 1 << 20),
     "rows of an expert are rounded up to a multiple of this; 0: 1"},
    {"moe.capacity_group", "", CHOICE(capacity_group, "batch", moei_capacity_scopes),
     "tokens that share a capacity: the batch, or one sequence"},
    {"moe.drop_policy", "moe_token_drop_policy", CHOICE(drop_policy, "probs", moei_drop_policies),
     "who stays in a full expert: the largest weights, the first tokens, or first choices first"},
    {"moe.pad_to_capacity", "moe_pad_expert_input_to_capacity", BOOL(pad_to_capacity),
     "every expert computes exactly its capacity of rows"},

    {"moe.aux_loss_coeff", "moe_aux_loss_coeff router_aux_loss_coef aux_loss_alpha",
     FLOAT(aux_loss_coeff, "0", 1e6),
     "coefficient of the Switch load-balancing loss over the batch, 1 where balanced, one a layer; Hugging "
     "Face's is top_k there, and one for all layers"},
    {"moe.aux_loss_type", "", CHOICE(aux_loss_type, "batch", aux_types),
     "which loss aux_loss_coeff is for: over the batch, or by another name seq_aux_loss_coeff or global_aux_loss_coeff; none: it has no effect"},
    {"moe.seq_aux_loss_coeff", "", FLOAT(seq_aux_loss_coeff, "0", 1e6),
     "the same loss by sequence, averaged"},
    {"moe.global_aux_loss_coeff", "", FLOAT(global_aux_loss_coeff, "0", 1e6),
     "the same loss with loads counted over the whole optimizer step"},
    {"moe.gshard_loss_coeff", "loss_coef moe_loss_coef", FLOAT(gshard_loss_coeff, "0", 1e6),
     "coefficient of GShard's loss: first choices only, by sequence; of two levels by capacity_group"},
    {"moe.second_place_loss_coeff", "", FLOAT(second_place_loss_coeff, "0", 1e6),
     "gshard_top2: coefficient of the same loss of second choices, before a policy removes any"},
    {"moe.importance_loss_coeff", "", FLOAT(importance_loss_coeff, "0", 1e6),
     "coefficient of the squared variation of the experts' summed weights"},
    {"moe.load_loss_coeff", "", FLOAT(load_loss_coeff, "0", 1e6),
     "noisy_top_k: coefficient of the squared variation of the experts' smooth loads"},
    {"moe.entropy_loss_coeff", "", FLOAT(entropy_loss_coeff, "0", 1e6),
     "coefficient of the negative entropy of the mean softmax over the batch"},
    {"moe.z_loss_coeff", "moe_z_loss_coeff router_z_loss_coef", FLOAT(z_loss_coeff, "0", 1e6),
     "coefficient of the router z-loss; of two levels, the outer gate's"},
    {"moe.aux_scores", "", CHOICE(aux_scores, "normalized", aux_scores),
     "scores of the balance losses: summing to 1 over the experts, or as they are"},
    {"moe.aux_map", "", CHOICE(aux_map, "actual", aux_maps),
     "choices of the balance losses: the router's, or the plain top-k of the scores"},

    {"moe.init_scheme", "", CHOICE(init_scheme, "normal", init_schemes),
     "how expert weights are drawn: normal by init_std, or another system's way"},
    {"moe.router_init", "", CHOICE(router_init, "normal", moei_router_inits),
     "how the router is drawn: by init_std, N(0,1), sigma-MoE's equal rows, or zeros"},
    {"moe.init_std", "init_method_std", FLOAT_OR_ZERO(init_std, "0.02", 1e3),
     "standard deviation of the initial weights; 0: 0.02; -1: 0"},
    {"moe.init_std_down", "", FLOAT_OR_ZERO(init_std_down, "0", 1e3),
     "the same for down projections; 0: init_std, and megatron_scaled needs it; -1: 0"},
    {"moe.init_std_scale", "weight_std_scale", FLOAT_OR_ZERO(init_std_scale, "0", 1e3),
     "multiplies the deviations of sigma_moe and normal_fan_in_renorm; 0: 1; -1: 0"},
    {"moe.recompute", "", CHOICE(recompute, "none", recomputes),
     "layer: backward runs the up projection again instead of keeping its result"},
    {"moe.saved_dtype", "", CHOICE(saved_dtype, "auto", saved_dtypes),
     "mxfp8: keeps the up projection's result for backward in 8 bits, half of bf16; outputs do not change, gradients are slightly off"},
};
/* clang-format on */

moei_option_table moei_layer_option_table(void) {
    return (moei_option_table){options, sizeof options / sizeof *options};
}

const moe_option *moe_layer_option_at(size_t index) {
    return index < sizeof options / sizeof *options ? &options[index] : NULL;
}

const moe_option *moe_layer_option_find(const char *key) {
    if (!key) return NULL;
    const moei_option_table table = moei_layer_option_table();
    const moe_option *row = moei_option_find(table, key);
    return row || strncmp(key, "moe.", 4) != 0 ? row : moei_option_find(table, key + 4);
}

_Static_assert(sizeof options / sizeof *options <= sizeof((moe_layer_desc *)0)->said,
               "moe_layer_desc.said has a byte a row");
