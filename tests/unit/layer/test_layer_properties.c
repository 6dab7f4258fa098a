/* test_layer_properties.c: what every layer promises, tried on descriptors drawn from the option table.
 * Tokens in another order, in another batch, masked, replayed, recomputed, on more threads; f64 gradients.
 * A draw that moe_layer_desc_check refuses is drawn again; the seed and the settings are printed.
 */
#include "support/layer_fixture.h"

#include "moekit/grad_check.h"

enum { T = 20, D = 6, E = 6, DRAWS = 180, GRADIENTS = 72, SETTINGS = 1024 };

/* What is drawn, one time in `rarity`: one of `values`, or of the row's own choices where there are none. */
static const struct {
    const char *key, *values;
    uint32_t rarity;
} varied[] = {
    {"top_k",                 "1 2 3",                                               2 },
    {"top_k_min",             "1",                                                   8 },
    {"output_size",           "4",                                                   8 },
    {"latent_size",           "5",                                                   3 },
    {"expert_kinds",          "4,4,7,identity,zero,4 3,3,3,3,5,5 4,zero,4,4,zero,4", 4 },
    {"activation",            NULL,                                                  1 },
    {"glu_layout",            NULL,                                                  6 },
    {"expert_bias",           "true",                                                4 },
    {"output_bias",           "true",                                                4 },
    {"dropout",               "0.3",                                                 6 },
    {"weight_apply",          NULL,                                                  2 },
    {"num_shared_experts",    "1 2",                                                 3 },
    {"shared_expert_gate",    "true",                                                6 },
    {"router_bias",           "true",                                                4 },
    {"router_frozen",         "true",                                                8 },
    {"input_jitter_eps",      "0.1",                                                 8 },
    {"routing_unit",          "sequence",                                            8 },
    {"score_function",        NULL,                                                  2 },
    {"score_before_topk",     "true",                                                2 },
    {"norm_topk_prob",        "true",                                                3 },
    {"routed_scaling_factor", "2.5",                                                 4 },
    {"num_groups",            "2 3",                                                 6 },
    {"group_top_k",           "1 2",                                                 6 },
    {"group_score",           NULL,                                                  8 },
    {"selection_bias",        "true",                                                6 },
    {"expert_dropout",        "0.3",                                                 8 },
    {"second_policy_train",   NULL,                                                  6 },
    {"sinkhorn_variant",      NULL,                                                  6 },
    {"fake_noise",            "0.3",                                                 6 },
    {"num_groups_outer",      "2 3",                                                 12},
    {"capacity_factor",       "0.5 0.75 1.25",                                       2 },
    {"capacity_formula",      NULL,                                                  3 },
    {"min_capacity",          "2",                                                   8 },
    {"capacity_group",        NULL,                                                  4 },
    {"drop_policy",           NULL,                                                  3 },
    {"pad_to_capacity",       "true",                                                4 },
    {"aux_loss_coeff",        "0.3",                                                 2 },
    {"seq_aux_loss_coeff",    "0.2",                                                 4 },
    {"global_aux_loss_coeff", "0.2",                                                 6 },
    {"gshard_loss_coeff",     "0.2",                                                 4 },
    {"importance_loss_coeff", "0.2",                                                 4 },
    {"load_loss_coeff",       "0.2",                                                 8 },
    {"entropy_loss_coeff",    "0.2",                                                 4 },
    {"z_loss_coeff",          "0.1",                                                 2 },
    {"aux_scores",            NULL,                                                  8 },
    {"aux_map",               NULL,                                                  8 },
    {"recompute",             NULL,                                                  3 },
};

enum { VARIED = sizeof varied / sizeof *varied };

typedef struct draw {
    uint64_t block; /* of the stream of this draw */
    moe_layer_desc desc;
    char value[VARIED][64];  /* the descriptor may point to them */
    char settings[SETTINGS]; /* "key value ..." of the last try */
} draw;

static uint32_t word_of(draw *d) {
    uint32_t word[4];
    moe_random(test_seed(), MOE_DRAW_TEST, 920, 0, d->block++, word);
    return word[0];
}

/* Word number `which` of a text, into `value`; returns how many there are. */
static uint32_t word_at(const char *text, uint32_t which, char value[64]) {
    uint32_t n = 0;
    for (; *text; text += strspn(text, " "), ++n) {
        const size_t length = strcspn(text, " ");
        if (n == which) snprintf(value, 64, "%.*s", (int)length, text);
        text += length;
    }
    return n;
}

static void set(draw *d, const char *key, const char *value) {
    const size_t used = strlen(d->settings);
    moe_error error = {0};
    if (moe_layer_desc_set(&d->desc, key, value, &error) != MOE_OK) fail_msg("%s", error.text);
    snprintf(d->settings + used, sizeof d->settings - used, " %s %s", key, value);
}

static const char *random_choice(draw *d, const char *key) {
    size_t count;
    const moe_option *row = moe_layer_options(&count);
    const char *const *choice = moe_option_find(row, count, key)->choices;
    uint32_t n = 0;
    while (choice[n]) ++n;
    return choice[word_of(d) % n];
}

static void draw_settings(draw *d, const char *router_type) {
    d->desc = (moe_layer_desc){
        .size = sizeof d->desc, .d_model = D, .num_experts = E, .expert_hidden_size = 4, .init_std = 0.4f};
    d->settings[0] = '\0';
    set(d, "router_type", router_type);
    for (int i = 0; i < VARIED; ++i) {
        char *value = d->value[i];
        if (word_of(d) % varied[i].rarity != 0) continue;
        if (!varied[i].values) {
            set(d, varied[i].key, random_choice(d, varied[i].key));
            continue;
        }
        const uint32_t n = word_at(varied[i].values, UINT32_MAX, value);
        word_at(varied[i].values, word_of(d) % n, value);
        set(d, varied[i].key, value);
    }
}

static bool accepted(const moe_layer_desc *desc) {
    if (moe_layer_desc_check(desc, NULL) != MOE_OK) return false;
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_layer *layer = NULL;
    const moe_status status = moe_layer_create(ctx, desc, &layer);
    if (status == MOE_OK) moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return status == MOE_OK;
}

/* Draw i: the routers take turns, the rest is drawn until it goes together. Returns the tries. */
static int draw_desc(draw *d, int i) {
    size_t count;
    const moe_option *row = moe_layer_options(&count);
    const char *const *type = moe_option_find(row, count, "router_type")->choices;
    int n = 0, tries = 0;
    while (type[n]) ++n;
    d->block = (uint64_t)i << 32;
    do {
        draw_settings(d, type[i % n]);
        ++tries;
    } while (!accepted(&d->desc));
    return tries;
}

static bool is(const char *value, const char *name) {
    return value && strcmp(value, name) == 0;
}

static bool limited(const moe_layer_desc *d) {
    return d->capacity_factor > 0;
}

/* Draws are keyed by the token's number, as is round robin. */
static bool counts_tokens(const moe_layer_desc *d) {
    const bool second = !is(d->second_policy_train, "all") && !is(d->second_policy_train, "none") &&
                        !is(d->second_policy_train, "threshold");
    return is(d->router_type, "random") || is(d->router_type, "balanced") ||
           is(d->router_type, "noisy_top_k") || (is(d->router_type, "gshard_top2") && second) ||
           d->input_jitter_eps > 0 || d->dropout > 0 || d->expert_dropout > 0 || d->top_k_min > 0;
}

/* --- one step of a layer, kept ----------------------------------------------------------------------------
 */

typedef struct outcome {
    moe_stats stats;
    moe_mat y, dx;
    double loss;
    int32_t slots;
    int32_t *expert; /* [T, slots] */
    double *grad;    /* all gradients, one after another */
    int64_t n_grads;
} outcome;

static void forget(outcome *o) {
    free(o->y.data), free(o->dx.data), free(o->expert), free(o->grad);
}

static int64_t numbers(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

static void keep_grads(moe_ctx *ctx, moe_layer *layer, outcome *o) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (!param.grad) continue;
        const moe_mat grad = {param.grad, 1, numbers(&param), numbers(&param), param.dtype};
        o->grad = realloc(o->grad, (size_t)(o->n_grads + grad.cols) * sizeof *o->grad);
        assert_non_null(o->grad);
        for (int64_t j = 0; j < grad.cols; ++j) o->grad[o->n_grads++] = test_at(grad, 0, j);
    }
}

/* Biases begin at zero: every path shall be alive. */
static void draw_params(moe_ctx *ctx, moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        moe_random_normal(test_seed(), MOE_DRAW_TEST, 940 + (uint32_t)i, 0, param.dtype, param.value,
                          numbers(&param), 0.4);
    }
}

static outcome step(const draw *d, int32_t n_threads, const moe_call *call, moe_mat x, moe_mat dy) {
    moe_ctx *ctx = test_ctx(NULL, n_threads);
    moe_layer *layer = NULL;
    moe_stats stats = {.size = sizeof stats};
    moe_routing_view view = {.size = sizeof view};
    outcome o = {.loss = 0};
    if (moe_layer_create(ctx, &d->desc, &layer) != MOE_OK) fail_msg("%s:%s", moe_ctx_error(ctx), d->settings);
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    draw_params(ctx, layer);
    o.y = test_output(x.dtype, x.rows, moe_layer_get_desc(layer)->output_size);
    o.dx = test_output(x.dtype, x.rows, D);
    if (moe_layer_forward(layer, x, o.y, call, &stats) != MOE_OK)
        fail_msg("%s:%s", moe_ctx_error(ctx), d->settings);
    must(ctx, moe_layer_routing(layer, &view));
    o.slots = view.top_k;
    o.expert = malloc((size_t)(x.rows * view.top_k + 1) * sizeof *o.expert);
    assert_non_null(o.expert);
    memcpy(o.expert, view.expert, (size_t)(x.rows * view.top_k) * sizeof *o.expert);
    o.loss = stats.loss;
    o.stats = stats;
    dy.cols = o.y.cols;
    must(ctx, moe_layer_backward(layer, x, dy, o.dx));
    keep_grads(ctx, layer, &o);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return o;
}

static void same_number(const draw *d, const char *what, double a, double b) {
    if (!(fabs(a - b) <= 1e-9 * (1 + fabs(b))))
        fail_msg("%s: %.17g is not %.17g:%s", what, a, b, d->settings);
}

static void same_row(const draw *d, const char *what, moe_mat a, int64_t i, moe_mat b, int64_t j) {
    for (int64_t c = 0; c < a.cols; ++c) same_number(d, what, test_at(a, i, c), test_at(b, j, c));
}

static void same_sums(const draw *d, const char *what, const outcome *a, const outcome *b) {
    same_number(d, what, a->loss, b->loss);
    assert_int_equal(a->n_grads, b->n_grads);
    for (int64_t i = 0; i < a->n_grads; ++i) same_number(d, what, a->grad[i], b->grad[i]);
}

static void same_bits(const draw *d, const char *what, const outcome *a, const outcome *b) {
    if (memcmp(a->y.data, b->y.data, test_bytes(a->y)) != 0 ||
        memcmp(a->dx.data, b->dx.data, test_bytes(a->dx)) != 0 || a->n_grads != b->n_grads ||
        memcmp(a->grad, b->grad, (size_t)a->n_grads * sizeof *a->grad) != 0 ||
        memcmp(&a->loss, &b->loss, sizeof a->loss) != 0)
        fail_msg("%s: other bits:%s", what, d->settings);
}

/* --- properties: each tells whether it applies to the draw ------------------------------------------------
 */

typedef struct inputs {
    moe_mat x, dy;
    int32_t id[T]; /* tokens keep their number where they are moved, for hash routing */
    moe_call call;
} inputs;

static inputs begin(moe_dtype dtype, int i) {
    inputs in = {.x = test_random(dtype, T, D, 1000 + (uint32_t)i),
                 .dy = test_random(dtype, T, D, 2000 + (uint32_t)i),
                 .call = test_train_call};
    for (int32_t t = 0; t < T; ++t) in.id[t] = 3 * t + 1;
    return in;
}

static void name_tokens(const moe_layer_desc *d, inputs *in) {
    if (is(d->router_type, "hash")) in->call.token_id = in->id;
}

static void end(inputs *in) {
    free(in->x.data), free(in->dy.data);
}

/* Row t of the second is row from[t] of the first, which may hold fewer. */
static inputs rearranged(const inputs *in, const int *from, int64_t n) {
    inputs out = begin(in->x.dtype, 0);
    const size_t row = D * moe_dtype_bytes(in->x.dtype);
    for (int64_t t = 0; t < n; ++t) {
        memcpy((char *)out.x.data + (size_t)t * row, (char *)in->x.data + (size_t)from[t] * row, row);
        memcpy((char *)out.dy.data + (size_t)t * row, (char *)in->dy.data + (size_t)from[t] * row, row);
        out.id[t] = in->id[from[t]];
    }
    out.x.rows = out.dy.rows = n;
    out.call = in->call;
    return out;
}

/* Routers that compare tokens, where all tokens of a sequence are alike: rounding decides every tie. */
static bool ties_by_rounding(const moe_layer_desc *desc) {
    const bool compares = is(desc->router_type, "expert_choice") || is(desc->router_type, "sinkhorn");
    return compares && is(desc->routing_unit, "sequence");
}

static bool order_does_not_matter(draw *d, int i) {
    const moe_layer_desc *desc = &d->desc;
    const bool places = limited(desc) && !is(desc->drop_policy, "probs") && desc->drop_policy;
    /* Equal weights go by place: those of whole sequences, and of one expert scored after its selection. */
    const bool ties = is(desc->routing_unit, "sequence") ||
                      (desc->top_k == 1 && !desc->score_before_topk &&
                       (!desc->score_function || is(desc->score_function, "softmax")));
    if (counts_tokens(desc) || places || (limited(desc) && ties)) return false;
    if (ties_by_rounding(desc)) return false;
    d->desc.dtype = MOE_F64;
    inputs in = begin(MOE_F64, i);
    int from[T];
    for (int t = 0; t < T; ++t) from[t] = (7 * t + 3) % T;
    inputs moved = rearranged(&in, from, T);
    name_tokens(desc, &in), name_tokens(desc, &moved);
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(d, 1, &moved.call, moved.x, moved.dy);
    for (int t = 0; t < T; ++t) same_row(d, "another order: y", b.y, t, a.y, from[t]);
    for (int t = 0; t < T; ++t) same_row(d, "another order: dx", b.dx, t, a.dx, from[t]);
    same_sums(d, "another order", &b, &a);
    forget(&a), forget(&b), end(&in), end(&moved);
    return true;
}

/* Dropless routers that look at one token at a time: y of a token is the same in any batch. */
static bool batch_does_not_matter(draw *d, int i) {
    const moe_layer_desc *desc = &d->desc;
    if (limited(desc) || is(desc->router_type, "expert_choice") || is(desc->router_type, "sinkhorn") ||
        is(desc->routing_unit, "sequence"))
        return false;
    d->desc.dtype = i % 2 ? MOE_F64 : MOE_F32;
    inputs in = begin(d->desc.dtype, i);
    inputs few = in;
    few.x.rows = few.dy.rows = T / 3;
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(d, 1, &few.call, few.x, few.dy);
    if (memcmp(a.y.data, b.y.data, test_bytes(b.y)) != 0)
        fail_msg("another batch: other bits:%s", d->settings);
    forget(&a), forget(&b), end(&in);
    return true;
}

/* Shared experts and latent biases serve masked tokens too: there only a gradient of zero is none. */
static bool serves_all(const moe_layer_desc *desc) {
    return desc->num_shared_experts > 0 || (desc->latent_size > 0 && desc->expert_bias);
}

/* Any tokens, but the last ones where numbers key draws. */
static bool masking_is_removing(draw *d, int i) {
    d->desc.dtype = MOE_F64;
    inputs in = begin(MOE_F64, i);
    uint8_t mask[T];
    int from[T];
    int64_t n = 0;
    for (int t = 0; t < T; ++t) {
        mask[t] = counts_tokens(&d->desc) ? t < T - 5 : word_of(d) % 4 != 0;
        if (mask[t]) from[n++] = t;
        for (int c = 0; c < D && !mask[t] && serves_all(&d->desc); ++c) ((double *)in.dy.data)[t * D + c] = 0;
    }
    inputs left = rearranged(&in, from, n);
    name_tokens(&d->desc, &in), name_tokens(&d->desc, &left);
    in.call.token_mask = mask;
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(d, 1, &left.call, left.x, left.dy);
    for (int64_t t = 0; t < n; ++t) same_row(d, "masked: y", a.y, from[t], b.y, t);
    for (int64_t t = 0; t < n; ++t) same_row(d, "masked: dx", a.dx, from[t], b.dx, t);
    for (int t = 0; t < T; ++t)
        for (int c = 0; c < D && !mask[t]; ++c)
            same_number(d, "dx of a masked token", test_at(a.dx, t, c), 0);
    same_sums(d, "masked", &a, &b);
    forget(&a), forget(&b), end(&in), end(&left);
    return true;
}

static bool recompute_changes_no_bit(draw *d, int i) {
    draw other = *d;
    other.desc.recompute = is(d->desc.recompute, "layer") ? "none" : "layer";
    if (!accepted(&other.desc)) return false;
    other.desc.dtype = d->desc.dtype = i % 2 ? MOE_F64 : MOE_F32;
    inputs in = begin(d->desc.dtype, i);
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(&other, 1, &in.call, in.x, in.dy);
    same_bits(d, "recompute", &a, &b);
    forget(&a), forget(&b), end(&in);
    return true;
}

static bool replay_is_record(draw *d, int i) {
    d->desc.dtype = i % 2 ? MOE_F64 : MOE_F32;
    inputs in = begin(d->desc.dtype, i);
    outcome a = step(d, 1, &in.call, in.x, in.dy);
    in.call.replay_expert = a.expert;
    outcome b = step(d, 1, &in.call, in.x, in.dy);
    assert_memory_equal(a.expert, b.expert, (size_t)(T * a.slots) * sizeof *a.expert);
    same_bits(d, "replay", &b, &a);
    if (!test_same_stats(&a.stats, &b.stats)) fail_msg("replay: other statistics:%s", d->settings);
    forget(&a), forget(&b), end(&in);
    return true;
}

static bool threads_change_no_bit(draw *d, int i) {
    d->desc.dtype = i % 2 ? MOE_F64 : MOE_F32;
    inputs in = begin(d->desc.dtype, i);
    in.call.sequence_length = T / 4;
    outcome one = step(d, 1, &in.call, in.x, in.dy);
    for (int32_t n = 2; n <= 4; n += 2) {
        outcome more = step(d, n, &in.call, in.x, in.dy);
        same_bits(d, "threads", &more, &one);
        forget(&more);
    }
    forget(&one), end(&in);
    return true;
}

/* Counts of the global loss grow with every forward: its objective is not a function. Forced logits pass
 * their gradient to a gate they do not come from. */
static bool gradients_are_differences(draw *d, int i) {
    if (i >= GRADIENTS || is(d->desc.router_type, "random") || ties_by_rounding(&d->desc)) return false;
    d->desc.global_aux_loss_coeff = 0;
    if (!accepted(&d->desc)) return false;
    const moe_call call = {.mode = MOE_TRAIN, .step = 3, .sequence_length = 3};
    const grad_check_options options = {
        .desc = d->desc, .call = &call, .n_tokens = 6, .seed = test_seed() + (uint64_t)i};
    grad_check_result result;
    moe_error error = {0};
    if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s:%s", error.text, d->settings);
    for (int32_t k = 0; k < result.n_tensors; ++k) {
        const grad_check_tensor *tensor = &result.tensor[k];
        if (!(tensor->error < 1e-6 && tensor->checked > 0))
            fail_msg("%s is off by %g, %lld checked, %lld skipped:%s", tensor->name, tensor->error,
                     (long long)tensor->checked, (long long)tensor->skipped, d->settings);
    }
    return true;
}

/* Holds the property for every draw it applies to, and at least `least` of them. */
static void holds(const char *name, bool (*property)(draw *d, int i), int least) {
    int held = 0, tries = 0;
    for (int i = 0; i < DRAWS; ++i) {
        draw d;
        tries += draw_desc(&d, i);
        held += property(&d, i);
    }
    fprintf(stderr, "%s: %d of %d descriptors, %d drawn\n", name, held, DRAWS, tries);
    assert_true(held >= least);
}

static void order(void **state) {
    (void)state;
    holds("another order of tokens", order_does_not_matter, DRAWS / 20);
}
static void batch(void **state) {
    (void)state;
    holds("another batch", batch_does_not_matter, DRAWS / 20);
}
static void masks(void **state) {
    (void)state;
    holds("masking is removing", masking_is_removing, DRAWS);
}
static void recomputes(void **state) {
    (void)state;
    holds("recompute", recompute_changes_no_bit, DRAWS / 2);
}
static void replays(void **state) {
    (void)state;
    holds("replay is record", replay_is_record, DRAWS / 2);
}
static void threads(void **state) {
    (void)state;
    holds("threads", threads_change_no_bit, DRAWS);
}
static void gradients(void **state) {
    (void)state;
    holds("gradients", gradients_are_differences, GRADIENTS * 3 / 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order),      cmocka_unit_test(batch),   cmocka_unit_test(masks),
        cmocka_unit_test(recomputes), cmocka_unit_test(replays), cmocka_unit_test(threads),
        cmocka_unit_test(gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
