/* tokenizer_decode.c: ids to text. Decoders follow each other, a token goes through them as far as it can,
 * and what may still change by the next token waits: bytes of a character, a run of byte tokens. Whole lists
 * are decoded by the same stream, so both give the same text. Source: tokenizer.json's "decoder". */
#define _GNU_SOURCE
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD"

/* 1. Reading. */
static moe_status read_strip(const json_t *part, const char *where, moelm_decoder *decoder,
                             moe_error *error) {
    int64_t stop = 0;
    MOEI_TRY(moelm_json_get_int(part, where, "start", 0, 1 << 16, &decoder->start, error));
    MOEI_TRY(moelm_json_get_int(part, where, "stop", 0, 1 << 16, &stop, error));
    if (stop == 0) return MOE_OK;
    return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: stop %d; only 0", where, (int)stop);
}

static moe_status read_metaspace(const json_t *part, const char *where, moelm_decoder *decoder,
                                 moe_error *error) {
    const char *scheme = "always";
    bool prefix = true;
    MOEI_TRY(moelm_json_opt_string(part, where, "prepend_scheme", &scheme, error));
    MOEI_TRY(moelm_json_opt_bool(part, where, "add_prefix_space", &prefix, error));
    decoder->drops_first = prefix && strcmp(scheme, "never") != 0;
    return MOE_OK;
}

static const struct {
    const char *type;
    moelm_decoder_kind kind;
    const char *text; /* its key of a text; NULL: none */
    bool fuses;       /* what comes out is one token */
    bool takes_fused;
} kinds[] = {
    {"ByteLevel",    MOELM_DECODE_BYTE_LEVEL,    NULL,          true,  false},
    {"Replace",      MOELM_DECODE_REPLACE,       "content",     false, false},
    {"ByteFallback", MOELM_DECODE_BYTE_FALLBACK, NULL,          false, false},
    {"Fuse",         MOELM_DECODE_FUSE,          NULL,          true,  true },
    {"Strip",        MOELM_DECODE_STRIP,         "content",     false, true },
    {"Metaspace",    MOELM_DECODE_METASPACE,     "replacement", false, false},
};

static moe_status take_decoder(const json_t *part, const char *where, const char *type,
                               moe_tokenizer *tokenizer, moe_error *error) {
    size_t at = 0, n = tokenizer->n_decoders;
    while (at < sizeof kinds / sizeof *kinds && strcmp(type, kinds[at].type) != 0) ++at;
    if (at == sizeof kinds / sizeof *kinds)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                              "%s: %.80s is not known; Sequence, ByteLevel, Replace, "
                              "ByteFallback, Fuse, Strip and Metaspace are",
                              where, type);
    bool fused = tokenizer->fused;
    if (n == MOELM_TOKENIZER_MAX_STEPS || (fused && !kinds[at].takes_fused))
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: %s behind %s", where, type,
                              fused ? "a decoder that makes one token of all" : "32 others");
    moelm_decoder *decoder = &tokenizer->decoders[tokenizer->n_decoders++];
    decoder->kind = kinds[at].kind;
    decoder->fused = fused;
    tokenizer->fused |= kinds[at].fuses;
    const char *text = "";
    if (decoder->kind == MOELM_DECODE_REPLACE)
        MOEI_TRY(moelm_json_get_string(part, where, kinds[at].text, &text, error));
    else if (kinds[at].text)
        MOEI_TRY(moelm_char_read(part, where, kinds[at].text, &text, error));
    decoder->text = strdup(text);
    if (!decoder->text) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", where);
    if (decoder->kind == MOELM_DECODE_REPLACE)
        return moelm_pattern_read(part, where, &decoder->pattern, error);
    if (decoder->kind == MOELM_DECODE_STRIP) return read_strip(part, where, decoder, error);
    if (decoder->kind == MOELM_DECODE_METASPACE) return read_metaspace(part, where, decoder, error);
    return MOE_OK;
}

moe_status moelm_decoders_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                               moe_error *error) {
    MOEI_TRY(moelm_parts_read(root, name, "decoder", "decoders", take_decoder, tokenizer, error));
    if (tokenizer->n_decoders > 0) return MOE_OK;
    tokenizer->decoders[tokenizer->n_decoders++] = (moelm_decoder){.kind = MOELM_DECODE_JOIN};
    return MOE_OK;
}

/* 2. A stream. */
typedef struct step {
    bool begun;          /* something came by */
    int64_t taken;       /* STRIP: characters at the begin, taken away */
    moe_token_text held; /* what waits */
} step;
struct moe_token_stream {
    const moe_tokenizer *tokenizer;
    unsigned flags;
    step steps[MOELM_TOKENIZER_MAX_STEPS];
    moe_token_text scratch[MOELM_TOKENIZER_MAX_STEPS]; /* what a step makes of its token */
    moe_token_text *out;
    moe_token_text given; /* what the last call gave */
    moelm_regex_run run;
    moe_error *error;
};

static moe_status feed(moe_token_stream *stream, size_t at, const char *text, size_t bytes);

/* Whole characters of what waits go on, as do broken ones; a begun one waits on, unless it is the end. */
static moe_status pass_characters(moe_token_stream *stream, size_t at, bool end) {
    moe_token_text *held = &stream->steps[at].held, *made = &stream->scratch[at];
    size_t from = 0;
    made->count = 0;
    while (from < held->count) {
        bool broken, begun;
        size_t span = moelm_utf8_span(held->bytes + from, held->count - from, &broken, &begun);
        if (begun && !end) break;
        if (broken || begun)
            MOEI_TRY(moelm_text_add(made, REPLACEMENT, 3, stream->error));
        else
            MOEI_TRY(moelm_text_add(made, held->bytes + from, span, stream->error));
        from += span;
    }
    if (from > 0) memmove(held->bytes, held->bytes + from, held->count - from);
    held->count -= from;
    return made->count > 0 ? feed(stream, at + 1, made->bytes, made->count) : MOE_OK;
}

/* Characters become the bytes they stand for; a token with one that stands for none is its own bytes. */
static moe_status feed_byte_level(moe_token_stream *stream, size_t at, const char *text, size_t bytes) {
    moe_token_text *held = &stream->steps[at].held;
    size_t before = held->count;
    MOEI_TRY(moelm_text_reserve(held, bytes, stream->error));
    for (size_t i = 0; i < bytes;) {
        uint32_t code = 0;
        size_t length = moelm_utf8_decode(text + i, bytes - i, &code);
        int byte = length > 0 ? moelm_byte_of_char(code) : -1;
        if (byte < 0) {
            memcpy(held->bytes + before, text, bytes);
            held->count = before + bytes;
            break;
        }
        held->bytes[held->count++] = (char)byte;
        i += length;
    }
    return pass_characters(stream, at, false);
}

static moe_status feed_replaced(moe_token_stream *stream, size_t at, const char *text, size_t bytes) {
    const moelm_decoder *decoder = &stream->tokenizer->decoders[at];
    moe_token_text *made = &stream->scratch[at];
    moelm_scan scan = {.text = text, .bytes = bytes, .last_end = SIZE_MAX};
    size_t done = 0, length = strlen(decoder->text);
    made->count = 0;
    while (bytes > 0) {
        MOEI_TRY(moelm_pattern_next(&decoder->pattern, &stream->run, &scan, stream->error));
        if (!scan.found) break;
        MOEI_TRY(moelm_text_add(made, text + done, scan.start - done, stream->error));
        MOEI_TRY(moelm_text_add(made, decoder->text, length, stream->error));
        done = scan.end;
    }
    MOEI_TRY(moelm_text_add(made, text + done, bytes - done, stream->error));
    return feed(stream, at + 1, made->bytes, made->count);
}

static int hex(char digit) {
    const char *digits = "0123456789ABCDEFabcdef", *found = digit ? strchr(digits, digit) : NULL;
    return found ? (int)(found - digits) - (found - digits > 15 ? 6 : 0) : -1;
}

/* A run of bytes is text where all of it is UTF-8; else each byte is a U+FFFD. */
static moe_status end_of_bytes(moe_token_stream *stream, size_t at) {
    moe_token_text *held = &stream->steps[at].held;
    size_t count = held->count;
    bool whole = true;
    for (size_t i = 0, length; i < count && whole; i += length) {
        uint32_t code;
        length = moelm_utf8_decode(held->bytes + i, count - i, &code);
        whole = length > 0;
    }
    held->count = 0;
    if (whole) return count > 0 ? feed(stream, at + 1, held->bytes, count) : MOE_OK;
    for (size_t i = 0; i < count; ++i) MOEI_TRY(feed(stream, at + 1, REPLACEMENT, 3));
    return MOE_OK;
}

static moe_status feed_fallback(moe_token_stream *stream, size_t at, const char *text, size_t bytes) {
    if (bytes == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>' && hex(text[3]) >= 0 &&
        hex(text[4]) >= 0) {
        char byte = (char)(hex(text[3]) * 16 + hex(text[4]));
        return moelm_text_add(&stream->steps[at].held, &byte, 1, stream->error);
    }
    MOEI_TRY(end_of_bytes(stream, at));
    return feed(stream, at + 1, text, bytes);
}

/* Takes away what stands at the begin: of each token, or behind a fuse of all. */
static moe_status feed_stripped(moe_token_stream *stream, size_t at, const char *text, size_t bytes) {
    const moelm_decoder *decoder = &stream->tokenizer->decoders[at];
    step *state = &stream->steps[at];
    size_t length = strlen(decoder->text), begin = 0;
    if (!decoder->fused) *state = (step){0};
    while (!state->begun && begin < bytes) {
        state->begun = state->taken == decoder->start || bytes - begin < length ||
                       memcmp(text + begin, decoder->text, length) != 0;
        if (state->begun) break;
        begin += length;
        ++state->taken;
    }
    return feed(stream, at + 1, text + begin, bytes - begin);
}

static moe_status feed_metaspace(moe_token_stream *stream, size_t at, const char *text, size_t bytes) {
    const moelm_decoder *decoder = &stream->tokenizer->decoders[at];
    moe_token_text *made = &stream->scratch[at];
    bool drops = decoder->drops_first && !stream->steps[at].begun;
    size_t length = strlen(decoder->text);
    stream->steps[at].begun = true;
    made->count = 0;
    for (const char *end = text + bytes; text <= end;) {
        const char *mark = memmem(text, (size_t)(end - text), decoder->text, length);
        const char *stop = mark ? mark : end;
        MOEI_TRY(moelm_text_add(made, text, (size_t)(stop - text), stream->error));
        if (mark && !drops) MOEI_TRY(moelm_text_add(made, " ", 1, stream->error));
        text = mark ? mark + length : end + 1;
    }
    return feed(stream, at + 1, made->bytes, made->count);
}

static moe_status feed(moe_token_stream *stream, size_t at, const char *text, size_t bytes) {
    if (at == stream->tokenizer->n_decoders) return moelm_text_add(stream->out, text, bytes, stream->error);
    switch (stream->tokenizer->decoders[at].kind) {
    case MOELM_DECODE_JOIN:
        if (stream->steps[at].begun) MOEI_TRY(feed(stream, at + 1, " ", 1));
        stream->steps[at].begun = true;
        return feed(stream, at + 1, text, bytes);
    case MOELM_DECODE_BYTE_LEVEL:
        return feed_byte_level(stream, at, text, bytes);
    case MOELM_DECODE_REPLACE:
        return feed_replaced(stream, at, text, bytes);
    case MOELM_DECODE_BYTE_FALLBACK:
        return feed_fallback(stream, at, text, bytes);
    case MOELM_DECODE_FUSE:
        return feed(stream, at + 1, text, bytes);
    case MOELM_DECODE_STRIP:
        return feed_stripped(stream, at, text, bytes);
    case MOELM_DECODE_METASPACE:
        return feed_metaspace(stream, at, text, bytes);
    }
    return MOE_ERR_INTERNAL;
}

static moe_status put(moe_token_stream *stream, int32_t id) {
    const moelm_vocab *vocab = &stream->tokenizer->vocab;
    if (id < 0 || id >= vocab->n_ids || !vocab->tokens[id].text) return MOE_OK;
    const moelm_token *token = &vocab->tokens[id];
    if (token->special && (stream->flags & MOE_TOKENIZER_SKIP_SPECIAL)) return MOE_OK;
    return feed(stream, 0, token->spoken, strlen(token->spoken));
}

/* What waits goes on, the first decoder's first; then every step is as new. */
static moe_status finish(moe_token_stream *stream) {
    const moe_tokenizer *tokenizer = stream->tokenizer;
    for (size_t i = 0; i < tokenizer->n_decoders; ++i) {
        if (tokenizer->decoders[i].kind == MOELM_DECODE_BYTE_LEVEL)
            MOEI_TRY(pass_characters(stream, i, true));
        if (tokenizer->decoders[i].kind == MOELM_DECODE_BYTE_FALLBACK) MOEI_TRY(end_of_bytes(stream, i));
    }
    for (size_t i = 0; i < tokenizer->n_decoders; ++i) {
        stream->steps[i].begun = false;
        stream->steps[i].taken = 0;
        stream->steps[i].held.count = 0;
    }
    return MOE_OK;
}

static void release(moe_token_stream *stream) {
    for (size_t i = 0; i < MOELM_TOKENIZER_MAX_STEPS; ++i) {
        moe_token_text_free(&stream->steps[i].held);
        moe_token_text_free(&stream->scratch[i]);
    }
    moe_token_text_free(&stream->given);
    moelm_regex_run_free(&stream->run);
}

/* 3. The public calls. */
moe_status moe_tokenizer_decode(const moe_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                unsigned flags, moe_token_text *text, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_tokenizer_decode", "tokenizer", tokenizer));
    MOEI_TRY(moei_error_need(error, "moe_tokenizer_decode", "text", text));
    if (count > 0) MOEI_TRY(moei_error_need(error, "moe_tokenizer_decode", "ids", ids));
    MOEI_TRY(moelm_flags_check("moe_tokenizer_decode", flags, MOE_TOKENIZER_SKIP_SPECIAL, error));
    size_t before = text->count;
    moe_token_stream stream = {.tokenizer = tokenizer, .flags = flags, .out = text, .error = error};
    moe_status status = moelm_text_add(text, "", 0, error);
    for (size_t i = 0; i < count && status == MOE_OK; ++i) status = put(&stream, ids[i]);
    if (status == MOE_OK) status = finish(&stream);
    release(&stream);
    if (status != MOE_OK) text->count = before;
    if (text->capacity > before && status != MOE_OK) text->bytes[before] = '\0';
    return status;
}

moe_status moe_token_stream_create(const moe_tokenizer *tokenizer, unsigned flags, moe_token_stream **stream,
                                   moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_token_stream_create", "tokenizer", tokenizer));
    MOEI_TRY(moei_error_need(error, "moe_token_stream_create", "stream", stream));
    MOEI_TRY(moelm_flags_check("moe_token_stream_create", flags, MOE_TOKENIZER_SKIP_SPECIAL, error));
    moe_token_stream *made = calloc(1, sizeof *made);
    if (!made) return moei_error_set(error, MOE_ERR_MEMORY, "moe_token_stream_create: out of memory");
    *made = (moe_token_stream){.tokenizer = tokenizer, .flags = flags, .out = &made->given};
    *stream = made;
    return MOE_OK;
}

void moe_token_stream_destroy(moe_token_stream *stream) {
    if (!stream) return;
    release(stream);
    free(stream);
}

static moe_status begin_call(moe_token_stream *stream, const char *call, const char **text, size_t *bytes,
                             moe_error *error) {
    MOEI_TRY(moei_error_need(error, call, "stream", stream));
    MOEI_TRY(moei_error_need(error, call, "text", text));
    MOEI_TRY(moei_error_need(error, call, "bytes", bytes));
    stream->error = error;
    stream->given.count = 0;
    return moelm_text_add(&stream->given, "", 0, error);
}

moe_status moe_token_stream_put(moe_token_stream *stream, int32_t id, const char **text, size_t *bytes,
                                moe_error *error) {
    MOEI_TRY(begin_call(stream, "moe_token_stream_put", text, bytes, error));
    MOEI_TRY(put(stream, id));
    *text = stream->given.bytes;
    *bytes = stream->given.count;
    return MOE_OK;
}

moe_status moe_token_stream_end(moe_token_stream *stream, const char **text, size_t *bytes,
                                moe_error *error) {
    MOEI_TRY(begin_call(stream, "moe_token_stream_end", text, bytes, error));
    MOEI_TRY(finish(stream));
    *text = stream->given.bytes;
    *bytes = stream->given.count;
    return MOE_OK;
}
