/* mx_rows_avx512.c: rows of numbers to and from 8 bits, AVX-512.
 * Shapes and source: mx_rows_plain.h, which is the algorithm.
 */
#include "kernel/mx_rows/mx_rows_plain.h"

void moei_mx_save__avx512(const moei_team *team, const moei_mx_rows_args *args) {
    moei_parallel_blocks(team, args->rows, ROWS_PER_TASK, save_task, (void *)(uintptr_t)args);
}

void moei_mx_restore__avx512(const moei_team *team, const moei_mx_rows_args *args) {
    moei_parallel_blocks(team, args->rows, ROWS_PER_TASK, restore_task, (void *)(uintptr_t)args);
}
