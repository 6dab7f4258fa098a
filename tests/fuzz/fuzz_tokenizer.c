/* fuzz_tokenizer.c: any bytes are refused with a text, or are a tokenizer, which gives any text ids of its
 * own, and those ids UTF-8, the same at once and token by token. Input: a tokenizer.json, a byte 0, and the
 * text, of which 512 bytes count. Run by scripts/fuzz.sh. Source: moekit/tokenizer.h. */
#include "format/tokenizer.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_utf8(const char *text, size_t bytes) {
    for (size_t at = 0, length; at < bytes; at += length) {
        uint32_t code;
        length = moelm_utf8_decode(text + at, bytes - at, &code);
        if (length == 0) abort();
    }
}

static void check_stream(const moe_tokenizer *tokenizer, const moe_token_list *ids,
                         const moe_token_text *all) {
    moe_token_stream *stream;
    size_t at = 0;
    if (moe_token_stream_create(tokenizer, 0, &stream, NULL) != MOE_OK) abort();
    for (size_t i = 0; i <= ids->count; ++i) {
        const char *text;
        size_t bytes;
        moe_status status = i < ids->count ? moe_token_stream_put(stream, ids->ids[i], &text, &bytes, NULL)
                                           : moe_token_stream_end(stream, &text, &bytes, NULL);
        if (status != MOE_OK || bytes > all->count - at || memcmp(all->bytes + at, text, bytes) != 0) abort();
        check_utf8(text, bytes);
        at += bytes;
    }
    if (at != all->count) abort();
    moe_token_stream_destroy(stream);
}

static void check_text(const moe_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags) {
    moe_token_list ids = {0};
    moe_token_text decoded = {0};
    moe_error error = {.text = ""};
    moe_status status = moe_tokenizer_encode(tokenizer, text, bytes, flags, &ids, &error);
    if (status != MOE_OK && (ids.count > 0 || error.text[0] == '\0')) abort();
    for (size_t i = 0; i < ids.count; ++i)
        if (!moe_tokenizer_token(tokenizer, ids.ids[i])) abort();
    status = moe_tokenizer_decode(tokenizer, ids.ids, ids.count, 0, &decoded, &error);
    if (status == MOE_OK) {
        check_utf8(decoded.bytes, decoded.count);
        check_stream(tokenizer, &ids, &decoded);
    } else if (decoded.count > 0 || error.text[0] == '\0') {
        abort();
    }
    moe_token_list_free(&ids);
    moe_token_text_free(&decoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t json = zero ? (size_t)(zero - data) : size, text = zero ? size - json - 1 : 0;
    moe_tokenizer *tokenizer = NULL;
    moe_error error = {.text = ""};
    if (moelm_tokenizer_parse("tokenizer.json", data, json, &tokenizer, &error) != MOE_OK) {
        if (tokenizer || error.text[0] == '\0') abort();
        return 0;
    }
    if (text > 512) text = 512;
    check_text(tokenizer, zero ? (const char *)zero + 1 : "", text, 0);
    check_text(tokenizer, zero ? (const char *)zero + 1 : "", text,
               MOE_TOKENIZER_TEMPLATE | MOE_TOKENIZER_PLAIN);
    moe_tokenizer_destroy(tokenizer);
    return 0;
}
