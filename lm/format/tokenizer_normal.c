/* tokenizer_normal.c: normalizers: a text as it is before it is cut.
 * Unicode's normal forms are made stretch by stretch: what lies below the first character that a form can
 * change is copied, so plain text costs a scan. Source: Unicode Standard Annex 15, its data by utf8proc;
 * tokenizer.json's "normalizer". */
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* 1. Reading. */
static const struct {
    const char *type;
    bool compose, compatible;
} forms[] = {
    {"NFC",  true,  false},
    {"NFD",  false, false},
    {"NFKC", true,  true },
    {"NFKD", false, true }
};

static moe_status keep(const json_t *part, const char *where, const char *key, char **text,
                       moe_error *error) {
    const char *value = "";
    MOEI_TRY(moelm_json_get_string(part, where, key, &value, error));
    *text = strdup(value);
    return *text ? MOE_OK : moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", where);
}

static moe_status take_normalizer(const json_t *part, const char *where, const char *type,
                                  moe_tokenizer *tokenizer, moe_error *error) {
    if (tokenizer->n_normalizers == MOELM_TOKENIZER_MAX_STEPS)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: more than %d normalizers", where,
                              MOELM_TOKENIZER_MAX_STEPS);
    moelm_normalizer *normalizer = &tokenizer->normalizers[tokenizer->n_normalizers++];
    for (size_t i = 0; i < sizeof forms / sizeof *forms; ++i)
        if (strcmp(type, forms[i].type) == 0) {
            *normalizer = (moelm_normalizer){
                .kind = MOELM_NORMAL_FORM, .compose = forms[i].compose, .compatible = forms[i].compatible};
            return MOE_OK;
        }
    if (strcmp(type, "Prepend") == 0) {
        normalizer->kind = MOELM_NORMAL_PREPEND;
        return keep(part, where, "prepend", &normalizer->text, error);
    }
    if (strcmp(type, "Replace") == 0) {
        normalizer->kind = MOELM_NORMAL_REPLACE;
        MOEI_TRY(keep(part, where, "content", &normalizer->text, error));
        return moelm_pattern_read(part, where, &normalizer->pattern, error);
    }
    if (strcmp(type, "Lowercase") == 0) {
        normalizer->kind = MOELM_NORMAL_LOWERCASE;
        return MOE_OK;
    }
    if (strcmp(type, "Strip") == 0) {
        normalizer->kind = MOELM_NORMAL_STRIP;
        MOEI_TRY(moelm_json_get_bool(part, where, "strip_left", &normalizer->strip_left, error));
        return moelm_json_get_bool(part, where, "strip_right", &normalizer->strip_right, error);
    }
    return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                          "%s: %.80s is not known; Sequence, NFC, NFD, NFKC, NFKD, "
                          "Prepend, Replace, Lowercase and Strip are",
                          where, type);
}

moe_status moelm_normalizers_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                                  moe_error *error) {
    return moelm_parts_read(root, name, "normalizer", "normalizers", take_normalizer, tokenizer, error);
}

/* 2. Normal forms. */
/* Puts each run of combining marks in the order of their classes, stably, by counting. spare holds as many.
 */
static void order_marks(int32_t *codes, size_t count, int32_t *spare) {
    for (size_t i = 0; i < count;) {
        if (utf8proc_get_property(codes[i])->combining_class == 0) {
            ++i;
            continue;
        }
        size_t places[257] = {0}, end = i;
        for (utf8proc_propval_t class; end < count; ++end) {
            class = utf8proc_get_property(codes[end])->combining_class;
            if (class == 0) break;
            ++places[class + 1];
        }
        if (end - i > 1) {
            for (size_t c = 1; c < 257; ++c) places[c] += places[c - 1];
            for (size_t k = i; k < end; ++k)
                spare[places[utf8proc_get_property(codes[k])->combining_class]++] = codes[k];
            memcpy(codes + i, spare, (end - i) * sizeof *codes);
        }
        i = end;
    }
}

static moe_status add_code(moe_token_text *out, int32_t code, moe_error *error) {
    utf8proc_uint8_t bytes[4];
    return moelm_text_add(out, (const char *)bytes, (size_t)utf8proc_encode_char(code, bytes), error);
}

#define LONGEST_DECOMPOSITION 18 /* characters; of U+FDFA in NFKD */

static moe_status add_form(moelm_encoding *encoding, const moelm_normalizer *normalizer, const char *text,
                           size_t bytes, moe_token_text *out) {
    utf8proc_option_t options = UTF8PROC_STABLE |
                                (normalizer->compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                (normalizer->compatible ? UTF8PROC_COMPAT : 0);
    size_t count = 0;
    for (size_t at = 0; at < bytes;) {
        uint32_t code = 0;
        size_t length = moelm_utf8_decode(text + at, bytes - at, &code);
        at += length > 0 ? length : 1;
        if (encoding->n_codes < count + LONGEST_DECOMPOSITION) {
            size_t roomy = 2 * encoding->n_codes + 256;
            int32_t *grown = realloc(encoding->codes, 2 * roomy * sizeof *grown);
            if (!grown)
                return moei_error_set(encoding->error, MOE_ERR_MEMORY, "a normal form: out of memory");
            encoding->codes = grown;
            encoding->n_codes = roomy;
        }
        int boundary = 0;
        utf8proc_ssize_t made =
            utf8proc_decompose_char((int32_t)code, encoding->codes + count,
                                    (utf8proc_ssize_t)(encoding->n_codes - count), options, &boundary);
        if (made < 0 || (size_t)made > encoding->n_codes - count)
            return moei_error_set(encoding->error, MOE_ERR_INTERNAL, "a normal form of U+%04X",
                                  (unsigned)code);
        count += (size_t)made;
    }
    order_marks(encoding->codes, count, encoding->codes + encoding->n_codes);
    utf8proc_ssize_t left = utf8proc_normalize_utf32(encoding->codes, (utf8proc_ssize_t)count, options);
    for (utf8proc_ssize_t i = 0; i < left; ++i) MOEI_TRY(add_code(out, encoding->codes[i], encoding->error));
    return MOE_OK;
}

/* Characters below U+0300 are their own NFC, and those below U+0080 their own in every form; neither joins
 * one before it. A stretch begins with the last of them, which what follows may join. */
static moe_status add_forms(moelm_encoding *encoding, const moelm_normalizer *normalizer, const char *text,
                            size_t bytes, moe_token_text *out) {
    unsigned char plain = normalizer->compose && !normalizer->compatible ? 0xCC : 0x80; /* first bytes */
    size_t done = 0, last = 0, at = 0;
    while (at < bytes) {
        if ((unsigned char)text[at] < plain) {
            if ((unsigned char)text[at] >> 6 != 2) last = at;
            ++at;
            continue;
        }
        MOEI_TRY(moelm_text_add(out, text + done, last - done, encoding->error));
        while (at < bytes && ((unsigned char)text[at] >= plain || (unsigned char)text[at] >> 6 == 2)) ++at;
        MOEI_TRY(add_form(encoding, normalizer, text + last, at - last, out));
        done = last = at;
    }
    return moelm_text_add(out, text + done, bytes - done, encoding->error);
}

/* 3. The others. */
static moe_status add_replaced(moelm_encoding *encoding, const moelm_normalizer *normalizer, const char *text,
                               size_t bytes, moe_token_text *out) {
    moelm_scan scan = {.text = text, .bytes = bytes, .last_end = SIZE_MAX};
    size_t done = 0, length = strlen(normalizer->text);
    while (true) {
        MOEI_TRY(moelm_pattern_next(&normalizer->pattern, &encoding->run, &scan, encoding->error));
        if (!scan.found) break;
        MOEI_TRY(moelm_text_add(out, text + done, scan.start - done, encoding->error));
        MOEI_TRY(moelm_text_add(out, normalizer->text, length, encoding->error));
        done = scan.end;
    }
    return moelm_text_add(out, text + done, bytes - done, encoding->error);
}

static moe_status add_lowercase(moelm_encoding *encoding, const char *text, size_t bytes,
                                moe_token_text *out) {
    for (size_t at = 0; at < bytes;) {
        uint32_t code = 0;
        size_t length = moelm_utf8_decode(text + at, bytes - at, &code);
        at += length > 0 ? length : 1;
        if (code == 0x130) /* the one letter that becomes two */
            MOEI_TRY(moelm_text_add(out, "i\xCC\x87", 3, encoding->error));
        else
            MOEI_TRY(add_code(out, utf8proc_tolower((int32_t)code), encoding->error));
    }
    return MOE_OK;
}

static moe_status add_stripped(moelm_encoding *encoding, const moelm_normalizer *normalizer, const char *text,
                               size_t bytes, moe_token_text *out) {
    size_t begin = 0, end = 0, first = bytes;
    for (size_t at = 0; at < bytes;) {
        uint32_t code = 0;
        size_t length = moelm_utf8_decode(text + at, bytes - at, &code);
        if (!moelm_is_space(code)) {
            if (first == bytes) first = at;
            end = at + (length > 0 ? length : 1);
        }
        at += length > 0 ? length : 1;
    }
    if (normalizer->strip_left) begin = first;
    if (!normalizer->strip_right || end < begin) end = normalizer->strip_right ? begin : bytes;
    return moelm_text_add(out, text + begin, end - begin, encoding->error);
}

static moe_status normalize_once(moelm_encoding *encoding, const moelm_normalizer *normalizer,
                                 const char *text, size_t bytes, moe_token_text *out) {
    switch (normalizer->kind) {
    case MOELM_NORMAL_FORM:
        return add_forms(encoding, normalizer, text, bytes, out);
    case MOELM_NORMAL_PREPEND:
        if (bytes > 0)
            MOEI_TRY(moelm_text_add(out, normalizer->text, strlen(normalizer->text), encoding->error));
        return moelm_text_add(out, text, bytes, encoding->error);
    case MOELM_NORMAL_REPLACE:
        return add_replaced(encoding, normalizer, text, bytes, out);
    case MOELM_NORMAL_LOWERCASE:
        return add_lowercase(encoding, text, bytes, out);
    case MOELM_NORMAL_STRIP:
        return add_stripped(encoding, normalizer, text, bytes, out);
    }
    return MOE_ERR_INTERNAL;
}

moe_status moelm_normalize(moelm_encoding *encoding, const char **text, size_t *bytes) {
    const moe_tokenizer *tokenizer = encoding->tokenizer;
    for (size_t i = 0; i < tokenizer->n_normalizers; ++i) {
        moe_token_text *out = &encoding->swap[i % 2];
        out->count = 0;
        MOEI_TRY(moelm_text_add(out, "", 0, encoding->error));
        MOEI_TRY(normalize_once(encoding, &tokenizer->normalizers[i], *text, *bytes, out));
        *text = out->bytes;
        *bytes = out->count;
    }
    return MOE_OK;
}
