/* test_safetensors_peer.c: what we write the reference package reads, and the other way round.
 * Both sides list a file as text, which must be the same. Needs Python's safetensors and numpy in
 * $MOEKIT_PYTHON or python3; skipped (77) where they are missing. */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/safetensors.h"

#include <inttypes.h>
#include <sys/wait.h>

static const char script[] = "tests/unit/format/safetensors_peer.py";

/* What the script prints for `verb` and path; its exit code in *code. Free it. */
static char *ask_peer(const char *verb, const char *path, int *code) {
    char command[2000];
    const char *python = getenv("MOEKIT_PYTHON");
    snprintf(command, sizeof command, "'%s' %s %s '%s'", python ? python : "python3", script, verb, path);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    char *text = NULL;
    size_t room = 0;
    if (getdelim(&text, &room, '\0', pipe) < 0) {
        free(text);
        text = strdup("");
    }
    int status = pclose(pipe);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return text;
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp((*(const moelm_st_tensor *const *)a)->name, (*(const moelm_st_tensor *const *)b)->name);
}

static int compare_pairs(const void *a, const void *b) {
    return strcmp(((const moelm_st_pair *)a)->key, ((const moelm_st_pair *)b)->key);
}

static void list_tensor(FILE *out, const moelm_st_tensor *tensor) {
    fprintf(out, "%s %s [", tensor->name, moelm_st_dtype_name(tensor->dtype));
    for (int32_t i = 0; i < tensor->n_dim; i++) fprintf(out, "%s%" PRId64, i > 0 ? "," : "", tensor->dim[i]);
    fprintf(out, "] ");
    for (size_t i = 0; i < tensor->bytes; i++) fprintf(out, "%02x", ((const unsigned char *)tensor->data)[i]);
    fprintf(out, "\n");
}

/* The listing of the script, made with our reader. */
static char *list_ours(const char *path) {
    moelm_safetensors *file;
    moe_error error;
    char *text = NULL;
    size_t length = 0;
    const moelm_st_tensor *tensors[64];
    moelm_st_pair pairs[64];
    assert_ok(moelm_safetensors_open(path, &file, &error), &error);
    size_t n = moelm_safetensors_count(file), n_pairs = moelm_safetensors_metadata_count(file);
    assert_true(n > 0 && n <= 64 && n_pairs <= 64);
    for (size_t i = 0; i < n; i++) tensors[i] = moelm_safetensors_at(file, i);
    for (size_t i = 0; i < n_pairs; i++) pairs[i] = moelm_safetensors_metadata_at(file, i);
    qsort(tensors, n, sizeof *tensors, compare_tensors);
    qsort(pairs, n_pairs, sizeof *pairs, compare_pairs);
    FILE *out = open_memstream(&text, &length);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++) list_tensor(out, tensors[i]);
    for (size_t i = 0; i < n_pairs; i++) fprintf(out, "%s=%s\n", pairs[i].key, pairs[i].value);
    fclose(out);
    moelm_safetensors_close(file);
    return text;
}

static void test_we_read_theirs(void **state) {
    char *path = scratch_path(state, "theirs.safetensors");
    int code;
    char *theirs = ask_peer("write", path, &code);
    assert_int_equal(code, 0);
    char *ours = list_ours(path);
    assert_string_equal(ours, theirs);
    free(ours);
    free(theirs);
    free(path);
}

static void test_they_read_ours(void **state) {
    char *path = scratch_path(state, "ours.safetensors"), names[MOELM_ST_F8_E5M2 + 1][40];
    unsigned char data[6 * 8];
    moelm_st_tensor tensors[MOELM_ST_F8_E5M2 + 3];
    size_t n = 0;
    scratch_fill(data, sizeof data, 7);
    for (int dtype = 0; dtype <= MOELM_ST_F8_E5M2; dtype++) {
        snprintf(names[dtype], sizeof names[dtype], "tensor \"%d\"", dtype);
        tensors[n++] = (moelm_st_tensor){
            .name = names[dtype], .dtype = (moelm_st_dtype)dtype, .n_dim = 2, .dim = {2, 3},
                       .data = data
        };
    }
    tensors[n++] = (moelm_st_tensor){.name = "scalar", .dtype = MOELM_ST_F32, .data = data};
    tensors[n++] = (moelm_st_tensor){
        .name = "empty", .dtype = MOELM_ST_F32, .n_dim = 2, .dim = {0, 3}
    };
    const moelm_st_pair metadata[] = {
        {"format", "pt"                    },
        {"note",   "line\nand \xE2\x82\xAC"}
    };
    moe_error error;
    assert_ok(moelm_safetensors_write(path, tensors, n, metadata, 2, &error), &error);
    int code;
    char *theirs = ask_peer("list", path, &code), *ours = list_ours(path);
    assert_int_equal(code, 0);
    assert_string_equal(ours, theirs);
    free(ours);
    free(theirs);
    free(path);
}

int main(void) {
    int code;
    char *reply = ask_peer("probe", "", &code);
    if (code == 77 || code == 127) printf("skipped: %s", code == 77 ? reply : "no Python here\n");
    free(reply);
    if (code == 77 || code == 127) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_we_read_theirs, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_they_read_ours, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
