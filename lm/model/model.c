/* model.c: a model made from its configuration: tensors, names, initial values, counts.
 * Names: embed.weight, blocks.N.{norm,qkv,q_norm,k_norm,out,ffn_norm}.weight (q_norm, k_norm where
 * model.qk_norm asks for them), blocks.N.ffn.<layer's name>, final_norm.weight, head.weight (not where tied).
 * Source: initial values of GPT-2 (Radford et al. 2019).
 */
#include "model/model.h"

#include "core/ctx.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The layers draw from steps of their own; the model's tensors start far behind them. */
enum { DRAW_STEP = 1 << 20 };

moe_status moelm_fail(moe_ctx *ctx, const moe_error *error) {
    return moe_ctx_fail(ctx, error->status, "%s", error->text);
}

/* Only what makes the model; the settings of a training run are not its own. */
static bool is_of_model(const char *key) {
    return strncmp(key, "model.", 6) == 0 || strncmp(key, "moe.", 4) == 0;
}

static moe_status copy_config(const moe_lm_config *from, moe_lm_config **to, moe_error *error) {
    MOEI_TRY(moe_lm_config_create(to, error));
    for (size_t i = 0; i < moe_lm_config_count(from); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(from, i, &entry);
        if (!is_of_model(entry.option->key)) continue;
        MOEI_TRY(moe_lm_config_set(*to, entry.option->key, entry.value, entry.origin, error));
    }
    return MOE_OK;
}

static void take_sizes(moe_lm *lm) {
    const moelm_model_config *m = &lm->config->model;
    lm->dtype = moelm_config_dtype(lm->config);
    lm->vocab = m->vocab_size;
    lm->d = m->d_model;
    lm->context = m->context;
    lm->n_layers = m->n_layers;
    lm->heads = m->n_heads;
    lm->kv_heads = m->n_kv_heads ? m->n_kv_heads : m->n_heads;
    lm->head_dim = m->head_dim ? m->head_dim : m->d_model / m->n_heads;
    lm->eps = m->norm_eps;
    lm->rope_base = m->rope_base;
    lm->clip = m->clip_qkv;
    lm->qk_norm = strcmp(m->qk_norm, "head") == 0   ? MOELM_QK_HEAD
                  : strcmp(m->qk_norm, "full") == 0 ? MOELM_QK_FULL
                                                    : MOELM_QK_NONE;
}

/* 1. Tensors. */

static void carve_tensor(const moe_lm *lm, moei_arena *arena, moelm_tensor *tensor, int64_t rows,
                         int64_t cols) {
    *tensor = (moelm_tensor){
        .n_dim = cols ? 2 : 1, .dim = {rows, cols ? cols : 1}
    };
    tensor->value = moei_arena_array(arena, rows, tensor->dim[1], moe_dtype_bytes(lm->dtype));
}

static void carve_qk_norms(const moe_lm *lm, moei_arena *arena, moelm_block *block) {
    const bool each = lm->qk_norm == MOELM_QK_HEAD;
    if (lm->qk_norm == MOELM_QK_NONE) return;
    carve_tensor(lm, arena, &block->q_norm, each ? lm->head_dim : moelm_att_cols(lm), 0);
    carve_tensor(lm, arena, &block->k_norm, each ? lm->head_dim : moelm_kv_cols(lm), 0);
}

static void carve_tensors(moe_lm *lm, moei_arena *arena) {
    carve_tensor(lm, arena, &lm->embed, lm->vocab, lm->d);
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        moelm_block *block = &lm->blocks[i];
        carve_tensor(lm, arena, &block->norm, lm->d, 0);
        carve_tensor(lm, arena, &block->qkv, lm->d, moelm_qkv_cols(lm));
        carve_qk_norms(lm, arena, block);
        carve_tensor(lm, arena, &block->out, moelm_att_cols(lm), lm->d);
        carve_tensor(lm, arena, &block->ffn_norm, lm->d, 0);
    }
    carve_tensor(lm, arena, &lm->final_norm, lm->d, 0);
    if (lm->config->model.tie_embeddings)
        lm->head = lm->embed;
    else
        carve_tensor(lm, arena, &lm->head, lm->vocab, lm->d);
}

/* What is done about the weights: drawn, zeros for who reads them from a file, or only their shapes. */
typedef enum making { DRAWN, ZEROS, SHAPES } making;

moe_status moelm_fill_tensors(moe_lm *lm) {
    moei_arena arena = {0};
    lm->values = moe_ctx_alloc(lm->ctx, lm->value_bytes);
    if (!lm->values) return moei_ctx_no_memory(lm->ctx, "weights of the model but for its experts");
    memset(lm->values, 0, lm->value_bytes); /* the gaps between tensors too */
    arena.base = lm->values;
    carve_tensors(lm, &arena);
    return MOE_OK;
}

static moe_status make_tensors(moe_lm *lm, making how) {
    moei_arena arena = {0};
    carve_tensors(lm, &arena);
    lm->value_bytes = arena.used;
    return how == SHAPES ? MOE_OK : moelm_fill_tensors(lm);
}

static moe_status make_layer(moe_lm *lm, int32_t index, making how) {
    moe_layer_desc desc;
    moe_layer **layer = &lm->blocks[index].ffn;
    moelm_config_layer(lm->config, index, &desc);
    desc.undrawn = how != DRAWN;
    desc.unowned = how == SHAPES;
    const moe_status status = moe_layer_create(lm->ctx, &desc, layer);
    if (how != SHAPES || status != MOE_ERR_UNSUPPORTED) return status;
    desc.unowned = false; /* experts of a registered kind have memory of their own */
    return moe_layer_create(lm->ctx, &desc, layer);
}

moe_status moelm_fill_layer(moe_lm *lm, int32_t index) {
    moe_layer **layer = &lm->blocks[index].ffn, *shapes = *layer;
    if (!moe_layer_get_desc(shapes)->unowned) return MOE_OK; /* the weights are there */
    MOEI_TRY(make_layer(lm, index, ZEROS));
    for (int32_t i = 0; i < lm->n_entries; ++i)
        if (lm->entries[i].layer == shapes) lm->entries[i].layer = *layer;
    moe_layer_destroy(shapes);
    return MOE_OK;
}

static moe_status make_layers(moe_lm *lm, making how) {
    for (int32_t i = 0; i < lm->n_layers; ++i) MOEI_TRY(make_layer(lm, i, how));
    return MOE_OK;
}

/* 2. Names. */

static moelm_entry *add_entry(moe_lm *lm, const char *prefix, const char *name, moelm_tensor *tensor) {
    moelm_entry *entry = &lm->entries[lm->n_entries++];
    *entry = (moelm_entry){.tensor = tensor};
    snprintf(entry->name, sizeof entry->name, "%s%s", prefix, name);
    return entry;
}

static moe_status add_layer_entries(moe_lm *lm, const char *prefix, moe_layer *layer) {
    char ffn[MOELM_NAME];
    snprintf(ffn, sizeof ffn, "%sffn.", prefix);
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        MOEI_TRY(moe_layer_param(layer, i, &param));
        if (strlen(ffn) + strlen(param.name) >= MOELM_NAME)
            return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                                "parameter name '%s' of the expert is too long: at most %d bytes", param.name,
                                MOELM_NAME - 1 - (int)strlen(ffn));
        moelm_entry *entry = add_entry(lm, ffn, param.name, NULL);
        entry->layer = layer;
        entry->param = i;
    }
    return MOE_OK;
}

static moe_status make_entries(moe_lm *lm) {
    size_t count = 3;
    for (int32_t i = 0; i < lm->n_layers; ++i) count += 6 + (size_t)moe_layer_param_count(lm->blocks[i].ffn);
    lm->entries = calloc(count, sizeof *lm->entries);
    if (!lm->entries)
        return moe_ctx_fail(lm->ctx, MOE_ERR_MEMORY, "no memory for %zu parameter names", count);
    add_entry(lm, "", "embed.weight", &lm->embed);
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        moelm_block *block = &lm->blocks[i];
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blocks.%d.", i);
        add_entry(lm, prefix, "norm.weight", &block->norm);
        add_entry(lm, prefix, "qkv.weight", &block->qkv);
        if (block->q_norm.n_dim) add_entry(lm, prefix, "q_norm.weight", &block->q_norm);
        if (block->k_norm.n_dim) add_entry(lm, prefix, "k_norm.weight", &block->k_norm);
        add_entry(lm, prefix, "out.weight", &block->out);
        add_entry(lm, prefix, "ffn_norm.weight", &block->ffn_norm);
        MOEI_TRY(add_layer_entries(lm, prefix, block->ffn));
    }
    add_entry(lm, "", "final_norm.weight", &lm->final_norm);
    if (!lm->config->model.tie_embeddings) add_entry(lm, "", "head.weight", &lm->head);
    return MOE_OK;
}

/* 3. Initial values: norms one, the rest normal; the branch ends of L blocks add up to unit variance. */

static void draw(moe_lm *lm, moelm_tensor *tensor, uint32_t layer, uint64_t step, double std) {
    int64_t n = tensor->dim[0] * tensor->dim[1];
    if (!tensor->value) return; /* a norm that there is not */
    if (tensor->n_dim == 1)
        for (int64_t i = 0; i < n; ++i) moei_real_store(lm->dtype, tensor->value, i, 1.0);
    else
        moei_normal_draw(&lm->ctx->team, &(moei_normal){.seed = moe_ctx_seed(lm->ctx),
                                                        .purpose = MOE_DRAW_INIT,
                                                        .layer = layer,
                                                        .step = DRAW_STEP + step,
                                                        .dtype = lm->dtype,
                                                        .x = tensor->value,
                                                        .n = n,
                                                        .std = std});
}

static void draw_all(moe_lm *lm) {
    double std = (double)lm->config->model.init_std;
    draw(lm, &lm->embed, 0, 0, std);
    draw(lm, &lm->final_norm, 0, 0, std);
    if (lm->head.value != lm->embed.value) draw(lm, &lm->head, 0, 1, std);
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        moelm_block *block = &lm->blocks[i];
        draw(lm, &block->norm, (uint32_t)i, 0, std);
        draw(lm, &block->qkv, (uint32_t)i, 2, std);
        draw(lm, &block->q_norm, (uint32_t)i, 0, std);
        draw(lm, &block->k_norm, (uint32_t)i, 0, std);
        draw(lm, &block->out, (uint32_t)i, 3, std / sqrt(2.0 * lm->n_layers));
        draw(lm, &block->ffn_norm, (uint32_t)i, 0, std);
    }
}

/* 4. Life. */

static moe_status make(moe_lm *lm, making how) {
    lm->blocks = calloc((size_t)lm->n_layers, sizeof *lm->blocks);
    if (!lm->blocks) return moe_ctx_fail(lm->ctx, MOE_ERR_MEMORY, "no memory for %d blocks", lm->n_layers);
    MOEI_TRY(make_tensors(lm, how));
    MOEI_TRY(make_layers(lm, how));
    MOEI_TRY(make_entries(lm));
    if (how == DRAWN) draw_all(lm);
    return MOE_OK;
}

static moe_status create(moe_ctx *ctx, const moe_lm_config *config, making how, moe_lm **lm) {
    MOEI_TRY(moei_ctx_need(ctx, "moe_lm_create", "lm", lm));
    moe_error error = {0};
    if (moe_lm_config_check(config, &error) != MOE_OK) return moelm_fail(ctx, &error);
    moe_lm *made = calloc(1, sizeof *made);
    if (!made) return moe_ctx_fail(ctx, MOE_ERR_MEMORY, "no memory for a model");
    made->ctx = ctx;
    moe_status status = copy_config(config, &made->config, &error);
    if (status == MOE_OK) {
        take_sizes(made);
        status = make(made, how);
    } else {
        moelm_fail(ctx, &error);
    }
    if (status != MOE_OK) {
        moe_lm_destroy(made);
        return status;
    }
    *lm = made;
    return MOE_OK;
}

moe_status moelm_create(moe_ctx *ctx, const moe_lm_config *config, bool drawn, moe_lm **lm) {
    return create(ctx, config, drawn ? DRAWN : ZEROS, lm);
}

moe_status moelm_create_shapes(moe_ctx *ctx, const moe_lm_config *config, moe_lm **lm) {
    return create(ctx, config, SHAPES, lm);
}

/* Allowed, as in the papers; but who compares bits per byte must know. */
void moelm_warn_of_foresight(const moe_lm *lm) {
    const char *why = moe_lm_config_foresight(lm->config);
    if (why) moei_log(lm->ctx, MOE_LOG_WARN, MOELM_FORESIGHT, why);
}

moe_status moe_lm_create(moe_ctx *ctx, const moe_lm_config *config, moe_lm **lm) {
    MOEI_TRY(moelm_create(ctx, config, true, lm));
    moelm_warn_of_foresight(*lm);
    return MOE_OK;
}

void moe_lm_destroy(moe_lm *lm) {
    if (!lm) return;
    for (int32_t i = 0; lm->blocks && i < lm->n_layers; ++i) moe_layer_destroy(lm->blocks[i].ffn);
    moelm_release(lm);
    moe_lm_config_destroy(lm->config);
    free(lm->entries);
    free(lm->blocks);
    free(lm);
}

/* 5. What a caller may ask. */

moe_layer *moe_lm_layer(moe_lm *lm, int32_t index) {
    return lm && index >= 0 && index < lm->n_layers ? lm->blocks[index].ffn : NULL;
}

moe_status moe_lm_layer_stats(const moe_lm *lm, int32_t index, moe_stats *stats) {
    if (!lm) return MOE_ERR_ARGUMENT;
    if (index < 0 || index >= lm->n_layers)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "layer %d is outside 0 .. %d", index,
                            lm->n_layers - 1);
    return moei_ctx_desc_write(lm->ctx, stats, &lm->blocks[index].stats, sizeof *stats, "moe_stats");
}

int32_t moe_lm_param_count(const moe_lm *lm) {
    return lm ? lm->n_entries : 0;
}

moe_status moe_lm_param(const moe_lm *lm, int32_t index, moe_param *param) {
    if (!lm) return MOE_ERR_ARGUMENT;
    if (index < 0 || index >= lm->n_entries)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "parameter %d: the model has %d", index,
                            lm->n_entries);
    const moelm_entry *entry = &lm->entries[index];
    const moelm_tensor *t = entry->tensor;
    moe_param found = {.size = sizeof found};
    if (entry->layer)
        MOEI_TRY(moe_layer_param(entry->layer, entry->param, &found));
    else
        found = (moe_param){
            .dtype = lm->dtype,
            .n_dim = t->n_dim,
            .dim = {t->dim[0], t->dim[1]},
            .value = t->value,
            .grad = t->grad,
            .grad_dtype = moei_wide(lm->dtype)
        };
    found.name = entry->name;
    return moei_ctx_desc_write(lm->ctx, param, &found, sizeof found, "moe_param");
}

void moelm_zero_own_grad(moe_lm *lm) {
    if (lm->grads) memset(lm->grads, 0, lm->grad_bytes);
}

void moe_lm_zero_grad(moe_lm *lm) {
    if (!lm) return;
    moelm_zero_own_grad(lm);
    for (int32_t i = 0; i < lm->n_layers; ++i) moe_layer_zero_grad(lm->blocks[i].ffn);
}

int64_t moelm_param_numbers(const moe_param *param) {
    int64_t n = 1;
    for (int32_t i = 0; i < param->n_dim; ++i) n *= param->dim[i];
    return n;
}

bool moelm_param_alike(const moe_param *a, const moe_param *b) {
    bool same = a->dtype == b->dtype && a->n_dim == b->n_dim;
    for (int32_t d = 0; same && d < a->n_dim; ++d) same = a->dim[d] == b->dim[d];
    return same;
}

void moelm_param_copy(const moe_param *to, const moe_param *from) {
    memcpy(to->value, from->value, (size_t)moelm_param_numbers(to) * moe_dtype_bytes(to->dtype));
}

/* A token meets K of the E routed experts, whatever an expert names its parameters; of two levels, two of the
 * inner gates and four experts. */
static int64_t active_of(const moelm_entry *entry, const moe_param *param) {
    int64_t n = moelm_param_numbers(param);
    if (!entry->layer) return n;
    const moe_layer_desc *desc = moe_layer_get_desc(entry->layer);
    const char *name = strstr(entry->name, ".ffn.") + 5;
    const bool levels = desc->num_groups_outer > 0;
    if (strcmp(name, "gate_inner.weight") == 0) return n / desc->num_groups_outer * 2;
    if (strncmp(name, "experts.", 8) != 0) return n;
    return n / desc->num_experts * (levels ? 4 : desc->top_k);
}

moe_status moe_lm_get_info(const moe_lm *lm, moe_lm_info *info) {
    if (!lm) return MOE_ERR_ARGUMENT;
    moe_lm_info full = {
        .vocab_size = lm->vocab,
        .d_model = lm->d,
        .context = lm->context,
        .n_layers = lm->n_layers,
        .n_heads = lm->heads,
        .n_kv_heads = lm->kv_heads,
        .head_dim = lm->head_dim,
    };
    for (int32_t i = 0; i < lm->n_entries; ++i) {
        moe_param param = {.size = sizeof param};
        if (moe_lm_param(lm, i, &param) != MOE_OK || param.buffer) continue;
        full.params_total += moelm_param_numbers(&param);
        full.params_active += active_of(&lm->entries[i], &param);
    }
    return moei_ctx_desc_write(lm->ctx, info, &full, sizeof full, "moe_lm_info");
}

const char *moelm_company(const moe_lm *lm) {
    const char *why = NULL;
    for (int32_t i = 0; i < lm->n_layers && !why; ++i) why = moe_layer_company(lm->blocks[i].ffn);
    return why;
}
