/* rng.h: counter-based random words. The public calls are moe_random and moe_random_normal (op.h).
 * Kept free of state so that a draw depends on its key alone, never on who drew before.
 */
#ifndef MOEI_RNG_H
#define MOEI_RNG_H

#include "core/philox.h"

/* Philox4x32 with 10 rounds: encrypts counter[4] under key[2] into out[4]. */
void moei_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
