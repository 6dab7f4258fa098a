/* config_check.c: what settings must be to each other, and the layer descriptor they make.
 * Limits of single settings are in the tables; these are the combinations.
 * Source: lm/model needs whole heads, even rotary widths and sequences within the context.
 */
#include "config/config.h"
#include "core/desc.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t top_k_of(const moe_layer_desc *moe) {
    if (moe->top_k > 0) return moe->top_k;
    return moe->num_experts < 2 ? moe->num_experts : 2;
}

static int64_t shared_width(const moe_layer_desc *moe) {
    int64_t each = moe->shared_expert_hidden_size ? moe->shared_expert_hidden_size : moe->expert_hidden_size;
    return moe->num_shared_experts * each;
}

bool moelm_config_next_layer(const char **at, int32_t *layer) {
    char *end;
    if (!isdigit((unsigned char)**at)) return false;
    const long number = strtol(*at, &end, 10);
    *layer = number < MOELM_MAX_LAYERS ? (int32_t)number : MOELM_MAX_LAYERS; /* no layer either */
    *at = end + (end[0] == ',' && end[1] != '\0');
    return true;
}

static bool is_listed(const char *list, int32_t index) {
    for (int32_t layer; moelm_config_next_layer(&list, &layer);)
        if (layer == index) return true;
    return false;
}

bool moelm_config_is_routed(const moe_lm_config *config, int32_t index) {
    const moelm_model_config *m = &config->model;
    return m->moe_layer_freq > 0 && index % m->moe_layer_freq == m->moe_layer_offset &&
           config->moe.num_experts > 0 && !is_listed(m->dense_layers, index);
}

/* The first layer that has routed experts, or has none; -1: no layer is such a one. */
static int32_t first_layer(const moe_lm_config *config, bool routed) {
    for (int32_t i = 0; i < config->model.n_layers; ++i)
        if (moelm_config_is_routed(config, i) == routed) return i;
    return -1;
}

static bool has_routed(const moe_lm_config *config) {
    return first_layer(config, true) >= 0;
}

/* A dense layer is as wide as what one token meets in a routed one, so that the two compare. */
int64_t moelm_config_dense_width(const moe_lm_config *config) {
    if (config->model.ffn_hidden_size > 0) return config->model.ffn_hidden_size;
    const moe_layer_desc *moe = &config->moe;
    return (int64_t)top_k_of(moe) * moe->expert_hidden_size + shared_width(moe);
}

/* A dense layer is one shared expert: of the routed layers' settings it keeps those of an FFN. */
static moe_layer_desc dense_desc(const moe_layer_desc *routed, int32_t width) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .dtype = routed->dtype,
                            .d_model = routed->d_model,
                            .activation = routed->activation,
                            .glu_layout = routed->glu_layout,
                            .activation_alpha = routed->activation_alpha,
                            .activation_limit = routed->activation_limit,
                            .glu_linear_offset = routed->glu_linear_offset,
                            .expert_bias = routed->expert_bias,
                            .expert_up_bias = routed->expert_up_bias,
                            .num_shared_experts = 1,
                            .shared_expert_hidden_size = width,
                            .init_scheme = routed->init_scheme,
                            .init_std_down = routed->init_std_down,
                            .recompute = routed->recompute,
                            .saved_dtype = routed->saved_dtype,
                            .layer_index = routed->layer_index};
}

static float init_std(const moe_lm_config *config) {
    if (config->moe.init_std != 0) return config->moe.init_std;
    return config->model.init_std > 0 ? config->model.init_std : MOE_ZERO;
}

/* A layer that has no use for a deviation refuses it. One with other faults tells them when it is checked. */
static bool draws_by_std(const moe_layer_desc *desc) {
    moe_layer_desc filled = {.size = sizeof filled};
    return moe_layer_desc_fill(desc, &filled, NULL) == MOE_OK && filled.init_std != 0;
}

void moelm_config_layer(const moe_lm_config *config, int32_t index, moe_layer_desc *desc) {
    *desc = config->moe;
    desc->size = sizeof *desc;
    desc->dtype = moelm_config_dtype(config);
    desc->d_model = config->model.d_model;
    desc->layer_index = index;
    const float std = init_std(config);
    if (desc->init_std_down == 0 && desc->init_scheme && strcmp(desc->init_scheme, "megatron_scaled") == 0)
        desc->init_std_down = std > 0 ? std / sqrtf(2.0f * (float)config->model.n_layers) : MOE_ZERO;
    if (!moelm_config_is_routed(config, index))
        *desc = dense_desc(desc, (int32_t)moelm_config_dense_width(config));
    if (desc->init_std == 0 && draws_by_std(desc)) desc->init_std = std;
}

moe_dtype moelm_config_dtype(const moe_lm_config *config) {
    return strcmp(config->model.dtype, "bf16") == 0 ? MOE_BF16 : MOE_F32;
}

int64_t moelm_config_length(const moe_lm_config *config) {
    return config->train.length ? config->train.length : config->model.context;
}

static moe_status check_heads(const moelm_model_config *m, moe_error *error) {
    if (m->head_dim == 0 && m->d_model % m->n_heads != 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.n_heads: %d heads do not divide model.d_model %d; change one of them or "
                              "set model.head_dim",
                              m->n_heads, m->d_model);
    int32_t head_dim = m->head_dim ? m->head_dim : m->d_model / m->n_heads;
    if (head_dim > MOELM_MAX_HEAD_DIM)
        return moei_error_set(
            error, MOE_ERR_ARGUMENT,
            "model.head_dim: model.d_model %d over model.n_heads %d is %d, but the limit is "
            "%d; use more heads",
            m->d_model, m->n_heads, head_dim, MOELM_MAX_HEAD_DIM);
    if (head_dim % 2 != 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.head_dim: %d is odd, and the rotary embedding turns pairs; make it even",
                              head_dim);
    if (m->n_kv_heads > 0 && m->n_heads % m->n_kv_heads != 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.n_kv_heads: %d do not divide model.n_heads %d; every key head serves "
                              "equally many query heads",
                              m->n_kv_heads, m->n_heads);
    return MOE_OK;
}

/* Which layers have experts. */
static moe_status check_pattern(const moe_lm_config *config, moe_error *error) {
    const moelm_model_config *m = &config->model;
    const char *list = m->dense_layers;
    if (m->moe_layer_freq == 0 && (m->moe_layer_offset > 0 || *list))
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.moe_layer_freq: 0 leaves no layer with experts; leave "
                              "model.moe_layer_offset and model.dense_layers out");
    if (m->moe_layer_offset > 0 && m->moe_layer_offset >= m->moe_layer_freq)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.moe_layer_offset: %d must be below model.moe_layer_freq %d",
                              m->moe_layer_offset, m->moe_layer_freq);
    for (int32_t layer; moelm_config_next_layer(&list, &layer);)
        if (layer >= m->n_layers)
            return moei_error_set(error, MOE_ERR_ARGUMENT,
                                  "model.dense_layers: '%.100s' names a layer outside 0 .. %d",
                                  m->dense_layers, m->n_layers - 1);
    if (*list)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.dense_layers: '%.100s' is no list of layers, as 0,3 without blanks",
                              m->dense_layers);
    if (m->moe_layer_freq > 0 && config->moe.num_experts > 0 && !has_routed(config))
        return moei_error_set(
            error, MOE_ERR_ARGUMENT,
            "model.dense_layers: with model.moe_layer_freq and model.moe_layer_offset it leaves "
            "none of %d layers with experts; model.moe_layer_freq 0 says that",
            m->n_layers);
    return MOE_OK;
}

static moe_status check_experts(const moe_lm_config *config, moe_error *error) {
    const moe_layer_desc *moe = &config->moe;
    const bool any_routed = has_routed(config), any_dense = first_layer(config, false) >= 0;
    if (any_routed && moe->top_k > moe->num_experts)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "moe.top_k: %d is more than moe.num_experts %d",
                              moe->top_k, moe->num_experts);
    if (moe->output_size > 0 && moe->output_size != config->model.d_model)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "moe.output_size: %d, but the model's layers are all model.d_model = %d wide",
                              moe->output_size, config->model.d_model);
    if (any_dense && moelm_config_dense_width(config) == 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "model.ffn_hidden_size: 0, and there are no experts to take a width from");
    if (any_dense && moelm_config_dense_width(config) > MOELM_MAX_WIDTH)
        return moei_error_set(
            error, MOE_ERR_ARGUMENT,
            "model.ffn_hidden_size: 0 makes a dense layer as wide as moe.top_k experts and the "
            "shared ones, %lld, but the limit is %d; set it",
            (long long)moelm_config_dense_width(config), MOELM_MAX_WIDTH);
    return MOE_OK;
}

/* Whether a setting of the layer has a say where no layer has routed experts: those of an FFN, and the sizes
 * that its width may come from. */
static bool acts_when_dense(const moe_lm_config *config, const moe_option *row) {
    static const char *const kept[] = {
        "moe.num_experts", "moe.top_k",       "moe.expert_hidden_size", "moe.num_shared_experts",
        "moe.activation",  "moe.glu_layout",  "moe.activation_alpha",   "moe.activation_limit",
        "moe.output_size", "moe.expert_bias", "moe.expert_up_bias",     "moe.glu_linear_offset",
        "moe.init_scheme", "moe.init_std",    "moe.init_std_down",      "moe.recompute",
        "moe.saved_dtype"};
    if (strncmp(row->key, "moe.", 4) != 0) return true;
    if (strcmp(row->key, "moe.shared_expert_hidden_size") == 0) return config->moe.num_shared_experts > 0;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; ++i)
        if (strcmp(row->key, kept[i]) == 0) return true;
    return false;
}

/* A dense model is told nothing that it would ignore. */
static moe_status check_dense(const moe_lm_config *config, moe_error *error) {
    const char *why = config->model.moe_layer_freq > 0 ? "moe.num_experts" : "model.moe_layer_freq";
    for (size_t i = 0; i < config->count && !has_routed(config); ++i) {
        const moe_option *row = &config->row[i];
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(config, i, &entry);
        if (acts_when_dense(config, row) || strcmp(entry.value, row->initial) == 0) continue;
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "%s: %.100s is of routed experts, and %s 0 leaves none; leave it out", row->key,
                              entry.value, why);
    }
    return MOE_OK;
}

moe_status moe_lm_config_make_dense(moe_lm_config *config, const char *origin, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_make_dense", "config", config));
    MOEI_TRY(moe_lm_config_set(config, "model.moe_layer_freq", "0", origin, error));
    MOEI_TRY(moe_lm_config_set(config, "model.moe_layer_offset", "0", origin, error));
    MOEI_TRY(moe_lm_config_set(config, "model.dense_layers", "", origin, error));
    for (size_t i = 0; i < config->count; ++i)
        if (!acts_when_dense(config, &config->row[i]))
            MOEI_TRY(moei_option_set(&config->row[i], config, config->row[i].initial, error));
    return MOE_OK;
}

/* The mean of a sequence holds the tokens that the model is to predict. */
static moe_status check_router(const moe_lm_config *config, moe_error *error) {
    const char *unit = config->moe.routing_unit;
    if (!has_routed(config) || !unit || strcmp(unit, "token") == 0) return MOE_OK;
    const bool task = strcmp(unit, "task") == 0;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "moe.routing_unit: %s; a language model routes by token",
                          task ? "task, but a text has no tasks"
                               : "sequence would route by tokens that are yet to be predicted");
}

typedef struct rule {
    bool used, right;
    const char *text;
} rule;

static bool is_one_of(const char *value, const char *a, const char *b, const char *c) {
    return value && (strcmp(value, a) == 0 || strcmp(value, b) == 0 || strcmp(value, c) == 0);
}

/* An alarm that cannot ring, or an action that cannot happen, is no protection. */
static moe_status check_alarms(const moe_lm_config *config, moe_error *error) {
    const moelm_train_config *train = &config->train;
    const moe_layer_desc *moe = &config->moe;
    const bool bound = train->alarm_entropy > 0 || train->alarm_dropped > 0;
    const bool dead = train->alarm_dead_steps > 0, revive = strcmp(train->alarm_action, "revive") == 0;
    const bool limited = moe->capacity_factor > 0 || moe->capacity_factor_eval > 0;
    /* clang-format off */
    const rule rules[] = {
        {dead || bound, has_routed(config), "alarm_*: there are no routed experts to watch"},
        {train->alarm_steps > 1, bound, "alarm_steps: needs train.alarm_entropy or train.alarm_dropped"},
        {train->alarm_dropped > 0, limited,
         "alarm_dropped: needs moe.capacity_factor: a dropless layer drops nothing"},
        {strcmp(train->alarm_action, "warn") != 0, dead || bound,
         "alarm_action: needs train.alarm_dead_steps, train.alarm_entropy or train.alarm_dropped"},
        {revive, dead, "alarm_action: revive needs train.alarm_dead_steps"},
        {revive, !moe->expert_kinds || !*moe->expert_kinds,
         "alarm_action: revive copies one expert over another, but moe.expert_kinds makes them unequal"},
        {revive, !is_one_of(moe->expert, "identity", "zero", ""),
         "alarm_action: revive copies one expert over another, but those of moe.expert identity and zero have "
         "nothing to copy"},
        {revive, !is_one_of(moe->router_type, "hash", "random", "balanced"),
         "alarm_action: revive changes the router, but moe.router_type hash, random and balanced do not read "
         "it: the expert would stay dead"},
        {revive, !moe->router_frozen,
         "alarm_action: revive changes the router, which moe.router_frozen keeps"},
        {revive, moe->num_groups_outer == 0,
         "alarm_action: revive needs one level of experts, not moe.num_groups_outer"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof rules / sizeof *rules; ++i)
        if (rules[i].used && !rules[i].right)
            return moei_error_set(error, MOE_ERR_ARGUMENT, "train.%s", rules[i].text);
    return MOE_OK;
}

/* clang-format off */
static const char by_expert[] =
    "moe.router_type expert_choice: experts choose among all tokens of a batch, also those yet to be predicted";
static const char by_weight[] =
    "moe.drop_policy probs: a full expert keeps the largest weights, also of tokens yet to be predicted; "
    "policy position, or moe.capacity_factor_eval -1, does not look ahead";
static const char by_rank[] =
    "moe.drop_policy rank_major: a full expert keeps first choices before second ones, also of tokens yet to be "
    "predicted; moe.capacity_factor_eval -1, of two levels capacity_factor_inner -1 too, does not look ahead";
/* clang-format on */

const char *moe_lm_config_foresight(const moe_lm_config *config) {
    moe_layer_desc desc, filled = {.size = sizeof filled};
    if (!config || !has_routed(config)) return NULL;
    moelm_config_layer(config, first_layer(config, true), &desc);
    if (moe_layer_desc_fill(&desc, &filled, NULL) != MOE_OK) return NULL;
    if (strcmp(filled.router_type, "expert_choice") == 0) return by_expert;
    if (!moei_desc_limited(&filled) || strcmp(filled.drop_policy, "position") == 0) return NULL;
    return strcmp(filled.drop_policy, "probs") == 0 ? by_weight : by_rank;
}

/* The layer knows what its settings are to each other. Of each kind the first is like the others. */
static moe_status check_layers(const moe_lm_config *config, moe_error *error) {
    for (int routed = 1; routed >= 0; --routed) {
        const int32_t first = first_layer(config, routed);
        moe_layer_desc desc;
        moe_error inner;
        if (first < 0) continue;
        moelm_config_layer(config, first, &desc);
        moe_status status = moe_layer_desc_check(&desc, &inner);
        if (status == MOE_OK) continue;
        const char *section = strncmp(inner.text, "moe.", 4) == 0 ? "" : "moe.";
        return moei_error_set(error, status, "%s%s", section, inner.text);
    }
    return MOE_OK;
}

static moe_status check_all(const moe_lm_config *config, moe_error *error) {
    const moelm_train_config *train = &config->train;
    MOEI_TRY(check_heads(&config->model, error));
    MOEI_TRY(check_pattern(config, error));
    MOEI_TRY(check_dense(config, error));
    MOEI_TRY(check_experts(config, error));
    MOEI_TRY(check_router(config, error));
    MOEI_TRY(check_alarms(config, error));
    MOEI_TRY(check_layers(config, error));
    if (train->eval_bytes == 1)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "train.eval_bytes: 1; it takes 2 or more to predict one, or 0 for all");
    if (train->length > config->model.context)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "train.length: %lld tokens do not fit model.context %d; raise the context",
                              (long long)train->length, config->model.context);
    return MOE_OK;
}

/* Where the setting that a text begins with stands, "a.yaml:3" or a variable: who wrote another system's name
 * there knows ours no better. NULL: on no such place. */
static const char *place_of(const moe_lm_config *config, const char *text) {
    const size_t length = strcspn(text, ":");
    for (size_t i = 0; i < config->count; ++i) {
        const char *key = config->row[i].key, *origin = config->origin[i];
        if (strncmp(key, text, length) != 0 || key[length] != '\0') continue;
        return strchr(origin, ':') || strncmp(origin, "MOEKIT_", 7) == 0 ? origin : NULL;
    }
    return NULL;
}

moe_status moe_lm_config_check(const moe_lm_config *config, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_check", "config", config));
    moe_error found;
    const moe_status status = check_all(config, &found);
    if (status == MOE_OK) return MOE_OK;
    const char *place = place_of(config, found.text);
    return moei_error_set(error, status, "%s%s%s", place ? place : "", place ? ": " : "", found.text);
}
