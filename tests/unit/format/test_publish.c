/* test_publish.c: a published directory is whole at every moment, whoever is killed and whatever is full.
 * Every file of a generation holds its number, so a mix of two would show; children are killed at random.
 * Source: format/publish.h.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/file.h"
#include "format/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { N_FILES = 4 };

/* Every file of a generation holds its number: a mix of two would show. */
static moe_status write_generation(const char *dir, int generation, moe_error *error) {
    moelm_publish *publish;
    moe_status status = moelm_publish_begin(dir, &publish, error);
    if (status != MOE_OK) return status;
    for (int i = 0; i < N_FILES && status == MOE_OK; i++) {
        char path[1000], text[200];
        int length = snprintf(text, sizeof text, "%0150d", generation);
        snprintf(path, sizeof path, "%s/%s%d", moelm_publish_path(publish), i == 3 ? "sub/" : "", i);
        if (i == 3) {
            char *sub = moelm_path_parent(path);
            status = moelm_dir_make(sub, error);
            free(sub);
        }
        if (status == MOE_OK) status = moelm_file_write(path, text, (size_t)length, error);
    }
    if (status == MOE_OK) return moelm_publish_commit(publish, error);
    moelm_publish_abort(publish);
    return status;
}

/* The generation that dir holds; fails where it is not whole. */
static int read_generation(const char *dir) {
    int generation = -1;
    for (int i = 0; i < N_FILES; i++) {
        char path[1000], *text;
        size_t bytes;
        moe_error error;
        snprintf(path, sizeof path, "%s/%s%d", dir, i == 3 ? "sub/" : "", i);
        assert_ok(moelm_file_read(path, 150, 150, &text, &bytes, &error), &error);
        int number = atoi(text);
        free(text);
        if (i == 0) generation = number;
        assert_int_equal(number, generation);
    }
    return generation;
}

static void test_new_and_replaced(void **state) {
    char *dir = scratch_path(state, "run/step-1/"), *parent = scratch_path(state, "run");
    moe_error error;
    assert_ok(write_generation(dir, 1, &error), &error);
    assert_int_equal(read_generation(dir), 1);
    assert_ok(write_generation(dir, 2, &error), &error);
    assert_int_equal(read_generation(dir), 2);
    assert_int_equal(scratch_count(parent), 1);
    free(dir);
    free(parent);
}

static void test_abort(void **state) {
    char *dir = scratch_path(state, "step-1");
    moe_error error;
    moelm_publish *publish;
    assert_ok(write_generation(dir, 1, &error), &error);
    assert_ok(moelm_publish_begin(dir, &publish, &error), &error);
    assert_true(moelm_dir_exists(moelm_publish_path(publish)));
    moelm_publish_abort(publish);
    moelm_publish_abort(NULL);
    assert_int_equal(read_generation(dir), 1);
    assert_int_equal(scratch_count(*state), 1);
    free(dir);
}

static void test_disk_full(void **state) {
    char *dir = scratch_path(state, "step-1");
    moe_error error;
    assert_ok(write_generation(dir, 1, &error), &error);
    scratch_disk_full(100);
    moe_status status = write_generation(dir, 2, &error);
    scratch_disk_normal();
    assert_int_equal(status, MOE_ERR_IO);
    assert_non_null(strstr(error.text, "File too large"));
    assert_int_equal(read_generation(dir), 1);
    assert_int_equal(scratch_count(*state), 1);
    free(dir);
}

static bool every_name(const char *name) {
    return *name != '\0';
}

static bool is_step(const char *name) {
    return strncmp(name, "step-", 5) == 0;
}

static void test_refuses(void **state) {
    char *file = scratch_path(state, "file"), *below = scratch_path(state, "file/step-1");
    moelm_publish *publish;
    moe_error error;
    scratch_put(file, "x", 1);
    assert_fails(moelm_publish_begin(file, &publish, &error), MOE_ERR_IO, &error, "is not a directory");
    assert_fails(moelm_publish_begin(below, &publish, &error), MOE_ERR_IO, &error, "Not a directory");
    assert_fails(moelm_publish_begin("/", &publish, &error), MOE_ERR_ARGUMENT, &error, "no name");
    assert_fails(moelm_publish_begin("", &publish, &error), MOE_ERR_ARGUMENT, &error, "no name");
    assert_fails(moelm_publish_sweep(file, every_name, NULL, &error), MOE_ERR_INPUT, &error,
                 "Not a directory");
    free(file);
    free(below);
}

static void make_dir_with_file(const char *dir) {
    char path[1000];
    snprintf(path, sizeof path, "%s/deep/er", dir);
    moe_error error;
    assert_ok(moelm_dir_make(path, &error), &error);
    strcat(path, "/file");
    scratch_put(path, "x", 1);
}

static void test_sweep(void **state) {
    static const char *const leftovers[] = {"step-1.tmp-12", "a.txt.tmp-1", "x.tmp-1.tmp-2", "step-9.old-3"};
    static const char *const others[] = {"step-1",    "step-9",  "a.tmp", "b.tmp-",
                                         "c.tmp-12x", ".tmp-12", "d.old-"};
    size_t n = 0;
    moe_error error;
    for (size_t i = 0; i < sizeof leftovers / sizeof *leftovers; i++) {
        char *path = scratch_path(state, leftovers[i]);
        if (i == 1)
            scratch_put(path, "half", 4);
        else
            make_dir_with_file(path);
        free(path);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *path = scratch_path(state, others[i]);
        make_dir_with_file(path);
        free(path);
    }
    assert_ok(moelm_publish_sweep(*state, every_name, &n, &error), &error);
    assert_int_equal(n, sizeof leftovers / sizeof *leftovers);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *path = scratch_path(state, others[i]);
        assert_true(moelm_dir_exists(path));
        free(path);
    }
    char *foreign = scratch_path(state, "notes.tmp-12"), *own = scratch_path(state, "step-2.tmp-12");
    make_dir_with_file(foreign);
    make_dir_with_file(own);
    assert_ok(moelm_publish_sweep(*state, is_step, &n, &error), &error);
    assert_int_equal(n, 1);
    assert_true(moelm_dir_exists(foreign) && !moelm_dir_exists(own));
    free(foreign);
    free(own);
    char *missing = scratch_path(state, "missing");
    assert_ok(moelm_publish_sweep(missing, every_name, &n, &error), &error);
    assert_int_equal(n, 0);
    free(missing);
}

static void test_sweep_spares_work_in_progress(void **state) {
    char *dir = scratch_path(state, "step-1"), *file = scratch_path(state, "a.txt");
    moelm_publish *publish;
    moelm_file_writer *writer;
    moe_error error;
    size_t n = 9;
    assert_ok(moelm_publish_begin(dir, &publish, &error), &error);
    assert_ok(moelm_file_writer_open(file, 0, &writer, &error), &error);
    assert_ok(moelm_publish_sweep(*state, every_name, &n, &error), &error);
    assert_int_equal(n, 0);
    assert_ok(moelm_file_writer_commit(writer, &error), &error);
    assert_ok(moelm_publish_commit(publish, &error), &error);
    assert_true(moelm_dir_exists(dir));
    free(dir);
    free(file);
}

/* In a container every run may have the same process number. */
static void test_leftover_with_our_number(void **state) {
    char *dir = scratch_path(state, "step-1"), *temp = moelm_path_temp(dir);
    moe_error error;
    make_dir_with_file(temp);
    assert_ok(write_generation(dir, 1, &error), &error);
    assert_int_equal(read_generation(dir), 1);
    assert_int_equal(scratch_count(dir), N_FILES);
    moelm_publish *first, *second;
    assert_ok(moelm_publish_begin(dir, &first, &error), &error);
    assert_fails(moelm_publish_begin(dir, &second, &error), MOE_ERR_IO, &error, "busy");
    moelm_publish_abort(first);
    free(dir);
    free(temp);
}

/* From here on this process cannot swap directories, as on some network file systems. */
static bool forbid_exchange(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[4])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RENAME_EXCHANGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void publish_forever(const char *dir, bool exchange) {
    if (!exchange && !forbid_exchange()) _exit(77);
    for (int generation = 2;; generation++)
        if (write_generation(dir, generation, NULL) != MOE_OK) _exit(1);
}

/* Kills a process that publishes without pause, 25 times at random. With the swap the directory is whole at
 * once; without it, after the sweep that every reader does first. */
static void kill_publishers(void **state, bool exchange) {
    char *dir = scratch_path(state, "step-1");
    uint64_t seed = (uint64_t)time(NULL);
    int n_replaced = 0, n_leftovers = 0;
    moe_error error;
    print_message("seed %" PRIu64 "\n", seed);
    for (int round = 0; round < 25; round++) {
        size_t n = 0;
        scratch_remove(dir);
        assert_ok(write_generation(dir, 1, &error), &error);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) publish_forever(dir, exchange);
        usleep((useconds_t)(scratch_random(&seed) % 20000));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip();
        assert_true(WIFSIGNALED(status));
        if (exchange) n_replaced += read_generation(dir) > 1;
        n_leftovers += scratch_count(*state) > 1;
        assert_ok(moelm_publish_sweep(*state, every_name, &n, &error), &error);
        n_replaced += !exchange && read_generation(dir) > 1;
        assert_true(read_generation(dir) >= 1);
        assert_int_equal(scratch_count(*state), 1);
    }
    print_message("%d of 25 kills after a replacement, %d with leftovers\n", n_replaced, n_leftovers);
    free(dir);
}

static void test_kill(void **state) {
    kill_publishers(state, true);
}
static void test_kill_without_exchange(void **state) {
    kill_publishers(state, false);
}

/* The moment between the two renames, which a random kill seldom meets. */
static void test_sweep_restores(void **state) {
    char *dir = scratch_path(state, "step-1"), *old = scratch_path(state, "step-1.old-77");
    char *temp = scratch_path(state, "step-1.tmp-77");
    moe_error error;
    size_t n;
    assert_ok(write_generation(dir, 5, &error), &error);
    assert_int_equal(rename(dir, old), 0);
    make_dir_with_file(temp);
    assert_ok(moelm_publish_sweep(*state, every_name, &n, &error), &error);
    assert_int_equal(n, 1);
    assert_int_equal(read_generation(dir), 5);
    assert_int_equal(scratch_count(*state), 1);
    free(dir);
    free(old);
    free(temp);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_new_and_replaced, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_abort, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_disk_full, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refuses, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_sweep, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_sweep_spares_work_in_progress, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_leftover_with_our_number, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_kill, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_kill_without_exchange, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_sweep_restores, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
