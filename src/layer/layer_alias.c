/* layer_alias.c: settings of other systems whose names or values differ from ours, and what they say here.
 * (name, value) -> our settings, or the reason why there is none. Names that only differ are in
 * layer_options.c. Source: the configuration classes of NeMo (Megatron core), Automodel, Hugging Face and
 * sigma-MoE.
 */
#include "layer/layer_desc.h"

#include "core/locale.h"

#include <strings.h>

enum { SETTINGS = 5 };

typedef struct alias_entry {
    moe_layer_alias alias;               /* first: an alias found is its entry */
    moe_alias_setting setting[SETTINGS]; /* key NULL ends them */
} alias_entry;

#define NEMO "NeMo"
#define AUTO "Automodel"
#define HUGG "Hugging Face"
#define SIGM "sigma-MoE"
#define TENS "tensor2tensor"

/* Entries read better than aligned columns. What only switches off sets nothing: a name said again takes back
 * what it said before (layer_set.c), and the other switches of a file keep what they said. */
/* clang-format off */
static const alias_entry table[] = {
    {{NEMO, "moe_router_load_balancing_type", "aux_loss", NULL}, {{"aux_loss_type", "batch", NULL}}},
    {{NEMO, "moe_router_load_balancing_type", "seq_aux_loss", NULL}, {{"aux_loss_type", "sequence", NULL}}},
    {{NEMO, "moe_router_load_balancing_type", "global_aux_loss", NULL}, {{"aux_loss_type", "global", NULL}}},
    {{NEMO, "moe_router_load_balancing_type", "none", NULL}, {{"aux_loss_type", "none", NULL}}},
    {{NEMO, "moe_router_load_balancing_type", "sinkhorn", NULL},
     {{"router_type", "sinkhorn", NULL}, {"sinkhorn_variant", "megatron", NULL},
      {"aux_loss_type", "none", NULL}}},
    {{NEMO, "moe_router_load_balancing_type", "quantile_balancing", NULL},
     {{"router_type", "quantile", NULL}, {"aux_loss_type", "none", NULL}}},
    {{NEMO, "moe_router_load_balancing_type", "list",
      "set aux_loss_coeff, seq_aux_loss_coeff and global_aux_loss_coeff: each loss has its own"}, {{0}}},
    {{NEMO, "moe_aux_loss_coeff", "list",
      "set aux_loss_coeff, seq_aux_loss_coeff and global_aux_loss_coeff: each loss has its own"}, {{0}}},
    {{NEMO, "moe_aux_loss_coeff", "", NULL}, {{"aux_loss_coeff", "0", NULL}}},
    {{NEMO, "moe_z_loss_coeff", "", NULL}, {{"z_loss_coeff", "0", NULL}}},
    {{NEMO, "moe_router_dtype", "", NULL}, {{"router_dtype", "auto", NULL}}},
    {{NEMO, "moe_router_topk_scaling_factor", "", NULL}, {{"routed_scaling_factor", "1", NULL}}},
    {{NEMO, "moe_router_num_groups", "", NULL}, {{"num_groups", "0", NULL}}},
    {{NEMO, "moe_router_group_topk", "", NULL}, {{"group_top_k", "0", NULL}}},
    {{NEMO, "moe_input_jitter_eps", "", NULL}, {{"input_jitter_eps", "0", NULL}}},
    {{NEMO, "moe_latent_size", "", NULL}, {{"latent_size", "0", NULL}}},
    {{NEMO, "activation_func_clamp_value", "", NULL}, {{"activation_limit", "-1", NULL}}},
    {{NEMO, "moe_expert_capacity_factor", "", NULL}, {{"capacity_factor", "0", NULL}}},
    {{NEMO, "moe_expert_capacity_factor", "none", NULL}, {{"capacity_factor", "0", NULL}}},
    {{NEMO, "moe_apply_probs_on_input", "true", NULL}, {{"weight_apply", "input", NULL}}},
    {{NEMO, "moe_apply_probs_on_input", "false", NULL}, {{0}}},
    {{NEMO, "moe_router_force_load_balancing", "true", NULL}, {{"router_type", "random", NULL}}},
    {{NEMO, "moe_router_force_load_balancing", "false", NULL}, {{0}}},
    {{NEMO, "moe_router_force_biased", "", NULL}, {{0}}},
    {{NEMO, "moe_router_force_biased", "0", NULL},
     {{"router_type", "random", NULL}, {"force_bias_std", "0", NULL}}},
    {{NEMO, "moe_router_force_biased", "negative", NULL},
     {{"router_type", "random", NULL}, {"force_bias_std", "-", NULL}}},
    {{NEMO, "moe_router_force_biased", NULL,
      "its bias is drawn anew at every call; that of a negative number is drawn once: set router_type random "
      "and force_bias_std"}, {{0}}},
    {{NEMO, "moe_shared_expert_intermediate_size", "", NULL},
     {{"num_shared_experts", "0", NULL}, {"shared_expert_hidden_size", "0", NULL}}},
    {{NEMO, "moe_shared_expert_intermediate_size", "0", NULL},
     {{"num_shared_experts", "0", NULL}, {"shared_expert_hidden_size", "0", NULL}}},
    {{NEMO, "moe_shared_expert_intermediate_size", NULL, NULL},
     {{"num_shared_experts", "1", NULL}, {"shared_expert_hidden_size", NULL, NULL}}},
    {{NEMO, "moe_layer_recompute", "true", NULL}, {{"recompute", "layer", NULL}}},
    {{NEMO, "moe_layer_recompute", "false", NULL}, {{"recompute", "none", NULL}}},
    {{NEMO, "moe_token_dropping", "false", NULL}, {{0}}},
    {{NEMO, "moe_token_dropping", NULL,
      "set capacity_factor, and drop_policy: what exceeds a capacity is dropped"}, {{0}}},
    {{NEMO, "moe_token_dispatcher_type", NULL, NULL}, {{0}}}, /* no token is sent: whoever would, the numbers are these */
    {{NEMO, "moe_grouped_gemm", "true", NULL}, {{0}}},
    {{NEMO, "moe_grouped_gemm", NULL, "leave it out: experts are always one grouped product"}, {{0}}},
    {{NEMO, "moe_permute_fusion", "true", NULL}, {{0}}},
    {{NEMO, "moe_permute_fusion", NULL, "leave it out: tokens are always gathered while packed"}, {{0}}},
    {{NEMO, "expert_model_parallel_size", "1", NULL}, {{0}}},
    {{NEMO, "expert_model_parallel_size", NULL, "leave it out: all experts are on one machine"}, {{0}}},
    {{NEMO, "expert_tensor_parallel_size", "", NULL}, {{0}}},
    {{NEMO, "expert_tensor_parallel_size", "1", NULL}, {{0}}},
    {{NEMO, "expert_tensor_parallel_size", NULL, "leave it out: every expert is whole, on one machine"}, {{0}}},
    {{NEMO, "moe_router_fusion", "true", NULL}, {{0}}},
    {{NEMO, "moe_router_fusion", "false", NULL}, {{0}}},
    {{NEMO, "moe_shared_expert_overlap", "false", NULL}, {{0}}},
    {{NEMO, "moe_shared_expert_overlap", NULL,
      "leave it out: on one machine there is no exchange of tokens to overlap with"}, {{0}}},
    {{NEMO, "moe_enable_routing_replay", "false", NULL}, {{0}}},
    {{NEMO, "moe_enable_routing_replay", NULL,
      "leave it out: a call replays what moe_call.replay_expert says, and moekit eval --record-routes "
      "records"}, {{0}}},
    {{NEMO, "moe_router_topk_limited_devices", "", NULL}, {{0}}},
    {{NEMO, "moe_router_topk_limited_devices", NULL,
      "set num_groups and group_top_k: a group takes the place of a device"}, {{0}}},
    {{NEMO, "gated_linear_unit", NULL, "set activation: swiglu, geglu and reglu are gated"}, {{0}}},
    {{NEMO, "activation_func", NULL,
      "set activation: silu is swiglu where gated_linear_unit is true, and silu where it is false"}, {{0}}},
    {{NEMO, "frozen_expert_bias", "false", NULL}, {{0}}},
    {{NEMO, "frozen_expert_bias", NULL,
      "set selection_bias_update_rate 0: the selection bias stays as it is"}, {{0}}},
    {{NEMO, "moe_use_upcycling", "false", NULL}, {{0}}},
    {{NEMO, "moe_use_upcycling", NULL, "leave it out: experts are not made of a dense model's FFN"}, {{0}}},

    {{AUTO, "gate_bias_update_factor", "0", NULL},
     {{"selection_bias", "false", "unset"}, {"selection_bias_update_rate", "0", NULL}}},
    {{AUTO, "gate_bias_update_factor", NULL, NULL},
     {{"selection_bias", "true", NULL}, {"selection_bias_update_rate", NULL, NULL}}},
    {{AUTO, "force_e_score_correction_bias", "true", NULL}, {{"selection_bias", "true", NULL}}},
    {{AUTO, "force_e_score_correction_bias", "false", NULL}, {{0}}},
    {{AUTO, "apply_router_weight_after_down", "true", NULL}, {{"weight_apply", "output", NULL}}},
    {{AUTO, "apply_router_weight_after_down", "false", NULL}, {{"weight_apply", "hidden", NULL}}},
    {{AUTO, "train_gate", "true", NULL}, {{"router_frozen", "false", NULL}}},
    {{AUTO, "train_gate", "false", NULL}, {{"router_frozen", "true", NULL}}},
    {{AUTO, "fake_balanced_gate", "true", NULL}, {{"router_type", "balanced", NULL}}},
    {{AUTO, "fake_balanced_gate", "false", NULL}, {{0}}},
    {{AUTO, "gate_precision", "", NULL}, {{"router_dtype", "auto", NULL}}},
    {{AUTO, "gate_precision", "float32", NULL}, {{"router_dtype", "f32", NULL}}},
    {{AUTO, "gate_precision", "torch.float32", NULL}, {{"router_dtype", "f32", NULL}}},
    {{AUTO, "gate_precision", "float64", NULL}, {{"router_dtype", "f64", NULL}}},
    {{AUTO, "gate_precision", "torch.float64", NULL}, {{"router_dtype", "f64", NULL}}},
    {{AUTO, "router_dtype", "float32", NULL}, {{"router_dtype", "f32", NULL}}},
    {{AUTO, "router_dtype", "float64", NULL}, {{"router_dtype", "f64", NULL}}},
    {{AUTO, "score_func", "softmax_with_bias", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "true", NULL},
      {"selection_bias", "true", NULL}}},
    {{AUTO, "score_func", "sigmoid_with_bias", NULL},
     {{"score_function", "sigmoid", NULL}, {"score_before_topk", "true", NULL},
      {"selection_bias", "true", NULL}}},
    {{AUTO, "router_weights_fp32", "true", NULL}, {{0}}},
    {{AUTO, "router_weights_fp32", NULL, "leave it out: routing weights are never narrower than f32"}, {{0}}},
    {{AUTO, "ignore_router_for_ac", "true", NULL}, {{0}}},
    {{AUTO, "ignore_router_for_ac", "false", NULL}, {{0}}},
    {{AUTO, "enable_routing_replay", "false", NULL}, {{0}}},
    {{AUTO, "enable_routing_replay", NULL,
      "leave it out: a call replays what moe_call.replay_expert says, and moekit eval --record-routes "
      "records"}, {{0}}},

    /* what a family's code does without a setting of its own; the rest stands in its config.json */
    {{HUGG, "model_type", "mixtral", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "false", NULL}}},
    {{HUGG, "model_type", "olmoe", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "true", NULL}}},
    {{HUGG, "model_type", "qwen2_moe", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "true", NULL}}},
    {{HUGG, "model_type", "qwen3_moe", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "true", NULL}}},
    {{HUGG, "model_type", "deepseek_v2", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "true", NULL}}},
    {{HUGG, "model_type", "deepseek_v3", NULL},
     {{"score_function", "sigmoid", NULL}, {"score_before_topk", "true", NULL}, {"selection_bias", "true", NULL},
      {"group_score", "top2_sum", NULL}}},
    {{HUGG, "model_type", "gpt_oss",
      "set activation swigluoai, expert_bias and router_bias true, and leave hidden_act out: its code has an "
      "activation of its own, whatever that says"}, {{0}}},
    {{HUGG, "hidden_act", "silu", NULL}, {{"activation", "swiglu", NULL}}},
    {{HUGG, "hidden_act", "swish", NULL}, {{"activation", "swiglu", NULL}}},
    {{HUGG, "hidden_act", "gelu", NULL}, {{"activation", "geglu_exact", NULL}}},
    {{HUGG, "hidden_act", "gelu_pytorch_tanh", NULL}, {{"activation", "geglu", NULL}}},
    {{HUGG, "hidden_act", "gelu_new", NULL}, {{"activation", "geglu", NULL}}},
    {{HUGG, "hidden_act", "relu", NULL}, {{"activation", "reglu", NULL}}},
    {{HUGG, "topk_method", "greedy", NULL},
     {{"score_before_topk", "true", NULL}, {"selection_bias", "false", NULL},
      {"selection_bias_update_rate", "0", "unset"}}},
    {{HUGG, "topk_method", "group_limited_greedy", NULL},
     {{"group_score", "max", NULL}, {"score_before_topk", "true", NULL}, {"selection_bias", "false", NULL},
      {"selection_bias_update_rate", "0", "unset"}}},
    {{HUGG, "topk_method", "noaux_tc", NULL},
     {{"selection_bias", "true", NULL}, {"group_score", "top2_sum", NULL},
      {"selection_bias_update_rate", "0.001", "unset"},
      {"aux_loss_coeff", "0", "unset"}, {"z_loss_coeff", "0", "unset"}}},
    {{HUGG, "seq_aux", "true", NULL}, {{"aux_loss_type", "sequence", NULL}}},
    {{HUGG, "seq_aux", "false", NULL}, {{"aux_loss_type", "batch", NULL}}},
    {{HUGG, "shared_expert_intermediate_size", "0", NULL},
     {{"num_shared_experts", "0", NULL}, {"shared_expert_hidden_size", "0", NULL},
      {"shared_expert_gate", "false", NULL}}},
    {{HUGG, "shared_expert_intermediate_size", NULL, NULL},
     {{"num_shared_experts", "1", NULL}, {"shared_expert_hidden_size", NULL, NULL},
      {"shared_expert_gate", "true", NULL}}},
    {{HUGG, "intermediate_size", NULL,
      "set moe_intermediate_size, the experts' width; of Mixtral it is that, of Qwen and DeepSeek the width of "
      "layers without experts"}, {{0}}},
    {{HUGG, "mlp_only_layers", "", NULL}, {{0}}},
    {{HUGG, "mlp_only_layers", NULL,
      "a setting of the whole model, not of a layer: set model.dense_layers"}, {{0}}},
    {{HUGG, "decoder_sparse_step", "1", NULL}, {{0}}},
    {{HUGG, "decoder_sparse_step", NULL,
      "a setting of the whole model: set model.moe_layer_freq to it, and model.moe_layer_offset to one less"},
      {{0}}},
    {{HUGG, "first_k_dense_replace", "0", NULL}, {{0}}},
    {{HUGG, "first_k_dense_replace", NULL,
      "a setting of the whole model: set model.dense_layers to the numbers below it"}, {{0}}},

    {{SIGM, "selection_mode", "softmax", NULL},
     {{"score_function", "softmax", NULL}, {"score_before_topk", "true", "unset"}}},
    {{SIGM, "selection_mode", "sigmoid", NULL},
     {{"score_function", "sigmoid", NULL}, {"score_before_topk", "true", "unset"}}},
    {{SIGM, "selection_mode", "sinkmoid", NULL},
     {{"score_function", "sigmoid", NULL}, {"score_before_topk", "false", "unset"},
      {"router_type", "sinkhorn", NULL}, {"sinkhorn_variant", "sigma_moe", NULL}}},
    {{SIGM, "perplexity_reg", NULL, "set entropy_loss_coeff"}, {{0}}},
    {{SIGM, "activation_after_topk", "true", NULL}, {{"score_before_topk", "false", NULL}}},
    {{SIGM, "activation_after_topk", "false", NULL}, {{"score_before_topk", "true", NULL}}},
    {{SIGM, "v_dim", "", NULL}, {{"output_size", "0", NULL}}},
    {{SIGM, "bias", "true", NULL}, {{"expert_up_bias", "true", NULL}, {"output_bias", "true", NULL}}},
    {{SIGM, "bias", "false", NULL}, {{"expert_up_bias", "false", NULL}, {"output_bias", "false", NULL}}},

    {{TENS, "moe_use_second_place_loss", "0", NULL}, {{"second_place_loss_coeff", "0", NULL}}},
    {{TENS, "moe_use_second_place_loss", "false", NULL}, {{"second_place_loss_coeff", "0", NULL}}},
    {{TENS, "moe_use_second_place_loss", NULL,
      "set second_place_loss_coeff to half of gshard_loss_coeff"}, {{0}}},
    {{TENS, "noisy_gating", "true", NULL}, {{"router_type", "noisy_top_k", NULL}}},
    {{TENS, "noisy_gating", "false", NULL}, {{"router_type", "top_k", "noisy_top_k"}}},
    {{TENS, "moe_overhead_train", NULL, "set capacity_factor"}, {{0}}},
    {{TENS, "moe_overhead_eval", NULL, "set capacity_factor_eval"}, {{0}}},
    {{TENS, "moe_gating", NULL, "set router_type: gshard_top2 is its top_2, noisy_top_k its noisy gating"}, {{0}}},
    {{TENS, "moe_group_size", NULL,
      "set capacity_group sequence: the tokens that share a capacity are those of one sequence"}, {{0}}},
};
/* clang-format on */

enum { ENTRIES = sizeof table / sizeof *table };
_Static_assert(ENTRIES < 250, "a byte of moe_layer_desc.said tells an entry");

const moe_layer_alias *moe_layer_alias_at(size_t index) {
    return index < ENTRIES ? &table[index].alias : NULL;
}

const moe_alias_setting *moe_layer_alias_setting(const moe_layer_alias *alias, size_t index) {
    const alias_entry *entry = (const alias_entry *)(const void *)alias;
    return entry && index < SETTINGS && entry->setting[index].key ? &entry->setting[index] : NULL;
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
        {"[]",   ""     },
        {"~",    ""     }
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
        if (strcasecmp(value, words[i][0]) == 0) return words[i][1];
    return value;
}

/* Equal as words, case aside, or as numbers. */
static bool is_value(const char *value, const char *wanted) {
    char *end, *wanted_end;
    const double a = moei_real_parse(value, &end), b = moei_real_parse(wanted, &wanted_end);
    const bool number = end != value && !*end;
    if (strcmp(wanted, "negative") == 0) return number && a < 0;
    if (strcmp(wanted, "list") == 0) return strchr(value, ',') != NULL;
    if (strcasecmp(word_of(value), wanted) == 0) return true;
    return number && wanted_end != wanted && !*wanted_end && a == b;
}

static moe_status unknown_value(const char *name, const char *value, moe_error *error) {
    char list[256] = "";
    for (size_t i = 0; i < ENTRIES; ++i) {
        const moe_layer_alias *alias = &table[i].alias;
        if (strcmp(alias->name, name) == 0 && *alias->value && !alias->advice)
            moei_list_add(list, sizeof list, alias->value);
    }
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not one of: %s", name, value, list);
}

/* The name without the section that it may stand in, ours or theirs; NULL: in another. */
static const char *bare_name(const char *name) {
    static const char *const sections[] = {"moe.", "model."};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; ++i)
        if (strncmp(name, sections[i], strlen(sections[i])) == 0) name += strlen(sections[i]);
    return strchr(name, '.') ? NULL : name;
}

const moe_layer_alias *moe_layer_alias_named(const char *name) {
    if (!name) return NULL;
    const char *bare = bare_name(name);
    for (size_t i = 0; bare && i < ENTRIES; ++i)
        if (strcmp(table[i].alias.name, bare) == 0) return &table[i].alias;
    return NULL;
}

moe_status moe_layer_alias_find(const char *name, const char *value, const moe_layer_alias **alias,
                                moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_layer_alias_find", "name", name));
    MOEI_TRY(moei_error_need(error, "moe_layer_alias_find", "value", value));
    MOEI_TRY(moei_error_need(error, "moe_layer_alias_find", "alias", alias));
    const char *bare = bare_name(name);
    const moe_layer_alias *found = NULL;
    bool known = false;
    for (size_t i = 0; bare && !found && i < ENTRIES; ++i) {
        const moe_layer_alias *entry = &table[i].alias;
        if (strcmp(entry->name, bare) != 0) continue;
        known = true;
        if (entry->value && !is_value(value, entry->value)) continue;
        if (entry->advice)
            return moei_error_set(error, MOE_ERR_ARGUMENT, "%s (%s) cannot be '%.40s' here; %s", name,
                                  entry->system, value, entry->advice);
        found = entry;
    }
    /* of a name that is also that of a row only some values are told here */
    if (known && !found && !moe_layer_option_find(bare)) return unknown_value(bare, value, error);
    *alias = found;
    return MOE_OK;
}
