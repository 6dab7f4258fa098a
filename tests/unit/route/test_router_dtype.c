/* test_router_dtype.c: the router's type apart from the layer's. An f32 layer that routes in f64 makes, bit
 * for bit, what an f64 layer of the same numbers makes: every router, forward, and the gradients of its
 * losses, which are rounded once.
 */
#include "support/layer_fixture.h"

enum { T = 37, D = 10 };

/* Routers with the settings that make them differ; each also gets the losses it allows. */
static const char *const routers[] = {
    "top_k 3 aux_loss_coeff 0.3 z_loss_coeff 0.2",
    "top_k 2 score_before_topk true norm_topk_prob true entropy_loss_coeff 0.4 seq_aux_loss_coeff 0.2",
    "score_function sigmoid norm_topk_prob true selection_bias true num_groups 4 group_top_k 2 "
    "aux_loss_coeff 0.3",
    "score_function sqrtsoftplus router_bias true expert_dropout 0.2 aux_loss_coeff 0.3 z_loss_coeff 0.2",
    "router_type gshard_top2 gshard_loss_coeff 0.5 importance_loss_coeff 0.3",
    "router_type gshard_top2 num_groups_outer 2 gshard_loss_coeff 0.5 z_loss_coeff 0.2 importance_loss_coeff "
    "0.3",
    "router_type noisy_top_k importance_loss_coeff 0.3 load_loss_coeff 0.4",
    "router_type sinkhorn aux_loss_coeff 0.3",
    "router_type quantile aux_loss_coeff 0.3",
    "router_type expert_choice entropy_loss_coeff 0.4",
    "router_type hash importance_loss_coeff 0.3",
    "router_type random aux_loss_coeff 0.3",
    "router_type balanced fake_noise 0.5 z_loss_coeff 0.2",
    "routing_unit sequence aux_loss_coeff 0.3",
    "routing_unit task num_tasks 2 aux_loss_coeff 0.3",
    "input_jitter_eps 0.3 aux_loss_coeff 0.3",
    "weight_apply input top_k 1 z_loss_coeff 0.1",
    "capacity_factor 0.75 aux_loss_coeff 0.3",
    "expert identity z_loss_coeff 0.2",
};

typedef struct side {
    moe_layer *layer;
    moe_mat x, y, dy, dx;
    moe_stats stats;
    moe_routing_view view;
} side;

static moe_layer_desc describe(char *text, moe_dtype dtype) {
    moe_layer_desc d = {.size = sizeof d,
                        .dtype = dtype,
                        .d_model = D,
                        .num_experts = 8,
                        .expert_hidden_size = 6,
                        .init_std = 0.6f,
                        .router_dtype = dtype == MOE_F32 ? "f64" : NULL};
    for (char *key = strtok(text, " "); key; key = strtok(NULL, " ")) {
        moe_error error;
        if (moe_layer_desc_set(&d, key, strtok(NULL, " "), &error) != MOE_OK) fail_msg("%s", error.text);
    }
    return d;
}

/* The f32 numbers of `from` in both. */
static void widen_numbers(const void *from, void *to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) ((double *)to)[i] = (double)((const float *)from)[i];
}

static int64_t count_of(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

static void copy_params(moe_ctx *ctx, const moe_layer *from, const moe_layer *to) {
    for (int32_t i = 0; i < moe_layer_param_count(from); ++i) {
        moe_param a = {.size = sizeof a}, b = a;
        must(ctx, moe_layer_param(from, i, &a));
        must(ctx, moe_layer_param(to, i, &b));
        if (a.dtype != MOE_F32 || b.dtype != MOE_F64) fail_msg("%s is not of its layer's type", a.name);
        if (strstr(a.name, "bias") || strstr(a.name, "noise"))
            moe_random_normal(test_seed(), MOE_DRAW_TEST, 60, (uint64_t)i, MOE_F32, a.value, count_of(&a),
                              0.3);
        widen_numbers(a.value, b.value, count_of(&a));
    }
}

static side begin(moe_ctx *ctx, const char *settings, moe_dtype dtype, double dy_scale) {
    char text[256];
    snprintf(text, sizeof text, "%s", settings);
    const moe_layer_desc desc = describe(text, dtype);
    side s = {.layer = test_layer(ctx, &desc, T),
              .stats = {.size = sizeof s.stats},
              .view = {.size = sizeof s.view}};
    const int32_t width = moe_layer_get_desc(s.layer)->output_size;
    moe_mat x = test_random(MOE_F32, T, D, 1), dy = test_random(MOE_F32, T, width, 2);
    for (int64_t i = 0; i < T * width; ++i) ((float *)dy.data)[i] *= (float)dy_scale;
    s.x = test_output(dtype, T, D), s.dy = test_output(dtype, T, width);
    s.y = test_output(dtype, T, width), s.dx = test_output(dtype, T, D);
    for (int64_t i = 0; i < T * D; ++i)
        if (dtype == MOE_F64) ((double *)s.x.data)[i] = (double)((const float *)x.data)[i];
    if (dtype == MOE_F64) widen_numbers(dy.data, s.dy.data, T * width);
    if (dtype == MOE_F32) memcpy(s.x.data, x.data, test_bytes(x)), memcpy(s.dy.data, dy.data, test_bytes(dy));
    free(x.data), free(dy.data);
    return s;
}

static void run(moe_ctx *ctx, side *s) {
    static const int32_t task[] = {1};
    static uint8_t mask[T];
    const bool by_task = strcmp(moe_layer_get_desc(s->layer)->routing_unit, "task") == 0;
    for (int t = 0; t < T; ++t) mask[t] = t % 11 != 3;
    const moe_call call = {
        .size = sizeof call, .mode = MOE_TRAIN, .step = 7, .token_mask = mask, .task = by_task ? task : NULL};
    must(ctx, moe_layer_forward(s->layer, s->x, s->y, &call, &s->stats));
    must(ctx, moe_layer_routing(s->layer, &s->view));
    must(ctx, moe_layer_backward(s->layer, s->x, s->dy, s->dx));
}

static void end(side *s) {
    moe_layer_destroy(s->layer);
    free(s->x.data), free(s->y.data), free(s->dy.data), free(s->dx.data);
}

static void same_routing(const char *settings, const side *a, const side *b) {
    const size_t slots = (size_t)(T * a->view.top_k);
    if (a->view.dtype != MOE_F64 || b->view.dtype != MOE_F64) fail_msg("%s: not routed in f64", settings);
    if (memcmp(a->view.expert, b->view.expert, slots * sizeof(int32_t)) != 0 ||
        memcmp(a->view.row_of, b->view.row_of, slots * sizeof(int32_t)) != 0)
        fail_msg("%s: other experts", settings);
    if (memcmp(a->view.weight, b->view.weight, slots * sizeof(double)) != 0)
        fail_msg("%s: other weights", settings);
    if (!test_same_stats(&a->stats, &b->stats)) fail_msg("%s: other statistics", settings);
}

/* Numbers of an f32 side against those of the f64 one: apart by `bound` of the largest; 0: rounded once. */
static void close(const char *settings, const char *what, const void *narrow, const void *wide, int64_t n,
                  double bound) {
    const float *a = narrow;
    const double *b = wide;
    double largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = fmax(largest, fabs(b[i]));
    for (int64_t i = 0; i < n; ++i)
        if (bound > 0 ? !(fabs((double)a[i] - b[i]) <= bound * largest) : a[i] != (float)b[i])
            fail_msg("%s: %s %lld is %.9g, not %.17g", settings, what, (long long)i, (double)a[i], b[i]);
}

static void compare_gradients(moe_ctx *ctx, const char *settings, const side *a, const side *b,
                              double bound) {
    for (int32_t i = 0; i < moe_layer_param_count(a->layer); ++i) {
        moe_param p = {.size = sizeof p}, q = p;
        must(ctx, moe_layer_param(a->layer, i, &p));
        must(ctx, moe_layer_param(b->layer, i, &q));
        if (p.grad) close(settings, p.name, p.grad, q.grad, count_of(&p), bound);
    }
    close(settings, "dx", a->dx.data, b->dx.data, T * D, bound);
}

static void both(moe_ctx *ctx, const char *settings, double dy_scale) {
    side a = begin(ctx, settings, MOE_F32, dy_scale), b = begin(ctx, settings, MOE_F64, dy_scale);
    copy_params(ctx, a.layer, b.layer);
    run(ctx, &a);
    run(ctx, &b);
    same_routing(settings, &a, &b);
    close(settings, "y", a.y.data, b.y.data, T * a.y.cols, 2e-6);
    compare_gradients(ctx, settings, &a, &b, dy_scale > 0 ? 2e-5 : 0);
    end(&a);
    end(&b);
}

static void an_f32_layer_routes_as_an_f64_one(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 2);
    for (size_t i = 0; i < sizeof routers / sizeof *routers; ++i) {
        both(ctx, routers[i], 0); /* of the losses alone: nothing between them and the gate is f32 */
        both(ctx, routers[i], 1);
    }
    moe_ctx_destroy(ctx);
}

/* Logits that f32 cannot tell apart: in f32 a tie, which the lower expert wins. */
static void f64_sees_what_f32_rounds_away(void **state) {
    (void)state;
    static const char *const dtypes[] = {"f32", "f64"};
    moe_ctx *ctx = test_ctx(NULL, 1);
    for (int i = 0; i < 2; ++i) {
        const moe_layer_desc desc = {.size = sizeof desc,
                                     .d_model = 2,
                                     .num_experts = 2,
                                     .top_k = 1,
                                     .expert_hidden_size = 2,
                                     .router_dtype = dtypes[i]};
        moe_layer *layer = test_layer(ctx, &desc, 1);
        moe_param gate = {.size = sizeof gate};
        moe_routing_view view = {.size = sizeof view};
        must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
        const float weight[] = {1, 0, 1, 1e-9f};
        memcpy(gate.value, weight, sizeof weight);
        float x[] = {1, 1}, y[2];
        must(ctx, moe_layer_forward(layer, (moe_mat){x, 1, 2, 0, MOE_F32}, (moe_mat){y, 1, 2, 0, MOE_F32},
                                    NULL, NULL));
        must(ctx, moe_layer_routing(layer, &view));
        assert_int_equal(view.dtype, i == 0 ? MOE_F32 : MOE_F64);
        assert_int_equal(view.expert[0], i);
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

static void a_narrower_router_is_refused(void **state) {
    (void)state;
    static const char *const narrow[] = {"f32", "fp32"};
    for (int i = 0; i < 2; ++i) {
        moe_error error;
        const moe_layer_desc desc = {.size = sizeof desc,
                                     .dtype = MOE_F64,
                                     .d_model = 2,
                                     .num_experts = 2,
                                     .expert_hidden_size = 2,
                                     .router_dtype = narrow[i]};
        assert_int_equal(moe_layer_desc_check(&desc, &error), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(error.text, "router_dtype"));
    }
}

/* Fast kernels for the experts, the reference for the router: threads change no bit. */
static void threads_change_no_bit(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof routers / sizeof *routers; ++i) {
        moe_ctx *one = test_ctx(NULL, 1), *three = test_ctx(NULL, 3);
        side a = begin(one, routers[i], MOE_F32, 1), b = begin(three, routers[i], MOE_F32, 1);
        run(one, &a);
        run(three, &b);
        same_routing(routers[i], &a, &b);
        assert_memory_equal(a.y.data, b.y.data, test_bytes(a.y));
        assert_memory_equal(a.dx.data, b.dx.data, test_bytes(a.dx));
        end(&a);
        end(&b);
        moe_ctx_destroy(one);
        moe_ctx_destroy(three);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_f32_layer_routes_as_an_f64_one),
        cmocka_unit_test(f64_sees_what_f32_rounds_away),
        cmocka_unit_test(a_narrower_router_is_refused),
        cmocka_unit_test(threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
