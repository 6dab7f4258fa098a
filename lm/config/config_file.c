/* config_file.c: a configuration read from YAML and written back whole.
 * Keys are nested (moe: {top_k: 2}), dotted (moe.top_k: 2) or another system's bare names.
 * Source: lm/format/yaml.h flattens the file; this names file, line and column of what is wrong.
 */
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/file.h"
#include "format/yaml.h"

typedef struct load_state {
    moe_lm_config *config;
    const char *path;
    bool presets;            /* the turn of presets, which the other keys override, or of these */
    moelm_config_said *said; /* [config->count] */
    moe_error *error;
} load_state;

static moe_status set_pair(void *user, const char *key, const char *value, int line, int column) {
    const load_state *state = user;
    if (moelm_config_is_preset(state->config, key) != state->presets) return MOE_OK;
    char origin[MOELM_ORIGIN];
    size_t length = strlen(state->path);
    size_t most = sizeof origin - 24; /* room for the line; of a long path the end says more */
    const char *path = length > most ? state->path + (length - most) : state->path;
    snprintf(origin, sizeof origin, "%.*s:%d", (int)most, path, line);
    moe_error inner;
    moe_status status = moe_lm_config_set(state->config, key, value, origin, &inner);
    if (status != MOE_OK)
        return moei_error_set(state->error, status, "%s:%d:%d: %s", state->path, line, column, inner.text);
    char by[MOELM_ORIGIN];
    snprintf(by, sizeof by, "%.200s of line %d", key, line);
    status = moelm_config_once(state->config, state->said, key, value, by, &inner);
    if (status == MOE_OK) return MOE_OK;
    return moei_error_set(state->error, status, "%s:%d:%d: %s %s", state->path, line, column, key,
                          inner.text);
}

moe_status moe_lm_config_load(moe_lm_config *config, const char *yaml_path, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_load", "config", config));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_load", "yaml_path", yaml_path));
    load_state state = {config, yaml_path, true, calloc(config->count, sizeof *state.said), error};
    if (!state.said) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", yaml_path);
    moelm_config_copy copy;
    moe_status status = moelm_config_keep(config, &copy, error);
    if (status == MOE_OK) {
        status = moelm_yaml_load(yaml_path, set_pair, &state, error);
        state.presets = false;
        if (status == MOE_OK) status = moelm_yaml_load(yaml_path, set_pair, &state, error);
        moelm_config_settle(config, &copy, status);
    }
    free(state.said);
    return status;
}

moe_status moe_lm_config_save(const moe_lm_config *config, const char *yaml_path, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_save", "config", config));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_save", "yaml_path", yaml_path));
    size_t count = config->count;
    moe_lm_config_entry *entry = malloc(count * sizeof *entry);
    moelm_yaml_pair *pair = malloc(count * sizeof *pair);
    char *text = NULL;
    moe_status status = MOE_OK;
    if (!entry || !pair)
        status = moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for %zu settings", yaml_path, count);
    for (size_t i = 0; i < count && status == MOE_OK; ++i) {
        moe_lm_config_entry_get(config, i, &entry[i]);
        pair[i] = (moelm_yaml_pair){entry[i].option->key, entry[i].value};
    }
    if (status == MOE_OK) status = moelm_yaml_format(pair, count, &text, error);
    if (status == MOE_OK) status = moelm_file_write(yaml_path, text, strlen(text), error);
    free(text);
    free(pair);
    free(entry);
    return status;
}
