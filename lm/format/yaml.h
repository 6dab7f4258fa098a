/* yaml.h: the part of YAML 1.1 that configurations need, flattened to `a.b.c` = text, and written back.
 * Mappings of mappings; scalars; lists of scalars, joined with commas. Refused: anchors, aliases, tags other
 * than !!str !!int !!float !!bool !!null, more than one document, duplicate keys, bytes that are not UTF-8.
 */
#ifndef MOELM_YAML_H
#define MOELM_YAML_H

#include <moekit/moe.h>

enum {
    MOELM_YAML_MAX_BYTES = 1 << 20,
    MOELM_YAML_MAX_DEPTH = 8, /* parts of a dotted key */
    MOELM_YAML_MAX_KEY =
        160 /* bytes of a dotted key; YAML takes 1024, and written \uXXXX each may become 6 */
};

/* Called once a pair, in the order of the file, after the whole file was found good. line and column, from
 * 1, are those of the value. A null (~, null or nothing) and an empty list arrive as "". A status other than
 * MOE_OK ends the reading and is returned as it is; the callback has then written its own text. */
typedef moe_status (*moelm_yaml_pair_fn)(void *user, const char *key, const char *value, int line,
                                         int column);

/* Errors read "file:line:column: ...". An empty file has no pairs. */
moe_status moelm_yaml_load(const char *path, moelm_yaml_pair_fn on_pair, void *user, moe_error *error);
/* The same from memory; name stands for the file in messages. */
moe_status moelm_yaml_parse(const char *name, const void *data, size_t bytes, moelm_yaml_pair_fn on_pair,
                            void *user, moe_error *error);

typedef struct moelm_yaml_pair {
    const char *key, *value;
} moelm_yaml_pair;
/* Nested YAML text of the pairs, sorted by key, that reads back as the same pairs. Free with free().
 * MOE_ERR_ARGUMENT: a key twice, or `a` beside `a.b`, or what moelm_yaml_parse would refuse. */
moe_status moelm_yaml_format(const moelm_yaml_pair *pairs, size_t count, char **text, moe_error *error);

#endif
