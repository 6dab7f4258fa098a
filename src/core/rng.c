/* rng.c: Philox4x32-10 and the draws made from it.
 * Counter: index (64 bit), step (64 bit); key: seed mixed with purpose and layer.
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#include "core/rng.h"

#include "core/philox.h"

#include "core/real.h"

#include <moekit/op.h>

#include <math.h>
#include <string.h>

void moei_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    moei_philox_words(counter, key, out);
}

void moe_random(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step, uint64_t index,
                uint32_t out[4]) {
    if (!out) return;
    moei_random_words(seed, (uint32_t)purpose, layer, step, index, out);
}

void moe_random_normal(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step, moe_dtype dtype,
                       void *x, int64_t n, double std) {
    if (!x) return;
    if (std == 0) {
        if (n > 0) memset(x, 0, (size_t)n * moe_dtype_bytes(dtype));
        return;
    }
    const double two_pi = 6.283185307179586476925287;
    for (int64_t i = 0; i < n; i += 2) {
        uint32_t word[4];
        moe_random(seed, purpose, layer, step, (uint64_t)i / 2, word);
        double radius = std * sqrt(-2.0 * log(moei_uniform(word[0])));
        double pair[2] = {radius * cos(two_pi * moei_uniform(word[1])),
                          radius * sin(two_pi * moei_uniform(word[1]))};
        for (int64_t j = 0; j < 2 && i + j < n; ++j) moei_real_store(dtype, x, i + j, pair[j]);
    }
}
