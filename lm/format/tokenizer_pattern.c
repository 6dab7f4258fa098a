/* tokenizer_pattern.c: a pattern of the file, a literal text or a regex, and its matches one after the other.
 * Matches are those of Oniguruma's Rust binding, which decides about empty ones.
 * Source: tokenizer.json's "pattern". */
#define _GNU_SOURCE
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_LITERAL 65536

moe_status moelm_pattern_read(const json_t *part, const char *where, moelm_pattern *pattern,
                              moe_error *error) {
    json_t *object;
    MOEI_TRY(moelm_json_get_object(part, where, "pattern", &object, error));
    const char *literal = json_string_value(json_object_get(object, "String"));
    const char *regex = json_string_value(json_object_get(object, "Regex"));
    if (json_object_size(object) != 1 || (!literal && !regex))
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: pattern must be {\"String\": text} or {\"Regex\": text}", where);
    if (regex) return moelm_regex_create(where, regex, &pattern->regex, error);
    pattern->literal_bytes = strlen(literal);
    if (pattern->literal_bytes == 0 || pattern->literal_bytes > MAX_LITERAL)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: a pattern of %zu bytes; 1 to %d are accepted",
                              where, pattern->literal_bytes, MAX_LITERAL);
    pattern->literal = strdup(literal);
    return pattern->literal ? MOE_OK : moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", where);
}

void moelm_pattern_free(moelm_pattern *pattern) {
    moelm_regex_free(pattern->regex);
    free(pattern->literal);
}

static void next_literal(const moelm_pattern *pattern, moelm_scan *scan) {
    const char *at =
        memmem(scan->text + scan->at, scan->bytes - scan->at, pattern->literal, pattern->literal_bytes);
    scan->found = at != NULL;
    if (!at) return;
    scan->start = (size_t)(at - scan->text);
    scan->end = scan->at = scan->start + pattern->literal_bytes;
}

static void next_of_class(const moelm_pattern *pattern, moelm_scan *scan) {
    scan->found = false;
    while (scan->at < scan->bytes && !scan->found) {
        uint32_t code = 0;
        size_t length = moelm_utf8_decode(scan->text + scan->at, scan->bytes - scan->at, &code);
        if (length == 0) length = 1; /* never in what encode has looked over */
        scan->found = pattern->is(code);
        scan->start = scan->at;
        scan->end = scan->at += length;
    }
}

/* An empty match right behind the match before is passed over, one character on. */
static moe_status next_regex(const moelm_pattern *pattern, moelm_regex_run *run, moelm_scan *scan,
                             moe_error *error) {
    do {
        scan->found = false;
        if (scan->at > scan->bytes) return MOE_OK;
        MOEI_TRY(moelm_regex_search(pattern->regex, run, scan->text, scan->bytes, scan->at, &scan->found,
                                    &scan->start, &scan->end, error));
        if (!scan->found) return MOE_OK;
        if (scan->end > scan->start || scan->last_end != scan->end) break;
        uint32_t code;
        size_t length = moelm_utf8_decode(scan->text + scan->at, scan->bytes - scan->at, &code);
        scan->at += length > 0 ? length : 1;
    } while (true);
    scan->at = scan->last_end = scan->end;
    return MOE_OK;
}

moe_status moelm_pattern_next(const moelm_pattern *pattern, moelm_regex_run *run, moelm_scan *scan,
                              moe_error *error) {
    if (pattern->regex) return next_regex(pattern, run, scan, error);
    if (pattern->literal)
        next_literal(pattern, scan);
    else if (pattern->is)
        next_of_class(pattern, scan);
    else
        scan->found = false;
    return MOE_OK;
}
