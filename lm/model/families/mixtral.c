/* mixtral.c: Mixtral's checkpoint family, as the transformers library reads and writes it.
 * q, k, v of the file are [out, in] and stand side by side in our [in, out]; an expert's w1 (gate) and w3
 * (up) are the two halves of our up projection, its w2 our down projection. Source: Jiang et al. 2024; the
 * tensor names of MixtralForCausalLM.
 */
#include "model/families/family.h"

#include <moekit/expert.h>

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* Settings that Mixtral's config.json has under a name of its own. */
static const struct {
    const char *theirs, *ours;
} fields[] = {
    {"vocab_size",              "model.vocab_size"      },
    {"hidden_size",             "model.d_model"         },
    {"num_hidden_layers",       "model.n_layers"        },
    {"num_attention_heads",     "model.n_heads"         },
    {"max_position_embeddings", "model.context"         },
    {"rms_norm_eps",            "model.norm_eps"        },
    {"num_local_experts",       "moe.num_experts"       },
    {"num_experts_per_tok",     "moe.top_k"             },
    {"intermediate_size",       "moe.expert_hidden_size"},
};
/* Those that it may leave out: ours is set to `missing` then. */
static const struct {
    const char *theirs, *ours, *missing;
} optional[] = {
    {"num_key_value_heads", "model.n_kv_heads",     "0"    },
    {"head_dim",            "model.head_dim",       "0"    },
    {"tie_word_embeddings", "model.tie_embeddings", "false"},
    {"initializer_range",   "model.init_std",       "0.02" },
    {"router_jitter_noise", "moe.input_jitter_eps", "0"    },
};
/* Those that it does not know; kept in an object "moekit", which transformers passes over: two ways to say
 * the same weights, and what only training heeds. */
static const char *const extra[] = {"moe.score_before_topk",
                                    "moe.norm_topk_prob",
                                    "moe.top_k_min",
                                    "moe.dropout",
                                    "moe.expert_dropout",
                                    "moe.token_rounding",
                                    "moe.router_frozen",
                                    "moe.aux_loss_type",
                                    "moe.aux_map",
                                    "moe.seq_aux_loss_coeff",
                                    "moe.global_aux_loss_coeff",
                                    "moe.importance_loss_coeff",
                                    "moe.entropy_loss_coeff",
                                    "moe.z_loss_coeff",
                                    "moe.init_scheme",
                                    "moe.router_init",
                                    "moe.init_std",
                                    "moe.init_std_down",
                                    "moe.init_std_scale",
                                    "moe.recompute",
                                    "moe.saved_dtype"};
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Hugging Face's name of the activation that the gate column goes through; NULL: it has none. */
static const char *hidden_act(const moe_lm_config *config) {
    const moe_layer_alias *alias;
    for (size_t i = 0; (alias = moe_layer_alias_at(i)); ++i) {
        const moe_alias_setting *sets = moe_layer_alias_setting(alias, 0);
        if (strcmp(alias->name, "hidden_act") == 0 && sets && sets->value &&
            strcmp(sets->value, config->moe.activation) == 0)
            return alias->value;
    }
    return NULL;
}

/* Settings of the layer that the tables, read_activation and read_losses carry. */
static bool is_carried(const char *key) {
    static const char *const apart[] = {"moe.d_model", "moe.activation", "moe.aux_loss_coeff"};
    for (size_t i = 0; i < COUNT(apart); ++i)
        if (strcmp(key, apart[i]) == 0) return true;
    for (size_t i = 0; i < COUNT(fields); ++i)
        if (strcmp(key, fields[i].ours) == 0) return true;
    for (size_t i = 0; i < COUNT(optional); ++i)
        if (strcmp(key, optional[i].ours) == 0) return true;
    for (size_t i = 0; i < COUNT(extra); ++i)
        if (strcmp(key, extra[i]) == 0) return true;
    return false;
}

static int32_t chosen_k(const moe_lm_config *config) {
    return config->moe.top_k ? config->moe.top_k : config->moe.num_experts < 2 ? 1 : 2;
}

/* Every other setting must be at its default: a layer of ours, by default, is Mixtral's. Softmax over the
 * selected is softmax over all, renormalised over the selected. */
static bool fits(const moe_lm_config *config) {
    const moe_layer_desc *moe = &config->moe;
    if (config->model.n_layers > 1 && config->model.moe_layer_freq != 1) return false;
    if (config->model.moe_layer_freq < 1 || moe->num_experts < 1 || !hidden_act(config)) return false;
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        char value[1024];
        moei_option_get(row, moe, value, sizeof value);
        if (!is_carried(row->key) && strcmp(value, row->initial) != 0) return false;
    }
    if (moe->norm_topk_prob && chosen_k(config) == 1) return false; /* one weight is not renormalised */
    return moe->score_before_topk == moe->norm_topk_prob;
}

/* 1. config.json. */

/* Theirs multiplies E * sum f P over all layers at once with f summing to K, ours each layer's with f summing
 * to 1, so with equal loads coeff = coef * K / L. */
static double loss_scale(const moe_lm_config *config) {
    return (double)chosen_k(config) / (double)config->model.n_layers;
}

static moe_status refuse(const char *field, const char *value, const char *right, moe_error *error) {
    return moei_error_set(error, MOE_ERR_UNSUPPORTED, "config.json: %s %.60s is not supported; %s", field,
                          value, right);
}

static moe_status read_limits(const json_t *root, const moe_lm_config *config, moe_error *error) {
    double dropout = 0;
    int64_t window = INT64_MAX;
    json_t *scaling = NULL;
    MOEI_TRY(moelm_json_opt_real(root, "config.json", "attention_dropout", &dropout, error));
    MOEI_TRY(moelm_json_opt_int(root, "config.json", "sliding_window", 1, INT64_MAX, &window, error));
    MOEI_TRY(moelm_json_opt_object(root, "config.json", "rope_scaling", &scaling, error));
    if (dropout != 0) return refuse("attention_dropout", "above 0", "0 is", error);
    if (window < config->model.context)
        return refuse("sliding_window", "below max_position_embeddings",
                      "lower max_position_embeddings to it", error);
    if (scaling) return refuse("rope_scaling", "that is set", "null is", error);
    return MOE_OK;
}

static moe_status read_activation(const json_t *root, moe_lm_config *config, moe_error *error) {
    const char *act = "silu";
    moe_error inner;
    MOEI_TRY(moelm_json_opt_string(root, "config.json", "hidden_act", &act, error));
    if (moe_lm_config_set(config, "hidden_act", act, "config.json", &inner) == MOE_OK) return MOE_OK;
    return moei_error_set(error, MOE_ERR_UNSUPPORTED, "config.json: %s", inner.text);
}

static moe_status read_rope(const json_t *root, moe_lm_config *config, moe_error *error) {
    json_t *rope = NULL;
    const char *type = "default";
    double theta = 1e6;
    MOEI_TRY(moelm_json_opt_real(root, "config.json", "rope_theta", &theta, error));
    MOEI_TRY(moelm_json_opt_object(root, "config.json", "rope_parameters", &rope, error));
    if (rope) {
        MOEI_TRY(moelm_json_opt_real(rope, "config.json: rope_parameters", "rope_theta", &theta, error));
        MOEI_TRY(moelm_json_opt_string(rope, "config.json: rope_parameters", "rope_type", &type, error));
    }
    if (strcmp(type, "default") != 0) return refuse("rope_type", type, "default is", error);
    json_t *value = json_real(theta);
    moe_status status = moelm_family_set(config, "model.rope_base", value, error);
    json_decref(value);
    return status;
}

static moe_status read_fields(const json_t *root, moe_lm_config *config, moe_error *error) {
    for (size_t i = 0; i < COUNT(fields); ++i) {
        const json_t *value = json_object_get(root, fields[i].theirs);
        if (!value)
            return moei_error_set(error, MOE_ERR_INPUT, "config.json: '%s' is missing", fields[i].theirs);
        MOEI_TRY(moelm_family_set(config, fields[i].ours, value, error));
    }
    for (size_t i = 0; i < COUNT(optional); ++i) {
        const json_t *value = json_object_get(root, optional[i].theirs);
        if (value && !json_is_null(value))
            MOEI_TRY(moelm_family_set(config, optional[i].ours, value, error));
        else
            MOEI_TRY(moe_lm_config_set(config, optional[i].ours, optional[i].missing, "config.json", error));
    }
    return MOE_OK;
}

static moe_status read_losses(const json_t *root, moe_lm_config *config, moe_error *error) {
    double coef = 0.001; /* transformers' own default */
    MOEI_TRY(moelm_json_opt_real(root, "config.json", "router_aux_loss_coef", &coef, error));
    json_t *value = json_real(coef * loss_scale(config));
    moe_status status = moelm_family_set(config, "moe.aux_loss_coeff", value, error);
    json_decref(value);
    MOEI_TRY(status);
    MOEI_TRY(moe_lm_config_set(config, "moe.z_loss_coeff", "0", "config.json", error));
    json_t *ours = NULL;
    MOEI_TRY(moelm_json_opt_object(root, "config.json", "moekit", &ours, error));
    for (size_t i = 0; ours && i < COUNT(extra); ++i) {
        const json_t *field = json_object_get(ours, extra[i]);
        if (field) MOEI_TRY(moelm_family_set(config, extra[i], field, error));
    }
    return MOE_OK;
}

/* Weights of bfloat16 stay so; others become f32. */
static moe_status read_dtype(const json_t *root, moe_lm_config *config, moe_error *error) {
    const char *dtype = "float32";
    MOEI_TRY(moelm_json_opt_string(root, "config.json", "torch_dtype", &dtype, error));
    MOEI_TRY(moelm_json_opt_string(root, "config.json", "dtype", &dtype, error));
    return moe_lm_config_set(config, "model.dtype", strcmp(dtype, "bfloat16") == 0 ? "bf16" : "f32",
                             "config.json", error);
}

static moe_status config_read(const json_t *root, moe_lm_config *config, moe_error *error) {
    MOEI_TRY(read_fields(root, config, error));
    MOEI_TRY(read_dtype(root, config, error));
    MOEI_TRY(read_activation(root, config, error));
    MOEI_TRY(read_limits(root, config, error));
    MOEI_TRY(read_rope(root, config, error));
    MOEI_TRY(read_losses(root, config, error));
    if (fits(config)) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INPUT,
                          "config.json: the settings under 'moekit' are not Mixtral's: score_before_topk and "
                          "norm_topk_prob must be equal (false where num_experts_per_tok is 1), and "
                          "num_local_experts at least 1");
}

static int write_fixed(const moe_lm_config *config, json_t *root) {
    const char *dtype = moelm_config_dtype(config) == MOE_BF16 ? "bfloat16" : "float32";
    /* Bytes have no special tokens; a vocabulary's own are in its tokenizer. */
    json_t *fixed =
        json_pack("{s:[s], s:s, s:s, s:s, s:f, s:n, s:n, s:n, s:n, s:b, s:b, s:{s:o, s:s}, s:f}",
                  "architectures", "MixtralForCausalLM", "dtype", dtype, "torch_dtype", dtype, "hidden_act",
                  hidden_act(config), "attention_dropout", 0.0, "bos_token_id", "eos_token_id",
                  "pad_token_id", "sliding_window", "use_cache", 1, "output_router_logits", 0,
                  "rope_parameters", "rope_theta", moelm_family_value(config, "model.rope_base"), "rope_type",
                  "default", "router_aux_loss_coef", (double)config->moe.aux_loss_coeff / loss_scale(config));
    int failed = fixed ? json_object_update(root, fixed) : -1;
    json_decref(fixed);
    return failed;
}

static moe_status config_write(const moe_lm_config *config, json_t *root, moe_error *error) {
    int failed = write_fixed(config, root);
    for (size_t i = 0; i < COUNT(fields); ++i)
        failed |= json_object_set_new(root, fields[i].theirs, moelm_family_value(config, fields[i].ours));
    for (size_t i = 0; i < COUNT(optional); ++i)
        failed |= json_object_set_new(root, optional[i].theirs, moelm_family_value(config, optional[i].ours));
    /* 0 stands for a default here, which Mixtral's own reader would take literally */
    const moelm_model_config *m = &config->model;
    if (m->n_kv_heads == 0)
        failed |= json_object_set_new(root, "num_key_value_heads", json_integer(m->n_heads));
    if (m->head_dim == 0)
        failed |= json_object_set_new(root, "head_dim", json_integer(m->d_model / m->n_heads));
    if (config->moe.top_k == 0)
        failed |= json_object_set_new(root, "num_experts_per_tok", json_integer(chosen_k(config)));
    json_t *ours = json_object();
    failed |= json_object_set_new(root, "moekit", ours);
    for (size_t i = 0; failed == 0 && i < COUNT(extra); ++i)
        failed = json_object_set_new(ours, extra[i], moelm_family_value(config, extra[i]));
    return failed ? moei_error_set(error, MOE_ERR_MEMORY, "no memory for config.json") : MOE_OK;
}

/* 2. Tensors. */

typedef struct visitor {
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

/* `out` columns, from `first`, of a weight [in, cols] of ours: the file has [out, in]. */
static moe_status visit_columns(const visitor *v, const char *name, const void *value, int64_t in,
                                int64_t cols, int64_t first, int64_t out) {
    moelm_slice slice = {
        .n_dim = 2,
        .dim = {out, in},
        .value = moelm_at(v->lm, value, first),
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
    return visit_columns(v, "self_attn.o_proj", block->out.value, q, d, 0, d);
}

static moe_status visit_experts(const visitor *v, const moe_layer *ffn) {
    moe_param gate = {.size = sizeof gate}, up = {.size = sizeof up}, down = {.size = sizeof down};
    MOEI_TRY(moe_layer_param_by_name(ffn, "gate.weight", &gate));
    MOEI_TRY(moe_layer_param_by_name(ffn, "experts.up.weight", &up));
    MOEI_TRY(moe_layer_param_by_name(ffn, "experts.down.weight", &down));
    char name[64];
    snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.gate.weight", v->layer);
    moelm_slice slice = moelm_family_whole(name, &gate);
    MOEI_TRY(v->fn(v->user, &slice));
    int64_t d = v->lm->d, n = down.dim[1];
    for (int32_t e = 0; e < (int32_t)gate.dim[0]; ++e) {
        const void *w13 = moelm_at(v->lm, up.value, e * d * 2 * n),
                   *w2 = moelm_at(v->lm, down.value, e * n * d);
        snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w1", e);
        MOEI_TRY(visit_columns(v, name, w13, d, 2 * n, 0, n));
        snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w2", e);
        MOEI_TRY(visit_columns(v, name, w2, n, d, 0, d));
        snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w3", e);
        MOEI_TRY(visit_columns(v, name, w13, d, 2 * n, n, n));
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

static moe_status visit(const moe_lm *lm, moelm_slice_fn fn, void *user) {
    visitor v = {.lm = lm, .fn = fn, .user = user};
    MOEI_TRY(visit_table(&v, "model.embed_tokens.weight", &lm->embed));
    for (v.layer = 0; v.layer < lm->n_layers; ++v.layer) {
        const moelm_block *block = &lm->blocks[v.layer];
        MOEI_TRY(visit_vector(&v, "input_layernorm", &block->norm));
        MOEI_TRY(visit_attention(&v, block));
        MOEI_TRY(visit_vector(&v, "post_attention_layernorm", &block->ffn_norm));
        MOEI_TRY(visit_experts(&v, block->ffn));
    }
    MOEI_TRY(visit_table(&v, "model.norm.weight", &lm->final_norm));
    if (lm->head.value == lm->embed.value) return MOE_OK;
    return visit_table(&v, "lm_head.weight", &lm->head);
}

const moelm_family moelm_family_mixtral = {"mixtral", fits, config_read, config_write, visit};
