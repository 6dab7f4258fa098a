/* test_company.c: whether a token's neighbours have a say in inference is as moe_layer_company says.
 * y of T tokens in one call and of each alone: the same bits where it says nothing, others where it names
 * a reason. Source: the promise of moekit/moe.h; the list of routers is that of route/names.h.
 */
#include "support/layer_fixture.h"

enum { T = 24, D = 16, MODELS = 8 };

/* How many of T tokens are others alone than in company, of the layer drawn by this seed. */
static int count_others(moe_layer_desc desc, uint64_t seed) {
    const moe_ctx_desc ctx_desc = {.size = sizeof ctx_desc, .n_threads = 2, .seed = test_seed() + seed};
    moe_ctx *ctx = NULL;
    moe_error error;
    if (moe_ctx_create(&ctx_desc, &ctx, &error) != MOE_OK) fail_msg("context: %s", error.text);
    moe_layer *layer = test_layer(ctx, &desc, T);
    const moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    const moe_mat one = test_output(MOE_F32, 1, D);
    int32_t id[T];
    for (int32_t t = 0; t < T; ++t) id[t] = 3 * t + 1;
    moe_call call = {.size = sizeof call, .mode = MOE_INFER};
    const bool hashes = strcmp(moe_layer_get_desc(layer)->router_type, "hash") == 0;
    int others = 0;
    if (hashes) call.token_id = id;
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    for (int64_t t = 0; t < T; ++t) {
        const moe_mat row = {.data = (float *)x.data + t * D, .rows = 1, .cols = D};
        if (hashes) call.token_id = id + t;
        must(ctx, moe_layer_forward(layer, row, one, &call, NULL));
        others += memcmp(one.data, (float *)y.data + t * D, D * sizeof(float)) != 0;
    }
    free(x.data);
    free(y.data);
    free(one.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return others;
}

static const char *said_of(moe_layer_desc desc) {
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_layer *layer = test_layer(ctx, &desc, 1);
    const char *said = moe_layer_company(layer); /* words of the library's own */
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return said;
}

static const moe_layer_desc plain = {
    .size = sizeof plain, .d_model = D, .num_experts = 8, .top_k = 2, .expert_hidden_size = 12};

static void test_what_is_said_is_so(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        const char *pairs[6], *said; /* NULL: nothing */
    } cases[] = {
        {{NULL}, NULL},
        {{"router_type", "noisy_top_k"}, NULL},
        {{"router_type", "quantile"}, NULL},
        {{"router_type", "sinkhorn", "top_k", "1"}, NULL},
        {{"router_type", "hash"}, NULL},
        {{"router_type", "gshard_top2"}, NULL},
        {{"token_rounding", "4"}, NULL},
        {{"num_shared_experts", "1"}, NULL},
        {{"capacity_factor", "0.5", "capacity_factor_eval", "-1"}, NULL},
        {{"router_type", "gshard_top2", "second_policy_eval", "random"}, "second choice is drawn"},
        {{"router_type", "expert_choice"}, "where in the batch"},
        {{"router_type", "balanced"}, "where in the batch"},
        {{"router_type", "random"}, "where in the batch"},
        {{"capacity_factor", "0.5"}, "capacity"},
        {{"capacity_factor", "0.5", "drop_policy", "position"}, "capacity"},
        {{"capacity_factor_eval", "0.5"}, "capacity"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_layer_desc desc = plain;
        moe_error error = {0};
        for (const char *const *p = cases[i].pairs; *p; p += 2)
            if (moe_layer_desc_set(&desc, p[0], p[1], &error) != MOE_OK)
                fail_msg("case %zu: %s", i, error.text);
        const char *said = said_of(desc), *name = cases[i].pairs[0] ? cases[i].pairs[1] : "plain";
        if ((said != NULL) != (cases[i].said != NULL) || (said && !strstr(said, cases[i].said)))
            fail_msg("case %zu, %s: it is said: %s", i, name, said ? said : "nothing");
        int others = 0; /* of one layer it may not happen to show */
        for (uint64_t m = 0; m < MODELS && (others == 0 || !said); ++m) others += count_others(desc, m);
        if ((said != NULL) != (others > 0))
            fail_msg("case %zu, %s: %d tokens are others alone", i, name, others);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_is_said_is_so)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
