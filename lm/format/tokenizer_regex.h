/* tokenizer_regex.h: regular expressions over UTF-8, by Oniguruma, and classes of characters.
 * A regex may be used by any number of threads; a run belongs to one. */
#ifndef MOELM_TOKENIZER_REGEX_H
#define MOELM_TOKENIZER_REGEX_H

#include <moekit/moe.h>

typedef struct moelm_regex moelm_regex;
/* where: the name of the place in the file, for messages. */
moe_status moelm_regex_create(const char *where, const char *pattern, moelm_regex **regex, moe_error *error);
void moelm_regex_free(moelm_regex *regex);

typedef struct moelm_regex_run {
    void *region, *limits; /* made by the first search; {0} before */
} moelm_regex_run;
void moelm_regex_run_free(moelm_regex_run *run);

/* The leftmost match in text[from .. bytes-1], which is UTF-8. One that goes back more than 65536 + 64 bytes
 * times, or takes more than 2^24 entries of the matcher's stack, is given up: MOE_ERR_INPUT. */
moe_status moelm_regex_search(const moelm_regex *regex, moelm_regex_run *run, const char *text, size_t bytes,
                              size_t from, bool *found, size_t *start, size_t *end, moe_error *error);

/* By the Unicode of these libraries; other versions of Unicode, such as that of tokenizers' Punctuation (8),
 * say otherwise of some 140 rare characters. Unicode's White_Space, its numbers (Nd, Nl, No), punctuation as
 * ASCII and Unicode have it, and what stands in words (UTS 18, \w). */
bool moelm_is_space(uint32_t code);
bool moelm_is_number(uint32_t code);
bool moelm_is_punctuation(uint32_t code);
bool moelm_is_word(uint32_t code);

#endif
