/* tokenizer.h: text to the tokens of a checkpoint and back, as its tokenizer.json says: BPE as in Mixtral,
 * OLMoE, Qwen3-MoE, DeepSeek and others. Link with libmoekit-lm. The conventions are those of moe.h.
 *
 * Ids and text equal those of Hugging Face's tokenizers, whose file format this is. If a file asks for
 * something that is not built, that is MOE_ERR_UNSUPPORTED and named. Truncation and padding, which a file
 * may ask for too, are left to the caller.
 */
#ifndef MOEKIT_TOKENIZER_H
#define MOEKIT_TOKENIZER_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Any number of threads may use a tokenizer at the same time. */
typedef struct moe_tokenizer moe_tokenizer;
/* path: a tokenizer.json, or the directory of a checkpoint that has one. From a directory, the begin and end
 * of text are read too, as far as generation_config.json, config.json and tokenizer_config.json name them. */
MOE_API moe_status moe_tokenizer_load(const char *path, moe_tokenizer **tokenizer, moe_error *error);
MOE_API void moe_tokenizer_destroy(moe_tokenizer *tokenizer);

/* One more than the largest id. A model's vocabulary may be larger, often rounded up. */
MOE_API int32_t moe_tokenizer_vocab_size(const moe_tokenizer *tokenizer);
/* The id of a token, given its text as in the file, where " the" may be "\u0120the" or "\u2581the"; -1:
 * none. */
MOE_API int32_t moe_tokenizer_id(const moe_tokenizer *tokenizer, const char *token);
MOE_API const char *moe_tokenizer_token(const moe_tokenizer *tokenizer,
                                        int32_t id); /* the reverse, or NULL */
MOE_API bool moe_tokenizer_is_special(const moe_tokenizer *tokenizer, int32_t id);
/* The token that a text begins with (-1: not known), and those that end one: *ids[0 .. count-1], which belong
 * to the tokenizer. */
MOE_API int32_t moe_tokenizer_bos(const moe_tokenizer *tokenizer);
MOE_API size_t moe_tokenizer_eos(const moe_tokenizer *tokenizer, const int32_t **ids);

/* Growing lists. {0} is an empty one. Calls append to what is there; on an error the list is as it was. Free
 * them with the calls below (the memory is malloc's). */
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
    MOE_TOKENIZER_TEMPLATE = 1,     /* encode: add what the file puts around a text, such as its begin */
    MOE_TOKENIZER_PLAIN = 2,        /* encode: treat special tokens written in the text as ordinary letters */
    MOE_TOKENIZER_SKIP_SPECIAL = 4, /* decode: leave out special tokens */
    MOE_TOKENIZER_BEGIN = 8 /* encode: add what the file puts before a text, but not what it puts after, such
                               as an end */
} moe_tokenizer_flag;

/* The tokens of text[0 .. bytes-1], UTF-8. Each broken-off sequence that is not UTF-8 is read as one U+FFFD.
 * flags: 0 or a sum of those of encode (else MOE_ERR_ARGUMENT). Time grows with bytes log bytes at most.
 * Memory with the ids: for prose some 2 to 4 bytes a byte of text, for one word without a break some 34.
 * A match of the file's regex is given up, and the text refused with MOE_ERR_INPUT, if it takes more than
 * 2^24 entries of the matcher's stack (a word of some 16 Mi letters does, by the patterns of Qwen and
 * DeepSeek), or goes back more than 65536 + 64 times the bytes. */
MOE_API moe_status moe_tokenizer_encode(const moe_tokenizer *tokenizer, const char *text, size_t bytes,
                                        unsigned flags, moe_token_list *tokens, moe_error *error);
/* The text of ids, always UTF-8. An id that no token has gives nothing. flags: 0 or
 * MOE_TOKENIZER_SKIP_SPECIAL (else MOE_ERR_ARGUMENT), here and for a stream. */
MOE_API moe_status moe_tokenizer_decode(const moe_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                        unsigned flags, moe_token_text *text, moe_error *error);

/* Decoding token by token. A token may be part of a character, which is given out once it is whole. Together,
 * the outputs are what moe_tokenizer_decode gives for the same ids. A stream belongs to one thread at a
 * time. */
typedef struct moe_token_stream moe_token_stream;
MOE_API moe_status moe_token_stream_create(const moe_tokenizer *tokenizer, unsigned flags,
                                           moe_token_stream **stream, moe_error *error);
/* *text belongs to the stream and is valid until its next call; *bytes may be 0. After an error part of the
 * token may be inside: the stream is then good for moe_token_stream_destroy only. */
MOE_API moe_status moe_token_stream_put(moe_token_stream *stream, int32_t id, const char **text,
                                        size_t *bytes, moe_error *error);
/* Gives what is left; then the stream starts anew. */
MOE_API moe_status moe_token_stream_end(moe_token_stream *stream, const char **text, size_t *bytes,
                                        moe_error *error);
MOE_API void moe_token_stream_destroy(moe_token_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
