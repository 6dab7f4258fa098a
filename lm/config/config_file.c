/* config_file.c: a configuration read from YAML and written back whole. Keys are nested (moe: {top_k: 2}),
 * dotted (moe.top_k: 2) or another system's bare names.
 * Source: lm/format/yaml.h flattens the file. A fault is told with file, line and column, and all other keys
 * that are wrong.
 */
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/file.h"
#include "format/yaml.h"

enum { ROOM_FOR_COUNT = sizeof " and 4294967295 more" };

typedef struct load_state {
    moe_lm_config *config;
    const char *path;
    bool presets;            /* the turn of presets, which the other keys override, or of these */
    moelm_config_said *said; /* [config->count] */
    moe_status status;       /* of the first key that was refused */
    moe_error error;         /* its text, then the names of the others */
    int named, unnamed;      /* of the others: in the text, and without room there */
} load_state;

/* Who brings another system's file wants to hear of all that is refused, not of one key a try. */
static void refuse(load_state *state, moe_status status, const char *key, int line, int column,
                   const char *text) {
    if (state->status == MOE_OK) {
        state->status =
            moei_error_set(&state->error, status, "%s:%d:%d: %s", state->path, line, column, text);
        return;
    }
    const size_t length = strlen(state->error.text), room = sizeof state->error.text - length;
    char other[MOELM_ORIGIN];
    const char *before = state->named ? ", " : "; refused too: ";
    const int n = snprintf(other, sizeof other, "%s%.200s (line %d)", before, key, line);
    if (state->unnamed || (size_t)n + ROOM_FOR_COUNT >= room) {
        ++state->unnamed;
        return;
    }
    memcpy(state->error.text + length, other, (size_t)n + 1);
    ++state->named;
}

static moe_status set_pair(void *user, const char *key, const char *value, int line, int column) {
    load_state *state = user;
    if (moelm_config_is_preset(state->config, key) != state->presets) return MOE_OK;
    char origin[MOELM_ORIGIN];
    size_t length = strlen(state->path);
    size_t most = sizeof origin - 24; /* room for the line; of a long path the end says more */
    const char *path = length > most ? state->path + (length - most) : state->path;
    snprintf(origin, sizeof origin, "%.*s:%d", (int)most, path, line);
    moe_error inner;
    moe_status status = moe_lm_config_set(state->config, key, value, origin, &inner);
    if (status != MOE_OK) {
        refuse(state, status, key, line, column, inner.text);
        return MOE_OK;
    }
    char by[MOELM_ORIGIN], text[sizeof inner.text];
    snprintf(by, sizeof by, "%.200s of line %d", key, line);
    status = moelm_config_once(state->config, state->said, key, value, by, &inner);
    snprintf(text, sizeof text, "%.200s %.280s", key, inner.text);
    if (status != MOE_OK) refuse(state, status, key, line, column, text);
    return MOE_OK;
}

static moe_status read_twice(load_state *state, moe_error *error) {
    MOEI_TRY(moelm_yaml_load(state->path, set_pair, state, error));
    state->presets = false;
    MOEI_TRY(moelm_yaml_load(state->path, set_pair, state, error));
    if (state->status == MOE_OK) return MOE_OK;
    if (!state->unnamed) return moei_error_set(error, state->status, "%s", state->error.text);
    return moei_error_set(error, state->status, "%s and %d more", state->error.text, state->unnamed);
}

moe_status moe_lm_config_load(moe_lm_config *config, const char *yaml_path, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_load", "config", config));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_load", "yaml_path", yaml_path));
    load_state state = {.config = config,
                        .path = yaml_path,
                        .presets = true,
                        .said = calloc(config->count, sizeof *state.said)};
    if (!state.said) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", yaml_path);
    moelm_config_copy copy;
    moe_status status = moelm_config_keep(config, &copy, error);
    if (status == MOE_OK) {
        status = read_twice(&state, error);
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
