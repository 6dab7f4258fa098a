/* layer_alias.c: settings of other systems whose names or values differ from ours, and what they say here.
 * (name, value) -> our settings, or the reason why there is none. Names that only differ are in
 * layer_options.c. Source: the configuration classes of NeMo (Megatron core), Automodel, Hugging Face and
 * sigma-MoE.
 */
#include "layer/layer_desc.h"

#include "core/locale.h"

#include <stdio.h>
#include <strings.h>

#define NEMO "NeMo"
#define AUTO "Automodel"
#define HUGG "Hugging Face"
#define SIGM "sigma-MoE"
#define TENS "tensor2tensor"

/* A line an entry reads better than aligned columns. */
/* clang-format off */
static const moe_layer_alias table[] = {
    {NEMO, "moe_router_load_balancing_type", "aux_loss", {{"aux_loss_type", "batch"}}, NULL},
    {NEMO, "moe_router_load_balancing_type", "seq_aux_loss", {{"aux_loss_type", "sequence"}}, NULL},
    {NEMO, "moe_router_load_balancing_type", "global_aux_loss", {{"aux_loss_type", "global"}}, NULL},
    {NEMO, "moe_router_load_balancing_type", "none", {{"aux_loss_type", "none"}}, NULL},
    {NEMO, "moe_router_load_balancing_type", "sinkhorn",
     {{"router_type", "sinkhorn"}, {"sinkhorn_variant", "megatron"}, {"aux_loss_type", "none"}}, NULL},
    {NEMO, "moe_router_load_balancing_type", "quantile_balancing",
     {{"router_type", "quantile"}, {"aux_loss_type", "none"}}, NULL},
    {NEMO, "moe_expert_capacity_factor", "", {{"capacity_factor", "0"}}, NULL},
    {NEMO, "moe_expert_capacity_factor", "none", {{"capacity_factor", "0"}}, NULL},
    {NEMO, "moe_apply_probs_on_input", "true", {{"weight_apply", "input"}}, NULL},
    {NEMO, "moe_apply_probs_on_input", "false", {{0}}, NULL},
    {NEMO, "moe_router_force_load_balancing", "true", {{"router_type", "random"}}, NULL},
    {NEMO, "moe_router_force_load_balancing", "false", {{0}}, NULL},
    {NEMO, "moe_router_force_biased", NULL, {{"router_type", "random"}, {"force_bias_std", NULL}}, NULL},
    {NEMO, "moe_shared_expert_intermediate_size", "", {{"num_shared_experts", "0"}}, NULL},
    {NEMO, "moe_shared_expert_intermediate_size", NULL,
     {{"num_shared_experts", "1"}, {"shared_expert_hidden_size", NULL}}, NULL},
    {NEMO, "moe_layer_recompute", "true", {{"recompute", "layer"}}, NULL},
    {NEMO, "moe_layer_recompute", "false", {{"recompute", "none"}}, NULL},
    {NEMO, "moe_token_dropping", "false", {{0}}, NULL},
    {NEMO, "moe_token_dropping", NULL, {{0}},
     "set capacity_factor, and drop_policy: what exceeds a capacity is dropped"},
    {NEMO, "moe_token_dispatcher_type", NULL, {{0}},
     "leave it out: all experts are on one machine, and no token is sent"},
    {NEMO, "moe_grouped_gemm", "true", {{0}}, NULL},
    {NEMO, "moe_grouped_gemm", NULL, {{0}}, "leave it out: experts are always one grouped product"},
    {NEMO, "moe_permute_fusion", "true", {{0}}, NULL},
    {NEMO, "moe_permute_fusion", NULL, {{0}}, "leave it out: tokens are always gathered while packed"},
    {NEMO, "expert_model_parallel_size", "1", {{0}}, NULL},
    {NEMO, "expert_model_parallel_size", NULL, {{0}}, "leave it out: all experts are on one machine"},

    {AUTO, "gate_bias_update_factor", "0", {{"selection_bias_update_rate", "0"}}, NULL},
    {AUTO, "gate_bias_update_factor", NULL,
     {{"selection_bias", "true"}, {"selection_bias_update_rate", NULL}}, NULL},
    {AUTO, "force_e_score_correction_bias", "true", {{"selection_bias", "true"}}, NULL},
    {AUTO, "force_e_score_correction_bias", "false", {{0}}, NULL},
    {AUTO, "apply_router_weight_after_down", "true", {{"weight_apply", "output"}}, NULL},
    {AUTO, "apply_router_weight_after_down", "false", {{"weight_apply", "hidden"}}, NULL},
    {AUTO, "train_gate", "true", {{"router_frozen", "false"}}, NULL},
    {AUTO, "train_gate", "false", {{"router_frozen", "true"}}, NULL},
    {AUTO, "fake_balanced_gate", "true", {{"router_type", "balanced"}}, NULL},
    {AUTO, "fake_balanced_gate", "false", {{0}}, NULL},
    {AUTO, "gate_precision", "", {{"router_dtype", "auto"}}, NULL},
    {AUTO, "enable_routing_replay", NULL, {{0}},
     "leave it out: a call replays what moe_call.replay_expert says, and moekit eval --record-routes records"},

    {HUGG, "hidden_act", "silu", {{"activation", "swiglu"}}, NULL},
    {HUGG, "hidden_act", "swish", {{"activation", "swiglu"}}, NULL},
    {HUGG, "hidden_act", "gelu", {{"activation", "geglu_exact"}}, NULL},
    {HUGG, "hidden_act", "gelu_pytorch_tanh", {{"activation", "geglu"}}, NULL},
    {HUGG, "hidden_act", "gelu_new", {{"activation", "geglu"}}, NULL},
    {HUGG, "hidden_act", "relu", {{"activation", "reglu"}}, NULL},
    {HUGG, "topk_method", "greedy", {{0}}, NULL},
    {HUGG, "topk_method", "group_limited_greedy", {{"group_score", "max"}}, NULL},
    {HUGG, "topk_method", "noaux_tc", {{"selection_bias", "true"}, {"group_score", "top2_sum"}}, NULL},
    {HUGG, "seq_aux", "true", {{"aux_loss_type", "sequence"}}, NULL},
    {HUGG, "seq_aux", "false", {{"aux_loss_type", "batch"}}, NULL},
    {HUGG, "shared_expert_intermediate_size", NULL,
     {{"num_shared_experts", "1"}, {"shared_expert_hidden_size", NULL}, {"shared_expert_gate", "true"}}, NULL},
    {HUGG, "mlp_only_layers", NULL, {{0}},
     "set moe_layer_freq: layers without experts come at equal distances"},
    {HUGG, "first_k_dense_replace", "0", {{0}}, NULL},
    {HUGG, "first_k_dense_replace", NULL, {{0}},
     "set moe_layer_freq: layers without experts come at equal distances"},

    {SIGM, "selection_mode", "softmax", {{"score_function", "softmax"}, {"score_before_topk", "true"}}, NULL},
    {SIGM, "selection_mode", "sigmoid", {{"score_function", "sigmoid"}, {"score_before_topk", "true"}}, NULL},
    {SIGM, "selection_mode", "sinkmoid",
     {{"score_function", "sigmoid"}, {"router_type", "sinkhorn"}, {"sinkhorn_variant", "sigma_moe"}}, NULL},
    {SIGM, "activation_after_topk", "true", {{"score_before_topk", "false"}}, NULL},
    {SIGM, "activation_after_topk", "false", {{"score_before_topk", "true"}}, NULL},
    {SIGM, "bias", "true", {{"expert_up_bias", "true"}, {"output_bias", "true"}}, NULL},
    {SIGM, "bias", "false", {{0}}, NULL},

    {TENS, "noisy_gating", "true", {{"router_type", "noisy_top_k"}}, NULL},
    {TENS, "noisy_gating", "false", {{0}}, NULL},
    {TENS, "moe_group_size", NULL, {{0}},
     "set capacity_group sequence: the tokens that share a capacity are those of one sequence"},
};
/* clang-format on */

const moe_layer_alias *moe_layer_aliases(size_t *count) {
    *count = sizeof table / sizeof *table;
    return table;
}

/* The words that set a switch of ours set theirs. */
static const char *word_of(const char *value) {
    static const char *const words[][2] = {
        {"1",    "true" },
        {"0",    "false"},
        {"yes",  "true" },
        {"on",   "true" },
        {"no",   "false"},
        {"off",  "false"},
        {"null", ""     },
        {"~",    ""     }
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
        if (strcasecmp(value, words[i][0]) == 0) return words[i][1];
    return value;
}

/* Equal as words, case aside, or as numbers. */
static bool is_value(const char *value, const char *wanted) {
    if (strcasecmp(word_of(value), wanted) == 0) return true;
    char *end, *wanted_end;
    const double a = moei_real_parse(value, &end), b = moei_real_parse(wanted, &wanted_end);
    return end != value && !*end && wanted_end != wanted && !*wanted_end && a == b;
}

static moe_status unknown_value(const char *name, const char *value, moe_error *error) {
    char list[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; ++i) {
        if (strcmp(table[i].name, name) != 0 || !*table[i].value) continue;
        const int n = snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", table[i].value);
        if (n > 0 && used + (size_t)n < sizeof list) used += (size_t)n;
    }
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not one of: %s", name, value, list);
}

const moe_layer_alias *moe_layer_alias_named(const char *name) {
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    for (size_t i = 0; i < sizeof table / sizeof *table; ++i)
        if (strcmp(table[i].name, last) == 0) return &table[i];
    return NULL;
}

moe_status moe_layer_alias_find(const char *name, const char *value, const moe_layer_alias **alias,
                                moe_error *error) {
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    size_t n_rows;
    const moe_option *row = moe_layer_options(&n_rows);
    bool known = false;
    *alias = NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table; ++i) {
        if (strcmp(table[i].name, last) != 0) continue;
        known = true;
        if (table[i].value && !is_value(value, table[i].value)) continue;
        if (table[i].advice)
            return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: %s is no option here; %s", name,
                                  table[i].system, table[i].advice);
        *alias = &table[i];
        return MOE_OK;
    }
    /* of a name that is also that of a row only some values are told here */
    return !known || moe_option_find(row, n_rows, last) ? MOE_OK : unknown_value(last, value, error);
}
