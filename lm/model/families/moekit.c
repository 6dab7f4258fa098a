/* moekit.c: our own checkpoint family: any model, every setting by its canonical name.
 * config.json: {"model_type": "moekit", "model": {...}, "moe": {...}}; tensors are named and laid out as
 * moe_lm_param tells them. Source: the option tables.
 */
#include "model/families/family.h"

#include <moekit/expert.h>

#include <stdio.h>
#include <string.h>

static bool fits(const moelm_family *family, const moe_lm_config *config) {
    (void)family, (void)config;
    return true;
}

static moe_status read_section(const json_t *root, const char *section, moe_lm_config *config,
                               moe_error *error) {
    json_t *object;
    MOEI_TRY(moelm_json_get_object(root, "config.json", section, &object, error));
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) {
        char key[128];
        int length = snprintf(key, sizeof key, "%s.%s", section, name);
        if (length < 0 || (size_t)length >= sizeof key)
            return moei_error_set(error, MOE_ERR_INPUT, "config.json: %s: unknown key '%.60s...'", section,
                                  name);
        MOEI_TRY(moelm_family_set(config, key, value, error));
    }
    return MOE_OK;
}

static moe_status config_read(const moelm_family *family, const json_t *root, moe_lm_config *config,
                              moe_error *error) {
    (void)family;
    MOEI_TRY(read_section(root, "model", config, error));
    return read_section(root, "moe", config, error);
}

static moe_status config_write(const moelm_family *family, const moe_lm_config *config, json_t *root,
                               moe_error *error) {
    (void)family;
    json_t *model = json_object(), *moe = json_object();
    int failed = json_object_set_new(root, "architectures", json_pack("[s]", "MoekitForCausalLM"));
    failed |= json_object_set_new(root, "moekit_version", json_string(moe_version_string()));
    failed |= json_object_set_new(root, "model", model) | json_object_set_new(root, "moe", moe);
    for (size_t i = 0; failed == 0 && i < moe_lm_config_count(config); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(config, i, &entry);
        const char *key = entry.option->key;
        if (strncmp(key, "model.", 6) == 0)
            failed = json_object_set_new(model, key + 6, moelm_family_value(config, key));
        else if (strncmp(key, "moe.", 4) == 0 &&
                 !moelm_config_is_preset(config, key)) /* its settings follow */
            failed = json_object_set_new(moe, key + 4, moelm_family_value(config, key));
    }
    return failed ? moei_error_set(error, MOE_ERR_MEMORY, "no memory for config.json") : MOE_OK;
}

/* The part of the file that an entry is in: entries stand in the order of the parts. */
static int32_t part_of(const moe_lm *lm, const moelm_entry *entry) {
    int block;
    if (sscanf(entry->name, "blocks.%d.", &block) == 1) return 1 + block;
    return entry->tensor == &lm->embed ? 0 : lm->n_layers + 1;
}

static moe_status visit(const moelm_family *family, const moe_lm *lm, int32_t part, moelm_slice_fn fn,
                        void *user) {
    (void)family;
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        if (part_of(lm, &lm->entries[i]) != part) continue;
        MOEI_TRY(moe_lm_param(lm, i, &param));
        if (param.dtype == MOE_F64)
            return moe_ctx_fail(lm->ctx, MOE_ERR_UNSUPPORTED,
                                "parameter %s is f64: checkpoints hold f32 and bf16", param.name);
        moelm_slice slice = moelm_family_whole(param.name, &param);
        MOEI_TRY(fn(user, &slice));
    }
    return MOE_OK;
}

const moelm_family moelm_family_moekit = {"moekit", fits, config_read, config_write, visit, NULL};
