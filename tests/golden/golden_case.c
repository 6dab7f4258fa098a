/* golden_case.c: what one case of a recorded file says, and how far ours is from it.
 * Numbers are read as f64; options are taken out of the case as they are asked for.
 * Source: the form of safetensors files; bounds: limit_of, below.
 */
#include "golden.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What cancels to 0 in theory is rounding noise in a file: gradients of a smaller root mean square than
 * this are held against it. */
static const double noise_floor = 1e-5;
static const double limit_of[] = {[GOLDEN_EXACT] = 0, [GOLDEN_VALUE] = 1e-5, [GOLDEN_GRADIENT] = 1e-4};

static void append(char text[GOLDEN_TEXT], const char *format, va_list list) {
    size_t length = strlen(text);
    if (length > 0 && length + 3 < GOLDEN_TEXT) {
        memcpy(text + length, "; ", 3);
        length += 2;
    }
    vsnprintf(text + length, GOLDEN_TEXT - length, format, list);
}

void golden_fail(golden_case *c, const char *format, ...) {
    va_list list;
    va_start(list, format);
    append(c->why, format, list);
    va_end(list);
    c->failed = true;
}

void golden_note(golden_case *c, const char *format, ...) {
    va_list list;
    va_start(list, format);
    append(c->note, format, list);
    va_end(list);
}

void *golden_alloc(golden_case *c, size_t count, size_t bytes) {
    void **block = realloc(c->block, (c->n_blocks + 1) * sizeof *block);
    void *memory = calloc(count + 1, bytes);
    if (!block || !memory) {
        fprintf(stderr, "golden: out of memory\n");
        exit(MOE_ERR_MEMORY);
    }
    c->block = block;
    c->block[c->n_blocks++] = memory;
    return memory;
}

/* --- options ------------------------------------------------------------------------------------------ */

/* The value of a key, taken out of the object so that what remains is what nobody knows. */
static json_t *take(golden_case *c, const char *key) {
    json_t *value = json_incref(json_object_get(c->option, key));
    json_object_del(c->option, key);
    if (!json_is_null(value)) return value;
    json_decref(value);
    return NULL;
}

int64_t golden_int(golden_case *c, const char *key, int64_t initial) {
    json_t *value = take(c, key);
    if (value && !json_is_integer(value)) golden_fail(c, "option '%s' is not an integer", key);
    int64_t number = json_is_integer(value) ? json_integer_value(value) : initial;
    json_decref(value);
    return number;
}

int64_t golden_int_required(golden_case *c, const char *key) {
    if (!json_is_integer(json_object_get(c->option, key))) {
        golden_fail(c, "option '%s' is missing or not an integer", key);
        return 1;
    }
    return golden_int(c, key, 1);
}

double golden_real(golden_case *c, const char *key, double initial) {
    json_t *value = take(c, key);
    if (value && !json_is_number(value)) golden_fail(c, "option '%s' is not a number", key);
    double number = json_is_number(value) ? json_number_value(value) : initial;
    json_decref(value);
    return number;
}

bool golden_bool(golden_case *c, const char *key, bool initial) {
    json_t *value = take(c, key);
    if (value && !json_is_boolean(value)) golden_fail(c, "option '%s' is not true or false", key);
    bool answer = json_is_boolean(value) ? json_is_true(value) : initial;
    json_decref(value);
    return answer;
}

const char *golden_text(golden_case *c, const char *key, const char *initial) {
    json_t *value = take(c, key);
    if (!value) return initial;
    if (!json_is_string(value)) {
        golden_fail(c, "option '%s' is not a string", key);
        json_decref(value);
        return initial;
    }
    char *text = golden_alloc(c, json_string_length(value), 1);
    memcpy(text, json_string_value(value), json_string_length(value));
    json_decref(value);
    return text;
}

int golden_ints(golden_case *c, const char *key, int64_t *value, int max) {
    json_t *found = take(c, key);
    int count = 0;
    if (json_is_integer(found)) value[count++] = json_integer_value(found);
    for (size_t i = 0; i < json_array_size(found) && count < max; ++i)
        value[count++] = json_integer_value(json_array_get(found, i));
    if (count == 0 || (json_is_array(found) && json_array_size(found) != (size_t)count))
        golden_fail(c, "option '%s' must be 1 .. %d integers", key, max);
    json_decref(found);
    return count;
}

const char *golden_choice(golden_case *c, const char *key, const char *initial, const char *const *known) {
    const char *text = golden_text(c, key, initial);
    for (const char *const *pair = known; *pair; pair += 2)
        if (strcmp(text, pair[0]) == 0) return pair[1];
    golden_fail(c, "option '%s': '%s' is not known", key, text);
    return known[1];
}

void golden_skip(golden_case *c, const char *key) {
    json_object_del(c->option, key);
}

bool golden_options_done(golden_case *c) {
    const char *key;
    json_t *value;
    json_object_foreach(c->option, key, value) golden_fail(c, "option '%s' is not known", key);
    return !c->failed;
}

/* --- tensors ------------------------------------------------------------------------------------------ */

static double element(const moelm_st_tensor *tensor, int64_t i) {
    union {
        double f64;
        float f32;
        int64_t i64;
        int32_t i32;
        uint8_t u8;
    } number;
    memcpy(&number, (const char *)tensor->data + (size_t)i * moelm_st_dtype_bytes(tensor->dtype),
           moelm_st_dtype_bytes(tensor->dtype));
    switch (tensor->dtype) {
    case MOELM_ST_F64:
        return number.f64;
    case MOELM_ST_F32:
        return (double)number.f32;
    case MOELM_ST_I64:
        return (double)number.i64;
    case MOELM_ST_I32:
        return (double)number.i32;
    default:
        return (double)number.u8;
    }
}

static bool is_readable(moelm_st_dtype dtype) {
    return dtype == MOELM_ST_F64 || dtype == MOELM_ST_F32 || dtype == MOELM_ST_I64 || dtype == MOELM_ST_I32 ||
           dtype == MOELM_ST_U8 || dtype == MOELM_ST_BOOL;
}

static void read_values(golden_case *c, golden_tensor *tensor) {
    tensor->value = golden_alloc(c, (size_t)tensor->count, sizeof *tensor->value);
    if (!is_readable(tensor->recorded->dtype)) {
        golden_fail(c, "tensor '%s' is of dtype %s, which is not read here", tensor->recorded->name,
                    moelm_st_dtype_name(tensor->recorded->dtype));
        return;
    }
    for (int64_t i = 0; i < tensor->count; ++i) tensor->value[i] = element(tensor->recorded, i);
}

const golden_tensor *golden_find(golden_case *c, const char *name) {
    size_t skip = strlen(c->name) + 1; /* "case/" */
    for (size_t i = 0; i < c->n_tensors; ++i) {
        golden_tensor *tensor = &c->tensor[i];
        if (strcmp(tensor->recorded->name + skip, name) != 0) continue;
        tensor->used = true;
        if (!tensor->value) read_values(c, tensor);
        return tensor;
    }
    return NULL;
}

const golden_tensor *golden_need(golden_case *c, const char *name, int n_dim, const int64_t *dim) {
    const golden_tensor *tensor = golden_find(c, name);
    if (!tensor) {
        golden_fail(c, "tensor '%s' is missing", name);
        return NULL;
    }
    bool fits = tensor->recorded->n_dim == n_dim;
    for (int i = 0; fits && i < n_dim; ++i) fits = dim[i] < 0 || dim[i] == tensor->recorded->dim[i];
    if (fits) return tensor;
    golden_fail(c, "tensor '%s' has another shape than the options say", name);
    return NULL;
}

int64_t golden_dim(const golden_tensor *tensor, int axis) {
    return tensor->recorded->dim[axis < 0 ? tensor->recorded->n_dim + axis : axis];
}

float *golden_floats(golden_case *c, const golden_tensor *tensor) {
    float *value = golden_alloc(c, (size_t)tensor->count, sizeof *value);
    for (int64_t i = 0; i < tensor->count; ++i) value[i] = (float)tensor->value[i];
    return value;
}

uint8_t *golden_bytes(golden_case *c, const golden_tensor *tensor) {
    uint8_t *value = golden_alloc(c, (size_t)tensor->count, 1);
    for (int64_t i = 0; i < tensor->count; ++i) value[i] = tensor->value[i] != 0;
    return value;
}

double *golden_counts(golden_case *c, const int64_t *count, int64_t n) {
    double *value = golden_alloc(c, (size_t)n, sizeof *value);
    for (int64_t i = 0; i < n; ++i) value[i] = (double)count[i];
    return value;
}

/* --- comparing ---------------------------------------------------------------------------------------- */

static void compare_exactly(golden_case *c, const golden_tensor *tensor, const char *name,
                            const double *got) {
    int64_t differing = 0, first = -1;
    for (int64_t i = 0; i < tensor->count; ++i)
        if (!(got[i] == tensor->value[i]) && differing++ == 0) first = i;
    if (differing > 0)
        golden_fail(c, "%s: %" PRId64 " of %" PRId64 " differ, first [%" PRId64 "]: %g, recorded %g", name,
                    differing, tensor->count, first, got[first], tensor->value[first]);
}

static void compare_by_norm(golden_case *c, const golden_tensor *tensor, const char *name, const double *got,
                            double limit) {
    double difference = 0, norm = 0;
    int64_t undefined = 0;
    for (int64_t i = 0; i < tensor->count; ++i) {
        double recorded = tensor->value[i];
        if (!isfinite(recorded)) {
            ++undefined;
            continue;
        }
        difference += (got[i] - recorded) * (got[i] - recorded);
        norm += recorded * recorded;
    }
    c->n_undefined += undefined;
    if (undefined > 0 && !c->undefined_allowed)
        golden_fail(c, "%s: %" PRId64 " of %" PRId64 " recorded numbers are not finite", name, undefined,
                    tensor->count);
    const double floor_of_one = limit > limit_of[GOLDEN_VALUE] ? noise_floor : 0;
    const double least = floor_of_one * floor_of_one * (double)(tensor->count - undefined);
    double error = difference > 0 ? sqrt(difference / fmax(norm, fmax(least, DBL_MIN))) : 0;
    if (isnan(difference)) error = INFINITY;
    if (!(error <= c->worst)) {
        c->worst = error;
        snprintf(c->worst_name, sizeof c->worst_name, "%s", name);
    }
    if (!(error <= limit)) golden_fail(c, "%s: error %.2e, allowed %.0e", name, error, limit);
}

void golden_absent(golden_case *c, const char *name) {
    const size_t length = strlen(c->absent);
    snprintf(c->absent + length, sizeof c->absent - length, "%s%s", length ? ", " : "", name);
}

void golden_compare(golden_case *c, const char *name, const double *got, int64_t count, golden_bound bound) {
    const golden_tensor *tensor = golden_find(c, name);
    if (!tensor) {
        golden_absent(c, name);
        return;
    }
    ++c->n_compared;
    if (tensor->count != count)
        golden_fail(c, "%s: %" PRId64 " numbers, recorded %" PRId64, name, count, tensor->count);
    else if (bound == GOLDEN_EXACT)
        compare_exactly(c, tensor, name, got);
    else
        compare_by_norm(c, tensor, name, got, limit_of[bound]);
}

void golden_compare_one(golden_case *c, const char *name, double got, golden_bound bound) {
    golden_compare(c, name, &got, 1, bound);
}
