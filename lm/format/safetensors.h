/* safetensors.h: named tensors on disk: u64 header length, JSON header, bytes in little-endian order.
 * Files are mapped, never copied; every offset is checked before a tensor is handed out.
 * Format: the safetensors format description of Hugging Face, with its limit of 100 MB a header. */
#ifndef MOEI_SAFETENSORS_H
#define MOEI_SAFETENSORS_H

#include <moekit/moe.h>

enum { MOEI_ST_MAX_HEADER = 100000000, MOEI_ST_MAX_DIM = 8 };

typedef enum moei_st_dtype {
    MOEI_ST_F64 = 0,
    MOEI_ST_F32,
    MOEI_ST_F16,
    MOEI_ST_BF16,
    MOEI_ST_I64,
    MOEI_ST_I32,
    MOEI_ST_I16,
    MOEI_ST_I8,
    MOEI_ST_U64,
    MOEI_ST_U32,
    MOEI_ST_U16,
    MOEI_ST_U8,
    MOEI_ST_BOOL,
    MOEI_ST_F8_E4M3,
    MOEI_ST_F8_E5M2
} moei_st_dtype;
const char *moei_st_dtype_name(moei_st_dtype dtype); /* as in the header: "BF16" */
size_t moei_st_dtype_bytes(moei_st_dtype dtype);

typedef struct moei_st_tensor {
    const char *name;
    moei_st_dtype dtype;
    int32_t n_dim; /* 0: a scalar */
    int64_t dim[MOEI_ST_MAX_DIM];
    const void *data; /* row-major; in files of other programs not always aligned: read with memcpy */
    size_t bytes;     /* of data; set by the reader, worked out from dtype and dim by the writer */
} moei_st_tensor;

typedef struct moei_st_pair {
    const char *key, *value;
} moei_st_pair;

/* 1. Reading. What a file hands out is valid until it is closed. */
typedef struct moei_safetensors moei_safetensors;
/* path: a .safetensors file, a model.safetensors.index.json, or a directory that holds
 * model.safetensors or, else, model.safetensors.index.json. */
moe_status moei_safetensors_open(const char *path, moei_safetensors **file, moe_error *error);
/* From memory, which must outlive the file; name stands for the file in messages. */
moe_status moei_safetensors_parse(const char *name, const void *data, size_t bytes, moei_safetensors **file,
                                  moe_error *error);
void moei_safetensors_close(moei_safetensors *file);

size_t moei_safetensors_count(const moei_safetensors *file);
/* In the order of the data; shards in the order of their names. index < count. */
const moei_st_tensor *moei_safetensors_at(const moei_safetensors *file, size_t index);
const moei_st_tensor *moei_safetensors_find(const moei_safetensors *file, const char *name); /* NULL: none */
/* find, with a clear MOE_ERR_INPUT where the tensor is missing or its shape is another. */
moe_status moei_safetensors_get(const moei_safetensors *file, const char *name, int32_t n_dim,
                                const int64_t *dim, const moei_st_tensor **tensor, moe_error *error);

/* The __metadata__ map, of a sharded file that of its first shard. */
size_t moei_safetensors_metadata_count(const moei_safetensors *file);
moei_st_pair moei_safetensors_metadata_at(const moei_safetensors *file, size_t index);
const char *moei_safetensors_metadata(const moei_safetensors *file, const char *key); /* NULL: none */

/* 2. Writing: one file, replaced in one step (moei_file_writer), tensors in the order given. */
moe_status moei_safetensors_write(const char *path, const moei_st_tensor *tensors, size_t count,
                                  const moei_st_pair *metadata, size_t n_metadata, moe_error *error);

#endif
