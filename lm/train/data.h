/* data.h: text files as tokens. A token is a byte; a window is `length` tokens and, as targets, the
 * bytes that follow each of them.
 */
#ifndef MOELM_DATA_H
#define MOELM_DATA_H

#include <moekit/moe.h>

#include "format/file.h"
#include "format/sha256.h"

typedef struct moelm_text {
    moelm_file_map map;
    char sha256[MOELM_SHA256_TEXT];
} moelm_text;

/* key ("data.train") stands before messages. Files with fewer than `least` bytes are refused. */
moe_status moelm_text_open(const char *path, const char *key, int64_t least, moelm_text *text,
                           moe_error *error);
void moelm_text_close(moelm_text *text);

/* Window `index` of training step `step`: where it starts is drawn from (seed, step, index) alone, so a
 * resumed run needs to know nothing else. tokens, targets: [length]. */
void moelm_text_window(const moelm_text *text, uint64_t seed, uint64_t step, uint64_t index, int64_t length,
                       int32_t *tokens, int32_t *targets);

#endif
