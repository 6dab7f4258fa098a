/* test_layer_properties.c: what every layer promises, over layers in which every two values of options meet.
 * Tokens in another order, in another batch, masked, replayed, recomputed, on more threads.
 * Source: the promises of moe.h and of docs/architecture.md, "Laws"; the layers are those of support/cover.h.
 */
#include "support/trial.h"

enum { T = TRIAL_TOKENS };

/* In training; the inner level may be where the outer one is not. */
static bool limited(const moe_layer_desc *d) {
    return d->capacity_factor > 0 || d->capacity_factor_inner > 0;
}

static bool by_sequence(const moe_layer_desc *d) {
    return trial_is(d->routing_unit, "sequence") || trial_is(d->routing_unit, "task");
}

/* Draws are keyed by the token's number, as is round robin. */
static bool counts_tokens(const moe_layer_desc *d) {
    const bool second =
        trial_is(d->second_policy_train, "random") || trial_is(d->second_policy_train, "sample");
    return trial_is(d->router_type, "random") || trial_is(d->router_type, "balanced") ||
           trial_is(d->router_type, "noisy_top_k") || (trial_is(d->router_type, "gshard_top2") && second) ||
           d->input_jitter_eps > 0 || d->dropout > 0 || d->expert_dropout > 0 || d->top_k_min > 0;
}

/* Routers that compare tokens; where all tokens of a sequence are alike, rounding decides every tie. */
static bool compares_tokens(const moe_layer_desc *d) {
    return trial_is(d->router_type, "expert_choice") || trial_is(d->router_type, "sinkhorn") ||
           d->token_rounding > 0;
}

static void same_number(const trial *d, const char *what, double a, double b) {
    if (!(fabs(a - b) <= 1e-9 * (1 + fabs(b))))
        fail_msg("%s: %.17g is not %.17g:%s", what, a, b, d->settings);
}

static void same_row(const trial *d, const char *what, moe_mat a, int64_t i, moe_mat b, int64_t j) {
    for (int64_t c = 0; c < a.cols; ++c) same_number(d, what, test_at(a, i, c), test_at(b, j, c));
}

static void same_sums(const trial *d, const char *what, const trial_outcome *a, const trial_outcome *b) {
    same_number(d, what, a->stats.loss, b->stats.loss);
    assert_int_equal(a->n_grads, b->n_grads);
    for (int64_t i = 0; i < a->n_grads; ++i) same_number(d, what, a->grad[i], b->grad[i]);
}

static void move_row(moe_mat to, int64_t i, moe_mat from, int64_t j) {
    const size_t bytes = (size_t)from.cols * moe_dtype_bytes(from.dtype);
    memcpy((char *)to.data + (size_t)i * bytes, (char *)from.data + (size_t)j * bytes, bytes);
}

/* Row t of the result is row from[t] of `in`; it may hold fewer. */
static trial_inputs rearranged(trial *d, const trial_inputs *in, const int *from, int64_t n) {
    trial_inputs out = trial_begin(d, in->x.dtype);
    for (int64_t t = 0; t < n; ++t) {
        move_row(out.x, t, in->x, from[t]);
        move_row(out.dy, t, in->dy, from[t]);
        out.id[t] = in->id[from[t]];
    }
    out.x.rows = out.dy.rows = n;
    return out;
}

/* --- properties: each tells whether it applies to the layer --- */

static bool order_does_not_matter(trial *d) {
    const moe_layer_desc *desc = &d->problem->desc;
    const bool places = limited(desc) && !trial_is(desc->drop_policy, "probs");
    /* Equal weights go by place: those of whole sequences, and of one expert scored after its selection. */
    const bool ties =
        by_sequence(desc) || desc->num_experts == 1 ||
        (desc->top_k == 1 && !desc->score_before_topk && trial_is(desc->score_function, "softmax"));
    const bool drops = limited(desc) || desc->token_rounding > 0;
    if (counts_tokens(desc) || places || (drops && ties)) return false;
    if (compares_tokens(desc) && by_sequence(desc)) return false;
    trial_inputs in = trial_begin(d, MOE_F64);
    int from[T];
    for (int t = 0; t < T; ++t) from[t] = (7 * t + 3) % T;
    trial_inputs moved = rearranged(d, &in, from, T);
    trial_tell(d, &in), trial_tell(d, &moved);
    trial_outcome a = trial_step(d, 1, &in.call, in.x, in.dy),
                  b = trial_step(d, 1, &moved.call, moved.x, moved.dy);
    for (int t = 0; t < T; ++t) same_row(d, "another order: y", b.y, t, a.y, from[t]);
    for (int t = 0; t < T; ++t) same_row(d, "another order: dx", b.dx, t, a.dx, from[t]);
    same_sums(d, "another order", &b, &a);
    trial_forget(&a), trial_forget(&b), trial_end(&in), trial_end(&moved);
    return true;
}

/* Dropless routers that look at one token at a time: y of a token is the same in any batch. */
static bool batch_does_not_matter(trial *d) {
    const moe_layer_desc *desc = &d->problem->desc;
    if (limited(desc) || compares_tokens(desc) || trial_is(desc->routing_unit, "sequence")) return false;
    trial_inputs in = trial_begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    trial_tell(d, &in);
    moe_mat x = in.x, dy = in.dy;
    x.rows = dy.rows = T / 3;
    trial_outcome a = trial_step(d, 1, &in.call, in.x, in.dy), b = trial_step(d, 1, &in.call, x, dy);
    if (memcmp(a.y.data, b.y.data, test_bytes(b.y)) != 0)
        fail_msg("another batch: other bits:%s", d->settings);
    trial_forget(&a), trial_forget(&b), trial_end(&in);
    return true;
}

/* Shared experts and latent biases serve masked tokens too: there only a gradient of zero is none. */
static bool serves_all(const moe_layer_desc *desc) {
    return desc->num_shared_experts > 0 || (desc->latent_size > 0 && desc->expert_bias);
}

/* Masks as many tokens of each sequence, at random places, but the last ones of one sequence where numbers
 * key draws; returns how many are left, in from[]. */
static int64_t mask_some(const trial *d, trial_inputs *in, int n_sequences, int from[T]) {
    const int length = T / n_sequences;
    int64_t n = 0;
    for (int t = 0; t < T; ++t) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 930, (uint64_t)d->number, (uint64_t)(t / length), word);
        const int place = (t + (int)(word[0] % 4)) % length;
        in->mask[t] = counts_tokens(&d->desc) ? t < T - 5 : place % 4 != 0;
        if (in->mask[t]) from[n++] = t;
        for (int64_t c = 0; c < in->dy.cols && !in->mask[t] && serves_all(&d->desc); ++c)
            ((double *)in->dy.data)[t * in->dy.cols + c] = 0;
    }
    return n;
}

static bool masking_is_removing(trial *d) {
    trial_inputs in = trial_begin(d, MOE_F64);
    int from[T];
    const int sequences = counts_tokens(&d->desc) ? 1 : d->problem->n_sequences;
    const int64_t n = mask_some(d, &in, sequences, from);
    trial_inputs left = rearranged(d, &in, from, n);
    trial_tell(d, &in), trial_tell(d, &left);
    in.call.token_mask = in.mask;
    in.call.sequence_length = T / sequences;
    left.call.sequence_length = n / sequences;
    trial_outcome a = trial_step(d, 1, &in.call, in.x, in.dy),
                  b = trial_step(d, 1, &left.call, left.x, left.dy);
    for (int64_t t = 0; t < n; ++t) same_row(d, "masked: y", a.y, from[t], b.y, t);
    for (int64_t t = 0; t < n; ++t) same_row(d, "masked: dx", a.dx, from[t], b.dx, t);
    for (int t = 0; t < T; ++t)
        for (int64_t c = 0; c < a.dx.cols && !in.mask[t]; ++c)
            same_number(d, "dx of a masked token", test_at(a.dx, t, c), 0);
    same_sums(d, "masked", &a, &b);
    trial_forget(&a), trial_forget(&b), trial_end(&in), trial_end(&left);
    return true;
}

/* The first token of token t's unit that is not masked: the one its whole unit goes with. */
static int first_of_unit(const trial *d, const trial_inputs *in, int t) {
    const int length = (int)in->call.sequence_length;
    for (int s = 0; s < T; ++s) {
        if (in->call.token_mask && !in->mask[s]) continue;
        const bool task = trial_is(d->desc.routing_unit, "task");
        if (task ? in->task[s / length] == in->task[t / length] : s / length == t / length) return s;
    }
    return t;
}

/* What was chosen, whatever became of it: capacities drop single tokens. */
static bool units_stay_together(trial *d) {
    if (!by_sequence(&d->problem->desc) || d->problem->desc.num_experts == 0) return false;
    trial_inputs in = trial_begin(d, MOE_F64);
    trial_tell_all(d, &in);
    trial_outcome o = trial_step(d, 1, &in.call, in.x, in.dy);
    for (int t = 0; t < T; ++t) {
        if (in.call.token_mask && !in.mask[t]) continue;
        const int32_t *first = o.expert + first_of_unit(d, &in, t) * o.slots, *mine = o.expert + t * o.slots;
        for (int32_t k = 0; k < o.slots; ++k)
            if (mine[k] != first[k])
                fail_msg("slot %d of token %d is %d, not %d as of its unit:%s", k, t, mine[k], first[k],
                         d->settings);
    }
    trial_forget(&o), trial_end(&in);
    return true;
}

static bool recompute_changes_no_bit(trial *d) {
    trial_inputs in = trial_begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    d->desc.saved_dtype = "auto"; /* 8 bits are not what runs again */
    trial other = *d;
    other.desc.recompute = trial_is(d->desc.recompute, "layer") ? "none" : "layer";
    const bool legal = moe_layer_desc_check(&other.desc, NULL) == MOE_OK;
    if (legal) {
        trial_tell_all(d, &in);
        trial_outcome a = trial_step(d, 1, &in.call, in.x, in.dy),
                      b = trial_step(&other, 1, &in.call, in.x, in.dy);
        trial_same_bits(d, "recompute", &a, &b);
        trial_forget(&a), trial_forget(&b);
    }
    trial_end(&in);
    return legal;
}

static bool replay_is_record(trial *d) {
    if (d->problem->desc.num_experts == 0) return false;
    trial_inputs in = trial_begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    trial_tell_all(d, &in);
    trial_outcome a = trial_step(d, 1, &in.call, in.x, in.dy);
    in.call.replay_expert = a.expert;
    trial_outcome b = trial_step(d, 1, &in.call, in.x, in.dy);
    assert_memory_equal(a.expert, b.expert, (size_t)(T * a.slots) * sizeof *a.expert);
    trial_same_bits(d, "replay", &b, &a);
    trial_forget(&a), trial_forget(&b), trial_end(&in);
    return true;
}

static bool threads_change_no_bit(trial *d) {
    static const int32_t threads[] = {2, 3, 5};
    trial_inputs in = trial_begin(d, d->number % 2 ? MOE_F64 : MOE_F32);
    trial_tell_all(d, &in);
    trial_outcome one = trial_step(d, 1, &in.call, in.x, in.dy);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; ++i) {
        trial_outcome more = trial_step(d, threads[i], &in.call, in.x, in.dy);
        trial_same_bits(d, "threads", &more, &one);
        trial_forget(&more);
    }
    trial_forget(&one), trial_end(&in);
    return true;
}

static void order(void **state) {
    (void)state;
    trial_holds("another order of tokens", order_does_not_matter, 20);
}
static void batch(void **state) {
    (void)state;
    trial_holds("another batch", batch_does_not_matter, 20);
}
static void masks(void **state) {
    (void)state;
    trial_holds("masking is removing", masking_is_removing, 1);
}
static void units(void **state) {
    (void)state;
    trial_holds("units stay together", units_stay_together, 20);
}
static void recomputes(void **state) {
    (void)state;
    trial_holds("recompute", recompute_changes_no_bit, 2);
}
static void replays(void **state) {
    (void)state;
    trial_holds("replay is record", replay_is_record, 2);
}
static void threads(void **state) {
    (void)state;
    trial_holds("threads", threads_change_no_bit, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order),   cmocka_unit_test(batch),      cmocka_unit_test(masks),
        cmocka_unit_test(units),   cmocka_unit_test(recomputes), cmocka_unit_test(replays),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, trial_make_set, trial_free_set);
}
