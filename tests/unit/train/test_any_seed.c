/* test_any_seed.c: a checkpoint is its model whole: under another seed than the run's it gives the run's
 * figure. Held-out bits per byte of the last step against those of the last checkpoint, by every router.
 * Source: docs/architecture.md, law 4.
 */
#include "unit/train/train_fixture.h"

static double eval_of(void **state, uint64_t seed) {
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1, .seed = seed};
    const moe_lm_eval_options options = {.size = sizeof options, .max_bytes = 200};
    moe_lm_eval_result result = {.size = sizeof result};
    char *checkpoint = scratch_path(state, "run/checkpoints/step-00000004"),
         *text = scratch_path(state, "eval.txt");
    moe_ctx *ctx;
    moe_error error;
    moe_lm *lm = NULL;
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    if (moe_lm_load(ctx, checkpoint, &lm) != MOE_OK || moe_lm_eval(lm, text, &options, &result) != MOE_OK)
        fail_msg("%s", moe_ctx_error(ctx));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(checkpoint), free(text);
    return result.bits_per_byte;
}

static void test_every_router(void **state) {
    /* clang-format off */
    static const char *const cases[][5] = {
        {"top_k"}, {"gshard_top2"}, {"noisy_top_k"}, {"quantile"}, {"hash"}, {"random"}, {"balanced"},
        {"sinkhorn", "moe.top_k", "1"},
        {"expert_choice", "moe.capacity_factor", "0"},
        {"gshard_top2", "moe.second_policy_eval", "random"},
        {"gshard_top2", "moe.second_policy_eval", "sample"},
        {"random", "moe.force_bias_std", "1"},
        {"balanced", "moe.fake_noise", "0.5"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        const char *pairs[17] = {"train.steps",    "4",   "train.save_every", "4",
                                 "model.init_std", "0.3", "moe.router_type"};
        memcpy(pairs + 7, cases[i], sizeof cases[i]);
        train_result run = train_run(state, &(train_setup){.dir = "run", .pairs = pairs, .move_old = i > 0});
        train_must(&run);
        const double bits = eval_of(state, 8); /* the run's is 7 */
        if (bits != run.last.eval_bits_per_byte)
            fail_msg("case %zu, %s %s: %.17g of the checkpoint, %.17g of the run", i, cases[i][0],
                     cases[i][1] ? cases[i][1] : "", bits, run.last.eval_bits_per_byte);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_router, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
