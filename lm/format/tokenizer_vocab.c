/* tokenizer_vocab.c: the vocabulary and the merges, as tables that are looked up by text, by id and by pair.
 * Reads model.vocab, model.merges and added_tokens; every id has one text and every text one id.
 * Source: BPE (Sennrich et al. 2016) as tokenizer.json holds it. */
#include "format/tokenizer.h"

#include "core/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t moelm_hash(const char *data, size_t bytes) {
    uint64_t hash = bytes * 0x9E3779B97F4A7C15U, word;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        memcpy(&word, data, 8);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93U;
        hash ^= hash >> 32;
    }
    word = 0;
    for (size_t i = 0; i < bytes; ++i) word |= (uint64_t)(unsigned char)data[i] << (8 * i);
    hash = (hash ^ word) * 0xD6E8FEB86659FD93U;
    return hash ^ hash >> 32;
}

static size_t table_size(size_t entries) {
    size_t size = 16;
    while (size < 2 * entries) size *= 2;
    return size;
}

const char *moelm_vocab_keep(moelm_vocab *vocab, const char *text, size_t bytes) {
    moe_token_text *block = vocab->n_blocks ? &vocab->blocks[vocab->n_blocks - 1] : NULL;
    if (!block || block->capacity - block->count <= bytes) {
        size_t capacity = bytes < 65536 ? 65536 : bytes + 1;
        moe_token_text *grown = realloc(vocab->blocks, (vocab->n_blocks + 1) * sizeof *grown);
        if (!grown) return NULL;
        vocab->blocks = grown;
        block = &grown[vocab->n_blocks];
        *block = (moe_token_text){.bytes = malloc(capacity), .capacity = capacity};
        if (!block->bytes) return NULL;
        ++vocab->n_blocks;
    }
    char *kept = memcpy(block->bytes + block->count, text, bytes);
    kept[bytes] = '\0';
    block->count += bytes + 1;
    return kept;
}

void moelm_vocab_free(moelm_vocab *vocab) {
    for (size_t i = 0; i < vocab->n_blocks; ++i) free(vocab->blocks[i].bytes);
    free(vocab->blocks);
    free(vocab->tokens);
    free(vocab->by_text);
    free(vocab->merges);
}

/* The place of a text in the table, or the empty one where it would go. */
static size_t place_of(const moelm_vocab *vocab, const char *text, size_t bytes) {
    size_t mask = vocab->n_by_text - 1, at = moelm_hash(text, bytes) & mask;
    for (; vocab->by_text[at] >= 0; at = (at + 1) & mask) {
        const char *other = vocab->tokens[vocab->by_text[at]].text;
        if (strlen(other) == bytes && memcmp(other, text, bytes) == 0) break; /* text may hold a NUL */
    }
    return at;
}

int32_t moelm_vocab_find(const moelm_vocab *vocab, const char *text, size_t bytes) {
    return vocab->n_by_text ? vocab->by_text[place_of(vocab, text, bytes)] : -1;
}

static size_t merge_place(const moelm_vocab *vocab, uint64_t pair) {
    uint64_t hash = pair * 0x9E3779B97F4A7C15U;
    size_t mask = vocab->n_merges - 1, at = (hash ^ hash >> 32) & mask;
    while (vocab->merges[at].pair != pair && vocab->merges[at].pair != UINT64_MAX) at = (at + 1) & mask;
    return at;
}

const moelm_merge *moelm_vocab_merge(const moelm_vocab *vocab, int32_t left, int32_t right) {
    const moelm_merge *merge =
        &vocab->merges[merge_place(vocab, (uint64_t)(uint32_t)left << 32 | (uint32_t)right)];
    return merge->pair == UINT64_MAX ? NULL : merge;
}

static moe_status check_id(const json_t *value, const char *where, const char *text, int32_t *id,
                           moe_error *error) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= MOELM_TOKENIZER_MAX_IDS)
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: the id of \"%.80s\" must be an integer from 0 to %" PRId64, where, text,
                              MOELM_TOKENIZER_MAX_IDS - 1);
    *id = (int32_t)json_integer_value(value);
    return MOE_OK;
}

/* Enters a text under an id; both may be there already, as one. */
static moe_status enter(moelm_vocab *vocab, const char *where, const char *text, size_t bytes, int32_t id,
                        moe_error *error) {
    moelm_token *token = &vocab->tokens[id];
    size_t place = place_of(vocab, text, bytes);
    int32_t known = vocab->by_text[place];
    if (known == id) return MOE_OK;
    if (known >= 0)
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: \"%.80s\" has the id %" PRId32 ", and %" PRId32 " in the vocabulary",
                              where, text, id, known);
    if (token->text)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: \"%.80s\" and \"%.80s\" have the same id %" PRId32,
                              where, text, token->text, id);
    token->text = token->spoken = moelm_vocab_keep(vocab, text, bytes);
    if (!token->text) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", where);
    vocab->by_text[place] = id;
    return MOE_OK;
}

/* The largest id of both lists gives the tables their size. */
static moe_status make_tables(const json_t *texts, const json_t *added, const char *where, moelm_vocab *vocab,
                              moe_error *error) {
    int32_t largest = -1, id = -1;
    const char *text;
    const json_t *value;
    size_t index;
    json_object_foreach((json_t *)(uintptr_t)texts, text, value) {
        MOEI_TRY(check_id(value, where, text, &id, error));
        if (id > largest) largest = id;
    }
    json_array_foreach(added, index, value) {
        MOEI_TRY(check_id(json_object_get(value, "id"), "added_tokens", "a token", &id, error));
        if (id > largest) largest = id;
    }
    if (largest < 0) return moei_error_set(error, MOE_ERR_INPUT, "%s: the vocabulary is empty", where);
    vocab->n_ids = largest + 1;
    vocab->n_by_text = table_size(json_object_size(texts) + json_array_size(added));
    vocab->tokens = calloc((size_t)vocab->n_ids, sizeof *vocab->tokens);
    vocab->by_text = malloc(vocab->n_by_text * sizeof *vocab->by_text);
    if (!vocab->tokens || !vocab->by_text)
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", where);
    for (size_t i = 0; i < vocab->n_by_text; ++i) vocab->by_text[i] = -1;
    return MOE_OK;
}

/* The two sides of a merge: ["a", "b"] or "a b". */
static bool merge_sides(const json_t *value, const char **left, size_t *left_bytes, const char **right,
                        size_t *right_bytes) {
    if (json_is_array(value)) {
        const json_t *a = json_array_get(value, 0), *b = json_array_get(value, 1);
        if (json_array_size(value) != 2 || !json_is_string(a) || !json_is_string(b)) return false;
        *left = json_string_value(a);
        *left_bytes = json_string_length(a);
        *right = json_string_value(b);
        *right_bytes = json_string_length(b);
        return true;
    }
    if (!json_is_string(value)) return false;
    *left = json_string_value(value);
    const char *space = strchr(*left, ' ');
    if (!space || strchr(space + 1, ' ')) return false;
    *left_bytes = (size_t)(space - *left);
    *right = space + 1;
    *right_bytes = strlen(space + 1);
    return true;
}

static moe_status enter_merge(moelm_vocab *vocab, const char *name, const json_t *value, uint32_t rank,
                              moe_token_text *joined, moe_error *error) {
    const char *left = "", *right = "";
    size_t left_bytes = 0, right_bytes = 0;
    if (!merge_sides(value, &left, &left_bytes, &right, &right_bytes))
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: model.merges[%" PRIu32 "] must be two tokens, as \"a b\" or "
                              "[\"a\", \"b\"]",
                              name, rank);
    joined->count = 0;
    MOEI_TRY(moelm_text_add(joined, left, left_bytes, error));
    MOEI_TRY(moelm_text_add(joined, right, right_bytes, error));
    int32_t a = moelm_vocab_find(vocab, left, left_bytes), b = moelm_vocab_find(vocab, right, right_bytes);
    int32_t both = moelm_vocab_find(vocab, joined->bytes, joined->count);
    if (a < 0 || b < 0 || both < 0)
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: model.merges[%" PRIu32 "]: \"%.80s\" is not in the vocabulary", name, rank,
                              a < 0   ? left
                              : b < 0 ? right
                                      : joined->bytes);
    uint64_t pair = (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
    vocab->merges[merge_place(vocab, pair)] = (moelm_merge){pair, rank, both};
    return MOE_OK;
}

static moe_status read_merges(const json_t *merges, const char *name, moelm_vocab *vocab, moe_error *error) {
    size_t index, skipped = 0;
    const json_t *value;
    vocab->n_merges = table_size(json_array_size(merges));
    vocab->merges = malloc(vocab->n_merges * sizeof *vocab->merges);
    if (!vocab->merges) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", name);
    memset(vocab->merges, 0xFF, vocab->n_merges * sizeof *vocab->merges);
    moe_token_text joined = {0};
    moe_status status = MOE_OK;
    json_array_foreach(merges, index, value) {
        const char *line = json_string_value(value);
        if (line && strncmp(line, "#version", 8) == 0)
            ++skipped;
        else
            status = enter_merge(vocab, name, value, (uint32_t)(index - skipped), &joined, error);
        if (status != MOE_OK) break;
    }
    moe_token_text_free(&joined);
    return status;
}

moe_status moelm_vocab_read(const json_t *root, const char *name, moelm_vocab *vocab, moe_error *error) {
    json_t *model, *texts, *merges;
    const char *text;
    json_t *value;
    size_t index;
    char where[200];
    MOEI_TRY(moelm_json_get_object(root, name, "model", &model, error));
    snprintf(where, sizeof where, "%s: model", name);
    MOEI_TRY(moelm_json_get_object(model, where, "vocab", &texts, error));
    MOEI_TRY(moelm_json_get_array(model, where, "merges", &merges, error));
    const json_t *added = json_object_get(root, "added_tokens");
    if (added && !json_is_null(added) && !json_is_array(added))
        return moei_error_set(error, MOE_ERR_INPUT, "%s: added_tokens must be an array", name);
    snprintf(where, sizeof where, "%s: model.vocab", name);
    MOEI_TRY(make_tables(texts, added, where, vocab, error));
    json_object_foreach(texts, text, value) {
        int32_t id = (int32_t)json_integer_value(value);
        MOEI_TRY(enter(vocab, where, text, strlen(text), id, error));
        vocab->tokens[id].in_model = true;
    }
    MOEI_TRY(read_merges(merges, name, vocab, error));
    snprintf(where, sizeof where, "%s: added_tokens", name);
    json_array_foreach(added, index, value) {
        const char *content = "";
        MOEI_TRY(moelm_json_get_string(value, where, "content", &content, error));
        if (content[0] == '\0') continue;
        MOEI_TRY(enter(vocab, where, content, strlen(content),
                       (int32_t)json_integer_value(json_object_get(value, "id")), error));
    }
    return MOE_OK;
}
