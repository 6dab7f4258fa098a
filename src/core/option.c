/* option.c: find, parse, print and default the rows of an option table.
 * A row names a field by offset and type, so a new setting is one line.
 * Source: UCX's config tables and Redis's config.c for the idea of one declaration.
 */
#include "core/option.h"

#include "core/locale.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *last_part(const char *key) {
    const char *dot = strrchr(key, '.');
    return dot ? dot + 1 : key;
}

/* Calls with each word of a space-separated list; returns the length of the word, 0 at the end. */
static size_t next_word(const char **list) {
    while (**list == ' ') ++*list;
    return strcspn(*list, " ");
}

static bool has_alias(const moe_option *row, const char *key) {
    const char *word = row->aliases;
    size_t key_length = strlen(key);
    for (size_t length; (length = next_word(&word)) > 0; word += length)
        if (length == key_length && memcmp(word, key, length) == 0) return true;
    return false;
}

const moe_option *moei_option_find(moei_option_table table, const char *key) {
    for (size_t i = 0; i < table.count; ++i)
        if (strcmp(table.row[i].key, key) == 0) return &table.row[i];
    for (size_t i = 0; i < table.count; ++i)
        if (strcmp(last_part(table.row[i].key), key) == 0) return &table.row[i];
    for (size_t i = 0; i < table.count; ++i)
        if (has_alias(&table.row[i], key)) return &table.row[i];
    return NULL;
}

enum { LONGEST_KEY = 96 };

/* Levenshtein 1966, case aside. */
static size_t edit_distance(const char *a, const char *b) {
    size_t row[LONGEST_KEY + 1];
    size_t length_a = strlen(a), length_b = strlen(b);
    if (length_a > LONGEST_KEY || length_b > LONGEST_KEY) return LONGEST_KEY;
    for (size_t j = 0; j <= length_b; ++j) row[j] = j;
    for (size_t i = 1; i <= length_a; ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= length_b; ++j) {
            size_t replace =
                diagonal + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
            size_t insert = row[j - 1] + 1, delete = row[j] + 1;
            diagonal = row[j];
            row[j] = replace < insert ? replace : insert;
            if (delete < row[j]) row[j] = delete;
        }
    }
    return row[length_b];
}

size_t moe_option_distance(const moe_option *row, const char *key) {
    if (!row || !key) return SIZE_MAX;
    const char *word = row->aliases;
    size_t nearest = edit_distance(strchr(key, '.') ? row->key : last_part(row->key), key);
    for (size_t length; (length = next_word(&word)) > 0; word += length) {
        char alias[LONGEST_KEY + 1];
        if (length > LONGEST_KEY) continue;
        memcpy(alias, word, length);
        alias[length] = '\0';
        const size_t distance = edit_distance(alias, key);
        if (distance < nearest) nearest = distance;
    }
    return nearest;
}

bool moe_option_is_near(const char *key, size_t distance) {
    return key && distance <= (strlen(key) + 2) / 3;
}

const moe_option *moei_option_nearest(moei_option_table table, const char *key, size_t *distance) {
    const moe_option *best = NULL;
    *distance = SIZE_MAX;
    for (size_t i = 0; i < table.count; ++i) {
        const size_t nearest = moe_option_distance(&table.row[i], key);
        if (nearest >= *distance) continue;
        *distance = nearest;
        best = &table.row[i];
    }
    return best;
}

/* The first row that has `value` among its choices; NULL: none. */
static const moe_option *row_of_choice(moei_option_table table, const char *value) {
    for (size_t i = 0; i < table.count; ++i)
        if (table.row[i].choices && moei_option_place(value, table.row[i].choices) >= 0) return &table.row[i];
    return NULL;
}

moe_status moei_option_unknown(moei_option_table table, const char *noun, const char *key, const char *list,
                               moe_error *error) {
    size_t distance;
    const moe_option *nearest = moei_option_nearest(table, key, &distance);
    const moe_option *chooses = row_of_choice(table, last_part(key));
    if (chooses)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "unknown %s '%s'; it is a value of '%s'", noun, key,
                              chooses->key);
    if (!nearest || !moe_option_is_near(key, distance))
        return moei_error_set(error, MOE_ERR_ARGUMENT, "unknown %s '%s'; %s lists all", noun, key, list);
    return moei_error_set(error, MOE_ERR_ARGUMENT, "unknown %s '%s'; the nearest is '%s'", noun, key,
                          nearest->key);
}

static moe_status set_bool(const moe_option *row, bool *field, const char *value, moe_error *error) {
    static const struct {
        const char *text;
        bool value;
    } words[] = {
        {"true",  true },
        {"false", false},
        {"yes",   true },
        {"no",    false},
        {"on",    true },
        {"off",   false},
        {"1",     true },
        {"0",     false}
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
        if (strcasecmp(value, words[i].text) == 0) {
            *field = words[i].value;
            return MOE_OK;
        }
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not true or false", row->key, value);
}

/* Whole numbers in full, as they can be written. */
static moe_status out_of_range(const moe_option *row, const char *value, moe_error *error) {
    if (row->type == MOE_OPT_INT || row->type == MOE_OPT_INT64)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: %s is outside %.0f .. %.0f", row->key, value,
                              row->min, row->max);
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: %s is outside %.10g .. %.10g", row->key, value,
                          row->min, row->max);
}

static moe_status set_integer(const moe_option *row, void *base, const char *value, moe_error *error) {
    char *end;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    if (end == value || *end || errno)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not a whole number", row->key, value);
    if ((double)number < row->min || (double)number > row->max) return out_of_range(row, value, error);
    if (row->type == MOE_OPT_INT)
        *(int32_t *)base = (int32_t)number;
    else
        *(int64_t *)base = number;
    return MOE_OK;
}

static moe_status set_real(const moe_option *row, void *base, const char *value, moe_error *error) {
    char *end;
    double number = moei_real_parse(value, &end);
    const bool hexadecimal = strpbrk(value, "xX") != NULL; /* as of whole numbers, decimal only */
    if (end == value || *end || !isfinite(number) || hexadecimal)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not a finite number", row->key, value);
    if (number < row->min || number > row->max) return out_of_range(row, value, error);
    if (row->type == MOE_OPT_FLOAT && number != 0 && (float)number == 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: %s is too near 0 for 32 bits; write 0", row->key,
                              value);
    if (row->type == MOE_OPT_FLOAT)
        *(float *)base = (float)number;
    else
        *(double *)base = number;
    return MOE_OK;
}

static moe_status set_choice(const moe_option *row, const char **field, const char *value, moe_error *error) {
    if (!row->choices) {
        *field = value;
        return MOE_OK;
    }
    if (*value == '\0' && *row->initial == '\0') { /* none chosen */
        *field = row->initial;
        return MOE_OK;
    }
    const int32_t place = moei_option_place(value, row->choices);
    if (place >= 0) {
        *field = row->choices[place];
        return MOE_OK;
    }
    char list[256] = "";
    for (const char *const *choice = row->choices; *choice; ++choice)
        moei_list_add(list, sizeof list, *choice);
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not one of: %s", row->key, value, list);
}

static moe_status set_text(const moe_option *row, char *field, const char *value, moe_error *error) {
    size_t length = strlen(value);
    if ((double)length + 1 > row->max)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: longer than %.0f bytes", row->key, row->max - 1);
    memcpy(field, value, length + 1);
    return MOE_OK;
}

moe_status moei_option_set(const moe_option *row, void *base, const char *value, moe_error *error) {
    void *field = (char *)base + row->offset;
    switch (row->type) {
    case MOE_OPT_BOOL:
        return set_bool(row, field, value, error);
    case MOE_OPT_INT:
    case MOE_OPT_INT64:
        return set_integer(row, field, value, error);
    case MOE_OPT_FLOAT:
    case MOE_OPT_DOUBLE:
        return set_real(row, field, value, error);
    case MOE_OPT_CHOICE:
        return set_choice(row, field, value, error);
    case MOE_OPT_TEXT:
        return set_text(row, field, value, error);
    }
    return moei_error_set(error, MOE_ERR_INTERNAL, "%s: unknown option type", row->key);
}

/* Shortest text that reads back to the same number. */
static void print_real(double value, bool is_float, char *text, size_t size) {
    char number[32];
    locale_t before = moei_locale_enter();
    for (int digits = 6; digits <= 17; ++digits) {
        snprintf(number, sizeof number, "%.*g", digits, value);
        double back = strtod(number, NULL);
        if (is_float ? (float)back == (float)value : back == value) break;
    }
    moei_locale_leave(before);
    snprintf(text, size, "%s", number);
}

void moei_option_get(const moe_option *row, const void *base, char *text, size_t size) {
    const void *field = (const char *)base + row->offset;
    switch (row->type) {
    case MOE_OPT_BOOL:
        snprintf(text, size, "%s", *(const bool *)field ? "true" : "false");
        break;
    case MOE_OPT_INT:
        snprintf(text, size, "%d", *(const int32_t *)field);
        break;
    case MOE_OPT_INT64:
        snprintf(text, size, "%lld", (long long)*(const int64_t *)field);
        break;
    case MOE_OPT_FLOAT:
        print_real((double)*(const float *)field, true, text, size);
        break;
    case MOE_OPT_DOUBLE:
        print_real(*(const double *)field, false, text, size);
        break;
    case MOE_OPT_CHOICE: {
        const char *choice = *(const char *const *)field;
        snprintf(text, size, "%s", choice ? choice : row->initial);
        break;
    }
    case MOE_OPT_TEXT:
        snprintf(text, size, "%s", (const char *)field);
        break;
    }
}

moe_status moei_option_defaults(moei_option_table table, void *base, moe_error *error) {
    for (size_t i = 0; i < table.count; ++i)
        MOEI_TRY(moei_option_set(&table.row[i], base, table.row[i].initial, error));
    return MOE_OK;
}

void moei_list_add(char *list, size_t size, const char *word) {
    const size_t used = strlen(list);
    const int n = snprintf(list + used, size - used, "%s%s", used ? ", " : "", word);
    if (n < 0 || used + (size_t)n >= size) list[used] = '\0';
}

int32_t moei_option_place(const char *name, const char *const *names) {
    for (int32_t i = 0; names[i]; ++i)
        if (strcmp(names[i], name) == 0) return i;
    return -1;
}

int32_t moei_option_resolve(const char *name, const char *const *names, const char **lost) {
    const int32_t place = name ? moei_option_place(name, names) : 0;
    if (place < 0) *lost = name;
    return place < 0 ? 0 : place;
}
