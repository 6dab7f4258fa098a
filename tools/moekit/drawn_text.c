/* drawn_text.c: tokens of a prompt, and the text that drawn tokens stand for.
 */
#include "drawn_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static moe_status fail(moe_error *error, moe_status status, const char *words) {
    *error = (moe_error){.status = status};
    snprintf(error->text, sizeof error->text, "%s", words);
    return status;
}

/* Decoders drop a space at the begin of a text, which is the prompt's begin. */
static moe_status pass_prompt(drawn_text *text, const moe_token_list *prompt) {
    const char *bytes;
    size_t n;
    moe_status status = MOE_OK;
    for (size_t i = 0; i < prompt->count && status == MOE_OK; ++i)
        status = moe_token_stream_put(text->stream, prompt->ids[i], &bytes, &n, &text->error);
    return status;
}

moe_status drawn_text_begin(drawn_text *text, const moe_tokenizer *tokenizer, const moe_token_list *prompt,
                            int64_t most) {
    *text = (drawn_text){.tokenizer = tokenizer, .ids = malloc((size_t)most * sizeof *text->ids)};
    if (!text->ids) return fail(&text->error, MOE_ERR_MEMORY, "--n-predict: no memory for so many tokens");
    if (!tokenizer) return MOE_OK;
    const moe_status status =
        moe_token_stream_create(tokenizer, MOE_TOKENIZER_SKIP_SPECIAL, &text->stream, &text->error);
    return status == MOE_OK ? pass_prompt(text, prompt) : status;
}

static bool append(drawn_text *text, const char *bytes, size_t n) {
    if (n > text->room - text->n_bytes) {
        const size_t room = 2 * text->room + n + 64;
        char *grown = realloc(text->bytes, room);
        if (!grown) {
            fail(&text->error, MOE_ERR_MEMORY, "no memory for the text that is drawn");
            return false;
        }
        text->bytes = grown;
        text->room = room;
    }
    memcpy(text->bytes + text->n_bytes, bytes, n);
    text->n_bytes += n;
    return true;
}

static bool is_end(const moe_tokenizer *tokenizer, int32_t token) {
    const int32_t *ids;
    const size_t count = moe_tokenizer_eos(tokenizer, &ids);
    for (size_t i = 0; i < count; ++i)
        if (ids[i] == token) return true;
    return false;
}

bool drawn_text_put(drawn_text *text, int32_t token) {
    const char byte = (char)token, *bytes = &byte;
    size_t n = 1;
    text->ids[text->n++] = token;
    if (!text->tokenizer) return append(text, bytes, n);
    text->ended = is_end(text->tokenizer, token);
    if (text->ended) return false;
    return moe_token_stream_put(text->stream, token, &bytes, &n, &text->error) == MOE_OK &&
           append(text, bytes, n);
}

void drawn_text_end(drawn_text *text) {
    const char *bytes;
    size_t n;
    if (text->stream && moe_token_stream_end(text->stream, &bytes, &n, &text->error) == MOE_OK)
        append(text, bytes, n);
}

void drawn_text_free(drawn_text *text) {
    moe_token_stream_destroy(text->stream);
    free(text->ids);
    free(text->bytes);
}

moe_status drawn_text_prompt(const moe_tokenizer *tokenizer, const char *bytes, size_t n,
                             moe_token_list *tokens, moe_error *error) {
    if (tokenizer) {
        const moe_status status =
            moe_tokenizer_encode(tokenizer, bytes, n, MOE_TOKENIZER_BEGIN, tokens, error);
        if (status != MOE_OK || tokens->count > 0) return status;
        return fail(error, MOE_ERR_INPUT, "a prompt has no tokens, so there is nothing to continue");
    }
    tokens->ids = malloc(n * sizeof *tokens->ids);
    if (!tokens->ids) return fail(error, MOE_ERR_MEMORY, "the prompt does not fit");
    tokens->count = tokens->capacity = n;
    for (size_t i = 0; i < n; ++i) tokens->ids[i] = (unsigned char)bytes[i];
    return MOE_OK;
}
