/* attention_tile.h: the two products that attention is made of, and rows in and out of the order they take.
 * Lanes: [columns][LANES] f32, column d of up to LANES rows is one run. Rows that pass by: [rows, columns],
 * f32 or bf16. block_product: c[row][lane]; block_outer: c[column][lane], a sum over rows. Include after
 * simd_*.h.
 */
#ifndef MOEI_ATTENTION_TILE_H
#define MOEI_ATTENTION_TILE_H

#include "kernel/kernel_list.h"

/* A product keeps TALL x TILE_VECS vectors of sums in registers: 8 x 2 of 32 in AVX-512, or 4 x 2. Two
 * vectors wide, what all of them read fits the nearest cache. */
enum { LANES = 64, BLOCK = LANES, VECS = LANES / VF_N, TILE_VECS = 2, TALL = VF_N == 16 ? 8 : 4 };
_Static_assert(VF_N % TALL == 0, "outer_tile takes TALL of columns that are padded to whole vectors");

/* Rows of a tensor, f32 or bf16: element (row, column) is number at + row * ld + column. */
typedef struct lane_rows {
    bool bf16;
    void *base;
    int64_t at, ld;
} lane_rows;

static int64_t whole_vectors(int64_t n) {
    return (n + VF_N - 1) / VF_N * VF_N;
}

/* Rows of f32, `ld` numbers apart, in whole vectors of rows and of columns; what is past the last is zero. */
typedef struct whole_rows {
    const float *x;
    int64_t ld;
} whole_rows;

static whole_rows copy_rows(lane_rows from, int64_t rows, int64_t columns, float *room) {
    const int64_t ld = whole_vectors(columns);
    for (int64_t r = 0; r < whole_vectors(rows); ++r)
        for (int64_t c = 0; c < columns; c += VF_N)
            vf_store(room + r * ld + c,
                     r < rows ? vf_get(from.bf16, from.base, from.at + r * from.ld + c, columns - c)
                              : vf_zero());
    return (whole_rows){room, ld};
}

/* Where they lie, if they are so, else a copy in `room`. */
static whole_rows pass_by(lane_rows x, int64_t rows, int64_t columns, float *room) {
    if (x.bf16 || rows % VF_N || columns % VF_N) return copy_rows(x, rows, columns, room);
    return (whole_rows){(const float *)x.base + x.at, x.ld};
}

/* to[c][r] = scale * from[r][c] */
static void pack_lanes(float *to, whole_rows from, int64_t rows, int64_t columns, float scale) {
    const vf factor = vf_set1(scale);
    vf square[VF_N];
    for (int64_t r = 0; r < rows; r += VF_N)
        for (int64_t c = 0; c < columns; c += VF_N) {
            for (int i = 0; i < VF_N; ++i)
                square[i] = vf_mul(vf_load(from.x + (r + i) * from.ld + c), factor);
            vf_transpose(square);
            for (int i = 0; i < VF_N; ++i) vf_store(to + (c + i) * LANES + r, square[i]);
        }
}

/* Asks for rows that are written at a task's end: each would then wait for its lines. */
static void ask_rows(lane_rows to, int64_t rows, int64_t columns) {
    const int64_t real = to.bf16 ? 2 : 4;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < columns * real; i += LINE)
            __builtin_prefetch((const char *)to.base + (to.at + r * to.ld) * real + i, 1, 2);
}

/* to[r][c] = scale[r] * from[c][r] */
static void unpack_lanes(lane_rows to, const float *from, int64_t rows, int64_t columns, const float *scale) {
    vf square[VF_N];
    float turned[VF_N][VF_N];
    for (int64_t r = 0; r < rows; r += VF_N)
        for (int64_t c = 0; c < columns; c += VF_N) {
            for (int i = 0; i < VF_N; ++i)
                square[i] = vf_mul(vf_load(from + (c + i) * LANES + r), vf_load(scale + r));
            vf_transpose(square);
            for (int i = 0; i < VF_N; ++i) vf_store(turned[i], square[i]);
            for (int64_t i = 0; i < moei_min(VF_N, rows - r); ++i)
                vf_put(to.bf16, to.base, to.at + (r + i) * to.ld + c, vf_load(turned[i]), columns - c);
        }
}

/* c[row][lane] = (c[row][lane] if add) + sum over steps, ascending, of x[row][step] * y[step][lane] */
MOEI_INLINE void product_tile(const int rows, const int vecs, const float *x, int64_t ldx, const float *y,
                              int64_t ld, int64_t steps, float *c, bool add) {
    vf sum[TALL][TILE_VECS];
    MOEI_UNROLL
    for (int r = 0; r < rows; ++r) {
        MOEI_UNROLL
        for (int v = 0; v < vecs; ++v) sum[r][v] = add ? vf_load(c + r * ld + v * VF_N) : vf_zero();
    }
    for (int64_t t = 0; t < steps; ++t, y += ld) {
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r) {
            vf one = vf_set1(x[r * ldx + t]);
            MOEI_UNROLL
            for (int v = 0; v < vecs; ++v) sum[r][v] = vf_fma(one, vf_load(y + v * VF_N), sum[r][v]);
        }
    }
    MOEI_UNROLL
    for (int r = 0; r < rows; ++r) {
        MOEI_UNROLL
        for (int v = 0; v < vecs; ++v) vf_store(c + r * ld + v * VF_N, sum[r][v]);
    }
}

/* Apart from the loops around it, or the compiler keeps more addresses than there are registers. */
static __attribute__((noinline)) void product_rows(int rows, int vecs, const float *x, int64_t ldx,
                                                   const float *y, int64_t ld, int64_t steps, float *c,
                                                   bool add) {
    if (vecs == TILE_VECS && rows == TALL)
        product_tile(TALL, TILE_VECS, x, ldx, y, ld, steps, c, add);
    else if (vecs == 1 && rows == TALL)
        product_tile(TALL, 1, x, ldx, y, ld, steps, c, add);
    else
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < vecs; ++v)
                product_tile(1, 1, x + r * ldx, ldx, y + v * VF_N, ld, steps, c + r * ld + v * VF_N, add);
}

/* The same over any number of rows and vectors of lanes. */
static void block_product(const float *x, int64_t ldx, int64_t rows, const float *y, int64_t ld,
                          int64_t steps, float *c, bool add, int64_t vecs) {
    for (int64_t v = 0, n; v < vecs; v += n) {
        n = vecs - v >= TILE_VECS ? TILE_VECS : 1;
        for (int64_t r = 0, tall; r < rows; r += tall) {
            tall = moei_min(TALL, rows - r);
            product_rows((int)tall, (int)n, x + r * ldx, ldx, y + v * VF_N, ld, steps, c + r * ld + v * VF_N,
                         add);
        }
    }
}

/* Where a block crosses the diagonal a vector of lanes takes not all rows that pass by: if lanes are queries
 * those up to stop[v] (`falling`: later rows concern fewer of them), if they are keys those from stop[v-1]
 * on. */
typedef struct stairs {
    bool falling;
    int64_t rows, stop[VECS];
} stairs;

/* c[column][lane] += sum over the rows that a lane takes, ascending, of x[row][column] * y[row][lane]; TALL
 * columns, vectors v .. v+vecs-1. */
MOEI_INLINE void outer_tile(const bool falling, const int vecs, const stairs *of, int64_t v, const float *x,
                            int64_t ldx, const float *y, float *c) {
    vf sum[TALL][TILE_VECS];
    int64_t row = falling || v == 0 ? 0 : of->stop[v - 1];
    MOEI_UNROLL
    for (int i = 0; i < TALL; ++i) {
        MOEI_UNROLL
        for (int j = 0; j < vecs; ++j) sum[i][j] = vf_load(c + i * LANES + j * VF_N);
    }
    MOEI_UNROLL
    for (int stair = 0; stair < vecs; ++stair) {
        const int from = falling ? stair : 0, to = falling ? vecs : stair + 1;
        const int64_t stop = falling || to < vecs ? of->stop[v + stair] : of->rows;
        for (; row < stop; ++row) {
            MOEI_UNROLL
            for (int i = 0; i < TALL; ++i) {
                vf one = vf_set1(x[row * ldx + i]);
                MOEI_UNROLL
                for (int j = from; j < to; ++j)
                    sum[i][j] = vf_fma(one, vf_load(y + row * LANES + j * VF_N), sum[i][j]);
            }
        }
    }
    MOEI_UNROLL
    for (int i = 0; i < TALL; ++i) {
        MOEI_UNROLL
        for (int j = 0; j < vecs; ++j) vf_store(c + i * LANES + j * VF_N, sum[i][j]);
    }
}

/* The same over any number of columns and vectors of lanes. */
MOEI_INLINE void outer_lanes(const bool falling, whole_rows x, int64_t columns, const float *y, float *c,
                             const stairs *of, int64_t vecs) {
    for (int64_t v = 0, n; v < vecs; v += n, y += n * VF_N, c += n * VF_N) {
        n = vecs - v >= TILE_VECS ? TILE_VECS : 1;
        for (int64_t i = 0; n == TILE_VECS && i < columns; i += TALL)
            outer_tile(falling, TILE_VECS, of, v, x.x + i, x.ld, y, c + i * LANES);
        for (int64_t i = 0; n == 1 && i < columns; i += TALL)
            outer_tile(falling, 1, of, v, x.x + i, x.ld, y, c + i * LANES);
    }
}

static void block_outer(whole_rows x, int64_t columns, const float *y, float *c, const stairs *of,
                        int64_t vecs) {
    if (of->falling)
        outer_lanes(true, x, columns, y, c, of, vecs);
    else
        outer_lanes(false, x, columns, y, c, of, vecs);
}

#endif
