/* tokenizer_added.c: tokens that are found as they stand in a text, ahead of everything else.
 * The leftmost of them counts, of those the longest; they are sorted, so that each byte more narrows a range.
 * Source: added_tokens of tokenizer.json. */
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 1. Reading. */
/* Normalized, two tokens may have one pattern: the first in the file is found, whatever the sort does.
 * (Hugging Face's finds either, as its table of them is hashed anew each time.) */
static int by_pattern(const void *a, const void *b) {
    const moelm_added *left = a, *right = b;
    const int order = strcmp(left->pattern, right->pattern);
    return order != 0 ? order : (left->order > right->order) - (left->order < right->order);
}

static moe_status read_added(const json_t *value, const char *where, moelm_added *added, bool *normalized,
                             moe_error *error) {
    MOEI_TRY(moelm_json_get_string(value, where, "content", &added->pattern, error));
    struct {
        const char *key;
        bool *to;
    } const switches[] = {
        {"single_word", &added->single_word},
        {"lstrip",      &added->strip_left },
        {"rstrip",      &added->strip_right},
        {"normalized",  normalized         },
        {"special",     &added->special    }
    };
    for (size_t i = 0; i < sizeof switches / sizeof *switches; ++i)
        MOEI_TRY(moelm_json_get_bool(value, where, switches[i].key, switches[i].to, error));
    return MOE_OK;
}

/* What a normalized token looks like in a normalized text; decoders get that, too. */
static moe_status normalize_pattern(moe_tokenizer *tokenizer, moelm_added *added, moe_error *error) {
    moelm_encoding encoding = {.tokenizer = tokenizer, .error = error};
    const char *text = added->pattern;
    size_t bytes = strlen(text);
    moe_status status = moelm_normalize(&encoding, &text, &bytes);
    if (status == MOE_OK) {
        added->pattern = moelm_vocab_keep(&tokenizer->vocab, text, bytes);
        if (!added->pattern) status = moei_error_set(error, MOE_ERR_MEMORY, "added_tokens: out of memory");
    }
    moelm_encoding_free(&encoding);
    if (status == MOE_OK) tokenizer->vocab.tokens[added->id].spoken = added->pattern;
    return status;
}

static moe_status take_added(const json_t *value, const char *where, moe_tokenizer *tokenizer,
                             moe_error *error) {
    bool normalized = false;
    moelm_added added = {0};
    MOEI_TRY(read_added(value, where, &added, &normalized, error));
    if (added.pattern[0] == '\0') return MOE_OK;
    added.id = (int32_t)json_integer_value(json_object_get(value, "id"));
    moelm_token *token = &tokenizer->vocab.tokens[added.id];
    token->special |= added.special;
    added.pattern = token->text; /* the file's text goes */
    moelm_added_set *set = normalized ? &tokenizer->normalized : &tokenizer->raw;
    if (normalized) MOEI_TRY(normalize_pattern(tokenizer, &added, error));
    added.bytes = strlen(added.pattern);
    if (added.bytes == 0) return MOE_OK;
    added.order = set->count;
    set->begins[(unsigned char)added.pattern[0]] = true;
    set->tokens[set->count++] = added;
    return MOE_OK;
}

moe_status moelm_added_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                            moe_error *error) {
    const json_t *list = json_object_get(root, "added_tokens"), *value;
    size_t index, count = json_array_size(list);
    if (count == 0) return MOE_OK;
    tokenizer->raw.tokens = calloc(count, sizeof(moelm_added));
    tokenizer->normalized.tokens = calloc(count, sizeof(moelm_added));
    if (!tokenizer->raw.tokens || !tokenizer->normalized.tokens)
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", name);
    json_array_foreach(list, index, value) {
        char where[200];
        snprintf(where, sizeof where, "%s: added_tokens[%zu]", name, index);
        MOEI_TRY(take_added(value, where, tokenizer, error));
    }
    qsort(tokenizer->raw.tokens, tokenizer->raw.count, sizeof(moelm_added), by_pattern);
    qsort(tokenizer->normalized.tokens, tokenizer->normalized.count, sizeof(moelm_added), by_pattern);
    return MOE_OK;
}

/* 2. Finding. */
/* The first token of [from, to) whose byte at `depth` is at least `byte`; all agree on those before. */
static size_t bound(const moelm_added_set *set, size_t from, size_t to, size_t depth, int byte) {
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if ((unsigned char)set->tokens[middle].pattern[depth] < byte)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

static const moelm_added *longest_at(const moelm_added_set *set, const char *text, size_t bytes) {
    const moelm_added *longest = NULL;
    size_t from = 0, to = set->count;
    for (size_t depth = 0; depth < bytes && from < to; ++depth) {
        int byte = (unsigned char)text[depth];
        if (byte == 0) break; /* which ends a pattern, and is in none */
        from = bound(set, from, to, depth, byte);
        to = bound(set, from, to, depth, byte + 1);
        if (from < to && set->tokens[from].bytes == depth + 1) longest = &set->tokens[from];
    }
    return longest;
}

static size_t char_before(const char *text, size_t at, uint32_t *code) {
    size_t start = at;
    do --start;
    while (start > 0 && (unsigned char)text[start] >> 6 == 2);
    *code = 0;
    return moelm_utf8_decode(text + start, at - start, code) > 0 ? start : at;
}

static bool stands_alone(const char *text, size_t bytes, size_t start, size_t end) {
    uint32_t code;
    if (start > 0 && (char_before(text, start, &code), moelm_is_word(code))) return false;
    return !(moelm_utf8_decode(text + end, bytes - end, &code) > 0 && moelm_is_word(code));
}

static void widen(const moelm_added *added, const char *text, size_t bytes, size_t from, moelm_found *found) {
    uint32_t code;
    while (added->strip_left && found->start > from) {
        size_t before = char_before(text, found->start, &code);
        if (!moelm_is_space(code) || before < from) break;
        found->start = before;
    }
    size_t length;
    while (added->strip_right &&
           (length = moelm_utf8_decode(text + found->end, bytes - found->end, &code)) > 0) {
        if (!moelm_is_space(code)) break;
        found->end += length;
    }
}

bool moelm_added_find(const moelm_added_set *set, const moelm_encoding *encoding, const char *text,
                      size_t bytes, size_t from, moelm_found *found) {
    if (set->count == 0) return false;
    for (size_t at = from; at < bytes; ++at) {
        if (!set->begins[(unsigned char)text[at]]) continue;
        const moelm_added *added = longest_at(set, text + at, bytes - at);
        if (!added) continue;
        *found = (moelm_found){.id = added->id, .start = at, .end = at + added->bytes};
        bool plain =
            (encoding->flags & MOE_TOKENIZER_PLAIN) && encoding->tokenizer->vocab.tokens[added->id].special;
        if (!plain && (!added->single_word || stands_alone(text, bytes, at, found->end))) {
            widen(added, text, bytes, from, found);
            return true;
        }
        at = found->end - 1;
    }
    return false;
}
