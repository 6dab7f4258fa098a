/* fuzz_report.c: a run directory of any bytes becomes a page, or is refused with a text.
 * Input: files of a run with "<<>>" between them, each behind a byte that chooses its name: '`' run.json, 'a'
 * the settings, 'b' metrics.jsonl, 'c' load.bin, 'd' eval.json, 'e' sample.txt. Run by scripts/fuzz.sh.
 * Source: docs/run-directory.md.
 */
#define _GNU_SOURCE
#include <moekit/lm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {
    "run.json", "config.resolved.yaml", "metrics.jsonl", "load.bin", "eval.json", "sample.txt"};
static const char page[] = "report.html";
enum { NAMES = sizeof names / sizeof *names, PATH = 4096 };

static const char *directory; /* of the run */

static void path_of(const char *name, char path[PATH]) {
    snprintf(path, PATH, "%s/%s", directory, name);
}

static void remove_files(void) {
    char path[PATH];
    for (size_t i = 0; i < NAMES; ++i) {
        path_of(names[i], path);
        unlink(path);
    }
    path_of(page, path);
    unlink(path);
}

static void remove_all(void) {
    remove_files();
    rmdir(directory);
}

static void make_directory(void) {
    static char in_memory[] = "/dev/shm/fuzz-report-XXXXXX", on_disk[] = "/tmp/fuzz-report-XXXXXX";
    if (directory) return;
    directory = mkdtemp(in_memory);
    if (!directory) directory = mkdtemp(on_disk);
    if (!directory || atexit(remove_all) != 0) abort();
}

static void put(const char *name, const uint8_t *data, size_t size) {
    char path[PATH];
    path_of(name, path);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
}

/* Each part of the input is a file. */
static void put_files(const uint8_t *data, size_t size) {
    static const char between[] = "<<>>";
    enum { LENGTH = sizeof between - 1 };
    while (size > 0) {
        const uint8_t *begin = data + 1, *end = memmem(begin, size - 1, between, LENGTH);
        const size_t length = end ? (size_t)(end - begin) : size - 1, used = 1 + length + (end ? LENGTH : 0);
        put(names[*data % NAMES], begin, length);
        data += used;
        size -= used;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[PATH];
    moe_error error = {.text = ""};
    make_directory();
    remove_files();
    put_files(data, size);
    path_of(page, path);
    struct stat written;
    const moe_status status = moe_lm_report(directory, path, &error);
    if (status == MOE_OK ? stat(path, &written) != 0 || written.st_size == 0 : error.text[0] == '\0') abort();
    if (status == MOE_ERR_INTERNAL) abort();
    return 0;
}
