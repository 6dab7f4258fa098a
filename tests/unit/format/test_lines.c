/* test_lines.c: a file of lines holds whole lines only, after a crash, a full disk and a resume.
 * The writer is a child that is killed, or has a limit on the size of its files.
 * Source: format/lines.h.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/file.h"
#include "format/lines.h"

#include <inttypes.h>
#include <sys/wait.h>
#include <time.h>

static void append_all(const char *path, const char *const *texts, size_t count) {
    moelm_lines *lines;
    moe_error error;
    assert_ok(moelm_lines_open(path, NULL, NULL, &lines, &error), &error);
    for (size_t i = 0; i < count; i++) assert_ok(moelm_lines_append(lines, texts[i], &error), &error);
    assert_ok(moelm_lines_sync(lines, &error), &error);
    moelm_lines_close(lines);
}

static void test_appends(void **state) {
    char *path = scratch_path(state, "m.jsonl");
    append_all(path, (const char *const[]){"{\"a\":1}", ""}, 2);
    append_all(path, (const char *const[]){"{\"a\":2}"}, 1);
    assert_file_holds(path, "{\"a\":1}\n\n{\"a\":2}\n", 17);
    moelm_lines_close(NULL);
    free(path);
}

static void test_torn_line_is_cut(void **state) {
    char *path = scratch_path(state, "m.jsonl");
    scratch_put(path, "one\ntwo\nthr", 11);
    append_all(path, (const char *const[]){"three"}, 1);
    assert_file_holds(path, "one\ntwo\nthree\n", 14);
    scratch_put(path, "nothing whole", 13);
    append_all(path, NULL, 0);
    assert_file_holds(path, "", 0);
    free(path);
}

static bool is_step_to_keep(void *user, const char *line, size_t length) {
    return length == 1 && line[0] <= *(const char *)user;
}

static void test_resume_cuts_later_steps(void **state) {
    char *path = scratch_path(state, "m.jsonl"), last = '3';
    scratch_put(path, "1\n2\n3\n4\n1\n", 10);
    moelm_lines *lines;
    moe_error error;
    assert_ok(moelm_lines_open(path, is_step_to_keep, &last, &lines, &error), &error);
    assert_ok(moelm_lines_append(lines, "again", &error), &error);
    moelm_lines_close(lines);
    assert_file_holds(path, "1\n2\n3\nagain\n", 12);
    free(path);
}

static void test_refuses(void **state) {
    char *path = scratch_path(state, "m.jsonl"), *below = scratch_path(state, "m.jsonl/x");
    moelm_lines *lines = NULL;
    moe_error error;
    assert_ok(moelm_lines_open(path, NULL, NULL, &lines, &error), &error);
    assert_fails(moelm_lines_append(lines, "a\nb", &error), MOE_ERR_ARGUMENT, &error, "newline");
    moelm_lines_close(lines);
    assert_file_holds(path, "", 0);
    assert_fails(moelm_lines_open(below, NULL, NULL, &lines, &error), MOE_ERR_IO, &error, "Not a directory");
    assert_fails(moelm_lines_open(*state, NULL, NULL, &lines, &error), MOE_ERR_IO, &error, "directory");
    free(path);
    free(below);
}

static void test_disk_full(void **state) {
    char *path = scratch_path(state, "m.jsonl");
    moelm_lines *lines;
    moe_error error;
    assert_ok(moelm_lines_open(path, NULL, NULL, &lines, &error), &error);
    assert_ok(moelm_lines_append(lines, "first", &error), &error);
    scratch_disk_full(10); /* room for half of the next line */
    moe_status status = moelm_lines_append(lines, "second", &error);
    scratch_disk_normal();
    assert_int_equal(status, MOE_ERR_IO);
    assert_non_null(strstr(error.text, "File too large"));
    assert_file_holds(path, "first\n", 6);
    assert_ok(moelm_lines_append(lines, "third", &error), &error);
    assert_file_holds(path, "first\nthird\n", 12);
    moelm_lines_close(lines);
    free(path);
}

static void append_forever(const char *path) {
    moelm_lines *lines;
    if (moelm_lines_open(path, NULL, NULL, &lines, NULL) != MOE_OK) _exit(1);
    for (uint64_t i = 0;; i++) {
        char text[600];
        snprintf(text, sizeof text, "%" PRIu64 " %0*d", i, (int)(i % 500) + 1, 0);
        if (moelm_lines_append(lines, text, NULL) != MOE_OK) _exit(2);
    }
}

/* Numbers of the lines count up from 0, and every line has the length its number asks for. */
static void check_lines(const char *path) {
    moelm_file_map map;
    moe_error error;
    assert_ok(moelm_file_map_open(path, &map, &error), &error);
    const char *at = (const char *)map.data, *end = at + map.bytes;
    for (uint64_t i = 0; at < end; i++) {
        char text[600];
        int length = snprintf(text, sizeof text, "%" PRIu64 " %0*d\n", i, (int)(i % 500) + 1, 0);
        assert_true(end - at >= length);
        assert_memory_equal(at, text, (size_t)length);
        at += length;
    }
    moelm_file_map_close(&map);
}

static void test_kill(void **state) {
    char *path = scratch_path(state, "m.jsonl");
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %" PRIu64 "\n", seed);
    for (int round = 0; round < 20; round++) {
        unlink(path);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) append_forever(path);
        usleep((useconds_t)(scratch_random(&seed) % 5000));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        append_all(path, NULL, 0);
        check_lines(path);
    }
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_appends, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_torn_line_is_cut, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_resume_cuts_later_steps, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refuses, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_disk_full, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_kill, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
