/* determinism.h: does a layer give the same bits for any number of threads, in every run, and for a token
 * whoever stands beside it in the batch, where its neighbours have no say by the layer's own rules?
 */
#ifndef MOEKIT_DETERMINISM_H
#define MOEKIT_DETERMINISM_H

#include <moekit/moe.h>

enum { DETERMINISM_ROWS = 8 };

typedef struct determinism_row {
    char what[64];
    bool equal;
    char where[96]; /* the first number that differs */
} determinism_row;

typedef struct determinism_result {
    int32_t n_rows;
    determinism_row row[DETERMINISM_ROWS];
    bool equal;            /* all of them */
    const char *not_alone; /* why a token alone was not compared with it in the batch; NULL: it was */
} determinism_result;

typedef struct determinism_options {
    int64_t n_tokens;
    moe_dtype dtype;      /* MOE_F32 or MOE_BF16 */
    const char *isa;      /* NULL: the context's choice */
    const moe_call *call; /* of the forwards; a training call */
    uint64_t seed;
} determinism_options;

/* Compares y, dx and every gradient of runs of the descriptor with those of one thread. */
moe_status determinism_check_layer(const moe_layer_desc *desc, const determinism_options *options,
                                   determinism_result *result, moe_error *error);

#endif
