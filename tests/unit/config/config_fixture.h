/* config_fixture.h: a configuration, also of a file, and what it says of a key.
 * Made in the scratch directory of format/scratch.h.
 * Source: moekit/lm.h.
 */
#ifndef CONFIG_FIXTURE_H
#define CONFIG_FIXTURE_H

#include "unit/format/scratch.h"

#include "config/config.h"

static inline moe_lm_config *make(void) {
    moe_lm_config *config;
    moe_error error;
    assert_ok(moe_lm_config_create(&config, &error), &error);
    return config;
}

static inline const char *value_of(const moe_lm_config *config, const char *key) {
    static moe_lm_config_entry entry;
    moe_error error;
    assert_ok(moe_lm_config_find(config, key, &entry, &error), &error);
    return entry.value;
}

static inline const char *origin_of(const moe_lm_config *config, const char *key) {
    moe_lm_config_entry entry;
    moe_error error;
    assert_ok(moe_lm_config_find(config, key, &entry, &error), &error);
    return entry.origin;
}

static inline moe_status set_and_check(moe_lm_config *config, const char *const *pairs, moe_error *error) {
    for (; *pairs; pairs += 2) MOEI_TRY(moe_lm_config_set(config, pairs[0], pairs[1], "x", error));
    return moe_lm_config_check(config, error);
}

/* The defaults with these "key", "value", .., NULL are refused with a text that has the words; words NULL:
 * they are accepted. */
static inline void expect_refusal(const char *const *pairs, const char *words) {
    moe_lm_config *config = make();
    moe_error error;
    if (words)
        assert_fails(set_and_check(config, pairs, &error), MOE_ERR_ARGUMENT, &error, words);
    else
        assert_ok(set_and_check(config, pairs, &error), &error);
    moe_lm_config_destroy(config);
}

static inline moe_status load_text(void **state, moe_lm_config *config, const char *text, moe_error *error) {
    char *path = scratch_path(state, "c.yaml");
    scratch_put(path, text, strlen(text));
    moe_status status = moe_lm_config_load(config, path, error);
    free(path);
    return status;
}

#endif
