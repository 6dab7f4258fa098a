/* 03_custom_expert.c: experts of three layers, y = relu(relu(x W1) W2) W3, through the table of expert.h.
 * All experts at once: W1[E,d,n] W2[E,n,n] W3[E,n,d] and the grouped products of op.h. The kind asks for
 * contiguous rows, so it sees neither tokens nor routing weights.
 * cc 03_custom_expert.c $(pkg-config --cflags --libs moekit) -lm
 */
#include <moekit/expert.h>
#include <moekit/op.h>

#include <math.h>
#include <stdio.h>

enum { LAYERS = 3 };

typedef struct mlp3 {
    moe_ctx *ctx;
    moe_expert_desc desc;
    float *weight[LAYERS], *grad[LAYERS];
} mlp3;

static moe_status mlp3_param(const void *self, int32_t index, moe_param *param) {
    static const char *const name[LAYERS] = {"first.weight", "second.weight", "third.weight"};
    const mlp3 *m = self;
    const int64_t E = m->desc.n_experts, d = m->desc.d_in, n = m->desc.d_hidden;
    const int64_t from[LAYERS] = {d, n, n}, to[LAYERS] = {n, n, d};
    *param = (moe_param){
        .size = sizeof *param,
        .name = name[index],
        .dtype = m->desc.dtype,
        .n_dim = 3,
        .dim = {E, from[index], to[index]},
        .value = m->weight[index],
        .grad = m->grad[index]
    };
    return MOE_OK;
}

static int64_t numbers(const mlp3 *m, int32_t index) {
    moe_param param = {.size = sizeof param};
    mlp3_param(m, index, &param);
    return param.dim[0] * param.dim[1] * param.dim[2];
}

static void mlp3_destroy(void *self) {
    mlp3 *m = self;
    for (int32_t i = 0; i < LAYERS; ++i)
        moe_ctx_free(m->ctx, m->weight[i], (size_t)numbers(m, i) * sizeof(float));
    moe_ctx_free(m->ctx, m, sizeof *m);
}

static moe_status mlp3_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    if (desc->dtype != MOE_F32) return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED, "mlp3: f32 only");
    mlp3 *m = moe_ctx_alloc(ctx, sizeof *m);
    if (!m) return MOE_ERR_MEMORY;
    *m = (mlp3){.ctx = ctx, .desc = *desc};
    for (int32_t i = 0; i < LAYERS; ++i) {
        m->weight[i] = moe_ctx_alloc(ctx, (size_t)numbers(m, i) * sizeof(float));
        if (!m->weight[i]) {
            mlp3_destroy(m);
            return MOE_ERR_MEMORY;
        }
        moe_random_normal(moe_ctx_seed(ctx), MOE_DRAW_INIT, (uint32_t)desc->layer_index,
                          desc->stream * LAYERS + (uint64_t)i, MOE_F32, m->weight[i], numbers(m, i),
                          (double)desc->init_std);
    }
    *self = m;
    return MOE_OK;
}

static int32_t mlp3_param_count(const void *self) {
    (void)self;
    return LAYERS;
}

static void mlp3_bind_grad(void *self, int32_t index, void *grad) {
    ((mlp3 *)self)->grad[index] = grad;
}

/* Kept from forward to backward: both pre-activations Z1, Z2 [R,n]. */
static size_t mlp3_saved_bytes(const void *self, int64_t max_rows) {
    return 2 * (size_t)max_rows * (size_t)((const mlp3 *)self)->desc.d_hidden * sizeof(float);
}

/* Both activations [R,n]. */
static size_t mlp3_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    (void)mode;
    return mlp3_saved_bytes(self, max_rows);
}

/* C[R,to] = A[R,from] W, or with `transposed` C[R,from] = A[R,to] W^T; what follows is in `rest`. */
static moe_status product(const mlp3 *m, const moe_expert_io *io, int32_t index, bool transposed,
                          const void *a, moe_gemm_rows_args rest) {
    moe_param w = {.size = sizeof w};
    mlp3_param(m, index, &w);
    rest.dtype = w.dtype;
    rest.n_groups = io->n_experts;
    rest.offset = io->offset;
    rest.n = w.dim[transposed ? 1 : 2];
    rest.k = w.dim[transposed ? 2 : 1];
    rest.a = a;
    rest.lda = rest.k;
    rest.b = w.value;
    rest.ldb = w.dim[2];
    rest.b_group = w.dim[1] * w.dim[2];
    rest.b_trans = transposed;
    return moe_gemm_rows(m->ctx, &rest);
}

/* dW += A^T dC of every expert. */
static moe_status weight_gradient(const mlp3 *m, const moe_expert_io *io, int32_t index, const void *a,
                                  const void *dc) {
    moe_param w = {.size = sizeof w};
    mlp3_param(m, index, &w);
    const moe_gemm_outer_args args = {.dtype = w.dtype,
                                      .n_groups = io->n_experts,
                                      .offset = io->offset,
                                      .m = w.dim[1],
                                      .n = w.dim[2],
                                      .a = a,
                                      .lda = w.dim[1],
                                      .b = dc,
                                      .ldb = w.dim[2],
                                      .c = w.grad,
                                      .ldc = w.dim[2],
                                      .c_group = w.dim[1] * w.dim[2],
                                      .accumulate = true};
    return moe_gemm_outer(m->ctx, &args);
}

static moe_status mlp3_forward(void *self, const moe_expert_io *io) {
    const mlp3 *m = self;
    const int64_t n = m->desc.d_hidden;
    float *a1 = io->scratch, *a2 = a1 + io->n_rows * n;
    float *z1 = io->mode == MOE_TRAIN ? io->saved : NULL, *z2 = z1 ? z1 + io->n_rows * n : NULL;
    const moe_gemm_rows_args first = {
        .epilogue = MOE_EPI_ACT, .act = MOE_ACT_RELU, .c = z1, .ldc = n, .h = a1, .ldh = n};
    const moe_gemm_rows_args second = {
        .epilogue = MOE_EPI_ACT, .act = MOE_ACT_RELU, .c = z2, .ldc = n, .h = a2, .ldh = n};
    const moe_gemm_rows_args third = {.c = io->out.data, .ldc = io->out.stride};
    moe_status status = product(m, io, 0, false, io->in.data, first);
    if (status == MOE_OK) status = product(m, io, 1, false, a1, second);
    return status == MOE_OK ? product(m, io, 2, false, a2, third) : status;
}

/* Each ACT_GRAD turns Z into dZ in place and gives the activation again, the operand of the next dW. */
static moe_status mlp3_backward(void *self, const moe_expert_io *io) {
    const mlp3 *m = self;
    const int64_t n = m->desc.d_hidden;
    float *a1 = io->scratch, *a2 = a1 + io->n_rows * n, *z1 = io->saved, *z2 = z1 + io->n_rows * n;
    const moe_gemm_rows_args second = {
        .epilogue = MOE_EPI_ACT_GRAD, .act = MOE_ACT_RELU, .z = z2, .dz = z2, .ldz = n, .wa = a2, .ldwa = n};
    const moe_gemm_rows_args first = {
        .epilogue = MOE_EPI_ACT_GRAD, .act = MOE_ACT_RELU, .z = z1, .dz = z1, .ldz = n, .wa = a1, .ldwa = n};
    const moe_gemm_rows_args input = {.c = io->din.data, .ldc = io->din.stride};
    moe_status status = product(m, io, 2, true, io->dout.data, second);
    if (status == MOE_OK) status = weight_gradient(m, io, 2, a2, io->dout.data);
    if (status == MOE_OK) status = product(m, io, 1, true, z2, first);
    if (status == MOE_OK) status = weight_gradient(m, io, 1, a1, z2);
    if (status == MOE_OK) status = weight_gradient(m, io, 0, io->in.data, z1);
    if (status != MOE_OK || !io->din.data) return status; /* a model's first layer wants no dx */
    return product(m, io, 0, true, z1, input);
}

static const moe_expert_ops mlp3_ops = {.size = sizeof mlp3_ops,
                                        .name = "mlp3",
                                        .contiguous = true,
                                        .create = mlp3_create,
                                        .destroy = mlp3_destroy,
                                        .param_count = mlp3_param_count,
                                        .param = mlp3_param,
                                        .bind_grad = mlp3_bind_grad,
                                        .saved_bytes = mlp3_saved_bytes,
                                        .scratch_bytes = mlp3_scratch_bytes,
                                        .forward = mlp3_forward,
                                        .backward = mlp3_backward};

enum { T = 40, D = 12 };

/* sum(y * dy) of one training forward. */
static moe_status objective(moe_layer *layer, moe_mat x, moe_mat y, const float *dy, double *value) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN};
    moe_status status = moe_layer_forward(layer, x, y, &call, NULL);
    *value = 0;
    for (int i = 0; i < T * D; ++i) *value += (double)((float *)y.data)[i] * (double)dy[i];
    return status;
}

/* The gradient of one number of the middle weight, against its central difference. Nothing is before the
 * layer, so nobody asks for dx. */
static moe_status compare_gradient(moe_layer *layer, double *backward, double *difference) {
    static float x[T * D], y[T * D], dy[T * D];
    const moe_mat in = {.data = x, .rows = T, .cols = D}, out = {.data = y, .rows = T, .cols = D};
    const moe_mat dout = {.data = dy, .rows = T, .cols = D}, din = {.rows = T, .cols = D};
    moe_random_normal(1, MOE_DRAW_TEST, 0, 0, MOE_F32, x, T * D, 1.0);
    moe_random_normal(1, MOE_DRAW_TEST, 1, 0, MOE_F32, dy, T * D, 1.0);
    moe_param w = {.size = sizeof w};
    double above = 0, below = 0;
    moe_status status = moe_layer_param_by_name(layer, "experts.second.weight", &w);
    if (status == MOE_OK) status = objective(layer, in, out, dy, &above);
    if (status == MOE_OK) status = moe_layer_backward(layer, in, dout, din);
    if (status != MOE_OK) return status;
    int64_t largest = 0; /* where the difference has the most digits */
    const float *grad = w.grad;
    for (int64_t i = 0; i < w.dim[0] * w.dim[1] * w.dim[2]; ++i)
        if (fabsf(grad[i]) > fabsf(grad[largest])) largest = i;
    float *number = (float *)w.value + largest, kept = *number;
    *backward = (double)grad[largest];
    *number = kept + 1e-3f;
    status = objective(layer, in, out, dy, &above);
    *number = kept - 1e-3f;
    if (status == MOE_OK) status = objective(layer, in, out, dy, &below);
    *number = kept;
    *difference = (above - below) / 2e-3;
    return status;
}

int main(void) {
    moe_error error;
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    double backward = 0, difference = 0;
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .d_model = D,
                                 .num_experts = 4,
                                 .top_k = 2,
                                 .expert_hidden_size = 16,
                                 .expert = "mlp3",
                                 .init_std = 0.4f};
    if (moe_ctx_create(NULL, &ctx, &error) != MOE_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    moe_status status = moe_expert_register(ctx, &mlp3_ops);
    if (status == MOE_OK) status = moe_layer_create(ctx, &desc, &layer);
    if (status == MOE_OK) status = moe_layer_reserve(layer, T, MOE_TRAIN);
    if (status == MOE_OK) status = compare_gradient(layer, &backward, &difference);
    if (status != MOE_OK) fprintf(stderr, "%s\n", moe_ctx_error(ctx));
    printf("a gradient of the middle layer: backward %.5f, difference %.5f\n", backward, difference);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return status == MOE_OK && fabs(backward - difference) <= 0.01 * fabs(backward) ? 0 : 1;
}
