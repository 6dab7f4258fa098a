/* embed.c: token embedding, forward and backward.
 * out[r, :] = embed[token[r], :]; dembed[v, :] += sum of dout over the rows of token v.
 * Source: a counting sort groups the rows by token, so each row of dembed is one ordered sum, no atomics.
 */
#include "model/model.h"

#include <string.h>

moe_status moelm_embed(moe_lm *lm, const moelm_pass *pass, void *out) {
    const moe_gather_sum_args args = {
        .dtype = lm->dtype,
        .n_tokens = pass->n_seq * pass->length,
        .n = lm->d,
        .top_k = 1,
        .rows = lm->embed.value,
        .ld_rows = lm->d,
        .row_of = pass->tokens,
        .out = out,
        .ld_out = lm->d,
    };
    return moe_gather_sum(lm->ctx, &args);
}

/* offset[v] .. offset[v+1] of order: the rows of token v, ascending. */
static void sort_rows(const int32_t *tokens, int64_t rows, int64_t vocab, int64_t *offset, int32_t *order) {
    memset(offset, 0, (size_t)(vocab + 1) * sizeof *offset);
    for (int64_t r = 0; r < rows; ++r) ++offset[tokens[r] + 1];
    for (int64_t v = 0; v < vocab; ++v) offset[v + 1] += offset[v];
    for (int64_t r = 0; r < rows; ++r) order[offset[tokens[r]]++] = (int32_t)r;
    /* placing moved every start to the next one's place */
    memmove(offset + 1, offset, (size_t)vocab * sizeof *offset);
    offset[0] = 0;
}

moe_status moelm_embed_backward(moe_lm *lm, const moelm_pass *pass, const void *dout) {
    moelm_memory *mem = &lm->memory;
    sort_rows(pass->tokens, pass->n_seq * pass->length, lm->vocab, mem->offset, mem->order);
    const moe_colsum_args args = {
        .dtype = lm->dtype,
        .n_groups = (int32_t)lm->vocab,
        .offset = mem->offset,
        .n = lm->d,
        .a = dout,
        .lda = lm->d,
        .a_row = mem->order,
        .out = lm->embed.grad,
        .accumulate = true,
    };
    return moe_colsum(lm->ctx, &args);
}
