/* tokens.h: the tokenizer of a run: read once, and kept in the run directory and beside every checkpoint, so
 * that both can be used where the first is not. Files: tokenizer.json, and what transformers keeps with it.
 * Source: docs/run-directory.md. */
#ifndef MOELM_TOKENS_H
#define MOELM_TOKENS_H

#include "format/sha256.h"

#include <moekit/tokenizer.h>

enum { MOELM_TOKENIZER_FILES = 5 };

typedef struct moelm_tokens {
    moe_tokenizer *tokenizer;       /* NULL: tokens are bytes */
    char *path;                     /* as it was named */
    char sha256[MOELM_SHA256_TEXT]; /* of tokenizer.json */
    struct {
        char *data; /* NULL: there is none */
        size_t bytes;
    } file[MOELM_TOKENIZER_FILES];
} moelm_tokens;

/* path: a tokenizer.json or a directory with one; key ("data.tokenizer") stands before messages. */
moe_status moelm_tokens_open(const char *path, const char *key, moelm_tokens *tokens, moe_error *error);
void moelm_tokens_close(moelm_tokens *tokens);
/* Whether `directory` has a tokenizer.json. */
bool moelm_tokens_there(const char *directory);
/* Writes the files into an existing directory; nothing where tokens are bytes. */
moe_status moelm_tokens_write(const moelm_tokens *tokens, const char *directory, moe_error *error);

#endif
