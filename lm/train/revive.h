/* revive.h: gives a dead expert another life: as a noised copy of one that is at work.
 */
#ifndef MOELM_REVIVE_H
#define MOELM_REVIVE_H

#include "train/optimizer.h"

/* What is revived, and of what. */
typedef struct moelm_revival {
    int32_t layer, n_experts;
    int32_t dead, from;
    uint64_t seed;
    int64_t step; /* with the seed, keys the noise */
} moelm_revival;

/* Parameters and buffers of the expert, its row of the router included, become those of `from`; matrices get
 * noise of a hundredth of their size; moments start at zero. */
void moelm_revive(const moelm_optimizer *optimizer, const moelm_revival *revival);

#endif
