/* attention.c: causal grouped-query self-attention with rotary positions, forward and backward.
 * norm[R, d] -> qkv[R, C] -> att[R, H*c] -> branch[R, d]; with a cache, keys and values come from it.
 * Source: Ainslie et al. 2023 (groups), Su et al. 2021 (rotary), as in Mixtral: no biases.
 */
#include "model/model.h"

/* Turns the queries and the keys of qkv-shaped rows; `inverse` is the gradient. */
static moe_status turn(moe_lm *lm, void *qkv, int64_t rows, bool inverse) {
    const moe_rope_args args = {
        .dtype = lm->dtype,
        .rows = rows,
        .heads = lm->heads + lm->kv_heads, /* they stand side by side and turn alike */
        .head_dim = lm->head_dim,
        .x = qkv,
        .ldx = moelm_qkv_cols(lm),
        .position = lm->memory.position,
        .base = lm->rope_base,
        .inverse = inverse,
    };
    return moe_rope(lm->ctx, &args);
}

static moe_attention_args self_attention(const moe_lm *lm, const moelm_saved *s, const moelm_pass *pass) {
    return (moe_attention_args){
        .dtype = lm->dtype,
        .n_seq = pass->n_seq,
        .q_len = pass->length,
        .kv_len = pass->length,
        .kv_stride = pass->length,
        .heads = lm->heads,
        .kv_heads = lm->kv_heads,
        .head_dim = lm->head_dim,
        .q = s->qkv,
        .k = moelm_at(lm, s->qkv, moelm_att_cols(lm)),
        .v = moelm_at(lm, s->qkv, moelm_att_cols(lm) + moelm_kv_cols(lm)),
        .ldq = moelm_qkv_cols(lm),
        .ldkv = moelm_qkv_cols(lm),
        .out = s->att,
        .ldo = moelm_att_cols(lm),
        .lse = s->lse,
    };
}

static void read_cache(const moe_lm *lm, int32_t index, const moelm_pass *pass, moe_attention_args *args) {
    args->kv_len = pass->cache->n + pass->length;
    args->kv_stride = pass->cache->capacity;
    args->ldkv = 2 * moelm_kv_cols(lm);
    const void *keys = moelm_cache_keys(lm, pass->cache, index);
    args->k = keys;
    args->v = moelm_at(lm, keys, moelm_kv_cols(lm));
}

moe_status moelm_attention(moe_lm *lm, int32_t index, const moelm_pass *pass) {
    moelm_block *block = &lm->blocks[index];
    moelm_saved *s = &block->saved;
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(moelm_linear(lm, rows, s->norm, &block->qkv, s->qkv));
    MOEI_TRY(turn(lm, s->qkv, rows, false));
    moe_attention_args args = self_attention(lm, s, pass);
    if (pass->cache) {
        moelm_cache_put(lm, pass->cache, index, s->qkv, rows);
        read_cache(lm, index, pass, &args);
    }
    MOEI_TRY(moe_attention(lm->ctx, &args));
    return moelm_linear(lm, rows, s->att, &block->out, lm->memory.branch);
}

moe_status moelm_attention_backward(moe_lm *lm, int32_t index, const moelm_pass *pass) {
    moelm_block *block = &lm->blocks[index];
    moelm_saved *s = &block->saved;
    moelm_memory *mem = &lm->memory;
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(moelm_linear_grad(lm, rows, s->att, mem->dout, &block->out));
    MOEI_TRY(moelm_linear_trans(lm, rows, mem->dout, &block->out, mem->datt));
    moe_attention_args args = self_attention(lm, s, pass);
    args.dout = mem->datt;
    args.dq = mem->dqkv;
    args.dk = moelm_at(lm, mem->dqkv, moelm_att_cols(lm));
    args.dv = moelm_at(lm, mem->dqkv, moelm_att_cols(lm) + moelm_kv_cols(lm));
    args.delta = mem->delta;
    MOEI_TRY(moe_attention_backward(lm->ctx, &args));
    MOEI_TRY(turn(lm, mem->dqkv, rows, true));
    MOEI_TRY(moelm_linear_grad(lm, rows, s->norm, mem->dqkv, &block->qkv));
    return moelm_linear_trans(lm, rows, mem->dqkv, &block->qkv, mem->dnorm);
}
