/* kv_cache.c: keys and values of the tokens of a text so far, one row a token and layer.
 * kv[n_layers, capacity, 2*G*c]: a token's keys after rotary, then its values.
 * Source: both stand side by side in the fused product, so a row moves with one copy.
 */
#include "model/model.h"

#include <string.h>

static size_t row_bytes(const moe_lm *lm) {
    return (size_t)(2 * moelm_kv_cols(lm)) * moe_dtype_bytes(lm->dtype);
}

void moelm_cache_carve(const moe_lm *lm, moei_arena *arena, int64_t capacity, moelm_cache *cache) {
    cache->capacity = capacity;
    cache->kv = moei_arena_array(arena, lm->n_layers, capacity, row_bytes(lm));
    cache->window = moei_arena_take(arena, (size_t)capacity * sizeof *cache->window);
}

static void *row_at(const moe_lm *lm, const moelm_cache *cache, int32_t layer, int64_t row) {
    return moelm_at(lm, cache->kv, (layer * cache->capacity + row) * 2 * moelm_kv_cols(lm));
}

const void *moelm_cache_keys(const moe_lm *lm, const moelm_cache *cache, int32_t layer) {
    return row_at(lm, cache, layer, 0);
}

void moelm_cache_put(moe_lm *lm, moelm_cache *cache, int32_t layer, const void *qkv, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r)
        memcpy(row_at(lm, cache, layer, cache->n + r),
               moelm_at(lm, qkv, r * moelm_qkv_cols(lm) + moelm_att_cols(lm)), row_bytes(lm));
}

void moelm_cache_copy(const moe_lm *lm, moelm_cache *to, const moelm_cache *from, int64_t rows) {
    for (int32_t layer = 0; layer < lm->n_layers; ++layer)
        memcpy(row_at(lm, to, layer, to->n), row_at(lm, from, layer, to->n),
               (size_t)(rows - to->n) * row_bytes(lm));
    to->n = rows;
}
