/* yaml.c: YAML read as events and flattened to dotted keys.
 * All pairs are collected and checked for duplicates before the first is handed out.
 * Source: YAML 1.1; libyaml 0.2. */
#define _GNU_SOURCE
#include "format/yaml.h"

#include "core/status.h"
#include "format/file.h"
#include "format/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* A key met in the file; value NULL: a mapping, whose entries are entries of their own. */
typedef struct entry {
    char *key, *value;
    int line, column;
} entry;

typedef struct yaml_reader {
    const char *name;
    const char *data;
    size_t bytes;
    moe_error *error;
    yaml_parser_t parser;
    char key[MOELM_YAML_MAX_KEY + 1]; /* path of the mapping being read */
    size_t key_length;
    entry *entries;
    size_t n_entries, n_allocated;
} yaml_reader;

static moe_status fail_at(const yaml_reader *reader, int line, int column, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static moe_status fail_at(const yaml_reader *reader, int line, int column, const char *format, ...) {
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return moei_error_set(reader->error, MOE_ERR_INPUT, "%s:%d:%d: %s", reader->name, line, column, text);
}

static int line_of(const yaml_event_t *event) {
    return (int)event->start_mark.line + 1;
}
static int column_of(const yaml_event_t *event) {
    return (int)event->start_mark.column + 1;
}

static moe_status no_memory(const yaml_reader *reader) {
    return moei_error_set(reader->error, MOE_ERR_MEMORY, "%s: out of memory", reader->name);
}

/* Whether line `line`, of which 0 is the first, is indented by a tab. */
static bool has_tab(const yaml_reader *reader, size_t line) {
    const char *at = reader->data, *end = at + reader->bytes;
    for (; line > 0 && at < end; ++at) line -= *at == '\n';
    while (at < end && *at == ' ') ++at;
    return at < end && *at == '\t';
}

/* A place given as a byte offset, for faults that libyaml finds before it counts lines. */
static moe_status fail_at_offset(const yaml_reader *reader, size_t offset, const char *what) {
    int line = 1, column = 1;
    for (size_t i = 0; i < offset && i < reader->bytes; i++) {
        column = reader->data[i] == '\n' ? 1 : column + 1;
        line += reader->data[i] == '\n';
    }
    return fail_at(reader, line, column, "%s", what);
}

static moe_status next_event(yaml_reader *reader, yaml_event_t *event) {
    if (yaml_parser_parse(&reader->parser, event)) return MOE_OK;
    const yaml_parser_t *parser = &reader->parser;
    if (parser->error == YAML_MEMORY_ERROR) return no_memory(reader);
    const char *problem = parser->problem ? parser->problem : "not YAML";
    if (parser->error == YAML_READER_ERROR) return fail_at_offset(reader, parser->problem_offset, problem);
    return fail_at(reader, (int)parser->problem_mark.line + 1, (int)parser->problem_mark.column + 1, "%s%s",
                   problem,
                   has_tab(reader, parser->problem_mark.line) ? ": a tab; YAML indents by spaces" : "");
}

/* 1. What every node must satisfy. */

static bool is_core_tag(const yaml_char_t *tag) {
    static const char *const core[] = {YAML_STR_TAG, YAML_INT_TAG, YAML_FLOAT_TAG, YAML_BOOL_TAG,
                                       YAML_NULL_TAG};
    for (size_t i = 0; i < sizeof core / sizeof *core; i++)
        if (strcmp((const char *)tag, core[i]) == 0) return true;
    return false;
}

static moe_status check_node(const yaml_reader *reader, const yaml_event_t *event) {
    const yaml_char_t *anchor = NULL, *tag = NULL;
    bool scalar = event->type == YAML_SCALAR_EVENT;
    if (event->type == YAML_ALIAS_EVENT) anchor = event->data.alias.anchor;
    if (event->type == YAML_MAPPING_START_EVENT) {
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
    }
    if (event->type == YAML_SEQUENCE_START_EVENT) {
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
    }
    if (scalar) {
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
    }
    if (anchor)
        return fail_at(reader, line_of(event), column_of(event),
                       "anchors and aliases (%s) are not accepted, write the value out",
                       (const char *)anchor);
    if (tag && !(scalar && is_core_tag(tag)))
        return fail_at(reader, line_of(event), column_of(event), "the tag %s is not accepted here",
                       (const char *)tag);
    if (scalar && memchr(event->data.scalar.value, '\0', event->data.scalar.length))
        return fail_at(reader, line_of(event), column_of(event), "a NUL byte is not accepted");
    return MOE_OK;
}

/* The text of a scalar; every spelling of null is "". */
static const char *scalar_text(const yaml_event_t *event) {
    static const char *const nulls[] = {"~", "null", "Null", "NULL"};
    const char *text = (const char *)event->data.scalar.value;
    if (event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE || event->data.scalar.tag) return text;
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        if (strcmp(text, nulls[i]) == 0) return "";
    return text;
}

/* 2. Keys. */

static const char *key_fault(const char *key) {
    size_t n_parts = 1, length = strlen(key);
    if (length > MOELM_YAML_MAX_KEY) return "is longer than 160 bytes";
    if (length == 0 || key[0] == '.' || key[length - 1] == '.' || strstr(key, ".."))
        return "has an empty part";
    for (size_t i = 0; i < length; i++) n_parts += key[i] == '.';
    return n_parts > MOELM_YAML_MAX_DEPTH ? "has more than 8 levels" : NULL;
}

/* Appends ".part" to the path of the reader. */
static moe_status push_key(yaml_reader *reader, const yaml_event_t *event) {
    const char *part = (const char *)event->data.scalar.value;
    size_t at = reader->key_length;
    int written = snprintf(reader->key + at, sizeof reader->key - at, "%s%s", at > 0 ? "." : "", part);
    const char *fault = NULL;
    if (written < 0 || (size_t)written >= sizeof reader->key - at)
        fault = "is longer than 160 bytes";
    else
        fault = *part ? key_fault(reader->key) : "has an empty part";
    if (fault) {
        reader->key[at] = '\0';
        return fail_at(reader, line_of(event), column_of(event), "the key \"%.40s\" %s", part, fault);
    }
    reader->key_length = at + (size_t)written;
    return MOE_OK;
}

static void pop_key(yaml_reader *reader, size_t length) {
    reader->key_length = length;
    reader->key[length] = '\0';
}

static moe_status add_entry(yaml_reader *reader, const char *value, int line, int column) {
    if (reader->n_entries == reader->n_allocated) {
        size_t n = reader->n_allocated > 0 ? 2 * reader->n_allocated : 64;
        entry *grown = realloc(reader->entries, n * sizeof *grown);
        if (!grown) return no_memory(reader);
        reader->entries = grown;
        reader->n_allocated = n;
    }
    entry added = {.key = strdup(reader->key), .line = line, .column = column};
    if (value) added.value = strdup(value);
    reader->entries[reader->n_entries++] = added;
    return added.key && (!value || added.value) ? MOE_OK : no_memory(reader);
}

/* 3. Nodes. read_* get the event that opened the node and read up to the one that closes it. */

static moe_status add_item(const yaml_reader *reader, const yaml_event_t *event, FILE *joined, bool first) {
    if (event->type != YAML_SCALAR_EVENT)
        return fail_at(reader, line_of(event), column_of(event), "a list may hold plain values only");
    const char *text = scalar_text(event);
    if (*text == '\0' || strchr(text, ','))
        return fail_at(reader, line_of(event), column_of(event),
                       "a value in a list must not be empty nor contain a comma");
    return fprintf(joined, "%s%s", first ? "" : ",", text) < 0 ? no_memory(reader) : MOE_OK;
}

static moe_status read_items(yaml_reader *reader, FILE *joined) {
    for (bool first = true;; first = false) {
        yaml_event_t event;
        MOEI_TRY(next_event(reader, &event));
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        moe_status status = end ? MOE_OK : check_node(reader, &event);
        if (!end && status == MOE_OK) status = add_item(reader, &event, joined, first);
        yaml_event_delete(&event);
        if (end || status != MOE_OK) return status;
    }
}

static moe_status read_list(yaml_reader *reader, const yaml_event_t *start) {
    char *text = NULL;
    size_t length = 0;
    FILE *joined = open_memstream(&text, &length);
    if (!joined) return no_memory(reader);
    moe_status status = read_items(reader, joined);
    if (fclose(joined) != 0 && status == MOE_OK) status = no_memory(reader);
    if (status == MOE_OK) status = add_entry(reader, text, line_of(start), column_of(start));
    free(text);
    return status;
}

static moe_status read_mapping(yaml_reader *reader);

static moe_status read_value(yaml_reader *reader) {
    yaml_event_t event;
    MOEI_TRY(next_event(reader, &event));
    moe_status status = check_node(reader, &event);
    int line = line_of(&event), column = column_of(&event);
    if (status == MOE_OK && event.type == YAML_SCALAR_EVENT)
        status = add_entry(reader, scalar_text(&event), line, column);
    else if (status == MOE_OK && event.type == YAML_SEQUENCE_START_EVENT)
        status = read_list(reader, &event);
    else if (status == MOE_OK) {
        status = add_entry(reader, NULL, line, column);
        if (status == MOE_OK) status = read_mapping(reader);
    }
    yaml_event_delete(&event);
    return status;
}

/* Recursion ends at MOELM_YAML_MAX_DEPTH, where push_key refuses. */
static moe_status read_mapping(yaml_reader *reader) {
    size_t length = reader->key_length;
    for (;;) {
        yaml_event_t event;
        MOEI_TRY(next_event(reader, &event));
        bool end = event.type == YAML_MAPPING_END_EVENT;
        moe_status status = end ? MOE_OK : check_node(reader, &event);
        if (!end && status == MOE_OK && event.type != YAML_SCALAR_EVENT)
            status = fail_at(reader, line_of(&event), column_of(&event), "a key must be a plain word");
        if (!end && status == MOE_OK) status = push_key(reader, &event);
        yaml_event_delete(&event);
        if (end || status != MOE_OK) return status;
        MOEI_TRY(read_value(reader));
        pop_key(reader, length);
    }
}

/* 4. The stream: at most one document, whose root is a mapping or nothing. */

static moe_status read_document(yaml_reader *reader) {
    yaml_event_t event;
    MOEI_TRY(next_event(reader, &event));
    moe_status status = check_node(reader, &event);
    bool nothing = event.type == YAML_SCALAR_EVENT && *scalar_text(&event) == '\0';
    if (status == MOE_OK && event.type == YAML_MAPPING_START_EVENT)
        status = read_mapping(reader);
    else if (status == MOE_OK && !nothing)
        status = fail_at(reader, line_of(&event), column_of(&event), "must be `key: value` lines");
    yaml_event_delete(&event);
    return status;
}

static moe_status read_stream(yaml_reader *reader) {
    for (int n_documents = 0;;) {
        yaml_event_t event;
        MOEI_TRY(next_event(reader, &event));
        yaml_event_type_t type = event.type;
        moe_status status = MOE_OK;
        if (type == YAML_DOCUMENT_START_EVENT && n_documents++ > 0)
            status = fail_at(reader, line_of(&event), column_of(&event), "only one document is accepted");
        yaml_event_delete(&event);
        if (type == YAML_STREAM_END_EVENT || status != MOE_OK) return status;
        if (type == YAML_DOCUMENT_START_EVENT) MOEI_TRY(read_document(reader));
    }
}

/* 5. Order. A dot sorts before everything, so a key stands right before the keys below it. */

static int compare_keys(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    if (*a == *b) return 0;
    int left = *a == '.' ? 1 : *a == '\0' ? 0 : 1 + (unsigned char)*a;
    int right = *b == '.' ? 1 : *b == '\0' ? 0 : 1 + (unsigned char)*b;
    return left < right ? -1 : 1;
}

static bool is_below(const char *key, const char *parent) {
    size_t length = strlen(parent);
    return strncmp(key, parent, length) == 0 && key[length] == '.';
}

static int compare_entries(const void *a, const void *b) {
    const entry *left = *(entry *const *)a, *right = *(entry *const *)b;
    int order = compare_keys(left->key, right->key);
    if (order != 0) return order;
    return left < right ? -1 : left > right; /* the later in the file is the duplicate */
}

static moe_status check_keys(const yaml_reader *reader) {
    if (reader->n_entries == 0) return MOE_OK;
    const entry **sorted = malloc(reader->n_entries * sizeof *sorted);
    if (!sorted) return no_memory(reader);
    for (size_t i = 0; i < reader->n_entries; i++) sorted[i] = &reader->entries[i];
    qsort(sorted, reader->n_entries, sizeof *sorted, compare_entries);
    moe_status status = MOE_OK;
    for (size_t i = 1; i < reader->n_entries && status == MOE_OK; i++) {
        const entry *before = sorted[i - 1], *here = sorted[i];
        if (strcmp(before->key, here->key) == 0)
            status = fail_at(reader, here->line, here->column, "the key %s was given before, in line %d",
                             here->key, before->line);
        else if (before->value && is_below(here->key, before->key))
            status =
                fail_at(reader, here->line, here->column, "%s stands below %s, which has a value in line %d",
                        here->key, before->key, before->line);
    }
    free(sorted);
    return status;
}

/* 6. Reading. */

static moe_status collect(yaml_reader *reader) {
    const char *nul = memchr(reader->data, '\0', reader->bytes);
    if (nul) return fail_at_offset(reader, (size_t)(nul - reader->data), "a NUL byte is not accepted");
    if (!yaml_parser_initialize(&reader->parser)) return no_memory(reader);
    yaml_parser_set_encoding(&reader->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader->parser, (const unsigned char *)reader->data, reader->bytes);
    moe_status status = read_stream(reader);
    yaml_parser_delete(&reader->parser);
    return status == MOE_OK ? check_keys(reader) : status;
}

moe_status moelm_yaml_parse(const char *name, const void *data, size_t bytes, moelm_yaml_pair_fn on_pair,
                            void *user, moe_error *error) {
    if (bytes > MOELM_YAML_MAX_BYTES)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %zu bytes, at most %d are accepted", name, bytes,
                              (int)MOELM_YAML_MAX_BYTES);
    if (bytes == 0) return MOE_OK;
    yaml_reader reader = {.name = name, .data = data, .bytes = bytes, .error = error};
    moe_status status = collect(&reader);
    for (size_t i = 0; i < reader.n_entries && status == MOE_OK; i++) {
        const entry *pair = &reader.entries[i];
        if (pair->value) status = on_pair(user, pair->key, pair->value, pair->line, pair->column);
    }
    for (size_t i = 0; i < reader.n_entries; i++) {
        free(reader.entries[i].key);
        free(reader.entries[i].value);
    }
    free(reader.entries);
    return status;
}

moe_status moelm_yaml_load(const char *path, moelm_yaml_pair_fn on_pair, void *user, moe_error *error) {
    char *text;
    size_t bytes;
    MOEI_TRY(moelm_file_read(path, 0, MOELM_YAML_MAX_BYTES, &text, &bytes, error));
    moe_status status = moelm_yaml_parse(path, text, bytes, on_pair, user, error);
    free(text);
    return status;
}

/* 7. Writing. */

static bool is_utf8(const char *text) {
    uint32_t code;
    size_t left = strlen(text);
    for (size_t n; left > 0; text += n, left -= n)
        if ((n = moelm_utf8_decode(text, left, &code)) == 0) return false;
    return true;
}

/* Plain where no YAML reader could see anything but text, a number or a truth value in it. */
static bool is_plain(const char *text) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-, ";
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./";
    size_t length = strlen(text);
    if (length == 0 || text[strspn(text, safe)] != '\0' || text[length - 1] == ' ') return false;
    bool is_signed = (text[0] == '-' || text[0] == '+') && text[1] >= '0' && text[1] <= '9';
    if (!is_signed && !strchr(first, text[0])) return false;
    return strcmp(text, "null") != 0 && strcmp(text, "Null") != 0 && strcmp(text, "NULL") != 0;
}

static void put_scalar(FILE *out, const char *text, size_t length) {
    char *part = strndup(text, length);
    bool plain = part && is_plain(part);
    if (plain) fputs(part, out);
    free(part);
    if (plain) return;
    fputc('"', out);
    uint32_t code = 0;
    for (size_t i = 0, n; i < length; i += n) {
        n = moelm_utf8_decode(text + i, length - i, &code);
        bool special = code < 0x20 || code == 0x7F || (code >= 0x80 && code < 0xA0) || code == 0x2028 ||
                       code == 0x2029 || code == 0xFEFF || code == 0xFFFE || code == 0xFFFF;
        if (special)
            fprintf(out, "\\u%04X", (unsigned)code);
        else
            fprintf(out, "%s%.*s", code == '"' || code == '\\' ? "\\" : "", (int)n, text + i);
    }
    fputc('"', out);
}

/* The groups of key that the pair before it did not open, then the value. */
static void put_pair(FILE *out, const char *before, const moelm_yaml_pair *pair) {
    const char *part = pair->key;
    int indent = 0;
    for (const char *dot; (dot = strchr(part, '.')); part = dot + 1, indent += 2) {
        size_t prefix = (size_t)(dot - pair->key);
        if (strncmp(before, pair->key, prefix) == 0 && before[prefix] == '.') continue;
        fprintf(out, "%*s", indent, "");
        put_scalar(out, part, (size_t)(dot - part));
        fputs(":\n", out);
    }
    fprintf(out, "%*s", indent, "");
    put_scalar(out, part, strlen(part));
    fputs(": ", out);
    put_scalar(out, pair->value, strlen(pair->value));
    fputc('\n', out);
}

static int compare_pairs(const void *a, const void *b) {
    return compare_keys(((const moelm_yaml_pair *)a)->key, ((const moelm_yaml_pair *)b)->key);
}

static moe_status check_pairs(const moelm_yaml_pair *sorted, size_t count, moe_error *error) {
    for (size_t i = 0; i < count; i++) {
        const char *key = sorted[i].key, *fault = key_fault(key);
        if (fault) return moei_error_set(error, MOE_ERR_ARGUMENT, "the key \"%.300s\" %s", key, fault);
        if (!is_utf8(key) || !is_utf8(sorted[i].value))
            return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: key or value is not UTF-8", key);
        const char *before = i > 0 ? sorted[i - 1].key : "";
        if (strcmp(before, key) == 0)
            return moei_error_set(error, MOE_ERR_ARGUMENT, "the key %s was given twice", key);
        if (i > 0 && is_below(key, before))
            return moei_error_set(error, MOE_ERR_ARGUMENT, "%s stands below %s, which has a value", key,
                                  before);
    }
    return MOE_OK;
}

static moe_status write_pairs(const moelm_yaml_pair *sorted, size_t count, char **text, moe_error *error) {
    size_t length = 0;
    FILE *out = open_memstream(text, &length);
    if (!out) return moei_error_set(error, MOE_ERR_MEMORY, "out of memory");
    for (size_t i = 0; i < count; i++) put_pair(out, i > 0 ? sorted[i - 1].key : "", &sorted[i]);
    bool whole = !ferror(out);
    if (fclose(out) != 0 || !whole) return moei_error_set(error, MOE_ERR_MEMORY, "out of memory");
    if (length <= MOELM_YAML_MAX_BYTES) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%zu bytes of YAML, at most %d can be read back", length,
                          (int)MOELM_YAML_MAX_BYTES);
}

moe_status moelm_yaml_format(const moelm_yaml_pair *pairs, size_t count, char **text, moe_error *error) {
    moelm_yaml_pair *sorted = malloc((count + 1) * sizeof *sorted);
    if (!sorted) return moei_error_set(error, MOE_ERR_MEMORY, "out of memory");
    if (count > 0) memcpy(sorted, pairs, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare_pairs);
    char *written = NULL;
    moe_status status = check_pairs(sorted, count, error);
    if (status == MOE_OK) status = write_pairs(sorted, count, &written, error);
    free(sorted);
    if (status == MOE_OK)
        *text = written;
    else
        free(written);
    return status;
}
