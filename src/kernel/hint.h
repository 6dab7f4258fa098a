/* hint.h: what kernels of every instruction set tell the compiler and the caches.
 * Shapes: none.
 * Source: GCC's manual; the line of every machine that kernels are written for.
 */
#ifndef MOEI_HINT_H
#define MOEI_HINT_H

/* For bodies that are compiled once for each value of a parameter. */
#define MOEI_INLINE static inline __attribute__((always_inline))

/* Arrays of vectors stay in registers only where loops over them are unrolled early on. */
#define MOEI_UNROLL _Pragma("GCC unroll 16")

enum { LINE = 64 /* bytes of a cache line */ };

#endif
