/* amx_emulated.h: the AMX instructions that the kernels use, in software, included before a kernel's own
 * text: so that its packing, edges and tiles are tested where there is no AMX. Shapes are checked as the
 * processor does. Source: Intel 64 and IA-32 Architectures Software Developer's Manual; sums here run in
 * order of k.
 */
#ifndef AMX_EMULATED_H
#define AMX_EMULATED_H

#include <assert.h>
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct emulated_tile {
    int rows; /* of 64 bytes */
    uint32_t cell[16][16];
} emulated_tile;
static _Thread_local emulated_tile emulated[8];

static inline void emulated_config(const void *config) {
    const unsigned char *bytes = config;
    assert(bytes[0] == 1); /* palette */
    for (int t = 0; t < 8; ++t) {
        emulated[t].rows = bytes[48 + t];
        assert(bytes[16 + 2 * t] == 64 && bytes[17 + 2 * t] == 0);
        assert(emulated[t].rows >= 1 && emulated[t].rows <= 16);
        memset(emulated[t].cell, 0, sizeof emulated[t].cell);
    }
}

static inline void emulated_release(void) {
    for (int t = 0; t < 8; ++t) emulated[t].rows = 0;
}

static inline void emulated_zero(int t) {
    assert(emulated[t].rows > 0);
    memset(emulated[t].cell, 0, sizeof emulated[t].cell);
}

static inline void emulated_load(int t, const void *base, ptrdiff_t stride) {
    emulated_zero(t);
    for (int i = 0; i < emulated[t].rows; ++i)
        memcpy(emulated[t].cell[i], (const char *)base + i * stride, 64);
}

static inline void emulated_store(int t, void *base, ptrdiff_t stride) {
    assert(emulated[t].rows > 0);
    for (int i = 0; i < emulated[t].rows; ++i) memcpy((char *)base + i * stride, emulated[t].cell[i], 64);
}

static inline float emulated_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void emulated_product(int c, int a, int b) {
    assert(emulated[c].rows == emulated[a].rows && emulated[b].rows == 16);
    for (int i = 0; i < emulated[c].rows; ++i) {
        for (int k = 0; k < 16; ++k) {
            const uint32_t x = emulated[a].cell[i][k];
            for (int j = 0; j < 16; ++j) {
                const uint32_t y = emulated[b].cell[k][j];
                float sum = emulated_float(emulated[c].cell[i][j]);
                sum += emulated_float(x << 16) * emulated_float(y << 16);
                sum += emulated_float(x & 0xffff0000u) * emulated_float(y & 0xffff0000u);
                memcpy(&emulated[c].cell[i][j], &sum, sizeof sum);
            }
        }
    }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config)         emulated_config(config)
#define _tile_release()                  emulated_release()
#define _tile_zero(tile)                 emulated_zero(tile)
#define _tile_loadd(tile, base, stride)  emulated_load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b)          emulated_product(c, a, b)

#endif
