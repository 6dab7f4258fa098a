/* alias_fixture.h: what the tests of other systems' settings share.
 * An entry of moe_layer_alias_at and a value that it is of.
 * Source: moekit/option.h.
 */
#ifndef MOEKIT_TEST_ALIAS_FIXTURE_H
#define MOEKIT_TEST_ALIAS_FIXTURE_H

#include <moekit/option.h>

#include <string.h>

/* A value that an entry is of. */
static inline const char *alias_sample(const moe_layer_alias *alias) {
    if (!alias->value) return "3";
    if (strcmp(alias->value, "list") == 0) return "3,4";
    return strcmp(alias->value, "negative") == 0 ? "-3" : alias->value;
}

#endif
