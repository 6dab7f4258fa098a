/* drawn_text.h: a text while it is drawn: its tokens, and what they stand for: bytes, or what a tokenizer
 * says.
 */
#ifndef MOEKIT_DRAWN_TEXT_H
#define MOEKIT_DRAWN_TEXT_H

#include <moekit/tokenizer.h>

typedef struct drawn_text {
    const moe_tokenizer *tokenizer; /* NULL: a token is a byte */
    moe_token_stream *stream;       /* NULL: the same */
    int32_t *ids;                   /* [n] */
    int64_t n;
    char *bytes; /* [n_bytes], of whole characters where there is a tokenizer */
    size_t n_bytes, room;
    bool ended;      /* the last token is the end of a text, which stands for no bytes */
    moe_error error; /* why a token found no place; status MOE_OK: nothing went wrong */
} drawn_text;

/* An empty text that will have at most `most` tokens, behind those of the prompt. */
moe_status drawn_text_begin(drawn_text *text, const moe_tokenizer *tokenizer, const moe_token_list *prompt,
                            int64_t most);
/* One more token. false: no more of them, as it was the end, or text->error tells of a fault. */
bool drawn_text_put(drawn_text *text, int32_t token);
/* Of a character that was never whole there is what stands for it. */
void drawn_text_end(drawn_text *text);
void drawn_text_free(drawn_text *text);

/* The tokens of a prompt, with what the tokenizer puts before one. */
moe_status drawn_text_prompt(const moe_tokenizer *tokenizer, const char *bytes, size_t n,
                             moe_token_list *tokens, moe_error *error);

#endif
