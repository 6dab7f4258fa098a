/* determinism.c: runs the same forward and backward in several ways and compares bytes.
 */
#include "determinism.h"

#include <moekit/expert.h>
#include <moekit/op.h>

#include <stdio.h>
#include <string.h>

/* A layer in a context of its own, with room for T tokens. */
typedef struct subject {
    moe_ctx *ctx;
    moe_layer *layer;
    int64_t T, d;
    float *x, *y, *dy, *dx; /* [T, d] */
} subject;

static void subject_destroy(subject *s) {
    moe_layer_destroy(s->layer);
    if (s->x) moe_ctx_free(s->ctx, s->x, (size_t)(4 * s->T * s->d) * sizeof *s->x);
    moe_ctx_destroy(s->ctx);
}

static moe_status told(const subject *s, moe_status status, moe_error *error) {
    if (status == MOE_OK || !error) return status;
    error->status = status;
    snprintf(error->text, sizeof error->text, "%s", moe_ctx_error(s->ctx));
    return status;
}

static moe_status subject_create(const moe_layer_desc *desc, const determinism_options *options,
                                 int32_t n_threads, subject *s, moe_error *error) {
    const moe_ctx_desc ctx_desc = {
        .size = sizeof ctx_desc, .n_threads = n_threads, .isa = options->isa, .seed = options->seed};
    moe_layer_desc wanted = *desc;
    wanted.dtype = MOE_F32;
    wanted.init_std = 0.3f; /* so that rounding has something to round */
    *s = (subject){.T = options->n_tokens, .d = desc->d_model};
    moe_status status = moe_ctx_create(&ctx_desc, &s->ctx, error);
    if (status != MOE_OK) return status;
    status = moe_layer_create(s->ctx, &wanted, &s->layer);
    if (status == MOE_OK) status = moe_layer_reserve(s->layer, s->T, MOE_TRAIN);
    size_t n = (size_t)(s->T * s->d);
    if (status == MOE_OK && !(s->x = moe_ctx_alloc(s->ctx, 4 * n * sizeof *s->x))) status = MOE_ERR_MEMORY;
    if (status != MOE_OK) {
        told(s, status, error);
        subject_destroy(s);
        return status;
    }
    s->y = s->x + n;
    s->dy = s->y + n;
    s->dx = s->dy + n;
    moe_random_normal(options->seed, MOE_DRAW_TEST, 0, 1, MOE_F32, s->x, (int64_t)n, 1);
    moe_random_normal(options->seed, MOE_DRAW_TEST, 0, 2, MOE_F32, s->dy, (int64_t)n, 1);
    return MOE_OK;
}

static moe_mat view(const subject *s, float *data, int64_t rows) {
    return (moe_mat){data, rows, s->d, s->d, MOE_F32};
}

static moe_status run_once(subject *s, moe_error *error) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .step = 7};
    moe_layer_zero_grad(s->layer);
    moe_status status = moe_layer_forward(s->layer, view(s, s->x, s->T), view(s, s->y, s->T), &call, NULL);
    if (status == MOE_OK)
        status =
            moe_layer_backward(s->layer, view(s, s->x, s->T), view(s, s->dy, s->T), view(s, s->dx, s->T));
    return told(s, status, error);
}

static bool same_bytes(const char *name, const float *a, const float *b, int64_t n, determinism_row *row) {
    if (memcmp(a, b, (size_t)n * sizeof *a) == 0) return true;
    for (int64_t i = 0; i < n; ++i) {
        if (memcmp(&a[i], &b[i], sizeof *a) == 0) continue;
        snprintf(row->where, sizeof row->where, "%s[%lld]: %.9g and %.9g", name, (long long)i, (double)a[i],
                 (double)b[i]);
        break;
    }
    return false;
}

static bool same_results(const subject *a, const subject *b, determinism_row *row) {
    int64_t n = a->T * a->d;
    bool same = same_bytes("y", a->y, b->y, n, row) && same_bytes("dx", a->dx, b->dx, n, row);
    for (int32_t i = 0; i < moe_layer_param_count(a->layer) && same; ++i) {
        moe_param pa, pb;
        if (moe_layer_param(a->layer, i, &pa) != MOE_OK || moe_layer_param(b->layer, i, &pb) != MOE_OK)
            return false;
        same = same_bytes(pa.name, pa.grad, pb.grad, pa.dim[0] * pa.dim[1] * (pa.n_dim > 2 ? pa.dim[2] : 1),
                          row);
    }
    return same;
}

static determinism_row *add_row(determinism_result *result) {
    return &result->row[result->n_rows++];
}

static moe_status compare_threads(const moe_layer_desc *desc, const determinism_options *options,
                                  subject *first, int32_t n_threads, determinism_result *result,
                                  moe_error *error) {
    determinism_row *row = add_row(result);
    subject other;
    snprintf(row->what, sizeof row->what, "%d thread%s", n_threads, n_threads == 1 ? ", again" : "s");
    moe_status status = subject_create(desc, options, n_threads, &other, error);
    if (status != MOE_OK) return status;
    status = run_once(&other, error);
    if (status == MOE_OK) row->equal = same_results(first, &other, row);
    subject_destroy(&other);
    return status;
}

/* The same layer once more: nothing of the first run may linger. */
static moe_status compare_second_run(subject *first, determinism_result *result, moe_error *error) {
    determinism_row *row = add_row(result);
    subject copy = *first;
    size_t n = (size_t)(first->T * first->d);
    snprintf(row->what, sizeof row->what, "a second run of the same layer");
    copy.y = moe_ctx_alloc(first->ctx, 2 * n * sizeof *copy.y);
    if (!copy.y) return told(first, MOE_ERR_MEMORY, error);
    copy.dx = copy.y + n;
    moe_status status = run_once(&copy, error);
    row->equal = status == MOE_OK && same_bytes("y", first->y, copy.y, (int64_t)n, row) &&
                 same_bytes("dx", first->dx, copy.dx, (int64_t)n, row);
    moe_ctx_free(first->ctx, copy.y, 2 * n * sizeof *copy.y);
    return status;
}

static moe_status compare_batches(subject *s, determinism_result *result, moe_error *error) {
    const moe_call call = {.size = sizeof call, .mode = MOE_INFER};
    determinism_row *row = add_row(result);
    snprintf(row->what, sizeof row->what, "each token alone and in the batch");
    moe_status status = moe_layer_forward(s->layer, view(s, s->x, s->T), view(s, s->y, s->T), &call, NULL);
    row->equal = true;
    for (int64_t t = 0; t < s->T && status == MOE_OK && row->equal; ++t) {
        float *alone = s->dx + t * s->d;
        status = moe_layer_forward(s->layer, view(s, s->x + t * s->d, 1), view(s, alone, 1), &call, NULL);
        row->equal = status == MOE_OK && same_bytes("y", s->y + t * s->d, alone, s->d, row);
    }
    return told(s, status, error);
}

moe_status determinism_check_layer(const moe_layer_desc *desc, const determinism_options *options,
                                   determinism_result *result, moe_error *error) {
    static const int32_t n_threads[] = {1, 2, 4};
    determinism_result found = {.n_rows = 0};
    subject first;
    moe_status status = subject_create(desc, options, 1, &first, error);
    if (status != MOE_OK) return status;
    status = run_once(&first, error);
    for (size_t i = 0; i < sizeof n_threads / sizeof *n_threads && status == MOE_OK; ++i)
        status = compare_threads(desc, options, &first, n_threads[i], &found, error);
    if (status == MOE_OK) status = compare_second_run(&first, &found, error);
    /* with a capacity, who else is there decides who is dropped */
    if (status == MOE_OK && desc->capacity_factor == 0) status = compare_batches(&first, &found, error);
    subject_destroy(&first);
    if (status != MOE_OK) return status;
    found.equal = true;
    for (int32_t i = 0; i < found.n_rows; ++i) found.equal = found.equal && found.row[i].equal;
    *result = found;
    return MOE_OK;
}
