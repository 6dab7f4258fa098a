/* tokenizer.h: text to the tokens of a checkpoint and back, as its tokenizer.json says: BPE as Mixtral,
 * OLMoE, Qwen3-MoE, DeepSeek and others have it. Link with libmoekit-lm. The conventions are those of moe.h.
 *
 * Ids and text are those of Hugging Face's tokenizers, whose file format this is. What such a file asks for
 * and is not built is MOE_ERR_UNSUPPORTED, by its name. Truncation and padding, which a file may ask for too,
 * are the caller's matter.
 */
#ifndef MOEKIT_TOKENIZER_H
#define MOEKIT_TOKENIZER_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Any number of threads may use a tokenizer at the same time. */
typedef struct moe_tokenizer moe_tokenizer;
/* path: a tokenizer.json, or the directory of a checkpoint that has one; of a directory the begin and end of
 * text are read too, from generation_config.json, config.json and tokenizer_config.json, as far as they are
 * there. */
MOE_API moe_status moe_tokenizer_load(const char *path, moe_tokenizer **tokenizer, moe_error *error);
MOE_API void moe_tokenizer_destroy(moe_tokenizer *tokenizer);

/* One more than the largest id. A model's vocabulary may be larger, for the sake of round numbers. */
MOE_API int32_t moe_tokenizer_vocab_size(const moe_tokenizer *tokenizer);
/* A token by its text as the file has it, where " the" may be "\u0120the" or "\u2581the"; -1: there is none.
 */
MOE_API int32_t moe_tokenizer_id(const moe_tokenizer *tokenizer, const char *token);
MOE_API const char *moe_tokenizer_token(const moe_tokenizer *tokenizer,
                                        int32_t id); /* the reverse, or NULL */
MOE_API bool moe_tokenizer_is_special(const moe_tokenizer *tokenizer, int32_t id);
/* What a text begins with, -1: nothing known, and what ends one: *ids[0 .. count-1], of the tokenizer. */
MOE_API int32_t moe_tokenizer_bos(const moe_tokenizer *tokenizer);
MOE_API size_t moe_tokenizer_eos(const moe_tokenizer *tokenizer, const int32_t **ids);

/* Lists that grow. {0} is an empty one; what a call finds in one stays, new things follow it. An error leaves
 * the list as it was. The caller gives the memory back, which is that of malloc. */
typedef struct moe_token_list {
    int32_t *ids;
    size_t count, capacity;
} moe_token_list;
typedef struct moe_token_text {
    char *bytes; /* a NUL follows the last */
    size_t count, capacity;
} moe_token_text;
MOE_API void moe_token_list_free(moe_token_list *list);
MOE_API void moe_token_text_free(moe_token_text *text);

typedef enum moe_tokenizer_flag {
    MOE_TOKENIZER_TEMPLATE = 1,     /* encode: with what the file puts around a text, such as its begin */
    MOE_TOKENIZER_PLAIN = 2,        /* encode: special tokens written in the text are letters like others */
    MOE_TOKENIZER_SKIP_SPECIAL = 4, /* decode: without special tokens */
    MOE_TOKENIZER_BEGIN = 8 /* encode: with what the file puts before a text, not behind it, as some an end */
} moe_tokenizer_flag;

/* The tokens of text[0 .. bytes-1], UTF-8. What is no UTF-8 is read as U+FFFD, once for each sequence that
 * breaks off. flags: 0 or a sum. Time grows with bytes log bytes at most, memory is some 6 times the text and
 * the ids. */
MOE_API moe_status moe_tokenizer_encode(const moe_tokenizer *tokenizer, const char *text, size_t bytes,
                                        unsigned flags, moe_token_list *tokens, moe_error *error);
/* The text of ids, always UTF-8. An id that no token has stands for nothing. */
MOE_API moe_status moe_tokenizer_decode(const moe_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                        unsigned flags, moe_token_text *text, moe_error *error);

/* Decoding token by token. A token may be a part of a character: it is given out once it is whole. All that
 * was given out is what moe_tokenizer_decode gives of the same ids. One stream belongs to one thread at a
 * time. */
typedef struct moe_token_stream moe_token_stream;
MOE_API moe_status moe_token_stream_create(const moe_tokenizer *tokenizer, unsigned flags,
                                           moe_token_stream **stream, moe_error *error);
/* *text is the stream's own until its next call, *bytes may be 0. */
MOE_API moe_status moe_token_stream_put(moe_token_stream *stream, int32_t id, const char **text,
                                        size_t *bytes, moe_error *error);
/* What is left; then the stream begins anew. */
MOE_API moe_status moe_token_stream_end(moe_token_stream *stream, const char **text, size_t *bytes,
                                        moe_error *error);
MOE_API void moe_token_stream_destroy(moe_token_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
