/* philox.h: Philox4x32-10 and the words of a draw, as one text for the host and for devices.
 * Counter: index (64 bit), step (64 bit); key: seed mixed with purpose and layer. The calls are in rng.h,
 * op.h. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#ifndef MOEI_PHILOX_H
#define MOEI_PHILOX_H

#include <stdint.h>

static inline void moei_philox_words(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
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

/* The key has 64 bits for seed, purpose and layer: one round of Philox folds them. */
typedef struct moei_stream {
    uint32_t key[4]; /* of which Philox takes two words */
} moei_stream;
static inline moei_stream moei_stream_of(uint64_t seed, uint32_t purpose, uint32_t layer) {
    const uint32_t fold[4] = {purpose, layer, 0x6d6f656bu, 0x69740001u};
    const uint32_t seed_key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    moei_stream stream;
    moei_philox_words(fold, seed_key, stream.key);
    return stream;
}

static inline void moei_stream_words(const moei_stream *stream, uint64_t step, uint64_t index,
                                     uint32_t out[4]) {
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)step,
                                 (uint32_t)(step >> 32)};
    moei_philox_words(counter, stream->key, out);
}

static inline void moei_random_words(uint64_t seed, uint32_t purpose, uint32_t layer, uint64_t step,
                                     uint64_t index, uint32_t out[4]) {
    const moei_stream stream = moei_stream_of(seed, purpose, layer);
    moei_stream_words(&stream, step, index, out);
}

/* Uniform in (0, 1): never 0, so its logarithm exists. */
static inline double moei_uniform(uint32_t word) {
    return ((double)word + 0.5) * (1.0 / 4294967296.0);
}

#endif
