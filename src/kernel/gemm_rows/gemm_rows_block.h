/* gemm_rows_block.h: a task of the grouped product over ragged rows: few rows as the family does them, many
 * in blocks: KC steps of B are packed for the task's rows, which then come a tile at a time.
 * Include last: a family has defined pack_a, ready_b, few_rows and FETCHES_B; its tile:
 * tile_panel, tile_height, tiles_begin and tiles_end. Source: loops after BLIS (gemm_tile.h).
 */
#ifndef MOEI_GEMM_ROWS_BLOCK_H
#define MOEI_GEMM_ROWS_BLOCK_H

static void block_task(const moei_rows_job *job, const moei_rows_task *task, const moei_rows *a,
                       const moei_rows *b, moei_rows_scratch *scratch) {
    const moe_gemm_rows_args *args = job->args;
    const moei_columns *cols = &task->cols;
    int64_t panels = cols->n_runs * cols->panels, tiles = moei_ceil_div(task->end - task->row, MR) * panels;
    for (int64_t k0 = 0; k0 < args->k; k0 += KC) {
        int64_t kc = moei_min(KC, args->k - k0);
        bool last = k0 + KC >= args->k;
        ready_b(args, task->group, b, cols, k0, kc, scratch->b);
        moei_fetch block = {.end = 0};
        if (FETCHES_B) block = next_block(job, task, b, k0 + KC, KC);
        int64_t block_share = fetch_share(&block, tiles);
        int mr;
        for (int64_t row = task->row; row < task->end; row += mr) {
            mr = tile_height(task->end - row);
            float *sum = args->k <= KC ? scratch->sum : scratch->sum + strip_sums_at(row - task->row, panels);
            moei_fetch rows = next_rows(task, a, row, k0, args->k);
            int64_t rows_share = fetch_share(&rows, panels);
            if (last) fetch_epilogue(job, task, row, mr);
            pack_a(a, row, mr, k0, kc, scratch->a);
            for (int64_t p = 0; p < panels; ++p) {
                fetch_lines(&rows, rows_share);
                fetch_lines(&block, block_share);
                tile_panel(mr, scratch->a, scratch->b + p * PANEL, padded(kc), sum + sum_at(0, p * NR),
                           k0 > 0);
            }
            if (last) epilogue(job, task, row, mr, sum);
        }
    }
}

static void rows_task(void *arg, int64_t number, void *memory) {
    const moei_rows_job *job = arg;
    const moe_gemm_rows_args *args = job->args;
    const moei_rows_task task = find_task(job, number);
    const moei_rows a = {args->a, args->lda, args->a_row, job->bf16}, b = group_b(job, task.group);
    tiles_begin(task.end - task.row);
    if (!few_rows(job, &task, &a, &b, memory)) block_task(job, &task, &a, &b, memory);
    tiles_end();
}

#endif
