/* reserve.c: the memory of a pass, measured and carved by the same code, and the gradients.
 * Training keeps moelm_saved per block; inference has one set for all blocks and one residual buffer.
 * Source: one block a family of tensors, as in llm.c.
 */
#include "model/model.h"

#include "core/ctx.h"

#include <string.h>

/* Logits of a chunk of rows take at most this many numbers, or those of so many rows, as each chunk reads the
 * whole head; a layer takes that many tokens. */
enum { HEAD_NUMBERS = 1 << 20, HEAD_ROWS = 128, MOST_TOKENS = (1 << 30) - 1 };

typedef struct sizes {
    int64_t rows, head_rows;
    bool train;
} sizes;

static void *take(const moe_lm *lm, moei_arena *arena, int64_t rows, int64_t cols) {
    return moei_arena_array(arena, rows, cols, moe_dtype_bytes(lm->dtype));
}

static float *take_wide(moei_arena *arena, int64_t rows, int64_t cols) {
    return moei_arena_array(arena, rows, cols, sizeof(float));
}

/* Queries and keys before their norms; only backward asks for the statistics, and what was clipped. */
static void carve_raw(const moe_lm *lm, moei_arena *arena, int64_t rows, bool train, moelm_saved *s) {
    if (train && lm->clip > 0) s->kept = moei_arena_array(arena, rows, moelm_qkv_cols(lm), sizeof *s->kept);
    if (lm->qk_norm == MOELM_QK_NONE) return;
    s->raw = take(lm, arena, rows, moelm_qk_cols(lm));
    if (!train) return;
    s->q_rms = take_wide(arena, rows, moelm_qk_stats(lm, lm->heads));
    s->k_rms = take_wide(arena, rows, moelm_qk_stats(lm, lm->kv_heads));
}

static void carve_saved(const moe_lm *lm, moei_arena *arena, int64_t rows, moelm_saved *s) {
    *s = (moelm_saved){
        .in = take(lm, arena, rows, lm->d),
        .norm = take(lm, arena, rows, lm->d),
        .rms = take_wide(arena, rows, 1),
        .qkv = take(lm, arena, rows, moelm_qkv_cols(lm)),
        .lse = take_wide(arena, rows, lm->heads),
        .att = take(lm, arena, rows, moelm_att_cols(lm)),
        .mid = take(lm, arena, rows, lm->d),
        .ffn_norm = take(lm, arena, rows, lm->d),
        .ffn_rms = take_wide(arena, rows, 1),
    };
    carve_raw(lm, arena, rows, true, s);
}

static void carve_shared(const moe_lm *lm, moei_arena *arena, int64_t rows, moelm_memory *mem) {
    void *stream = take(lm, arena, rows, lm->d);
    moelm_saved s = {
        .in = stream,
        .norm = take(lm, arena, rows, lm->d),
        .qkv = take(lm, arena, rows, moelm_qkv_cols(lm)),
        .att = take(lm, arena, rows, moelm_att_cols(lm)),
        .mid = stream,
    };
    s.ffn_norm = s.norm;
    carve_raw(lm, arena, rows, false, &s);
    mem->out = stream;
    if (!arena->base) return;
    for (int32_t i = 0; i < lm->n_layers; ++i) lm->blocks[i].saved = s;
}

static void carve_backward(const moe_lm *lm, moei_arena *arena, int64_t rows, moelm_memory *mem) {
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        moelm_saved s;
        carve_saved(lm, arena, rows, &s);
        if (arena->base) lm->blocks[i].saved = s;
    }
    mem->out = take(lm, arena, rows, lm->d);
    mem->dout = take(lm, arena, rows, lm->d);
    mem->dnorm = take(lm, arena, rows, lm->d);
    mem->dlogits = lm->dtype == MOE_F32 ? mem->logits : take(lm, arena, mem->head_rows, lm->vocab);
    mem->dqkv = take(lm, arena, rows, moelm_qkv_cols(lm));
    mem->datt = take(lm, arena, rows, moelm_att_cols(lm));
    mem->delta = take_wide(arena, rows, lm->heads);
    mem->order = moei_arena_take(arena, (size_t)rows * sizeof *mem->order);
    mem->offset = moei_arena_take(arena, (size_t)(lm->vocab + 1) * sizeof *mem->offset);
}

static void carve(const moe_lm *lm, moei_arena *arena, moelm_memory *mem) {
    int64_t rows = mem->max_rows,
            most = HEAD_NUMBERS / lm->vocab > HEAD_ROWS ? HEAD_NUMBERS / lm->vocab : HEAD_ROWS;
    mem->head_rows = most < rows ? most : rows;
    mem->position = moei_arena_take(arena, (size_t)rows * sizeof *mem->position);
    mem->kv_lens = moei_arena_take(arena, (size_t)mem->max_sequences * sizeof *mem->kv_lens);
    mem->kv_rows = moei_arena_take(arena, (size_t)mem->max_sequences * sizeof *mem->kv_rows);
    mem->norm = take(lm, arena, rows, lm->d);
    mem->rms = take_wide(arena, rows, 1);
    mem->branch = take(lm, arena, rows, lm->d);
    mem->logits = take_wide(arena, mem->head_rows, lm->vocab);
    mem->row_loss = take_wide(arena, mem->head_rows, 1);
    if (mem->mode == MOE_TRAIN)
        carve_backward(lm, arena, rows, mem);
    else
        carve_shared(lm, arena, rows, mem);
}

/* The first layer of the same kind: it takes the same scratch for the same rows. */
static moe_layer *scratch_owner(const moe_lm *lm, int32_t index) {
    int32_t experts = moe_layer_get_desc(lm->blocks[index].ffn)->num_experts, i = 0;
    while (moe_layer_get_desc(lm->blocks[i].ffn)->num_experts != experts) ++i;
    return lm->blocks[i].ffn;
}

/* The layers work one after the other, so those of a kind share one scratch block. */
static moe_status reserve_layers(moe_lm *lm, const moelm_memory *mem) {
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        moe_layer *layer = lm->blocks[i].ffn, *owner = scratch_owner(lm, i);
        if (layer != owner) MOEI_TRY(moe_layer_share_scratch(layer, owner));
        MOEI_TRY(moe_layer_limit_sequences(layer, mem->max_sequences));
        MOEI_TRY(moe_layer_reserve(layer, mem->max_rows, mem->mode));
    }
    return MOE_OK;
}

/* Runs once to measure and once to hand out: see core/arena.h. */
static void carve_grads(moe_lm *lm, moei_arena *arena) {
    for (int32_t i = 0; i < lm->n_entries; ++i) {
        moelm_tensor *tensor = lm->entries[i].tensor;
        if (tensor) tensor->grad = take_wide(arena, tensor->dim[0], tensor->dim[1]);
    }
    if (lm->head.value == lm->embed.value) lm->head.grad = lm->embed.grad;
}

static moe_status reserve_grads(moe_lm *lm) {
    if (lm->grads) return MOE_OK;
    moei_arena arena = {0};
    carve_grads(lm, &arena);
    lm->grads = moe_ctx_alloc(lm->ctx, arena.used);
    if (!lm->grads) return moei_ctx_no_memory(lm->ctx, "gradients of the model but for its experts");
    lm->grad_bytes = arena.used;
    memset(lm->grads, 0, lm->grad_bytes);
    arena = (moei_arena){.base = lm->grads};
    carve_grads(lm, &arena);
    return MOE_OK;
}

static moe_status check(moe_lm *lm, int64_t n_seq, int64_t length) {
    if (n_seq < 1 || length < 1)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "%lld sequences of %lld tokens: both must be at least 1", (long long)n_seq,
                            (long long)length);
    if (length > lm->context)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "a sequence of %lld tokens is longer than the model's context of %lld",
                            (long long)length, (long long)lm->context);
    if (n_seq > MOST_TOKENS / length)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "%lld sequences of %lld tokens: more than %d tokens at once", (long long)n_seq,
                            (long long)length, MOST_TOKENS);
    return MOE_OK;
}

/* What is reserved after a call for so much: never less than before. */
static moelm_memory grown(const moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode) {
    moelm_memory mem = {.max_rows = n_seq * length, .max_sequences = n_seq, .mode = mode};
    if (lm->memory.max_rows > mem.max_rows) mem.max_rows = lm->memory.max_rows;
    if (lm->memory.max_sequences > n_seq) mem.max_sequences = lm->memory.max_sequences;
    if (lm->memory.mode == MOE_TRAIN) mem.mode = MOE_TRAIN;
    return mem;
}

void moelm_pretend_reserved(moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode) {
    lm->memory = grown(lm, n_seq, length, mode);
}

/* What an unowned layer, of shapes alone, would hold and does not count. */
static size_t lent_bytes(const moe_layer *layer, moe_mode mode) {
    size_t sum = 0;
    for (int32_t i = 0; moe_layer_get_desc(layer)->unowned && i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        if (moe_layer_param(layer, i, &param) != MOE_OK) continue;
        const bool grad = mode == MOE_TRAIN && !param.buffer && !param.frozen;
        sum += (size_t)moelm_param_numbers(&param) *
               (moe_dtype_bytes(param.dtype) + (grad ? moe_dtype_bytes(param.grad_dtype) : 0));
    }
    return sum;
}

moe_status moe_lm_measure(moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode, size_t *bytes) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_measure", "bytes", bytes));
    MOEI_TRY(check(lm, n_seq, length));
    moelm_memory mem = grown(lm, n_seq, length, mode);
    moei_arena arena = {0}, grads = {.used = lm->grad_bytes};
    carve(lm, &arena, &mem);
    if (mem.mode == MOE_TRAIN && !lm->grads) carve_grads(lm, &grads);
    size_t sum = lm->value_bytes + arena.used + grads.used;
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        moe_layer *layer = lm->blocks[i].ffn;
        moe_layer_bytes of_layer = {.size = sizeof of_layer};
        MOEI_TRY(moe_layer_limit_sequences(layer, mem.max_sequences));
        MOEI_TRY(moe_layer_measure(layer, mem.max_rows, mem.mode, &of_layer));
        sum += of_layer.params + of_layer.grads + of_layer.saved + of_layer.packed;
        sum += lent_bytes(layer, mem.mode);
        if (scratch_owner(lm, i) == layer) sum += of_layer.scratch;
    }
    *bytes = sum;
    return MOE_OK;
}

moe_status moe_lm_reserve(moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check(lm, n_seq, length));
    moelm_memory mem = grown(lm, n_seq, length, mode);
    if (lm->memory.max_rows == mem.max_rows && lm->memory.max_sequences == mem.max_sequences &&
        lm->memory.mode == mem.mode)
        return MOE_OK;

    MOEI_TRY(reserve_layers(lm, &mem));
    if (mem.mode == MOE_TRAIN) MOEI_TRY(reserve_grads(lm));
    moei_arena arena = {0};
    carve(lm, &arena, &mem);
    mem.bytes = arena.used;
    mem.block = moe_ctx_alloc(lm->ctx, mem.bytes);
    if (!mem.block)
        return moei_ctx_no_memory(lm->ctx, "activations of %lld tokens at once", (long long)mem.max_rows);
    arena = (moei_arena){.base = mem.block};
    carve(lm, &arena, &mem);
    moe_ctx_free(lm->ctx, lm->memory.block, lm->memory.bytes);
    lm->memory = mem;
    return MOE_OK;
}

void moelm_release(moe_lm *lm) {
    moe_lm_batch_destroy(lm->own);
    moe_ctx_free(lm->ctx, lm->memory.block, lm->memory.bytes);
    moe_ctx_free(lm->ctx, lm->grads, lm->grad_bytes);
    moe_ctx_free(lm->ctx, lm->values, lm->value_bytes);
}
