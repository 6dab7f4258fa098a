/* block.c: one decoder block, forward and backward.
 * mid = in + attention(norm(in)); out = mid + experts(norm(mid)); all [R, d].
 * Source: pre-norm residual blocks, Xiong et al. 2020; experts in place of the FFN, Fedus et al. 2021.
 */
#include "model/model.h"

#include <string.h>

static moe_mat rows_of(const moe_lm *lm, void *data, int64_t rows) {
    return (moe_mat){.data = data, .rows = rows, .cols = lm->d, .dtype = lm->dtype};
}

/* The pass's call as this layer takes it: token numbers where its router hashes each, recorded routes where
 * there are some. */
static moe_call call_of(const moe_lm *lm, const moelm_pass *pass, int32_t index) {
    const moe_layer_desc *desc = moe_layer_get_desc(lm->blocks[index].ffn);
    moe_call call = pass->call;
    const bool hashes = desc->num_experts > 0 && strcmp(desc->router_type, "hash") == 0;
    if (hashes && strcmp(desc->routing_unit, "token") == 0) call.token_id = pass->tokens;
    if (!pass->replay || pass->replay[index].slots == 0) return call;
    const moelm_route *route = &pass->replay[index];
    call.replay_expert = route->expert + pass->replay_row * route->slots;
    if (route->weight)
        call.replay_weight = (const char *)route->weight +
                             (size_t)(pass->replay_row * route->slots) * moe_dtype_bytes(route->dtype);
    return call;
}

moe_status moelm_block_forward(moe_lm *lm, int32_t index, moelm_pass *pass, void *out) {
    moelm_block *block = &lm->blocks[index];
    moelm_saved *s = &block->saved;
    void *branch = lm->memory.branch;
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(moelm_norm(lm, rows, &block->norm, s->in, s->norm, s->rms));
    MOEI_TRY(moelm_attention(lm, index, pass));
    moelm_add(lm, rows * lm->d, s->in, branch, s->mid);
    MOEI_TRY(moelm_norm(lm, rows, &block->ffn_norm, s->mid, s->ffn_norm, s->ffn_rms));
    block->stats = (moe_stats){.size = sizeof block->stats};
    const moe_call call = call_of(lm, pass, index);
    MOEI_TRY(moe_layer_forward(block->ffn, rows_of(lm, s->ffn_norm, rows), rows_of(lm, branch, rows), &call,
                               &block->stats));
    moelm_add(lm, rows * lm->d, s->mid, branch, out);
    pass->aux += block->stats.loss;
    return MOE_OK;
}

moe_status moelm_block_backward(moe_lm *lm, int32_t index, const moelm_pass *pass) {
    moelm_block *block = &lm->blocks[index];
    moelm_saved *s = &block->saved;
    moelm_memory *mem = &lm->memory;
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(moe_layer_backward(block->ffn, rows_of(lm, s->ffn_norm, rows), rows_of(lm, mem->dout, rows),
                                rows_of(lm, mem->dnorm, rows)));
    const moelm_norm_grad ffn = {rows, &block->ffn_norm, s->mid, s->ffn_rms, mem->dnorm, mem->dout, true};
    MOEI_TRY(moelm_norm_backward(lm, &ffn));
    MOEI_TRY(moelm_attention_backward(lm, index, pass));
    const moelm_norm_grad att = {rows, &block->norm, s->in, s->rms, mem->dnorm, mem->dout, true};
    return moelm_norm_backward(lm, &att);
}
