/* test_slice.c: numbers moved between a file and the model, number by number as the slice says.
 * [rows, cols] around a tile's edges, plain, transposed and as columns of a wider matrix; every type.
 * Source: lm/model/families/family.h; numbers below 2^8 are exact in bf16 and f16.
 */
#include "unit/model/model_fixture.h"

#include "core/real.h"
#include "model/families/family.h"

enum { MOST = 131, WIDE = 3 * MOST };

/* A value of every place that bf16 and f16 hold. */
static float value_at(int64_t row, int64_t col) {
    return (float)((row * 37 + col * 11) % 251 - 125);
}

static uint16_t half_bits(moelm_st_dtype dtype, float value) {
    if (dtype == MOELM_ST_BF16) return moei_bf16_round(value);
    int exponent;
    const float part = frexpf(fabsf(value), &exponent); /* value = part * 2^exponent, part in [0.5, 1) */
    const uint16_t sign = value < 0 ? 0x8000 : 0;
    if (value == 0) return sign;
    return (uint16_t)(sign | (exponent + 14) << 10 | ((int)(part * 2048) & 1023));
}

/* The file's bytes, one off any alignment. */
static char *file_of(moelm_st_dtype dtype, int64_t rows, int64_t cols) {
    const size_t bytes = moelm_st_dtype_bytes(dtype);
    char *file = malloc((size_t)(rows * cols) * bytes + 1);
    assert_non_null(file);
    for (int64_t i = 0; i < rows * cols; ++i) {
        const float value = value_at(i / cols, i % cols);
        const uint16_t half = half_bits(dtype, value);
        if (dtype == MOELM_ST_F32)
            memcpy(file + 1 + (size_t)i * bytes, &value, bytes);
        else
            memcpy(file + 1 + (size_t)i * bytes, &half, bytes);
    }
    return file;
}

static void check(moe_ctx *ctx, moelm_slice slice, moelm_st_dtype dtype) {
    static float block[MOST * WIDE];
    const int64_t rows = slice.dim[0], cols = slice.dim[1];
    char *file = file_of(dtype, rows, cols);
    const moelm_st_tensor tensor = {.dtype = dtype, .data = file + 1};
    for (int i = 0; i < MOST * WIDE; ++i) moei_real_store(slice.dtype, block, i, -1024);
    slice.value = moei_real_at(slice.dtype, block, 2);
    moelm_slice_read(ctx, &slice, &tensor);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j)
            if (moei_real_load(slice.dtype, slice.value, i * slice.row_step + j * slice.col_step) !=
                (double)value_at(i, j))
                fail_msg("[%d, %d] of %d x %d, steps %d and %d, %s", (int)i, (int)j, (int)rows, (int)cols,
                         (int)slice.row_step, (int)slice.col_step, moelm_st_dtype_name(dtype));
    int64_t untouched = 0;
    for (int i = 0; i < MOST * WIDE; ++i) untouched += moei_real_load(slice.dtype, block, i) == -1024.0;
    assert_int_equal(untouched, MOST * WIDE - rows * cols);
    if (moelm_slice_type(&slice) == dtype) {
        char *out = malloc((size_t)(rows * cols) * moelm_st_dtype_bytes(dtype) + 1);
        assert_non_null(out);
        moelm_slice_write(ctx, &slice, out + 1);
        assert_memory_equal(out + 1, file + 1, (size_t)(rows * cols) * moelm_st_dtype_bytes(dtype));
        free(out);
    }
    free(file);
}

static void test_numbers_go_where_the_slice_says(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 63, 64, 65, MOST};
    static const moelm_st_dtype types[] = {MOELM_ST_F32, MOELM_ST_BF16, MOELM_ST_F16};
    enum { N = sizeof sizes / sizeof *sizes };
    moe_ctx *ctx = test_ctx(NULL, 2);
    for (int i = 0; i < N * N * 3 * 2; ++i) {
        const int64_t rows = sizes[i % N], cols = sizes[i / N % N];
        const moelm_slice whole = {
            .n_dim = 2,
            .dim = {rows, cols},
            .dtype = i / N / N % 2 ? MOE_BF16 : MOE_F32,
            .row_step = cols,
            .col_step = 1
        };
        moelm_slice columns = whole; /* of a model's matrix [cols, 2 * rows + 1] */
        columns.row_step = 1;
        columns.col_step = 2 * rows + 1;
        assert_true(moelm_slice_is_plain(&whole) && !moelm_slice_is_plain(&columns));
        check(ctx, whole, types[i / N / N / 2]);
        check(ctx, columns, types[i / N / N / 2]);
    }
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers_go_where_the_slice_says)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
