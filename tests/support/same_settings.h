/* same_settings.h: whether two descriptors of a layer say the same, row by row of its options.
 * A choice that is not made is its default.
 * Source: moekit/option.h.
 */
#ifndef MOEKIT_TEST_SAME_SETTINGS_H
#define MOEKIT_TEST_SAME_SETTINGS_H

#include "support/layer_fixture.h"

#include <moekit/option.h>

#include <string.h>

static inline bool same_setting(const moe_option *row, const moe_layer_desc *a, const moe_layer_desc *b) {
    const char *p = (const char *)a + row->offset, *q = (const char *)b + row->offset;
    if (row->type == MOE_OPT_BOOL) return *p == *q;
    if (row->type != MOE_OPT_CHOICE) return memcmp(p, q, 4) == 0; /* int32_t or float */
    const char *left = *(const char *const *)(const void *)p, *right = *(const char *const *)(const void *)q;
    return strcmp(left ? left : row->initial, right ? right : row->initial) == 0;
}

static inline void assert_same_settings(const moe_layer_desc *a, const moe_layer_desc *b) {
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i)
        if (!same_setting(row, a, b)) fail_msg("%s is not the same in both", row->key);
}

#endif
