/* safetensors.h: named tensors on disk: u64 header length, JSON header, bytes in little-endian order.
 * Files are mapped, never copied; every offset is checked before a tensor is handed out.
 * Format: the safetensors format description of Hugging Face, with its limit of 100 MB a header. */
#ifndef MOELM_SAFETENSORS_H
#define MOELM_SAFETENSORS_H

#include <moekit/moe.h>

#include "format/file.h"

enum { MOELM_ST_MAX_HEADER = 100000000, MOELM_ST_MAX_DIM = 8 };

typedef enum moelm_st_dtype {
    MOELM_ST_F64 = 0,
    MOELM_ST_F32,
    MOELM_ST_F16,
    MOELM_ST_BF16,
    MOELM_ST_I64,
    MOELM_ST_I32,
    MOELM_ST_I16,
    MOELM_ST_I8,
    MOELM_ST_U64,
    MOELM_ST_U32,
    MOELM_ST_U16,
    MOELM_ST_U8,
    MOELM_ST_BOOL,
    MOELM_ST_F8_E4M3,
    MOELM_ST_F8_E5M2
} moelm_st_dtype;
const char *moelm_st_dtype_name(moelm_st_dtype dtype); /* as in the header: "BF16" */
size_t moelm_st_dtype_bytes(moelm_st_dtype dtype);

typedef struct moelm_st_tensor {
    const char *name;
    moelm_st_dtype dtype;
    int32_t n_dim; /* 0: a scalar */
    int64_t dim[MOELM_ST_MAX_DIM];
    const void *data; /* row-major; in files of other programs not always aligned: read with memcpy */
    size_t bytes;     /* of data; set by the reader, worked out from dtype and dim by the writer */
} moelm_st_tensor;

typedef struct moelm_st_pair {
    const char *key, *value;
} moelm_st_pair;

/* 1. Reading. What a file hands out is valid until it is closed. */
typedef struct moelm_safetensors moelm_safetensors;
/* path: a .safetensors file, a model.safetensors.index.json, or a directory that holds
 * model.safetensors or, else, model.safetensors.index.json. */
moe_status moelm_safetensors_open(const char *path, moelm_safetensors **file, moe_error *error);
/* From memory, which must outlive the file; name stands for the file in messages. */
moe_status moelm_safetensors_parse(const char *name, const void *data, size_t bytes, moelm_safetensors **file,
                                   moe_error *error);
void moelm_safetensors_close(moelm_safetensors *file);

size_t moelm_safetensors_count(const moelm_safetensors *file);
/* In the order of the data; shards in the order of their names. index < count. */
const moelm_st_tensor *moelm_safetensors_at(const moelm_safetensors *file, size_t index);
const moelm_st_tensor *moelm_safetensors_find(const moelm_safetensors *file,
                                              const char *name); /* NULL: none */
/* find, with a clear MOE_ERR_INPUT where the tensor is missing or its shape is another. */
moe_status moelm_safetensors_get(const moelm_safetensors *file, const char *name, int32_t n_dim,
                                 const int64_t *dim, const moelm_st_tensor **tensor, moe_error *error);

/* The map that a tensor's data lies in, for hints to the system; NULL where the caller owns the bytes. */
const moelm_file_map *moelm_safetensors_map(const moelm_safetensors *file, const moelm_st_tensor *tensor);

/* The __metadata__ map, of a sharded file that of its first shard. */
size_t moelm_safetensors_metadata_count(const moelm_safetensors *file);
moelm_st_pair moelm_safetensors_metadata_at(const moelm_safetensors *file, size_t index);
const char *moelm_safetensors_metadata(const moelm_safetensors *file, const char *key); /* NULL: none */

/* 2. Writing: one file, replaced in one step (moelm_file_writer), tensors in the order given. */
moe_status moelm_safetensors_write(const char *path, const moelm_st_tensor *tensors, size_t count,
                                   const moelm_st_pair *metadata, size_t n_metadata, moe_error *error);
/* The same where not all data is there at once: that of tensor `index` is asked for when it is its turn, and
 * is read before the next is asked for. moelm_st_tensor.data is not looked at. */
typedef struct moelm_st_source {
    const void *(*data_of)(void *user, size_t index);
    void *user;
} moelm_st_source;
moe_status moelm_safetensors_write_from(const char *path, const moelm_st_tensor *tensors, size_t count,
                                        const moelm_st_pair *metadata, size_t n_metadata,
                                        const moelm_st_source *source, moe_error *error);

#endif
