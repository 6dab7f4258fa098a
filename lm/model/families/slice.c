/* slice.c: the numbers of a slice, moved between a file and the model.
 * [rows, cols] of the file; of the two sides one may be transposed, and types may differ.
 * Source: tiles, so that neither side is walked across its lines; bf16 is the upper half of f32, f16 is IEEE
 * 754 binary16.
 */
#include "model/families/family.h"

#include "core/real.h"

#include <math.h>
#include <string.h>

enum { TILE = 64 };

/* One side: where element (0, 0) is and how many numbers it is to the next row and column, one of them 1.
 * Bytes of a file need not be aligned. */
typedef struct side {
    moelm_st_dtype dtype;
    char *data;
    int64_t row_step, col_step;
} side;

typedef struct move {
    int64_t rows, cols;
    side from, to;
} move;

int64_t moelm_slice_numbers(const moelm_slice *s) {
    int64_t n = 1;
    for (int32_t i = 0; i < s->n_dim; ++i) n *= s->dim[i];
    return n;
}

bool moelm_slice_is_plain(const moelm_slice *s) {
    return s->col_step == 1 && (s->n_dim == 1 || s->row_step == s->dim[s->n_dim - 1]);
}

moelm_st_dtype moelm_slice_type(const moelm_slice *s) {
    return s->dtype == MOE_BF16 ? MOELM_ST_BF16 : MOELM_ST_F32;
}

static float from_f16(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                 : ldexpf((float)fraction, -24);
    return bits >> 15 ? -value : value;
}

static void load(moelm_st_dtype dtype, const char *from, int64_t n, float *to) {
    if (dtype == MOELM_ST_F32) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        to[i] = dtype == MOELM_ST_F16 ? from_f16(half) : moei_bf16_value(half);
    }
}

static void store(moelm_st_dtype dtype, const float *from, int64_t n, char *to) {
    if (dtype == MOELM_ST_F32) {
        memcpy(to, from, (size_t)n * sizeof *from);
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        const uint16_t half = moei_bf16_round(from[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

/* What of a side a tile covers: elements (row, col) .. + (rows, cols). */
typedef struct part {
    int64_t row, col, rows, cols;
} part;

static char *place(const side *s, int64_t row, int64_t col) {
    return s->data + (size_t)(row * s->row_step + col * s->col_step) * moelm_st_dtype_bytes(s->dtype);
}

static void load_part(const side *s, const part *p, float tile[TILE][TILE]) {
    if (s->col_step == 1) {
        for (int64_t i = 0; i < p->rows; ++i) load(s->dtype, place(s, p->row + i, p->col), p->cols, tile[i]);
        return;
    }
    for (int64_t j = 0; j < p->cols; ++j) {
        float column[TILE];
        load(s->dtype, place(s, p->row, p->col + j), p->rows, column);
        for (int64_t i = 0; i < p->rows; ++i) tile[i][j] = column[i];
    }
}

static void store_part(const side *s, const part *p, float tile[TILE][TILE]) {
    if (s->col_step == 1) {
        for (int64_t i = 0; i < p->rows; ++i) store(s->dtype, tile[i], p->cols, place(s, p->row + i, p->col));
        return;
    }
    for (int64_t j = 0; j < p->cols; ++j) {
        float column[TILE];
        for (int64_t i = 0; i < p->rows; ++i) column[i] = tile[i][j];
        store(s->dtype, column, p->rows, place(s, p->row, p->col + j));
    }
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Halves of one type need no arithmetic: a transposed tile in, by rows, and out, by columns, or back. */
static void turn_halves(const side *rows, const side *columns, const part *p, bool out) {
    uint16_t tile[TILE][TILE], column[TILE];
    const size_t row_bytes = (size_t)p->cols * sizeof column[0], bytes = (size_t)p->rows * sizeof column[0];
    for (int64_t i = 0; out && i < p->rows; ++i) memcpy(tile[i], place(rows, p->row + i, p->col), row_bytes);
    for (int64_t j = 0; j < p->cols; ++j) {
        char *at = place(columns, p->row, p->col + j);
        if (!out) memcpy(column, at, bytes);
        for (int64_t i = 0; i < p->rows; ++i)
            if (out)
                column[i] = tile[i][j];
            else
                tile[i][j] = column[i];
        if (out) memcpy(at, column, bytes);
    }
    for (int64_t i = 0; !out && i < p->rows; ++i) memcpy(place(rows, p->row + i, p->col), tile[i], row_bytes);
}

/* A band of TILE rows. */
static void move_band(void *arg, int64_t band, void *scratch) {
    const move *m = arg;
    float tile[TILE][TILE];
    (void)scratch;
    const bool halves = m->from.dtype == m->to.dtype && moelm_st_dtype_bytes(m->from.dtype) == 2;
    const bool rows_in = m->from.col_step == 1, rows_out = m->to.col_step == 1;
    part p = {.row = band * TILE, .rows = least(TILE, m->rows - band * TILE)};
    for (; p.col < m->cols; p.col += TILE) {
        p.cols = least(TILE, m->cols - p.col);
        if (halves && rows_in != rows_out) {
            turn_halves(rows_in ? &m->from : &m->to, rows_in ? &m->to : &m->from, &p, rows_in);
            continue;
        }
        load_part(&m->from, &p, tile);
        store_part(&m->to, &p, tile);
    }
}

static side model_side(const moelm_slice *s) {
    return (side){moelm_slice_type(s), s->value, s->row_step, s->col_step};
}

static void run(moe_ctx *ctx, const moelm_slice *s, move *m) {
    m->cols = s->dim[s->n_dim - 1];
    m->rows = moelm_slice_numbers(s) / m->cols;
    moe_parallel(ctx, (m->rows + TILE - 1) / TILE, move_band, m);
}

void moelm_slice_read(moe_ctx *ctx, const moelm_slice *slice, const moelm_st_tensor *tensor) {
    const side file = {tensor->dtype, (char *)(uintptr_t)tensor->data, slice->dim[slice->n_dim - 1], 1};
    move m = {.from = file, .to = model_side(slice)};
    run(ctx, slice, &m);
}

void moelm_slice_write(moe_ctx *ctx, const moelm_slice *slice, void *out) {
    const side file = {moelm_slice_type(slice), out, slice->dim[slice->n_dim - 1], 1};
    move m = {.from = model_side(slice), .to = file};
    run(ctx, slice, &m);
}
