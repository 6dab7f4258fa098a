/* routes.c: route traces: copied from the layers after each forward, written and read as safetensors.
 * expert: I32, negative where a slot went nowhere, and why (moe_routing_view); weight: F32, or F64 of a
 * router that computes so. A dense layer has no tensors. Source: docs/routes.md; router replay as in Megatron
 * core and Automodel, but with the weights.
 */
#include "train/routes.h"

#include "core/real.h"
#include "core/status.h"
#include "format/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 32, FACTS = 7 };

/* Slots of a token, as moe_routing_view.top_k tells them after a forward. */
static int32_t slots_of(const moe_layer_desc *desc) {
    if (desc->num_experts == 0) return 0;
    if (strcmp(desc->router_type, "expert_choice") == 0) return desc->num_experts;
    return desc->num_groups_outer > 0 ? 4 : desc->top_k;
}

/* The dtype of its weights, as moe_routing_view tells it after a forward. */
static moe_dtype dtype_of(const moe_layer_desc *desc) {
    const bool wide = strcmp(desc->router_dtype, "f64") == 0 || strcmp(desc->router_dtype, "fp64") == 0;
    return wide || desc->dtype == MOE_F64 ? MOE_F64 : MOE_F32;
}

moe_status moelm_routes_create(moe_lm *lm, const moelm_routes_text *text, moelm_routes *routes,
                               moe_error *error) {
    *routes = (moelm_routes){.n_layers = lm->n_layers, .rows = text->n_windows * text->length};
    int64_t slots = 0;
    routes->layer = calloc((size_t)lm->n_layers, sizeof *routes->layer);
    for (int32_t l = 0; routes->layer && l < lm->n_layers; ++l) {
        const moe_layer_desc *desc = moe_layer_get_desc(moe_lm_layer(lm, l));
        routes->layer[l].slots = slots_of(desc);
        routes->layer[l].dtype = dtype_of(desc);
        slots += routes->layer[l].slots;
    }
    const size_t n = (size_t)(routes->rows * slots);
    if (routes->layer) routes->block = malloc(n * (sizeof(double) + sizeof(int32_t)) + 1);
    if (!routes->block) {
        moelm_routes_destroy(routes);
        return moei_error_set(error, MOE_ERR_MEMORY, "no memory for the routes of %lld tokens",
                              (long long)routes->rows);
    }
    double *weight = routes->block; /* room for the widest */
    int32_t *expert = (int32_t *)(void *)(weight + n);
    for (int32_t l = 0; l < lm->n_layers; ++l) {
        routes->layer[l].expert = expert;
        routes->layer[l].weight = weight;
        expert += routes->rows * routes->layer[l].slots;
        weight += routes->rows * routes->layer[l].slots;
    }
    return MOE_OK;
}

void moelm_routes_destroy(moelm_routes *routes) {
    free(routes->block);
    free(routes->layer);
    *routes = (moelm_routes){0};
}

/* The routes own the memory that replay may only read. */
static int32_t *experts_at(const moelm_routes *routes, int32_t layer, int64_t row) {
    const moelm_route *route = &routes->layer[layer];
    return (int32_t *)routes->block + (route->expert - (const int32_t *)routes->block) + row * route->slots;
}

static void *weights_at(const moelm_routes *routes, int32_t layer, int64_t row) {
    const moelm_route *route = &routes->layer[layer];
    const size_t first = (size_t)((const char *)route->weight - (const char *)routes->block);
    return (char *)routes->block + first + (size_t)(row * route->slots) * moe_dtype_bytes(route->dtype);
}

moe_status moelm_routes_add(void *user, moe_lm *lm, const moelm_windows *w) {
    moelm_routes *routes = user;
    const int64_t row = w->first * w->length;
    for (int32_t l = 0; l < routes->n_layers; ++l) {
        if (routes->layer[l].slots == 0) continue;
        moe_routing_view view = {.size = sizeof view};
        MOEI_TRY(moe_layer_routing(moe_lm_layer(lm, l), &view));
        const size_t n = (size_t)(view.n_tokens * view.top_k);
        memcpy(experts_at(routes, l, row), view.expert, n * sizeof(int32_t));
        memcpy(weights_at(routes, l, row), view.weight, n * moe_dtype_bytes(view.dtype));
    }
    return MOE_OK;
}

/* 1. The facts that a file is told apart by. */

typedef struct fact_list {
    moelm_st_pair pair[FACTS];
    char text[FACTS][24];
} fact_list;

static void list_facts(const moelm_routes *routes, const moelm_routes_text *text, fact_list *list) {
    const struct {
        const char *key;
        long long value;
    } numbers[] = {
        {"version", 1               },
        {"bytes",   text->bytes     },
        {"window",  text->length    },
        {"windows", text->n_windows },
        {"layers",  routes->n_layers}
    };
    list->pair[0] = (moelm_st_pair){"format", "moekit-routes"};
    list->pair[1] = (moelm_st_pair){"text_sha256", text->sha256};
    for (int i = 0; i < FACTS - 2; ++i) {
        snprintf(list->text[i], sizeof list->text[i], "%lld", numbers[i].value);
        list->pair[i + 2] = (moelm_st_pair){numbers[i].key, list->text[i]};
    }
}

static moe_status check_facts(const moelm_safetensors *file, const char *path, const fact_list *want,
                              moe_error *error) {
    for (int i = 0; i < FACTS; ++i) {
        const char *key = want->pair[i].key, *value = want->pair[i].value;
        const char *found = moelm_safetensors_metadata(file, key);
        if (!found)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: is no file of routes: its metadata lacks '%s'",
                                  path, key);
        if (strcmp(found, value) != 0)
            return moei_error_set(error, MOE_ERR_INPUT,
                                  "%s: was recorded with %s %.80s, and this evaluation has %s", path, key,
                                  found, value);
    }
    return MOE_OK;
}

/* 2. Writing. */

static moelm_st_tensor tensor_of(const char *name, moelm_st_dtype dtype, int64_t rows, int32_t slots,
                                 const void *data) {
    return (moelm_st_tensor){
        .name = name, .dtype = dtype, .n_dim = 2, .dim = {rows, slots},
                   .data = data
    };
}

static moelm_st_dtype weight_type(const moelm_route *route) {
    return route->dtype == MOE_F64 ? MOELM_ST_F64 : MOELM_ST_F32;
}

moe_status moelm_routes_save(const moelm_routes *routes, const char *path, const moelm_routes_text *text,
                             moe_error *error) {
    const size_t most = 2 * (size_t)routes->n_layers;
    moelm_st_tensor *tensor = calloc(most, sizeof *tensor);
    char(*name)[NAME_BYTES] = calloc(most, sizeof *name);
    fact_list facts;
    size_t n = 0;
    for (int32_t l = 0; tensor && name && l < routes->n_layers; ++l) {
        const moelm_route *route = &routes->layer[l];
        if (route->slots == 0) continue;
        snprintf(name[n], NAME_BYTES, "layer.%d.expert", l);
        tensor[n] = tensor_of(name[n], MOELM_ST_I32, routes->rows, route->slots, route->expert);
        snprintf(name[n + 1], NAME_BYTES, "layer.%d.weight", l);
        tensor[n + 1] = tensor_of(name[n + 1], weight_type(route), routes->rows, route->slots, route->weight);
        n += 2;
    }
    list_facts(routes, text, &facts);
    moe_status status = tensor && name ? moelm_safetensors_write(path, tensor, n, facts.pair, FACTS, error)
                                       : moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    free(name);
    free(tensor);
    return status;
}

/* 3. Reading. */

static moe_status wrong_type(const char *path, const moelm_st_tensor *tensor, const char *right,
                             moe_error *error) {
    return moei_error_set(error, MOE_ERR_INPUT, "%s: %s is %s, not %s", path, tensor->name,
                          moelm_st_dtype_name(tensor->dtype), right);
}

static moe_status read_experts(const moelm_safetensors *file, const char *path, const char *name,
                               const moelm_routes *routes, int32_t layer, moe_error *error) {
    const int64_t dim[] = {routes->rows, routes->layer[layer].slots};
    const moelm_st_tensor *tensor;
    MOEI_TRY(moelm_safetensors_get(file, name, 2, dim, &tensor, error));
    if (tensor->dtype != MOELM_ST_I32) return wrong_type(path, tensor, "I32", error);
    memcpy(experts_at(routes, layer, 0), tensor->data, tensor->bytes);
    return MOE_OK;
}

/* Into the type of this layer's router, whichever recorded them. */
static moe_status read_weights(const moelm_safetensors *file, const char *path, const char *name,
                               const moelm_routes *routes, int32_t layer, moe_error *error) {
    const moelm_route *route = &routes->layer[layer];
    const int64_t dim[] = {routes->rows, route->slots};
    const moelm_st_tensor *tensor;
    MOEI_TRY(moelm_safetensors_get(file, name, 2, dim, &tensor, error));
    const bool wide = tensor->dtype == MOELM_ST_F64;
    if (!wide && tensor->dtype != MOELM_ST_F32) return wrong_type(path, tensor, "F32 or F64", error);
    void *weight = weights_at(routes, layer, 0);
    for (int64_t i = 0; i < routes->rows * route->slots; ++i) {
        double d;
        float f;
        if (wide)
            memcpy(&d, (const char *)tensor->data + (size_t)i * sizeof d, sizeof d);
        else
            memcpy(&f, (const char *)tensor->data + (size_t)i * sizeof f, sizeof f);
        moei_real_store(route->dtype, weight, i, wide ? d : (double)f);
        if (!isfinite(moei_real_load(route->dtype, weight, i)))
            return moei_error_set(
                error, MOE_ERR_INPUT, "%s: %s[%lld, %lld] is %g; a routing weight is finite", path, name,
                (long long)(i / route->slots), (long long)(i % route->slots), wide ? d : (double)f);
    }
    return MOE_OK;
}

static moe_status check_experts(const char *path, const char *name, const int32_t *expert, int64_t rows,
                                int32_t slots, int32_t n_experts, moe_error *error) {
    for (int64_t i = 0; i < rows * slots; ++i)
        if (expert[i] < -1 - 2 * n_experts || expert[i] >= n_experts)
            return moei_error_set(error, MOE_ERR_INPUT,
                                  "%s: %s[%lld, %lld] is %d; this layer has experts 0 .. %d, and a slot that "
                                  "is not routed is negative",
                                  path, name, (long long)(i / slots), (long long)(i % slots), expert[i],
                                  n_experts - 1);
    return MOE_OK;
}

/* A file without weights leaves them to the router: its scores of the experts recorded. */
static moe_status read_layer(const moelm_safetensors *file, const char *path, moelm_routes *routes,
                             int32_t layer, int32_t n_experts, moe_error *error) {
    char name[NAME_BYTES];
    moelm_route *route = &routes->layer[layer];
    snprintf(name, sizeof name, "layer.%d.expert", layer);
    MOEI_TRY(read_experts(file, path, name, routes, layer, error));
    MOEI_TRY(check_experts(path, name, route->expert, routes->rows, route->slots, n_experts, error));
    snprintf(name, sizeof name, "layer.%d.weight", layer);
    if (moelm_safetensors_find(file, name)) return read_weights(file, path, name, routes, layer, error);
    route->weight = NULL;
    return MOE_OK;
}

/* Routes of a layer that is dense here, or that is not, would be lost. */
static moe_status check_names(const moelm_safetensors *file, const char *path, const moelm_routes *routes,
                              moe_error *error) {
    for (size_t i = 0; i < moelm_safetensors_count(file); ++i) {
        const char *found = moelm_safetensors_at(file, i)->name;
        bool known = false;
        for (int32_t l = 0; l < routes->n_layers && !known; ++l) {
            char expert[NAME_BYTES], weight[NAME_BYTES];
            snprintf(expert, sizeof expert, "layer.%d.expert", l);
            snprintf(weight, sizeof weight, "layer.%d.weight", l);
            known = routes->layer[l].slots > 0 && (strcmp(found, expert) == 0 || strcmp(found, weight) == 0);
        }
        if (!known)
            return moei_error_set(error, MOE_ERR_INPUT,
                                  "%s: tensor '%.80s' belongs to no layer with experts of this model", path,
                                  found);
    }
    return MOE_OK;
}

static moe_status read_layers(const moelm_safetensors *file, const char *path, moe_lm *lm,
                              moelm_routes *routes, moe_error *error) {
    for (int32_t l = 0; l < routes->n_layers; ++l)
        if (routes->layer[l].slots > 0)
            MOEI_TRY(read_layer(file, path, routes, l, moe_layer_get_desc(moe_lm_layer(lm, l))->num_experts,
                                error));
    return MOE_OK;
}

moe_status moelm_routes_load(const char *path, moe_lm *lm, const moelm_routes_text *text,
                             moelm_routes *routes, moe_error *error) {
    moelm_safetensors *file;
    fact_list facts;
    MOEI_TRY(moelm_safetensors_open(path, &file, error));
    moe_status status = moelm_routes_create(lm, text, routes, error);
    if (status == MOE_OK) {
        list_facts(routes, text, &facts);
        status = check_facts(file, path, &facts, error);
        if (status == MOE_OK) status = check_names(file, path, routes, error);
        if (status == MOE_OK) status = read_layers(file, path, lm, routes, error);
        if (status != MOE_OK) moelm_routes_destroy(routes);
    }
    moelm_safetensors_close(file);
    return status;
}
