/* test_layer_properties.c: what every layer promises, over layers in which every two values of options meet.
 * Tokens in another order, in another batch, masked, replayed, recomputed, on more threads.
 * Source: the promises of moe.h and of docs/architecture.md, "Laws"; the layers are those of support/cover.h.
 */
#include "support/cover.h"

enum { T = 24 };

typedef struct trial {
    const cover_problem *problem;
    moe_layer_desc desc; /* the problem's, in the dtype of the trial */
    int number;
    char settings[COVER_TEXT];
} trial;

static bool is(const char *value, const char *name) {
    return strcmp(value, name) == 0;
}

/* In training; the inner level may be where the outer one is not. */
static bool limited(const moe_layer_desc *d) {
    return d->capacity_factor > 0 || d->capacity_factor_inner > 0;
}

static bool by_sequence(const moe_layer_desc *d) {
    return is(d->routing_unit, "sequence") || is(d->routing_unit, "task");
}

/* Draws are keyed by the token's number, as is round robin. */
static bool counts_tokens(const moe_layer_desc *d) {
    const bool second = is(d->second_policy_train, "random") || is(d->second_policy_train, "sample");
    return is(d->router_type, "random") || is(d->router_type, "balanced") ||
           is(d->router_type, "noisy_top_k") || (is(d->router_type, "gshard_top2") && second) ||
           d->input_jitter_eps > 0 || d->dropout > 0 || d->expert_dropout > 0 || d->top_k_min > 0;
}

/* Routers that compare tokens; where all tokens of a sequence are alike, rounding decides every tie. */
static bool compares_tokens(const moe_layer_desc *d) {
    return is(d->router_type, "expert_choice") || is(d->router_type, "sinkhorn");
}

/* --- one step of a layer, kept ----------------------------------------------------------------------------
 */

typedef struct outcome {
    moe_mat y, dx;
    moe_stats stats;
    int32_t slots;
    int32_t *expert; /* [T, slots]; NULL without a router */
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

static void keep_routing(moe_ctx *ctx, moe_layer *layer, outcome *o, int64_t rows) {
    moe_routing_view view = {.size = sizeof view};
    if (moe_layer_get_desc(layer)->num_experts == 0) return;
    must(ctx, moe_layer_routing(layer, &view));
    o->slots = view.top_k;
    o->expert = malloc((size_t)(rows * view.top_k + 1) * sizeof *o->expert);
    assert_non_null(o->expert);
    memcpy(o->expert, view.expert, (size_t)(rows * view.top_k) * sizeof *o->expert);
}

static outcome step(const trial *d, int32_t n_threads, const moe_call *call, moe_mat x, moe_mat dy) {
    moe_ctx *ctx = test_ctx(NULL, n_threads);
    moe_layer *layer = NULL;
    outcome o = {.stats = {.size = sizeof o.stats}};
    if (moe_layer_create(ctx, &d->desc, &layer) != MOE_OK) fail_msg("%s:%s", moe_ctx_error(ctx), d->settings);
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    draw_params(ctx, layer);
    o.y = test_output(x.dtype, x.rows, dy.cols);
    o.dx = test_output(x.dtype, x.rows, x.cols);
    if (moe_layer_forward(layer, x, o.y, call, &o.stats) != MOE_OK)
        fail_msg("%s:%s", moe_ctx_error(ctx), d->settings);
    keep_routing(ctx, layer, &o, x.rows);
    must(ctx, moe_layer_backward(layer, x, dy, o.dx));
    keep_grads(ctx, layer, &o);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return o;
}

static void same_number(const trial *d, const char *what, double a, double b) {
    if (!(fabs(a - b) <= 1e-9 * (1 + fabs(b))))
        fail_msg("%s: %.17g is not %.17g:%s", what, a, b, d->settings);
}

static void same_row(const trial *d, const char *what, moe_mat a, int64_t i, moe_mat b, int64_t j) {
    for (int64_t c = 0; c < a.cols; ++c) same_number(d, what, test_at(a, i, c), test_at(b, j, c));
}

static void same_sums(const trial *d, const char *what, const outcome *a, const outcome *b) {
    same_number(d, what, a->stats.loss, b->stats.loss);
    assert_int_equal(a->n_grads, b->n_grads);
    for (int64_t i = 0; i < a->n_grads; ++i) same_number(d, what, a->grad[i], b->grad[i]);
}

static void same_bits(const trial *d, const char *what, const outcome *a, const outcome *b) {
    if (memcmp(a->y.data, b->y.data, test_bytes(a->y)) != 0 ||
        memcmp(a->dx.data, b->dx.data, test_bytes(a->dx)) != 0 || a->n_grads != b->n_grads ||
        memcmp(a->grad, b->grad, (size_t)a->n_grads * sizeof *a->grad) != 0 ||
        memcmp(&a->stats.loss, &b->stats.loss, sizeof a->stats.loss) != 0)
        fail_msg("%s: other bits:%s", what, d->settings);
}

/* --- inputs -----------------------------------------------------------------------------------------------
 */

typedef struct inputs {
    moe_mat x, dy;
    int32_t id[T]; /* tokens keep their number where they are moved, for hash routing */
    int32_t task[T];
    uint8_t mask[T];
    moe_call call; /* without mask and sequences; it points into the struct once tell() has been called */
} inputs;

static inputs begin(trial *d, moe_dtype dtype) {
    d->desc = cover_desc(d->problem, dtype);
    const moe_layer_desc *desc = &d->desc;
    const int64_t out = desc->output_size > 0 ? desc->output_size : desc->d_model;
    inputs in = {.x = test_random(dtype, T, desc->d_model, 1000 + (uint32_t)d->number),
                 .dy = test_random(dtype, T, out, 2000 + (uint32_t)d->number),
                 .call = test_train_call};
    for (int32_t t = 0; t < T; ++t) {
        in.id[t] = 3 * t + 1;
        in.mask[t] = t % 5 != 2;
        if (desc->num_tasks > 0) in.task[t] = (t + 1) % desc->num_tasks;
    }
    return in;
}

/* Points the call to what this router looks at. */
static void tell(const trial *d, inputs *in) {
    if (is(d->desc.router_type, "hash") && d->desc.num_experts > 0) in->call.token_id = in->id;
    if (d->desc.num_tasks > 0) in->call.task = in->task;
}

/* The same, with the problem's mask and sequences. */
static void tell_all(const trial *d, inputs *in) {
    tell(d, in);
    if (d->problem->masked) in->call.token_mask = in->mask;
    in->call.sequence_length = T / d->problem->n_sequences;
}

static void end(inputs *in) {
    free(in->x.data), free(in->dy.data);
}

static void move_row(moe_mat to, int64_t i, moe_mat from, int64_t j) {
    const size_t bytes = (size_t)from.cols * moe_dtype_bytes(from.dtype);
    memcpy((char *)to.data + (size_t)i * bytes, (char *)from.data + (size_t)j * bytes, bytes);
}

/* Row t of the result is row from[t] of `in`; it may hold fewer. */
static inputs rearranged(trial *d, const inputs *in, const int *from, int64_t n) {
    inputs out = begin(d, in->x.dtype);
    for (int64_t t = 0; t < n; ++t) {
        move_row(out.x, t, in->x, from[t]);
        move_row(out.dy, t, in->dy, from[t]);
        out.id[t] = in->id[from[t]];
    }
    out.x.rows = out.dy.rows = n;
    return out;
}

/* --- properties: each tells whether it applies to the layer -----------------------------------------------
 */

static bool order_does_not_matter(trial *d) {
    const moe_layer_desc *desc = &d->problem->desc;
    const bool places = limited(desc) && !is(desc->drop_policy, "probs");
    /* Equal weights go by place: those of whole sequences, and of one expert scored after its selection. */
    const bool ties = by_sequence(desc) || desc->num_experts == 1 ||
                      (desc->top_k == 1 && !desc->score_before_topk && is(desc->score_function, "softmax"));
    if (counts_tokens(desc) || places || (limited(desc) && ties)) return false;
    if (compares_tokens(desc) && by_sequence(desc)) return false;
    inputs in = begin(d, MOE_F64);
    int from[T];
    for (int t = 0; t < T; ++t) from[t] = (7 * t + 3) % T;
    inputs moved = rearranged(d, &in, from, T);
    tell(d, &in), tell(d, &moved);
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(d, 1, &moved.call, moved.x, moved.dy);
    for (int t = 0; t < T; ++t) same_row(d, "another order: y", b.y, t, a.y, from[t]);
    for (int t = 0; t < T; ++t) same_row(d, "another order: dx", b.dx, t, a.dx, from[t]);
    same_sums(d, "another order", &b, &a);
    forget(&a), forget(&b), end(&in), end(&moved);
    return true;
}

/* Dropless routers that look at one token at a time: y of a token is the same in any batch. */
static bool batch_does_not_matter(trial *d) {
    const moe_layer_desc *desc = &d->problem->desc;
    if (limited(desc) || compares_tokens(desc) || is(desc->routing_unit, "sequence")) return false;
    inputs in = begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    tell(d, &in);
    moe_mat x = in.x, dy = in.dy;
    x.rows = dy.rows = T / 3;
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(d, 1, &in.call, x, dy);
    if (memcmp(a.y.data, b.y.data, test_bytes(b.y)) != 0)
        fail_msg("another batch: other bits:%s", d->settings);
    forget(&a), forget(&b), end(&in);
    return true;
}

/* Shared experts and latent biases serve masked tokens too: there only a gradient of zero is none. */
static bool serves_all(const moe_layer_desc *desc) {
    return desc->num_shared_experts > 0 || (desc->latent_size > 0 && desc->expert_bias);
}

/* Masks tokens at random, but the last ones where numbers key draws; returns how many are left, in from[]. */
static int64_t mask_some(const trial *d, inputs *in, int from[T]) {
    int64_t n = 0;
    for (int t = 0; t < T; ++t) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 930, (uint64_t)d->number, (uint64_t)t, word);
        in->mask[t] = counts_tokens(&d->desc) ? t < T - 5 : word[0] % 4 != 0;
        if (in->mask[t]) from[n++] = t;
        for (int64_t c = 0; c < in->dy.cols && !in->mask[t] && serves_all(&d->desc); ++c)
            ((double *)in->dy.data)[t * in->dy.cols + c] = 0;
    }
    return n;
}

static bool masking_is_removing(trial *d) {
    inputs in = begin(d, MOE_F64);
    int from[T];
    const int64_t n = mask_some(d, &in, from);
    inputs left = rearranged(d, &in, from, n);
    tell(d, &in), tell(d, &left);
    in.call.token_mask = in.mask;
    outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(d, 1, &left.call, left.x, left.dy);
    for (int64_t t = 0; t < n; ++t) same_row(d, "masked: y", a.y, from[t], b.y, t);
    for (int64_t t = 0; t < n; ++t) same_row(d, "masked: dx", a.dx, from[t], b.dx, t);
    for (int t = 0; t < T; ++t)
        for (int64_t c = 0; c < a.dx.cols && !in.mask[t]; ++c)
            same_number(d, "dx of a masked token", test_at(a.dx, t, c), 0);
    same_sums(d, "masked", &a, &b);
    forget(&a), forget(&b), end(&in), end(&left);
    return true;
}

static bool recompute_changes_no_bit(trial *d) {
    inputs in = begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    trial other = *d;
    other.desc.recompute = is(d->desc.recompute, "layer") ? "none" : "layer";
    const bool legal = moe_layer_desc_check(&other.desc, NULL) == MOE_OK;
    if (legal) {
        tell_all(d, &in);
        outcome a = step(d, 1, &in.call, in.x, in.dy), b = step(&other, 1, &in.call, in.x, in.dy);
        same_bits(d, "recompute", &a, &b);
        forget(&a), forget(&b);
    }
    end(&in);
    return legal;
}

static bool replay_is_record(trial *d) {
    if (d->problem->desc.num_experts == 0) return false;
    inputs in = begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    tell_all(d, &in);
    outcome a = step(d, 1, &in.call, in.x, in.dy);
    in.call.replay_expert = a.expert;
    outcome b = step(d, 1, &in.call, in.x, in.dy);
    assert_memory_equal(a.expert, b.expert, (size_t)(T * a.slots) * sizeof *a.expert);
    same_bits(d, "replay", &b, &a);
    if (!test_same_stats(&a.stats, &b.stats)) fail_msg("replay: other statistics:%s", d->settings);
    forget(&a), forget(&b), end(&in);
    return true;
}

static bool threads_change_no_bit(trial *d) {
    static const int32_t threads[] = {2, 3, 5};
    inputs in = begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    tell_all(d, &in);
    outcome one = step(d, 1, &in.call, in.x, in.dy);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; ++i) {
        outcome more = step(d, threads[i], &in.call, in.x, in.dy);
        same_bits(d, "threads", &more, &one);
        forget(&more);
    }
    forget(&one), end(&in);
    return true;
}

static cover_set set; /* made once for all properties */

/* Holds the property for every layer it applies to: at least one in `every`. */
static void holds(const char *name, bool (*property)(trial *d), int every) {
    int held = 0, tried = 0;
    for (int i = 0; i < set.n_problems; i += cover_stride(), ++tried) {
        trial d = {.problem = &set.problem[i], .number = i};
        cover_describe(d.problem, d.settings);
        held += property(&d);
    }
    fprintf(stderr, "%s: %d of %d layers\n", name, held, tried);
    assert_true(held * every >= tried);
}

static void order(void **state) {
    (void)state;
    holds("another order of tokens", order_does_not_matter, 20);
}
static void batch(void **state) {
    (void)state;
    holds("another batch", batch_does_not_matter, 20);
}
static void masks(void **state) {
    (void)state;
    holds("masking is removing", masking_is_removing, 1);
}
static void recomputes(void **state) {
    (void)state;
    holds("recompute", recompute_changes_no_bit, 2);
}
static void replays(void **state) {
    (void)state;
    holds("replay is record", replay_is_record, 2);
}
static void threads(void **state) {
    (void)state;
    holds("threads", threads_change_no_bit, 1);
}

static int make_set(void **state) {
    (void)state;
    set = cover_make(test_seed());
    return 0;
}
static int free_set(void **state) {
    (void)state;
    cover_free(&set);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order),      cmocka_unit_test(batch),   cmocka_unit_test(masks),
        cmocka_unit_test(recomputes), cmocka_unit_test(replays), cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, make_set, free_set);
}
