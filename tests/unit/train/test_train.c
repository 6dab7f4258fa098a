/* test_train.c: whole runs of a tiny model: what they leave, how they go on, and how they fail.
 * Sittings end after any step, disks fill, checkpoints are cut or have a bit flipped; bits are compared.
 * Source: moekit/lm.h; docs/run-directory.md.
 */
#include "unit/train/train_fixture.h"

#include <fcntl.h>
#include <math.h>
#include <sys/file.h>

#define LAST "checkpoints/step-00000012"

static void same_run(void **state, const char *a, const char *b) {
    train_same_file(state, a, b, LAST "/model.safetensors");
    train_same_file(state, a, b, LAST "/optimizer.safetensors");
    train_same_file(state, a, b, LAST "/config.json");
    train_same_file(state, a, b, "load.bin");
    train_same_metrics(state, a, b);
}

static void test_run_directory(void **state) {
    train_result result = train_run(state, &(train_setup){.dir = "some/where/a"});
    train_must(&result);
    static const char *const files[] = {"run.json",
                                        "config.resolved.yaml",
                                        "metrics.jsonl",
                                        "load.bin",
                                        "main.log",
                                        "checkpoints/step-00000010/trainer.json",
                                        LAST "/config.json",
                                        LAST "/model.safetensors",
                                        LAST "/optimizer.safetensors",
                                        LAST "/trainer.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i) {
        char name[200];
        snprintf(name, sizeof name, "some/where/a/%s", files[i]);
        if (!train_exists(state, name)) fail_msg("%s is missing", name);
    }
    assert_false(train_exists(state, "some/where/a/checkpoints/step-00000005")); /* train.keep is 2 */
    char *checkpoints = scratch_path(state, "some/where/a/checkpoints"),
         *run = scratch_path(state, "some/where/a");
    assert_int_equal(scratch_count(checkpoints), 2);
    assert_int_equal(scratch_count(run), 6);
    char newest[1000];
    moe_error error;
    assert_ok(moe_lm_newest_checkpoint(run, newest, sizeof newest, &error), &error);
    assert_non_null(strstr(newest, "some/where/a/" LAST));
    assert_int_equal(result.n_steps, 12);
    assert_int_equal(result.n_evals, 3);
    assert_int_equal(result.n_checkpoints, 3);
    assert_int_equal(result.last.tokens, 12 * 3 * 2 * 12);
    free(checkpoints);
    free(run);
}

static void test_learns(void **state) {
    static const char *const longer[] = {"train.steps", "150", "train.batch_size", "16", "train.lr",
                                         "0.02",        NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = longer});
    train_must(&result);
    assert_true(fabs(result.first_loss - log(256)) < 0.3);
    assert_true(result.last.loss < 1.6);
    assert_true(result.last.eval_bits_per_byte < 3);
}

/* 12 steps at once, and in sittings that end after any step: the same files to the bit. */
static void test_resume_bits(void **state) {
    train_result whole = train_run(state, &(train_setup){.dir = "whole"});
    train_must(&whole);
    for (int64_t stop = 1; stop < 12; ++stop) {
        char dir[40];
        snprintf(dir, sizeof dir, "parts%d", (int)stop);
        train_result part = train_run(state, &(train_setup){.dir = dir, .stop_after = stop});
        train_must_fail(&part, MOE_ERR_INTERRUPTED, "stopped after step");
        part = train_run(state, &(train_setup){.dir = dir, .resume = true, .threads = 2});
        train_must(&part);
        assert_non_null(strstr(part.resumed, "resume "));
        assert_int_equal(part.n_steps, 12 - stop);
        assert_true(part.last.loss == whole.last.loss);
        assert_true(part.last.eval_bits_per_byte == whole.last.eval_bits_per_byte);
        same_run(state, "whole", dir);
    }
    train_result again = train_run(state, &(train_setup){.dir = "whole", .resume = true});
    train_must(&again); /* nothing is left to do */
    assert_int_equal(again.n_steps, 0);
}

/* bf16: the masters of a checkpoint make the resumed run that of one sitting, and a revived expert is rounded
 * from them too. */
static void test_bf16(void **state) {
    static const char *const pairs[] = {
        "model.dtype", "bf16", "train.alarm_dead_steps", "1", "train.alarm_action", "revive", NULL};
    train_result whole = train_run(state, &(train_setup){.dir = "whole", .pairs = pairs});
    train_must(&whole);
    assert_true(whole.last.loss < whole.first_loss);
    for (int64_t stop = 1; stop < 12; stop += 5) {
        char dir[40];
        snprintf(dir, sizeof dir, "parts%d", (int)stop);
        train_result part = train_run(state, &(train_setup){.dir = dir, .stop_after = stop, .pairs = pairs});
        train_must_fail(&part, MOE_ERR_INTERRUPTED, "stopped after step");
        part = train_run(state, &(train_setup){.dir = dir, .resume = true, .threads = 2, .pairs = pairs});
        train_must(&part);
        assert_true(part.last.loss == whole.last.loss);
        same_run(state, "whole", dir);
    }
}

/* Killed before its first checkpoint, or before it made anything at all. */
static void test_resume_from_nothing(void **state) {
    train_result whole = train_run(state, &(train_setup){.dir = "whole"});
    train_must(&whole);
    train_result part = train_run(state, &(train_setup){.dir = "b", .stop_after = 3});
    train_must_fail(&part, MOE_ERR_INTERRUPTED, "after step 3 of 12");
    char *checkpoints = scratch_path(state, "b/checkpoints");
    scratch_remove(checkpoints);
    free(checkpoints);
    part = train_run(state, &(train_setup){.dir = "b", .resume = true});
    train_must(&part);
    assert_int_equal(part.n_steps, 12);
    same_run(state, "whole", "b");
    assert_non_null(strstr(part.resumed, "no checkpoint yet, from the start"));
    part = train_run(state, &(train_setup){.dir = "c", .resume = true});
    train_must(&part);
    assert_non_null(strstr(part.resumed, "/c yet, from the start")); /* a mistyped name is seen */
    same_run(state, "whole", "c");
}

static void test_existing_directory(void **state) {
    train_result result = train_run(state, &(train_setup){.dir = "a", .stop_after = 2});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    size_t before, after;
    char *log = train_read(state, "a/main.log", &before);
    free(log);
    result = train_run(state, &(train_setup){.dir = "a"});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "a exists already, and a run is never overwritten");
    log = train_read(state, "a/main.log", &after);
    free(log);
    assert_int_equal(before, after);
    char *file = scratch_path(state, "file");
    scratch_put(file, "x", 1);
    result = train_run(state, &(train_setup){.dir = "file", .resume = true});
    train_must_fail(&result, MOE_ERR_IO, "file: cannot open the run directory");
    result = train_run(state, &(train_setup){.dir = "file/below"});
    train_must_fail(&result, MOE_ERR_IO, "file");
    free(file);
}

static void put(void **state, const char *name, const char *text) {
    char *path = scratch_path(state, name);
    scratch_put(path, text, strlen(text));
    free(path);
}

static void holds(void **state, const char *name, const char *text) {
    size_t bytes;
    char *found = train_read(state, name, &bytes);
    if (strcmp(found, text) != 0) fail_msg("%s holds \"%s\"", name, found);
    free(found);
}

/* A directory that is no run is somebody's: resuming there changes nothing. */
static void test_resume_in_a_foreign_directory(void **state) {
    static const char *const names[] = {"d/metrics.jsonl", "d/notes.tmp-12", "d/run.json"};
    char *dir = scratch_path(state, "d"), *checkpoint = scratch_path(state, "d/checkpoints");
    assert_int_equal(mkdir(dir, 0777), 0);
    for (size_t i = 0; i < 3; ++i) put(state, names[i], "mine");
    train_result result = train_run(state, &(train_setup){.dir = "d", .resume = true});
    train_must_fail(&result, MOE_ERR_INPUT, "config.resolved.yaml");
    for (size_t i = 0; i < 3; ++i) holds(state, names[i], "mine");
    assert_false(train_exists(state, "d/main.log"));
    assert_false(train_exists(state, "d/checkpoints"));
    free(checkpoint);
    free(dir);
}

/* What a writer killed before the settings were there leaves is ours; other people's files are not. */
static void test_sweep_keeps_what_is_not_ours(void **state) {
    char *dir = scratch_path(state, "d");
    assert_int_equal(mkdir(dir, 0777), 0);
    put(state, "d/run.json", "{}");
    put(state, "d/config.resolved.yaml.tmp-4194305", "half");
    train_result result = train_run(state, &(train_setup){.dir = "d", .resume = true, .stop_after = 5});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    assert_false(train_exists(state, "d/config.resolved.yaml.tmp-4194305"));
    put(state, "d/notes.tmp-4194305", "mine");
    put(state, "d/checkpoints/notes.old-4194305", "mine");
    put(state, "d/run.json.tmp-4194305", "half");
    put(state, "d/checkpoints/step-00000009.tmp-4194305", "half");
    result = train_run(state, &(train_setup){.dir = "d", .resume = true});
    train_must(&result);
    holds(state, "d/notes.tmp-4194305", "mine");
    holds(state, "d/checkpoints/notes.old-4194305", "mine");
    assert_false(train_exists(state, "d/run.json.tmp-4194305"));
    assert_false(train_exists(state, "d/checkpoints/step-00000009.tmp-4194305"));
    free(dir);
}

/* json cannot hold a command that is not UTF-8: nothing settles, and nothing is left. */
static void test_nothing_settled_nothing_left(void **state) {
    train_result result = train_run(state, &(train_setup){.dir = "d", .command = "train \xff"});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "UTF-8");
    assert_false(train_exists(state, "d"));
    result = train_run(state, &(train_setup){.dir = "d/"});
    train_must(&result);
    assert_true(train_exists(state, "d/" LAST));
}

static void test_move_old(void **state) {
    train_result result = train_run(state, &(train_setup){.dir = "d", .stop_after = 2});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    static const char *const no_text[] = {"data.train", "/nonexistent", NULL};
    result = train_run(state, &(train_setup){.dir = "d/", .move_old = true, .pairs = no_text});
    train_must_fail(&result, MOE_ERR_INPUT, "data.train");
    assert_false(train_exists(state, "d.1")); /* not before the texts are there */
    char *path = scratch_path(state, "d");
    int other = open(path, O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(other, LOCK_EX | LOCK_NB), 0);
    result = train_run(state, &(train_setup){.dir = "d", .move_old = true});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "another process is training in it");
    assert_false(train_exists(state, "d.1"));
    close(other);
    free(path);
    result = train_run(state, &(train_setup){.dir = "d/", .move_old = true});
    train_must(&result);
    assert_true(train_exists(state, "d.1/main.log") && train_exists(state, "d/" LAST));
    result = train_run(state, &(train_setup){.dir = "d", .move_old = true, .resume = true});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "resume");
}

/* Other instructions round otherwise: refused, unless that is accepted in so many words. */
static void test_resume_under_another_isa(void **state) {
    static const char *const accepted[] = {"run.resume_any_isa", "true", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "d", .stop_after = 5, .isa = "ref"});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    result = train_run(state, &(train_setup){.dir = "d", .resume = true});
    if (result.status == MOE_OK) skip(); /* a machine that has ref only */
    train_must_fail(&result, MOE_ERR_ARGUMENT, "MOEKIT_ISA=ref");
    assert_non_null(strstr(result.text, "run.resume_any_isa"));
    result = train_run(state, &(train_setup){.dir = "d", .resume = true, .isa = "ref", .stop_after = 6});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    result = train_run(state, &(train_setup){.dir = "d", .resume = true, .pairs = accepted});
    train_must(&result);
}

/* One bit of the file's last number. */
static void flip_bit(const char *path) {
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -1, SEEK_END), 0);
    const int last = fgetc(file);
    assert_int_equal(fseek(file, -1, SEEK_END), 0);
    assert_int_equal(fputc(last ^ 1, file), last ^ 1);
    assert_int_equal(fclose(file), 0);
}

/* Only a fingerprint tells a flipped bit. Without one, as older runs have it, the number is taken as it is.
 */
static void test_flipped_bit_is_told(void **state) {
    static const char *const only[] = {"train.keep", "1", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "d", .pairs = only});
    train_must(&result);
    char *dir = scratch_path(state, "d/" LAST),
         *tensors = scratch_path(state, "d/" LAST "/model.safetensors");
    char *json = scratch_path(state, "d/" LAST "/trainer.json");
    moe_ctx *ctx;
    moe_lm *lm;
    moe_error error;
    assert_ok(moe_ctx_create(NULL, &ctx, &error), &error);
    flip_bit(tensors);
    assert_int_equal(moe_lm_load(ctx, dir, &lm), MOE_ERR_INPUT);
    assert_non_null(strstr(moe_ctx_error(ctx), LAST "/model.safetensors: damaged or changed"));
    assert_int_equal(remove(json), 0);
    assert_int_equal(moe_lm_load(ctx, dir, &lm), MOE_OK);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(dir);
    free(tensors);
    free(json);
}

static void cut(const char *path) {
    assert_int_equal(truncate(path, 100), 0);
}

/* The newest checkpoint is cut or has a bit flipped: the one before it serves, and the warning names both. */
static void test_newest_checkpoint_damaged(void **state) {
    static const struct {
        void (*damage)(const char *path);
        const char *file;
    } cases[] = {
        {cut,      "optimizer.safetensors"},
        {flip_bit, "optimizer.safetensors"},
        {flip_bit, "model.safetensors"    }
    };
    train_result whole = train_run(state, &(train_setup){.dir = "whole"});
    train_must(&whole);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        char dir[20], name[100];
        snprintf(dir, sizeof dir, "d%zu", i);
        train_result result = train_run(state, &(train_setup){.dir = dir});
        train_must(&result);
        snprintf(name, sizeof name, "%s/" LAST "/%s", dir, cases[i].file);
        char *path = scratch_path(state, name);
        cases[i].damage(path);
        free(path);
        result = train_run(state, &(train_setup){.dir = dir, .resume = true});
        train_must(&result);
        assert_int_equal(result.n_steps, 2);
        assert_non_null(strstr(result.warning, "step-00000012"));
        assert_non_null(strstr(result.warning, "step-00000010"));
        assert_non_null(strstr(result.warning, cases[i].file));
        snprintf(name, sizeof name, "%s/" LAST ".damaged/trainer.json", dir);
        assert_true(train_exists(state, name));
        same_run(state, "whole", dir);
    }
}

static void test_changed_settings(void **state) {
    static const char *const free_keys[] = {"train.keep", "1", "run.threads", "2", NULL};
    static const struct {
        const char *pairs[3], *words;
    } cases[] = {
        {{"train.lr", "0.02"},            "train.lr is '0.02' now and was '0.01'"},
        {{"moe.aux_loss_coeff", "0.125"}, "moe.aux_loss_coeff is '0.125' now"    },
        {{"train.steps", "20"},           "train.steps is '20' now and was '12'" },
        {{"data.eval", ""},               "data.eval is '' now"                  },
    };
    train_result result = train_run(state, &(train_setup){.dir = "a", .stop_after = 6});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        result = train_run(state, &(train_setup){.dir = "a", .resume = true, .pairs = cases[i].pairs});
        train_must_fail(&result, MOE_ERR_ARGUMENT, cases[i].words);
    }
    result = train_run(state, &(train_setup){.dir = "a", .resume = true, .seed = 8});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "train.seed is 7, but the context was made with seed 8");
    result = train_run(state, &(train_setup){.dir = "a", .resume = true, .pairs = free_keys});
    train_must(&result);
    char *checkpoints = scratch_path(state, "a/checkpoints");
    assert_int_equal(scratch_count(checkpoints), 1);
    free(checkpoints);
}

static void test_changed_text(void **state) {
    char *other = scratch_path(state, "other.txt");
    const char *const pairs[] = {"data.train", other, NULL};
    free(train_text(state, "other.txt", TEXT_BYTES, 3));
    train_result result = train_run(state, &(train_setup){.dir = "a", .stop_after = 6, .pairs = pairs});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    free(train_text(state, "other.txt", TEXT_BYTES, 4));
    result = train_run(state, &(train_setup){.dir = "a", .resume = true, .pairs = pairs});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "data.train has changed since");
    free(other);
}

static void test_bad_texts(void **state) {
    static const struct {
        const char *text, *words;
        size_t bytes;
    } cases[] = {
        {"missing.txt", "No such file or directory",               0 },
        {"empty.txt",   "is empty",                                0 },
        {"short.txt",   "has 12 bytes, but one sequence takes 13", 12},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        char *path = scratch_path(state, cases[i].text);
        const char *const pairs[] = {"data.train", path, NULL};
        if (i > 0) scratch_put(path, "twelve bytes", cases[i].bytes);
        train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = pairs});
        train_must_fail(&result, MOE_ERR_INPUT, cases[i].words);
        assert_non_null(strstr(result.text, "data.train: "));
        assert_false(train_exists(state, "a")); /* nothing is begun */
        free(path);
    }
    static const char *const unset[] = {"data.train", "", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = unset});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "data.train is not set");
}

static void test_numbers_run_away(void **state) {
    static const char *const wild[] = {
        "train.lr",         "1000", "train.clip", "0", "train.warmup_steps", "0", "train.save_every", "1",
        "train.eval_every", "0",    NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = wild});
    train_must_fail(&result, MOE_ERR_NUMERIC, "or set train.clip");
    /* the last good step is kept, and holds numbers */
    char newest[1000], *dir = scratch_path(state, "a");
    moe_error error;
    assert_ok(moe_lm_newest_checkpoint(dir, newest, sizeof newest, &error), &error);
    char step[40];
    snprintf(step, sizeof step, "step-%08d", (int)result.last.step);
    assert_non_null(strstr(newest, step));
    free(dir);
}

/* The disk fills up while step 10 is saved: told as such, step 5 stays, and the run goes on later. */
static void test_full_disk(void **state) {
    train_result whole = train_run(state, &(train_setup){.dir = "whole"});
    train_must(&whole);
    train_result result = train_run(state, &(train_setup){.dir = "a", .disk_full_after = 10});
    train_must_fail(&result, MOE_ERR_IO, "File too large");
    assert_non_null(strstr(result.text, "step-00000010"));
    assert_non_null(strstr(result.text, "; no step after 5 is saved. Make room, then resume "));
    assert_int_equal(result.last.step, 10);
    char *checkpoints = scratch_path(state, "a/checkpoints");
    assert_int_equal(scratch_count(checkpoints), 1);
    free(checkpoints);
    result = train_run(state, &(train_setup){.dir = "a", .resume = true});
    train_must(&result);
    assert_int_equal(result.n_steps, 7);
    same_run(state, "whole", "a");
}

static void test_damaged_checkpoint(void **state) {
    static const char *const files[] = {"trainer.json", "optimizer.safetensors", "model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i) {
        char dir[20], name[100];
        snprintf(dir, sizeof dir, "run%zu", i);
        train_result result = train_run(state, &(train_setup){.dir = dir, .stop_after = 5});
        train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
        snprintf(name, sizeof name, "%s/checkpoints/step-00000005/%s", dir, files[i]);
        char *path = scratch_path(state, name);
        assert_int_equal(truncate(path, 100), 0);
        free(path);
        result = train_run(state, &(train_setup){.dir = dir, .resume = true});
        train_must_fail(&result, MOE_ERR_INPUT, files[i]);
    }
}

static void test_dense_model(void **state) {
    static const char *const dense[] = {
        "moe_layer_freq", "0", "moe.input_jitter_eps", "0", "moe.capacity_factor", "0", NULL};
    train_result whole = train_run(state, &(train_setup){.dir = "a", .pairs = dense});
    train_must(&whole);
    assert_int_equal(whole.last.n_dead, 0);
    train_result part = train_run(state, &(train_setup){.dir = "b", .pairs = dense, .stop_after = 7});
    train_must_fail(&part, MOE_ERR_INTERRUPTED, "");
    part = train_run(state, &(train_setup){.dir = "b", .pairs = dense, .resume = true});
    train_must(&part);
    same_run(state, "a", "b");
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_run_directory),
        IN_SCRATCH(test_learns),
        IN_SCRATCH(test_resume_bits),
        IN_SCRATCH(test_resume_from_nothing),
        IN_SCRATCH(test_existing_directory),
        IN_SCRATCH(test_changed_settings),
        IN_SCRATCH(test_changed_text),
        IN_SCRATCH(test_bad_texts),
        IN_SCRATCH(test_numbers_run_away),
        IN_SCRATCH(test_full_disk),
        IN_SCRATCH(test_damaged_checkpoint),
        IN_SCRATCH(test_dense_model),
        IN_SCRATCH(test_bf16),
        IN_SCRATCH(test_resume_in_a_foreign_directory),
        IN_SCRATCH(test_sweep_keeps_what_is_not_ours),
        IN_SCRATCH(test_nothing_settled_nothing_left),
        IN_SCRATCH(test_move_old),
        IN_SCRATCH(test_resume_under_another_isa),
        IN_SCRATCH(test_newest_checkpoint_damaged),
        IN_SCRATCH(test_flipped_bit_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
