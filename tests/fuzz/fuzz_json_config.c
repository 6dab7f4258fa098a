/* fuzz_json_config.c: any bytes are refused with a text, or are the config.json of a model whose layers can
 * be described, and which written out and read again is the same. All families' readers, and the check of
 * settings. Input: the text of the file. Run by scripts/fuzz.sh. */
#include "model/families/family.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static moe_lm_config *make_config(void) {
    moe_lm_config *config;
    if (moe_lm_config_create(&config, NULL) != MOE_OK) abort();
    return config;
}

/* The rows that a config.json is to carry. */
static bool is_carried(const char *key) {
    return strncmp(key, "model.", 6) == 0 || (strncmp(key, "moe.", 4) == 0 && strcmp(key, "moe.preset") != 0);
}

static void check_layers(const moe_lm_config *config) {
    for (int32_t i = 0; i < config->model.n_layers && i < 4; ++i) {
        moe_layer_desc desc;
        moelm_config_layer(config, i, &desc);
        if (desc.d_model < 1 || desc.shared_expert_hidden_size < 0 || desc.num_experts < 0) abort();
    }
}

static void check_same(const moe_lm_config *a, const moe_lm_config *b) {
    for (size_t i = 0; i < moe_lm_config_count(a); ++i) {
        moe_lm_config_entry x, y;
        moe_lm_config_entry_get(a, i, &x);
        moe_lm_config_entry_get(b, i, &y);
        if (is_carried(x.option->key) && strcmp(x.value, y.value) != 0) abort();
    }
}

/* Our own family's settings survive exactly; files of other systems have some under another scale. */
static void check_written(const moe_lm_config *config) {
    const moelm_family *family = &moelm_family_moekit, *found;
    moe_error error;
    json_t *root = json_pack("{s:s}", "model_type", family->model_type);
    moe_lm_config *again = make_config();
    if (!root || family->write(family, config, root, &error) != MOE_OK) abort();
    if (moelm_family_read(root, &found, again, &error) != MOE_OK || found != family) abort();
    check_same(config, again);
    moe_lm_config_destroy(again);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *root = NULL;
    const moelm_family *family = NULL;
    moe_error error = {.text = ""};
    if (moelm_json_parse("config.json", data, size, &root, &error) != MOE_OK) {
        if (root || error.text[0] == '\0') abort();
        return 0;
    }
    moe_lm_config *config = make_config();
    moe_status status = moelm_family_read(root, &family, config, &error);
    if (status == MOE_OK) {
        check_layers(config);
        check_written(config);
    } else if (error.text[0] == '\0' || status == MOE_ERR_ARGUMENT) {
        abort();
    }
    moe_lm_config_destroy(config);
    json_decref(root);
    return 0;
}
