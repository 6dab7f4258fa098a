/* test_fetch.c: what kernel/gemm_block.h asks for before its turn: every line of the block, once, in any
 * shares. The compiler's prefetch is replaced by one that counts. Blocks: rows by index or not, f32 and bf16,
 * one run of columns or two, B as it is and transposed.
 */
#include "kernel/guarded.h"

enum { NR = 16, K_STEP = 2, BYTES = 1 << 20, ROWS = 40, LD = 700 };

static char matrix[BYTES];
static uint8_t asked[BYTES];

static void ask(const char *address) {
    assert_true(address >= matrix && address < matrix + BYTES);
    ++asked[address - matrix];
}
#define __builtin_prefetch(address, ...) ask(address)
#include "kernel/gemm_block.h"

/* The lines of [row .. end, column .. column+n], and of the same columns `second` elements on. */
static void check_asked(const moei_rows *rows, const int64_t *block, int64_t second, int64_t tiles) {
    static uint8_t wanted[BYTES];
    const int64_t real = rows->bf16 ? 2 : 4;
    memset(wanted, 0, sizeof wanted);
    for (int64_t r = block[0]; r < block[1]; ++r)
        for (int64_t run = 0; run < (second ? 2 : 1); ++run)
            for (int64_t at = 0; at < block[3] * real; at += LINE)
                ++wanted[(row_start(rows, r) + block[2] + run * second) * real + at];
    for (int64_t i = 0; i < BYTES; ++i)
        if (asked[i] != wanted[i])
            fail_msg("byte %lld is asked for %d times and not %d: rows %lld .. %lld, columns %lld + %lld, "
                     "second run %lld, %s, %s, %lld tiles",
                     (long long)i, asked[i], wanted[i], (long long)block[0], (long long)block[1],
                     (long long)block[2], (long long)block[3], (long long)second, rows->bf16 ? "bf16" : "f32",
                     rows->index ? "by index" : "in order", (long long)tiles);
}

/* In shares beside `tiles` tiles, or all at once. */
static void check_fetch(moei_fetch fetch, const moei_rows *rows, const int64_t *block, int64_t second) {
    for (int64_t tiles = 0; tiles <= 9; ++tiles) {
        moei_fetch f = fetch;
        memset(asked, 0, sizeof asked);
        if (tiles == 0) fetch_all(f);
        const int64_t share = tiles ? fetch_share(&f, tiles) : 0;
        for (int64_t i = 0; i < tiles; ++i) fetch_lines(&f, share);
        check_asked(rows, block, second, tiles);
    }
}

/* First row, end of rows, first column, columns. */
static const int64_t blocks[][4] = {
    {0,  1,  0,  16 },
    {3,  20, 5,  1  },
    {0,  40, 0,  33 },
    {7,  9,  48, 300},
    {11, 11, 0,  64 },
    {2,  5,  17, 0  }
};

static void every_line_is_asked_for_once(void **state) {
    (void)state;
    int32_t index[ROWS];
    for (int32_t r = 0; r < ROWS; ++r) index[r] = r * 7 % ROWS;
    for (int variant = 0; variant < 4; ++variant)
        for (size_t b = 0; b < sizeof blocks / sizeof *blocks; ++b) {
            const int64_t *block = blocks[b];
            const moei_rows rows = {matrix, LD, variant / 2 ? index : NULL, variant % 2};
            check_fetch(fetch_block(&rows, block[0], block[1], block[2], block[3]), &rows, block, 0);
        }
}

/* The columns of a task of B, whole panels or not, gates with their ups; of a transposed B they are rows. */
static void columns_of_b(void **state) {
    (void)state;
    for (int variant = 0; variant < 8; ++variant) {
        const bool trans = variant % 2, gated = variant / 2 % 2;
        const moei_rows b = {matrix, LD, NULL, variant / 4};
        const int64_t first = 3, width = 13, up = 20, k0 = 4, kc = 15;
        moei_columns columns = columns_of(first, width);
        if (gated) columns.n_runs = 2, columns.first[1] = first + up;
        const int64_t plain[] = {k0, k0 + kc, first, width}, turned[] = {first, first + width, k0, kc};
        check_fetch(fetch_b(&b, trans, &columns, k0, kc), &b, trans ? turned : plain,
                    !gated  ? 0
                    : trans ? up * LD
                            : up);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_line_is_asked_for_once),
        cmocka_unit_test(columns_of_b),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
