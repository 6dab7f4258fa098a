/* choose.h: what the fuzz targets of calls share: bytes of the input as choices, values of settings,
 * refusals. Once the input is over, every choice is the first. Source: moekit/option.h.
 */
#ifndef FUZZ_CHOOSE_H
#define FUZZ_CHOOSE_H

#include <moekit/moe.h>
#include <moekit/option.h>

#include <stdio.h>
#include <stdlib.h>

typedef struct bytes {
    const uint8_t *at, *end;
} bytes;

/* 0 .. n - 1 */
static inline int choose(bytes *from, int n) {
    return from->at < from->end ? *from->at++ % n : 0;
}

/* A value that the row may take, or nearly. */
static inline void choose_value(bytes *from, const moe_option *row, char *value, size_t size) {
    static const char *const reals[] = {"0", "0.5", "1", "0.1", "2", "-1", "1e-3", "3"};
    int count = 0;
    while (row->choices && row->choices[count]) ++count;
    if (count > 0)
        snprintf(value, size, "%s", row->choices[choose(from, count)]);
    else if (row->type == MOE_OPT_BOOL)
        snprintf(value, size, "%s", choose(from, 2) ? "true" : "false");
    else if (row->type == MOE_OPT_INT || row->type == MOE_OPT_INT64)
        snprintf(value, size, "%d", choose(from, 14) - 1);
    else if (row->type == MOE_OPT_TEXT)
        snprintf(value, size, "%d", choose(from, 4));
    else
        snprintf(value, size, "%s", reals[choose(from, 8)]);
}

/* A refusal says why, and none is a fault of ours. */
static inline bool done_or_told(const moe_ctx *ctx, moe_status status) {
    if (status == MOE_OK) return true;
    if (status == MOE_ERR_INTERNAL || moe_ctx_error(ctx)[0] == '\0') abort();
    return false;
}

#endif
