/* test_layer_contract.c: what the header promises of ownership, numbers and moments: memory goes back in the
 * sizes it came in, strings may go after create, draws and weights handed in are looked at, and what a call
 * or a step would ignore is refused. Source: include/moekit/moe.h.
 */
#include "support/layer_fixture.h"
#include "support/same_settings.h"

enum { T = 12, D = 5, E = 6, K = 2 };

static moe_layer_desc contract_desc(void) {
    return (moe_layer_desc){
        .size = sizeof(moe_layer_desc), .d_model = D, .num_experts = E, .top_k = K, .expert_hidden_size = 3};
}

/* --- memory --- */

/* Keeps the size in front of each block. */
typedef struct ledger {
    size_t held;
    int wrong;
} ledger;

static void *ledger_alloc(void *user, size_t bytes, size_t align) {
    ledger *l = user;
    char *block = aligned_alloc(align, (bytes + 2 * align - 1) / align * align);
    if (!block) return NULL;
    memcpy(block, &bytes, sizeof bytes);
    l->held += bytes;
    return block + align;
}

static void ledger_free(void *user, void *ptr, size_t bytes) {
    ledger *l = user;
    size_t given;
    if (!ptr) return;
    char *block = (char *)ptr - 64; /* the alignment of every block */
    memcpy(&given, block, sizeof given);
    l->wrong += given != bytes;
    l->held -= given;
    free(block);
}

/* Rounded up to whole lines they would be small. */
static void sizes_beyond_memory_are_refused(void **state) {
    (void)state;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 62, SIZE_MAX - (1 << 20)};
    moe_ctx *ctx = test_ctx(NULL, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        assert_null(moe_memory_alloc(ctx, sizes[i]));
        assert_non_null(strstr(moe_ctx_error(ctx), "cannot allocate"));
        assert_null(moe_ctx_alloc(ctx, sizes[i]));
    }
    moe_ctx_destroy(ctx);
}

static void memory_goes_back_as_it_came(void **state) {
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    (void)state;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; ++i) {
        ledger l = {0};
        const moe_ctx_desc ctx_desc = {
            .size = sizeof ctx_desc, .n_threads = 1, .host = {ledger_alloc, ledger_free, &l}
        };
        moe_ctx *ctx = NULL;
        moe_layer *layer = NULL;
        moe_layer_desc desc = contract_desc();
        desc.dtype = dtypes[i];
        desc.num_shared_experts = 1;
        assert_int_equal(moe_ctx_create(&ctx_desc, &ctx, NULL), MOE_OK);
        must(ctx, moe_layer_create(ctx, &desc, &layer));
        must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
        must(ctx, moe_layer_reserve(layer, 4 * T, MOE_TRAIN));
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
        assert_int_equal(l.wrong, 0);
        assert_int_equal(l.held, 0);
    }
}

/* --- strings --- */

enum { TEXT = 32 };

/* Every choice in memory of the caller's that is overwritten once the layer is made. */
static void strings_may_go(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    const moe_option *row;
    size_t count = 0;
    while (moe_layer_option_at(count)) ++count;
    char(*text)[TEXT] = calloc(count, TEXT), *kinds = strdup("2,3,identity,zero,2,1");
    assert_non_null(text);
    moe_layer_desc desc = contract_desc();
    moe_layer *layer = NULL;
    desc.num_shared_experts = 1;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        const char **field = (const char **)(void *)((char *)&desc + row->offset);
        if (row->type != MOE_OPT_CHOICE) continue;
        snprintf(text[i], TEXT, "%s", row->initial);
        *field = text[i];
    }
    desc.expert_kinds = kinds;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    memset(text, 'x', count * TEXT);
    memset(kinds, 'x', strlen(kinds));
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        const char *const *kept =
            (const char *const *)(const void *)((const char *)moe_layer_get_desc(layer) + row->offset);
        const bool activation = strcmp(row->key, "moe.shared_expert_activation") == 0;
        const char *want = strcmp(row->key, "moe.expert_kinds") == 0 ? "2,3,identity,zero,2,1" : row->initial;
        if (row->type == MOE_OPT_CHOICE) assert_string_equal(*kept, activation ? "swiglu" : want);
    }
    free(text), free(kinds);
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    free(x.data), free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* --- one layer, calls that are refused --- */

typedef struct bench {
    moe_ctx *ctx;
    moe_layer *layer;
    moe_mat x, y, dx, draw;
    moe_draws draws;
    moe_call call;
    int32_t expert[T * E];
    float weight[T * E];
} bench;

static void bench_begin(bench *b, const moe_layer_desc *desc) {
    *b = (bench){.ctx = test_ctx(NULL, 1),
                 .x = test_random(MOE_F32, T, D, 1),
                 .draw = test_random(MOE_F32, T, E, 2),
                 .y = test_output(MOE_F32, T, D),
                 .dx = test_output(MOE_F32, T, D),
                 .call = test_train_call};
    b->layer = test_layer(b->ctx, desc, T);
    b->draws.size = sizeof b->draws;
    b->call.draws = &b->draws;
    for (int i = 0; i < T * K; ++i) b->expert[i] = i % E, b->weight[i] = 0.5f;
}

static void bench_end(bench *b) {
    free(b->x.data), free(b->y.data), free(b->dx.data), free(b->draw.data);
    moe_layer_destroy(b->layer);
    moe_ctx_destroy(b->ctx);
}

static moe_status bench_forward(bench *b) {
    return moe_layer_forward(b->layer, b->x, b->y, &b->call, NULL);
}

static void refused(bench *b, moe_status status, const char *words) {
    assert_int_equal(bench_forward(b), status);
    if (!strstr(moe_ctx_error(b->ctx), words)) fail_msg("'%s' lacks '%s'", moe_ctx_error(b->ctx), words);
}

static void numbers_handed_in_are_finite(void **state) {
    (void)state;
    static const char *const types[] = {"top_k", "noisy_top_k", "gshard_top2"};
    static const char *const words[] = {"moe_draws.expert_dropout: number 1 of token 3",
                                        "moe_draws.noise: number 1 of token 3",
                                        "moe_draws.second_policy: number 0 of token 3"};
    for (int i = 0; i < 3; ++i) {
        bench b;
        moe_layer_desc desc = contract_desc();
        desc.router_type = types[i];
        if (i == 0) desc.expert_dropout = 0.3f;
        bench_begin(&b, &desc);
        float *draw = b.draw.data;
        const float **field[] = {&b.draws.expert_dropout, &b.draws.noise, &b.draws.second_policy};
        *field[i] = draw;
        must(b.ctx, bench_forward(&b));
        draw[i == 2 ? 3 : 3 * E + 1] = i == 1 ? INFINITY : NAN;
        refused(&b, MOE_ERR_NUMERIC, words[i]);
        uint8_t mask[T];
        for (int t = 0; t < T; ++t) mask[t] = t != 3;
        b.call.token_mask = mask; /* padding may be told anything */
        must(b.ctx, bench_forward(&b));
        b.call.token_mask = NULL;
        *field[i] = NULL;
        b.call.replay_expert = b.expert;
        b.call.replay_weight = b.weight;
        must(b.ctx, bench_forward(&b));
        b.weight[5] = NAN;
        refused(&b, MOE_ERR_NUMERIC, "replay_weight: token 2, slot 1");
        bench_end(&b);
    }
}

/* Of two levels: those of places that a token took. A dropless layer has T places an outer expert. */
static void inner_draws_are_finite(void **state) {
    (void)state;
    enum { EO = 2 };
    bench b;
    moe_layer_desc desc = contract_desc();
    float draw[EO * T];
    desc.router_type = "gshard_top2";
    desc.num_groups_outer = EO;
    bench_begin(&b, &desc);
    for (int i = 0; i < EO * T; ++i) draw[i] = 0.5f;
    b.draws.second_policy_inner = draw;
    must(b.ctx, bench_forward(&b));
    draw[0] = NAN; /* one of the two has a first token */
    draw[T] = NAN;
    refused(&b, MOE_ERR_NUMERIC, "moe_draws.second_policy_inner: place 0 of outer expert ");
    bench_end(&b);
}

/* -inf in the selection bias takes an expert out, and expert dropout gives back none but the others. */
static void experts_can_be_taken_out(void **state) {
    (void)state;
    for (int dropout = 0; dropout < 2; ++dropout) {
        bench b;
        moe_layer_desc desc = contract_desc();
        moe_param bias = {.size = sizeof bias};
        moe_routing_view view = {.size = sizeof view};
        desc.score_function = "sigmoid";
        desc.selection_bias = true;
        desc.expert_dropout = dropout ? 0.9f : 0;
        bench_begin(&b, &desc);
        must(b.ctx, moe_layer_param_by_name(b.layer, "gate.selection_bias", &bias));
        for (int e = 0; e < E - K; ++e) ((float *)bias.value)[e] = -INFINITY;
        must(b.ctx, bench_forward(&b));
        must(b.ctx, moe_layer_routing(b.layer, &view));
        for (int i = 0; i < T * K; ++i) assert_true(view.expert[i] >= E - K);
        ((float *)bias.value)[E - 1] = -INFINITY; /* and one for K: the other slot stays empty */
        must(b.ctx, bench_forward(&b));
        must(b.ctx, moe_layer_routing(b.layer, &view));
        for (int i = 0; i < T * K; ++i) assert_int_equal(view.expert[i], i % K ? -1 : E - K);
        bench_end(&b);
    }
}

static void draws_that_nobody_reads_are_refused(void **state) {
    (void)state;
    bench b;
    moe_layer_desc desc = contract_desc();
    uint8_t keep[T * K * 3];
    memset(keep, 1, sizeof keep);
    desc.expert_dropout = 0.3f;
    desc.dropout = 0.2f;
    bench_begin(&b, &desc);
    b.draws.expert_dropout = b.draw.data;
    b.draws.dropout_keep = keep;
    must(b.ctx, bench_forward(&b));
    b.call.replay_expert = b.expert;
    refused(&b, MOE_ERR_ARGUMENT, "moe_draws.expert_dropout");
    b.call.replay_expert = NULL;
    b.call.mode = MOE_INFER;
    refused(&b, MOE_ERR_ARGUMENT, "moe_draws.expert_dropout");
    b.draws.expert_dropout = NULL;
    refused(&b, MOE_ERR_ARGUMENT, "moe_draws.dropout_keep");
    b.draws.dropout_keep = NULL;
    b.call.loss_scale = 2;
    refused(&b, MOE_ERR_ARGUMENT, "moe_call.loss_scale");
    b.call.loss_scale = 0;
    must(b.ctx, bench_forward(&b));
    bench_end(&b);
}

static void second_draws_need_a_policy_that_draws(void **state) {
    (void)state;
    static const char *const policies[] = {"random", "sample", "all", "none", "threshold"};
    for (int i = 0; i < 5; ++i) {
        bench b;
        moe_layer_desc desc = contract_desc();
        desc.router_type = "gshard_top2";
        desc.second_policy_eval = policies[i];
        bench_begin(&b, &desc);
        for (int j = 0; j < T; ++j) ((float *)b.draw.data)[j] = 0.5f;
        b.draws.second_policy = b.draw.data;
        b.call.mode = MOE_INFER;
        if (i < 2)
            must(b.ctx, bench_forward(&b));
        else
            refused(&b, MOE_ERR_ARGUMENT, "moe_draws.second_policy");
        bench_end(&b);
    }
}

static void noise_needs_training(void **state) {
    (void)state;
    bench b;
    moe_layer_desc desc = contract_desc();
    desc.router_type = "noisy_top_k";
    bench_begin(&b, &desc);
    b.draws.noise = b.draw.data;
    must(b.ctx, bench_forward(&b));
    b.call.mode = MOE_INFER;
    refused(&b, MOE_ERR_ARGUMENT, "moe_draws.noise");
    bench_end(&b);
}

/* --- the end of a step --- */

static void counts_need_a_bias_that_moves(void **state) {
    (void)state;
    for (int i = 0; i < 2; ++i) {
        bench b;
        moe_layer_desc desc = contract_desc();
        int64_t counts[E] = {3, 1, 4, 1, 5, 9};
        desc.score_function = "sigmoid";
        desc.selection_bias = true;
        desc.selection_bias_update_rate = i ? 0.1f : 0;
        bench_begin(&b, &desc);
        assert_int_equal(moe_layer_end_step(b.layer, counts), i ? MOE_OK : MOE_ERR_ARGUMENT);
        if (!i) assert_non_null(strstr(moe_ctx_error(b.ctx), "counts"));
        counts[4] = -1;
        assert_int_equal(moe_layer_end_step(b.layer, counts), MOE_ERR_ARGUMENT);
        counts[4] = INT64_MAX / E + 1; /* the sums would overflow */
        assert_int_equal(moe_layer_end_step(b.layer, counts), MOE_ERR_ARGUMENT);
        counts[4] = INT64_MAX / E;
        assert_int_equal(moe_layer_end_step(b.layer, counts), i ? MOE_OK : MOE_ERR_ARGUMENT);
        if (i) assert_non_null(strstr(moe_ctx_error(b.ctx), "expert 4"));
        must(b.ctx, moe_layer_end_step(b.layer, NULL));
        bench_end(&b);
    }
}

/* A step that ends before the backward of its last forward leaves that gradient alone. */
static void the_global_loss_outlives_its_step(void **state) {
    (void)state;
    bench b;
    moe_layer_desc desc = contract_desc();
    desc.global_aux_loss_coeff = 10;
    bench_begin(&b, &desc);
    b.call.draws = NULL;
    moe_mat dy = test_random(MOE_F32, T, D, 3), early = test_output(MOE_F32, T, D);
    must(b.ctx, bench_forward(&b));
    must(b.ctx, moe_layer_backward(b.layer, b.x, dy, b.dx));
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    must(b.ctx, bench_forward(&b));
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    must(b.ctx, moe_layer_backward(b.layer, b.x, dy, early));
    assert_memory_equal(early.data, b.dx.data, test_bytes(early));
    free(dy.data), free(early.data);
    bench_end(&b);
}

/* --- defaults --- */

/* A complete descriptor names every choice, its default too. */
static void assert_all_named(const moe_layer_desc *desc) {
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i)
        if (row->type == MOE_OPT_CHOICE && !*(char *const *)(const void *)((const char *)desc + row->offset))
            fail_msg("%s is NULL", row->key);
}

/* A field left at 0 is its row's default, but for the two that the header names. */
static void zero_fields_are_the_defaults(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *plain = NULL, *told = NULL;
    moe_layer_desc desc = contract_desc(), spelt = contract_desc();
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        const bool given = strcmp(row->key, "moe.d_model") == 0 || strcmp(row->key, "moe.num_experts") == 0 ||
                           strcmp(row->key, "moe.expert_hidden_size") == 0;
        if (!given) assert_int_equal(moe_layer_desc_set(&spelt, row->key, row->initial, NULL), MOE_OK);
    }
    must(ctx, moe_layer_create(ctx, &desc, &plain));
    must(ctx, moe_layer_create(ctx, &spelt, &told));
    assert_same_settings(moe_layer_get_desc(plain), moe_layer_get_desc(told));
    assert_all_named(moe_layer_get_desc(plain));
    moe_layer_destroy(plain);
    moe_layer_destroy(told);
    moe_ctx_destroy(ctx);
}

/* Fills what has a use, is its own fixed point, and writes no more than the caller's struct holds. */
static void a_descriptor_is_filled(void **state) {
    (void)state;
    moe_layer_desc desc = contract_desc(), filled = {.size = sizeof filled}, again = {.size = sizeof again};
    moe_error error;
    desc.router_init = "normal_unit";
    assert_int_equal(moe_layer_desc_fill(&desc, &filled, &error), MOE_OK);
    assert_true(filled.init_std > 0.0199f && filled.init_std < 0.0201f && filled.output_size == desc.d_model);
    assert_int_equal(moe_layer_desc_fill(&filled, &again, &error), MOE_OK);
    assert_same_settings(&filled, &again);
    assert_all_named(&filled);
    desc.init_scheme = "lucid_uniform"; /* now nothing is drawn by a deviation */
    assert_int_equal(moe_layer_desc_fill(&desc, &filled, &error), MOE_OK);
    assert_true(filled.init_std == 0);
    desc.expert = "mine"; /* a registered one may draw as it likes */
    assert_int_equal(moe_layer_desc_fill(&desc, &filled, &error), MOE_OK);
    assert_true(filled.init_std > 0);
    desc.expert = NULL;
    desc.top_k = desc.num_experts + 1;
    assert_int_equal(moe_layer_desc_fill(&desc, &again, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "top_k"));
    assert_true(again.init_std > 0 && again.top_k <= again.num_experts);
    filled = (moe_layer_desc){.size = offsetof(moe_layer_desc, output_size)}; /* of an older caller */
    desc.top_k = 1;
    assert_int_equal(moe_layer_desc_fill(&desc, &filled, &error), MOE_OK);
    assert_true(filled.d_model == desc.d_model && filled.output_size == 0);
    filled.size = 0;
    assert_int_equal(moe_layer_desc_fill(&desc, &filled, &error), MOE_ERR_ARGUMENT);
}

/* One group is no limit, said in full or not. */
static void one_group_is_none(void **state) {
    (void)state;
    moe_layer_desc desc = contract_desc();
    desc.num_groups = 1;
    assert_int_equal(moe_layer_desc_check(&desc, NULL), MOE_OK);
    desc.group_top_k = 1;
    assert_int_equal(moe_layer_desc_check(&desc, NULL), MOE_OK);
    desc.group_top_k = 2;
    assert_int_equal(moe_layer_desc_check(&desc, NULL), MOE_ERR_ARGUMENT);
}

static void a_measure_is_checked_and_sized(void **state) {
    (void)state;
    bench b;
    moe_layer_desc desc = contract_desc();
    bench_begin(&b, &desc);
    struct {
        moe_layer_bytes bytes;
        size_t after;
    } out = {
        .bytes = {.size = offsetof(moe_layer_bytes, scratch), .scratch = 77},
          .after = 78
    };
    must(b.ctx, moe_layer_measure(b.layer, T, MOE_TRAIN, &out.bytes)); /* of an older caller */
    assert_true(out.bytes.params > 0 && out.bytes.scratch == 77);
    out.bytes.size = sizeof out; /* of a newer one */
    must(b.ctx, moe_layer_measure(b.layer, T, MOE_TRAIN, &out.bytes));
    assert_true(out.bytes.scratch > 77 && out.after == 0);
    out.bytes.size = 0;
    assert_int_equal(moe_layer_measure(b.layer, T, MOE_TRAIN, &out.bytes), MOE_ERR_ARGUMENT);
    out.bytes.size = sizeof out.bytes;
    assert_int_equal(moe_layer_measure(b.layer, -1, MOE_TRAIN, &out.bytes), MOE_ERR_ARGUMENT);
    bench_end(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_goes_back_as_it_came),
        cmocka_unit_test(sizes_beyond_memory_are_refused),
        cmocka_unit_test(strings_may_go),
        cmocka_unit_test(numbers_handed_in_are_finite),
        cmocka_unit_test(inner_draws_are_finite),
        cmocka_unit_test(experts_can_be_taken_out),
        cmocka_unit_test(draws_that_nobody_reads_are_refused),
        cmocka_unit_test(second_draws_need_a_policy_that_draws),
        cmocka_unit_test(noise_needs_training),
        cmocka_unit_test(counts_need_a_bias_that_moves),
        cmocka_unit_test(the_global_loss_outlives_its_step),
        cmocka_unit_test(zero_fields_are_the_defaults),
        cmocka_unit_test(a_descriptor_is_filled),
        cmocka_unit_test(one_group_is_none),
        cmocka_unit_test(a_measure_is_checked_and_sized),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
