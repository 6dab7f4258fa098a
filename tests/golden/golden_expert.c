/* golden_expert.c: experts that the recorded runs need, written as any user would write one.
 * unit: expert e answers with unit vector e. recorder: keeps its rows. three: three matrices of
 * lucidrains' readme, w1[E,d,n] w2[E,n,n] w3[E,n,d_out], the activation after the first two.
 * All compute on the host, on copies, so that one text serves every device.
 */
#include "golden.h"

#include "support/bare_kind.h"

#include <math.h>
#include <string.h>

enum { THREE_PARAMS = 3 };

typedef struct own_expert {
    moe_ctx *ctx;
    moe_expert_desc desc;
    size_t bytes[THREE_PARAMS];
    float *value[THREE_PARAMS], *grad[THREE_PARAMS];           /* the device's */
    float *host_value[THREE_PARAMS], *host_grad[THREE_PARAMS]; /* during a call */
} own_expert;

/* --- what all three share ----------------------------------------------------------------------------- */

static moe_status own_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    own_expert *own = moe_ctx_alloc(ctx, sizeof *own);
    if (!own) return MOE_ERR_MEMORY;
    *own = (own_expert){.ctx = ctx, .desc = *desc};
    *self = own;
    return MOE_OK;
}

static void own_destroy(void *self) {
    own_expert *own = self;
    for (int i = 0; i < THREE_PARAMS; ++i) moe_memory_free(own->ctx, own->value[i], own->bytes[i]);
    moe_ctx_free(own->ctx, own, sizeof *own);
}

static float *row_of(moe_mat mat, int64_t row) {
    return (float *)mat.data + row * (mat.stride > 0 ? mat.stride : mat.cols);
}

static void clear(moe_mat mat, int64_t n_rows) {
    for (int64_t r = 0; mat.data && r < n_rows; ++r)
        memset(row_of(mat, r), 0, (size_t)mat.cols * sizeof(float));
}

/* One array on its way between the device and the host. */
typedef struct staged {
    void *device, *host;
    size_t bytes;
} staged;

enum { MOST_STAGED = 5 + 2 * THREE_PARAMS };

typedef struct stage {
    moe_ctx *ctx;
    staged list[MOST_STAGED];
    int n;
    moe_status status;
} stage;

/* NULL of NULL. */
static void *stage_in(stage *s, void *device, size_t bytes) {
    if (!device || s->status != MOE_OK) return NULL;
    void *host = moe_ctx_alloc(s->ctx, bytes);
    if (!host) {
        s->status = MOE_ERR_MEMORY;
        return NULL;
    }
    s->list[s->n++] = (staged){device, host, bytes};
    s->status = moe_memory_copy(s->ctx, host, device, bytes);
    return host;
}

static void stage_rows(stage *s, moe_mat *mat, int64_t n_rows) {
    if (mat->stride == 0) mat->stride = mat->cols;
    const int64_t span = n_rows > 0 ? (n_rows - 1) * mat->stride + mat->cols : 0;
    mat->rows = n_rows;
    mat->data = stage_in(s, mat->data, (size_t)span * sizeof(float));
}

/* What may have been written, back to where it came from; then all is freed. */
static moe_status stage_out(stage *s, const void *const *written, int n_written) {
    for (int i = s->n; i-- > 0;) {
        for (int j = 0; j < n_written && s->status == MOE_OK; ++j)
            if (written[j] == s->list[i].host)
                s->status = moe_memory_copy(s->ctx, s->list[i].device, s->list[i].host, s->list[i].bytes);
        moe_ctx_free(s->ctx, s->list[i].host, s->list[i].bytes);
    }
    return s->status;
}

/* Runs `rows` on host copies of all that a call brings. */
static moe_status on_host(own_expert *own, const moe_expert_io *io,
                          moe_status (*rows)(own_expert *own, const moe_expert_io *io)) {
    stage s = {.ctx = own->ctx};
    moe_expert_io ours = *io;
    ours.offset =
        stage_in(&s, (void *)(uintptr_t)io->offset, ((size_t)io->n_experts + 1) * sizeof *io->offset);
    if (ours.offset) ours.n_rows = ours.offset[io->n_experts];
    for (int i = 0; i < THREE_PARAMS; ++i) {
        own->host_value[i] = stage_in(&s, own->value[i], own->bytes[i]);
        own->host_grad[i] = stage_in(&s, io->dout.data ? own->grad[i] : NULL, own->bytes[i]);
    }
    stage_rows(&s, &ours.in, ours.n_rows);
    stage_rows(&s, &ours.out, ours.n_rows);
    stage_rows(&s, &ours.dout, ours.n_rows);
    stage_rows(&s, &ours.din, ours.n_rows);
    if (s.status == MOE_OK) s.status = rows(own, &ours);
    const void *const written[] = {ours.out.data, ours.din.data, own->host_grad[0], own->host_grad[1],
                                   own->host_grad[2]};
    return stage_out(&s, written, sizeof written / sizeof *written);
}

/* A kind that gets its rows in order, wherever they lie. */
static moe_expert_ops own_kind(const char *name, moe_status (*forward)(void *self, const moe_expert_io *io),
                               moe_status (*backward)(void *self, const moe_expert_io *io)) {
    moe_expert_ops ops = bare_kind(name, forward, backward);
    ops.contiguous = ops.on_device = true;
    ops.create = own_create;
    ops.destroy = own_destroy;
    return ops;
}

static bool registered(golden_case *c, const moe_expert_ops *ops) {
    if (moe_expert_register(c->ctx, ops) == MOE_OK) return true;
    golden_fail(c, "%s", moe_ctx_error(c->ctx));
    return false;
}

/* --- unit --------------------------------------------------------------------------------------------- */

static moe_status unit_rows(own_expert *own, const moe_expert_io *io) {
    (void)own;
    clear(io->out, io->n_rows);
    for (int32_t e = 0; e < io->n_experts; ++e)
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) row_of(io->out, r)[e] = 1;
    return MOE_OK;
}

static moe_status unit_forward(void *self, const moe_expert_io *io) {
    return on_host(self, io, unit_rows);
}

static moe_status zero_rows(own_expert *own, const moe_expert_io *io) {
    (void)own;
    clear(io->din, io->n_rows);
    return MOE_OK;
}

static moe_status unit_backward(void *self, const moe_expert_io *io) {
    return on_host(self, io, zero_rows);
}

bool golden_register_unit(golden_case *c) {
    const moe_expert_ops ops = own_kind("unit", unit_forward, unit_backward);
    return registered(c, &ops);
}

/* --- recorder ----------------------------------------------------------------------------------------- */

typedef struct recorder {
    golden_case *c;
    golden_rows *rows;
} recorder;

static moe_status record_rows(own_expert *own, const moe_expert_io *io) {
    const recorder *to = own->desc.user;
    golden_rows *rows = to->rows;
    *rows = (golden_rows){.n_rows = io->n_rows, .width = io->in.cols, .n_experts = io->n_experts};
    rows->in = golden_alloc(to->c, (size_t)(io->n_rows * io->in.cols), sizeof *rows->in);
    rows->offset = golden_alloc(to->c, (size_t)io->n_experts + 1, sizeof *rows->offset);
    memcpy(rows->offset, io->offset, ((size_t)io->n_experts + 1) * sizeof *io->offset);
    for (int64_t r = 0; r < io->n_rows; ++r)
        for (int64_t j = 0; j < io->in.cols; ++j)
            rows->in[r * io->in.cols + j] = (double)row_of(io->in, r)[j];
    clear(io->out, io->n_rows);
    return MOE_OK;
}

static moe_status recorder_forward(void *self, const moe_expert_io *io) {
    return on_host(self, io, record_rows);
}

bool golden_register_recorder(golden_case *c, golden_rows *rows) {
    recorder *to = golden_alloc(c, 1, sizeof *to);
    *to = (recorder){c, rows};
    moe_expert_ops ops = own_kind("recorder", recorder_forward, unit_backward);
    ops.user = to;
    return registered(c, &ops);
}

/* --- three -------------------------------------------------------------------------------------------- */

static const char *const three_names[THREE_PARAMS] = {"w1", "w2", "w3"};

static void three_shape(const own_expert *own, int32_t index, int64_t dim[3]) {
    const moe_expert_desc *d = &own->desc;
    dim[0] = d->n_experts;
    dim[1] = index == 0 ? d->d_in : d->d_hidden;
    dim[2] = index == 2 ? d->d_out : d->d_hidden;
}

static moe_status three_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    void *made;
    moe_status status = own_create(ctx, desc, &made);
    if (status != MOE_OK) return status;
    own_expert *own = made;
    for (int32_t i = 0; i < THREE_PARAMS; ++i) {
        int64_t dim[3];
        three_shape(own, i, dim);
        own->bytes[i] = (size_t)(dim[0] * dim[1] * dim[2]) * sizeof(float);
        own->value[i] = moe_memory_alloc(ctx, own->bytes[i]); /* golden_layer.c fills it */
        if (!own->value[i]) {
            own_destroy(own);
            return MOE_ERR_MEMORY;
        }
    }
    *self = own;
    return MOE_OK;
}

static int32_t three_param_count(const void *self) {
    (void)self;
    return THREE_PARAMS;
}

static moe_status three_param(const void *self, int32_t index, moe_param *param) {
    const own_expert *own = self;
    *param = (moe_param){.name = three_names[index],
                         .dtype = MOE_F32,
                         .n_dim = 3,
                         .value = own->value[index],
                         .grad = own->grad[index]};
    three_shape(own, index, param->dim);
    return MOE_OK;
}

static void three_bind_grad(void *self, int32_t index, void *grad) {
    ((own_expert *)self)->grad[index] = grad;
}

static double activate(const char *name, double z, double *slope) {
    if (strcmp(name, "relu") == 0 || strcmp(name, "leaky_relu") == 0) {
        *slope = z > 0 ? 1 : name[0] == 'r' ? 0 : 0.01;
        return z * *slope;
    }
    if (strcmp(name, "silu") == 0) {
        double s = 1 / (1 + exp(-z));
        *slope = s * (1 + z * (1 - s));
        return z * s;
    }
    double cdf = 0.5 * erfc(-z * sqrt(0.5)); /* gelu; golden_lucid.c lets no other name through */
    *slope = cdf + z * exp(-0.5 * z * z) / sqrt(2 * acos(-1.0));
    return z * cdf;
}

/* out[cols] = in[rows] W[rows,cols] */
static void times(const double *in, const float *w, int64_t rows, int64_t cols, double *out) {
    for (int64_t j = 0; j < cols; ++j) out[j] = 0;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) out[j] += in[i] * (double)w[i * cols + j];
}

/* din[rows] = W dout, where wanted; dW += in dout^T */
static void times_back(const double *in, const double *dout, const float *w, int64_t rows, int64_t cols,
                       float *dw, double *din) {
    for (int64_t i = 0; i < rows; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < cols; ++j) {
            sum += (double)w[i * cols + j] * dout[j];
            dw[i * cols + j] += (float)(in[i] * dout[j]);
        }
        din[i] = sum;
    }
}

static float *matrix(float *const base[THREE_PARAMS], const own_expert *own, int32_t index, int64_t expert) {
    int64_t dim[3];
    three_shape(own, index, dim);
    return base[index] + expert * dim[1] * dim[2];
}

/* The arrays of one row, of the widest layer each. */
enum { THREE_WIDTH = 1024 };

static void three_row(const own_expert *own, const moe_expert_io *io, int64_t e, int64_t r) {
    const int64_t d = own->desc.d_in, n = own->desc.d_hidden, d_out = own->desc.d_out;
    const char *act = own->desc.activation;
    double x[THREE_WIDTH], z[2][THREE_WIDTH], a[2][THREE_WIDTH], slope[2][THREE_WIDTH], y[THREE_WIDTH];
    for (int64_t j = 0; j < d; ++j) x[j] = (double)row_of(io->in, r)[j];
    for (int layer = 0; layer < 2; ++layer) {
        times(layer == 0 ? x : a[0], matrix(own->host_value, own, layer, e), layer == 0 ? d : n, n, z[layer]);
        for (int64_t j = 0; j < n; ++j) a[layer][j] = activate(act, z[layer][j], &slope[layer][j]);
    }
    if (io->out.data) {
        times(a[1], matrix(own->host_value, own, 2, e), n, d_out, y);
        for (int64_t j = 0; j < d_out; ++j) row_of(io->out, r)[j] = (float)y[j];
    }
    if (!io->dout.data) return;
    double da[THREE_WIDTH];
    for (int64_t j = 0; j < d_out; ++j) y[j] = (double)row_of(io->dout, r)[j];
    times_back(a[1], y, matrix(own->host_value, own, 2, e), n, d_out, matrix(own->host_grad, own, 2, e), da);
    for (int64_t j = 0; j < n; ++j) z[1][j] = da[j] * slope[1][j];
    times_back(a[0], z[1], matrix(own->host_value, own, 1, e), n, n, matrix(own->host_grad, own, 1, e), da);
    for (int64_t j = 0; j < n; ++j) z[0][j] = da[j] * slope[0][j];
    times_back(x, z[0], matrix(own->host_value, own, 0, e), d, n, matrix(own->host_grad, own, 0, e), da);
    for (int64_t j = 0; io->din.data && j < d; ++j) row_of(io->din, r)[j] = (float)da[j];
}

/* Backward computes the row again; nothing is saved. */
static moe_status three_rows(own_expert *own, const moe_expert_io *io) {
    const moe_expert_desc *d = &own->desc;
    if (d->d_in > THREE_WIDTH || d->d_hidden > THREE_WIDTH || d->d_out > THREE_WIDTH)
        return moe_ctx_fail(own->ctx, MOE_ERR_UNSUPPORTED, "expert 'three': widths are at most %d",
                            THREE_WIDTH);
    for (int32_t e = 0; e < io->n_experts; ++e)
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) three_row(own, io, e, r);
    return MOE_OK;
}

static moe_status three_pass(void *self, const moe_expert_io *io) {
    return on_host(self, io, three_rows);
}

bool golden_register_three(golden_case *c) {
    moe_expert_ops ops = own_kind("three", three_pass, three_pass);
    ops.create = three_create;
    ops.param_count = three_param_count;
    ops.param = three_param;
    ops.bind_grad = three_bind_grad;
    return registered(c, &ops);
}
