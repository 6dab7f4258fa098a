/* qk_norm.c: RMSNorm of queries and keys before they turn, forward and backward.
 * raw[R, (H+G)*c] -> the first (H+G)*c columns of qkv[R, C]; each head by itself with one gain [c], or all
 * queries of a row together with a gain [H*c], and all its keys with [G*c]. Source: Henry et al. 2020 (norms
 * of queries and keys); by head as in Qwen3, together as in OLMoE (Muennighoff et al. 2024).
 */
#include "model/model.h"

int64_t moelm_qk_stats(const moe_lm *lm, int32_t heads) {
    return lm->qk_norm == MOELM_QK_HEAD ? heads : 1;
}

/* Of the queries, or of the keys; what is normed has the rows of qkv. */
static moe_rmsnorm_args norm_of(const moe_lm *lm, const moelm_block *block, int64_t rows, bool keys) {
    const moelm_saved *s = &block->saved;
    const int32_t heads = keys ? lm->kv_heads : lm->heads;
    const int64_t parts = moelm_qk_stats(lm, heads);
    return (moe_rmsnorm_args){
        .dtype = lm->dtype,
        .rows = rows,
        .n = (int64_t)heads * lm->head_dim / parts,
        .heads = (int32_t)parts,
        .eps = lm->eps,
        .x = moelm_at(lm, s->raw, keys ? moelm_att_cols(lm) : 0),
        .ldx = moelm_qk_cols(lm),
        .ldy = moelm_qkv_cols(lm),
        .gain = keys ? block->k_norm.value : block->q_norm.value,
        .dgain = keys ? block->k_norm.grad : block->q_norm.grad,
        .inv_rms = keys ? s->k_rms : s->q_rms,
    };
}

moe_status moelm_qk_norm(moe_lm *lm, const moelm_block *block, int64_t rows) {
    for (int keys = 0; keys < 2; ++keys) {
        moe_rmsnorm_args args = norm_of(lm, block, rows, keys);
        args.y = moelm_at(lm, block->saved.qkv, keys ? moelm_att_cols(lm) : 0);
        MOEI_TRY(moe_rmsnorm(lm->ctx, &args));
    }
    return MOE_OK;
}

moe_status moelm_qk_norm_backward(moe_lm *lm, const moelm_block *block, int64_t rows) {
    for (int keys = 0; keys < 2; ++keys) {
        moe_rmsnorm_args args = norm_of(lm, block, rows, keys);
        args.dx = moelm_at(lm, lm->memory.dqkv, keys ? moelm_att_cols(lm) : 0);
        args.dy = args.dx;
        MOEI_TRY(moe_rmsnorm_backward(lm->ctx, &args));
    }
    return MOE_OK;
}
