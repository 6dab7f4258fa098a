/* tokenizer_regex.c: Oniguruma behind three calls, and what kind a character is of.
 * A pattern and a match are limited in what they may cost, as both come from a file.
 * Source: Oniguruma 6.9 in its own syntax and utf8proc 2.8, which Hugging Face's tokenizers uses alike. */
#include "format/tokenizer_regex.h"

#include "core/status.h"

#include <oniguruma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>
#include <utf8proc.h>

#define MAX_PATTERN 65536
#define MAX_STACK   (1U << 24) /* entries */

struct moelm_regex {
    regex_t *onig;
    char where[120];
};

static once_flag started = ONCE_FLAG_INIT;
static void start(void) {
    onig_initialize(&(OnigEncoding){ONIG_ENCODING_UTF8}, 1);
}

static moe_status refuse(moe_error *error, const char *where, int code, OnigErrorInfo *info) {
    OnigUChar words[ONIG_MAX_ERROR_MESSAGE_LEN];
    onig_error_code_to_str(words, code, info);
    moe_status status = code == ONIGERR_MEMORY ? MOE_ERR_MEMORY : MOE_ERR_INPUT;
    return moei_error_set(error, status, "%s: %s", where, (const char *)words);
}

/* What a match may cost depends on the text: it is the text that is too much for the pattern. */
static moe_status too_much(moe_error *error, const char *where, int code, size_t bytes, size_t from) {
    char pattern[256];
    snprintf(pattern, sizeof pattern, "%s: the match from byte %zu of a piece of text of %zu bytes", where,
             from, bytes);
    return refuse(error, pattern, code, NULL);
}

moe_status moelm_regex_create(const char *where, const char *pattern, moelm_regex **regex, moe_error *error) {
    call_once(&started, start);
    size_t bytes = strlen(pattern);
    if (bytes > MAX_PATTERN)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: a regex of %zu bytes, at most %d are accepted",
                              where, bytes, MAX_PATTERN);
    moelm_regex *made = calloc(1, sizeof *made);
    if (!made) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", where);
    strncpy(made->where, where, sizeof made->where - 1);
    OnigErrorInfo info = {0};
    const OnigUChar *text = (const OnigUChar *)pattern;
    int code = onig_new(&made->onig, text, text + bytes, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                        ONIG_SYNTAX_DEFAULT, &info);
    if (code != ONIG_NORMAL) {
        free(made);
        return refuse(error, where, code, &info);
    }
    *regex = made;
    return MOE_OK;
}

void moelm_regex_free(moelm_regex *regex) {
    if (!regex) return;
    onig_free(regex->onig);
    free(regex);
}

static moe_status prepare(moelm_regex_run *run, moe_error *error) {
    if (!run->region) run->region = onig_region_new();
    if (!run->limits) {
        run->limits = onig_new_match_param();
        if (run->limits) {
            onig_initialize_match_param(run->limits);
            onig_set_match_stack_limit_size_of_match_param(run->limits, MAX_STACK);
        }
    }
    if (!run->region || !run->limits) return moei_error_set(error, MOE_ERR_MEMORY, "out of memory");
    return MOE_OK;
}

void moelm_regex_run_free(moelm_regex_run *run) {
    if (run->region) onig_region_free(run->region, 1);
    if (run->limits) onig_free_match_param(run->limits);
}

/* Most patterns of tokenizers match right where the last match ended, so that is tried first: a match there
 * needs no search, and its length says all. */
moe_status moelm_regex_search(const moelm_regex *regex, moelm_regex_run *run, const char *text, size_t bytes,
                              size_t from, bool *found, size_t *begin, size_t *end, moe_error *error) {
    if (!run->limits) MOEI_TRY(prepare(run, error));
    unsigned long retries = 65536 + 64 * (unsigned long)bytes;
    onig_set_retry_limit_in_match_of_match_param(run->limits, retries);
    onig_set_retry_limit_in_search_of_match_param(run->limits, retries);
    const OnigUChar *first = (const OnigUChar *)text, *last = first + bytes, *at = first + from;
    OnigRegion *region = run->region;
    int place = onig_match_with_param(regex->onig, first, last, at, NULL, ONIG_OPTION_NONE, run->limits);
    if (place >= 0) {
        *found = true;
        *begin = from;
        *end = from + (size_t)place;
        return MOE_OK;
    }
    if (place == ONIG_MISMATCH)
        place =
            onig_search_with_param(regex->onig, first, last, at, last, region, ONIG_OPTION_NONE, run->limits);
    *found = place >= 0;
    if (place == ONIG_MISMATCH) return MOE_OK;
    if (place < 0) return too_much(error, regex->where, place, bytes, from);
    *begin = (size_t)region->beg[0];
    *end = (size_t)region->end[0];
    return MOE_OK;
}

bool moelm_is_space(uint32_t code) {
    if (code < 0x80) return code == ' ' || (code >= 9 && code <= 13);
    return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
           code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool moelm_is_number(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool moelm_is_punctuation(uint32_t code) {
    if (code < 0x80)
        return code > ' ' && code < 0x7F && !((code | 32) >= 'a' && (code | 32) <= 'z') &&
               !(code >= '0' && code <= '9');
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool moelm_is_word(uint32_t code) {
    if (code == 0x200C || code == 0x200D) return true; /* joiners */
    return ONIGENC_IS_CODE_WORD(ONIG_ENCODING_UTF8, code);
}
