/* kv_cache.c: keys and values of the tokens of a text so far, one row a token and layer.
 * kv[n_layers, n * capacity, 2*G*c] of n texts: a token's keys after rotary, then its values.
 * Source: both stand side by side in the fused product, so a row moves with one copy; texts side by side in a
 * layer are what one call of attention reads.
 */
#include "model/model.h"

#include <string.h>

static size_t row_bytes(const moe_lm *lm) {
    return (size_t)(2 * moelm_kv_cols(lm)) * moe_dtype_bytes(lm->dtype);
}

void moelm_cache_carve(const moe_lm *lm, moei_arena *arena, int64_t n, int64_t capacity,
                       moelm_cache *caches) {
    void *kv = moei_arena_array(arena, lm->n_layers * n, capacity, row_bytes(lm));
    int32_t *windows = moei_arena_array(arena, n, capacity, sizeof *windows);
    for (int64_t i = 0; windows && i < n; ++i)
        caches[i] = (moelm_cache){
            .window = windows + i * capacity, .kv = kv, .rows = n * capacity, .first = i * capacity};
}

const void *moelm_cache_keys(const moe_lm *lm, const moelm_cache *cache, int32_t layer) {
    return moelm_at(lm, cache->kv, layer * cache->rows * 2 * moelm_kv_cols(lm));
}

static void *row_at(const moe_lm *lm, const moelm_cache *cache, int32_t layer, int64_t row) {
    return moelm_at(lm, cache->kv, (layer * cache->rows + cache->first + row) * 2 * moelm_kv_cols(lm));
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
