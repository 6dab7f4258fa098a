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

/* Box-Muller: a pair of numbers for two words. The key of the stream is folded once. */
void moei_normal_part(const moei_normal *draw, int64_t first, int64_t end) {
    const double two_pi = 6.283185307179586476925287;
    if (draw->std == 0) {
        memset(moei_real_at(draw->dtype, draw->x, first), 0,
               (size_t)(end - first) * moe_dtype_bytes(draw->dtype));
        return;
    }
    const moei_stream stream = moei_stream_of(draw->seed, (uint32_t)draw->purpose, draw->layer);
    for (int64_t i = first; i < end; i += 2) {
        uint32_t word[4];
        moei_stream_words(&stream, draw->step, (uint64_t)i / 2, word);
        double radius = draw->std * sqrt(-2.0 * log(moei_uniform(word[0])));
        double pair[2] = {radius * cos(two_pi * moei_uniform(word[1])),
                          radius * sin(two_pi * moei_uniform(word[1]))};
        for (int64_t j = 0; j < 2 && i + j < end; ++j) moei_real_store(draw->dtype, draw->x, i + j, pair[j]);
    }
}

static void draw_block(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    moei_normal_part(arg, first, end);
}

void moei_normal_draw(const moei_team *team, const moei_normal *draw) {
    moei_normal mine = *draw;
    moei_parallel_blocks(team, draw->n, MOEI_NORMAL_BLOCK, draw_block, &mine);
}

void moe_random_normal(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step, moe_dtype dtype,
                       void *x, int64_t n, double std) {
    const moei_normal draw = {seed, purpose, layer, step, dtype, x, n, std};
    if (x && n > 0) moei_normal_part(&draw, 0, n);
}
