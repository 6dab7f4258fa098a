/* scratch.h: what the tests of the format layer share: a directory of their own, raw files, random bytes,
 * and a disk that is full on demand: a limit on the size of files, which root meets too.
 * Source: getrlimit(2).
 */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <moekit/moe.h>

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Fails with the library's own text where a call did not succeed. */
#define assert_ok(call, error)                                                                               \
    do {                                                                                                     \
        moe_status scratch_status = (call);                                                                  \
        if (scratch_status != MOE_OK) print_error("%s: %s\n", #call, (error)->text);                         \
        assert_int_equal(scratch_status, MOE_OK);                                                            \
    } while (0)

/* The call must fail this way, and its text must contain the words. */
#define assert_fails(call, expected, error, words)                                                           \
    do {                                                                                                     \
        (error)->text[0] = '\0';                                                                             \
        assert_int_equal((call), (expected));                                                                \
        assert_int_equal((error)->status, (expected));                                                       \
        if (!strstr((error)->text, (words))) print_error("\"%s\" lacks \"%s\"\n", (error)->text, (words));   \
        assert_non_null(strstr((error)->text, (words)));                                                     \
    } while (0)

static inline int scratch_unlink(const char *path, const struct stat *info, int kind, struct FTW *walk) {
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

static inline void scratch_remove(const char *path) {
    nftw(path, scratch_unlink, 16, FTW_DEPTH | FTW_PHYS);
}

/* cmocka set-up and tear-down: *state is the path of a fresh directory. */
static inline int scratch_setup(void **state) {
    const char *base = getenv("TMPDIR");
    char path[400];
    snprintf(path, sizeof path, "%s/moekit-test-XXXXXX", base ? base : "/tmp");
    *state = mkdtemp(path) ? strdup(path) : NULL;
    return *state ? 0 : -1;
}

static inline int scratch_teardown(void **state) {
    scratch_remove(*state);
    free(*state);
    return 0;
}

/* A path inside the scratch directory; free it. */
static inline char *scratch_path(void **state, const char *name) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", (const char *)*state, name);
    return strdup(path);
}

static inline void scratch_put(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static inline void assert_file_holds(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = malloc(bytes + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, bytes + 1, file), bytes);
    assert_memory_equal(text, data, bytes);
    free(text);
    fclose(file);
}

/* Entries of a directory without dots. */
static inline int scratch_count(const char *path) {
    DIR *dir = opendir(path);
    assert_non_null(dir);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(dir));) n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

/* No file may grow beyond `bytes` until scratch_disk_normal: writes fail like on a full disk. Works for
 * every user, unlike a small file system. */
static inline void scratch_disk_full(rlim_t bytes) {
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static inline void scratch_disk_normal(void) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* splitmix64: enough to make test data; the seed is printed by the test that uses it. */
static inline uint64_t scratch_random(uint64_t *seed) {
    uint64_t z = *seed += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

static inline void scratch_fill(void *data, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)data)[i] = (unsigned char)scratch_random(&seed);
}

#endif
