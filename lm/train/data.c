/* data.c: text files mapped as bytes, and the windows that training draws from them.
 * tokens[i] = text[start + i], targets[i] = text[start + i + 1], start uniform over all that fit.
 * Source: draws are Philox words of (seed, MOE_DRAW_BATCH, step, index).
 */
#include "train/data.h"

#include <moekit/op.h>

#include "core/status.h"

#include <errno.h>
#include <string.h>

moe_status moelm_text_open(const char *path, const char *key, int64_t least, moelm_text *text,
                           moe_error *error) {
    if (*path == '\0')
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s is not set; it names the text file to read", key);
    moe_error inner;
    moe_status status = moelm_file_map_open(path, &text->map, &inner);
    if (status != MOE_OK) return moei_error_set(error, status, "%s: %s", key, inner.text);
    size_t bytes = text->map.bytes;
    if (bytes == 0 || bytes < (size_t)least) {
        moelm_file_map_close(&text->map);
        if (bytes == 0) return moei_error_set(error, MOE_ERR_INPUT, "%s: %s is empty", key, path);
        if (least <= 2)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: %s has 1 byte; it takes 2 to predict one", key,
                                  path);
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: %s has %zu bytes, but one sequence takes %lld; use a longer text or a "
                              "smaller train.length",
                              key, path, bytes, (long long)least);
    }
    moelm_sha256(text->map.data, bytes, text->sha256);
    return MOE_OK;
}

void moelm_text_close(moelm_text *text) {
    if (text->map.data) moelm_file_map_close(&text->map);
    text->map = (moelm_file_map){0};
}

void moelm_text_window(const moelm_text *text, uint64_t seed, uint64_t step, uint64_t index, int64_t length,
                       int32_t *tokens, int32_t *targets) {
    uint32_t word[4];
    moe_random(seed, MOE_DRAW_BATCH, 0, step, index, word);
    uint64_t n_starts = (uint64_t)text->map.bytes - (uint64_t)length;
    /* 64 random bits: the remainder's bias is below n_starts / 2^64 */
    uint64_t start = ((uint64_t)word[1] << 32 | word[0]) % n_starts;
    const unsigned char *at = text->map.data + start;
    for (int64_t i = 0; i < length; ++i) {
        tokens[i] = at[i];
        targets[i] = at[i + 1];
    }
}
