/* fuzz_yaml.c: any bytes are refused or read as pairs, and those pairs, written, are read again the same.
 * Input: the text of a configuration. Run by scripts/fuzz.sh.
 * Source: format/yaml.h.
 */
#define _GNU_SOURCE
#include "format/yaml.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct pairs {
    moelm_yaml_pair *pairs;
    size_t count;
} pairs;

static moe_status collect(void *user, const char *key, const char *value, int line, int column) {
    pairs *into = user;
    if (line < 1 || column < 1) abort();
    moelm_yaml_pair *grown = realloc(into->pairs, (into->count + 1) * sizeof *grown);
    if (!grown) return MOE_ERR_MEMORY;
    grown[into->count++] = (moelm_yaml_pair){.key = strdup(key), .value = strdup(value)};
    into->pairs = grown;
    return MOE_OK;
}

static int compare(const void *a, const void *b) {
    return strcmp(((const moelm_yaml_pair *)a)->key, ((const moelm_yaml_pair *)b)->key);
}

static void release(pairs *read) {
    for (size_t i = 0; i < read->count; i++) {
        free((void *)(uintptr_t)read->pairs[i].key);
        free((void *)(uintptr_t)read->pairs[i].value);
    }
    free(read->pairs);
}

static void check_round_trip(pairs *first) {
    pairs second = {0};
    char *text = NULL;
    if (moelm_yaml_format(first->pairs, first->count, &text, NULL) != MOE_OK) abort();
    if (moelm_yaml_parse("again", text, strlen(text), collect, &second, NULL) != MOE_OK) abort();
    if (first->count != second.count) abort();
    if (first->count > 0) qsort(first->pairs, first->count, sizeof *first->pairs, compare);
    if (second.count > 0) qsort(second.pairs, second.count, sizeof *second.pairs, compare);
    for (size_t i = 0; i < first->count; i++) {
        if (strcmp(first->pairs[i].key, second.pairs[i].key) != 0) abort();
        if (strcmp(first->pairs[i].value, second.pairs[i].value) != 0) abort();
    }
    free(text);
    release(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pairs read = {0};
    moe_error error = {.text = ""};
    moe_status status = moelm_yaml_parse("fuzz", data, size, collect, &read, &error);
    if (status == MOE_OK)
        check_round_trip(&read);
    else if (read.count > 0 || error.text[0] == '\0')
        abort();
    release(&read);
    return 0;
}
