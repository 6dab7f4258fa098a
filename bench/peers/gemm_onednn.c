/* gemm_onednn.c: the matmul primitive of oneDNN 3. A primitive belongs to a shape: those met are kept. For
 * inference weights are reordered once into the layout that oneDNN asks for, as its guide advises.
 * Source: oneDNN developer guide, "Matrix Multiplication" and "Memory Format Propagation".
 */
#include "peer_gemm.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SHAPES = 512 }; /* experts of uneven load each have a shape of their own */

typedef struct product {
    gemm shape;
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c;
} product;

typedef struct weights {
    dnnl_memory_desc_t layout;
    dnnl_memory_t memory;
} weights;

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static product known[MOST_SHAPES];
static int n_known;

static void about(char *text, size_t size) {
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, size, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}

static dnnl_status_t start(void) {
    if (stream) return dnnl_success;
    dnnl_status_t status = dnnl_engine_create(&engine, dnnl_cpu, 0);
    return status == dnnl_success ? dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) : status;
}

static dnnl_status_t matrix(dnnl_memory_desc_t *desc, int64_t rows, int64_t cols, bool transposed,
                            bool bf16) {
    const dnnl_dims_t dims = {rows, cols};
    return dnnl_memory_desc_create_with_tag(desc, 2, dims, bf16 ? dnnl_bf16 : dnnl_f32,
                                            transposed ? dnnl_ba : dnnl_ab);
}

/* The product with B in this layout. */
static dnnl_status_t describe(const gemm *g, const_dnnl_memory_desc_t b, dnnl_primitive_desc_t *desc) {
    dnnl_memory_desc_t a = NULL, c = NULL;
    dnnl_status_t status = matrix(&a, g->m, g->k, g->a_trans, g->bf16);
    if (status == dnnl_success) status = matrix(&c, g->m, g->n, false, g->bf16);
    if (status == dnnl_success) status = dnnl_matmul_primitive_desc_create(desc, engine, a, b, NULL, c, NULL);
    dnnl_memory_desc_destroy(a);
    dnnl_memory_desc_destroy(c);
    return status;
}

static dnnl_status_t make_product(const gemm *g, product *p) {
    dnnl_memory_desc_t plain = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_status_t status = dnnl_success;
    if (!g->packed) status = matrix(&plain, g->k, g->n, g->b_trans, g->bf16);
    if (status == dnnl_success)
        status = describe(g, g->packed ? ((const weights *)g->b)->layout : plain, &desc);
    if (status == dnnl_success) status = dnnl_primitive_create(&p->primitive, desc);
    const struct {
        dnnl_memory_t *memory;
        dnnl_query_t what;
    } operand[] = {
        {&p->a, dnnl_query_src_md    },
        {&p->b, dnnl_query_weights_md},
        {&p->c, dnnl_query_dst_md    }
    };
    for (int i = 0; i < 3 && status == dnnl_success; ++i)
        status = dnnl_memory_create(operand[i].memory, dnnl_primitive_desc_query_md(desc, operand[i].what, 0),
                                    engine, DNNL_MEMORY_NONE);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_desc_destroy(plain);
    p->shape = *g;
    return status;
}

static bool same_shape(const gemm *g, const gemm *h) {
    return g->m == h->m && g->n == h->n && g->k == h->k && g->a_trans == h->a_trans &&
           g->b_trans == h->b_trans && g->bf16 == h->bf16 && g->packed == h->packed;
}

static void *handle(dnnl_memory_t memory) {
    void *data = NULL;
    dnnl_memory_get_data_handle(memory, &data);
    return data;
}

static const char *run(const gemm *g) {
    if (start() != dnnl_success) return "oneDNN: no engine";
    int i = 0;
    while (i < n_known && !same_shape(g, &known[i].shape)) ++i;
    if (i == MOST_SHAPES) return "oneDNN: more shapes than this benchmark keeps";
    product *p = &known[i];
    if (i == n_known) {
        if (make_product(g, p) != dnnl_success) return "oneDNN: no such matmul";
        ++n_known;
    }
    dnnl_memory_set_data_handle(p->a, g->a);
    dnnl_memory_set_data_handle(p->b, g->packed ? handle(((const weights *)g->b)->memory) : g->b);
    dnnl_memory_set_data_handle(p->c, g->c);
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC,     p->a},
        {DNNL_ARG_WEIGHTS, p->b},
        {DNNL_ARG_DST,     p->c}
    };
    dnnl_status_t status = dnnl_primitive_execute(p->primitive, stream, 3, args);
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    return status == dnnl_success ? NULL : "oneDNN: the matmul failed";
}

static void unpack(void *packed) {
    weights *w = packed;
    if (!w) return;
    dnnl_memory_destroy(w->memory);
    dnnl_memory_desc_destroy(w->layout);
    free(w);
}

/* Copies the weights into `w`, which has the layout. */
static dnnl_status_t reorder(const gemm *g, weights *w) {
    dnnl_memory_desc_t plain = NULL;
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_status_t status = matrix(&plain, g->k, g->n, g->b_trans, g->bf16);
    if (status == dnnl_success) status = dnnl_memory_create(&from, plain, engine, g->b);
    if (status == dnnl_success)
        status = dnnl_memory_create(&w->memory, w->layout, engine, DNNL_MEMORY_ALLOCATE);
    if (status == dnnl_success)
        status = dnnl_reorder_primitive_desc_create(&desc, plain, engine, w->layout, engine, NULL);
    if (status == dnnl_success) status = dnnl_primitive_create(&primitive, desc);
    if (status == dnnl_success) {
        const dnnl_exec_arg_t args[] = {
            {DNNL_ARG_FROM, from     },
            {DNNL_ARG_TO,   w->memory}
        };
        status = dnnl_primitive_execute(primitive, stream, 2, args);
    }
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_destroy(from);
    dnnl_memory_desc_destroy(plain);
    return status;
}

static void *pack(const gemm *g) {
    if (start() != dnnl_success) return NULL;
    weights *w = calloc(1, sizeof *w);
    dnnl_memory_desc_t any = NULL;
    dnnl_primitive_desc_t desc = NULL;
    const dnnl_dims_t dims = {g->k, g->n};
    dnnl_status_t status =
        dnnl_memory_desc_create_with_tag(&any, 2, dims, g->bf16 ? dnnl_bf16 : dnnl_f32, dnnl_format_tag_any);
    if (status == dnnl_success) status = describe(g, any, &desc);
    if (status == dnnl_success && w)
        status =
            dnnl_memory_desc_clone(&w->layout, dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0));
    if (status == dnnl_success && w) status = reorder(g, w);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_desc_destroy(any);
    if (status == dnnl_success) return w;
    unpack(w);
    return NULL;
}

const gemm_library peer_gemm = {.about = about, .has_bf16 = true, .pack = pack, .unpack = unpack, .run = run};
