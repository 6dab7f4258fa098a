/* config.c: settings by name: made, set, found and listed.
 * One table of rows (our own, then the layer's moe.*) with offsets from the start of moe_lm_config.
 * Source: precedence is the order of calls; names and aliases stand in the tables.
 */
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A string that a descriptor's field points at; kept until the configuration goes. */
typedef struct moelm_config_text {
    struct moelm_config_text *next;
    char text[];
} moelm_config_text;

/* The layer's width is the model's, so it is no setting of its own. */
static bool is_shown(const moe_option *row) {
    return strcmp(row->key, "moe.d_model") != 0;
}

static void add_layer_rows(moe_lm_config *config) {
    size_t n_override;
    const moe_option *layer;
    const moelm_config_override *override = moelm_config_overrides(&n_override);
    for (size_t i = 0; (layer = moe_layer_option_at(i)); ++i) {
        if (!is_shown(layer)) continue;
        moe_option *row = &config->row[config->count++];
        *row = *layer;
        row->offset += offsetof(moe_lm_config, moe);
        for (size_t j = 0; j < n_override; ++j)
            if (strcmp(row->key, override[j].key) == 0) {
                row->initial = override[j].initial;
                row->help = override[j].help;
            }
    }
}

static moei_option_table table_of(const moe_lm_config *config) {
    return (moei_option_table){config->row, config->count};
}

moe_status moe_lm_config_create(moe_lm_config **config, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_create", "config", config));
    size_t n_own, n_layer = 0;
    const moe_option *own = moelm_config_options(&n_own);
    while (moe_layer_option_at(n_layer)) ++n_layer;
    moe_lm_config *made = calloc(1, sizeof *made);
    if (made) made->row = calloc(n_own + n_layer, sizeof *made->row);
    if (made) made->origin = calloc(n_own + n_layer, sizeof *made->origin);
    if (!made || !made->row || !made->origin) {
        moe_lm_config_destroy(made);
        return moei_error_set(error, MOE_ERR_MEMORY, "no memory for a configuration");
    }
    memcpy(made->row, own, n_own * sizeof *own);
    made->count = n_own;
    made->row[n_own - 1].choices = moe_layer_presets(); /* moe.preset stands last, before the layer's own */
    add_layer_rows(made);
    made->moe.size = sizeof made->moe;
    moe_status status = moei_option_defaults(table_of(made), made, error);
    if (status != MOE_OK) {
        moe_lm_config_destroy(made);
        return status;
    }
    moe_layer_desc_forget(&made->moe); /* a default of ours is nobody's word either */
    for (size_t i = 0; i < made->count; ++i) strcpy(made->origin[i], "default");
    *config = made;
    return MOE_OK;
}

void moe_lm_config_destroy(moe_lm_config *config) {
    if (!config) return;
    while (config->texts) {
        moelm_config_text *next = config->texts->next;
        free(config->texts);
        config->texts = next;
    }
    free(config->origin);
    free(config->row);
    free(config);
}

static moe_status keep_text(moe_lm_config *config, const moe_option *row, const char **value,
                            moe_error *error) {
    const size_t bytes = strlen(*value) + 1, most = sizeof((moe_lm_config_entry *)0)->value;
    if (bytes > most)
        return moei_error_set(
            error, MOE_ERR_ARGUMENT, "%s: %zu bytes, but at most %zu are kept%s", row->key, bytes - 1,
            most - 1,
            strcmp(row->key, "moe.expert_kinds") == 0 ? "; 8x64 says eight experts of width 64 in four" : "");
    moelm_config_text *text = malloc(sizeof *text + bytes);
    if (!text) return moei_error_set(error, MOE_ERR_MEMORY, "no memory for a setting of %zu bytes", bytes);
    memcpy(text->text, *value, bytes);
    text->next = config->texts;
    config->texts = text;
    *value = text->text;
    return MOE_OK;
}

/* NeMo and others write foreign names below their own sections: model.num_moe_experts. */
static const moe_option *find_row(const moe_lm_config *config, const char *key) {
    const moe_option *row = moei_option_find(table_of(config), key);
    const char *dot = strchr(key, '.');
    if (row || !dot) return row;
    row = moei_option_find(table_of(config), dot + 1);
    if (!row || strchr(dot + 1, '.')) return NULL;
    const char *last = strchr(row->key, '.') + 1;
    return strcmp(last, dot + 1) == 0 ? NULL : row; /* our own names belong to our own sections only */
}

bool moelm_config_is_preset(const moe_lm_config *config, const char *key) {
    const moe_option *row = find_row(config, key);
    return row && row->offset == offsetof(moe_lm_config, preset);
}

static moe_status unknown_key(const moe_lm_config *config, const char *key, moe_error *error) {
    const size_t length = strlen(key);
    for (size_t i = 0; i < config->count; ++i)
        if (strncmp(config->row[i].key, key, length) == 0 && config->row[i].key[length] == '.')
            return moei_error_set(error, MOE_ERR_ARGUMENT,
                                  "%s is a section, not a setting; name one of its keys: %s", key,
                                  config->row[i].key);
    return moei_option_unknown(table_of(config), "key", key, "'moekit config options'", error);
}

static moe_status layer_width(const moe_lm_config *config, const char *value, moe_error *error) {
    char *end;
    long width = strtol(value, &end, 10);
    if (end != value && *end == '\0' && width == config->model.d_model) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "moe.d_model: '%s', but a layer is as wide as its model, %d; set model.d_model",
                          value, config->model.d_model);
}

static bool is_by_preset(const moe_lm_config *config, size_t i) {
    char mark[64];
    snprintf(mark, sizeof mark, ", preset %.40s", config->preset);
    const size_t length = strlen(config->origin[i]), end = strlen(mark);
    return length > end && strcmp(config->origin[i] + length - end, mark) == 0;
}

/* A preset may look at sizes, and one of them has come after it: what is still the preset's is said again. */
static moe_status repeat_preset(moe_lm_config *config, moe_error *error) {
    if (!config->preset || !*config->preset) return MOE_OK;
    moe_layer_desc desc = config->moe;
    MOEI_TRY(moe_layer_desc_preset(&desc, config->preset, error));
    for (size_t i = 0; i < config->count; ++i) {
        char text[MOELM_ORIGIN];
        moe_option row = config->row[i];
        if (strncmp(row.key, "moe.", 4) != 0 || !is_by_preset(config, i)) continue;
        if (row.type == MOE_OPT_CHOICE && !row.choices) continue; /* a free name: no size changes it */
        row.offset -= offsetof(moe_lm_config, moe);
        moei_option_get(&row, &desc, text, sizeof text);
        MOEI_TRY(moei_option_set(&config->row[i], config, text, error));
    }
    return MOE_OK;
}

moe_status moelm_config_preset(moe_lm_config *config, const char *name, const char *origin,
                               moe_error *error) {
    moe_layer_desc desc = config->moe;
    MOEI_TRY(moe_layer_desc_preset(&desc, name, error));
    config->moe = desc;
    for (size_t i = 0; i < config->count; ++i)
        if (strncmp(config->row[i].key, "moe.", 4) == 0 && moe_layer_preset_sets(config->row[i].key))
            snprintf(config->origin[i], MOELM_ORIGIN, "%.200s, preset %.40s", origin, name);
    return MOE_OK;
}

static bool says(const moe_layer_alias *alias, const char *key) {
    const moe_alias_setting *setting;
    for (size_t i = 0; (setting = moe_layer_alias_setting(alias, i)); ++i) {
        char ours[64];
        snprintf(ours, sizeof ours, "moe.%s", setting->key);
        if (!setting->where && strcmp(key, ours) == 0) return true;
    }
    return false;
}

/* A setting of the layer, under the name it was given if that has values of its own: the layer knows what
 * they say, imply and take back. `row` is the one it names; NULL: only such values. */
static moe_status set_layer(moe_lm_config *config, const char *name, const moe_option *row, const char *value,
                            const char *origin, moe_error *error) {
    char now[MOELM_ORIGIN], then[MOELM_ORIGIN];
    const moe_lm_config before = *config;
    const moe_layer_alias *alias;
    MOEI_TRY(moe_layer_alias_find(name, value, &alias, error));
    MOEI_TRY(moe_layer_desc_set(&config->moe, name, value, error));
    for (size_t i = 0; i < config->count; ++i) {
        const moe_option *other = &config->row[i];
        moei_option_get(other, config, now, sizeof now);
        moei_option_get(other, &before, then, sizeof then);
        const bool said = alias ? says(alias, other->key) : other == row;
        if (said || strcmp(now, then) != 0) snprintf(config->origin[i], MOELM_ORIGIN, "%s", origin);
    }
    return MOE_OK;
}

moe_status moe_lm_config_set(moe_lm_config *config, const char *key, const char *value, const char *origin,
                             moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_set", "config", config));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_set", "key", key));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_set", "value", value));
    if (strcmp(key, "moe.d_model") == 0) return layer_width(config, value, error);
    moelm_config_pairs pairs;
    MOEI_TRY(moelm_config_layers(key, value, &pairs, error));
    for (int32_t i = 0; i < pairs.count; ++i)
        MOEI_TRY(moe_lm_config_set(config, pairs.key[i], pairs.value[i], origin, error));
    if (pairs.count > 0) return MOE_OK;
    const moe_option *row = find_row(config, key);
    const moe_layer_alias *alias;
    if (!origin) origin = "set";
    MOEI_TRY(moe_layer_alias_find(key, value, &alias, error));
    if (alias) return set_layer(config, key, NULL, value, origin, error);
    if (!row) return unknown_key(config, key, error);
    value = moelm_config_word(row->key, value);
    const bool preset = moelm_config_is_preset(config, key);
    if (preset && *value != '\0') MOEI_TRY(moelm_config_preset(config, value, origin, error));
    if (preset && *value == '\0') return MOE_OK; /* nobody's: it changes nothing */
    /* YAML's null, too; words may be empty where the default is */
    const bool may_be_empty =
        row->type == MOE_OPT_TEXT || (row->type == MOE_OPT_CHOICE && *row->initial == '\0');
    if (*value == '\0' && !may_be_empty)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s has no value; its default is %s", row->key,
                              row->initial);
    if (row->type == MOE_OPT_CHOICE && !row->choices) MOEI_TRY(keep_text(config, row, &value, error));
    if (strncmp(row->key, "moe.", 4) == 0 && !preset) {
        const moe_layer_alias *named = moe_layer_alias_named(key);
        MOEI_TRY(set_layer(config, named ? named->name : row->key, row, value, origin, error));
        return moe_layer_preset_sets(row->key) ? MOE_OK : repeat_preset(config, error);
    }
    MOEI_TRY(moei_option_set(row, config, value, error));
    snprintf(config->origin[row - config->row], MOELM_ORIGIN, "%s", origin);
    return MOE_OK;
}

static moe_status row_once(const moe_lm_config *config, moelm_config_said *said, const char *key,
                           const char *by, moe_error *error) {
    const moe_option *row = find_row(config, key);
    if (!row) return MOE_OK;
    moelm_config_said *before = &said[row - config->row];
    moe_lm_config_entry now;
    moe_lm_config_entry_get(config, (size_t)(row - config->row), &now);
    if (*before->by && strcmp(before->entry.value, now.value) != 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "sets %s, which %s has set already", row->key,
                              before->by);
    before->entry = now;
    snprintf(before->by, sizeof before->by, "%s", by);
    return MOE_OK;
}

moe_status moelm_config_once(const moe_lm_config *config, moelm_config_said *said, const char *key,
                             const char *value, const char *by, moe_error *error) {
    const moe_layer_alias *alias;
    const moe_alias_setting *setting;
    moelm_config_pairs pairs;
    MOEI_TRY(moelm_config_layers(key, value, &pairs, error));
    for (int32_t i = 0; i < pairs.count; ++i) MOEI_TRY(row_once(config, said, pairs.key[i], by, error));
    if (pairs.count > 0) return MOE_OK;
    MOEI_TRY(moe_layer_alias_find(key, value, &alias, error));
    if (!alias) return row_once(config, said, key, by, error);
    for (size_t i = 0; (setting = moe_layer_alias_setting(alias, i)); ++i)
        if (!setting->where) MOEI_TRY(row_once(config, said, setting->key, by, error));
    return MOE_OK;
}

moe_status moelm_config_keep(const moe_lm_config *config, moelm_config_copy *copy, moe_error *error) {
    copy->values = *config;
    copy->origin = malloc(config->count * sizeof *copy->origin);
    if (!copy->origin) return moei_error_set(error, MOE_ERR_MEMORY, "no memory for a copy of the settings");
    memcpy(copy->origin, config->origin, config->count * sizeof *copy->origin);
    return MOE_OK;
}

/* Strings kept since then stay; nothing points at them. */
void moelm_config_settle(moe_lm_config *config, moelm_config_copy *copy, moe_status status) {
    if (status != MOE_OK) {
        copy->values.texts = config->texts;
        *config = copy->values;
        memcpy(config->origin, copy->origin, config->count * sizeof *copy->origin);
    }
    free(copy->origin);
}

size_t moe_lm_config_count(const moe_lm_config *config) {
    return config ? config->count : 0;
}

void moe_lm_config_entry_get(const moe_lm_config *config, size_t index, moe_lm_config_entry *entry) {
    if (!config || !entry || index >= config->count) return;
    entry->option = &config->row[index];
    moei_option_get(entry->option, config, entry->value, sizeof entry->value);
    entry->origin = config->origin[index];
}

moe_status moe_lm_config_find(const moe_lm_config *config, const char *key, moe_lm_config_entry *entry,
                              moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_find", "config", config));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_find", "key", key));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_find", "entry", entry));
    const moe_option *row = find_row(config, key);
    if (!row) return unknown_key(config, key, error);
    moe_lm_config_entry_get(config, (size_t)(row - config->row), entry);
    return MOE_OK;
}
