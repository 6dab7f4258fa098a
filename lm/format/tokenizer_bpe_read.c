/* tokenizer_bpe_read.c: model of tokenizer.json: its switches, and the tables that BPE begins with.
 * Where a splitter is ByteLevel, tokens are made of characters that stand for bytes; here they become bytes.
 * Source: GPT-2's bytes_to_unicode (Radford et al. 2019). */
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes that print in Latin-1 are their own characters, the others are U+0100 and on, in order. */
int moelm_byte_of_char(uint32_t code) {
    if ((code >= '!' && code <= '~') || (code >= 0xA1 && code <= 0xAC) || (code >= 0xAE && code <= 0xFF))
        return (int)code;
    if (code < 0x100 || code > 0x143) return -1;
    code -= 0x100;
    return (int)(code <= ' ' ? code : code < 67 ? code - 33 + 0x7F : 0xAD);
}

void moelm_bpe_free(moelm_bpe *bpe) {
    free(bpe->by_bytes);
    free(bpe->as_bytes);
    free(bpe->as_bytes_length);
}

/* The bytes that a token's characters stand for; false: they stand for none. */
static bool bytes_of(const char *text, char *bytes, size_t *count) {
    size_t left = strlen(text);
    *count = 0;
    while (left > 0) {
        uint32_t code;
        size_t length = moelm_utf8_decode(text, left, &code);
        int byte = length > 0 ? moelm_byte_of_char(code) : -1;
        if (byte < 0) return false;
        bytes[(*count)++] = (char)byte;
        text += length;
        left -= length;
    }
    return true;
}

static void enter_bytes(moelm_bpe *bpe, int32_t id) {
    size_t mask = bpe->n_by_bytes - 1;
    size_t at = moelm_hash(bpe->as_bytes[id], bpe->as_bytes_length[id]) & mask;
    while (bpe->by_bytes[at] >= 0) at = (at + 1) & mask;
    bpe->by_bytes[at] = id;
}

static moe_status tokens_as_bytes(moelm_vocab *vocab, moelm_bpe *bpe, moe_token_text *scratch,
                                  moe_error *error) {
    size_t n = (size_t)vocab->n_ids;
    bpe->as_bytes = calloc(n, sizeof *bpe->as_bytes);
    bpe->as_bytes_length = calloc(n, sizeof *bpe->as_bytes_length);
    bpe->n_by_bytes = vocab->n_by_text;
    bpe->by_bytes = malloc(bpe->n_by_bytes * sizeof *bpe->by_bytes);
    if (!bpe->as_bytes || !bpe->as_bytes_length || !bpe->by_bytes)
        return moei_error_set(error, MOE_ERR_MEMORY, "a vocabulary of %zu tokens: out of memory", n);
    for (size_t i = 0; i < bpe->n_by_bytes; ++i) bpe->by_bytes[i] = -1;
    for (int32_t id = 0; id < vocab->n_ids; ++id) {
        const moelm_token *token = &vocab->tokens[id];
        size_t count;
        if (!token->text || !token->in_model) continue;
        scratch->count = 0;
        MOEI_TRY(moelm_text_reserve(scratch, strlen(token->text), error));
        if (!bytes_of(token->text, scratch->bytes, &count) || count == 0) continue;
        bpe->as_bytes[id] = moelm_vocab_keep(vocab, scratch->bytes, count);
        if (!bpe->as_bytes[id]) return moei_error_set(error, MOE_ERR_MEMORY, "a vocabulary: out of memory");
        bpe->as_bytes_length[id] = (uint32_t)count;
        enter_bytes(bpe, id);
        if (count == 1) bpe->letter[(unsigned char)scratch->bytes[0]] = id;
    }
    return MOE_OK;
}

static int32_t model_id(const moelm_vocab *vocab, const char *text) {
    int32_t id = moelm_vocab_find(vocab, text, strlen(text));
    return id >= 0 && vocab->tokens[id].in_model ? id : -1;
}

/* Whether U+2581 stands only at the begin of tokens that merges make, perhaps more than once. */
static bool marks_begin(const moelm_vocab *vocab) {
    static const char mark[] = "\xE2\x96\x81";
    if (model_id(vocab, mark) < 0) return false;
    for (size_t i = 0; i < vocab->n_merges; ++i) {
        if (vocab->merges[i].pair == UINT64_MAX) continue;
        const char *text = vocab->tokens[vocab->merges[i].id].text;
        while (strncmp(text, mark, 3) == 0) text += 3;
        if (strstr(text, mark)) return false;
    }
    return true;
}

static void find_letters(const moelm_vocab *vocab, moelm_bpe *bpe) {
    for (int i = 0; i < 256; ++i) {
        char one[2] = {(char)i, '\0'}, fallback[8];
        if (!bpe->bytes) bpe->letter[i] = i > 0 && i < 128 ? model_id(vocab, one) : -1;
        snprintf(fallback, sizeof fallback, "<0x%02X>", (unsigned)i);
        bpe->fallback[i] = model_id(vocab, fallback);
    }
}

static moe_status refuse_others(const json_t *model, const char *where, moe_error *error) {
    const char *type = "BPE", *prefix = "", *suffix = "";
    double dropout = 0;
    MOEI_TRY(moelm_json_opt_string(model, where, "type", &type, error));
    MOEI_TRY(moelm_json_opt_real(model, where, "dropout", &dropout, error));
    MOEI_TRY(moelm_json_opt_string(model, where, "continuing_subword_prefix", &prefix, error));
    MOEI_TRY(moelm_json_opt_string(model, where, "end_of_word_suffix", &suffix, error));
    if (strcmp(type, "BPE") != 0)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: type %.80s; BPE is known", where, type);
    if (dropout != 0)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: dropout %g; only 0 or null", where, dropout);
    if (*prefix || *suffix)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: %s \"%.80s\"; only \"\" or null", where,
                              *prefix ? "continuing_subword_prefix" : "end_of_word_suffix",
                              *prefix ? prefix : suffix);
    return MOE_OK;
}

static moe_status read_unknown(const json_t *model, const char *where, const moelm_vocab *vocab,
                               moelm_bpe *bpe, moe_error *error) {
    const char *unknown = NULL;
    bpe->unknown = -1;
    MOEI_TRY(moelm_json_opt_string(model, where, "unk_token", &unknown, error));
    if (!unknown) return MOE_OK;
    bpe->unknown = model_id(vocab, unknown);
    if (bpe->unknown < 0)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: unk_token \"%.80s\" is not in the vocabulary", where,
                              unknown);
    return MOE_OK;
}

moe_status moelm_bpe_read(const json_t *root, const char *name, moe_tokenizer *tokenizer, moe_error *error) {
    moelm_bpe *bpe = &tokenizer->bpe;
    moelm_vocab *vocab = &tokenizer->vocab;
    char where[200];
    snprintf(where, sizeof where, "%s: model", name);
    json_t *model;
    MOEI_TRY(moelm_json_get_object(root, name, "model", &model, error));
    MOEI_TRY(refuse_others(model, where, error));
    MOEI_TRY(moelm_json_opt_bool(model, where, "fuse_unk", &bpe->fuse_unknown, error));
    MOEI_TRY(moelm_json_opt_bool(model, where, "byte_fallback", &bpe->byte_fallback, error));
    MOEI_TRY(moelm_json_opt_bool(model, where, "ignore_merges", &bpe->ignore_merges, error));
    MOEI_TRY(read_unknown(model, where, vocab, bpe, error));
    find_letters(vocab, bpe);
    if (!bpe->bytes) {
        bpe->parts_at_mark = !bpe->ignore_merges && marks_begin(vocab);
        return MOE_OK;
    }
    for (int i = 0; i < 256; ++i) bpe->letter[i] = -1;
    moe_token_text scratch = {0};
    moe_status status = tokens_as_bytes(vocab, bpe, &scratch, error);
    moe_token_text_free(&scratch);
    for (int i = 0; i < 256 && status == MOE_OK && bpe->byte_fallback; ++i)
        if (bpe->letter[i] < 0)
            return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                                  "%s: byte_fallback with ByteLevel, and no token for the "
                                  "byte %d",
                                  where, i);
    return status;
}
