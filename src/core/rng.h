/* rng.h: counter-based random words. The public calls are moe_random and moe_random_normal (op.h).
 * Kept free of state so that a draw depends on its key alone, never on who drew before.
 */
#ifndef MOEI_RNG_H
#define MOEI_RNG_H

#include "core/philox.h"
#include "core/thread.h"

#include <moekit/op.h>

/* Philox4x32 with 10 rounds: encrypts counter[4] under key[2] into out[4]. */
void moei_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* What moe_random_normal is asked for. */
typedef struct moei_normal {
    uint64_t seed;
    moe_purpose purpose;
    uint32_t layer;
    uint64_t step;
    moe_dtype dtype;
    void *x; /* [n] */
    int64_t n;
    double std;
} moei_normal;
enum { MOEI_NORMAL_BLOCK = 1 << 14 }; /* numbers: enough work for a task, and even */
/* Its numbers first .. end-1, into their places; first is even. */
void moei_normal_part(const moei_normal *draw, int64_t first, int64_t end);
/* All, on all threads: the same numbers. Not from inside a task. */
void moei_normal_draw(const moei_team *team, const moei_normal *draw);

#endif
