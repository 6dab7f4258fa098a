/* test_plan.c: what a plan promises, for random routings, every formula, drop policy, group and padding.
 * expert[T,K], weight[T,K] -> row_of, row_slot, offset, kept; the seed is printed.
 */
#include "support/route_fixture.h"

#include "dispatch/dispatch.h"

enum { TOKENS = 1536, ROWS = 16 * TOKENS, LONG = 24 /* makes a sequence long enough for several parts */ };

typedef struct bench {
    moe_layer_desc desc;
    moei_capacity rule;
    moei_batch batch;
    moei_routing routing;
    moei_plan plan;
    uint8_t mask[TOKENS];
    int32_t expert[4 * TOKENS];
    double weight[4 * TOKENS];
    int64_t capacity[TOKENS], offset[17], routed[16], kept[16];
    int32_t part_count[6 * 16];
    double drop_room[4 * TOKENS];
    int32_t row_token[ROWS], row_slot[ROWS], row_of[4 * TOKENS];
    double row_weight[ROWS];
} bench;

static const moei_team alone = {.n_threads = 1};

static uint32_t word_of(uint64_t i, int which) {
    uint32_t word[4];
    moe_random(test_seed(), MOE_DRAW_TEST, 910, 0, i, word);
    return word[which];
}

/* Distinct experts of every real token, some slots unused; equal weights are frequent. */
static void draw_routing(bench *b, uint64_t i) {
    const int64_t K = b->routing.top_k, E = b->routing.n_experts;
    for (int64_t t = 0; t < b->routing.n_tokens; ++t) {
        b->mask[t] = word_of(i * 1000 + (uint64_t)t, 0) % 8 != 0;
        const uint32_t first = word_of(i * 1000 + (uint64_t)t, 1);
        for (int64_t k = 0; k < K; ++k) {
            const bool used = b->mask[t] && word_of(i * 1000 + (uint64_t)(t * K + k), 2) % 10 != 0;
            b->expert[t * K + k] = used ? (int32_t)((first % (uint32_t)E + (uint32_t)k) % (uint32_t)E) : -1;
            b->weight[t * K + k] = used ? (1 + word_of(i * 1000 + (uint64_t)(t * K + k), 3) % 5) / 8.0 : 0;
        }
    }
}

static void draw_bench(bench *b, uint64_t i, int64_t times, int formula, int drop, bool sequences, bool pad) {
    static const int lengths[] = {1, 2, 3, 5, 8};
    const int64_t length = times * lengths[word_of(i, 0) % 5], n = 1 + word_of(i, 1) % 8;
    const int32_t E = 4 + (int32_t)(word_of(i, 2) % 13), K = 1 + (int32_t)(word_of(i, 3) % 4);
    memset(b, 0, sizeof *b);
    b->desc = (moe_layer_desc){.top_k = K,
                               .capacity_factor = (float)(1 + i % 9) * 0.25f,
                               .capacity_formula = moei_capacity_formulas[formula],
                               .capacity_group = sequences ? "sequence" : "batch",
                               .drop_policy = moei_drop_policies[drop],
                               .pad_to_capacity = pad};
    assert_int_equal(moei_capacity_init(&b->desc, false, &b->rule, NULL), MOE_OK);
    b->routing = (moei_routing){.n_tokens = n * length,
                                .n_experts = E,
                                .top_k = K,
                                .dtype = MOE_F64,
                                .expert = b->expert,
                                .weight = b->weight};
    b->batch = (moei_batch){.mode = MOE_TRAIN, .mask = b->mask, .n_sequences = n, .sequence_length = length};
    b->plan = (moei_plan){.capacity = b->capacity,
                          .offset = b->offset,
                          .routed = b->routed,
                          .kept = b->kept,
                          .row_token = b->row_token,
                          .row_slot = b->row_slot,
                          .row_of = b->row_of,
                          .weight_dtype = MOE_F64,
                          .row_weight = b->row_weight,
                          .part_count = b->part_count,
                          .drop_room = b->drop_room};
    draw_routing(b, i);
    moei_plan_build(&alone, &b->plan, &b->batch, &b->routing, &b->rule);
}

#define hold(b, what)                                                                                        \
    do {                                                                                                     \
        if (!(what))                                                                                         \
            fail_msg("%s: formula %s, drop %s, group %s, pad %d, factor %g, T %lld, E %d, K %d", #what,      \
                     (b)->desc.capacity_formula, (b)->desc.drop_policy, (b)->desc.capacity_group,            \
                     (b)->desc.pad_to_capacity, (double)(b)->desc.capacity_factor,                           \
                     (long long)(b)->routing.n_tokens, (b)->routing.n_experts, (b)->routing.top_k);          \
    } while (0)

/* Every slot has its row or none, every row its slot or is padding. */
static void check_rows(const bench *b) {
    const int64_t K = b->routing.top_k;
    int64_t kept = 0, served = 0;
    const moei_extent extent = {b->routing.n_tokens, b->batch.n_sequences, b->batch.mode};
    const moei_extent larger = {extent.tokens + 3, extent.sequences + 2, extent.mode};
    const int64_t most = moei_plan_max_rows(&b->rule, extent, (int32_t)K, b->routing.n_experts);
    hold(b, b->plan.n_rows <= most);
    hold(b, most <= moei_plan_max_rows(&b->rule, larger, (int32_t)K, b->routing.n_experts));
    for (int32_t e = 0; e < b->routing.n_experts; ++e) {
        kept += b->kept[e];
        hold(b, b->kept[e] <= b->routed[e] && b->kept[e] <= b->offset[e + 1] - b->offset[e]);
        for (int64_t r = b->offset[e]; r < b->offset[e + 1]; ++r) {
            const int32_t slot = b->row_slot[r];
            hold(b, slot >= 0 || (b->desc.pad_to_capacity && b->row_token[r] == 0 && b->row_weight[r] == 0));
            if (slot < 0) continue;
            hold(b, b->row_of[slot] == r && b->expert[slot] == e);
            hold(b, b->row_token[r] == slot / K && b->row_weight[r] == b->weight[slot]);
        }
    }
    for (int64_t slot = 0; slot < b->routing.n_tokens * K; ++slot) {
        served += b->row_of[slot] >= 0;
        hold(b, b->expert[slot] >= 0 || b->row_of[slot] == -1);
    }
    hold(b, served == kept);
    hold(b, b->desc.pad_to_capacity || kept == b->plan.n_rows);
}

/* True where slot a goes before slot c when an expert is full. */
static bool goes_first(const bench *b, int64_t a, int64_t c) {
    const int64_t K = b->routing.top_k;
    if (b->rule.drop == MOEI_DROP_PROBS && b->weight[a] != b->weight[c]) return b->weight[a] > b->weight[c];
    if (b->rule.drop == MOEI_DROP_RANK_MAJOR && a % K != c % K) return a % K < c % K;
    return a < c;
}

/* One expert, one group: as many as fit are kept, nobody dropped should have gone before one kept, and rows
 * stand in order. */
static void check_group(const bench *b, int32_t e, int64_t g) {
    const int64_t K = b->routing.top_k, n = b->routing.n_tokens / b->plan.n_groups, C = b->capacity[g];
    int64_t asked = 0, kept = 0, valid = 0;
    for (int64_t t = g * n; t < (g + 1) * n; ++t) valid += b->mask[t];
    hold(b, C == b->rule.rows(&b->rule, b->batch.mode, false, valid, (int32_t)K, b->routing.n_experts));
    for (int64_t a = g * n * K; a < (g + 1) * n * K; ++a) {
        if (b->expert[a] != e) continue;
        ++asked;
        kept += b->row_of[a] >= 0;
        for (int64_t c = g * n * K; c < (g + 1) * n * K; ++c) {
            if (b->expert[c] != e || c == a || b->row_of[a] < 0) continue;
            hold(b, b->row_of[c] >= 0 || goes_first(b, a, c));
            const bool by_rank = b->rule.drop == MOEI_DROP_RANK_MAJOR;
            if (b->row_of[c] >= 0)
                hold(b, (b->row_of[a] < b->row_of[c]) == (by_rank ? goes_first(b, a, c) : a < c));
        }
    }
    hold(b, kept == (asked < C ? asked : C));
}

/* Padding: every expert the same rows, the capacity of each group at most its tokens. */
static void check_padding(const bench *b) {
    const int64_t n = b->routing.n_tokens / b->plan.n_groups;
    int64_t rows = 0;
    for (int64_t g = 0; g < b->plan.n_groups; ++g) rows += b->capacity[g] < n ? b->capacity[g] : n;
    for (int32_t e = 0; e < b->routing.n_experts; ++e) hold(b, b->offset[e + 1] - b->offset[e] == rows);
}

static void check(const bench *b) {
    check_rows(b);
    for (int32_t e = 0; e < b->routing.n_experts; ++e)
        for (int64_t g = 0; g < b->plan.n_groups; ++g) check_group(b, e, g);
    if (b->desc.pad_to_capacity) check_padding(b);
}

static void plans_keep_their_promises(void **state) {
    static bench b;
    uint64_t i = 0;
    (void)state;
    for (int formula = 0; moei_capacity_formulas[formula]; ++formula)
        for (int drop = 0; moei_drop_policies[drop]; ++drop)
            for (int mode = 0; mode < 4; ++mode)
                for (int again = 0; again < 6; ++again) {
                    draw_bench(&b, ++i, 1, formula, drop, mode % 2 == 1, mode / 2 == 1);
                    check(&b);
                }
}

/* Several parts: the same promises, and the same plan by any number of threads, made or made again. */
static void threads_make_one_plan(void **state) {
    static bench b, other;
    moe_ctx *ctx = test_ctx("ref", 3);
    int64_t parts = 0;
    (void)state;
    for (uint64_t i = 0; i < 36; ++i) {
        draw_bench(&b, i, LONG, (int)i % 8, (int)i % 3, i % 2 == 1, i % 4 > 1);
        const size_t rows = (size_t)b.plan.n_rows;
        check(&b);
        draw_bench(&other, i, LONG, (int)i % 8, (int)i % 3, i % 2 == 1, i % 4 > 1);
        for (int again = 0; again < 2; ++again) {
            if (again)
                moei_plan_index(&ctx->team, &other.plan, &other.routing);
            else
                moei_plan_build(&ctx->team, &other.plan, &other.batch, &other.routing, &other.rule);
            assert_int_equal(other.plan.n_rows, b.plan.n_rows);
            assert_memory_equal(other.offset, b.offset, sizeof b.offset);
            assert_memory_equal(other.routed, b.routed, sizeof b.routed);
            assert_memory_equal(other.kept, b.kept, sizeof b.kept);
            assert_memory_equal(other.row_of, b.row_of, sizeof b.row_of);
            assert_memory_equal(other.row_slot, b.row_slot, rows * sizeof *b.row_slot);
            assert_memory_equal(other.row_token, b.row_token, rows * sizeof *b.row_token);
            assert_memory_equal(other.row_weight, b.row_weight, rows * sizeof *b.row_weight);
            memset(other.row_slot, 0, sizeof other.row_slot);
            memset(other.row_token, 0, sizeof other.row_token);
        }
        parts += moei_plan_parts(b.plan.n_tokens * b.plan.top_k);
    }
    assert_true(parts > 36);
    moe_ctx_destroy(ctx);
}

/* Experts that want their rows in a block get their tokens, and zeros for padding. */
static void gathered_padding_is_zero(void **state) {
    static bench b;
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_mat x = test_random(MOE_F64, 64, 3, 11), rows = test_output(MOE_F64, 1024, 3);
    int64_t padding = 0;
    (void)state;
    for (uint64_t i = 0; i < 20; ++i) {
        draw_bench(&b, i, 1, 0, 0, i % 2 == 1, true);
        moei_rows_gather(ctx, &b.plan, x, NULL, rows);
        for (int64_t r = 0; r < b.plan.n_rows; ++r)
            for (int64_t j = 0; j < 3; ++j)
                hold(&b, test_at(rows, r, j) == (b.row_slot[r] < 0 ? 0 : test_at(x, b.row_token[r], j)));
        for (int64_t r = 0; r < b.plan.n_rows; ++r) padding += b.row_slot[r] < 0;
    }
    assert_true(padding > 0);
    free(x.data);
    free(rows.data);
    moe_ctx_destroy(ctx);
}

/* No tokens, but a length of sequences and a mask: nothing of the mask is read. */
static void nothing_to_plan(void **state) {
    static bench b;
    (void)state;
    draw_bench(&b, 1, 1, 0, 0, true, true);
    b.routing.n_tokens = 0;
    b.batch.n_sequences = 0;
    b.batch.sequence_length = 8;
    memset(b.mask, 1, sizeof b.mask);
    moei_plan_build(&alone, &b.plan, &b.batch, &b.routing, &b.rule);
    assert_int_equal(b.plan.n_rows, 0);
    assert_int_equal(b.plan.n_groups, 1);
    assert_int_equal(b.capacity[0], 0);
}

/* Tokens that expert e keeps, as bits. */
static uint32_t kept_tokens(const route_bench *b, int32_t e) {
    uint32_t tokens = 0;
    for (int64_t slot = 0; slot < b->view.n_tokens * b->view.top_k; ++slot)
        if (b->view.expert[slot] == e && b->view.row_of[slot] >= 0) tokens |= 1u << slot / b->view.top_k;
    return tokens;
}

static uint32_t bits(const int *token, int n) {
    uint32_t set = 0;
    for (int i = 0; i < n; ++i) set |= 1u << token[i];
    return set;
}

/* Recorded from Megatron core: softmax after top-2, drop by probability. */
static void drop_by_probability_as_recorded(void **state) {
    const float factor[] = {1.0f, 0.5f};
    const uint32_t expected[2][4] = {
        {bits((int[]){1, 2, 6, 8, 9, 10}, 6), bits((int[]){1, 4, 8, 11}, 4), bits((int[]){0, 3, 5, 7, 10}, 5),
         bits((int[]){0, 2, 5, 6, 7, 9}, 6)},
        {bits((int[]){2, 8, 9},           3), bits((int[]){1, 4, 11},    3), bits((int[]){3, 5, 10},       3),
         bits((int[]){0, 6, 7},          3)}
    };
    (void)state;
    for (int i = 0; i < 2; ++i) {
        const moe_layer_desc desc = {.top_k = 2, .capacity_factor = factor[i]};
        route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
        route_run(&b, &route_train);
        assert_int_equal(b.view.capacity, i == 0 ? 6 : 3);
        for (int32_t e = 0; e < 4; ++e) assert_int_equal(kept_tokens(&b, e), expected[i][e]);
        assert_int_equal(b.stats.n_routed, 24);
        assert_int_equal(b.stats.n_kept + b.stats.n_dropped, 24);
        route_end(&b);
    }
}

/* Padding changes no number: output, input gradient and gate gradient bit for bit. */
static void padding_changes_nothing(void **state) {
    (void)state;
    for (int sequences = 0; sequences < 2; ++sequences) {
        moe_ctx *ctx = test_ctx(NULL, 2);
        moe_layer_desc desc = {.size = sizeof desc,
                               .d_model = 12,
                               .num_experts = 5,
                               .expert_hidden_size = 9,
                               .capacity_factor = 0.9f,
                               .capacity_group = sequences ? "sequence" : "batch"};
        const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 10};
        moe_mat x = test_random(MOE_F32, 30, 12, 1), dy = test_random(MOE_F32, 30, 12, 2), y[2], dx[2];
        float grad[2][60];
        for (int pad = 0; pad < 2; ++pad) {
            moe_param gate = {.size = sizeof gate};
            desc.pad_to_capacity = pad;
            moe_layer *layer = test_layer(ctx, &desc, 30);
            y[pad] = test_output(MOE_F32, 30, 12);
            dx[pad] = test_output(MOE_F32, 30, 12);
            must(ctx, moe_layer_forward(layer, x, y[pad], &call, NULL));
            must(ctx, moe_layer_backward(layer, x, dy, dx[pad]));
            must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
            memcpy(grad[pad], gate.grad, sizeof grad[pad]);
            moe_layer_destroy(layer);
        }
        assert_memory_equal(y[0].data, y[1].data, test_bytes(y[0]));
        assert_memory_equal(dx[0].data, dx[1].data, test_bytes(dx[0]));
        assert_memory_equal(grad[0], grad[1], sizeof grad[0]);
        for (int pad = 0; pad < 2; ++pad) {
            free(y[pad].data);
            free(dx[pad].data);
        }
        free(x.data);
        free(dy.data);
        moe_ctx_destroy(ctx);
    }
}

/* A token alone, as decoding brings it: formulas that round down would leave it no expert. */
static void decoding_drops_nothing(void **state) {
    (void)state;
    const moe_call infer = {.size = sizeof infer};
    for (int formula = 0; moei_capacity_formulas[formula]; ++formula) {
        const moe_layer_desc desc = {
            .top_k = 2, .capacity_factor = 1, .capacity_formula = moei_capacity_formulas[formula]};
        route_bench b = route_begin(desc, golden_logits(1, 6, NULL));
        route_run(&b, &infer);
        assert_int_equal(b.stats.n_kept, 2);
        route_end(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_keep_their_promises), cmocka_unit_test(gathered_padding_is_zero),
        cmocka_unit_test(nothing_to_plan),           cmocka_unit_test(drop_by_probability_as_recorded),
        cmocka_unit_test(padding_changes_nothing),   cmocka_unit_test(decoding_drops_nothing),
        cmocka_unit_test(threads_make_one_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
