/* test_layer_reserve.c: what a layer takes memory for: sequences, and what it keeps from forward to backward.
 * A limit of sequences changes the memory, never a bit of a result; what would not fit is refused.
 */
#include "support/layer_fixture.h"

enum { T = 48, D = 5, E = 4, K = 2, N = 6 };

static const char *const by_sequence[] = {
    "capacity_factor=1.25 capacity_group=sequence pad_to_capacity=true capacity_formula=deepspeed",
    "router_type=expert_choice capacity_group=sequence capacity_factor=1.5",
    "seq_aux_loss_coeff=0.1",
    ("router_type=gshard_top2 num_groups_outer=2 capacity_group=sequence capacity_factor=1 "
     "drop_policy=rank_major"),
};
enum { KINDS = sizeof by_sequence / sizeof *by_sequence };

static moe_layer_desc desc_of(const char *settings) {
    moe_layer_desc d = {.size = sizeof d,
                        .d_model = D,
                        .num_experts = E,
                        .top_k = K,
                        .expert_hidden_size = N,
                        .init_std = 0.5f};
    moe_error error;
    char text[256];
    snprintf(text, sizeof text, "%s", settings);
    for (char *key = strtok(text, " "); key; key = strtok(NULL, " ")) {
        char *value = strchr(key, '=');
        *value++ = '\0';
        if (moe_layer_desc_set(&d, key, value, &error) != MOE_OK) fail_msg("%s", error.text);
    }
    return d;
}

static moe_layer *make(moe_ctx *ctx, const moe_layer_desc *desc, int64_t limit) {
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, desc, &layer));
    must(ctx, moe_layer_limit_sequences(layer, limit));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static size_t bytes_of(moe_ctx *ctx, const moe_layer *layer) {
    const moe_layer_bytes bytes = test_measure(ctx, layer, T);
    return bytes.saved + bytes.scratch;
}

/* y and dx of a call of `rows` tokens in sequences of `length`. */
static void run(moe_ctx *ctx, moe_layer *layer, int64_t rows, int64_t length, moe_mat y, moe_mat dx) {
    moe_mat x = test_random(MOE_F32, rows, D, 1), dy = test_random(MOE_F32, rows, D, 2);
    const moe_call call = {
        .size = sizeof call, .mode = MOE_TRAIN, .step = (uint64_t)rows, .sequence_length = length};
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    free(x.data);
    free(dy.data);
}

/* Every call within the limits, in layers with and without one. */
static void a_limit_changes_no_bit(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        moe_ctx *ctx = test_ctx(NULL, 2);
        const moe_layer_desc d = desc_of(by_sequence[kind]);
        moe_layer *any = make(ctx, &d, 0), *few = make(ctx, &d, 4);
        if (bytes_of(ctx, few) >= bytes_of(ctx, any)) fail_msg("%s: no less memory", by_sequence[kind]);
        for (int64_t length = 1; length <= T; ++length)
            for (int64_t n = 1; n <= 4 && n * length <= T; ++n) {
                moe_mat y[2], dx[2];
                for (int i = 0; i < 2; ++i) {
                    y[i] = test_output(MOE_F32, n * length, D);
                    dx[i] = test_output(MOE_F32, n * length, D);
                    run(ctx, i ? few : any, n * length, length, y[i], dx[i]);
                }
                assert_memory_equal(y[0].data, y[1].data, test_bytes(y[0]));
                assert_memory_equal(dx[0].data, dx[1].data, test_bytes(dx[0]));
                for (int i = 0; i < 2; ++i) free(y[i].data), free(dx[i].data);
            }
        moe_layer_destroy(few);
        moe_layer_destroy(any);
        moe_ctx_destroy(ctx);
    }
}

static void more_sequences_are_refused_where_they_count(void **state) {
    (void)state;
    for (int kind = 0; kind <= KINDS; ++kind) {
        moe_ctx *ctx = test_ctx(NULL, 1);
        const moe_layer_desc d = desc_of(kind < KINDS ? by_sequence[kind] : "");
        moe_layer *layer = make(ctx, &d, 4);
        moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
        const moe_call call = {.size = sizeof call, .sequence_length = T / 6};
        const moe_status status = moe_layer_forward(layer, x, y, &call, NULL);
        assert_int_equal(status, kind < KINDS ? MOE_ERR_STATE : MOE_OK);
        if (status != MOE_OK) assert_non_null(strstr(moe_ctx_error(ctx), "6 sequences, but 4 are reserved"));
        must(ctx, moe_layer_limit_sequences(layer, 6));
        must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
        must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
        assert_int_equal(moe_layer_limit_sequences(layer, -1), MOE_ERR_ARGUMENT);
        free(x.data);
        free(y.data);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
}

/* Kept from forward to backward: Z [R,2n], the scores [T,E], and what says where each row is. */
static void what_is_kept_beside_z(void **state) {
    (void)state;
    enum { TOKENS = 4096, EXPERTS = 8, HIDDEN = 256 };
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL;
    const moe_layer_desc d = {
        .size = sizeof d, .d_model = 128, .num_experts = EXPERTS, .top_k = K, .expert_hidden_size = HIDDEN};
    must(ctx, moe_layer_create(ctx, &d, &layer));
    const size_t saved = test_measure(ctx, layer, TOKENS).saved;
    const size_t z = (size_t)TOKENS * K * 2 * HIDDEN * sizeof(float), beside = saved - z;
    const size_t routing =
        (size_t)TOKENS * (EXPERTS + 1 + K) * sizeof(float) + /* scores, lse, weight */
        (size_t)TOKENS * K * 5 * sizeof(int32_t);            /* expert, row_of; row_token _slot _weight */
    print_message("kept: Z %zu bytes, beside it %zu (%.2f %%): %.1f bytes a token\n", z, beside,
                  100.0 * (double)beside / (double)z, (double)beside / TOKENS);
    assert_true(beside < routing + 4096); /* counts by expert, and alignment */
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* A backward of `owner` after another layer has used its scratch. */
static void owner_finds_its_rows(moe_ctx *ctx, moe_layer *owner, moe_layer *layer, moe_mat want_dx) {
    const moe_mat x = test_random(MOE_F32, T, D, 1), dy = test_random(MOE_F32, T, D, 2),
                  y = test_output(MOE_F32, T, D), dx = test_output(MOE_F32, T, D);
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .step = T, .sequence_length = T};
    must(ctx, moe_layer_forward(owner, x, y, &call, NULL));
    must(ctx, moe_layer_forward(layer, dy, y, &call, NULL));
    must(ctx, moe_layer_backward(owner, x, dy, dx));
    assert_memory_equal(dx.data, want_dx.data, test_bytes(dx));
    free(x.data), free(dy.data), free(y.data), free(dx.data);
}

/* Two layers with one scratch compute what each does with its own; who cannot share is told why. */
static void scratch_is_shared(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1), *other = test_ctx("ref", 1);
    const moe_layer_desc desc = desc_of(by_sequence[0]);
    moe_layer *owner = make(ctx, &desc, 0), *alone = make(ctx, &desc, 0), *foreign = NULL, *layer = NULL;
    must(other, moe_layer_create(other, &desc, &foreign));
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    const char *text = moe_ctx_error(ctx);
    test_told(moe_layer_share_scratch(layer, layer), text, "owner is the layer itself");
    test_told(moe_layer_share_scratch(layer, foreign), text, "owner is of another context");
    assert_int_equal(moe_layer_share_scratch(alone, owner), MOE_ERR_STATE);
    assert_non_null(strstr(text, "the layer is reserved"));
    must(ctx, moe_layer_share_scratch(layer, owner));
    assert_int_equal(moe_layer_share_scratch(alone, layer), MOE_ERR_STATE);
    assert_non_null(strstr(text, "owner uses the scratch of a third layer"));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    moe_mat y = test_output(MOE_F32, T, D), dx = test_output(MOE_F32, T, D);
    moe_mat want_y = test_output(MOE_F32, T, D), want_dx = test_output(MOE_F32, T, D);
    run(ctx, layer, T, T, y, dx);
    run(ctx, alone, T, T, want_y, want_dx);
    assert_memory_equal(y.data, want_y.data, test_bytes(y));
    assert_memory_equal(dx.data, want_dx.data, test_bytes(dx));
    owner_finds_its_rows(ctx, owner, layer, want_dx);
    free(y.data), free(dx.data), free(want_y.data), free(want_dx.data);
    moe_layer_destroy(layer), moe_layer_destroy(alone), moe_layer_destroy(owner), moe_layer_destroy(foreign);
    moe_ctx_destroy(ctx), moe_ctx_destroy(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_limit_changes_no_bit),
        cmocka_unit_test(more_sequences_are_refused_where_they_count),
        cmocka_unit_test(what_is_kept_beside_z),
        cmocka_unit_test(scratch_is_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
