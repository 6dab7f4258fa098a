/* test_begin.c: runs that begin with the parameters of a checkpoint (train.from).
 * Shapes as in train_fixture.h.
 * Source: docs/run-directory.md.
 */
#include "unit/train/train_fixture.h"

#include <moekit/quant.h>

#define LAST "checkpoints/step-00000012"

/* A run begun with another's checkpoint has its parameters before the first step, in its own type, and none
 * of its moments; killed before its first checkpoint it begins so again. */
static void test_begins_with_a_checkpoint(void **state) {
    train_result first = train_run(state, &(train_setup){.dir = "first"});
    train_must(&first);
    char *from = scratch_path(state, "first/" LAST);
    const char *const pairs[] = {"train.from", from, NULL};
    train_result more = train_run(state, &(train_setup){.dir = "more", .pairs = pairs});
    train_must(&more);
    assert_null(strstr(more.warning, "another layer"));
    assert_true(more.first_loss < first.first_loss - 0.1);
    size_t bytes;
    char *facts = train_read(state, "more/run.json", &bytes);
    assert_non_null(strstr(facts, "\"train.from\""));
    assert_non_null(strstr(facts, LAST "/model.safetensors\""));
    free(facts);
    train_result part = train_run(state, &(train_setup){.dir = "part", .pairs = pairs, .stop_after = 3});
    train_must_fail(&part, MOE_ERR_INTERRUPTED, "stopped after step");
    assert_true(part.first_loss == more.first_loss);
    char *checkpoints = scratch_path(state, "part/checkpoints");
    scratch_remove(checkpoints);
    free(checkpoints);
    part = train_run(state, &(train_setup){.dir = "part", .resume = true}); /* the run knows with which */
    train_must(&part);
    train_same_file(state, "more", "part", LAST "/model.safetensors");
    train_same_file(state, "more", "part", LAST "/optimizer.safetensors");

    const char *const moved[] = {"train.from", from, NULL};
    part = train_run(state, &(train_setup){.dir = "first", .pairs = moved, .move_old = true});
    train_must_fail(&part, MOE_ERR_ARGUMENT, "which move_old would move");

    /* Masters of bf16 are the numbers of the checkpoint too: a rate of almost nothing changes no parameter.
     */
    const char *const still[] = {"train.from", from, "model.dtype", "bf16", "train.lr", "1e-12", NULL};
    train_result narrow = train_run(state, &(train_setup){.dir = "narrow", .pairs = still});
    train_must(&narrow);
    const char *const again[] = {"train.from", from,          "model.dtype", "bf16", "train.lr",
                                 "1e-12",      "train.steps", "1",           NULL};
    train_result once = train_run(state, &(train_setup){.dir = "once", .pairs = again});
    train_must(&once);
    assert_true(once.last.loss == narrow.first_loss);
    assert_true(narrow.last.loss < first.first_loss - 0.1);
    free(from);
}

/* Another model is refused, another layer that the parameters fit is told, and nothing is left behind. */
static void test_begins_with_what_it_is(void **state) {
    train_result first = train_run(state, &(train_setup){.dir = "first"});
    train_must(&first);
    char *from = scratch_path(state, "first/" LAST);
    const char *const heads[] = {"train.from", from, "model.rope_base", "500", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "b", .pairs = heads});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "model.rope_base 10000, which is 500 here");
    const char *const normed[] = {"train.from", from, "model.qk_norm", "head", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = normed});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "model.qk_norm none, which is head here");
    const char *const fewer[] = {"train.from", from, "moe.num_experts", "3", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = fewer});
    train_must_fail(&result, MOE_ERR_INPUT, "and the model here wants");
    const char *const nowhere[] = {"train.from", "/nowhere", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = nowhere});
    train_must_fail(&result, MOE_ERR_INPUT, "/nowhere/config.json");
    assert_false(train_exists(state, "b"));
    const char *const other[] = {"train.from", from, "moe.aux_loss_coeff", "0.05", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = other});
    train_must(&result);
    assert_non_null(strstr(result.warning, "moe.aux_loss_coeff 0.01 there, 0.05 here"));
    free(from);
}

/* A checkpoint in Mixtral's form, whose layout in the file is not the model's: layers that its parameters do
 * not fit are refused, what it lacks is drawn as for any new model. */
static void test_mixtral_begins_another_layer(void **state) {
    static const char *const mixtral[] = {"moe.capacity_factor", "0", "moe.input_jitter_eps", "0", NULL};
    train_result first = train_run(state, &(train_setup){.dir = "first", .pairs = mixtral});
    train_must(&first);
    size_t bytes;
    char *config = train_read(state, "first/" LAST "/config.json", &bytes);
    assert_non_null(strstr(config, "\"mixtral\""));
    free(config);
    char *from = scratch_path(state, "first/" LAST);
    static const char *const refused[][2] = {
        {"moe.activation",  "relu"},
        {"moe.latent_size", "8"   }
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; ++i) {
        const char *const pairs[] = {"train.from", from, refused[i][0], refused[i][1], NULL};
        train_result result = train_run(state, &(train_setup){.dir = "b", .pairs = pairs});
        train_must_fail(&result, MOE_ERR_INPUT, "and the model here wants");
    }
    const char *const shared[] = {"train.from", from, "moe.num_shared_experts", "1", "model.n_kv_heads",
                                  "0",          NULL};
    train_result result = train_run(state, &(train_setup){.dir = "b", .pairs = shared});
    train_must(&result);
    assert_non_null(strstr(result.warning, "ffn.shared"));
    char *log = train_read(state, "b/main.log", &bytes);
    assert_non_null(strstr(log, "ffn.shared"));
    free(log);
    assert_non_null(strstr(result.warning, "moe.num_shared_experts 0 there, 1 here"));
    free(from);
}

/* Set by hand on a model: all of it is taken or nothing; what is not there stays. */
static void test_init_from(void **state) {
    train_result first = train_run(state, &(train_setup){.dir = "first"});
    train_must(&first);
    char *from = scratch_path(state, "first/" LAST);
    moe_ctx *ctx;
    moe_error error;
    moe_lm *lm, *saved;
    assert_ok(moe_ctx_create(NULL, &ctx, &error), &error);
    moe_lm_config *config = train_config(state, NULL);
    assert_int_equal(moe_lm_create(ctx, config, &lm), MOE_OK);
    assert_int_equal(moe_lm_load(ctx, from, &saved), MOE_OK);
    assert_int_equal(moe_lm_init_from(lm, from), MOE_OK);
    assert_int_equal(moe_lm_param_count(lm), moe_lm_param_count(saved));
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param a = {.size = sizeof a}, b = {.size = sizeof b};
        assert_int_equal(moe_lm_param(lm, i, &a), MOE_OK);
        assert_int_equal(moe_lm_param(saved, i, &b), MOE_OK);
        size_t n = moe_dtype_bytes(a.dtype);
        for (int32_t d = 0; d < a.n_dim; ++d) n *= (size_t)a.dim[d];
        assert_memory_equal(a.value, b.value, n);
    }
    assert_int_equal(moe_lm_init_from(lm, "/nowhere"), MOE_ERR_INPUT);
    const moe_quant_desc quant = {.size = sizeof quant, .format = "int8", .drop_weights = true};
    assert_int_equal(moe_layer_quantize(moe_lm_layer(saved, 1), &quant), MOE_OK);
    assert_int_equal(moe_lm_init_from(saved, from), MOE_ERR_STATE);
    assert_non_null(strstr(moe_ctx_error(ctx), "given blocks.1."));
    assert_int_equal(moe_lm_init_from(lm, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_lm_init_from(NULL, from), MOE_ERR_ARGUMENT);
    moe_lm_destroy(saved);
    moe_lm_destroy(lm);
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
    free(from);
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_begins_with_a_checkpoint),
        IN_SCRATCH(test_begins_with_what_it_is),
        IN_SCRATCH(test_mixtral_begins_another_layer),
        IN_SCRATCH(test_init_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
