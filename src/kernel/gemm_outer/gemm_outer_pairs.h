/* gemm_outer_pairs.h: grouped product over a ragged sum of bf16, for the families that multiply pairs.
 * The sum runs over rows, so B is paired as ever and A is turned: its packed rows are columns of A. Tasks:
 * gemm_outer_task.h; packing: gemm_pairs.h. Include after gemm_tile_dp.h or gemm_tile_amx.h.
 */
#include <moekit/op.h>

enum {
    MB_MIN = 96,        /* rows of a task at least, where threads would have nothing to do */
    WHOLE_SUM = 2 * KC, /* rows of a group of which B is packed once, for every strip of a high task */
    TALL_MB = 1024,
    BLOCK_B = NB / NR * PANEL,
};

#include "kernel/gemm_outer/gemm_outer_task.h"

typedef struct moei_outer_pairs_scratch {
    _Alignas(64) uint16_t b[WHOLE_SUM / KC * BLOCK_B];
    uint16_t a[A_STRIP];
    float sum[SUMS];
} moei_outer_pairs_scratch;
_Static_assert(sizeof(moei_outer_pairs_scratch) <= MOEI_THREAD_SCRATCH,
               "a task's blocks fit the thread's scratch");

/* Sixteen bytes of four rows: lane l is row first + 8 l; rows at and past `end` are zeros. */
static inline __m512i four_rows(const moei_rows *a, int64_t first, int64_t end, int64_t column, int64_t n) {
    __m128i lane[4];
    for (int l = 0; l < 4; ++l) {
        int64_t r = first + 8 * l;
        lane[l] = _mm_setzero_si128();
        if (r >= end) continue;
        const uint16_t *from = bf16_at(a, r) + column;
        lane[l] = n >= 8 ? _mm_loadu_si128((const __m128i *)(const void *)from)
                         : _mm_maskz_loadu_epi16((__mmask8)((1u << n) - 1), from);
    }
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(lane[0]), lane[1], 1);
    __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(lane[2]), lane[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* A[k0 .. k0+32, i0 .. i0+8] -> eight rows of 32, n of which exist: each 128-bit lane turns a block of 8 x 8.
 */
static inline void turn_block(const moei_rows *a, int64_t k0, int64_t end, int64_t i0, int64_t n,
                              uint16_t *out) {
    __m512i r[8], t[8];
    for (int i = 0; i < 8; ++i) r[i] = four_rows(a, k0 + i, end, i0, n);
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        r[4 * i] = _mm512_unpacklo_epi32(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi32(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi32(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi32(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(out + a_at(2 * i, 0), _mm512_unpacklo_epi64(r[i], r[4 + i]));
        _mm512_storeu_si512(out + a_at(2 * i + 1, 0), _mm512_unpackhi_epi64(r[i], r[4 + i]));
    }
}

/* A[k0 .. k0+kc, i0 .. i0+mr] -> a strip of mr rows and of zeros up to the next eight, zeros up to
 * padded(kc). */
static void turn_a(const moei_rows *a, int64_t i0, int mr, int64_t k0, int64_t kc, uint16_t *out) {
    for (int i = 0; i < mr; i += 8)
        for (int64_t k = 0; k < kc; k += 32) turn_block(a, k0 + k, k0 + kc, i0 + i, mr - i, out + a_at(i, k));
}

/* Rows k0 .. k0+KC of the sum of a strip of C, rows i .. i+MR of the task's, by packed B. The strip is stored
 * as soon as its last tile is done, and its lines are asked for beside these tiles. */
static void strip_block(const moei_outer_job *job, const moei_outer_task *task, int64_t i, int64_t k0,
                        const uint16_t *b, moei_ahead *ahead, uint16_t *packed, float *sum) {
    const moe_gemm_outer_args *args = job->args;
    const int64_t first = args->offset[task->group], end = args->offset[task->group + 1];
    const int64_t kc = moei_min(KC, end - k0), panels = task->cols.panels;
    const int mr = (int)moei_min(MR, task->rows - i);
    const moei_rows a = operand_a(args);
    moei_fetch columns = {.end = 0}, strip = {.end = 0};
    if (i + MR < task->rows) columns = fetch_block(&a, k0, k0 + kc, task->i0 + i + MR, MR);
    if (k0 + KC >= end) strip = fetch_c(job, task, i, mr);
    const int64_t share = fetch_share(&columns, panels), lines = fetch_share(&strip, panels * tile_steps(kc));
    turn_a(&a, task->i0 + i, mr, k0, kc, packed);
    for (int64_t p = 0; p < panels; ++p) {
        fetch_lines(&columns, share);
        fetch_ahead(ahead);
        tile_beside(mr, packed, b + p * PANEL, padded(kc), sum + sum_at(0, p * NR), k0 > first, &strip,
                    lines);
    }
    if (k0 + KC >= end) store_rows(job, task, i, mr, sum);
}

/* The sums of a group of few rows: strip by strip, B packed before. A group without rows is a block of none,
 * whose sums are zeros. */
static void whole_sums(const moei_outer_job *job, const moei_outer_task *task,
                       moei_outer_pairs_scratch *scratch) {
    const int64_t first = job->args->offset[task->group], end = job->args->offset[task->group + 1];
    const int64_t blocks = moei_ceil_div(end - first, KC), strips = moei_ceil_div(task->rows, MR);
    const moei_rows b = operand_b(job->args);
    moei_ahead ahead = {.share_a = 0};
    if (FETCHES_B) ahead = what_is_next(job, task, end, task->cols.panels * strips * (blocks ? blocks : 1));
    for (int64_t k0 = first; k0 < end; k0 += KC)
        pack_b(&b, &task->cols, k0, moei_min(KC, end - k0), scratch->b + (k0 - first) / KC * BLOCK_B);
    for (int64_t i = 0; i < task->rows; i += MR) {
        for (int64_t k0 = first; k0 == first || k0 < end; k0 += KC)
            strip_block(job, task, i, k0, scratch->b + (k0 - first) / KC * BLOCK_B, &ahead, scratch->a,
                        scratch->sum);
    }
}

/* And of many: block by block, the sums of all strips beside each other. */
static void blocked_sums(const moei_outer_job *job, const moei_outer_task *task,
                         moei_outer_pairs_scratch *scratch) {
    const int64_t first = job->args->offset[task->group], end = job->args->offset[task->group + 1];
    const moei_rows b = operand_b(job->args);
    for (int64_t k0 = first; k0 < end; k0 += KC) {
        moei_ahead ahead = {.share_a = 0};
        if (FETCHES_B)
            ahead = what_is_next(job, task, k0 + KC, task->cols.panels * moei_ceil_div(task->rows, MR));
        pack_b(&b, &task->cols, k0, moei_min(KC, end - k0), scratch->b);
        for (int64_t i = 0; i < task->rows; i += MR)
            strip_block(job, task, i, k0, scratch->b, &ahead, scratch->a, scratch->sum + sum_at(i, 0));
    }
}

static void outer_task(void *arg, int64_t number, void *memory) {
    const moei_outer_job *job = arg;
    const moei_outer_task task = find_task(job, number);
    const int64_t rows = job->args->offset[task.group + 1] - job->args->offset[task.group];
    if (rows == 0 && job->args->accumulate) return;
    tiles_begin(16);
    if (rows <= WHOLE_SUM)
        whole_sums(job, &task, memory);
    else
        blocked_sums(job, &task, memory);
    tiles_end();
}
