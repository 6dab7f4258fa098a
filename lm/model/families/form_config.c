/* form_config.c: config.json of a form: settings read, refused where we cannot do them, and written.
 * What only training heeds, and which of two ways weights of the same value are made, stands in an object
 * "moekit", which transformers passes over. Source: the configuration classes of the transformers library.
 */
#include "model/families/form.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
static const char here[] = "config.json";

/* Settings that no form has a name for; input_jitter_eps where it has none. */
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
                                    "moe.input_jitter_eps",
                                    "moe.init_scheme",
                                    "moe.router_init",
                                    "moe.init_std",
                                    "moe.init_std_down",
                                    "moe.init_std_scale",
                                    "moe.recompute",
                                    "moe.saved_dtype"};

/* 1. Which models. */

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

static bool is_field(const moelm_form *form, const char *key) {
    for (const moelm_form_field *f = form->fields; f->theirs; ++f)
        if (strcmp(key, f->ours) == 0) return true;
    return false;
}

/* Settings of the layer that the tables, read_activation and read_losses carry. */
static bool is_carried(const moelm_form *form, const char *key) {
    static const char *const apart[] = {"moe.d_model", "moe.activation", "moe.aux_loss_coeff"};
    for (size_t i = 0; i < COUNT(apart); ++i)
        if (strcmp(key, apart[i]) == 0) return true;
    for (size_t i = 0; i < COUNT(extra); ++i)
        if (strcmp(key, extra[i]) == 0) return true;
    return is_field(form, key);
}

static int32_t chosen_k(const moe_lm_config *config) {
    return config->moe.top_k ? config->moe.top_k : config->moe.num_experts < 2 ? 1 : 2;
}

static int32_t count_routed(const moe_lm_config *config) {
    int32_t routed = 0;
    for (int32_t i = 0; i < config->model.n_layers; ++i) routed += moelm_config_is_routed(config, i);
    return routed;
}

/* Whether layers without experts can be told: theirs are those where (i + 1) % step is not 0. */
static bool layers_fit(const moelm_form *form, const moe_lm_config *config) {
    const moelm_model_config *m = &config->model;
    if (count_routed(config) == m->n_layers) return true;
    return form->has_dense && m->moe_layer_offset == m->moe_layer_freq - 1;
}

/* What norm_topk_prob says of the weights; -1: it has no word for them. Softmax over the selected is softmax
 * over all, renormalised over the selected; of one expert our norm_topk_prob changes nothing. */
static int normed(const moe_lm_config *config) {
    const moe_layer_desc *moe = &config->moe;
    if (!moe->score_before_topk) return moe->norm_topk_prob ? -1 : 1;
    return moe->norm_topk_prob && chosen_k(config) > 1;
}

/* Every other setting must be at its default: a layer of ours, by default, is Mixtral's. */
bool moelm_form_fits(const moelm_family *family, const moe_lm_config *config) {
    const moelm_form *form = family->form;
    const moelm_model_config *m = &config->model;
    const moe_layer_desc *moe = &config->moe;
    const int weights = normed(config);
    if (strcmp(m->qk_norm, form->qk_norm) != 0 || moe->num_experts < 1 || !hidden_act(config)) return false;
    if (form->narrow_heads && m->head_dim > 0 && (int64_t)m->head_dim * m->n_heads != m->d_model)
        return false;
    if (m->clip_qkv != 0 && !is_field(form, "model.clip_qkv")) return false;
    if (!layers_fit(form, config)) return false;
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        char value[1024];
        moei_option_get(row, moe, value, sizeof value);
        if (!is_carried(form, row->key) && strcmp(value, row->initial) != 0) return false;
    }
    return weights == 1 || (weights == 0 && form->says_norm_topk_prob);
}

/* 2. Reading. */

/* All that cannot be done, in one text. */
typedef struct refusals {
    char act[200]; /* of hidden_act, with what can */
    char text[300];
    size_t used;
} refusals;

static void refuse(refusals *r, const char *format, ...) {
    va_list args;
    r->used +=
        (size_t)snprintf(r->text + r->used, sizeof r->text - r->used, r->used ? ", " : "not supported: ");
    va_start(args, format);
    if (r->used < sizeof r->text)
        r->used += (size_t)vsnprintf(r->text + r->used, sizeof r->text - r->used, format, args);
    va_end(args);
    if (r->used >= sizeof r->text) r->used = sizeof r->text - 1; /* the rest is cut off */
}

static moe_status tell_refusals(const refusals *r, moe_error *error) {
    if (!*r->act && !*r->text) return MOE_OK;
    return moei_error_set(error, MOE_ERR_UNSUPPORTED, "config.json: %s%s%s", r->act,
                          *r->act && *r->text ? "; " : "", r->text);
}

static bool is_off(const json_t *value) {
    return !value || json_is_null(value) || json_is_false(value);
}

static moe_status read_limits(const moelm_form *form, const json_t *root, const moe_lm_config *config,
                              refusals *r, moe_error *error) {
    const json_t *clip = json_object_get(root, "clip_qkv");
    double dropout = 0;
    bool slides = !form->window_has_switch;
    int64_t window = form->window_has_switch ? 4096 : INT64_MAX; /* as transformers, where it is left out */
    MOEI_TRY(moelm_json_opt_real(root, here, "attention_dropout", &dropout, error));
    if (!slides) MOEI_TRY(moelm_json_opt_bool(root, here, "use_sliding_window", &slides, error));
    if (json_is_null(json_object_get(root, "sliding_window"))) slides = false;
    if (slides) MOEI_TRY(moelm_json_opt_int(root, here, "sliding_window", 1, INT64_MAX, &window, error));
    if (dropout != 0) refuse(r, "attention_dropout above 0");
    if (slides && window < config->model.context)
        refuse(r, "sliding_window below max_position_embeddings (lower that to it)");
    if (is_field(form, "model.clip_qkv") && json_is_number(clip) && json_number_value(clip) == 0)
        refuse(r, "clip_qkv 0 (null clips nothing)");
    for (const char *const *key = form->refused; *key; ++key)
        if (!is_off(json_object_get(root, *key))) refuse(r, "%s", *key);
    return MOE_OK;
}

static moe_status read_activation(const json_t *root, moe_lm_config *config, refusals *r, moe_error *error) {
    const char *act = "silu";
    moe_error inner;
    MOEI_TRY(moelm_json_opt_string(root, here, "hidden_act", &act, error));
    if (moe_lm_config_set(config, "hidden_act", act, here, &inner) != MOE_OK)
        snprintf(r->act, sizeof r->act, "%.199s", inner.text);
    return MOE_OK;
}

/* A setting that is worked out from config.json; takes the value over. */
static moe_status set_own(moe_lm_config *config, const char *key, json_t *value, moe_error *error) {
    moe_status status = moelm_family_set(config, key, value, error);
    json_decref(value);
    return status;
}

static moe_status read_rope(const moelm_form *form, const json_t *root, moe_lm_config *config, refusals *r,
                            moe_error *error) {
    static const char inside[] = "config.json: rope_parameters";
    json_t *rope = NULL;
    const char *type = "default";
    double theta = form->rope_base;
    MOEI_TRY(moelm_json_opt_real(root, here, "rope_theta", &theta, error));
    MOEI_TRY(moelm_json_opt_object(root, here, "rope_parameters", &rope, error));
    if (rope) {
        MOEI_TRY(moelm_json_opt_real(rope, inside, "rope_theta", &theta, error));
        MOEI_TRY(moelm_json_opt_string(rope, inside, "rope_type", &type, error));
    }
    if (strcmp(type, "default") != 0) refuse(r, "rope_type %.60s (default is)", type);
    return set_own(config, "model.rope_base", json_real(theta), error);
}

/* A field's value; the first one may have another name. */
static const json_t *field_of(const moelm_form *form, const json_t *root, const moelm_form_field *f) {
    const json_t *value = json_object_get(root, f->theirs);
    if (!value && f == form->fields && form->num_experts_too)
        value = json_object_get(root, form->num_experts_too);
    return value;
}

static moe_status read_fields(const moelm_form *form, const json_t *root, moe_lm_config *config,
                              moe_error *error) {
    for (const moelm_form_field *f = form->fields; f->theirs; ++f) {
        const json_t *value = field_of(form, root, f);
        if (!value && !f->missing)
            return moei_error_set(error, MOE_ERR_INPUT, "config.json: '%s' is missing", f->theirs);
        if (f->missing && (!value || json_is_null(value)))
            MOEI_TRY(moe_lm_config_set(config, f->ours, f->missing, here, error));
        else
            MOEI_TRY(moelm_family_set(config, f->ours, value, error));
    }
    return moe_lm_config_set(config, "model.qk_norm", form->qk_norm, here, error);
}

/* mlp_only_layers as model.dense_layers has them. What names none of the layers says nothing, as theirs asks
 * of each layer whether it is in the list. */
static moe_status read_list(const json_t *root, int32_t n_layers, char *text, size_t size, moe_error *error) {
    const json_t *list = json_object_get(root, "mlp_only_layers");
    size_t used = 0;
    text[0] = '\0';
    if (!list || json_is_null(list)) return MOE_OK;
    for (size_t i = 0; i < json_array_size(list); ++i) {
        const json_t *layer = json_array_get(list, i);
        const json_int_t number = json_integer_value(layer);
        if (!json_is_integer(layer))
            used = size;
        else if (number >= 0 && number < n_layers && used < size)
            used += (size_t)snprintf(text + used, size - used, "%s%lld", used ? "," : "", (long long)number);
    }
    if (json_is_array(list) && used < size) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INPUT,
                          "config.json: mlp_only_layers: expected a list of layers, of at most %d digits",
                          MOELM_PATH - 1);
}

static moe_status read_dense(const moelm_form *form, const json_t *root, moe_lm_config *config,
                             moe_error *error) {
    char list[MOELM_PATH];
    int64_t step = 1;
    if (!form->has_dense) return MOE_OK;
    MOEI_TRY(moelm_json_opt_int(root, here, "decoder_sparse_step", 1, INT32_MAX, &step, error));
    MOEI_TRY(read_list(root, config->model.n_layers, list, sizeof list, error));
    MOEI_TRY(set_own(config, "model.moe_layer_freq", json_integer(step), error));
    MOEI_TRY(set_own(config, "model.moe_layer_offset", json_integer(step - 1), error));
    return set_own(config, "model.dense_layers", json_string(list), error);
}

static moe_status read_weights(const moelm_form *form, const json_t *root, moe_lm_config *config, bool *norm,
                               moe_error *error) {
    *norm = !form->says_norm_topk_prob;
    if (*norm) return MOE_OK;
    MOEI_TRY(moelm_json_opt_bool(root, here, "norm_topk_prob", norm, error));
    /* one weight that is divided by itself is 1, which is the softmax over one */
    const bool before = !*norm || chosen_k(config) > 1;
    MOEI_TRY(moe_lm_config_set(config, "moe.score_before_topk", before ? "true" : "false", here, error));
    return moe_lm_config_set(config, "moe.norm_topk_prob", *norm && before ? "true" : "false", here, error);
}

/* Theirs multiplies E * sum f P over all layers at once with f summing to K, ours each layer's with f summing
 * to 1, so with equal loads coeff = coef * K / L, L the layers with experts. */
static double loss_scale(const moe_lm_config *config) {
    const int32_t routed = count_routed(config);
    return (double)chosen_k(config) / (double)(routed > 0 ? routed : 1);
}

static moe_status read_losses(const moelm_form *form, const json_t *root, moe_lm_config *config,
                              moe_error *error) {
    double coef = form->aux_loss;
    MOEI_TRY(moelm_json_opt_real(root, here, "router_aux_loss_coef", &coef, error));
    MOEI_TRY(set_own(config, "moe.aux_loss_coeff", json_real(coef * loss_scale(config)), error));
    MOEI_TRY(moe_lm_config_set(config, "moe.z_loss_coeff", "0", here, error));
    json_t *ours = NULL;
    MOEI_TRY(moelm_json_opt_object(root, here, "moekit", &ours, error));
    for (size_t i = 0; ours && i < COUNT(extra); ++i) {
        const json_t *field = json_object_get(ours, extra[i]);
        if (field && !is_field(form, extra[i])) MOEI_TRY(moelm_family_set(config, extra[i], field, error));
    }
    return MOE_OK;
}

/* Weights of bfloat16 stay so; others become f32. */
static moe_status read_dtype(const json_t *root, moe_lm_config *config, moe_error *error) {
    const char *dtype = "float32";
    MOEI_TRY(moelm_json_opt_string(root, here, "torch_dtype", &dtype, error));
    MOEI_TRY(moelm_json_opt_string(root, here, "dtype", &dtype, error));
    return moe_lm_config_set(config, "model.dtype", strcmp(dtype, "bfloat16") == 0 ? "bf16" : "f32", here,
                             error);
}

/* Where heads have no width of their own, one that is said must be what it is. */
static moe_status read_head_dim(const moelm_form *form, const json_t *root, const moe_lm_config *config,
                                refusals *r, moe_error *error) {
    int64_t head_dim = 0;
    if (!form->narrow_heads) return MOE_OK;
    MOEI_TRY(moelm_json_opt_int(root, here, "head_dim", 1, INT32_MAX, &head_dim, error));
    if (head_dim > 0 && head_dim * config->model.n_heads != config->model.d_model)
        refuse(r, "head_dim other than hidden_size / num_attention_heads");
    return MOE_OK;
}

moe_status moelm_form_read(const moelm_family *family, const json_t *root, moe_lm_config *config,
                           moe_error *error) {
    const moelm_form *form = family->form;
    refusals r = {0};
    bool norm;
    MOEI_TRY(read_fields(form, root, config, error));
    MOEI_TRY(read_dtype(root, config, error));
    MOEI_TRY(read_dense(form, root, config, error));
    MOEI_TRY(read_weights(form, root, config, &norm, error));
    MOEI_TRY(read_activation(root, config, &r, error));
    MOEI_TRY(read_head_dim(form, root, config, &r, error));
    MOEI_TRY(read_limits(form, root, config, &r, error));
    MOEI_TRY(read_rope(form, root, config, &r, error));
    MOEI_TRY(tell_refusals(&r, error));
    MOEI_TRY(read_losses(form, root, config, error));
    if (normed(config) == norm && moelm_form_fits(family, config)) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INPUT,
                          "config.json: the settings under 'moekit' are not those of a model of %s: "
                          "score_before_topk and norm_topk_prob must be equal where weights are renormalised "
                          "(false where num_experts_per_tok is 1), and %s at least 1",
                          family->model_type, form->fields[0].theirs);
}

/* 3. Writing. */

static int write_fixed(const moelm_form *form, const moe_lm_config *config, json_t *root) {
    const char *dtype = moelm_config_dtype(config) == MOE_BF16 ? "bfloat16" : "float32";
    /* Bytes have no special tokens; a vocabulary's own are in its tokenizer. */
    json_t *fixed =
        json_pack("{s:[s], s:s, s:s, s:s, s:f, s:n, s:n, s:n, s:n, s:b, s:b, s:{s:o, s:s}, s:f}",
                  "architectures", form->architecture, "dtype", dtype, "torch_dtype", dtype, "hidden_act",
                  hidden_act(config), "attention_dropout", 0.0, "bos_token_id", "eos_token_id",
                  "pad_token_id", "sliding_window", "use_cache", 1, "output_router_logits", 0,
                  "rope_parameters", "rope_theta", moelm_family_value(config, "model.rope_base"), "rope_type",
                  "default", "router_aux_loss_coef", (double)config->moe.aux_loss_coeff / loss_scale(config));
    int failed = fixed ? json_object_update(root, fixed) : -1;
    json_decref(fixed);
    return failed;
}

/* 0 stands for a default here, which a reader of theirs would take literally. */
static json_t *number_of(const moe_lm_config *config, const char *key) {
    const moelm_model_config *m = &config->model;
    if (strcmp(key, "model.clip_qkv") == 0 && m->clip_qkv == 0) return json_null();
    if (strcmp(key, "model.n_kv_heads") == 0 && m->n_kv_heads == 0) return json_integer(m->n_heads);
    if (strcmp(key, "model.head_dim") == 0 && m->head_dim == 0) return json_integer(m->d_model / m->n_heads);
    if (strcmp(key, "moe.top_k") == 0) return json_integer(chosen_k(config));
    if (strcmp(key, "model.ffn_hidden_size") == 0) return json_integer(moelm_config_dense_width(config));
    return moelm_family_value(config, key);
}

/* The layers without experts, which moelm_form_fits found to be such as can be told. */
static int write_dense(const moelm_form *form, const moe_lm_config *config, json_t *root) {
    const bool all = count_routed(config) == config->model.n_layers;
    const char *at = all ? "" : config->model.dense_layers;
    if (!form->has_dense) return 0;
    json_t *list = json_array();
    int failed = json_object_set_new(root, "mlp_only_layers", list);
    failed |= json_object_set_new(root, "decoder_sparse_step",
                                  json_integer(all ? 1 : config->model.moe_layer_freq));
    for (int32_t layer; failed == 0 && moelm_config_next_layer(&at, &layer);)
        failed = json_array_append_new(list, json_integer(layer));
    return failed;
}

moe_status moelm_form_write(const moelm_family *family, const moe_lm_config *config, json_t *root,
                            moe_error *error) {
    const moelm_form *form = family->form;
    int failed = write_fixed(form, config, root);
    for (const moelm_form_field *f = form->fields; f->theirs; ++f)
        failed |= json_object_set_new(root, f->theirs, number_of(config, f->ours));
    if (form->says_norm_topk_prob)
        failed |= json_object_set_new(root, "norm_topk_prob", json_boolean(normed(config) == 1));
    failed |= write_dense(form, config, root);
    json_t *ours = json_object();
    failed |= json_object_set_new(root, "moekit", ours);
    for (size_t i = 0; failed == 0 && i < COUNT(extra); ++i)
        if (!is_field(form, extra[i]))
            failed = json_object_set_new(ours, extra[i], moelm_family_value(config, extra[i]));
    return failed ? moei_error_set(error, MOE_ERR_MEMORY, "no memory for config.json") : MOE_OK;
}
