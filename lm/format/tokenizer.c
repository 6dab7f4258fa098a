/* tokenizer.c: the handle: tokenizer.json read part by part, and a text encoded.
 * text -> added tokens -> normalizers -> splitters -> BPE -> ids; tokenizer_decode.c goes back.
 * Source: format/tokenizer.h. */
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/file.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

/* 1. Reading. */
static moe_status read_all(const json_t *root, const char *name, moe_tokenizer *tokenizer, moe_error *error) {
    MOEI_TRY(moelm_vocab_read(root, name, &tokenizer->vocab, error));
    MOEI_TRY(moelm_normalizers_read(root, name, tokenizer, error));
    MOEI_TRY(moelm_splitters_read(root, name, tokenizer, error));
    MOEI_TRY(moelm_bpe_read(root, name, tokenizer, error));
    MOEI_TRY(moelm_added_read(root, name, tokenizer, error));
    MOEI_TRY(moelm_template_read(root, name, tokenizer, error));
    return moelm_decoders_read(root, name, tokenizer, error);
}

static moe_status create(const json_t *root, const char *name, moe_tokenizer **tokenizer, moe_error *error) {
    moe_tokenizer *made = calloc(1, sizeof *made);
    if (!made) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", name);
    made->bos = -1;
    moe_status status = read_all(root, name, made, error);
    if (status == MOE_OK)
        *tokenizer = made;
    else
        moe_tokenizer_destroy(made);
    return status;
}

moe_status moelm_tokenizer_parse(const char *name, const void *data, size_t bytes, moe_tokenizer **tokenizer,
                                 moe_error *error) {
    json_t *root = NULL;
    MOEI_TRY(moelm_json_parse(name, data, bytes, &root, error));
    moe_status status = create(root, name, tokenizer, error);
    json_decref(root);
    return status;
}

static moe_status load_file(const char *path, moe_tokenizer **tokenizer, moe_error *error) {
    json_t *root = NULL;
    MOEI_TRY(moelm_json_load(path, &root, error));
    moe_status status = create(root, path, tokenizer, error);
    json_decref(root);
    return status;
}

static moe_status load_directory(const char *path, moe_tokenizer **tokenizer, moe_error *error) {
    char *file = moelm_path_join(path, "tokenizer.json");
    if (!file) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    moe_tokenizer *made = NULL;
    moe_status status = load_file(file, &made, error);
    free(file);
    if (status == MOE_OK) status = moelm_ends_read(path, made, error);
    if (status == MOE_OK)
        *tokenizer = made;
    else
        moe_tokenizer_destroy(made);
    return status;
}

moe_status moe_tokenizer_load(const char *path, moe_tokenizer **tokenizer, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_tokenizer_load", "path", path));
    MOEI_TRY(moei_error_need(error, "moe_tokenizer_load", "tokenizer", tokenizer));
    return moelm_dir_exists(path) ? load_directory(path, tokenizer, error)
                                  : load_file(path, tokenizer, error);
}

void moe_tokenizer_destroy(moe_tokenizer *tokenizer) {
    if (!tokenizer) return;
    moelm_vocab_free(&tokenizer->vocab);
    moelm_bpe_free(&tokenizer->bpe);
    free(tokenizer->raw.tokens);
    free(tokenizer->normalized.tokens);
    for (size_t i = 0; i < MOELM_TOKENIZER_MAX_STEPS; ++i) {
        moelm_pattern_free(&tokenizer->normalizers[i].pattern);
        moelm_pattern_free(&tokenizer->splitters[i].pattern);
        moelm_pattern_free(&tokenizer->decoders[i].pattern);
        free(tokenizer->normalizers[i].text);
        free(tokenizer->decoders[i].text);
    }
    moe_token_list_free(&tokenizer->before);
    moe_token_list_free(&tokenizer->after);
    free(tokenizer);
}

/* 2. What it holds. */
int32_t moe_tokenizer_vocab_size(const moe_tokenizer *tokenizer) {
    return tokenizer ? tokenizer->vocab.n_ids : 0;
}

int32_t moe_tokenizer_id(const moe_tokenizer *tokenizer, const char *token) {
    return tokenizer && token ? moelm_vocab_find(&tokenizer->vocab, token, strlen(token)) : -1;
}

const char *moe_tokenizer_token(const moe_tokenizer *tokenizer, int32_t id) {
    return tokenizer && id >= 0 && id < tokenizer->vocab.n_ids ? tokenizer->vocab.tokens[id].text : NULL;
}

bool moe_tokenizer_is_special(const moe_tokenizer *tokenizer, int32_t id) {
    return tokenizer && id >= 0 && id < tokenizer->vocab.n_ids && tokenizer->vocab.tokens[id].special;
}

int32_t moe_tokenizer_bos(const moe_tokenizer *tokenizer) {
    return tokenizer ? tokenizer->bos : -1;
}

size_t moe_tokenizer_eos(const moe_tokenizer *tokenizer, const int32_t **ids) {
    if (ids) *ids = tokenizer ? tokenizer->eos : NULL;
    return tokenizer ? tokenizer->n_eos : 0;
}

/* 3. Encoding. */
#define CACHE_FROM 4096 /* bytes of a text that words are remembered in */

void moelm_encoding_free(moelm_encoding *encoding) {
    moelm_regex_run_free(&encoding->run);
    moe_token_text_free(&encoding->swap[0]);
    moe_token_text_free(&encoding->swap[1]);
    for (size_t i = 0; i < MOELM_TOKENIZER_MAX_STEPS; ++i) moe_token_text_free(&encoding->changed[i]);
    free(encoding->codes);
    free(encoding->symbols);
    free(encoding->heap);
    free(encoding->cache);
}

moe_status moelm_flags_check(const char *call, unsigned flags, unsigned known, moe_error *error) {
    if ((flags & ~known) == 0) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: knows no flags %u; those it knows sum to %u", call,
                          flags & ~known, known);
}

/* The text between added tokens of the second kind, which are looked for in the normalized text. */
static moe_status encode_normalized(moelm_encoding *encoding, const char *text, size_t bytes, bool first) {
    MOEI_TRY(moelm_normalize(encoding, &text, &bytes));
    moelm_found found;
    size_t at = 0;
    while (moelm_added_find(&encoding->tokenizer->normalized, encoding, text, bytes, at, &found)) {
        if (found.start > at)
            MOEI_TRY(moelm_split(encoding, 0, text + at, found.start - at, first && at == 0));
        MOEI_TRY(moelm_tokens_add(encoding->tokens, found.id, encoding->error));
        at = found.end;
    }
    return moelm_split(encoding, 0, text + at, bytes - at, first && at == 0);
}

static moe_status encode_text(moelm_encoding *encoding, const char *text, size_t bytes) {
    const moe_tokenizer *tokenizer = encoding->tokenizer;
    const bool before = encoding->flags & (MOE_TOKENIZER_TEMPLATE | MOE_TOKENIZER_BEGIN);
    const bool after = encoding->flags & MOE_TOKENIZER_TEMPLATE;
    for (size_t i = 0; before && i < tokenizer->before.count; ++i)
        MOEI_TRY(moelm_tokens_add(encoding->tokens, tokenizer->before.ids[i], encoding->error));
    moelm_found found;
    size_t at = 0;
    while (moelm_added_find(&tokenizer->raw, encoding, text, bytes, at, &found)) {
        if (found.start > at) MOEI_TRY(encode_normalized(encoding, text + at, found.start - at, at == 0));
        MOEI_TRY(moelm_tokens_add(encoding->tokens, found.id, encoding->error));
        at = found.end;
    }
    if (at < bytes) MOEI_TRY(encode_normalized(encoding, text + at, bytes - at, at == 0));
    for (size_t i = 0; after && i < tokenizer->after.count; ++i)
        MOEI_TRY(moelm_tokens_add(encoding->tokens, tokenizer->after.ids[i], encoding->error));
    return MOE_OK;
}

/* The bytes at the begin of text that are UTF-8. */
static size_t valid_bytes(const char *text, size_t bytes) {
    size_t at = 0;
    while (at < bytes) {
        uint64_t eight;
        while (bytes - at >= 8 && (memcpy(&eight, text + at, 8), (eight & 0x8080808080808080U) == 0)) at += 8;
        if (at == bytes) break;
        uint32_t code;
        size_t length = moelm_utf8_decode(text + at, bytes - at, &code);
        if (length == 0) break;
        at += length;
    }
    return at;
}

/* A copy with U+FFFD for what is no UTF-8. */
static moe_status repair(const char *text, size_t bytes, moe_token_text *repaired, moe_error *error) {
    for (size_t at = 0; at < bytes;) {
        size_t valid = valid_bytes(text + at, bytes - at);
        MOEI_TRY(moelm_text_add(repaired, text + at, valid, error));
        at += valid;
        if (at == bytes) break;
        bool broken, begun;
        at += moelm_utf8_span(text + at, bytes - at, &broken, &begun);
        MOEI_TRY(moelm_text_add(repaired, "\xEF\xBF\xBD", 3, error));
    }
    return MOE_OK;
}

moe_status moe_tokenizer_encode(const moe_tokenizer *tokenizer, const char *text, size_t bytes,
                                unsigned flags, moe_token_list *tokens, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_tokenizer_encode", "tokenizer", tokenizer));
    MOEI_TRY(moei_error_need(error, "moe_tokenizer_encode", "tokens", tokens));
    if (bytes > 0) MOEI_TRY(moei_error_need(error, "moe_tokenizer_encode", "text", text));
    const unsigned known = MOE_TOKENIZER_TEMPLATE | MOE_TOKENIZER_PLAIN | MOE_TOKENIZER_BEGIN;
    MOEI_TRY(moelm_flags_check("moe_tokenizer_encode", flags, known, error));
    size_t before = tokens->count;
    moe_token_text repaired = {0};
    moelm_encoding encoding = {.tokenizer = tokenizer, .flags = flags, .tokens = tokens, .error = error};
    moe_status status = MOE_OK;
    if (valid_bytes(text, bytes) < bytes) {
        status = repair(text, bytes, &repaired, error);
        text = repaired.bytes;
        bytes = repaired.count;
    }
    if (bytes >= CACHE_FROM) encoding.cache = moelm_bpe_cache();
    if (status == MOE_OK) status = encode_text(&encoding, text, bytes);
    moelm_encoding_free(&encoding);
    moe_token_text_free(&repaired);
    if (status != MOE_OK) tokens->count = before;
    return status;
}
