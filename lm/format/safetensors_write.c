/* safetensors_write.c: named tensors written to one file.
 * u64 header length, JSON header padded with spaces so that data starts 8-byte aligned, then the bytes as
 * they are in memory (little-endian machines). Source: the safetensors format description of Hugging Face. */
#include "format/safetensors.h"

#include "core/status.h"
#include "format/file.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static moe_status refuse(const char *path, const char *tensor, const char *what, moe_error *error) {
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: tensor %.120s: %s", path, tensor, what);
}

static moe_status tensor_bytes(const char *path, const moelm_st_tensor *tensor, uint64_t *bytes,
                               moe_error *error) {
    uint64_t product = moelm_st_dtype_bytes(tensor->dtype);
    if (product == 0) return refuse(path, tensor->name, "unknown dtype", error);
    if (tensor->n_dim < 0 || tensor->n_dim > MOELM_ST_MAX_DIM)
        return refuse(path, tensor->name, "0 to 8 dimensions can be written", error);
    for (int32_t i = 0; i < tensor->n_dim; i++) {
        if (tensor->dim[i] < 0 || __builtin_mul_overflow(product, (uint64_t)tensor->dim[i], &product))
            return refuse(path, tensor->name, "its shape is negative or overflows", error);
    }
    *bytes = product;
    return MOE_OK;
}

/* Adds one entry to the header, whose data runs from `begin` to *end. */
static moe_status add_tensor(const char *path, json_t *header, const moelm_st_tensor *tensor, uint64_t begin,
                             uint64_t *end, moe_error *error) {
    uint64_t bytes = 0;
    if (!tensor->name || strcmp(tensor->name, "__metadata__") == 0)
        return refuse(path, tensor->name ? tensor->name : "(null)", "cannot have this name", error);
    if (json_object_get(header, tensor->name)) return refuse(path, tensor->name, "was given twice", error);
    MOEI_TRY(tensor_bytes(path, tensor, &bytes, error));
    if (__builtin_add_overflow(begin, bytes, end) || *end > INT64_MAX)
        return refuse(path, tensor->name, "the file would be too large", error);
    json_t *shape = json_array();
    for (int32_t i = 0; i < tensor->n_dim; i++) json_array_append_new(shape, json_integer(tensor->dim[i]));
    json_t *info = json_pack("{s:s, s:o, s:[I, I]}", "dtype", moelm_st_dtype_name(tensor->dtype), "shape",
                             shape, "data_offsets", (json_int_t)begin, (json_int_t)*end);
    if (json_object_set_new(header, tensor->name, info) == 0) return MOE_OK;
    return refuse(path, tensor->name, "its name is not UTF-8, or memory is short", error);
}

static moe_status add_metadata(const char *path, json_t *header, const moelm_st_pair *metadata,
                               size_t n_metadata, moe_error *error) {
    json_t *map = json_object();
    if (n_metadata == 0) {
        json_decref(map);
        return MOE_OK;
    }
    int result = 0;
    for (size_t i = 0; i < n_metadata && result == 0; i++)
        result = json_object_set_new(map, metadata[i].key, json_string(metadata[i].value));
    if (result == 0 && json_object_size(map) == n_metadata)
        return json_object_set_new(header, "__metadata__", map) == 0
                   ? MOE_OK
                   : moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    json_decref(map);
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: metadata must be UTF-8 and each key different", path);
}

/* The header as text, padded so that 8 + length is a multiple of 8; *data_bytes follow it. */
static moe_status make_header(const char *path, const moelm_st_tensor *tensors, size_t count,
                              const moelm_st_pair *metadata, size_t n_metadata, char **text,
                              uint64_t *data_bytes, moe_error *error) {
    json_t *header = json_object();
    if (!header) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    uint64_t end = 0;
    moe_status status = add_metadata(path, header, metadata, n_metadata, error);
    for (size_t i = 0; i < count && status == MOE_OK; i++)
        status = add_tensor(path, header, &tensors[i], end, &end, error);
    char *compact = status == MOE_OK ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    if (status != MOE_OK) return status;
    size_t length = compact ? strlen(compact) : 0, padded = (length + 7) / 8 * 8;
    char *grown = compact ? realloc(compact, padded + 1) : NULL;
    if (!grown) {
        free(compact);
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    }
    memset(grown + length, ' ', padded - length);
    grown[padded] = '\0';
    *text = grown;
    *data_bytes = end;
    return MOE_OK;
}

/* Of a tensor whose shape has been checked. */
static size_t checked_bytes(const moelm_st_tensor *tensor) {
    size_t bytes = moelm_st_dtype_bytes(tensor->dtype);
    for (int32_t i = 0; i < tensor->n_dim; i++) bytes *= (size_t)tensor->dim[i];
    return bytes;
}

static moe_status put_all(moelm_file_writer *writer, const char *header, const moelm_st_tensor *tensors,
                          size_t count, const moelm_st_source *source, moe_error *error) {
    uint64_t length = strlen(header);
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)(length >> 8 * i);
    MOEI_TRY(moelm_file_writer_put(writer, prefix, sizeof prefix, error));
    MOEI_TRY(moelm_file_writer_put(writer, header, (size_t)length, error));
    for (size_t i = 0; i < count; i++)
        MOEI_TRY(moelm_file_writer_put(writer, source->data_of(source->user, i), checked_bytes(&tensors[i]),
                                       error));
    return MOE_OK;
}

moe_status moelm_safetensors_write_from(const char *path, const moelm_st_tensor *tensors, size_t count,
                                        const moelm_st_pair *metadata, size_t n_metadata,
                                        const moelm_st_source *source, moe_error *error) {
    char *header = NULL;
    uint64_t data_bytes = 0;
    MOEI_TRY(make_header(path, tensors, count, metadata, n_metadata, &header, &data_bytes, error));
    moelm_file_writer *writer = NULL;
    moe_status status = MOE_OK;
    if (strlen(header) > MOELM_ST_MAX_HEADER)
        status = moei_error_set(error, MOE_ERR_ARGUMENT, "%s: its header would be longer than 100 MB", path);
    if (status == MOE_OK)
        status = moelm_file_writer_open(path, 8 + strlen(header) + data_bytes, &writer, error);
    if (status == MOE_OK) status = put_all(writer, header, tensors, count, source, error);
    free(header);
    if (status == MOE_OK) return moelm_file_writer_commit(writer, error);
    moelm_file_writer_abort(writer);
    return status;
}

static const void *own_data(void *user, size_t index) {
    return ((const moelm_st_tensor *)user)[index].data;
}

moe_status moelm_safetensors_write(const char *path, const moelm_st_tensor *tensors, size_t count,
                                   const moelm_st_pair *metadata, size_t n_metadata, moe_error *error) {
    const moelm_st_source source = {own_data, (void *)(uintptr_t)tensors};
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = 0;
        if (tensors[i].data || !tensors[i].name) continue;
        MOEI_TRY(tensor_bytes(path, &tensors[i], &bytes, error));
        if (bytes > 0) return refuse(path, tensors[i].name, "has no data", error);
    }
    return moelm_safetensors_write_from(path, tensors, count, metadata, n_metadata, &source, error);
}
