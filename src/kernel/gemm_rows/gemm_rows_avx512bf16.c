/* gemm_rows_avx512bf16.c: grouped product over ragged rows of bf16, AVX-512 with BF16 dot products. Shapes
 * and source: gemm_rows_pairs.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_tile_dp.h"

#include "kernel/gemm_rows/gemm_packed_dp.h"
#include "kernel/gemm_rows/gemm_rows_pairs.h"

/* tile_panel with B where it is, rows ldb apart; kc is even. */
static __attribute__((noinline)) void tile_direct(int mr, const uint16_t *a, const uint16_t *b, int64_t ldb,
                                                  int64_t kc, float *sum, bool add, bool ends) {
    tile_any(mr, a, A_LD, 1, (moei_tile_b){.at = b, .ld = ldb, .ends = ends}, kc, sum, add);
}

/* Chains of `rows` sums go on by a strip of B where it is; what cannot be read there is packed when the chain
 * begins, all of it. */
static void linear_product(int rows, const uint16_t *a, const moei_strip *s, uint16_t *packed, float *sum) {
    const int64_t done = s->k % KC, chain = done + s->left;
    if (s->width < NR || chain % 2 != 0) {
        const moei_b_strip whole = {
            .b = s->b, .column = s->column, .width = s->width, .k0 = s->k, .kc = chain};
        if (done > 0) return;
        strip_ready(&whole, packed);
        strip_product(rows, a, &whole, packed, sum, false);
        return;
    }
    for (int i = 0, mr; i < rows; i += mr) {
        mr = tile_height(rows - i);
        tile_direct(mr, a + a_at(i, 0) + done, bf16_at(s->b, s->k) + s->column, s->b->ld, s->steps,
                    sum + i * SUM_LD, done > 0, s->steps == s->left);
    }
}

/* The same for whole panels and few rows, a row of B after the other. Until a chain ends its sums stay in the
 * order of pairs. */
MOEI_INLINE void sweep_fixed(const int mr, const uint16_t *a, const moei_strip *s, float *sum) {
    const bool begins = s->k % KC == 0, ends = s->steps == s->left;
    const uint16_t *b = bf16_at(s->b, s->k) + s->column, *x = a + a_at(0, s->k % KC);
    const int64_t ld = s->b->ld;
    const char *next = s->next;
    for (int64_t j = 0; j < s->width; j += NR, b += NR, next += LINE, sum += NR) {
        vf acc[SWEEP_ROWS][2];
        MOEI_UNROLL
        for (int i = 0; i < mr; ++i) {
            acc[i][0] = begins ? vf_zero() : vf_load(sum + i * SUM_LD);
            acc[i][1] = begins ? vf_zero() : vf_load(sum + i * SUM_LD + VF_N);
        }
        for (int64_t k = 0; k < s->steps; k += 2) {
            const moei_pair_row row = pairs_of_rows(b + k * ld, b + (k + 1) * ld);
            __builtin_prefetch(next + 2 * k * ld, 0, 2);
            __builtin_prefetch(next + 2 * (k + 1) * ld, 0, 2);
            MOEI_UNROLL
            for (int i = 0; i < mr; ++i) {
                int32_t pair;
                memcpy(&pair, x + i * A_LD + k, sizeof pair);
                acc[i][0] = _mm512_dpbf16_ps(acc[i][0], (__m512bh)_mm512_set1_epi32(pair), row.low);
                acc[i][1] = _mm512_dpbf16_ps(acc[i][1], (__m512bh)_mm512_set1_epi32(pair), row.high);
            }
        }
        MOEI_UNROLL
        for (int i = 0; i < mr; ++i) {
            if (ends) to_column_order(&acc[i][0], &acc[i][1]);
            vf_store(sum + i * SUM_LD, acc[i][0]);
            vf_store(sum + i * SUM_LD + VF_N, acc[i][1]);
        }
    }
}

#include "kernel/gemm_rows/gemm_rows_linear.h"

void moei_gemm_rows__avx512bf16(const moei_team *team, const moe_gemm_rows_args *args) {
    run_rows(team, args, run_linear(team, args), rows_task);
}
