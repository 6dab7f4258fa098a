/* safetensors.c: named tensors read from a mapped file, or from several under an index.
 * Nothing of a header is believed: types, shapes, lengths and the tiling of the data are checked first.
 * Source: the safetensors format description of Hugging Face. */
#include "format/safetensors.h"

#include "core/status.h"
#include "format/file.h"
#include "format/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct dtype_row {
    const char *name;
    size_t bytes;
} dtype_row;

static const dtype_row dtypes[] = {
    [MOELM_ST_F64] = {"F64",     8},
      [MOELM_ST_F32] = {"F32",     4},
      [MOELM_ST_F16] = {"F16",     2},
    [MOELM_ST_BF16] = {"BF16",    2},
      [MOELM_ST_I64] = {"I64",     8},
      [MOELM_ST_I32] = {"I32",     4},
    [MOELM_ST_I16] = {"I16",     2},
      [MOELM_ST_I8] = {"I8",      1},
      [MOELM_ST_U64] = {"U64",     8},
    [MOELM_ST_U32] = {"U32",     4},
      [MOELM_ST_U16] = {"U16",     2},
      [MOELM_ST_U8] = {"U8",      1},
    [MOELM_ST_BOOL] = {"BOOL",    1},
      [MOELM_ST_F8_E4M3] = {"F8_E4M3", 1},
      [MOELM_ST_F8_E5M2] = {"F8_E5M2", 1},
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

/* One file. The header stays in memory because names and metadata point into it. */
typedef struct shard {
    json_t *header;
    moelm_file_map map; /* empty where the caller owns the bytes */
} shard;

struct moelm_safetensors {
    char *name;
    shard *shards;
    size_t n_shards;
    moelm_st_tensor *tensors;
    const moelm_st_tensor **by_name; /* [n_tensors] */
    size_t n_tensors;
    moelm_st_pair *metadata;
    size_t n_metadata;
};

/* A file while it is read: where it is in messages and where its data starts. */
typedef struct source {
    const char *name;
    const unsigned char *bytes;
    size_t n_bytes;
    uint64_t data_start; /* offset of the first data byte in the file */
    moe_error *error;
} source;

const char *moelm_st_dtype_name(moelm_st_dtype dtype) {
    return (unsigned)dtype < N_DTYPES ? dtypes[dtype].name : "unknown";
}

size_t moelm_st_dtype_bytes(moelm_st_dtype dtype) {
    return (unsigned)dtype < N_DTYPES ? dtypes[dtype].bytes : 0;
}

static moe_status no_memory(const char *name, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", name);
}

/* 1. One tensor of a header. */

static moe_status fault(const source *from, const char *tensor, const char *what) {
    return moei_error_set(from->error, MOE_ERR_INPUT, "%s: tensor %.120s: %s", from->name, tensor, what);
}

static moe_status read_dtype(const source *from, const char *name, const json_t *value,
                             moelm_st_dtype *dtype) {
    const char *text = json_string_value(value);
    if (!text) return fault(from, name, "dtype must be a string such as \"F32\"");
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(dtypes[i].name, text) != 0) continue;
        *dtype = (moelm_st_dtype)i;
        return MOE_OK;
    }
    return moei_error_set(from->error, MOE_ERR_INPUT, "%s: tensor %.120s: unknown dtype \"%.40s\"",
                          from->name, name, text);
}

/* Dimensions, and the bytes they amount to. */
static moe_status read_shape(const source *from, const json_t *value, moelm_st_tensor *tensor,
                             uint64_t *bytes) {
    size_t n_dim = json_array_size(value);
    if (!json_is_array(value)) return fault(from, tensor->name, "shape must be an array of integers");
    if (n_dim > MOELM_ST_MAX_DIM) return fault(from, tensor->name, "more than 8 dimensions");
    uint64_t product = dtypes[tensor->dtype].bytes;
    bool overflow = false, empty = false;
    for (size_t i = 0; i < n_dim; i++) {
        const json_t *dim = json_array_get(value, i);
        tensor->dim[i] = json_integer_value(dim);
        if (!json_is_integer(dim) || tensor->dim[i] < 0)
            return fault(from, tensor->name, "shape must hold integers of 0 or more");
        empty |= tensor->dim[i] == 0;
        overflow |= __builtin_mul_overflow(product, (uint64_t)tensor->dim[i], &product);
    }
    if (overflow && !empty) return fault(from, tensor->name, "the product of its shape overflows");
    tensor->n_dim = (int32_t)n_dim;
    *bytes = empty ? 0 : product;
    return MOE_OK;
}

static moe_status read_offsets(const source *from, const json_t *value, moelm_st_tensor *tensor,
                               uint64_t shape_bytes) {
    const json_t *first = json_array_get(value, 0), *second = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return fault(from, tensor->name, "data_offsets must be two integers");
    int64_t begin = json_integer_value(first), end = json_integer_value(second);
    uint64_t available = from->n_bytes - from->data_start;
    if (begin < 0 || end < begin || (uint64_t)end > available)
        return moei_error_set(from->error, MOE_ERR_INPUT,
                              "%s: tensor %.120s: data_offsets [%" PRId64 ", %" PRId64
                              "] do not lie in the %" PRIu64 " bytes of data after offset %" PRIu64,
                              from->name, tensor->name, begin, end, available, from->data_start);
    if ((uint64_t)(end - begin) != shape_bytes)
        return moei_error_set(from->error, MOE_ERR_INPUT,
                              "%s: tensor %.120s at offset %" PRIu64 ": %" PRId64
                              " bytes, its shape of %s needs %" PRIu64,
                              from->name, tensor->name, from->data_start + (uint64_t)begin, end - begin,
                              dtypes[tensor->dtype].name, shape_bytes);
    tensor->data = from->bytes + from->data_start + begin;
    tensor->bytes = (size_t)shape_bytes;
    return MOE_OK;
}

static moe_status read_tensor(const source *from, const char *name, const json_t *info,
                              moelm_st_tensor *tensor) {
    uint64_t shape_bytes = 0;
    if (!json_is_object(info)) return fault(from, name, "must be an object of dtype, shape and data_offsets");
    *tensor = (moelm_st_tensor){.name = name};
    MOEI_TRY(read_dtype(from, name, json_object_get(info, "dtype"), &tensor->dtype));
    MOEI_TRY(read_shape(from, json_object_get(info, "shape"), tensor, &shape_bytes));
    return read_offsets(from, json_object_get(info, "data_offsets"), tensor, shape_bytes);
}

/* 2. One header. */

static moe_status read_header(source *from, json_t **header) {
    if (from->n_bytes < 8)
        return moei_error_set(from->error, MOE_ERR_INPUT,
                              "%s: %zu bytes, too short for the header length at offset 0", from->name,
                              from->n_bytes);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | from->bytes[i];
    if (length > MOELM_ST_MAX_HEADER)
        return moei_error_set(from->error, MOE_ERR_INPUT,
                              "%s: header length %" PRIu64
                              " at offset 0 is above the limit of %d; is this a safetensors file?",
                              from->name, length, (int)MOELM_ST_MAX_HEADER);
    if (length > from->n_bytes - 8)
        return moei_error_set(from->error, MOE_ERR_INPUT,
                              "%s: the header of %" PRIu64
                              " bytes at offset 8 runs past the end of the file at %zu",
                              from->name, length, from->n_bytes);
    from->data_start = 8 + length;
    if (length == 0 || from->bytes[8] != '{')
        return moei_error_set(from->error, MOE_ERR_INPUT, "%s: the header at offset 8 must start with '{'",
                              from->name);
    json_error_t cause;
    *header = json_loadb((const char *)from->bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &cause);
    if (*header) return MOE_OK;
    bool memory = json_error_code(&cause) == json_error_out_of_memory;
    return moei_error_set(from->error, memory ? MOE_ERR_MEMORY : MOE_ERR_INPUT, "%s: header at offset %d: %s",
                          from->name, 8 + cause.position, cause.text);
}

static moe_status read_metadata(const source *from, json_t *map, moelm_safetensors *file) {
    if (!json_is_object(map))
        return moei_error_set(from->error, MOE_ERR_INPUT, "%s: __metadata__ must be an object of strings",
                              from->name);
    moelm_st_pair *pairs = malloc((json_object_size(map) + 1) * sizeof *pairs);
    if (!pairs) return no_memory(from->name, from->error);
    size_t n = 0;
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        if (!json_is_string(value)) {
            free(pairs);
            return moei_error_set(from->error, MOE_ERR_INPUT, "%s: __metadata__ %.120s must be a string",
                                  from->name, key);
        }
        pairs[n++] = (moelm_st_pair){.key = key, .value = json_string_value(value)};
    }
    file->metadata = pairs;
    file->n_metadata = n;
    return MOE_OK;
}

static int compare_places(const void *a, const void *b) {
    const moelm_st_tensor *left = a, *right = b;
    if (left->data != right->data) return (const char *)left->data < (const char *)right->data ? -1 : 1;
    if (left->bytes != right->bytes) return left->bytes < right->bytes ? -1 : 1;
    return strcmp(left->name, right->name);
}

/* Sorted by place, tensors must cover the data from its first byte to its last, each byte once. */
static moe_status check_tiling(const source *from, const moelm_st_tensor *tensors, size_t count) {
    uint64_t reached = from->data_start;
    for (size_t i = 0; i < count; i++) {
        uint64_t begin = (uint64_t)((const unsigned char *)tensors[i].data - from->bytes);
        if (begin != reached)
            return moei_error_set(from->error, MOE_ERR_INPUT,
                                  "%s: tensor %.120s starts at offset %" PRIu64 " %s", from->name,
                                  tensors[i].name, begin,
                                  begin < reached ? "and overlaps the tensor before it"
                                                  : "and leaves bytes before it to no tensor");
        reached = begin + tensors[i].bytes;
    }
    if (reached == from->n_bytes) return MOE_OK;
    return moei_error_set(from->error, MOE_ERR_INPUT,
                          "%s: tensors end at offset %" PRIu64 ", the file at %zu", from->name, reached,
                          from->n_bytes);
}

/* Adds the tensors of a header that file owns already. */
static moe_status read_tensors(const source *from, json_t *header, moelm_safetensors *file) {
    size_t first = file->n_tensors, n_more = json_object_size(header);
    moelm_st_tensor *grown = realloc(file->tensors, (first + n_more + 1) * sizeof *grown);
    if (!grown) return no_memory(from->name, from->error);
    file->tensors = grown;
    size_t n = first;
    const char *name;
    json_t *value;
    json_object_foreach(header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            if (!file->metadata) MOEI_TRY(read_metadata(from, value, file));
            continue;
        }
        MOEI_TRY(read_tensor(from, name, value, &grown[n]));
        n++;
    }
    qsort(grown + first, n - first, sizeof *grown, compare_places);
    file->n_tensors = n;
    return check_tiling(from, grown + first, n - first);
}

static moe_status add_shard(moelm_safetensors *file, const char *name, const void *bytes, size_t n_bytes,
                            shard *into, moe_error *error) {
    source from = {.name = name, .bytes = bytes, .n_bytes = n_bytes, .error = error};
    MOEI_TRY(read_header(&from, &into->header));
    return read_tensors(&from, into->header, file);
}

/* 3. Files. */

static int compare_names(const void *a, const void *b) {
    return strcmp((*(const moelm_st_tensor *const *)a)->name, (*(const moelm_st_tensor *const *)b)->name);
}

static moe_status sort_names(moelm_safetensors *file, moe_error *error) {
    file->by_name = malloc((file->n_tensors + 1) * sizeof *file->by_name);
    if (!file->by_name) return no_memory(file->name, error);
    for (size_t i = 0; i < file->n_tensors; i++) file->by_name[i] = &file->tensors[i];
    qsort(file->by_name, file->n_tensors, sizeof *file->by_name, compare_names);
    return MOE_OK;
}

static moelm_safetensors *make_file(const char *name, size_t n_shards) {
    moelm_safetensors *file = calloc(1, sizeof *file);
    if (!file) return NULL;
    file->name = strdup(name);
    file->shards = calloc(n_shards + 1, sizeof *file->shards);
    file->n_shards = n_shards;
    if (file->name && file->shards) return file;
    moelm_safetensors_close(file);
    return NULL;
}

void moelm_safetensors_close(moelm_safetensors *file) {
    if (!file) return;
    for (size_t i = 0; file->shards && i < file->n_shards; i++) {
        json_decref(file->shards[i].header);
        moelm_file_map_close(&file->shards[i].map);
    }
    free(file->shards);
    free(file->tensors);
    free(file->by_name);
    free(file->metadata);
    free(file->name);
    free(file);
}

static moe_status hand_out(moelm_safetensors *made, moe_status status, moelm_safetensors **file) {
    if (status == MOE_OK)
        *file = made;
    else
        moelm_safetensors_close(made);
    return status;
}

moe_status moelm_safetensors_parse(const char *name, const void *data, size_t bytes, moelm_safetensors **file,
                                   moe_error *error) {
    moelm_safetensors *made = make_file(name, 1);
    if (!made) return no_memory(name, error);
    moe_status status = add_shard(made, name, data, bytes, &made->shards[0], error);
    if (status == MOE_OK) status = sort_names(made, error);
    return hand_out(made, status, file);
}

static moe_status map_shard(moelm_safetensors *file, const char *path, shard *into, moe_error *error) {
    MOEI_TRY(moelm_file_map_open(path, &into->map, error));
    return add_shard(file, path, into->map.data, into->map.bytes, into, error);
}

/* 4. Shards: the index says which file holds which tensor, and must be right about every one. */

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Distinct file names of the index, sorted; they are the json strings'. */
static moe_status shard_names(const char *path, json_t *weight_map, const char ***names, size_t *count,
                              moe_error *error) {
    size_t n = 0, n_distinct = 0;
    const char **found = malloc((json_object_size(weight_map) + 1) * sizeof *found);
    if (!found) return no_memory(path, error);
    const char *tensor;
    json_t *value;
    json_object_foreach(weight_map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || *name == '\0' || *name == '.' || strchr(name, '/')) {
            free(found);
            return moei_error_set(error, MOE_ERR_INPUT,
                                  "%s: weight_map: %.120s must name a file of the same directory", path,
                                  tensor);
        }
        found[n++] = name;
    }
    qsort(found, n, sizeof *found, compare_texts);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(found[i], found[n_distinct - 1]) != 0) found[n_distinct++] = found[i];
    *names = found;
    *count = n_distinct;
    return MOE_OK;
}

/* Tensors from `first` on came from the file `shard_name`. */
static moe_status check_shard(const moelm_safetensors *file, size_t first, const char *shard_name,
                              const json_t *weight_map, moe_error *error) {
    for (size_t i = first; i < file->n_tensors; i++) {
        const char *name = file->tensors[i].name;
        const char *expected = json_string_value(json_object_get(weight_map, name));
        if (!expected)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: does not name tensor %.120s of %s", file->name,
                                  name, shard_name);
        if (strcmp(expected, shard_name) != 0)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: says tensor %.120s is in %s, it is in %s",
                                  file->name, name, expected, shard_name);
    }
    return MOE_OK;
}

static moe_status check_complete(const moelm_safetensors *file, json_t *weight_map, moe_error *error) {
    const char *name;
    json_t *value;
    json_object_foreach(weight_map, name, value) {
        if (!moelm_safetensors_find(file, name))
            return moei_error_set(error, MOE_ERR_INPUT, "%s: tensor %.120s is not in %s", file->name, name,
                                  json_string_value(value));
    }
    return MOE_OK;
}

static moe_status read_shards(moelm_safetensors *file, const char *const *names, const json_t *weight_map,
                              moe_error *error) {
    char *dir = moelm_path_parent(file->name);
    moe_status status = dir ? MOE_OK : no_memory(file->name, error);
    for (size_t i = 0; i < file->n_shards && status == MOE_OK; i++) {
        size_t first = file->n_tensors;
        char *path = moelm_path_join(dir, names[i]);
        status = path ? map_shard(file, path, &file->shards[i], error) : no_memory(file->name, error);
        if (status == MOE_OK) status = check_shard(file, first, names[i], weight_map, error);
        free(path);
    }
    free(dir);
    return status;
}

static moe_status open_index(const char *path, moelm_safetensors **file, moe_error *error) {
    json_t *root = NULL, *weight_map = NULL;
    const char **names = NULL;
    size_t n_shards = 0;
    moelm_safetensors *made = NULL;
    MOEI_TRY(moelm_json_load(path, &root, error));
    moe_status status = moelm_json_get_object(root, path, "weight_map", &weight_map, error);
    if (status == MOE_OK) status = shard_names(path, weight_map, &names, &n_shards, error);
    if (status == MOE_OK && !(made = make_file(path, n_shards))) status = no_memory(path, error);
    if (status == MOE_OK) status = read_shards(made, names, weight_map, error);
    if (status == MOE_OK) status = sort_names(made, error);
    if (status == MOE_OK) status = check_complete(made, weight_map, error);
    free(names);
    json_decref(root);
    return made ? hand_out(made, status, file) : status;
}

static moe_status open_dir(const char *dir, moelm_safetensors **file, moe_error *error) {
    char *whole = moelm_path_join(dir, "model.safetensors");
    char *index = moelm_path_join(dir, "model.safetensors.index.json");
    moe_status status;
    if (!whole || !index)
        status = no_memory(dir, error);
    else if (moelm_file_exists(whole) || moelm_file_exists(index))
        status = moelm_safetensors_open(moelm_file_exists(whole) ? whole : index, file, error);
    else
        status = moei_error_set(error, MOE_ERR_INPUT,
                                "%s: holds neither model.safetensors nor model.safetensors.index.json", dir);
    free(whole);
    free(index);
    return status;
}

moe_status moelm_safetensors_open(const char *path, moelm_safetensors **file, moe_error *error) {
    size_t length = strlen(path);
    if (moelm_dir_exists(path)) return open_dir(path, file, error);
    if (length > 5 && strcmp(path + length - 5, ".json") == 0) return open_index(path, file, error);
    moelm_safetensors *made = make_file(path, 1);
    if (!made) return no_memory(path, error);
    moe_status status = map_shard(made, path, &made->shards[0], error);
    if (status == MOE_OK) status = sort_names(made, error);
    return hand_out(made, status, file);
}

/* 5. Access. */

size_t moelm_safetensors_count(const moelm_safetensors *file) {
    return file->n_tensors;
}

const moelm_st_tensor *moelm_safetensors_at(const moelm_safetensors *file, size_t index) {
    return &file->tensors[index];
}

const moelm_st_tensor *moelm_safetensors_find(const moelm_safetensors *file, const char *name) {
    const moelm_st_tensor wanted = {.name = name}, *key = &wanted;
    const moelm_st_tensor **found =
        bsearch(&key, file->by_name, file->n_tensors, sizeof *file->by_name, compare_names);
    return found ? *found : NULL;
}

static void shape_text(char *text, size_t size, int32_t n_dim, const int64_t *dim) {
    int used = snprintf(text, size, "[");
    for (int32_t i = 0; i < n_dim && used > 0 && (size_t)used < size; i++)
        used += snprintf(text + used, size - (size_t)used, "%s%" PRId64, i > 0 ? ", " : "", dim[i]);
    if (used > 0 && (size_t)used < size) snprintf(text + used, size - (size_t)used, "]");
}

moe_status moelm_safetensors_get(const moelm_safetensors *file, const char *name, int32_t n_dim,
                                 const int64_t *dim, const moelm_st_tensor **tensor, moe_error *error) {
    const moelm_st_tensor *found = moelm_safetensors_find(file, name);
    if (!found) return moei_error_set(error, MOE_ERR_INPUT, "%s: has no tensor %s", file->name, name);
    bool same = found->n_dim == n_dim;
    for (int32_t i = 0; same && i < n_dim; i++) same = found->dim[i] == dim[i];
    if (!same) {
        char has[100], needed[100];
        shape_text(has, sizeof has, found->n_dim, found->dim);
        shape_text(needed, sizeof needed, n_dim, dim);
        return moei_error_set(error, MOE_ERR_INPUT, "%s: tensor %s has the shape %s, %s is needed",
                              file->name, name, has, needed);
    }
    *tensor = found;
    return MOE_OK;
}

const moelm_file_map *moelm_safetensors_map(const moelm_safetensors *file, const moelm_st_tensor *tensor) {
    const unsigned char *at = tensor->data;
    for (size_t i = 0; i < file->n_shards; i++) {
        const moelm_file_map *map = &file->shards[i].map;
        if (map->bytes > 0 && at >= map->data && at < map->data + map->bytes) return map;
    }
    return NULL;
}

size_t moelm_safetensors_metadata_count(const moelm_safetensors *file) {
    return file->n_metadata;
}

moelm_st_pair moelm_safetensors_metadata_at(const moelm_safetensors *file, size_t index) {
    return file->metadata[index];
}

const char *moelm_safetensors_metadata(const moelm_safetensors *file, const char *key) {
    for (size_t i = 0; i < file->n_metadata; i++)
        if (strcmp(file->metadata[i].key, key) == 0) return file->metadata[i].value;
    return NULL;
}
