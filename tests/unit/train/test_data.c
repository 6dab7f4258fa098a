/* test_data.c: text files as tokens: fingerprints, windows, refusals.
 * A file of 1000 bytes in windows of 37; hashes against those that are published.
 * Source: FIPS 180-4, its examples.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "train/data.h"

enum { BYTES = 1000, LENGTH = 37 };

/* The examples of FIPS 180-4, and lengths on both sides of every padding boundary against each other. */
static void test_sha256(void **state) {
    (void)state;
    char text[MOELM_SHA256_TEXT];
    moelm_sha256("", 0, text);
    assert_string_equal(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    moelm_sha256("abc", 3, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    moelm_sha256(two_blocks, strlen(two_blocks), text);
    assert_string_equal(text, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    moelm_sha256(million, 1000000, text);
    assert_string_equal(text, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

static void open_random(void **state, moelm_text *text, unsigned char *bytes) {
    char *path = scratch_path(state, "t.txt");
    moe_error error;
    scratch_fill(bytes, BYTES, 11);
    scratch_put(path, bytes, BYTES);
    assert_ok(moelm_text_open(path, "data.train", LENGTH + 1, text, &error), &error);
    free(path);
}

/* Targets follow tokens by one byte; the draw depends on seed, step and index and on nothing else. */
static void test_windows(void **state) {
    unsigned char bytes[BYTES];
    moelm_text text;
    open_random(state, &text, bytes);
    bool first_start = false, last_start = false;
    for (uint64_t draw = 0; draw < 20000; ++draw) {
        int32_t tokens[LENGTH], targets[LENGTH];
        moelm_text_window(&text, 5, draw / 8, draw % 8, LENGTH, tokens, targets);
        int64_t start = -1;
        for (int64_t s = 0; s + LENGTH < BYTES && start < 0; ++s) {
            int64_t i = 0;
            while (i < LENGTH && tokens[i] == bytes[s + i] && targets[i] == bytes[s + i + 1]) i++;
            if (i == LENGTH) start = s;
        }
        assert_true(start >= 0);
        first_start |= start == 0;
        last_start |= start == BYTES - LENGTH - 1;
    }
    assert_true(first_start && last_start);
    moelm_text_close(&text);
}

static void test_draws_are_stateless(void **state) {
    unsigned char bytes[BYTES];
    moelm_text text;
    open_random(state, &text, bytes);
    int32_t a[LENGTH], b[LENGTH], targets[LENGTH];
    int same_seed = 0, other_seed = 0, other_step = 0, other_index = 0;
    for (uint64_t step = 100; step > 0; --step) {
        moelm_text_window(&text, 5, step, 3, LENGTH, a, targets);
        moelm_text_window(&text, 5, step, 3, LENGTH, b, targets);
        same_seed += memcmp(a, b, sizeof a) == 0;
        moelm_text_window(&text, 6, step, 3, LENGTH, b, targets);
        other_seed += memcmp(a, b, sizeof a) == 0;
        moelm_text_window(&text, 5, step + 1, 3, LENGTH, b, targets);
        other_step += memcmp(a, b, sizeof a) == 0;
        moelm_text_window(&text, 5, step, 4, LENGTH, b, targets);
        other_index += memcmp(a, b, sizeof a) == 0;
    }
    assert_int_equal(same_seed, 100);
    assert_true(other_seed < 3 && other_step < 3 && other_index < 3);
    moelm_text_close(&text);
}

static void test_refusals(void **state) {
    char *path = scratch_path(state, "t.txt");
    moelm_text text = {0};
    moe_error error;
    assert_fails(moelm_text_open("", "data.train", 1, &text, &error), MOE_ERR_ARGUMENT, &error,
                 "data.train is not set");
    assert_fails(moelm_text_open(path, "data.train", 1, &text, &error), MOE_ERR_INPUT, &error,
                 "No such file");
    assert_non_null(strstr(error.text, "data.train: "));
    scratch_put(path, "", 0);
    assert_fails(moelm_text_open(path, "data.train", 1, &text, &error), MOE_ERR_INPUT, &error, "is empty");
    scratch_put(path, "abc", 3);
    assert_fails(moelm_text_open(path, "data.train", 4, &text, &error), MOE_ERR_INPUT, &error,
                 "has 3 bytes, but one sequence takes 4");
    assert_ok(moelm_text_open(path, "data.train", 3, &text, &error), &error);
    int32_t tokens[2], targets[2];
    moelm_text_window(&text, 1, 1, 0, 2, tokens, targets); /* the only window there is */
    assert_int_equal(tokens[0], 'a');
    assert_int_equal(targets[1], 'c');
    moelm_text_close(&text);
    assert_fails(moelm_text_open(*state, "data.eval", 1, &text, &error), MOE_ERR_INPUT, &error,
                 "is a directory");
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),
        cmocka_unit_test_setup_teardown(test_windows, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_draws_are_stateless, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refusals, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
