/* test_begin.c: runs that begin with the parameters of a checkpoint (train.from).
 * Shapes as in train_fixture.h.
 * Source: docs/run-directory.md.
 */
#include "unit/train/train_fixture.h"

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
    assert_null(strstr(more.warning, "train.from"));
    assert_true(more.first_loss < first.first_loss - 0.1);
    train_result part = train_run(state, &(train_setup){.dir = "part", .pairs = pairs, .stop_after = 3});
    train_must_fail(&part, MOE_ERR_INTERRUPTED, "stopped after step");
    assert_true(part.first_loss == more.first_loss);
    char *checkpoints = scratch_path(state, "part/checkpoints");
    scratch_remove(checkpoints);
    free(checkpoints);
    part = train_run(state, &(train_setup){.dir = "part", .pairs = pairs, .resume = true});
    train_must(&part);
    train_same_file(state, "more", "part", LAST "/model.safetensors");
    train_same_file(state, "more", "part", LAST "/optimizer.safetensors");

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
    train_must_fail(&result, MOE_ERR_ARGUMENT, "model.rope_base 10000, but it is 500 here");
    const char *const fewer[] = {"train.from", from, "moe.num_experts", "3", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = fewer});
    train_must_fail(&result, MOE_ERR_INPUT, "tensor");
    const char *const nowhere[] = {"train.from", "/nowhere", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = nowhere});
    train_must_fail(&result, MOE_ERR_INPUT, "/nowhere/config.json");
    assert_false(train_exists(state, "b"));
    const char *const other[] = {"train.from", from, "moe.aux_loss_coeff", "0.05", NULL};
    result = train_run(state, &(train_setup){.dir = "b", .pairs = other});
    train_must(&result);
    assert_non_null(strstr(result.warning, "moe.aux_loss_coeff 0.05, not 0.01"));
    free(from);
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_begins_with_a_checkpoint),
        IN_SCRATCH(test_begins_with_what_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
