/* config_layers.c: which layers have experts, as Hugging Face's configurations say it.
 * mlp_only_layers "0,3", first_k_dense_replace "2", decoder_sparse_step "2" -> settings of model.*.
 * Source: Qwen3MoeConfig and DeepseekV3Config of the transformers library: layer i has experts where i is not
 * among mlp_only_layers, is at least first_k_dense_replace, and i + 1 is divided by decoder_sparse_step.
 */
#include "config/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static moe_status whole_number(const char *name, const char *value, long least, long *number,
                               moe_error *error) {
    char *end;
    errno = 0;
    *number = strtol(value, &end, 10);
    if (end != value && *end == '\0' && errno == 0 && *number >= least && *number <= MOELM_MAX_LAYERS)
        return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%.40s' is not a whole number in %ld .. %d", name,
                          value, least, MOELM_MAX_LAYERS);
}

static void add(moelm_config_pairs *pairs, const char *key) {
    pairs->key[pairs->count++] = key;
}

static moe_status of_step(const char *name, const char *value, moelm_config_pairs *pairs, moe_error *error) {
    long step = 1;
    if (*value) MOEI_TRY(whole_number(name, value, 1, &step, error));
    add(pairs, "model.moe_layer_freq");
    snprintf(pairs->value[0], sizeof pairs->value[0], "%ld", step);
    add(pairs, "model.moe_layer_offset");
    snprintf(pairs->value[1], sizeof pairs->value[1], "%ld", step - 1);
    return MOE_OK;
}

static moe_status of_first(const char *name, const char *value, moelm_config_pairs *pairs, moe_error *error) {
    char *list = pairs->value[0];
    size_t used = 0, room = sizeof pairs->value[0];
    long first = 0;
    if (*value) MOEI_TRY(whole_number(name, value, 0, &first, error));
    add(pairs, "model.dense_layers");
    list[0] = '\0';
    for (long i = 0; i < first && used < room; ++i)
        used += (size_t)snprintf(list + used, room - used, "%s%ld", i ? "," : "", i);
    if (used < room) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "%s: a list of so many layers does not fit model.dense_layers, %d bytes", name,
                          MOELM_PATH - 1);
}

static moe_status of_list(const char *name, const char *value, moelm_config_pairs *pairs, moe_error *error) {
    if (strlen(value) >= sizeof pairs->value[0])
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: longer than %d bytes", name, MOELM_PATH - 1);
    add(pairs, "model.dense_layers");
    strcpy(pairs->value[0], value);
    return MOE_OK;
}

moe_status moelm_config_layers(const char *name, const char *value, moelm_config_pairs *pairs,
                               moe_error *error) {
    static const struct {
        const char *name;
        moe_status (*read)(const char *name, const char *value, moelm_config_pairs *pairs, moe_error *error);
    } names[] = {
        {"mlp_only_layers",       of_list },
        {"first_k_dense_replace", of_first},
        {"decoder_sparse_step",   of_step }
    };
    static const char *const none[] = {"null", "~", "[]"};
    const moe_layer_alias *known = moe_layer_alias_named(name);
    pairs->count = 0;
    for (size_t i = 0; i < sizeof none / sizeof *none; ++i)
        if (strcmp(value, none[i]) == 0) value = "";
    for (size_t i = 0; known && i < sizeof names / sizeof *names; ++i)
        if (strcmp(known->name, names[i].name) == 0) return names[i].read(name, value, pairs, error);
    return MOE_OK;
}
