/* test_experts.c: experts and what stands around them against their definitions, written out in f64.
 * Layouts, dropout, recompute and unequal experts through identities. Initial draws: test_init.c.
 */
#include "support/layer_fixture.h"

#include "experts/activation.h"

enum { T = 23, D = 11, E = 5, N = 6 };

static moe_layer_desc base_desc(void) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .dtype = MOE_F64,
                            .d_model = D,
                            .num_experts = E,
                            .top_k = 2,
                            .expert_hidden_size = N};
}

/* Biases begin at zero: every parameter gets numbers worth comparing. */
static void fill_params(moe_ctx *ctx, moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param p = {.size = sizeof p};
        must(ctx, moe_layer_param(layer, i, &p));
        moe_random_normal(test_seed(), MOE_DRAW_TEST, 50 + (uint32_t)i, 0, p.dtype, p.value,
                          p.dim[0] * p.dim[1] * p.dim[2], 0.4);
    }
}

static const double *values(moe_layer *layer, const char *name) {
    moe_param p = {.size = sizeof p};
    return moe_layer_param_by_name(layer, name, &p) == MOE_OK ? p.value : NULL;
}

/* out[d_out] += weight * FFN of expert e on in[d_in] */
static void ffn_by_hand(moe_layer *layer, const char *prefix, const char *activation, int32_t e, int32_t d_in,
                        int32_t n, int32_t d_out, const double *in, double weight, double *out) {
    const moei_activation *kind = moei_activation_find(activation);
    const moe_expert_desc told = {.size = sizeof told};
    const moei_act_rule rule = moei_act_rule_of(kind, &told);
    const int32_t z = rule.gated ? 2 * n : n;
    char name[64];
    snprintf(name, sizeof name, "%s.up.weight", prefix);
    const double *up = values(layer, name) + (int64_t)e * d_in * z;
    snprintf(name, sizeof name, "%s.down.weight", prefix);
    const double *down = values(layer, name) + (int64_t)e * n * d_out;
    snprintf(name, sizeof name, "%s.up.bias", prefix);
    const double *up_bias = values(layer, name);
    snprintf(name, sizeof name, "%s.down.bias", prefix);
    const double *down_bias = values(layer, name);
    for (int32_t j = 0; j < n; ++j) {
        double gate = up_bias ? up_bias[e * z + j] : 0, linear = 0;
        if (rule.gated && up_bias) linear = up_bias[e * z + n + j];
        for (int32_t i = 0; i < d_in; ++i) {
            gate += in[i] * up[i * z + j];
            if (rule.gated) linear += in[i] * up[i * z + n + j];
        }
        const double a = moei_act_at(&rule, gate, linear).value;
        for (int32_t o = 0; o < d_out; ++o) out[o] += weight * a * down[j * d_out + o];
    }
    for (int32_t o = 0; down_bias && o < d_out; ++o) out[o] += weight * down_bias[e * d_out + o];
}

/* Latent width 4, output width 7, gated shared experts, biases: y by the definition. */
static void token_by_hand(moe_layer *layer, const moe_layer_desc *d, const moe_routing_view *view,
                          const double *x, int64_t t, double *y) {
    const int32_t l = d->latent_size, d_out = d->output_size;
    double in[D] = {0}, routed[16] = {0}, shared[16] = {0}, gate = 0;
    const double *in_bias = d->expert_bias && l ? values(layer, "latent.in.bias") : NULL;
    const double *out_bias = d->expert_bias && l ? values(layer, "latent.out.bias") : NULL;
    for (int32_t j = 0; in_bias && j < l; ++j) in[j] = in_bias[j];
    for (int32_t j = 0; j < l; ++j)
        for (int32_t i = 0; i < D; ++i) in[j] += x[i] * values(layer, "latent.in.weight")[i * l + j];
    for (int32_t k = 0; k < view->top_k; ++k)
        ffn_by_hand(layer, "experts", d->activation, view->expert[t * view->top_k + k], l ? l : D, N,
                    l ? l : d_out, l ? in : x, ((const double *)view->weight)[t * view->top_k + k], routed);
    ffn_by_hand(layer, "shared", d->shared_expert_activation, 0, D, 2 * 3, d_out, x, 1, shared);
    for (int32_t i = 0; i < D; ++i) gate += x[i] * values(layer, "shared_gate.weight")[i];
    for (int32_t o = 0; o < d_out; ++o) {
        y[o] = shared[o] / (1 + exp(-gate)) + values(layer, "output.bias")[o];
        if (!l) y[o] += routed[o];
        if (out_bias) y[o] += out_bias[o];
        for (int32_t j = 0; j < l; ++j) y[o] += routed[j] * values(layer, "latent.out.weight")[j * d_out + o];
    }
}

static void surroundings_are_their_definition(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 2);
    for (int variant = 0; variant < 4; ++variant) {
        moe_layer_desc d = base_desc();
        d.latent_size = variant % 2 ? 4 : 0;
        d.output_size = 7;
        d.activation = variant / 2 ? "geglu" : "relu2";
        d.expert_bias = variant / 2;
        d.output_bias = true;
        d.num_shared_experts = 2, d.shared_expert_hidden_size = 3;
        d.shared_expert_gate = true;
        d.shared_expert_activation = "silu";
        moe_layer *layer = test_layer(ctx, &d, T);
        fill_params(ctx, layer);
        moe_mat x = test_random(MOE_F64, T, D, 1), y = test_output(MOE_F64, T, 7);
        moe_routing_view view = {.size = sizeof view};
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
        must(ctx, moe_layer_routing(layer, &view));
        for (int64_t t = 0; t < T; ++t) {
            double expected[16];
            token_by_hand(layer, &d, &view, (const double *)x.data + t * D, t, expected);
            for (int64_t o = 0; o < 7; ++o)
                assert_true(fabs(test_at(y, t, o) - expected[o]) < 1e-12 * (1 + fabs(expected[o])));
        }
        free(x.data), free(y.data);
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

/* Interleaved columns hold what halves hold, elsewhere: with permuted columns the output is the same. */
static void layouts_differ_by_a_permutation(void **state) {
    (void)state;
    static const char *const gated[] = {"swiglu", "geglu", "reglu", "quick_geglu", "swigluoai"};
    moe_ctx *ctx = test_ctx("ref", 1);
    for (size_t a = 0; a < sizeof gated / sizeof *gated; ++a) {
        moe_layer_desc d = base_desc();
        d.activation = gated[a];
        d.expert_bias = true;
        d.glu_layout = "halves";
        moe_layer *halves = test_layer(ctx, &d, T);
        d.glu_layout = "interleaved";
        moe_layer *pairs = test_layer(ctx, &d, T);
        fill_params(ctx, halves), fill_params(ctx, pairs);
        static const char *const permuted[] = {"experts.up.weight", "experts.up.bias"};
        for (int p = 0; p < 2; ++p) {
            moe_param from = {.size = sizeof from}, to = {.size = sizeof to};
            must(ctx, moe_layer_param_by_name(halves, permuted[p], &from));
            must(ctx, moe_layer_param_by_name(pairs, permuted[p], &to));
            const int64_t rows = from.dim[0] * from.dim[1] * from.dim[2] / (2 * N);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t j = 0; j < N; ++j) {
                    ((double *)to.value)[r * 2 * N + 2 * j] = ((double *)from.value)[r * 2 * N + j];
                    ((double *)to.value)[r * 2 * N + 2 * j + 1] = ((double *)from.value)[r * 2 * N + N + j];
                }
        }
        moe_mat x = test_random(MOE_F64, T, D, 1), y = test_output(MOE_F64, T, D),
                z = test_output(MOE_F64, T, D);
        must(ctx, moe_layer_forward(halves, x, y, NULL, NULL));
        must(ctx, moe_layer_forward(pairs, x, z, NULL, NULL));
        for (int64_t t = 0; t < T; ++t)
            for (int64_t i = 0; i < D; ++i) assert_true(fabs(test_at(y, t, i) - test_at(z, t, i)) < 1e-12);
        free(x.data), free(y.data), free(z.data);
        moe_layer_destroy(halves), moe_layer_destroy(pairs);
    }
    moe_ctx_destroy(ctx);
}

/* With relu and zero biases the layer is linear in the mask: what is kept of each number, over 1 - p. */
static void dropout_is_its_mask(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_layer_desc d = base_desc();
    d.activation = "relu";
    d.dropout = 0.25f;
    moe_layer *layer = test_layer(ctx, &d, T);
    moe_mat x = test_random(MOE_F64, T, D, 1), y = test_output(MOE_F64, T, D),
            sum = test_output(MOE_F64, T, D), plain = test_output(MOE_F64, T, D);
    uint8_t keep[2][T * 2 * N];
    for (int i = 0; i < T * 2 * N; ++i) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 77, 0, (uint64_t)i, word);
        keep[0][i] = word[0] % 4 != 0;
        keep[1][i] = !keep[0][i];
    }
    memset(sum.data, 0, test_bytes(sum));
    for (int half = 0; half < 2; ++half) {
        const moe_draws draws = {.size = sizeof draws, .dropout_keep = keep[half]};
        moe_call call = test_train_call;
        call.draws = &draws;
        must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
        for (int i = 0; i < T * D; ++i) ((double *)sum.data)[i] += ((double *)y.data)[i];
    }
    must(ctx, moe_layer_forward(layer, x, plain, NULL, NULL)); /* inference: nothing dropped */
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < D; ++i)
            assert_true(fabs(test_at(sum, t, i) * 0.75 - test_at(plain, t, i)) < 1e-12);
    free(x.data), free(y.data), free(sum.data), free(plain.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* Drawn masks: the mean over many steps is the output without dropout, and each step draws anew. */
static void dropout_draws_are_fair(void **state) {
    (void)state;
    enum { STEPS = 3000 };
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_layer_desc d = base_desc();
    d.dropout = 0.4f;
    moe_layer *layer = test_layer(ctx, &d, 4);
    fill_params(ctx, layer);
    moe_mat x = test_random(MOE_F64, 4, D, 1), y = test_output(MOE_F64, 4, D),
            plain = test_output(MOE_F64, 4, D);
    double sum[4 * D] = {0}, squares[4 * D] = {0};
    must(ctx, moe_layer_forward(layer, x, plain, NULL, NULL));
    for (uint64_t step = 0; step < STEPS; ++step) {
        const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .step = step};
        must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
        for (int i = 0; i < 4 * D; ++i) {
            const double value = ((double *)y.data)[i];
            sum[i] += value / STEPS;
            squares[i] += value * value / STEPS;
        }
    }
    for (int i = 0; i < 4 * D; ++i) {
        const double deviation = sqrt(squares[i] - sum[i] * sum[i]);
        assert_true(deviation > 0);
        /* six standard errors: once in a hundred million draws of the seed for each of 44 numbers */
        if (fabs(sum[i] - ((double *)plain.data)[i]) > 6 * deviation / sqrt(STEPS))
            fail_msg("seed %llu: mean %g, without dropout %g", (unsigned long long)test_seed(), sum[i],
                     ((double *)plain.data)[i]);
    }
    free(x.data), free(y.data), free(plain.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

typedef struct run_result {
    moe_mat y, dx;
    double *grad;
    size_t n_grad, saved;
    moe_stats stats;
} run_result;

static run_result run_layer(moe_ctx *ctx, const moe_layer_desc *d) {
    moe_layer *layer = test_layer(ctx, d, T);
    moe_mat x = test_random(d->dtype, T, D, 1), dy = test_random(d->dtype, T, D, 2);
    run_result r = {.y = test_output(d->dtype, T, D),
                    .dx = test_output(d->dtype, T, D),
                    .stats = {.size = sizeof r.stats}};
    r.saved = test_measure(ctx, layer, T).saved;
    must(ctx, moe_layer_forward(layer, x, r.y, &test_train_call, &r.stats));
    must(ctx, moe_layer_backward(layer, x, dy, r.dx));
    r.grad = NULL;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param p = {.size = sizeof p};
        must(ctx, moe_layer_param(layer, i, &p));
        const size_t bytes = (size_t)(p.dim[0] * p.dim[1] * p.dim[2]) * moe_dtype_bytes(p.dtype);
        r.grad = realloc(r.grad, r.n_grad + bytes);
        assert_non_null(r.grad);
        memcpy((char *)r.grad + r.n_grad, p.grad, bytes);
        r.n_grad += bytes;
    }
    free(x.data), free(dy.data);
    moe_layer_destroy(layer);
    return r;
}

static void same_run(run_result a, run_result b) {
    assert_memory_equal(a.y.data, b.y.data, test_bytes(a.y));
    assert_memory_equal(a.dx.data, b.dx.data, test_bytes(a.dx));
    assert_int_equal(a.n_grad, b.n_grad);
    assert_memory_equal(a.grad, b.grad, a.n_grad);
    assert_memory_equal(&a.stats, &b.stats, sizeof a.stats);
    free(a.y.data), free(a.dx.data), free(a.grad);
    free(b.y.data), free(b.dx.data), free(b.grad);
}

/* Layers for what training saves: `variant` of 4 with biases, dropout, more kinds of expert. */
static moe_layer_desc saved_desc(const char *activation, int variant) {
    moe_layer_desc d = base_desc();
    d.dtype = MOE_F32;
    d.expert_hidden_size = 37;
    d.activation = activation;
    d.expert_bias = variant % 2;
    d.dropout = variant / 2 ? 0.2f : 0;
    d.num_shared_experts = variant / 2;
    d.latent_size = variant % 2 ? 9 : 0;
    d.expert_kinds = variant == 3 ? "5,5,8,identity,zero" : NULL;
    return d;
}

/* Same bits, less memory; the statistics are counted once. */
static void recompute_changes_no_bit(void **state) {
    (void)state;
    static const char *const activations[] = {"swiglu", "gelu", "relu", "quick_geglu", "relu2"};
    for (size_t isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        for (size_t a = 0; ctx && a < sizeof activations / sizeof *activations; ++a)
            for (int variant = 0; variant < 4; ++variant) {
                moe_layer_desc d = saved_desc(activations[a], variant);
                d.aux_loss_coeff = 1;
                run_result kept = run_layer(ctx, &d);
                d.recompute = "layer";
                run_result again = run_layer(ctx, &d);
                assert_true(again.saved < kept.saved);
                same_run(kept, again);
            }
        moe_ctx_destroy(ctx);
    }
}

/* |a - b| / |b| */
static double distance(const float *a, const float *b, size_t n) {
    double off = 0, size = 0;
    for (size_t i = 0; i < n; ++i) {
        off += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(off / size);
}

/* Outputs are what they are without; gradients are near, as two factors that are off by 1/16 each at most. */
static void eight_bits_change_no_output(void **state) {
    (void)state;
    static const char *const activations[] = {"swiglu", "gelu", "relu", "quick_geglu", "relu2"};
    double furthest = 0;
    for (size_t isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        for (size_t a = 0; ctx && a < sizeof activations / sizeof *activations; ++a)
            for (int variant = 0; variant < 4; ++variant) {
                moe_layer_desc d = saved_desc(activations[a], variant);
                run_result kept = run_layer(ctx, &d);
                d.saved_dtype = "mxfp8";
                run_result bits = run_layer(ctx, &d);
                assert_true(bits.saved < kept.saved);
                assert_memory_equal(bits.y.data, kept.y.data, test_bytes(kept.y));
                assert_memory_equal(&bits.stats, &kept.stats, sizeof kept.stats);
                const double off = distance((float *)bits.grad, (float *)kept.grad,
                                            kept.n_grad / sizeof(float)),
                             dx = distance(bits.dx.data, kept.dx.data, (size_t)(T * D));
                if (!(off > 0 && off < 0.125 && dx < 0.125))
                    fail_msg("%s, variant %d: gradients are off by %g, dx by %g", activations[a], variant,
                             off, dx);
                furthest = fmax(furthest, fmax(off, dx));
                free(kept.y.data), free(kept.dx.data), free(kept.grad);
                free(bits.y.data), free(bits.dx.data), free(bits.grad);
            }
        moe_ctx_destroy(ctx);
    }
    fprintf(stderr, "gradients are off by %.2g of their size at most\n", furthest);
}

/* One kind for all, named expert by expert, is the layer of that kind. */
static void equal_kinds_are_the_plain_layer(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_layer_desc d = base_desc();
    d.expert_bias = true;
    moe_layer *plain = test_layer(ctx, &d, T);
    d.expert_kinds = "6,2x6, 2x6";
    moe_layer *mixed = test_layer(ctx, &d, T);
    fill_params(ctx, plain), fill_params(ctx, mixed);
    moe_mat x = test_random(MOE_F64, T, D, 1), y = test_output(MOE_F64, T, D), z = test_output(MOE_F64, T, D);
    must(ctx, moe_layer_forward(plain, x, y, NULL, NULL));
    must(ctx, moe_layer_forward(mixed, x, z, NULL, NULL));
    assert_memory_equal(y.data, z.data, test_bytes(y));
    free(x.data), free(y.data), free(z.data);
    moe_layer_destroy(plain), moe_layer_destroy(mixed);
    moe_ctx_destroy(ctx);
}

/* Identity experts with weights that sum to one are the identity, zero experts nothing. */
static void unequal_experts_are_their_definition(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_layer_desc d = base_desc();
    d.expert_kinds = "4,identity,1xzero,2x9";
    d.activation = "silu";
    d.num_shared_experts = 0;
    moe_layer *layer = test_layer(ctx, &d, T);
    fill_params(ctx, layer);
    moe_mat x = test_random(MOE_F64, T, D, 1), y = test_output(MOE_F64, T, D);
    moe_routing_view view = {.size = sizeof view};
    must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
    must(ctx, moe_layer_routing(layer, &view));
    int met[E] = {0};
    for (int64_t t = 0; t < T; ++t) {
        const double *in = (const double *)x.data + t * D;
        double expected[D] = {0};
        for (int32_t k = 0; k < 2; ++k) {
            const int32_t e = view.expert[t * 2 + k];
            const double weight = ((const double *)view.weight)[t * 2 + k];
            ++met[e];
            if (e == 0) ffn_by_hand(layer, "experts.0", "silu", 0, D, 4, D, in, weight, expected);
            for (int32_t i = 0; e == 1 && i < D; ++i) expected[i] += weight * in[i];
            if (e >= 3) ffn_by_hand(layer, "experts.3", "silu", e - 3, D, 9, D, in, weight, expected);
        }
        for (int64_t i = 0; i < D; ++i) assert_true(fabs(test_at(y, t, i) - expected[i]) < 1e-12);
    }
    assert_true(met[0] + met[3] + met[4] > 0 && met[1] > 0 && met[2] > 0);
    free(x.data), free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* sigma-MoE's router rows all have one length; a zero router is zero. */
static void routers_are_drawn_as_named(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc d = base_desc();
    moe_layer *layer = NULL;
    d.router_init = "normal_fan_in_renorm";
    must(ctx, moe_layer_create(ctx, &d, &layer));
    double first = 0;
    for (int32_t e = 0; e < E; ++e) {
        double squares = 0;
        for (int32_t i = 0; i < D; ++i) squares += pow(values(layer, "gate.weight")[e * D + i], 2);
        if (e == 0) first = squares;
        assert_true(squares > 0 && fabs(squares / first - 1) < 1e-12);
    }
    moe_layer_destroy(layer);
    d.router_init = "zeros";
    must(ctx, moe_layer_create(ctx, &d, &layer));
    for (int32_t i = 0; i < E * D; ++i) assert_true(values(layer, "gate.weight")[i] == 0);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* f(w x) for a positive weight is w f(x) with relu and no biases, so the point of the weight cannot show. */
static void weight_at_the_input(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_layer_desc d = base_desc();
    d.top_k = 1;
    d.score_before_topk = true;
    d.activation = "relu";
    moe_mat x = test_random(MOE_F64, T, D, 1), y[3];
    static const char *const points[] = {"output", "hidden", "input"};
    for (int i = 0; i < 3; ++i) {
        d.weight_apply = points[i];
        moe_layer *layer = test_layer(ctx, &d, T);
        y[i] = test_output(MOE_F64, T, D);
        must(ctx, moe_layer_forward(layer, x, y[i], NULL, NULL));
        moe_layer_destroy(layer);
    }
    assert_memory_equal(y[0].data, y[1].data, test_bytes(y[0]));
    double largest = 0;
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < D; ++i) {
            assert_true(fabs(test_at(y[0], t, i) - test_at(y[2], t, i)) < 1e-12);
            largest = fmax(largest, fabs(test_at(y[2], t, i)));
        }
    assert_true(largest > 1e-3);
    for (int i = 0; i < 3; ++i) free(y[i].data);
    free(x.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(surroundings_are_their_definition),
        cmocka_unit_test(layouts_differ_by_a_permutation),
        cmocka_unit_test(dropout_is_its_mask),
        cmocka_unit_test(dropout_draws_are_fair),
        cmocka_unit_test(recompute_changes_no_bit),
        cmocka_unit_test(eight_bits_change_no_output),
        cmocka_unit_test(equal_kinds_are_the_plain_layer),
        cmocka_unit_test(unequal_experts_are_their_definition),
        cmocka_unit_test(routers_are_drawn_as_named),
        cmocka_unit_test(weight_at_the_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
