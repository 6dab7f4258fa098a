/* attention.c: causal grouped-query self-attention with rotary positions, forward and backward.
 * norm[R, d] -> qkv[R, C] -> att[R, H*c] -> branch[R, d]; with caches, keys and values come from them.
 * Between the product and the rotation queries and keys may be normed (qk_norm.c), and all three clipped
 * (clip.c). Source: Ainslie et al. 2023 (groups), Su et al. 2021 (rotary), as in Mixtral: no biases.
 */
#include "model/model.h"

/* norm[R, d] -> qkv[R, C]; queries and keys that are normed come by way of raw. */
static moe_status project(moe_lm *lm, const moelm_block *block, int64_t rows) {
    const moelm_saved *s = &block->saved;
    if (lm->qk_norm == MOELM_QK_NONE) return moelm_linear(lm, rows, s->norm, &block->qkv, s->qkv);
    const int64_t qk = moelm_qk_cols(lm), kv = moelm_kv_cols(lm), all = moelm_qkv_cols(lm);
    MOEI_TRY(moelm_linear_columns(lm, rows, s->norm, &block->qkv, 0, qk, s->raw, qk));
    MOEI_TRY(moelm_linear_columns(lm, rows, s->norm, &block->qkv, qk, kv, moelm_at(lm, s->qkv, qk), all));
    return moelm_qk_norm(lm, block, rows);
}

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

/* New keys and values go into each sequence's cache; then all see as many as theirs has. */
static void read_caches(moe_lm *lm, int32_t index, const moelm_pass *pass, moe_attention_args *args) {
    const moelm_memory *mem = &lm->memory;
    for (int64_t seq = 0; seq < pass->n_seq; ++seq) {
        moelm_cache *cache = pass->cache[seq];
        moelm_cache_put(lm, cache, index, moelm_at(lm, args->q, seq * pass->length * args->ldq),
                        pass->length);
        mem->kv_lens[seq] = cache->n + pass->length;
        mem->kv_rows[seq] = cache->first;
    }
    const void *keys = moelm_cache_keys(lm, pass->cache[0], index);
    args->k = keys;
    args->v = moelm_at(lm, keys, moelm_kv_cols(lm));
    args->ldkv = 2 * moelm_kv_cols(lm);
    args->kv_lens = mem->kv_lens;
    args->kv_rows = mem->kv_rows;
}

moe_status moelm_attention(moe_lm *lm, int32_t index, const moelm_pass *pass) {
    moelm_block *block = &lm->blocks[index];
    moelm_saved *s = &block->saved;
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(project(lm, block, rows));
    moelm_clip(lm, s, rows);
    MOEI_TRY(turn(lm, s->qkv, rows, false));
    moe_attention_args args = self_attention(lm, s, pass);
    if (pass->cache) read_caches(lm, index, pass, &args);
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
    moelm_clip_backward(lm, s, rows);
    if (lm->qk_norm != MOELM_QK_NONE) MOEI_TRY(moelm_qk_norm_backward(lm, block, rows));
    MOEI_TRY(moelm_linear_grad(lm, rows, s->norm, mem->dqkv, &block->qkv));
    return moelm_linear_trans(lm, rows, mem->dqkv, &block->qkv, mem->dnorm);
}
