/* data.c: text files mapped as bytes, tokens of them, and the windows that training draws.
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
    *text = (moelm_text){0};
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
    text->n_tokens = text->n_bytes = (int64_t)bytes;
    return MOE_OK;
}

static moe_status too_few(const char *key, int64_t n, int64_t least, moe_error *error) {
    if (least <= 2)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: the text is %lld token; it takes 2 to predict one",
                              key, (long long)n);
    return moei_error_set(
        error, MOE_ERR_INPUT,
        "%s: the text has %lld tokens, but one sequence takes %lld; use a longer text or a smaller "
        "train.length",
        key, (long long)n, (long long)least);
}

moe_status moelm_text_tokenize(moelm_text *text, const moelm_reader *reader, const char *key,
                               moe_error *error) {
    const char *data = (const char *)text->map.data;
    size_t bytes = text->map.bytes;
    if (reader->most_bytes > 0 && (size_t)reader->most_bytes < bytes) {
        bytes = (size_t)reader->most_bytes;
        for (int i = 0; i < 3 && bytes > 0 && (unsigned char)data[bytes] >> 6 == 2; ++i) --bytes;
        if (bytes == 0)
            return moei_error_set(error, MOE_ERR_INPUT,
                                  "%s: no whole character in the text's first %lld bytes", key,
                                  (long long)reader->most_bytes);
    }
    moe_error inner;
    moe_status status = MOE_OK;
    if (reader->begins)
        status = moe_tokenizer_encode(reader->tokenizer, "", 0, MOE_TOKENIZER_BEGIN, &text->tokens, &inner);
    text->begun = (int64_t)text->tokens.count;
    if (status == MOE_OK)
        status = moe_tokenizer_encode(reader->tokenizer, data, bytes, 0, &text->tokens, &inner);
    if (status != MOE_OK) return moei_error_set(error, status, "%s: %s", key, inner.text);
    text->n_tokens = (int64_t)text->tokens.count;
    text->n_bytes = (int64_t)bytes;
    return text->n_tokens < reader->least_tokens ? too_few(key, text->n_tokens, reader->least_tokens, error)
                                                 : MOE_OK;
}

moelm_reading moelm_text_reading(const moelm_text *text, int64_t most) {
    const int64_t n = text->n_tokens;
    if (text->tokens.ids) return (moelm_reading){.ids = text->tokens.ids, .n = n, .begun = text->begun};
    return (moelm_reading){.bytes = text->map.data, .n = most > 0 && n > most ? most : n};
}

void moelm_text_close(moelm_text *text) {
    if (text->map.data) moelm_file_map_close(&text->map);
    moe_token_list_free(&text->tokens);
    *text = (moelm_text){0};
}

void moelm_text_window(const moelm_text *text, uint64_t seed, uint64_t step, uint64_t index, int64_t length,
                       int32_t *tokens, int32_t *targets) {
    uint32_t word[4];
    moe_random(seed, MOE_DRAW_BATCH, 0, step, index, word);
    uint64_t n_starts = (uint64_t)text->n_tokens - (uint64_t)length;
    /* 64 random bits: the remainder's bias is below n_starts / 2^64 */
    uint64_t start = ((uint64_t)word[1] << 32 | word[0]) % n_starts;
    const int32_t *ids = text->tokens.ids;
    const unsigned char *at = text->map.data + (ids ? 0 : start);
    for (int64_t i = 0; i < length; ++i) {
        tokens[i] = ids ? ids[start + (uint64_t)i] : at[i];
        targets[i] = ids ? ids[start + (uint64_t)i + 1] : at[i + 1];
    }
}
