/* layer_preset.c: systems as bundles of settings: what makes a layer theirs, sizes left alone.
 * A preset is a list of keys and values as a user writes them, so it cannot say what a user cannot.
 * What it does not name is at its default, so one preset after another is the other. Source: the defaults of
 * each system's own configuration class.
 */
#include "layer/layer_desc.h"

#include <string.h>

enum { SETTINGS = 14 };

typedef enum preset {
    PRESET_MIXTRAL,
    PRESET_DEEPSEEK_V3,
    PRESET_MEGATRON,
    PRESET_AUTOMODEL,
    PRESET_LUCIDRAINS,
    PRESET_T2T_TOP2,
    PRESET_T2T_NOISY,
    PRESET_SIGMA_MOE,
    PRESETS
} preset;

static const char *const names[] = {
    [PRESET_MIXTRAL] = "mixtral",     [PRESET_DEEPSEEK_V3] = "deepseek_v3", [PRESET_MEGATRON] = "megatron",
    [PRESET_AUTOMODEL] = "automodel", [PRESET_LUCIDRAINS] = "lucidrains",   [PRESET_T2T_TOP2] = "t2t_top2",
    [PRESET_T2T_NOISY] = "t2t_noisy", [PRESET_SIGMA_MOE] = "sigma_moe",     [PRESETS] = NULL,
};

/* clang-format off */
/* key, value; NULL ends them */
static const char *const settings[PRESETS][SETTINGS][2] = {
    [PRESET_MIXTRAL] = {
        {"moe.activation", "swiglu"},
        {"moe.aux_loss_coeff", "0.02"}},
    [PRESET_DEEPSEEK_V3] = {
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
        {"moe.seq_aux_loss_coeff", "0.0001"}},
    [PRESET_MEGATRON] = {
        {"moe.activation", "swiglu"},
        {"moe.weight_apply", "hidden"},
        {"moe.aux_loss_coeff", "0.01"},
        {"moe.z_loss_coeff", "0.001"},
        {"moe.aux_map", "plain"}},
    [PRESET_AUTOMODEL] = {
        {"moe.activation", "swiglu"},
        {"moe.weight_apply", "hidden"},
        {"moe.score_function", "sigmoid"},
        {"moe.score_before_topk", "true"},
        {"moe.norm_topk_prob", "true"},
        {"moe.selection_bias", "true"},
        {"moe.selection_bias_update_rate", "0.001"},
        {"moe.aux_loss_coeff", "0.001"}},
    [PRESET_LUCIDRAINS] = {
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
        {"moe.router_init", "normal_unit"}},
    [PRESET_T2T_TOP2] = {
        {"moe.activation", "relu"},
        {"moe.router_type", "gshard_top2"},
        {"moe.second_policy_train", "random"},
        {"moe.second_policy_eval", "random"},
        {"moe.capacity_factor", "1.25"},
        {"moe.capacity_factor_eval", "2"},
        {"moe.capacity_formula", "gshard"},
        {"moe.capacity_group", "sequence"},
        {"moe.drop_policy", "rank_major"},
        {"moe.gshard_loss_coeff", "0.01"}},
    [PRESET_T2T_NOISY] = {
        {"moe.activation", "relu"},
        {"moe.router_type", "noisy_top_k"},
        {"moe.noise_epsilon", "0.01"},
        {"moe.importance_loss_coeff", "0.01"},
        {"moe.load_loss_coeff", "0.01"},
        {"moe.router_init", "zeros"}},
    [PRESET_SIGMA_MOE] = {
        {"moe.activation", "relu"},
        {"moe.score_function", "sigmoid"},
        {"moe.score_before_topk", "true"},
        {"moe.expert_dropout", "0.05"},
        {"moe.entropy_loss_coeff", "0.001"},
        {"moe.init_scheme", "sigma_moe"},
        {"moe.router_init", "normal_fan_in_renorm"}},
};
/* clang-format on */

const char *const *moe_layer_presets(void) {
    return names;
}

bool moe_layer_preset_sets(const char *key) {
    if (!key) return false;
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
                                       "moe.recompute",
                                       "moe.saved_dtype"};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; ++i)
        if (strcmp(key, kept[i]) == 0) return false;
    return true;
}

static moe_status reset(moe_layer_desc *desc, moe_error *error) {
    const moei_option_table table = moei_layer_option_table();
    for (size_t i = 0; i < table.count; ++i)
        if (moe_layer_preset_sets(table.row[i].key))
            MOEI_TRY(moei_layer_desc_imply(desc, &table.row[i], table.row[i].initial, error));
    return MOE_OK;
}

/* A preset's settings are nobody's word: what other names imply goes before them. */
static moe_status set(moe_layer_desc *desc, const char *const setting[2], moe_error *error) {
    return moei_layer_desc_imply(desc, moe_layer_option_find(setting[0]), setting[1], error);
}

/* tensor2tensor fills the second of two levels more tightly than the first, and gives both a least capacity.
 */
static moe_status set_levels(moe_layer_desc *desc, moe_error *error) {
    static const char *const levels[][2] = {
        {"moe.min_capacity",          "4"},
        {"moe.capacity_factor_inner", "1"}
    };
    for (size_t i = 0; i < sizeof levels / sizeof *levels; ++i) MOEI_TRY(set(desc, levels[i], error));
    return MOE_OK;
}

moe_status moe_layer_desc_preset(moe_layer_desc *desc, const char *name, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_preset", "desc", desc));
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_preset", "name", name));
    const int32_t place = moei_option_place(name, names);
    char list[256] = "";
    for (size_t i = 0; i < PRESETS; ++i) moei_list_add(list, sizeof list, names[i]);
    if (place < 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "preset: '%s' is not one of: %s", name, list);
    moe_layer_desc d;
    MOEI_TRY(moei_layer_desc_open(desc, &d, error));
    MOEI_TRY(reset(&d, error));
    for (size_t i = 0; i < SETTINGS && settings[place][i][0]; ++i)
        MOEI_TRY(set(&d, settings[place][i], error));
    if (place == PRESET_T2T_TOP2 && d.num_groups_outer > 0) MOEI_TRY(set_levels(&d, error));
    return moei_layer_desc_close(desc, &d, error);
}
