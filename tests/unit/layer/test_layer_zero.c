/* test_layer_zero.c: MOE_ZERO, the number 0 in fields whose 0 means a default: each field that takes it.
 * An identity shows that 0 is what the layer computes with, and that the default is another number.
 */
#include "support/layer_fixture.h"

enum { T = 24, D = 6, E = 4 };

static moe_layer_desc base(void) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .dtype = MOE_F64,
                            .d_model = D,
                            .num_experts = E,
                            .top_k = 2,
                            .expert_hidden_size = 5,
                            .init_std = 0.8f};
}

typedef struct outcome {
    moe_mat y;
    moe_stats stats;
    int64_t capacity;
    double gate_grad; /* sum of its magnitudes; -1: no backward was asked for */
} outcome;

/* One forward of tokens of N(0, scale^2); in training a backward of the losses alone follows. */
static outcome run(moe_layer_desc desc, moe_call call, double scale) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL;
    outcome o = {.y = test_output(MOE_F64, T, D), .stats = {.size = sizeof o.stats}, .gate_grad = -1};
    moe_mat x = test_random(MOE_F64, T, D, 1), dy = test_output(MOE_F64, T, D);
    moe_routing_view view = {.size = sizeof view};
    for (int64_t i = 0; i < T * D; ++i) ((double *)x.data)[i] *= scale;
    memset(dy.data, 0, test_bytes(dy));
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    call.size = sizeof call;
    must(ctx, moe_layer_forward(layer, x, o.y, &call, &o.stats));
    must(ctx, moe_layer_routing(layer, &view));
    o.capacity = view.capacity;
    if (call.mode == MOE_TRAIN) {
        moe_param gate = {.size = sizeof gate};
        must(ctx, moe_layer_backward(layer, x, dy, (moe_mat){0}));
        must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
        o.gate_grad = 0;
        for (int64_t i = 0; i < gate.dim[0] * gate.dim[1]; ++i) o.gate_grad += fabs(((double *)gate.grad)[i]);
    }
    free(dy.data);
    free(x.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return o;
}

/* Largest distance of a y from `factor` times another. */
static double distance(const outcome *a, const outcome *b, double factor) {
    double largest = 0;
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < D; ++i)
            largest = fmax(largest, fabs(test_at(a->y, t, i) - factor * test_at(b->y, t, i)));
    return largest;
}

static double size_of(const outcome *o) {
    return distance(o, o, 0);
}

static void end(outcome *o) {
    free(o->y.data);
}

static const moe_call train = {.mode = MOE_TRAIN, .step = 3}, infer = {.mode = MOE_INFER};

/* z sigmoid(0 z) = z / 2: a quick-GELU of slope 0 is linear, so one expert doubles with its token. */
static void slope_of_the_activation(void **state) {
    (void)state;
    for (int zero = 0; zero < 2; ++zero) {
        moe_layer_desc d = base();
        d.num_experts = d.top_k = 1;
        d.activation = "quick_gelu";
        d.activation_alpha = zero ? MOE_ZERO : 0;
        outcome once = run(d, infer, 1), twice = run(d, infer, 2);
        assert_true(size_of(&once) > 1e-3);
        assert_int_equal(distance(&twice, &once, 2) < 1e-12, zero);
        end(&once);
        end(&twice);
    }
}

/* swigluoai without clamp and offset, and with slope 1, is swiglu. */
static void clamp_and_offset_of_the_activation(void **state) {
    (void)state;
    moe_layer_desc plain = base();
    plain.glu_layout = "halves";
    outcome right = run(plain, infer, 9);
    for (int i = 0; i < 4; ++i) {
        moe_layer_desc d = plain;
        d.activation = "swigluoai";
        d.activation_alpha = 1;
        d.activation_limit = i & 1 ? MOE_ZERO : 0;
        d.glu_linear_offset = i & 2 ? MOE_ZERO : 0;
        outcome o = run(d, infer, 9);
        assert_int_equal(distance(&o, &right, 1) < 1e-9, i == 3);
        end(&o);
    }
    end(&right);
}

static void scaling_factor(void **state) {
    (void)state;
    moe_layer_desc d = base();
    outcome whole = run(d, infer, 1);
    d.routed_scaling_factor = MOE_ZERO;
    outcome none = run(d, infer, 1);
    assert_true(size_of(&whole) > 1e-3 && size_of(&none) == 0);
    end(&whole);
    end(&none);
}

/* Every second choice has a weight above 0, so none goes. */
static void thresholds_of_second_choices(void **state) {
    (void)state;
    for (int zero = 0; zero < 2; ++zero) {
        moe_layer_desc d = base();
        d.router_type = "gshard_top2";
        d.second_policy_train = d.second_policy_eval = "threshold";
        d.second_threshold_train = d.second_threshold_eval = zero ? MOE_ZERO : 0;
        outcome a = run(d, train, 2), b = run(d, infer, 2);
        assert_int_equal(a.stats.n_routed == 2 * T, zero);
        assert_int_equal(b.stats.n_routed == 2 * T, zero);
        end(&a);
        end(&b);
    }
}

/* A field as small as nothing computes what 0 computes; its default does not. */
static void same_as_tiny(moe_layer_desc d, size_t field) {
    float *value = (float *)(void *)((char *)&d + field);
    outcome o[3];
    static const float values[3] = {MOE_ZERO, 1e-30f, 0};
    for (int i = 0; i < 3; ++i) {
        *value = values[i];
        o[i] = run(d, train, 1);
    }
    assert_true(size_of(&o[0]) > 1e-3);
    assert_true(distance(&o[0], &o[1], 1) == 0);
    assert_true(distance(&o[0], &o[2], 1) > 0);
    for (int i = 0; i < 3; ++i) end(&o[i]);
}

static void least_noise(void **state) {
    (void)state;
    moe_layer_desc d = base();
    d.router_type = "noisy_top_k";
    same_as_tiny(d, offsetof(moe_layer_desc, noise_epsilon));
}

/* Scores that no tolerance ends give the plan that the iterations end at; Megatron's ranking follows it. */
static void sinkhorn_tolerance(void **state) {
    (void)state;
    moe_layer_desc d = base();
    d.router_type = "sinkhorn";
    d.sinkhorn_variant = "megatron";
    d.sinkhorn_tol = MOE_ZERO;
    outcome zero = run(d, train, 1);
    d.sinkhorn_tol = 1e-30f;
    outcome tiny = run(d, train, 1);
    assert_true(size_of(&zero) > 1e-3 && distance(&zero, &tiny, 1) == 0);
    end(&zero);
    end(&tiny);
}

static void capacity_of_training_alone(void **state) {
    (void)state;
    moe_layer_desc d = base();
    d.capacity_factor = 0.5f;
    outcome a = run(d, infer, 1);
    d.capacity_factor_eval = MOE_ZERO;
    outcome b = run(d, infer, 1), c = run(d, train, 1);
    assert_true(a.stats.n_dropped > 0 && b.stats.n_dropped == 0 && c.stats.n_dropped > 0);
    assert_true(b.capacity == -1);
    end(&a);
    end(&b);
    end(&c);
}

static void capacity_of_the_outer_level_alone(void **state) {
    (void)state;
    moe_layer_desc d = base();
    d.num_groups_outer = 2;
    d.router_type = "gshard_top2";
    d.drop_policy = "rank_major";
    d.second_policy_train = "all";
    d.capacity_factor = 0.9f;
    outcome both = run(d, train, 1);
    d.capacity_factor_inner = MOE_ZERO;
    outcome outer = run(d, train, 1);
    assert_true(both.capacity >= 0 && outer.capacity == -1);
    assert_true(outer.stats.n_dropped <= both.stats.n_dropped);
    end(&both);
    end(&outer);
}

static void least_capacity(void **state) {
    (void)state;
    moe_layer_desc d = base();
    d.capacity_factor = 0.1f; /* ceil(0.1 * 2 * 24 / 4) = 2 */
    d.capacity_formula = "deepspeed";
    outcome usual = run(d, infer, 1);
    d.min_capacity = MOE_ZERO;
    outcome none = run(d, infer, 1);
    assert_int_equal(usual.capacity, 4);
    assert_int_equal(none.capacity, 2);
    end(&usual);
    end(&none);
}

static void scale_of_the_losses(void **state) {
    (void)state;
    moe_layer_desc d = base();
    moe_call call = train;
    d.aux_loss_coeff = d.z_loss_coeff = 1;
    outcome whole = run(d, call, 1);
    call.loss_scale = MOE_ZERO;
    outcome none = run(d, call, 1);
    assert_true(whole.gate_grad > 1e-6 && none.gate_grad == 0);
    assert_true(whole.stats.loss == none.stats.loss);
    end(&whole);
    end(&none);
}

static double largest_of(moe_layer_desc d, const char *name) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL;
    moe_param param = {.size = sizeof param};
    double largest = 0;
    must(ctx, moe_layer_create(ctx, &d, &layer));
    must(ctx, moe_layer_param_by_name(layer, name, &param));
    for (int64_t i = 0; i < param.dim[0] * param.dim[1] * param.dim[2]; ++i)
        largest = fmax(largest, fabs(((double *)param.value)[i]));
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return largest;
}

static void deviations_of_the_weights(void **state) {
    (void)state;
    moe_layer_desc d = base();
    d.init_std_down = MOE_ZERO;
    assert_true(largest_of(d, "experts.up.weight") > 0 && largest_of(d, "experts.down.weight") == 0);
    d.init_std = MOE_ZERO;
    assert_true(largest_of(d, "experts.up.weight") == 0 && largest_of(d, "gate.weight") == 0);
    d = base();
    d.init_scheme = "sigma_moe";
    for (int mixed = 0; mixed < 2; ++mixed) {
        d.expert_kinds = mixed ? "3,4,identity,5" : NULL;
        const char *up = mixed ? "experts.1.up.weight" : "experts.up.weight";
        d.init_std_scale = 0;
        assert_true(largest_of(d, up) > 0);
        d.init_std_scale = MOE_ZERO;
        assert_true(largest_of(d, up) == 0);
    }
}

/* The text of 0 itself is -1, no other negative number is one, and a filled descriptor says it again. */
static void every_field_that_takes_it(void **state) {
    (void)state;
    size_t found = 0;
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        moe_layer_desc d = base();
        moe_error error;
        if (row->min >= 0) continue;
        ++found;
        assert_true(row->min == MOE_ZERO && strstr(row->help, "; -1: "));
        assert_int_equal(moe_layer_desc_set(&d, row->key, "-1", &error), MOE_OK);
        assert_int_equal(moe_layer_desc_set(&d, row->key, "-2", &error), MOE_ERR_ARGUMENT);
        if (row->type != MOE_OPT_FLOAT) continue;
        assert_int_equal(moe_layer_desc_set(&d, row->key, "-0.5", &error), MOE_OK);
        assert_int_equal(moe_layer_desc_check(&d, &error), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(error.text, row->key));
        assert_non_null(strstr(error.text, "MOE_ZERO"));
    }
    assert_int_equal(found, 14); /* each has a test above */
}

static void filled_descriptors_keep_it(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL, *again = NULL;
    moe_layer_desc d = base();
    d.init_std_down = d.routed_scaling_factor = d.capacity_factor_eval = MOE_ZERO;
    d.capacity_factor = 1;
    must(ctx, moe_layer_create(ctx, &d, &layer));
    must(ctx, moe_layer_create(ctx, moe_layer_get_desc(layer), &again));
    const moe_layer_desc *kept = moe_layer_get_desc(again);
    assert_true(kept->init_std_down == MOE_ZERO && kept->routed_scaling_factor == MOE_ZERO);
    assert_true(kept->capacity_factor_eval == MOE_ZERO);
    moe_layer_destroy(again);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void useless_zeros_are_refused(void **state) {
    (void)state;
    moe_error error;
    moe_layer_desc d = base();
    d.capacity_factor_eval = MOE_ZERO; /* dropless as it is */
    assert_int_equal(moe_layer_desc_check(&d, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "needs capacity_factor"));
    d.capacity_factor = 1;
    d.router_type = "expert_choice";
    assert_int_equal(moe_layer_desc_check(&d, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "expert_choice"));
    d = base();
    d.noise_epsilon = MOE_ZERO;
    assert_int_equal(moe_layer_desc_check(&d, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "noisy_top_k"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slope_of_the_activation),
        cmocka_unit_test(clamp_and_offset_of_the_activation),
        cmocka_unit_test(scaling_factor),
        cmocka_unit_test(thresholds_of_second_choices),
        cmocka_unit_test(least_noise),
        cmocka_unit_test(sinkhorn_tolerance),
        cmocka_unit_test(capacity_of_training_alone),
        cmocka_unit_test(capacity_of_the_outer_level_alone),
        cmocka_unit_test(least_capacity),
        cmocka_unit_test(scale_of_the_losses),
        cmocka_unit_test(deviations_of_the_weights),
        cmocka_unit_test(every_field_that_takes_it),
        cmocka_unit_test(filled_descriptors_keep_it),
        cmocka_unit_test(useless_zeros_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
