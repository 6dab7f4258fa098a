/* arena.h: one block, measured first and carved second. The same carving code runs twice: on an arena
 * without memory it only counts, on one with memory it hands out pointers.
 */
#ifndef MOEI_ARENA_H
#define MOEI_ARENA_H

#include <stddef.h>
#include <stdint.h>

/* Arrays begin at cache lines; large ones at whole lines of a GPU's memory, whose blocks begin at one too. */
enum { MOEI_ALIGN = 64, MOEI_ALIGN_LARGE = 256, MOEI_LARGE = 1 << 16 };

typedef struct moei_arena {
    char *base; /* NULL: measuring */
    size_t used;
} moei_arena;

/* Next `bytes` of the arena, aligned; NULL while measuring. */
void *moei_arena_take(moei_arena *arena, size_t bytes);

/* The same for [rows, cols] of `element` bytes. */
void *moei_arena_array(moei_arena *arena, int64_t rows, int64_t cols, size_t element);

#endif
