/* json.c: JSON with limits and with messages that name file, place and key.
 * Parsing is jansson's; each typed getter checks presence, type and range in one place.
 * Source: RFC 8259; jansson 2.14. */
#include "format/json.h"

#include "core/status.h"
#include "format/file.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Integers beyond 64 bits become numbers with an exponent, in the same place: ...789 reads ...7e2. A getter
 * of an integer refuses them; where nobody reads them (save_pretrained writes 10^30 for "no limit") none is
 * lost.
 */
static void widen_integers(char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '"') {
            for (i++; i < bytes && text[i] != '"'; i++) i += text[i] == '\\';
        } else if (text[i] == '-' || (text[i] >= '0' && text[i] <= '9')) {
            char *end;
            errno = 0;
            (void)strtoll(text + i, &end, 10);
            if (errno == ERANGE && !(*end && strchr(".eE", *end))) memcpy(end - 2, "e2", 2);
            i += strspn(text + i, "-+.eE0123456789") - 1;
        }
    }
}

/* Parses again what has an integer beyond 64 bits; *parsed is NULL where *fault tells why. */
static moe_status parse_wide(const char *name, const void *data, size_t bytes, json_t **parsed,
                             json_error_t *fault, moe_error *error) {
    char *text = malloc(bytes + 1);
    if (!text) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", name);
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    widen_integers(text, bytes);
    *parsed = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, fault);
    free(text);
    return MOE_OK;
}

moe_status moelm_json_parse(const char *name, const void *data, size_t bytes, json_t **root,
                            moe_error *error) {
    if (bytes > MOELM_JSON_MAX_BYTES)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %zu bytes, at most %zu are accepted", name, bytes,
                              MOELM_JSON_MAX_BYTES);
    json_error_t fault;
    json_t *parsed = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &fault);
    if (!parsed && json_error_code(&fault) == json_error_numeric_overflow)
        MOEI_TRY(parse_wide(name, data, bytes, &parsed, &fault, error));
    if (!parsed) {
        bool memory = json_error_code(&fault) == json_error_out_of_memory;
        return moei_error_set(error, memory ? MOE_ERR_MEMORY : MOE_ERR_INPUT, "%s:%d:%d: %s", name,
                              fault.line, fault.column, fault.text);
    }
    *root = parsed;
    return MOE_OK;
}

moe_status moelm_json_load(const char *path, json_t **root, moe_error *error) {
    char *text;
    size_t bytes;
    MOEI_TRY(moelm_file_read(path, 1, MOELM_JSON_MAX_BYTES, &text, &bytes, error));
    moe_status status = moelm_json_parse(path, text, bytes, root, error);
    free(text);
    return status;
}

/* The numbers in as few digits as bring all of them back: 0.1, not 0.10000000000000001. NULL: out of memory.
 */
static char *shortest(const json_t *root) {
    char *text = NULL;
    bool same = false;
    for (size_t digits = 9; digits <= 17 && !same; digits += 4) {
        free(text);
        text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, 0, NULL) : NULL;
        same = !text || json_equal(back, root);
        json_decref(back);
    }
    return text;
}

moe_status moelm_json_save(const char *path, const json_t *root, moe_error *error) {
    char *text = shortest(root);
    if (!text) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    size_t length = strlen(text);
    text[length] = '\n'; /* in place of the NUL, which nobody reads from here on */
    moe_status status = moelm_file_write(path, text, length + 1, error);
    free(text);
    return status;
}

static const char *type_words(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return fabs(json_real_value(value)) < 0x1p63 ? "a number with a fraction"
                                                     : "a number too large for 64 bits";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

/* A JSON kind as a getter wants it. */
typedef enum kind { KIND_INT, KIND_REAL, KIND_BOOL, KIND_STRING, KIND_OBJECT, KIND_ARRAY } kind;
static const char *const kind_words[] = {"an integer", "a number",  "true or false",
                                         "a string",   "an object", "an array"};

static bool is_kind(const json_t *value, kind wanted) {
    switch (wanted) {
    case KIND_INT:
        return json_is_integer(value);
    case KIND_REAL:
        return json_is_number(value);
    case KIND_BOOL:
        return json_is_boolean(value);
    case KIND_STRING:
        return json_is_string(value);
    case KIND_OBJECT:
        return json_is_object(value);
    case KIND_ARRAY:
        return json_is_array(value);
    }
    return false;
}

/* The field, or NULL in *value where it is missing or null. */
static moe_status find(const json_t *object, const char *where, const char *key, kind wanted, json_t **value,
                       moe_error *error) {
    if (!json_is_object(object))
        return moei_error_set(error, MOE_ERR_INPUT, "%s: must be an object with the key %s", where, key);
    json_t *found = json_object_get(object, key);
    if (json_is_null(found)) found = NULL;
    if (found && !is_kind(found, wanted))
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %s must be %s, not %s", where, key,
                              kind_words[wanted], type_words(found));
    *value = found;
    return MOE_OK;
}

static moe_status need(const json_t *object, const char *where, const char *key, kind wanted, json_t **value,
                       moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(find(object, where, key, wanted, &found, error));
    if (!found)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %s is missing, it must be %s", where, key,
                              kind_words[wanted]);
    *value = found;
    return MOE_OK;
}

static moe_status take_int(const json_t *found, const char *where, const char *key, int64_t min, int64_t max,
                           int64_t *value, moe_error *error) {
    int64_t number = json_integer_value(found);
    if (number < min || number > max)
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: %s must be between %" PRId64 " and %" PRId64 ", not %" PRId64, where, key,
                              min, max, number);
    *value = number;
    return MOE_OK;
}

moe_status moelm_json_get_int(const json_t *object, const char *where, const char *key, int64_t min,
                              int64_t max, int64_t *value, moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(need(object, where, key, KIND_INT, &found, error));
    return take_int(found, where, key, min, max, value, error);
}

moe_status moelm_json_get_real(const json_t *object, const char *where, const char *key, double *value,
                               moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(need(object, where, key, KIND_REAL, &found, error));
    *value = json_number_value(found);
    return MOE_OK;
}

moe_status moelm_json_get_bool(const json_t *object, const char *where, const char *key, bool *value,
                               moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(need(object, where, key, KIND_BOOL, &found, error));
    *value = json_is_true(found);
    return MOE_OK;
}

moe_status moelm_json_get_string(const json_t *object, const char *where, const char *key, const char **value,
                                 moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(need(object, where, key, KIND_STRING, &found, error));
    *value = json_string_value(found);
    return MOE_OK;
}

moe_status moelm_json_get_object(const json_t *object, const char *where, const char *key, json_t **value,
                                 moe_error *error) {
    return need(object, where, key, KIND_OBJECT, value, error);
}

moe_status moelm_json_get_array(const json_t *object, const char *where, const char *key, json_t **value,
                                moe_error *error) {
    return need(object, where, key, KIND_ARRAY, value, error);
}

moe_status moelm_json_opt_int(const json_t *object, const char *where, const char *key, int64_t min,
                              int64_t max, int64_t *value, moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(find(object, where, key, KIND_INT, &found, error));
    return found ? take_int(found, where, key, min, max, value, error) : MOE_OK;
}

moe_status moelm_json_opt_real(const json_t *object, const char *where, const char *key, double *value,
                               moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(find(object, where, key, KIND_REAL, &found, error));
    if (found) *value = json_number_value(found);
    return MOE_OK;
}

moe_status moelm_json_opt_bool(const json_t *object, const char *where, const char *key, bool *value,
                               moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(find(object, where, key, KIND_BOOL, &found, error));
    if (found) *value = json_is_true(found);
    return MOE_OK;
}

moe_status moelm_json_opt_string(const json_t *object, const char *where, const char *key, const char **value,
                                 moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(find(object, where, key, KIND_STRING, &found, error));
    if (found) *value = json_string_value(found);
    return MOE_OK;
}

moe_status moelm_json_opt_object(const json_t *object, const char *where, const char *key, json_t **value,
                                 moe_error *error) {
    json_t *found = NULL;
    MOEI_TRY(find(object, where, key, KIND_OBJECT, &found, error));
    if (found) *value = found;
    return MOE_OK;
}
