/* baselines.h: what general compressors make of a text, to stand beside a model's bits per byte.
 */
#ifndef MOEKIT_BASELINES_H
#define MOEKIT_BASELINES_H

#include "cli.h"

enum { BASELINES = 3 };

typedef struct baselines {
    moe_lm_baseline found[BASELINES]; /* those that ran */
    size_t n_found;
    const char *absent[BASELINES]; /* those not on PATH, or that failed */
    size_t n_absent;
} baselines;

/* Runs gzip -9, bzip2 -9 and xz -9 on the file and counts the bytes they write. */
void baselines_measure(const char *path, int64_t n_bytes, baselines *result);

#endif
