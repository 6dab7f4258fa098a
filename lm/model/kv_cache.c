/* kv_cache.c: keys and values of the tokens generated so far, one row a token and layer.
 * kv[n_layers, capacity, 2*G*c]: a token's keys after rotary, then its values.
 * Source: both stand side by side in the fused product, so a row moves with one copy.
 */
#include "model/model.h"

#include <string.h>

static void *row_at(const moe_lm *lm, const moelm_cache *cache, int32_t layer, int64_t row) {
    return moelm_at(lm, cache->kv, (layer * cache->capacity + row) * 2 * moelm_kv_cols(lm));
}

const void *moelm_cache_keys(const moe_lm *lm, const moelm_cache *cache, int32_t layer) {
    return row_at(lm, cache, layer, 0);
}

void moelm_cache_put(moe_lm *lm, moelm_cache *cache, int32_t layer, const void *qkv, int64_t rows) {
    size_t bytes = (size_t)(2 * moelm_kv_cols(lm)) * moe_dtype_bytes(lm->dtype);
    for (int64_t r = 0; r < rows; ++r)
        memcpy(row_at(lm, cache, layer, cache->n + r),
               moelm_at(lm, qkv, r * moelm_qkv_cols(lm) + moelm_att_cols(lm)), bytes);
}
