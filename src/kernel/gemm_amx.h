/* gemm_amx.h: the state of AMX tile registers: eight tiles of 16 rows of 64 bytes.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, LDTILECFG and TILERELEASE.
 */
#ifndef MOEI_GEMM_AMX_H
#define MOEI_GEMM_AMX_H

#include <immintrin.h>
#include <stdint.h>

/* GCC 12 does not know that tile instructions touch memory, and may move what others store past them. */
static inline void tiles_see_memory(void) {
    __asm__ volatile("" ::: "memory");
}

/* All tiles but number 3, which is B's, have `rows` rows if these are fewer than sixteen: a product of few
 * rows costs no more. Configured by each task: it is as cheap as asking whether it was done, and a thread
 * that does not multiply keeps no tile state that a context switch must save. */
static inline void tiles_begin(int64_t rows) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t)(i != 3 && rows < 16 ? rows : 16);
    }
    tiles_see_memory();
    _tile_loadconfig(&config);
}

static inline void tiles_end(void) {
    _tile_release();
}

#endif
