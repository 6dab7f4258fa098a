/* config_environment.c: settings from the environment, MOEKIT_<KEY>, by every name they have.
 * MOEKIT_MOE_TOP_K is moe.top_k, and so are MOEKIT_MOE_ROUTER_TOPK and MOEKIT_MOE_K. A variable that names
 * nothing is refused like a key of a file. Source: docs/options.md.
 */
#include "config/config.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ; /* POSIX; <unistd.h> declares it only where extensions are asked for */

static const char prefix[] = "MOEKIT_";

typedef struct variable {
    char name[128]; /* MOEKIT_MOE_TOP_K */
    char key[128];  /* moe.top_k */
    const char *value;
} variable;

/* Of the context, our own tests and benches, and no settings. One that ends with _ stands for all that begin
 * so. */
static bool is_foreign(const char *name) {
    static const char *const names[] = {"MOEKIT_ISA",     "MOEKIT_NUM_THREADS", "MOEKIT_LIB",
                                        "MOEKIT_LIBRARY", "MOEKIT_PYTHON",      "MOEKIT_PYTHON_USED",
                                        "MOEKIT_TEST_"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        const size_t length = strlen(names[i]);
        const bool all = names[i][length - 1] == '_';
        if (strncmp(name, names[i], length) == 0 && (all || name[length] == '\0')) return true;
    }
    return false;
}

static bool is_known(const moe_lm_config *config, const char *key) {
    moe_lm_config_entry entry;
    return moe_lm_config_find(config, key, &entry, NULL) == MOE_OK || moe_layer_alias_named(key);
}

/* "moe_top_k" -> "moe.top_k": a key of a section, or else a name of another system, which may begin like one.
 * Of an unknown name the section is what it begins with. */
static void find_key(const moe_lm_config *config, const char *name, char *key, size_t size) {
    static const char *const sections[] = {"model", "moe", "train", "data", "run"};
    snprintf(key, size, "%s", name);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; ++i) {
        const size_t length = strlen(sections[i]);
        if (strncmp(name, sections[i], length) != 0 || name[length] != '_') continue;
        key[length] = '.';
        if (!is_known(config, key) && is_known(config, name)) key[length] = '_';
        return;
    }
}

static moe_status read_variable(const moe_lm_config *config, const char *text, variable *v,
                                moe_error *error) {
    char bare[sizeof v->name];
    const size_t length = strcspn(text, "=");
    if (length >= sizeof v->name || text[length] != '=')
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "environment variable %.40s...: no setting has so long a name", text);
    snprintf(v->name, sizeof v->name, "%.*s", (int)length, text);
    v->value = text + length + 1;
    const size_t skip = sizeof prefix - 1;
    for (size_t i = skip; i <= length; ++i) bare[i - skip] = (char)tolower((unsigned char)v->name[i]);
    find_key(config, bare, v->key, sizeof v->key);
    return MOE_OK;
}

/* A preset comes before the others; these in the order of their names, since an environment has none. */
static int compare(const void *a, const void *b) {
    return strcmp(((const variable *)a)->name, ((const variable *)b)->name);
}

static moe_status set_variables(moe_lm_config *config, moelm_config_said *said, const variable *v, size_t n,
                                bool presets, moe_error *error) {
    for (size_t i = 0; i < n; ++i) {
        moe_error inner;
        if (moelm_config_is_preset(config, v[i].key) != presets) continue;
        moe_status status = moe_lm_config_set(config, v[i].key, v[i].value, v[i].name, &inner);
        if (status == MOE_OK)
            status = moelm_config_once(config, said, v[i].key, v[i].value, v[i].name, &inner);
        if (status != MOE_OK)
            return moei_error_set(error, status, "environment variable %s: %s", v[i].name, inner.text);
    }
    return MOE_OK;
}

static moe_status set_from_environment(moe_lm_config *config, moe_error *error) {
    size_t n = 0, most = 0;
    while (environ && environ[most]) most++;
    variable *list = calloc(most + 1, sizeof *list);
    moelm_config_said *said = calloc(config->count, sizeof *said);
    moe_status status = MOE_OK;
    if (!list || !said)
        status = moei_error_set(error, MOE_ERR_MEMORY, "no memory for %zu environment variables", most);
    for (size_t i = 0; i < most && status == MOE_OK; ++i) {
        if (strncmp(environ[i], prefix, sizeof prefix - 1) != 0) continue;
        status = read_variable(config, environ[i], &list[n], error);
        if (status == MOE_OK && !is_foreign(list[n].name)) n++;
    }
    if (status == MOE_OK) qsort(list, n, sizeof *list, compare);
    if (status == MOE_OK) status = set_variables(config, said, list, n, true, error);
    if (status == MOE_OK) status = set_variables(config, said, list, n, false, error);
    free(said);
    free(list);
    return status;
}

moe_status moe_lm_config_environment(moe_lm_config *config, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_config_environment", "config", config));
    moelm_config_copy copy;
    MOEI_TRY(moelm_config_keep(config, &copy, error));
    moe_status status = set_from_environment(config, error);
    moelm_config_settle(config, &copy, status);
    return status;
}
