/* rng.c: Philox4x32-10 and the draws made from it.
 * Counter: index (64 bit), step (64 bit); key: seed mixed with purpose and layer.
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#include "core/rng.h"

#include "core/real.h"

#include <moekit/op.h>

#include <math.h>

enum { ROUNDS = 10 };

void moei_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; ++round) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

void moe_random(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step, uint64_t index,
                uint32_t out[4]) {
    /* The key has 64 bits for seed, purpose and layer: one round of Philox folds them. */
    const uint32_t fold[4] = {(uint32_t)purpose, layer, 0x6d6f656bu, 0x69740001u};
    const uint32_t seed_key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t folded[4];
    moei_philox(fold, seed_key, folded);
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)step,
                                 (uint32_t)(step >> 32)};
    moei_philox(counter, folded, out);
}

void moe_random_normal(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step, moe_dtype dtype,
                       void *x, int64_t n, double std) {
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
