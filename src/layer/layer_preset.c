/* layer_preset.c: systems as bundles of settings: what makes a layer theirs, sizes left alone.
 * A preset is a list of "key value" pairs through moe_layer_desc_set, so it cannot say what a user cannot.
 * What it does not name is at its default, so one preset after another is the other. Source: the defaults of
 * each system's own configuration class.
 */
#include "layer/layer_desc.h"

#include <string.h>

enum { SETTINGS = 14 };

typedef struct preset {
    const char *name;
    const char *setting[SETTINGS][2]; /* key, value; NULL ends it */
} preset;

/* clang-format off */
static const preset presets[] = {
    {"mixtral", {
        {"moe.activation", "swiglu"},
        {"moe.aux_loss_coeff", "0.02"}}},
    {"deepseek_v3", {
        {"moe.activation", "swiglu"},
        {"moe.num_shared_experts", "1"},
        {"moe.score_function", "sigmoid"},
        {"moe.score_before_topk", "true"},
        {"moe.norm_topk_prob", "true"},
        {"moe.routed_scaling_factor", "2.5"},
        {"moe.num_groups", "8"},
        {"moe.group_top_k", "4"},
        {"moe.selection_bias", "true"},
        {"moe.selection_bias_update_rate", "0.001"},
        {"moe.seq_aux_loss_coeff", "0.0001"}}},
    {"megatron", {
        {"moe.activation", "swiglu"},
        {"moe.weight_apply", "hidden"},
        {"moe.aux_loss_coeff", "0.01"},
        {"moe.z_loss_coeff", "0.001"},
        {"moe.aux_map", "plain"}}},
    {"automodel", {
        {"moe.activation", "swiglu"},
        {"moe.weight_apply", "hidden"},
        {"moe.score_function", "sigmoid"},
        {"moe.score_before_topk", "true"},
        {"moe.norm_topk_prob", "true"},
        {"moe.selection_bias", "true"},
        {"moe.selection_bias_update_rate", "0.001"},
        {"moe.aux_loss_coeff", "0.001"}}},
    {"lucidrains", {
        {"moe.activation", "relu"},
        {"moe.router_type", "gshard_top2"},
        {"moe.second_policy_train", "random"},
        {"moe.second_policy_eval", "random"},
        {"moe.capacity_factor", "1.25"},
        {"moe.capacity_factor_eval", "2"},
        {"moe.capacity_formula", "lucidrains"},
        {"moe.capacity_group", "sequence"},
        {"moe.drop_policy", "rank_major"},
        {"moe.gshard_loss_coeff", "0.01"},
        {"moe.init_scheme", "lucid_uniform"},
        {"moe.router_init", "normal_unit"}}},
    {"t2t_top2", {
        {"moe.activation", "relu"},
        {"moe.router_type", "gshard_top2"},
        {"moe.second_policy_train", "random"},
        {"moe.second_policy_eval", "random"},
        {"moe.capacity_factor", "1.25"},
        {"moe.capacity_factor_eval", "2"},
        {"moe.capacity_formula", "gshard"},
        {"moe.capacity_group", "sequence"},
        {"moe.drop_policy", "rank_major"},
        {"moe.gshard_loss_coeff", "0.01"}}},
    {"t2t_noisy", {
        {"moe.activation", "relu"},
        {"moe.router_type", "noisy_top_k"},
        {"moe.noise_epsilon", "0.01"},
        {"moe.importance_loss_coeff", "0.01"},
        {"moe.load_loss_coeff", "0.01"},
        {"moe.router_init", "zeros"}}},
    {"sigma_moe", {
        {"moe.activation", "relu"},
        {"moe.score_function", "sigmoid"},
        {"moe.score_before_topk", "true"},
        {"moe.expert_dropout", "0.05"},
        {"moe.entropy_loss_coeff", "0.001"},
        {"moe.init_scheme", "sigma_moe"},
        {"moe.router_init", "normal_fan_in_renorm"}}},
};
/* clang-format on */

static const char *const names[] = {"mixtral",  "deepseek_v3", "megatron",  "automodel", "lucidrains",
                                    "t2t_top2", "t2t_noisy",   "sigma_moe", NULL};

const char *const *moe_layer_presets(void) {
    return names;
}

bool moe_layer_preset_sets(const char *key) {
    static const char *const kept[] = {"moe.d_model",
                                       "moe.output_size",
                                       "moe.num_experts",
                                       "moe.num_groups_outer",
                                       "moe.top_k",
                                       "moe.top_k_min",
                                       "moe.expert_hidden_size",
                                       "moe.latent_size",
                                       "moe.expert",
                                       "moe.expert_kinds",
                                       "moe.shared_expert_hidden_size",
                                       "moe.init_std",
                                       "moe.init_std_down",
                                       "moe.recompute"};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; ++i)
        if (strcmp(key, kept[i]) == 0) return false;
    return true;
}

static moe_status reset(moe_layer_desc *desc, moe_error *error) {
    const moei_option_table table = moei_layer_option_table();
    for (size_t i = 0; i < table.count; ++i)
        if (moe_layer_preset_sets(table.row[i].key))
            MOEI_TRY(moei_option_set(&table.row[i], desc, table.row[i].initial, error));
    return MOE_OK;
}

/* tensor2tensor fills the second of two levels more tightly than the first, and gives both a least capacity.
 */
static moe_status set_levels(moe_layer_desc *desc, const char *name, moe_error *error) {
    if (desc->num_groups_outer == 0 || strcmp(name, "t2t_top2") != 0) return MOE_OK;
    MOEI_TRY(moe_layer_desc_set(desc, "moe.min_capacity", "4", error));
    return moe_layer_desc_set(desc, "moe.capacity_factor_inner", "1", error);
}

moe_status moe_layer_desc_preset(moe_layer_desc *desc, const char *name, moe_error *error) {
    for (size_t i = 0; i < sizeof presets / sizeof *presets; ++i) {
        if (strcmp(presets[i].name, name) != 0) continue;
        MOEI_TRY(reset(desc, error));
        for (size_t s = 0; s < SETTINGS && presets[i].setting[s][0]; ++s)
            MOEI_TRY(moe_layer_desc_set(desc, presets[i].setting[s][0], presets[i].setting[s][1], error));
        return set_levels(desc, name, error);
    }
    char list[256] = "";
    for (size_t i = 0; names[i]; ++i) {
        if (i) strncat(list, ", ", sizeof list - strlen(list) - 1);
        strncat(list, names[i], sizeof list - strlen(list) - 1);
    }
    return moei_error_set(error, MOE_ERR_ARGUMENT, "preset: '%s' is not one of: %s", name, list);
}
