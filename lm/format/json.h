/* json.h: JSON read through jansson with limits, and fields fetched with messages a user can act on.
 * `where` names the object in messages: "config.json" or "config.json: rope_scaling".
 * Format: RFC 8259. Duplicate keys, NUL in strings and more than 2048 levels are refused. */
#ifndef MOELM_JSON_H
#define MOELM_JSON_H

#include <jansson.h>
#include <moekit/moe.h>

#define MOELM_JSON_MAX_BYTES ((size_t)100 << 20)

/* Errors read "file:line:column: ...". An integer beyond 64 bits is a real: refused only where an integer is
 * read. Free *root with json_decref. */
moe_status moelm_json_load(const char *path, json_t **root, moe_error *error);
/* The same from memory; name stands for the file in messages. */
moe_status moelm_json_parse(const char *name, const void *data, size_t bytes, json_t **root,
                            moe_error *error);
/* Replaces the file in one step (moelm_file_write): two spaces a level, keys in the order they were set. */
moe_status moelm_json_save(const char *path, const json_t *root, moe_error *error);

/* Required fields: a missing key, null or another type is MOE_ERR_INPUT. Pointers are the object's. */
moe_status moelm_json_get_int(const json_t *object, const char *where, const char *key, int64_t min,
                              int64_t max, int64_t *value, moe_error *error);
moe_status moelm_json_get_real(const json_t *object, const char *where, const char *key, double *value,
                               moe_error *error); /* integers are numbers too */
moe_status moelm_json_get_bool(const json_t *object, const char *where, const char *key, bool *value,
                               moe_error *error);
moe_status moelm_json_get_string(const json_t *object, const char *where, const char *key, const char **value,
                                 moe_error *error);
moe_status moelm_json_get_object(const json_t *object, const char *where, const char *key, json_t **value,
                                 moe_error *error);
moe_status moelm_json_get_array(const json_t *object, const char *where, const char *key, json_t **value,
                                moe_error *error);

/* Optional fields: *value keeps what it holds where the key is missing or null. */
moe_status moelm_json_opt_int(const json_t *object, const char *where, const char *key, int64_t min,
                              int64_t max, int64_t *value, moe_error *error);
moe_status moelm_json_opt_real(const json_t *object, const char *where, const char *key, double *value,
                               moe_error *error);
moe_status moelm_json_opt_bool(const json_t *object, const char *where, const char *key, bool *value,
                               moe_error *error);
moe_status moelm_json_opt_string(const json_t *object, const char *where, const char *key, const char **value,
                                 moe_error *error);
moe_status moelm_json_opt_object(const json_t *object, const char *where, const char *key, json_t **value,
                                 moe_error *error);

#endif
