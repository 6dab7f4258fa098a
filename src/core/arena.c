/* arena.c: bump allocation inside one block.
 * Every piece starts on its own cache line, so threads that write neighbours do not share one.
 * Source: zstd's cwksp and NCCL EP's "size query, then one buffer".
 */
#include "core/arena.h"

void *moei_arena_take(moei_arena *arena, size_t bytes) {
    const size_t align = bytes < MOEI_LARGE ? MOEI_ALIGN : MOEI_ALIGN_LARGE;
    const size_t start = (arena->used + align - 1) / align * align;
    arena->used = start + (bytes + MOEI_ALIGN - 1) / MOEI_ALIGN * MOEI_ALIGN;
    return arena->base ? arena->base + start : NULL;
}

void *moei_arena_array(moei_arena *arena, int64_t rows, int64_t cols, size_t element) {
    return moei_arena_take(arena, (size_t)rows * (size_t)cols * element);
}
