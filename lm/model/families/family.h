/* family.h: a checkpoint family: what its config.json says and what its tensors are called.
 * A slice is one tensor of the file and where its numbers stand in the model.
 * Source: Hugging Face's layout: config.json beside safetensors, weights stored [out, in].
 */
#ifndef MOELM_FAMILY_H
#define MOELM_FAMILY_H

#include "format/json.h"
#include "format/safetensors.h"
#include "model/model.h"

/* Element (i, j) of the file's [rows, cols] is value[i * row_step + j * col_step]. A tensor of three
 * dimensions has the product of the first two as its rows, one of a single dimension one row. Of a model of
 * shapes alone value is NULL. */
typedef struct moelm_slice {
    char name[MOELM_NAME];
    int32_t n_dim;
    int64_t dim[3];
    void *value;
    moe_dtype dtype;
    int64_t row_step, col_step;
} moelm_slice;

/* slice.c */
int64_t moelm_slice_numbers(const moelm_slice *slice);
moelm_st_dtype moelm_slice_type(const moelm_slice *slice); /* its numbers as a file has them */
/* Whether the model has the numbers as the file has, one behind the other. */
bool moelm_slice_is_plain(const moelm_slice *slice);
/* Into the model, from a tensor of the slice's shape that is F32, BF16 or F16; and out of it, into numbers of
 * moelm_slice_type, which need not be aligned. Both on the context's threads. */
void moelm_slice_read(moe_ctx *ctx, const moelm_slice *slice, const moelm_st_tensor *tensor);
void moelm_slice_write(moe_ctx *ctx, const moelm_slice *slice, void *out);

typedef moe_status (*moelm_slice_fn)(void *user, const moelm_slice *slice);

/* The functions are given the family itself. */
typedef struct moelm_family moelm_family;
struct moelm_family {
    const char *model_type;
    bool (*fits)(const moelm_family *family, const moe_lm_config *config);
    /* config.json -> settings. Faults are MOE_ERR_INPUT, or MOE_ERR_UNSUPPORTED for what this cannot run: all
     * of that at once. */
    moe_status (*read)(const moelm_family *family, const json_t *root, moe_lm_config *config,
                       moe_error *error);
    /* Settings -> config.json; model_type is set already. */
    moe_status (*write)(const moelm_family *family, const moe_lm_config *config, json_t *root,
                        moe_error *error);
    /* Every tensor of one part of the file once, in its order. Parts are: 0 what stands before the blocks,
     * 1 .. n_layers a block each, n_layers + 1 what stands behind them. */
    moe_status (*visit)(const moelm_family *family, const moe_lm *lm, int32_t part, moelm_slice_fn fn,
                        void *user);
    const struct moelm_form *form; /* form.h; NULL: none */
};

extern const moelm_family moelm_family_mixtral;
extern const moelm_family moelm_family_qwen3_moe;
extern const moelm_family moelm_family_olmoe;
extern const moelm_family moelm_family_moekit; /* fits everything */

/* The family that a model of these settings is written as. */
const moelm_family *moelm_family_of(const moe_lm_config *config);
/* The whole way from a parsed config.json to settings that may make a model. */
moe_status moelm_family_read(const json_t *root, const moelm_family **family, moe_lm_config *config,
                             moe_error *error);
/* Sets one setting from a number or text of config.json. */
moe_status moelm_family_set(moe_lm_config *config, const char *key, const json_t *value, moe_error *error);
/* The setting as JSON, of its own type; NULL where there is no memory. */
json_t *moelm_family_value(const moe_lm_config *config, const char *key);
/* All parts, one after the other. */
moe_status moelm_family_visit(const moelm_family *family, const moe_lm *lm, moelm_slice_fn fn, void *user);
/* A parameter as it is: its own name and layout. */
moelm_slice moelm_family_whole(const char *name, const moe_param *param);

#endif
