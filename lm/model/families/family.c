/* family.c: which family, and what families share: settings to and from JSON, and the slice of a whole
 * parameter. Settings travel as text through the option tables, so limits and choices are checked in one
 * place. Source: the option tables of lm/config and of the layer.
 */
#include "model/families/family.h"

#include "core/locale.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const moelm_family *const families[] = {&moelm_family_mixtral, &moelm_family_qwen3_moe,
                                               &moelm_family_olmoe, &moelm_family_moekit};

const moelm_family *moelm_family_of(const moe_lm_config *config) {
    size_t i = 0;
    while (!families[i]->fits(families[i], config)) ++i; /* the last fits everything */
    return families[i];
}

static moe_status find_family(const json_t *root, const moelm_family **family, moe_error *error) {
    const char *type;
    MOEI_TRY(moelm_json_get_string(root, "config.json", "model_type", &type, error));
    for (size_t i = 0; i < sizeof families / sizeof *families; ++i)
        if (strcmp(type, families[i]->model_type) == 0) {
            *family = families[i];
            return MOE_OK;
        }
    return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                          "config.json: model_type '%.60s' is not supported; 'mixtral', 'qwen3_moe', 'olmoe' "
                          "and 'moekit' are (a settings file takes the names of its layer, model_type among "
                          "them)",
                          type);
}

moe_status moelm_family_read(const json_t *root, const moelm_family **family, moe_lm_config *config,
                             moe_error *error) {
    moe_error inner;
    if (!json_is_object(root)) return moei_error_set(error, MOE_ERR_INPUT, "config.json: expected an object");
    MOEI_TRY(find_family(root, family, error));
    MOEI_TRY((*family)->read(*family, root, config, error));
    moe_status status = moe_lm_config_check(config, &inner);
    if (status == MOE_OK) return MOE_OK;
    if (status == MOE_ERR_ARGUMENT) status = MOE_ERR_INPUT; /* the caller did nothing wrong */
    return moei_error_set(error, status, "%s", inner.text);
}

static void print_real(double value, char *text, size_t size) {
    locale_t before = moei_locale_enter();
    snprintf(text, size, "%.17g", value);
    moei_locale_leave(before);
}

moe_status moelm_family_set(moe_lm_config *config, const char *key, const json_t *value, moe_error *error) {
    char number[64];
    const char *text = number;
    if (json_is_string(value))
        text = json_string_value(value);
    else if (json_is_boolean(value))
        text = json_is_true(value) ? "true" : "false";
    else if (json_is_integer(value))
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        print_real(json_real_value(value), number, sizeof number);
    else
        return moei_error_set(error, MOE_ERR_INPUT,
                              "config.json: %s: expected a number, a string, true or false", key);
    moe_error inner;
    moe_status status = moe_lm_config_set(config, key, text, "config.json", &inner);
    if (status == MOE_OK) return MOE_OK;
    if (status == MOE_ERR_ARGUMENT) status = MOE_ERR_INPUT; /* the caller did nothing wrong */
    return moei_error_set(error, status, "config.json: %s", inner.text);
}

json_t *moelm_family_value(const moe_lm_config *config, const char *key) {
    moe_lm_config_entry entry;
    if (moe_lm_config_find(config, key, &entry, NULL) != MOE_OK) return NULL;
    switch (entry.option->type) {
    case MOE_OPT_BOOL:
        return json_boolean(entry.value[0] == 't');
    case MOE_OPT_INT:
    case MOE_OPT_INT64:
        return json_integer(strtoll(entry.value, NULL, 10));
    case MOE_OPT_FLOAT:
    case MOE_OPT_DOUBLE:
        return json_real(moei_real_parse(entry.value, NULL));
    case MOE_OPT_CHOICE:
    case MOE_OPT_TEXT:
        break;
    }
    return json_string(entry.value);
}

moe_status moelm_family_visit(const moelm_family *family, const moe_lm *lm, moelm_slice_fn fn, void *user) {
    for (int32_t part = 0; part <= lm->n_layers + 1; ++part)
        MOEI_TRY(family->visit(family, lm, part, fn, user));
    return MOE_OK;
}

moelm_slice moelm_family_whole(const char *name, const moe_param *param) {
    moelm_slice slice = {.n_dim = param->n_dim, .value = param->value, .dtype = param->dtype, .col_step = 1};
    snprintf(slice.name, sizeof slice.name, "%s", name);
    for (int32_t i = 0; i < param->n_dim; ++i) slice.dim[i] = param->dim[i];
    slice.row_step = param->dim[param->n_dim - 1];
    return slice;
}
