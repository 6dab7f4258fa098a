/* head.c: final norm, output projection and cross-entropy, forward and backward.
 * out[R, d] -> norm[R, d] -> logits[rows, V]; the projection is [V, d], the embedding's where tied.
 * Source: the loss goes over chunks of rows, so that R x V logits never exist at once.
 */
#include "model/model.h"

#include <math.h>

moe_status moelm_head(moe_lm *lm, int64_t first, int64_t rows, float *logits) {
    moelm_memory *mem = &lm->memory;
    void *norm = moelm_at(lm, mem->norm, first * lm->d);
    MOEI_TRY(
        moelm_norm(lm, rows, &lm->final_norm, moelm_at(lm, mem->out, first * lm->d), norm, mem->rms + first));
    return moelm_linear_logits(lm, rows, norm, &lm->head, logits);
}

static moe_status chunk_backward(moe_lm *lm, int64_t first, int64_t rows) {
    moelm_memory *mem = &lm->memory;
    int64_t at = first * lm->d;
    moelm_narrow(lm, rows * lm->vocab, mem->logits, mem->dlogits);
    MOEI_TRY(moelm_linear_grad(lm, rows, mem->dlogits, moelm_at(lm, mem->norm, at), &lm->head));
    MOEI_TRY(moelm_linear(lm, rows, mem->dlogits, &lm->head, mem->dnorm));
    const moelm_norm_grad g = {.rows = rows,
                               .gain = &lm->final_norm,
                               .x = moelm_at(lm, mem->out, at),
                               .rms = mem->rms + first,
                               .dy = mem->dnorm,
                               .dx = moelm_at(lm, mem->dout, at)};
    return moelm_norm_backward(lm, &g);
}

moe_status moelm_head_loss(moe_lm *lm, const int32_t *targets, int64_t rows, float grad_scale, double *loss) {
    moelm_memory *mem = &lm->memory;
    int64_t counted = 0;
    for (int64_t r = 0; r < rows; ++r) counted += targets[r] >= 0;
    double sum = 0.0;
    for (int64_t first = 0; first < rows; first += mem->head_rows) {
        int64_t n = rows - first < mem->head_rows ? rows - first : mem->head_rows;
        MOEI_TRY(moelm_head(lm, first, n, mem->logits));
        const moe_cross_entropy_args args = {
            .dtype = moei_wide(lm->dtype),
            .rows = n,
            .n = lm->vocab,
            .logits = mem->logits,
            .ld = lm->vocab,
            .target = targets + first,
            .row_loss = mem->row_loss,
            .grad_scale = (double)grad_scale / (double)counted,
        };
        MOEI_TRY(moe_cross_entropy(lm->ctx, &args));
        for (int64_t r = 0; r < n; ++r) sum += (double)mem->row_loss[r];
        if (grad_scale != 0.0F) MOEI_TRY(chunk_backward(lm, first, n));
    }
    *loss = sum / (double)counted;
    if (isfinite(*loss)) return MOE_OK;
    return moe_ctx_fail(lm->ctx, MOE_ERR_NUMERIC, "the loss is %f: a weight or an activation is not finite%s",
                        *loss, grad_scale != 0.0F ? "; a lower learning rate may help" : "");
}
