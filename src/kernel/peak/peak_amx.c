/* peak_amx.c: bf16 tile products in registers, AMX: 16 x 16 x 32 multiply-adds an instruction.
 * Four tiles of sums hide the latency, as in the product itself. Source: peak_simd.h.
 */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_amx.h"
#include "kernel/kernel_list.h"

static void peak_task(void *arg, int64_t task, void *scratch) {
    const int64_t rounds = *(const int64_t *)arg;
    (void)task;
    tiles_begin(16);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t i = 0; i < rounds; ++i) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, scratch, 64);
    tiles_end();
}

double moei_peak__amx(const moei_team *team, int64_t rounds) {
    moei_parallel(team, team->n_threads, peak_task, &rounds);
    return 2.0 * 4 * 16 * 16 * 32 * (double)rounds * team->n_threads;
}
