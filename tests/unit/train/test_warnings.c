/* test_warnings.c: what training says of settings that may mislead, and what it does when its directory is
 * taken from under it. Source: docs/run-directory.md.
 */
#include "unit/train/train_fixture.h"

static void expect_in_log(void **state, const char *dir, const char *words, bool there) {
    char name[60];
    size_t bytes;
    snprintf(name, sizeof name, "%s/main.log", dir);
    char *log = train_read(state, name, &bytes);
    if (!strstr(log, words) == there)
        fail_msg("%s: \"%s\" %s", name, words, there ? "is missing" : "is said");
    free(log);
}

static void test_warnings_are_kept(void **state) {
    static const char *const plain[] = {"moe.capacity_factor", "0", NULL};
    static const char *const warm[] = {"train.warmup_steps", "24", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a"}); /* with a capacity */
    train_must(&result);
    assert_non_null(strstr(result.warning, "moe.drop_policy probs: a full expert keeps"));
    expect_in_log(state, "a", "warning: moe.drop_policy probs", true);
    expect_in_log(state, "a", "warmup", false);
    result = train_run(state, &(train_setup){.dir = "b", .pairs = plain});
    train_must(&result);
    assert_string_equal(result.warning, "");
    expect_in_log(state, "b", "warning", false);
    result = train_run(state, &(train_setup){.dir = "c", .pairs = warm});
    train_must(&result);
    expect_in_log(state, "c",
                  "warning: train.warmup_steps is 24 and train.steps 12: the learning rate rises to 50 %",
                  true);
}

/* A text is bytes, and what was trained can be evaluated. */
static void test_other_vocabularies(void **state) {
    static const char *const sizes[] = {"255", "257"};
    for (size_t i = 0; i < 2; ++i) {
        const char *const pairs[] = {"model.vocab_size", sizes[i], NULL};
        train_result result = train_run(state, &(train_setup){.dir = "d", .pairs = pairs});
        train_must_fail(&result, MOE_ERR_ARGUMENT, "a text is bytes, of which there are 256");
        assert_false(train_exists(state, "d"));
    }
}

/* What no machine has is refused before any of it is asked for. */
static void test_no_such_memory(void **state) {
    static const char *const huge[] = {"train.batch_size",
                                       "16000000",
                                       "model.context",
                                       "64",
                                       "train.length",
                                       "64",
                                       "model.n_layers",
                                       "64",
                                       NULL};
    train_result result = train_run(state, &(train_setup){.dir = "d", .pairs = huge}); /* hundreds of TiB */
    train_must_fail(&result, MOE_ERR_MEMORY, "train.batch_size: training on 16000000 sequences of 64 tokens");
    assert_false(train_exists(state, "d"));
}

/* Nor what evaluation alone would take: a window of the whole context, where the text is as long. */
static void test_no_such_memory_to_evaluate(void **state) {
    char *text = scratch_path(state, "long.txt");
    scratch_put(text, "a", 1);
    assert_int_equal(truncate(text, 4 << 20), 0);
    const char *const far[] = {"data.eval",
                               text,
                               "model.context",
                               "4194304",
                               "train.eval_bytes",
                               "0",
                               "train.batch_size",
                               "1",
                               "model.n_layers",
                               "512",
                               NULL};
    train_result result = train_run(state, &(train_setup){.dir = "d", .pairs = far}); /* tens of TiB */
    train_must_fail(&result, MOE_ERR_MEMORY,
                    "data.eval: training, and evaluating 1 sequences of 4194303 tokens at once");
    assert_false(train_exists(state, "d"));
    const char *const near[] = {"data.eval",
                                text,
                                "model.context",
                                "4194304",
                                "train.eval_bytes",
                                "50",
                                "train.steps",
                                "1",
                                "train.batch_size",
                                "1",
                                NULL}; /* of so few bytes windows are short */
    result = train_run(state, &(train_setup){.dir = "d", .pairs = near});
    train_must(&result);
    free(text);
}

typedef struct thief {
    char *from, *to;
} thief;

/* After step 6 the directory is another's. */
static void steal(void *user, const moe_lm_progress *now) {
    const thief *t = user;
    if (now->step != 6 || now->event || access(t->to, F_OK) == 0) return;
    assert_int_equal(rename(t->from, t->to), 0);
    assert_int_equal(mkdir(t->from, 0777), 0);
}

static void test_renamed_while_it_trains(void **state) {
    thief t = {scratch_path(state, "d"), scratch_path(state, "moved")};
    moe_ctx *ctx;
    moe_error error;
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1, .seed = 7};
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    moe_lm_config *config = train_config(state, NULL);
    const moe_lm_train_options options = {
        .size = sizeof options, .run_dir = t.from, .on_progress = steal, .user = &t};
    assert_int_equal(moe_lm_train(ctx, config, &options), MOE_ERR_IO);
    assert_non_null(strstr(moe_ctx_error(ctx), "renamed or removed"));
    assert_true(train_exists(state, "moved/checkpoints/step-00000005"));
    assert_false(train_exists(state, "d/checkpoints"));
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
    /* and it goes on from where it lies now */
    train_result result = train_run(state, &(train_setup){.dir = "moved", .resume = true});
    train_must(&result);
    free(t.from);
    free(t.to);
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_warnings_are_kept),       IN_SCRATCH(test_other_vocabularies),
        IN_SCRATCH(test_no_such_memory),          IN_SCRATCH(test_no_such_memory_to_evaluate),
        IN_SCRATCH(test_renamed_while_it_trains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
