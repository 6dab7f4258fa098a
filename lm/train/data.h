/* data.h: text files as tokens. A token is a byte, or one of a tokenizer's; a window is `length` tokens and,
 * as targets, the tokens that follow each of them.
 */
#ifndef MOELM_DATA_H
#define MOELM_DATA_H

#include <moekit/moe.h>

#include "format/file.h"
#include "format/sha256.h"

#include <moekit/tokenizer.h>

/* A text as a model reads it: tokens, or where there are none its bytes. */
typedef struct moelm_reading {
    const unsigned char *bytes;
    const int32_t *ids; /* NULL: bytes */
    int64_t n;          /* of ids, or of bytes; 2 or more */
    int64_t begun;      /* so many first ones are no part of the text, but what texts begin with: they cost
                           nothing */
} moelm_reading;
static inline int32_t moelm_reading_at(const moelm_reading *reading, int64_t i) {
    return reading->ids ? reading->ids[i] : reading->bytes[i];
}

typedef struct moelm_text {
    moelm_file_map map;
    char sha256[MOELM_SHA256_TEXT]; /* of the file */
    moe_token_list tokens;          /* ids NULL: tokens are the bytes */
    int64_t n_tokens, n_bytes;      /* n_bytes are what the tokens stand for */
    int64_t begun;                  /* as in moelm_reading */
} moelm_text;

/* key ("data.train") stands before messages. Files with fewer than `least` bytes are refused. */
moe_status moelm_text_open(const char *path, const char *key, int64_t least, moelm_text *text,
                           moe_error *error);
/* How a text becomes tokens of a tokenizer. */
typedef struct moelm_reader {
    const moe_tokenizer *tokenizer;
    int64_t most_bytes;   /* of the text, up to a whole character; 0: all */
    int64_t least_tokens; /* fewer are refused */
    bool begins;          /* behind what texts begin with, if the template has such tokens */
} moelm_reader;
/* Once for a text. Special tokens that are written in it are such tokens. */
moe_status moelm_text_tokenize(moelm_text *text, const moelm_reader *reader, const char *key,
                               moe_error *error);
/* Of a text of bytes the first `most` (0: all); of one of tokens what was made of it. */
moelm_reading moelm_text_reading(const moelm_text *text, int64_t most);
void moelm_text_close(moelm_text *text);

/* Window `index` of training step `step`: where it starts is drawn from (seed, step, index) alone, so a
 * resumed run needs to know nothing else. tokens, targets: [length]. */
void moelm_text_window(const moelm_text *text, uint64_t seed, uint64_t step, uint64_t index, int64_t length,
                       int32_t *tokens, int32_t *targets);

#endif
