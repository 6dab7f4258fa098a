/* test_token_rounding.c: rows of experts rounded to a multiple, against a sort that does it the long way.
 * Random logits; the choices to round are those of the same layer without rounding.
 * Source: Guo et al. 2025, algorithm 4; weights by the definitions of softmax and sigmoid.
 */
#include "support/route_fixture.h"

enum { T = 43, E = 6, K = 2 };

/* clang-format off */
static const struct way {
    const char *name;
    moe_layer_desc desc;
} ways[] = {
    {"softmax after the selection", {.top_k = K}},
    {"softmax before", {.top_k = K, .score_before_topk = true}},
    {"softmax before, normalised", {.top_k = K, .score_before_topk = true, .norm_topk_prob = true}},
    {"sigmoid, normalised", {.top_k = K, .score_function = "sigmoid", .norm_topk_prob = true}},
    {"one expert", {.top_k = 1, .score_before_topk = true, .norm_topk_prob = true}},
    {"groups", {.top_k = K, .score_function = "sigmoid", .num_groups = 3, .group_top_k = 2}},
};
/* clang-format on */
enum { WAYS = sizeof ways / sizeof *ways };

static bool is_sigmoid(const moe_layer_desc *desc) {
    return desc->score_function && strcmp(desc->score_function, "sigmoid") == 0;
}

static double score_of(const moe_layer_desc *desc, moe_mat logits, int64_t t, int64_t e) {
    const double *l = (const double *)logits.data + t * E;
    double sum = 0;
    if (is_sigmoid(desc)) return 1 / (1 + exp(-l[e]));
    for (int i = 0; i < E; ++i) sum += exp(l[i] - l[e]);
    return 1 / sum;
}

/* The groups that a token may use, worked out from the sums of their members; all where there are none. */
static bool may_choose(const moe_layer_desc *desc, moe_mat logits, int64_t t, int64_t e) {
    int better = 0;
    if (desc->group_top_k == 0) return true;
    const int each = E / desc->num_groups;
    double sum[E] = {0};
    for (int i = 0; i < E; ++i) sum[i / each] += score_of(desc, logits, t, i);
    for (int g = 0; g < desc->num_groups; ++g) better += sum[g] > sum[e / each];
    return better < desc->group_top_k;
}

typedef struct entrant {
    bool chose;
    double score;
    int64_t t;
} entrant;

static int compare(const void *a, const void *b) {
    const entrant *x = a, *y = b;
    if (x->chose != y->chose) return x->chose ? -1 : 1;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->t < y->t ? -1 : 1;
}

/* Sets bit e of the tokens that expert e ends with. */
static void round_by_sorting(const moe_layer_desc *desc, const route_bench *plain, const uint8_t *mask,
                             int64_t e, int32_t tile, uint32_t *set) {
    entrant list[T];
    int64_t n = 0, asked = 0;
    for (int64_t t = 0; t < T; ++t) {
        const bool chose = route_set(plain, t) >> e & 1;
        if (!mask[t] || !may_choose(desc, plain->logits, t, e)) continue;
        list[n++] = (entrant){chose, score_of(desc, plain->logits, t, e), t};
        asked += chose;
    }
    qsort(list, (size_t)n, sizeof *list, compare);
    int64_t down = asked / tile * tile, rows = asked - down > down + tile - asked ? down + tile : down;
    for (int64_t i = 0; i < rows && i < n; ++i) set[list[i].t] |= 1u << e;
}

/* The weight of one of a token's experts from the scores or logits of all of them. */
static double weight_of(const moe_layer_desc *desc, moe_mat logits, int64_t t, int64_t e, uint32_t set) {
    const double *l = (const double *)logits.data + t * E;
    double scores = 0, powers = 0;
    for (int i = 0; i < E; ++i) {
        if (!(set >> i & 1)) continue;
        scores += score_of(desc, logits, t, i);
        powers += exp(l[i] - l[e]);
    }
    if (!is_sigmoid(desc) && !desc->score_before_topk) return 1 / powers;
    return score_of(desc, logits, t, e) / (desc->norm_topk_prob && desc->top_k > 1 ? scores : 1);
}

static void rounds_as_a_sort_does(void **state) {
    (void)state;
    uint8_t mask[T];
    moe_call call = route_train;
    call.token_mask = mask;
    for (int t = 0; t < T; ++t) mask[t] = t % 7 != 3;
    for (int i = 0; i < WAYS * 3; ++i) {
        moe_layer_desc desc = ways[i / 3].desc;
        const int32_t tiles[] = {2, 5, 8};
        uint32_t set[T] = {0};
        route_bench plain = route_begin(desc, test_random(MOE_F64, T, E, 50));
        desc.token_rounding = tiles[i % 3];
        route_bench b = route_begin(desc, test_random(MOE_F64, T, E, 50));
        route_run(&plain, &call);
        route_run(&b, &call);
        assert_int_equal(b.view.top_k, E);
        for (int e = 0; e < E; ++e) round_by_sorting(&desc, &plain, mask, e, desc.token_rounding, set);
        int64_t rows = 0;
        for (int64_t t = 0; t < T; ++t) {
            if (route_set(&b, t) != set[t])
                fail_msg("%s, tile %d: token %d has %x, not %x", ways[i / 3].name, desc.token_rounding,
                         (int)t, route_set(&b, t), set[t]);
            for (int e = 0; e < E; ++e) {
                const bool has = set[t] >> e & 1;
                rows += has;
                near(route_weight(&b, t, e), has ? weight_of(&desc, b.logits, t, e, set[t]) : 0);
            }
        }
        assert_int_equal(b.stats.n_routed, rows);
        assert_int_equal(b.stats.n_kept, rows);
        route_end(&b), route_end(&plain);
    }
}

/* E tokens of equal rows of logits each: what a tile does to 5 tokens that all choose alike. */
static int64_t rows_of_five(int32_t tile) {
    moe_mat logits = test_output(MOE_F64, 5, 3);
    for (int i = 0; i < 15; ++i) ((double *)logits.data)[i] = i % 3 == 1 ? 2 : 1;
    route_bench b = route_begin((moe_layer_desc){.top_k = 1, .token_rounding = tile}, logits);
    route_run(&b, &route_train);
    const int64_t rows = b.view.kept[1];
    for (int64_t t = 0; t < 5; ++t) assert_int_equal(route_set(&b, t), t < rows ? 2u : 0u);
    assert_int_equal(b.view.kept[0] + b.view.kept[2], 0);
    for (int64_t i = rows * 3; i < 15; ++i) near(((double *)b.y.data)[i], 0);
    route_end(&b);
    return rows;
}

/* A half goes down; among equals the earlier tokens stay; more tokens than there are cannot join. */
static void ties_and_edges(void **state) {
    (void)state;
    assert_int_equal(rows_of_five(1), 5);
    assert_int_equal(rows_of_five(2), 4);
    assert_int_equal(rows_of_five(3), 5); /* 6, but there are 5 */
    assert_int_equal(rows_of_five(4), 4);
    assert_int_equal(rows_of_five(10), 0);
    assert_int_equal(rows_of_five(9), 5);
}

/* Outside training, and with a tile of 1, it is the layer without; training or not, to the bit. */
static void off_is_plain_top_k(void **state) {
    (void)state;
    const moe_call infer = {.size = sizeof infer};
    for (int i = 0; i < WAYS; ++i) {
        moe_layer_desc desc = ways[i].desc;
        route_bench plain = route_begin(desc, test_random(MOE_F64, T, E, 51));
        desc.token_rounding = 8;
        route_bench b = route_begin(desc, test_random(MOE_F64, T, E, 51));
        route_run(&plain, &infer);
        route_run(&b, &infer);
        const size_t slots = (size_t)(T * desc.top_k);
        assert_int_equal(b.view.top_k, desc.top_k);
        assert_memory_equal(b.view.expert, plain.view.expert, slots * sizeof(int32_t));
        assert_memory_equal(b.view.weight, plain.view.weight, slots * sizeof(double));
        assert_memory_equal(b.y.data, plain.y.data, test_bytes(b.y));
        route_end(&b);
        desc.token_rounding = 1;
        b = route_begin(desc, test_random(MOE_F64, T, E, 51));
        route_run(&plain, &route_train);
        route_run(&b, &route_train);
        for (int64_t t = 0; t < T; ++t) assert_int_equal(route_set(&b, t), route_set(&plain, t));
        for (int64_t j = 0; j < T * E; ++j) near(((double *)b.y.data)[j], ((double *)plain.y.data)[j]);
        route_end(&b), route_end(&plain);
    }
}

/* A replay may name any experts, but no more of them than there is memory for. */
static void replay_is_held_to_the_rows(void **state) {
    (void)state;
    enum { MOST = T * K + E * 2 }; /* rounding to 5 adds 2 at most */
    int32_t expert[T * E];
    moe_call call = route_train;
    route_bench b =
        route_begin((moe_layer_desc){.top_k = K, .token_rounding = 5}, test_random(MOE_F64, T, E, 52));
    for (int i = 0; i < T * E; ++i) expert[i] = i < MOST ? i % E : -1;
    call.replay_expert = expert;
    route_run(&b, &call);
    assert_int_equal(b.stats.n_kept, MOST);
    expert[MOST] = MOST % E;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    if (!strstr(moe_ctx_error(b.ctx), "token_rounding 5 are at most 98"))
        fail_msg("'%s'", moe_ctx_error(b.ctx));
    route_end(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounds_as_a_sort_does),
        cmocka_unit_test(ties_and_edges),
        cmocka_unit_test(off_is_plain_top_k),
        cmocka_unit_test(replay_is_held_to_the_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
