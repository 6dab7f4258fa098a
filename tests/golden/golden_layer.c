/* golden_layer.c: a layer with recorded parameters, one pass through it, its gradients compared.
 * x, y: [T, width]. Layers are f32, as the recorded runs were; everything beside them is f64 here.
 * Source: moekit/moe.h.
 */
#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- memory of the device ----------------------------------------------------------------------------- */

void golden_copy(golden_case *c, void *to, const void *from, size_t bytes) {
    if (moe_memory_copy(c->ctx, to, from, bytes) != MOE_OK) golden_fail(c, "%s", moe_ctx_error(c->ctx));
}

void *golden_send(golden_case *c, const void *from, size_t bytes) {
    if (!from) return NULL;
    struct golden_sent *sent = realloc(c->sent, (c->n_sent + 1) * sizeof *sent);
    void *memory = moe_memory_alloc(c->ctx, bytes);
    if (!sent || !memory) {
        fprintf(stderr, "golden: out of memory: %s\n", moe_ctx_error(c->ctx));
        exit(MOE_ERR_MEMORY);
    }
    c->sent = sent;
    c->sent[c->n_sent++] = (struct golden_sent){memory, bytes};
    golden_copy(c, memory, from, bytes);
    return memory;
}

void *golden_fetch(golden_case *c, const void *from, size_t bytes) {
    if (!from) return NULL;
    void *memory = golden_alloc(c, bytes, 1);
    golden_copy(c, memory, from, bytes);
    return memory;
}

/* --- the layer ---------------------------------------------------------------------------------------- */

static int64_t count_of(const moe_param *param) {
    int64_t count = 1;
    for (int32_t i = 0; i < param->n_dim; ++i) count *= param->dim[i];
    return count;
}

static float *fetch_param(golden_case *c, const moe_param *param) {
    return golden_fetch(c, param->value, (size_t)count_of(param) * sizeof(float));
}

static void put_param(golden_case *c, const moe_param *param, const float *value) {
    golden_copy(c, param->value, value, (size_t)count_of(param) * sizeof(float));
}

/* Parameters start as NaN, so that one which nobody sets is found. */
static void forget_params(golden_case *c, moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        if (moe_layer_param(layer, i, &param) != MOE_OK || param.buffer) continue;
        float *value = golden_alloc(c, (size_t)count_of(&param), sizeof *value);
        for (int64_t j = 0; j < count_of(&param); ++j) value[j] = NAN;
        put_param(c, &param, value);
    }
}

moe_layer *golden_layer(golden_case *c, const moe_layer_desc *desc, int64_t n_tokens) {
    if (c->failed) return NULL;
    moe_layer *layer = NULL;
    if (moe_layer_create(c->ctx, desc, &layer) != MOE_OK) {
        golden_fail(c, "layer: %s", moe_ctx_error(c->ctx));
        return NULL;
    }
    c->layer[c->n_layers++] = layer;
    forget_params(c, layer);
    if (c->on_device && !moe_layer_routes_on_device(layer) && !c->note[0]) golden_note(c, "the CPU routes");
    if (moe_layer_reserve(layer, n_tokens, MOE_TRAIN) == MOE_OK) return layer;
    golden_fail(c, "reserve: %s", moe_ctx_error(c->ctx));
    return NULL;
}

/* --- parameters --------------------------------------------------------------------------------------- */

/* A parameter as [blocks, rows, width], of which a recorded tensor holds `columns` from `first` on. */
typedef struct piece {
    moe_param param;
    int64_t blocks, rows, width, first, columns;
} piece;

/* Whether the recorded shape is [blocks, rows, columns] or its transpose. Blocks may be several dimensions
 * (experts of two levels), and dimensions of 1 missing in front. */
static bool has_shape(const golden_tensor *recorded, int form, const piece *p) {
    const bool transposed = form & GOLDEN_TRANSPOSED;
    const int32_t n = recorded->recorded->n_dim;
    int64_t blocks = 1;
    for (int32_t i = 0; i < n - 2; ++i) blocks *= golden_dim(recorded, i);
    return blocks == p->blocks &&
           (n > 0 ? golden_dim(recorded, -1) : 1) == (transposed ? p->rows : p->columns) &&
           (n > 1 ? golden_dim(recorded, -2) : 1) == (transposed ? p->columns : p->rows);
}

static bool find_piece(golden_case *c, moe_layer *layer, const golden_param *row,
                       const golden_tensor *recorded, piece *found) {
    if (moe_layer_param_by_name(layer, row->param, &found->param) != MOE_OK) {
        golden_fail(c, "recorded '%s': %s", row->recorded, moe_ctx_error(c->ctx));
        return false;
    }
    const moe_param *param = &found->param;
    int64_t parts = row->form & (GOLDEN_FIRST_HALF | GOLDEN_SECOND_HALF) ? 2 : 1;
    found->width = param->dim[param->n_dim - 1];
    found->rows = param->n_dim > 1 ? param->dim[param->n_dim - 2] : 1;
    found->blocks = param->n_dim > 2 ? param->dim[0] : 1;
    found->columns = found->width / parts;
    found->first = row->form & GOLDEN_SECOND_HALF ? found->columns : 0;
    if (found->width % parts == 0 && has_shape(recorded, row->form, found)) return true;
    golden_fail(c,
                "recorded '%s' has another shape than parameter '%s': %lld blocks of %lld rows and %lld "
                "columns%s",
                row->recorded, row->param, (long long)found->blocks, (long long)found->rows,
                (long long)found->columns, row->form & GOLDEN_TRANSPOSED ? ", transposed" : "");
    return false;
}

/* Element number of the parameter for element i of the recorded tensor. */
static int64_t place(const piece *p, int form, int64_t i) {
    const bool transposed = form & GOLDEN_TRANSPOSED;
    int64_t block = i / (p->rows * p->columns), rest = i % (p->rows * p->columns);
    int64_t row = transposed ? rest % p->rows : rest / p->columns;
    int64_t column = transposed ? rest / p->rows : rest % p->columns;
    return (block * p->rows + row) * p->width + p->first + column;
}

static bool are_params_set(golden_case *c, moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        if (moe_layer_param(layer, i, &param) != MOE_OK) continue;
        const float *value = fetch_param(c, &param);
        int64_t j = 0, count = count_of(&param);
        while (j < count && !isnan(value[j])) ++j;
        if (j < count) golden_fail(c, "parameter '%s' of the layer is not recorded", param.name);
    }
    return !c->failed;
}

bool golden_set_params(golden_case *c, moe_layer *layer, const golden_param *table, size_t count) {
    if (c->failed) return false;
    for (size_t i = 0; i < count; ++i) {
        const golden_tensor *recorded = golden_find(c, table[i].recorded);
        piece p = {.param = {.size = sizeof p.param}};
        if (!recorded || !find_piece(c, layer, &table[i], recorded, &p)) continue;
        float *value = fetch_param(c, &p.param);
        for (int64_t j = 0; j < recorded->count; ++j)
            value[place(&p, table[i].form, j)] = (float)recorded->value[j];
        put_param(c, &p.param, value);
    }
    return !c->failed;
}

void golden_zero_param(golden_case *c, moe_layer *layer, const char *name) {
    moe_param param = {.size = sizeof param};
    if (moe_layer_param_by_name(layer, name, &param) != MOE_OK)
        golden_fail(c, "%s", moe_ctx_error(c->ctx));
    else
        put_param(c, &param, golden_alloc(c, (size_t)count_of(&param), sizeof(float)));
}

void golden_compare_grads(golden_case *c, moe_layer *layer, const golden_param *table, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        char name[200];
        snprintf(name, sizeof name, "d_%s", table[i].recorded);
        const golden_tensor *recorded = golden_find(c, name);
        piece p = {.param = {.size = sizeof p.param}};
        if (!recorded && golden_find(c, table[i].recorded)) golden_absent(c, name);
        if (!recorded || !find_piece(c, layer, &table[i], recorded, &p)) continue;
        if (!p.param.grad) {
            golden_fail(c, "%s: parameter '%s' has no gradient", name, table[i].param);
            continue;
        }
        const float *grad = golden_fetch(c, p.param.grad, (size_t)count_of(&p.param) * sizeof *grad);
        double *got = golden_alloc(c, (size_t)recorded->count, sizeof *got);
        for (int64_t j = 0; j < recorded->count; ++j) got[j] = (double)grad[place(&p, table[i].form, j)];
        golden_compare(c, name, got, recorded->count, GOLDEN_GRADIENT);
    }
}

bool golden_identity_gate(golden_case *c, moe_layer *layer) {
    moe_param gate = {.size = sizeof gate};
    if (c->failed) return false;
    if (moe_layer_param_by_name(layer, "gate.weight", &gate) != MOE_OK) {
        golden_fail(c, "%s", moe_ctx_error(c->ctx));
        return false;
    }
    float *value = golden_alloc(c, (size_t)count_of(&gate), sizeof *value);
    for (int64_t i = 0; i < gate.dim[0]; ++i)
        for (int64_t j = 0; j < gate.dim[1]; ++j) value[i * gate.dim[1] + j] = i == j ? 1 : 0;
    put_param(c, &gate, value);
    return !c->failed;
}

/* --- passes ------------------------------------------------------------------------------------------- */

/* On the device; NaN where there is no value yet. */
static moe_mat narrow(golden_case *c, const double *value, int64_t rows, int64_t cols) {
    moe_mat mat = {NULL, rows, cols, cols, MOE_F32};
    float *data = golden_alloc(c, (size_t)(rows * cols), sizeof *data);
    for (int64_t i = 0; i < rows * cols; ++i) data[i] = value ? (float)value[i] : NAN;
    mat.data = golden_send(c, data, (size_t)(rows * cols) * sizeof *data);
    return mat;
}

static double *widen(golden_case *c, moe_mat mat) {
    const float *data = golden_fetch(c, mat.data, (size_t)(mat.rows * mat.cols) * sizeof *data);
    double *value = golden_alloc(c, (size_t)(mat.rows * mat.cols), sizeof *value);
    for (int64_t i = 0; i < mat.rows * mat.cols; ++i) value[i] = (double)data[i];
    return value;
}

/* moe_routing_view.top_k, before there is a view. */
static int64_t slots_of(const moe_layer *layer) {
    const moe_layer_desc *desc = moe_layer_get_desc(layer);
    if (strcmp(desc->router_type, "expert_choice") == 0) return desc->num_experts;
    return desc->num_groups_outer > 0 ? 4 : desc->top_k;
}

/* The call with its arrays on the device. */
static void send_call(golden_case *c, const moe_layer *layer, int64_t T, const moe_call *call, moe_call *sent,
                      moe_draws *draws) {
    const int64_t K = slots_of(layer), n = moe_layer_get_desc(layer)->expert_hidden_size;
    const int64_t sequences = call->sequence_length > 0 ? T / call->sequence_length : 1;
    *sent = *call;
    sent->token_mask = golden_send(c, call->token_mask, (size_t)T);
    sent->task = golden_send(c, call->task, (size_t)sequences * sizeof *call->task);
    sent->token_id = golden_send(c, call->token_id, (size_t)T * sizeof *call->token_id);
    sent->replay_expert = golden_send(c, call->replay_expert, (size_t)(T * K) * sizeof *call->replay_expert);
    sent->replay_weight = golden_send(c, call->replay_weight, (size_t)(T * K) * sizeof(float));
    if (!call->draws) return;
    *draws = *call->draws;
    draws->dropout_keep = golden_send(c, draws->dropout_keep, (size_t)(T * K * n));
    sent->draws = draws;
}

static void fetch_view(golden_case *c, moe_routing_view *view) {
    const size_t T = (size_t)view->n_tokens, E = (size_t)view->n_experts, slots = T * (size_t)view->top_k;
    view->expert = golden_fetch(c, view->expert, slots * sizeof *view->expert);
    view->selection = golden_fetch(c, view->selection, T * E * sizeof(float));
    view->weight = golden_fetch(c, view->weight, slots * sizeof(float));
    view->row_of = golden_fetch(c, view->row_of, slots * sizeof *view->row_of);
    view->routed = golden_fetch(c, view->routed, E * sizeof *view->routed);
    view->kept = golden_fetch(c, view->kept, E * sizeof *view->kept);
}

bool golden_forward(golden_case *c, moe_layer *layer, const moe_call *call, golden_pass *pass) {
    if (c->failed || !are_params_set(c, layer)) return false;
    moe_mat x = narrow(c, pass->x, pass->n_tokens, pass->d_in);
    moe_mat y = narrow(c, NULL, pass->n_tokens, pass->d_out);
    moe_call sent;
    send_call(c, layer, pass->n_tokens, call, &sent, golden_alloc(c, 1, sizeof(moe_draws)));
    pass->stats = (moe_stats){.size = sizeof pass->stats};
    pass->view = (moe_routing_view){.size = sizeof pass->view};
    if (moe_layer_forward(layer, x, y, &sent, &pass->stats) != MOE_OK ||
        moe_layer_routing(layer, &pass->view) != MOE_OK) {
        golden_fail(c, "forward: %s", moe_ctx_error(c->ctx));
        return false;
    }
    fetch_view(c, &pass->view);
    pass->y = widen(c, y);
    return !c->failed;
}

bool golden_backward(golden_case *c, moe_layer *layer, golden_pass *pass) {
    if (c->failed) return false;
    moe_mat x = narrow(c, pass->x, pass->n_tokens, pass->d_in);
    moe_mat dy = narrow(c, pass->dy, pass->n_tokens, pass->d_out);
    moe_mat dx = narrow(c, NULL, pass->n_tokens, pass->d_in);
    if (moe_layer_backward(layer, x, dy, dx) != MOE_OK) {
        golden_fail(c, "backward: %s", moe_ctx_error(c->ctx));
        return false;
    }
    pass->dx = widen(c, dx);
    return !c->failed;
}

double *golden_view_weight(golden_case *c, const golden_pass *pass) {
    const float *weight = pass->view.weight;
    int64_t count = pass->view.n_tokens * pass->view.top_k;
    double *value = golden_alloc(c, (size_t)count, sizeof *value);
    for (int64_t i = 0; i < count; ++i) value[i] = (double)weight[i];
    return value;
}

double *golden_view_expert(golden_case *c, const golden_pass *pass) {
    int64_t count = pass->view.n_tokens * pass->view.top_k;
    double *value = golden_alloc(c, (size_t)count, sizeof *value);
    for (int64_t i = 0; i < count; ++i) value[i] = (double)pass->view.expert[i];
    return value;
}
