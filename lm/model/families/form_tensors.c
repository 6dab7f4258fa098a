/* form_tensors.c: the tensors of a form: names, and where their numbers stand in the model.
 * q, k, v of the file are [out, in] and stand side by side in our [in, out]; an expert's gate and up are the
 * two halves of our up projection, as those of a layer without experts are of its only shared expert's.
 * Source: the tensor names of the transformers library, older than its fused experts.
 */
#include "model/families/form.h"

#include <stdio.h>

typedef struct visitor {
    const moelm_form *form;
    const moe_lm *lm;
    moelm_slice_fn fn;
    void *user;
    int32_t layer;
} visitor;

static moe_status visit_vector(const visitor *v, const char *name, const moelm_tensor *t) {
    moelm_slice slice = {
        .n_dim = 1, .dim = {t->dim[0]}, .value = t->value, .dtype = v->lm->dtype, .col_step = 1};
    snprintf(slice.name, sizeof slice.name, "model.layers.%d.%s.weight", v->layer, name);
    return v->fn(v->user, &slice);
}

/* Number i behind value; NULL where there are only shapes. */
static const void *behind(const visitor *v, const void *value, int64_t i) {
    return value ? moelm_at(v->lm, value, i) : NULL;
}

/* `out` columns, from `first`, of a weight [in, cols] of ours: the file has [out, in]. */
static moe_status visit_columns(const visitor *v, const char *name, const void *value, int64_t in,
                                int64_t cols, int64_t first, int64_t out) {
    moelm_slice slice = {
        .n_dim = 2,
        .dim = {out, in},
        .value = (void *)(uintptr_t)behind(v, value, first),
        .dtype = v->lm->dtype,
        .row_step = 1,
        .col_step = cols
    };
    snprintf(slice.name, sizeof slice.name, "model.layers.%d.%s.weight", v->layer, name);
    return v->fn(v->user, &slice);
}

static moe_status visit_attention(const visitor *v, const moelm_block *block) {
    const moe_lm *lm = v->lm;
    int64_t d = lm->d, q = moelm_att_cols(lm), kv = moelm_kv_cols(lm), cols = moelm_qkv_cols(lm);
    MOEI_TRY(visit_columns(v, "self_attn.q_proj", block->qkv.value, d, cols, 0, q));
    MOEI_TRY(visit_columns(v, "self_attn.k_proj", block->qkv.value, d, cols, q, kv));
    MOEI_TRY(visit_columns(v, "self_attn.v_proj", block->qkv.value, d, cols, q + kv, kv));
    MOEI_TRY(visit_columns(v, "self_attn.o_proj", block->out.value, q, d, 0, d));
    if (lm->qk_norm == MOELM_QK_NONE) return MOE_OK;
    MOEI_TRY(visit_vector(v, "self_attn.q_norm", &block->q_norm));
    return visit_vector(v, "self_attn.k_norm", &block->k_norm);
}

/* One FFN below `ffn`: gate and up side by side in up[d, 2n], down[n, d]. */
static moe_status visit_ffn(const visitor *v, const char *ffn, const void *up, const void *down, int64_t n) {
    const moelm_form *form = v->form;
    const int64_t d = v->lm->d;
    char name[64];
    snprintf(name, sizeof name, "%s.%s", ffn, form->gate);
    MOEI_TRY(visit_columns(v, name, up, d, 2 * n, 0, n));
    snprintf(name, sizeof name, "%s.%s", ffn, form->down);
    MOEI_TRY(visit_columns(v, name, down, n, d, 0, d));
    snprintf(name, sizeof name, "%s.%s", ffn, form->up);
    return visit_columns(v, name, up, d, 2 * n, n, n);
}

static moe_status visit_dense(const visitor *v, const moe_layer *ffn) {
    moe_param up = {.size = sizeof up}, down = {.size = sizeof down};
    MOEI_TRY(moe_layer_param_by_name(ffn, "shared.up.weight", &up));
    MOEI_TRY(moe_layer_param_by_name(ffn, "shared.down.weight", &down));
    return visit_ffn(v, v->form->ffn, up.value, down.value, down.dim[1]);
}

static moe_status visit_experts(const visitor *v, const moe_layer *ffn) {
    moe_param gate = {.size = sizeof gate}, up = {.size = sizeof up}, down = {.size = sizeof down};
    MOEI_TRY(moe_layer_param_by_name(ffn, "gate.weight", &gate));
    MOEI_TRY(moe_layer_param_by_name(ffn, "experts.up.weight", &up));
    MOEI_TRY(moe_layer_param_by_name(ffn, "experts.down.weight", &down));
    char name[64];
    snprintf(name, sizeof name, "model.layers.%d.%s.gate.weight", v->layer, v->form->ffn);
    moelm_slice slice = moelm_family_whole(name, &gate);
    MOEI_TRY(v->fn(v->user, &slice));
    int64_t d = v->lm->d, n = down.dim[1];
    for (int32_t e = 0; e < (int32_t)gate.dim[0]; ++e) {
        snprintf(name, sizeof name, "%s.experts.%d", v->form->ffn, e);
        MOEI_TRY(visit_ffn(v, name, behind(v, up.value, e * d * 2 * n), behind(v, down.value, e * n * d), n));
    }
    return MOE_OK;
}

static moe_status visit_table(const visitor *v, const char *name, const moelm_tensor *t) {
    const moe_param param = {
        .dtype = v->lm->dtype, .n_dim = t->n_dim, .dim = {t->dim[0], t->dim[1]},
                .value = t->value
    };
    moelm_slice slice = moelm_family_whole(name, &param);
    return v->fn(v->user, &slice);
}

static moe_status visit_block(const visitor *v) {
    const moelm_block *block = &v->lm->blocks[v->layer];
    MOEI_TRY(visit_vector(v, "input_layernorm", &block->norm));
    MOEI_TRY(visit_attention(v, block));
    MOEI_TRY(visit_vector(v, "post_attention_layernorm", &block->ffn_norm));
    const bool routed = moe_layer_get_desc(block->ffn)->num_experts > 0;
    return routed ? visit_experts(v, block->ffn) : visit_dense(v, block->ffn);
}

moe_status moelm_form_visit(const moelm_family *family, const moe_lm *lm, int32_t part, moelm_slice_fn fn,
                            void *user) {
    const visitor v = {.form = family->form, .lm = lm, .fn = fn, .user = user, .layer = part - 1};
    if (part == 0) return visit_table(&v, "model.embed_tokens.weight", &lm->embed);
    if (part <= lm->n_layers) return visit_block(&v);
    MOEI_TRY(visit_table(&v, "model.norm.weight", &lm->final_norm));
    if (lm->config->model.tie_embeddings) return MOE_OK;
    return visit_table(&v, "lm_head.weight", &lm->head);
}
