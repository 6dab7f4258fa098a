/* attention_keys.h: where a sequence's keys and values lie, and how many there are, by op.h. */
#ifndef MOEI_ATTENTION_KEYS_H
#define MOEI_ATTENTION_KEYS_H

#include <moekit/op.h>

static inline int64_t moei_kv_len(const moe_attention_args *a, int64_t seq) {
    return a->kv_lens ? a->kv_lens[seq] : a->kv_len;
}

/* Row of its first key. */
static inline int64_t moei_kv_row(const moe_attention_args *a, int64_t seq) {
    return a->kv_rows ? a->kv_rows[seq] : seq * a->kv_stride;
}

#endif
