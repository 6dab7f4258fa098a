/* option.h: tables of settings. One table gives a struct its defaults, its parser, its limits, its help
 * and its aliases; YAML, the command line, the environment and the docs all read the same rows.
 */
#ifndef MOEI_OPTION_H
#define MOEI_OPTION_H

#include <moekit/option.h>

#include "core/status.h"

typedef struct moei_option_table {
    const moe_option *row;
    size_t count;
} moei_option_table;

/* The row of a key, of its last part or of an alias; NULL: none. Keys win over last parts, these over
 * aliases.
 */
const moe_option *moei_option_find(moei_option_table table, const char *key);
/* The row of least moe_option_distance to `key`; NULL where there are no rows. */
const moe_option *moei_option_nearest(moei_option_table table, const char *key, size_t *distance);
/* A key that the table does not have, a `noun` to the user: told with the row that it is a value of, or the
 * nearest one, or, where none is near, with what lists them all. */
moe_status moei_option_unknown(moei_option_table table, const char *noun, const char *key, const char *list,
                               moe_error *error);

/* Parses `value` into the row's field of `base`; a wrong one names the key, the value and what is right. */
moe_status moei_option_set(const moe_option *row, void *base, const char *value, moe_error *error);

/* Writes the field as text that moei_option_set reads back to the same value. */
void moei_option_get(const moe_option *row, const void *base, char *text, size_t size);

/* Adds a word to a list for a text, "a, b", where it still fits. */
void moei_list_add(char *list, size_t size, const char *word);

/* The place of a name in a NULL-terminated list; -1: it is not there. */
int32_t moei_option_place(const char *name, const char *const *names);
/* The same where the name went through the options; NULL is the first. *lost becomes one that the list lacks
 * all the same. */
int32_t moei_option_resolve(const char *name, const char *const *names, const char **lost);

/* Sets every field of the table to its default. One that does not parse is a fault of the table. */
moe_status moei_option_defaults(moei_option_table table, void *base, moe_error *error);

#endif
