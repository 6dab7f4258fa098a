/* mx_rows_plain.h: rows of numbers to and from 8 bits, as plain loops that compilers make vectors of.
 * values[rows, n] <-> code[rows, n], scale[rows, blocks of 32 columns]; tasks are runs of rows.
 * Included by mx_rows_<isa>.c, whose flags tell the vectors; source and format: kernel/mxfp8.h.
 */
#include "core/real.h"
#include "kernel/kernel_list.h"
#include "kernel/mxfp8.h"

enum { ROWS_PER_TASK = 16 };

/* n numbers from element `at`, then zeros. */
static void load_block(const moei_mx_rows_args *args, int64_t at, int64_t n, float v[MOEI_MX_BLOCK]) {
    const float *f32 = args->values;
    const uint16_t *bf16 = args->values;
    if (n == MOEI_MX_BLOCK && args->dtype == MOE_F32) {
        for (int i = 0; i < MOEI_MX_BLOCK; ++i) v[i] = f32[at + i];
    } else if (n == MOEI_MX_BLOCK && args->dtype == MOE_BF16) {
        for (int i = 0; i < MOEI_MX_BLOCK; ++i) v[i] = moei_bf16_value(bf16[at + i]);
    } else {
        memset(v, 0, MOEI_MX_BLOCK * sizeof *v);
        for (int64_t i = 0; i < n; ++i) v[i] = (float)moei_real_load(args->dtype, args->values, at + i);
    }
}

static void store_block(const moei_mx_rows_args *args, int64_t at, int64_t n, const float v[MOEI_MX_BLOCK]) {
    float *f32 = args->values;
    uint16_t *bf16 = args->values;
    if (n == MOEI_MX_BLOCK && args->dtype == MOE_F32)
        for (int i = 0; i < MOEI_MX_BLOCK; ++i) f32[at + i] = v[i];
    else if (n == MOEI_MX_BLOCK && args->dtype == MOE_BF16)
        for (int i = 0; i < MOEI_MX_BLOCK; ++i) bf16[at + i] = moei_bf16_round(v[i]);
    else
        for (int64_t i = 0; i < n; ++i) moei_real_store(args->dtype, args->values, at + i, (double)v[i]);
}

static uint8_t round_block(const float v[MOEI_MX_BLOCK], uint8_t code[MOEI_MX_BLOCK]) {
    int32_t most = 0;
    for (int i = 0; i < MOEI_MX_BLOCK; ++i) {
        const int32_t size = moei_float_bits(v[i]) & 0x7fffffff;
        most = size > most ? size : most;
    }
    const int32_t scale = moei_mx_scale(most);
    const float factor = moei_mx_over_power(scale);
    for (int i = 0; i < MOEI_MX_BLOCK; ++i) code[i] = moei_e4m3_round(v[i] * factor);
    return (uint8_t)scale;
}

static void expand_block(const uint8_t code[MOEI_MX_BLOCK], uint8_t scale, float v[MOEI_MX_BLOCK]) {
    const float power = moei_mx_power(scale);
    for (int i = 0; i < MOEI_MX_BLOCK; ++i) v[i] = moei_e4m3_value(code[i]) * power;
}

typedef void block_fn(const moei_mx_rows_args *args, int64_t at, int64_t n, uint8_t *scale);

static void save_block(const moei_mx_rows_args *args, int64_t at, int64_t n, uint8_t *scale) {
    float v[MOEI_MX_BLOCK];
    uint8_t code[MOEI_MX_BLOCK];
    load_block(args, at, n, v);
    *scale = round_block(v, code);
    memcpy(args->code + at, code, (size_t)n);
}

static void restore_block(const moei_mx_rows_args *args, int64_t at, int64_t n, uint8_t *scale) {
    float v[MOEI_MX_BLOCK];
    uint8_t code[MOEI_MX_BLOCK] = {0};
    memcpy(code, args->code + at, (size_t)n);
    expand_block(code, *scale, v);
    store_block(args, at, n, v);
}

static void rows_task(const moei_mx_rows_args *args, int64_t first, int64_t end, block_fn *fn) {
    const int64_t blocks = moei_mx_blocks(args->n);
    for (int64_t i = first * blocks; i < end * blocks; ++i) {
        const int64_t r = i / blocks, j = i % blocks * MOEI_MX_BLOCK, left = args->n - j;
        fn(args, r * args->n + j, left < MOEI_MX_BLOCK ? left : MOEI_MX_BLOCK, args->scale + i);
    }
}

static void save_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    rows_task(arg, first, end, save_block);
}
static void restore_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    rows_task(arg, first, end, restore_block);
}
