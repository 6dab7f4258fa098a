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
    moe_call call;
    int64_t T, d, d_out;
    moe_dtype dtype;
    size_t number;         /* bytes of one */
    char *x, *y, *dy, *dx; /* x, dx: [T, d]; y, dy: [T, d_out] */
} subject;

static size_t bytes_of(const subject *s) {
    return 2 * (size_t)(s->T * (s->d + s->d_out)) * s->number;
}

static void subject_destroy(subject *s) {
    moe_layer_destroy(s->layer);
    if (s->x) moe_ctx_free(s->ctx, s->x, bytes_of(s));
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
    wanted.dtype = options->dtype;
    wanted.init_std = 0.3f; /* so that rounding has something to round */
    *s = (subject){.call = *options->call,
                   .T = options->n_tokens,
                   .d = desc->d_model,
                   .dtype = options->dtype,
                   .number = moe_dtype_bytes(options->dtype)};
    moe_status status = moe_ctx_create(&ctx_desc, &s->ctx, error);
    if (status != MOE_OK) return status;
    status = moe_layer_create(s->ctx, &wanted, &s->layer);
    if (status == MOE_OK) status = moe_layer_reserve(s->layer, s->T, MOE_TRAIN);
    if (status == MOE_OK) s->d_out = moe_layer_get_desc(s->layer)->output_size;
    if (status == MOE_OK && !(s->x = moe_ctx_alloc(s->ctx, bytes_of(s)))) status = MOE_ERR_MEMORY;
    if (status != MOE_OK) {
        told(s, status, error);
        subject_destroy(s);
        return status;
    }
    const int64_t n = s->T * s->d, n_out = s->T * s->d_out;
    s->dx = s->x + (size_t)n * s->number;
    s->y = s->dx + (size_t)n * s->number;
    s->dy = s->y + (size_t)n_out * s->number;
    moe_random_normal(options->seed, MOE_DRAW_TEST, 0, 1, s->dtype, s->x, n, 1);
    moe_random_normal(options->seed, MOE_DRAW_TEST, 0, 2, s->dtype, s->dy, n_out, 1);
    return MOE_OK;
}

static moe_mat view(const subject *s, void *data, int64_t rows) {
    return (moe_mat){data, rows, s->d, s->d, s->dtype};
}

static moe_mat out_view(const subject *s, void *data, int64_t rows) {
    return (moe_mat){data, rows, s->d_out, s->d_out, s->dtype};
}

static moe_status run_once(subject *s, moe_error *error) {
    moe_layer_zero_grad(s->layer);
    moe_status status =
        moe_layer_forward(s->layer, view(s, s->x, s->T), out_view(s, s->y, s->T), &s->call, NULL);
    if (status == MOE_OK)
        status =
            moe_layer_backward(s->layer, view(s, s->x, s->T), out_view(s, s->dy, s->T), view(s, s->dx, s->T));
    return told(s, status, error);
}

/* An f32, or a bf16, which is the upper half of one. */
static double number_at(moe_dtype dtype, const char *data, int64_t i) {
    float value = 0;
    if (dtype == MOE_F32)
        memcpy(&value, data + i * 4, 4);
    else
        memcpy((char *)&value + 2, data + i * 2, 2);
    return (double)value;
}

static bool same_bytes(const char *name, moe_dtype dtype, const char *a, const char *b, int64_t n,
                       determinism_row *row) {
    const int64_t number = (int64_t)moe_dtype_bytes(dtype);
    if (memcmp(a, b, (size_t)(n * number)) == 0) return true;
    int64_t i = 0;
    while (memcmp(a + i * number, b + i * number, (size_t)number) == 0) ++i;
    snprintf(row->where, sizeof row->where, "%s[%lld]: %.9g and %.9g", name, (long long)i,
             number_at(dtype, a, i), number_at(dtype, b, i));
    return false;
}

static bool same_results(const subject *a, const subject *b, determinism_row *row) {
    bool same = same_bytes("y", a->dtype, a->y, b->y, a->T * a->d_out, row) &&
                same_bytes("dx", a->dtype, a->dx, b->dx, a->T * a->d, row);
    for (int32_t i = 0; i < moe_layer_param_count(a->layer) && same; ++i) {
        moe_param pa = {.size = sizeof pa}, pb = {.size = sizeof pb};
        if (moe_layer_param(a->layer, i, &pa) != MOE_OK || moe_layer_param(b->layer, i, &pb) != MOE_OK)
            return false;
        if (!pa.grad) continue; /* a buffer, or a frozen router */
        same = same_bytes(pa.name, pa.grad_dtype, pa.grad, pb.grad,
                          pa.dim[0] * pa.dim[1] * (pa.n_dim > 2 ? pa.dim[2] : 1), row);
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
    const int64_t n = first->T * first->d, n_out = first->T * first->d_out;
    const size_t bytes = (size_t)(n + n_out) * first->number;
    snprintf(row->what, sizeof row->what, "a second run of the same layer");
    copy.y = moe_ctx_alloc(first->ctx, bytes);
    if (!copy.y) return told(first, MOE_ERR_MEMORY, error);
    copy.dx = copy.y + (size_t)n_out * first->number;
    moe_status status = run_once(&copy, error);
    row->equal = status == MOE_OK && same_bytes("y", first->dtype, first->y, copy.y, n_out, row) &&
                 same_bytes("dx", first->dtype, first->dx, copy.dx, n, row);
    moe_ctx_free(first->ctx, copy.y, bytes);
    return status;
}

static moe_status compare_batches(subject *s, determinism_result *result, moe_error *error) {
    const moe_layer_desc *desc = moe_layer_get_desc(s->layer);
    const bool hashes = desc->num_experts > 0 && strcmp(desc->router_type, "hash") == 0 &&
                        strcmp(desc->routing_unit, "token") == 0;
    moe_call call = {.size = sizeof call, .mode = MOE_INFER};
    determinism_row *row = add_row(result);
    snprintf(row->what, sizeof row->what, "each token alone and in the batch");
    moe_status status =
        moe_layer_forward(s->layer, view(s, s->x, s->T), out_view(s, s->y, s->T), &call, NULL);
    row->equal = true;
    for (int64_t t = 0; t < s->T && status == MOE_OK && row->equal; ++t) {
        const int32_t id = (int32_t)t; /* what its number was there */
        if (hashes) call.token_id = &id;
        status = moe_layer_forward(s->layer, view(s, s->x + (size_t)(t * s->d) * s->number, 1),
                                   out_view(s, s->dy, 1), &call, NULL);
        row->equal = status == MOE_OK && same_bytes("y", s->dtype, s->y + (size_t)(t * s->d_out) * s->number,
                                                    s->dy, s->d_out, row);
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
    found.not_alone = moe_layer_company(first.layer);
    if (status == MOE_OK && !found.not_alone) status = compare_batches(&first, &found, error);
    subject_destroy(&first);
    if (status != MOE_OK) return status;
    found.equal = true;
    for (int32_t i = 0; i < found.n_rows; ++i) found.equal = found.equal && found.row[i].equal;
    *result = found;
    return MOE_OK;
}
