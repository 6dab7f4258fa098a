/* test_layer_own_kind.c: gradients of a kind that is not the library's: y[r] = x[token of r] * w_e, w[E,1,d].
 * Registered three times: it adds to its gradient whatever it is told, stores it where told to, has it in
 * bf16. Alone and beside others. Identities: stored into poison = added to zeros; bf16 = f32 rounded once.
 */
#include "unit/layer/grads_fixture.h"

enum { T = 36, D = 12, E = 5, MOST = 1 << 12 };

typedef struct habit {
    const char *name;
    bool overwrites;
    moe_dtype grad_dtype; /* of bf16 parameters */
    int told;             /* backward calls that came with overwrite_grad */
} habit;

typedef struct scale {
    moe_ctx *ctx;
    moe_expert_desc desc;
    habit *habit;
    void *weight, *grad;
} scale;

static moe_dtype grad_dtype_of(const scale *s) {
    return s->desc.dtype == MOE_BF16 ? s->habit->grad_dtype : s->desc.dtype;
}

static size_t weight_bytes(const moe_expert_desc *desc) {
    return (size_t)(desc->n_experts * desc->d_in) * moe_dtype_bytes(desc->dtype);
}

static moe_status scale_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    scale *s = moe_ctx_alloc(ctx, sizeof *s);
    if (!s) return MOE_ERR_MEMORY;
    *s = (scale){.ctx = ctx, .desc = *desc, .habit = desc->user};
    s->weight = moe_ctx_alloc(ctx, weight_bytes(desc));
    if (!s->weight) {
        moe_ctx_free(ctx, s, sizeof *s);
        return MOE_ERR_MEMORY;
    }
    moe_random_normal(test_seed(), MOE_DRAW_TEST, 11, desc->stream, desc->dtype, s->weight,
                      (int64_t)desc->n_experts * desc->d_in, 1);
    *self = s;
    return MOE_OK;
}

static void scale_destroy(void *self) {
    scale *s = self;
    moe_ctx_free(s->ctx, s->weight, weight_bytes(&s->desc));
    moe_ctx_free(s->ctx, s, sizeof *s);
}

static int32_t scale_param_count(const void *self) {
    (void)self;
    return 1;
}

static moe_status scale_param(const void *self, int32_t index, moe_param *param) {
    const scale *s = self;
    (void)index;
    *param = (moe_param){
        .size = sizeof *param,
        .name = "weight",
        .dtype = s->desc.dtype,
        .n_dim = 3,
        .dim = {s->desc.n_experts, 1, s->desc.d_in},
        .value = s->weight,
        .grad = s->grad,
        .grad_dtype = s->habit->grad_dtype
    };
    return MOE_OK;
}

static void scale_bind_grad(void *self, int32_t index, void *grad) {
    (void)index;
    ((scale *)self)->grad = grad;
}

static size_t no_saved(const void *self, int64_t max_rows) {
    (void)self, (void)max_rows;
    return 0;
}

static size_t no_scratch(const void *self, int64_t max_rows, moe_mode mode) {
    (void)mode;
    return no_saved(self, max_rows);
}

static double in_mat(const moe_mat *mat, int64_t row, int64_t column) {
    return moei_real_load(mat->dtype, mat->data, row * mat->stride + column);
}

static void to_mat(const moe_mat *mat, int64_t row, int64_t column, double value) {
    moei_real_store(mat->dtype, mat->data, row * mat->stride + column, value);
}

static moe_status scale_forward(void *self, const moe_expert_io *io) {
    const scale *s = self;
    const int64_t d = s->desc.d_in;
    for (int32_t e = 0; e < io->n_experts; ++e)
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r)
            for (int64_t i = 0; i < d; ++i)
                to_mat(&io->out, r, i,
                       in_mat(&io->in, io->row_token ? io->row_token[r] : r, i) *
                           moei_real_load(s->desc.dtype, s->weight, e * d + i));
    return MOE_OK;
}

/* What row r adds to dw_e; its own gradients are written. */
static void row_backward(const scale *s, const moe_expert_io *io, int32_t e, int64_t r, double *dw) {
    const int64_t d = s->desc.d_in, token = io->row_token ? io->row_token[r] : r;
    const moe_dtype wide = moei_wide(s->desc.dtype);
    const double weight = io->row_weight ? moei_real_load(wide, io->row_weight, r) : 1;
    double dweight = 0;
    for (int64_t i = 0; i < d; ++i) {
        const double x = in_mat(&io->in, token, i), dy = in_mat(&io->dout, token, i);
        const double w = moei_real_load(s->desc.dtype, s->weight, e * d + i);
        dw[i] += weight * dy * x;
        dweight += dy * x * w;
        if (io->din.data) to_mat(&io->din, r, i, weight * dy * w);
    }
    if (io->drow_weight) moei_real_store(wide, io->drow_weight, r, dweight);
}

static moe_status scale_backward(void *self, const moe_expert_io *io) {
    const scale *s = self;
    const int64_t d = s->desc.d_in;
    const bool store = io->overwrite_grad && s->habit->overwrites;
    s->habit->told += io->overwrite_grad;
    for (int32_t e = 0; e < io->n_experts; ++e) {
        double dw[D] = {0};
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) row_backward(s, io, e, r, dw);
        for (int64_t i = 0; i < d; ++i) {
            const double before = store ? 0 : moei_real_load(grad_dtype_of(s), s->grad, e * d + i);
            moei_real_store(grad_dtype_of(s), s->grad, e * d + i, before + dw[i]);
        }
    }
    return MOE_OK;
}

static void add_kind(moe_ctx *ctx, habit *h) {
    h->told = 0;
    const moe_expert_ops ops = {.size = sizeof ops,
                                .name = h->name,
                                .user = h,
                                .create = scale_create,
                                .destroy = scale_destroy,
                                .param_count = scale_param_count,
                                .param = scale_param,
                                .bind_grad = scale_bind_grad,
                                .saved_bytes = no_saved,
                                .scratch_bytes = no_scratch,
                                .forward = scale_forward,
                                .backward = scale_backward,
                                .overwrites = h->overwrites};
    must(ctx, moe_expert_register(ctx, &ops));
}

static moe_layer *make(moe_ctx *ctx, const char *expert, const char *kinds, moe_dtype dtype) {
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .dtype = dtype,
                                 .d_model = D,
                                 .num_experts = E,
                                 .top_k = 2,
                                 .expert_hidden_size = 7,
                                 .aux_loss_coeff = 0.1F,
                                 .expert = expert,
                                 .expert_kinds = kinds};
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static const struct kinds {
    const char *expert, *kinds;
} layers[] = {
    {"stores", ""                           },
    {"adds",   ""                           },
    {"narrow", ""                           },
    {"",       "stores,stores,adds,narrow,5"},
    {"",       "9,adds,stores,identity,zero"},
    {"",       "narrow,3,stores,4,adds"     }
};
enum { LAYERS = sizeof layers / sizeof *layers };

/* 1 where the kind serves a part of the layer: neighbours of one kind are one part, and no layer has two. */
static int parts_of(const struct kinds *layer, const char *kind) {
    return strstr(layer->expert, kind) || strstr(layer->kinds, kind);
}

static void stored_is_added_to_zeros(void **state) {
    (void)state;
    habit stores = {.name = "stores", .overwrites = true}, adds = {.name = "adds"},
          narrow = {.name = "narrow", .overwrites = true, .grad_dtype = MOE_BF16};
    static double added[MOST], stored[MOST], twice[MOST];
    moe_ctx *ctx = test_ctx(NULL, 2);
    add_kind(ctx, &stores), add_kind(ctx, &adds), add_kind(ctx, &narrow);
    for (int i = 0; i < 3 * LAYERS; ++i) {
        const char *kinds = layers[i / 3].kinds, *expert = layers[i / 3].expert;
        moe_layer *layer = make(ctx, *expert ? expert : NULL, *kinds ? kinds : NULL, (moe_dtype)(i % 3));
        moe_layer_zero_grad(layer);
        const int64_t n = grads_step(ctx, layer, T, false, added, MOST);
        assert_int_equal(stores.told + adds.told + narrow.told, 0);
        grads_poison(ctx, layer);
        assert_int_equal(grads_step(ctx, layer, T, true, stored, MOST), n);
        double moved = 0;
        grads_step(ctx, layer, T, false, twice, MOST);
        for (int64_t j = 0; j < n; ++j) {
            if (!(stored[j] == added[j]))
                fail_msg("%s%s, dtype %d: gradient %lld is %g stored and %g added to zeros (seed %llu)",
                         expert, kinds, i % 3, (long long)j, stored[j], added[j],
                         (unsigned long long)test_seed());
            moved += fabs(twice[j] - stored[j]);
        }
        assert_true(moved > 0);
        assert_int_equal(adds.told, 0); /* it would be told what it does not heed */
        assert_int_equal(stores.told, parts_of(&layers[i / 3], "stores"));
        assert_int_equal(narrow.told, parts_of(&layers[i / 3], "narrow"));
        stores.told = adds.told = narrow.told = 0;
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

/* bf16 gradients are those of the same layer with f32 ones, rounded; f32 and f64 layers have their own. */
static void bf16_gradients_are_rounded_once(void **state) {
    (void)state;
    habit wide = {.name = "wide", .overwrites = true},
          narrow = {.name = "narrow", .overwrites = true, .grad_dtype = MOE_BF16};
    static double whole[MOST], rounded[MOST];
    moe_ctx *ctx = test_ctx(NULL, 2);
    add_kind(ctx, &wide), add_kind(ctx, &narrow);
    for (int beside = 0; beside < 2; ++beside)
        for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype) {
            moe_layer *a =
                make(ctx, beside ? NULL : "wide", beside ? "3,wide,wide,4,wide" : NULL, (moe_dtype)dtype);
            moe_layer *b = make(ctx, beside ? NULL : "narrow", beside ? "3,narrow,narrow,4,narrow" : NULL,
                                (moe_dtype)dtype);
            grads_poison(ctx, a), grads_poison(ctx, b);
            int64_t n = grads_step(ctx, a, T, true, whole, MOST), at = 0, own = 0;
            assert_int_equal(grads_step(ctx, b, T, true, rounded, MOST), n);
            for (int32_t i = 0; i < moe_layer_param_count(b); ++i) {
                const moe_param param = grads_param(ctx, b, i);
                const bool is_own = param.n_dim == 3 && param.dim[1] == 1;
                const bool halved = is_own && dtype == MOE_BF16;
                own += is_own;
                assert_int_equal(param.grad_dtype, halved ? MOE_BF16 : moei_wide((moe_dtype)dtype));
                for (int64_t j = 0; j < grads_count(&param); ++j, ++at) {
                    uint16_t bits = moei_bf16_round((float)whole[at]);
                    const double want = halved ? (double)moei_bf16_value(bits) : whole[at];
                    if (!(rounded[at] == want))
                        fail_msg("%s, %s[%lld]: %g, expected %g (seed %llu)", beside ? "beside" : "alone",
                                 param.name, (long long)j, rounded[at], want,
                                 (unsigned long long)test_seed());
                }
            }
            assert_int_equal(own, beside ? 2 : 1);
            moe_layer_destroy(a), moe_layer_destroy(b);
        }
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stored_is_added_to_zeros),
        cmocka_unit_test(bf16_gradients_are_rounded_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
