/* read_eval.c: eval.json into structs.
 * Texts stay the JSON's, which the run owns; numbers that are null or missing become NaN.
 * Source: docs/run-directory.md, section eval.json.
 */
#include "config/config.h"
#include "core/status.h"
#include "format/json.h"
#include "report/run.h"

#include <math.h>
#include <stdio.h>

static moe_status no_memory(moe_error *error, const char *where) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for its experts", where);
}

static moe_status read_typical(const json_t *list, const char *where, int32_t expert, moelm_eval_layer *layer,
                               moe_error *error) {
    moelm_typical *typical = layer->typical + (int64_t)expert * MOELM_TYPICAL;
    size_t n = json_array_size(list);
    if (n > MOELM_TYPICAL) n = MOELM_TYPICAL;
    for (size_t i = 0; i < n; ++i) {
        const json_t *entry = json_array_get(list, i);
        MOEI_TRY(moelm_json_get_int(entry, where, "token", 0, INT32_MAX, &typical[i].token, error));
        MOEI_TRY(moelm_json_get_int(entry, where, "count", 0, INT64_MAX, &typical[i].count, error));
        MOEI_TRY(moelm_json_get_real(entry, where, "lift", &typical[i].lift, error));
        MOEI_TRY(moelm_json_opt_string(entry, where, "text", &typical[i].text, error));
    }
    layer->n_typical[expert] = (int32_t)n;
    return MOE_OK;
}

/* load and typical have one entry an expert. typical may be missing, load may not. */
static moe_status read_experts(const json_t *object, const char *where, moelm_pool *pool,
                               moelm_eval_layer *layer, moe_error *error) {
    size_t n_experts = (size_t)layer->experts;
    json_t *load, *typical = json_object_get(object, "typical");
    MOEI_TRY(moelm_json_get_array(object, where, "load", &load, error));
    if (json_array_size(load) != n_experts) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s.load: %zu numbers for %zu experts", where,
                              json_array_size(load), n_experts);
    }
    layer->load = moelm_pool_take(pool, n_experts, sizeof *layer->load);
    layer->n_typical = moelm_pool_take(pool, n_experts, sizeof *layer->n_typical);
    layer->typical = moelm_pool_take(pool, n_experts * MOELM_TYPICAL, sizeof *layer->typical);
    if (!layer->load || !layer->n_typical || !layer->typical) return no_memory(error, where);
    for (size_t e = 0; e < n_experts; ++e) {
        const json_t *rows = json_array_get(load, e);
        if (!json_is_number(rows)) {
            return moei_error_set(error, MOE_ERR_INPUT, "%s.load[%zu]: expected a number", where, e);
        }
        layer->load[e] = json_number_value(rows);
        MOEI_TRY(read_typical(json_array_get(typical, e), where, (int32_t)e, layer, error));
    }
    return MOE_OK;
}

static moe_status read_layer(const json_t *object, const char *where, moelm_pool *pool,
                             moelm_eval_layer *layer, moe_error *error) {
    int64_t index, experts, top_k = 0;
    MOEI_TRY(moelm_json_get_int(object, where, "layer", 0, INT32_MAX, &index, error));
    MOEI_TRY(moelm_json_get_int(object, where, "experts", 1, MOELM_MAX_EXPERTS, &experts, error));
    MOEI_TRY(moelm_json_opt_int(object, where, "top_k", 1, experts, &top_k, error));
    *layer = (moelm_eval_layer){
        .layer = (int32_t)index, .experts = (int32_t)experts, .top_k = (int32_t)top_k, .load_cv = NAN};
    const struct {
        const char *key;
        double *value;
    } field[] = {
        {"dropped",             &layer->dropped       },
        {"load_cv",             &layer->load_cv       },
        {"router_entropy",      &layer->router_entropy},
        {"expert_entropy_bits", &layer->expert_bits   },
        {"mi_token_bits",       &layer->token_bits    },
        {"mi_position_bits",    &layer->position_bits },
        {"mi_previous_bits",    &layer->previous_bits }
    };
    for (size_t i = 0; i < sizeof field / sizeof *field; ++i) {
        *field[i].value = NAN;
        MOEI_TRY(moelm_json_opt_real(object, where, field[i].key, field[i].value, error));
    }
    return read_experts(object, where, pool, layer, error);
}

static moe_status read_baselines(const json_t *root, const char *path, moelm_pool *pool, moelm_eval *eval,
                                 moe_error *error) {
    json_t *baselines = NULL, *value;
    const char *name;
    MOEI_TRY(moelm_json_opt_object(root, path, "baselines", &baselines, error));
    eval->baseline = moelm_pool_take(pool, json_object_size(baselines), sizeof *eval->baseline);
    if (!eval->baseline) return no_memory(error, path);
    json_object_foreach(baselines, name, value) {
        if (!json_is_number(value)) continue;
        eval->baseline[eval->n_baselines++] =
            (moelm_baseline){.name = name, .bits_per_byte = json_number_value(value)};
    }
    return MOE_OK;
}

static moe_status read_root(const json_t *root, const char *path, moelm_pool *pool, moelm_eval *eval,
                            moe_error *error) {
    eval->text = eval->sha256 = eval->checkpoint = "";
    MOEI_TRY(moelm_json_get_real(root, path, "bits_per_byte", &eval->bits_per_byte, error));
    MOEI_TRY(moelm_json_opt_int(root, path, "bytes", 0, INT64_MAX, &eval->bytes, error));
    MOEI_TRY(moelm_json_opt_string(root, path, "text", &eval->text, error));
    MOEI_TRY(moelm_json_opt_string(root, path, "text_sha256", &eval->sha256, error));
    MOEI_TRY(moelm_json_opt_string(root, path, "checkpoint", &eval->checkpoint, error));
    MOEI_TRY(read_baselines(root, path, pool, eval, error));
    const json_t *layers = json_object_get(root, "layers");
    size_t n_layers = json_array_size(layers);
    if (n_layers > MOELM_MAX_LAYERS) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %zu layers; at most %d are read", path, n_layers,
                              MOELM_MAX_LAYERS);
    }
    eval->layer = moelm_pool_take(pool, n_layers, sizeof *eval->layer);
    if (!eval->layer) return no_memory(error, path);
    eval->n_layers = (int32_t)n_layers;
    for (size_t i = 0; i < n_layers; ++i) {
        char where[600];
        snprintf(where, sizeof where, "%s: layers[%zu]", path, i);
        MOEI_TRY(read_layer(json_array_get(layers, i), where, pool, &eval->layer[i], error));
    }
    eval->found = true;
    return MOE_OK;
}

moe_status moelm_eval_read(const char *path, moelm_pool *pool, json_t **root, moelm_eval *eval,
                           moe_error *error) {
    MOEI_TRY(moelm_json_load(path, root, error));
    return read_root(*root, path, pool, eval, error);
}
