/* test_file.c: files are read with clear refusals and replaced whole or not at all.
 * Full and read-only disks are made in ways that work for root and for everybody else.
 * Source: format/file.h.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/file.h"

#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/wait.h>

static const size_t any_size = (size_t)1 << 30;

static void test_read_back(void **state) {
    char *path = scratch_path(state, "a.bin");
    unsigned char wrote[5000];
    scratch_fill(wrote, sizeof wrote, 1);
    moe_error error;
    assert_ok(moelm_file_write(path, wrote, sizeof wrote, &error), &error);
    char *data;
    size_t bytes;
    assert_ok(moelm_file_read(path, 1, any_size, &data, &bytes, &error), &error);
    assert_int_equal(bytes, sizeof wrote);
    assert_memory_equal(data, wrote, sizeof wrote);
    assert_int_equal(data[bytes], '\0');
    free(data);
    moelm_file_map map;
    assert_ok(moelm_file_map_open(path, &map, &error), &error);
    assert_int_equal(map.bytes, sizeof wrote);
    assert_memory_equal(map.data, wrote, sizeof wrote);
    moelm_file_map_close(&map);
    assert_int_equal(scratch_count(*state), 1); /* no temporary file stays */
    free(path);
}

static void test_read_refuses(void **state) {
    char *path = scratch_path(state, "a.txt"), *fifo = scratch_path(state, "fifo");
    char *data = NULL;
    size_t bytes;
    moe_error error;
    assert_fails(moelm_file_read(path, 1, any_size, &data, &bytes, &error), MOE_ERR_INPUT, &error,
                 "No such file");
    assert_non_null(strstr(error.text, path));
    scratch_put(path, "", 0);
    assert_fails(moelm_file_read(path, 1, any_size, &data, &bytes, &error), MOE_ERR_INPUT, &error,
                 "is empty");
    scratch_put(path, "12345", 5);
    assert_fails(moelm_file_read(path, 1, 4, &data, &bytes, &error), MOE_ERR_INPUT, &error,
                 "5 bytes, at most 4");
    assert_fails(moelm_file_read(path, 6, 9, &data, &bytes, &error), MOE_ERR_INPUT, &error,
                 "5 bytes, at least 6");
    assert_fails(moelm_file_read(*state, 1, any_size, &data, &bytes, &error), MOE_ERR_INPUT, &error,
                 "is a directory");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_fails(moelm_file_read(fifo, 1, any_size, &data, &bytes, &error), MOE_ERR_INPUT, &error, "pipe");
    moelm_file_map map;
    assert_fails(moelm_file_map_open(*state, &map, &error), MOE_ERR_INPUT, &error, "is a directory");
    assert_null(data);
    assert_int_equal(moelm_file_read(path, 1, 4, &data, &bytes, NULL), MOE_ERR_INPUT);
    free(path);
    free(fifo);
}

static void test_empty_file(void **state) {
    char *path = scratch_path(state, "empty");
    char *data;
    size_t bytes = 9;
    moe_error error;
    assert_ok(moelm_file_write(path, "", 0, &error), &error);
    assert_ok(moelm_file_read(path, 0, any_size, &data, &bytes, &error), &error);
    assert_int_equal(bytes, 0);
    free(data);
    moelm_file_map map;
    assert_ok(moelm_file_map_open(path, &map, &error), &error);
    assert_int_equal(map.bytes, 0);
    assert_non_null(map.data);
    moelm_file_map_close(&map);
    free(path);
}

static void test_abort_keeps_the_old(void **state) {
    char *path = scratch_path(state, "a.txt");
    moe_error error;
    moelm_file_writer *writer;
    scratch_put(path, "old", 3);
    assert_ok(moelm_file_writer_open(path, 0, &writer, &error), &error);
    assert_ok(moelm_file_writer_put(writer, "new bytes", 9, &error), &error);
    assert_file_holds(path, "old", 3);
    moelm_file_writer_abort(writer);
    assert_file_holds(path, "old", 3);
    assert_int_equal(scratch_count(*state), 1);
    moelm_file_writer_abort(NULL);
    free(path);
}

static void test_disk_full(void **state) {
    char *path = scratch_path(state, "a.bin");
    static unsigned char big[100000];
    moe_error error;
    scratch_fill(big, sizeof big, 2);
    scratch_put(path, "old", 3);
    scratch_disk_full(40000);
    moe_status status = moelm_file_write(path, big, sizeof big, &error);
    scratch_disk_normal();
    assert_int_equal(status, MOE_ERR_IO);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, "after 40000 bytes: File too large; 100000 bytes are needed"));
    assert_file_holds(path, "old", 3);
    assert_int_equal(scratch_count(*state), 1);
    assert_ok(moelm_file_write(path, big, sizeof big, &error), &error);
    assert_file_holds(path, big, sizeof big);
    free(path);
}

static void test_device_full(void **state) {
    (void)state;
    moe_error error;
    if (access("/dev/full", W_OK) != 0) skip();
    assert_fails(moelm_file_write("/dev/full", "abc", 3, &error), MOE_ERR_IO, &error,
                 "/dev/full: writing failed after 0 bytes: No space left on device; 3 bytes are needed");
    assert_ok(moelm_file_write("/dev/null", "abc", 3, &error), &error);
    struct stat info;
    assert_int_equal(stat("/dev/null", &info), 0);
    assert_true(S_ISCHR(info.st_mode)); /* written to, not replaced */
}

static bool put_proc(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    bool wrote = file && fputs(text, file) >= 0;
    return file && fclose(file) == 0 && wrote;
}

/* A mount table of its own for this process; who is not root becomes root of a user namespace first. */
static bool make_own_mounts(void) {
    char users[40], groups[40];
    bool root = geteuid() == 0;
    snprintf(users, sizeof users, "0 %u 1", (unsigned)geteuid());
    snprintf(groups, sizeof groups, "0 %u 1", (unsigned)getegid());
    if (unshare(root ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0) return false;
    if (!root && !(put_proc("/proc/self/setgroups", "deny") && put_proc("/proc/self/uid_map", users) &&
                   put_proc("/proc/self/gid_map", groups)))
        return false;
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

/* Run in a child: 0 good, 77 not possible here, else the step that failed. */
static int use_small_disk(const char *dir) {
    char path[1000], data[4096];
    moe_error error;
    moelm_file_writer *writer;
    if (!make_own_mounts()) return 77;
    if (mount("tmpfs", dir, "tmpfs", 0, "size=64k") != 0) return 77;
    snprintf(path, sizeof path, "%s/a.bin", dir);
    scratch_fill(data, sizeof data, 3);
    if (moelm_file_writer_open(path, 1 << 20, &writer, &error) != MOE_ERR_IO) return 1;
    if (!strstr(error.text, "1048576 bytes are needed, its file system has 65536 free")) return 2;
    if (moelm_file_writer_open(path, 0, &writer, &error) != MOE_OK) return 3;
    moe_status status = MOE_OK;
    for (int i = 0; i < 100 && status == MOE_OK; i++)
        status = moelm_file_writer_put(writer, data, sizeof data, &error);
    moelm_file_writer_abort(writer);
    if (status != MOE_ERR_IO || !strstr(error.text, "No space left on device")) return 4;
    return moelm_file_exists(path) ? 5 : 0;
}

static void test_small_file_system(void **state) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(use_small_disk(*state));
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("skipped: a small file system cannot be mounted here\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A path below a regular file refuses everybody; permissions would not stop root. */
static void test_cannot_write_there(void **state) {
    char *file = scratch_path(state, "file"), *below = scratch_path(state, "file/a.txt");
    char *missing = scratch_path(state, "no/such/dir/a.txt");
    moe_error error;
    scratch_put(file, "x", 1);
    assert_fails(moelm_file_write(below, "abc", 3, &error), MOE_ERR_IO, &error, "Not a directory");
    assert_non_null(strstr(error.text, below));
    assert_fails(moelm_file_write(missing, "abc", 3, &error), MOE_ERR_IO, &error, "No such file");
    assert_fails(moelm_file_write(*state, "abc", 3, &error), MOE_ERR_IO, &error, "is a directory");
    assert_fails(moelm_dir_make(below, &error), MOE_ERR_IO, &error, "Not a directory");
    assert_fails(moelm_dir_make(file, &error), MOE_ERR_IO, &error, "Not a directory");
    free(file);
    free(below);
    free(missing);
}

static void test_make_dirs(void **state) {
    char *path = scratch_path(state, "a//b/c/");
    moe_error error;
    assert_false(moelm_dir_exists(path));
    assert_ok(moelm_dir_make(path, &error), &error);
    assert_true(moelm_dir_exists(path));
    assert_ok(moelm_dir_make(path, &error), &error);
    assert_ok(moelm_dir_make("/", &error), &error);
    assert_ok(moelm_dir_make(".", &error), &error);
    free(path);
}

static void test_space(void **state) {
    char *path = scratch_path(state, "not/there/yet");
    moe_error error;
    assert_ok(moelm_file_check_space(path, 1, &error), &error);
    assert_fails(moelm_file_check_space(path, UINT64_MAX, &error), MOE_ERR_IO, &error,
                 "18446744073709551615 bytes are needed");
    assert_ok(moelm_file_check_space("", 1, &error), &error);
    free(path);
}

static void test_paths(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"a",    "."},
        {"a/b",  "a"},
        {"a/b/", "a"},
        {"/a",   "/"},
        {"/",    "/"},
        {"a//b", "a"},
        {"",     "."},
        {"//a",  "/"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *parent = moelm_path_parent(rows[i][0]);
        assert_string_equal(parent, rows[i][1]);
        free(parent);
    }
    char *joined = moelm_path_join("a", "b"), *slashed = moelm_path_join("a/", "b"),
         *bare = moelm_path_join("", "b");
    assert_string_equal(joined, "a/b");
    assert_string_equal(slashed, "a/b");
    assert_string_equal(bare, "b");
    free(joined);
    free(slashed);
    free(bare);
}

static void test_one_place(void **state) {
    char *a = scratch_path(state, "a"), *b = scratch_path(state, "b"), *again = scratch_path(state, "./a");
    scratch_put(b, "b", 1);
    assert_true(moelm_path_same(a, again)); /* nothing is there yet */
    assert_false(moelm_path_same(a, b));
    assert_int_equal(symlink(b, a), 0);
    assert_true(moelm_path_same(a, b));
    assert_true(moelm_path_same(*state, *state));
    assert_false(moelm_path_same("/dev/null", "/dev/null")); /* takes all that is written */
    assert_false(moelm_path_same("nowhere/a", "nowhere/b"));
    free(a), free(b), free(again);
}

/* In a container every run may have the same process number. */
static void test_leftover_with_our_number(void **state) {
    char *path = scratch_path(state, "a.txt"), *temp = moelm_path_temp(path);
    moe_error error;
    scratch_put(temp, "half a fi", 9);
    assert_ok(moelm_file_write(path, "whole", 5, &error), &error);
    assert_file_holds(path, "whole", 5);
    assert_int_equal(scratch_count(*state), 1);
    moelm_file_writer *writer;
    assert_ok(moelm_file_writer_open(path, 0, &writer, &error), &error);
    assert_fails(moelm_file_write(path, "other", 5, &error), MOE_ERR_IO, &error, "busy");
    assert_ok(moelm_file_writer_put(writer, "mine", 4, &error), &error);
    assert_ok(moelm_file_writer_commit(writer, &error), &error);
    assert_file_holds(path, "mine", 4);
    free(path);
    free(temp);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_back, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_read_refuses, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_empty_file, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_abort_keeps_the_old, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_disk_full, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_device_full),
        cmocka_unit_test_setup_teardown(test_small_file_system, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_cannot_write_there, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_make_dirs, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_space, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_paths),
        cmocka_unit_test_setup_teardown(test_one_place, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_leftover_with_our_number, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
