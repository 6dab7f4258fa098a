/* test_tokens.c: training on tokens of a tokenizer: windows are those of its tokens, bits are over the bytes
 * that these stand for, every checkpoint has the tokenizer, and a run goes on with the one it began with. A
 * tiny run with tests/golden/tokenizer/qwen.json. Source: docs/run-directory.md. */
#include "unit/train/train_fixture.h"

#include "format/file.h"
#include "format/json.h"
#include "model/model.h"
#include "report/run.h"
#include "train/data.h"
#include "train/score.h"
#include "train/tokens.h"

#include <math.h>
#include <sys/stat.h>

#define TOKENIZER "tests/golden/tokenizer/qwen.json"
#define OTHER     "tests/golden/tokenizer/neox.json"

static const char *const with_tokens[] = {"data.tokenizer", TOKENIZER, "model.vocab_size", "1024", NULL};

static moe_tokenizer *load(const char *path) {
    moe_tokenizer *tokenizer;
    moe_error error;
    assert_ok(moe_tokenizer_load(path, &tokenizer, &error), &error);
    return tokenizer;
}

static char *newest(void **state, const char *run) {
    char *dir = scratch_path(state, run), *path = calloc(1, 4096);
    moe_error error;
    assert_ok(moe_lm_newest_checkpoint(dir, path, 4096, &error), &error);
    free(dir);
    return path;
}

static void windows_are_of_tokens(void **state) {
    enum { LENGTH = 9 };
    moe_tokenizer *tokenizer = load(TOKENIZER);
    char *path = train_text(state, "t.txt", 600, 3), *bytes;
    size_t count;
    moelm_text text;
    moe_error error;
    moe_token_list all = {0};
    assert_ok(moelm_text_open(path, "data.train", 2, &text, &error), &error);
    const moelm_reader reader = {.tokenizer = tokenizer, .least_tokens = LENGTH + 1};
    assert_ok(moelm_text_tokenize(&text, &reader, "data.train", &error), &error);
    assert_ok(moelm_file_read(path, 1, 10000, &bytes, &count, &error), &error);
    assert_ok(moe_tokenizer_encode(tokenizer, bytes, count, 0, &all, &error), &error);
    assert_int_equal(text.n_tokens, all.count);
    assert_int_equal(text.n_bytes, count);
    assert_true(all.count < count);
    bool seen[2] = {false, false};
    for (uint64_t draw = 0; draw < 5000; ++draw) {
        int32_t tokens[LENGTH], targets[LENGTH];
        moelm_text_window(&text, 5, draw, 0, LENGTH, tokens, targets);
        size_t start = 0;
        while (start + LENGTH < all.count && memcmp(tokens, all.ids + start, sizeof tokens) != 0) ++start;
        assert_true(start + LENGTH < all.count);
        seen[0] |= start == 0;
        bool last = memcmp(targets, all.ids + all.count - LENGTH, sizeof targets) == 0;
        seen[1] |= last;
        assert_int_equal(targets[0], tokens[1]);
    }
    assert_true(seen[0] && seen[1]);
    moelm_text_close(&text);
    moe_token_list_free(&all);
    moe_tokenizer_destroy(tokenizer);
    free(bytes);
    free(path);
}

/* Cut within a character, the whole one before is the last. */
static void a_text_is_cut_between_characters(void **state) {
    moe_tokenizer *tokenizer = load(TOKENIZER);
    char *path = scratch_path(state, "u.txt");
    moelm_text text;
    moe_error error;
    scratch_put(path, "ab\xE8\xB5\xB7\xE5\x88\x9D", 8);
    for (int64_t most = 2; most <= 9; ++most) {
        const moelm_reader reader = {.tokenizer = tokenizer, .most_bytes = most};
        assert_ok(moelm_text_open(path, "t", 2, &text, &error), &error);
        assert_ok(moelm_text_tokenize(&text, &reader, "t", &error), &error);
        assert_int_equal(text.n_bytes, most < 5 ? 2 : most < 8 ? 5 : 8);
        moelm_text_close(&text);
    }
    scratch_put(path, "\xE2\x82\xAC\xE2\x82\xAC", 6);
    const moelm_reader half = {.tokenizer = tokenizer, .most_bytes = 2};
    assert_ok(moelm_text_open(path, "t", 2, &text, &error), &error);
    assert_fails(moelm_text_tokenize(&text, &half, "t", &error), MOE_ERR_INPUT, &error,
                 "no whole character in the text's first 2 bytes");
    moelm_text_close(&text);
    const moelm_reader many = {.tokenizer = tokenizer, .least_tokens = 100};
    assert_ok(moelm_text_open(path, "t", 2, &text, &error), &error);
    assert_fails(moelm_text_tokenize(&text, &many, "data.train", &error), MOE_ERR_INPUT, &error,
                 "but one sequence takes 100");
    moelm_text_close(&text);
    moe_tokenizer_destroy(tokenizer);
    free(path);
}

/* The report shows nats of a token as bits of a byte of the text that was learned. */
static void check_report(void **state, double loss, const moe_tokenizer *tokenizer) {
    char *dir = scratch_path(state, "run"), *path = scratch_path(state, "train.txt"), *bytes;
    size_t count;
    moelm_run run;
    moe_error error;
    moe_token_list ids = {0};
    assert_ok(moelm_run_read(dir, &run, &error), &error);
    assert_ok(moelm_file_read(path, 1, 10000, &bytes, &count, &error), &error);
    assert_ok(moe_tokenizer_encode(tokenizer, bytes, count, 0, &ids, &error), &error);
    const double shown = run.metrics.run[MOELM_LOSS][run.metrics.n_points - 1].mean;
    assert_true(fabs(shown - loss / log(2) * (double)ids.count / (double)count) < 1e-4);
    moelm_run_free(&run);
    moe_token_list_free(&ids);
    free(bytes);
    free(path);
    free(dir);
}

/* The figure of training is that of the checkpoint, computed here from the tokens. */
static void bits_are_over_bytes(void **state) {
    const train_setup setup = {.dir = "run", .pairs = with_tokens};
    train_result result = train_run(state, &setup);
    if (result.status != MOE_OK) fail_msg("%s", result.text);
    char *checkpoint = newest(state, "run"), *path = scratch_path(state, "eval.txt"), *bytes;
    size_t count;
    moe_ctx *ctx;
    moe_lm *lm;
    moe_error error;
    moe_token_list ids = {0};
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1};
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    assert_int_equal(moe_lm_load(ctx, checkpoint, &lm), MOE_OK);
    moe_tokenizer *tokenizer = load(checkpoint);
    assert_ok(moelm_file_read(path, 1, 10000, &bytes, &count, &error), &error);
    assert_ok(moe_tokenizer_encode(tokenizer, bytes, 200, 0, &ids, &error), &error);
    const moelm_reading reading = {.ids = ids.ids, .n = (int64_t)ids.count};
    double bits;
    assert_int_equal(moelm_score(lm, &reading, 16, NULL, &bits), MOE_OK);
    assert_true(fabs(bits / 200 - result.last.eval_bits_per_byte) < 1e-9);
    assert_true(result.last.eval_bits_per_byte < 10.0 * (double)ids.count / 200);
    check_report(state, result.last.loss, tokenizer);
    moe_token_list_free(&ids);
    moe_tokenizer_destroy(tokenizer);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(bytes);
    free(path);
    free(checkpoint);
}

/* Interrupted and resumed, a run has the parameters of one that was not; its tokenizer need not be where it
 * was. */
static void a_run_keeps_its_tokenizer(void **state) {
    char *moved = scratch_path(state, "moved.json"), *data;
    size_t count;
    moe_error error;
    assert_ok(moelm_file_read(TOKENIZER, 1, 1 << 20, &data, &count, &error), &error);
    scratch_put(moved, data, count);
    const char *const pairs[] = {"data.tokenizer", moved, "model.vocab_size", "1024", NULL};
    train_setup setup = {.dir = "whole", .pairs = pairs};
    assert_int_equal(train_run(state, &setup).status, MOE_OK);
    setup.dir = "broken";
    setup.stop_after = 7;
    assert_int_equal(train_run(state, &setup).status, MOE_ERR_INTERRUPTED);
    setup.stop_after = 0;
    setup.resume = true;
    char *other;
    size_t other_count;
    assert_ok(moelm_file_read(OTHER, 1, 1 << 20, &other, &other_count, &error), &error);
    scratch_put(moved, other, other_count);
    train_result result = train_run(state, &setup);
    assert_int_equal(result.status, MOE_ERR_ARGUMENT);
    assert_non_null(strstr(result.text, "is not the tokenizer that the run began with"));
    assert_int_equal(unlink(moved), 0);
    result = train_run(state, &setup);
    if (result.status != MOE_OK) fail_msg("%s", result.text);
    char *a = newest(state, "whole"), *b = newest(state, "broken"), *model, *kept;
    size_t bytes;
    char name[5000];
    snprintf(name, sizeof name, "%s/model.safetensors", a);
    assert_ok(moelm_file_read(name, 1, 1 << 26, &model, &bytes, &error), &error);
    snprintf(name, sizeof name, "%s/model.safetensors", b);
    assert_file_holds(name, model, bytes);
    snprintf(name, sizeof name, "%s/tokenizer.json", b);
    assert_file_holds(name, data, count);
    snprintf(name, sizeof name, "%s/tokenizer_config.json", b);
    assert_ok(moelm_file_read(name, 1, 1 << 20, &kept, &bytes, &error), &error);
    assert_non_null(strstr(kept, "PreTrainedTokenizerFast"));
    free(kept);
    free(model);
    free(a);
    free(b);
    free(data);
    free(other);
    free(moved);
}

static bool holds(void **state, const char *name, const char *words) {
    size_t bytes;
    char *text = train_read(state, name, &bytes);
    const bool found = strstr(text, words) != NULL;
    free(text);
    return found;
}

static bool warned_of_tokenizer(void **state, const char *log) {
    return holds(state, log, "warning: data.tokenizer: ") && holds(state, log, " is not the tokenizer of ");
}

/* A run that begins with a checkpoint has its tokenizer; another one of as many tokens is told. */
static void a_checkpoint_brings_its_tokenizer(void **state) {
    const train_setup first = {.dir = "first", .pairs = with_tokens};
    assert_int_equal(train_run(state, &first).status, MOE_OK);
    char *from = newest(state, "first");
    const char *const pairs[] = {"train.from", from, "model.vocab_size", "1024", NULL};
    const train_setup second = {.dir = "second", .pairs = pairs};
    train_result result = train_run(state, &second);
    if (result.status != MOE_OK) fail_msg("%s", result.text);
    char *to = newest(state, "second");
    assert_true(moelm_tokens_there(to));
    const char *const same[] = {"train.from", from, "data.tokenizer", TOKENIZER, "model.vocab_size",
                                "1024",       NULL};
    const char *const other[] = {"train.from", from, "data.tokenizer", OTHER, "model.vocab_size",
                                 "1024",       NULL};
    const train_setup third = {.dir = "same", .pairs = same}, fourth = {.dir = "other", .pairs = other};
    assert_int_equal(train_run(state, &third).status, MOE_OK);
    assert_int_equal(train_run(state, &fourth).status, MOE_OK);
    char recorded[4200]; /* whose tokenizer it is */
    snprintf(recorded, sizeof recorded, "\"key\": \"data.tokenizer\",\n      \"path\": \"%s\"", from);
    assert_true(holds(state, "second/run.json", recorded));
    assert_false(warned_of_tokenizer(state, "second/main.log"));
    assert_false(warned_of_tokenizer(state, "same/main.log"));
    assert_true(warned_of_tokenizer(state, "other/main.log"));
    free(from);
    free(to);
}

static void put(void **state, const char *name, const char *text) {
    char *path = scratch_path(state, name);
    scratch_put(path, text, strlen(text));
    free(path);
}

/* The end of a text is kept, whoever names it, as are the files beside a tokenizer.json that is named itself.
 */
static void the_files_beside_it_are_kept(void **state) {
    char *file = scratch_path(state, "tokenizer.json"), *kept = scratch_path(state, "kept"), *data;
    char *template = scratch_path(state, "kept/chat_template.jinja");
    size_t bytes;
    const int32_t *eos;
    moe_error error;
    moelm_tokens tokens;
    moe_tokenizer *tokenizer;
    assert_ok(moelm_file_read(TOKENIZER, 1, 1 << 20, &data, &bytes, &error), &error);
    scratch_put(file, data, bytes);
    put(state, "config.json", "{\"eos_token_id\": 5}");
    put(state, "chat_template.jinja", ""); /* nothing, which is a template too */
    assert_int_equal(mkdir(kept, 0755), 0);
    assert_ok(moelm_tokens_open(file, "data.tokenizer", &tokens, &error), &error);
    assert_ok(moelm_tokens_write(&tokens, kept, &error), &error);
    assert_true(moelm_file_exists(template));
    assert_ok(moe_tokenizer_load(kept, &tokenizer, &error), &error);
    assert_int_equal(moe_tokenizer_eos(tokenizer, &eos), 1);
    assert_int_equal(eos[0], 5);
    moe_tokenizer_destroy(tokenizer);
    moelm_tokens_close(&tokens);
    free(template);
    free(data);
    free(kept);
    free(file);
}

static void what_does_not_fit_is_refused(void **state) {
    const char *const small[] = {"data.tokenizer", TOKENIZER, NULL};
    const char *const none[] = {"model.vocab_size", "1024", NULL};
    const char *const absent[] = {"data.tokenizer", "/nonexistent", NULL};
    const struct {
        const char *const *pairs;
        moe_status status;
        const char *words;
    } rows[] = {
        {small,  MOE_ERR_ARGUMENT, "set 904 or more"                 },
        {none,   MOE_ERR_ARGUMENT, "data.tokenizer names a tokenizer"},
        {absent, MOE_ERR_INPUT,    "data.tokenizer: /nonexistent"    }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; ++i) {
        const train_setup setup = {.dir = "refused", .pairs = rows[i].pairs};
        train_result result = train_run(state, &setup);
        assert_int_equal(result.status, rows[i].status);
        if (!strstr(result.text, rows[i].words)) fail_msg("\"%s\" lacks \"%s\"", result.text, rows[i].words);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(windows_are_of_tokens, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(a_text_is_cut_between_characters, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(bits_are_over_bytes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(a_run_keeps_its_tokenizer, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(a_checkpoint_brings_its_tokenizer, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(the_files_beside_it_are_kept, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(what_does_not_fit_is_refused, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
