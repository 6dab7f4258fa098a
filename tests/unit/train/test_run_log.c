/* test_run_log.c: load.bin byte by byte, metrics.jsonl line by line, and what opening them again cuts.
 * Three layers: 2 experts, dense, 3 experts.
 * Source: docs/run-directory.md.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "train/load_file.h"
#include "train/run_log.h"

#include <jansson.h>
#include <math.h>

/* Three layers: 2 experts, dense, 3 experts. */
static int64_t first[] = {0, 2, 2, 5};
static uint64_t kept[] = {1, 2, 3, 4, 5}, dropped[] = {10, 0, 30, 0, 0x0102030405060708};
static const moelm_load load = {3, first, kept, dropped};
enum { HEADER = 8 + 4 + 3 * 4, RECORD = 8 + 2 * 5 * 8 };

static long size_of(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return (long)info.st_size;
}

static moelm_load_file *open_load(const char *path, int64_t step) {
    moelm_load_file *file;
    moe_error error;
    assert_ok(moelm_load_file_open(path, &load, step, &file, &error), &error);
    return file;
}

static void test_load_bytes(void **state) {
    static const unsigned char expect[HEADER + RECORD] = {
        'M', 'O', 'E', 'L', 'O', 'A', 'D', '1', 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, /* header */
        44,  1,   0,   0,   0,   0,   0,   0,                                                   /* step 300 */
        1,   0,   0,   0,   0,   0,   0,   0,   2, 0, 0, 0, 0, 0, 0, 0, /* layer 0 kept */
        10,  0,   0,   0,   0,   0,   0,   0,   0, 0, 0, 0, 0, 0, 0, 0, /* and dropped */
        3,   0,   0,   0,   0,   0,   0,   0,   4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, /* layer 2 */
        30,  0,   0,   0,   0,   0,   0,   0,   0, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1,
    };
    char *path = scratch_path(state, "load.bin");
    moe_error error;
    moelm_load_file *file = open_load(path, 0);
    assert_ok(moelm_load_file_append(file, 300, &load, &error), &error);
    assert_ok(moelm_load_file_sync(file, &error), &error);
    moelm_load_file_close(file);
    assert_file_holds(path, expect, sizeof expect);
    free(path);
}

static void test_load_is_cut(void **state) {
    char *path = scratch_path(state, "load.bin");
    moe_error error;
    moelm_load_file *file = open_load(path, 0);
    for (int64_t step = 10; step <= 50; step += 10)
        assert_ok(moelm_load_file_append(file, step, &load, &error), &error);
    moelm_load_file_close(file);
    assert_int_equal(size_of(path), HEADER + 5 * RECORD);
    moelm_load_file_close(open_load(path, 39)); /* records 10, 20, 30 stay */
    assert_int_equal(size_of(path), HEADER + 3 * RECORD);
    assert_int_equal(truncate(path, HEADER + 3 * RECORD - 1), 0); /* a torn record goes */
    moelm_load_file_close(open_load(path, 39));
    assert_int_equal(size_of(path), HEADER + 2 * RECORD);
    assert_int_equal(truncate(path, 5), 0); /* a torn header is written again */
    moelm_load_file_close(open_load(path, 0));
    assert_int_equal(size_of(path), HEADER);
    scratch_put(path, "this is the file of somebody else", 33);
    assert_fails(moelm_load_file_open(path, &load, 10, &file, &error), MOE_ERR_INPUT, &error,
                 "was not written by this model");
    free(path);
}

/* A full disk takes nothing of what was there, and later records follow the last good one. */
static void test_load_on_full_disk(void **state) {
    char *path = scratch_path(state, "load.bin");
    moe_error error;
    moelm_load_file *file = open_load(path, 0);
    assert_ok(moelm_load_file_append(file, 1, &load, &error), &error);
    scratch_disk_full(HEADER + RECORD + 13);
    moe_status status = moelm_load_file_append(file, 2, &load, &error);
    scratch_disk_normal();
    assert_int_equal(status, MOE_ERR_IO);
    assert_non_null(strstr(error.text, "load.bin: cannot write: File too large"));
    assert_int_equal(size_of(path), HEADER + RECORD);
    assert_ok(moelm_load_file_append(file, 3, &load, &error), &error);
    assert_int_equal(size_of(path), HEADER + 2 * RECORD);
    moelm_load_file_close(file);
    free(path);
}

static moe_lm_progress progress_at(int64_t step) {
    return (moe_lm_progress){.size = sizeof(moe_lm_progress),
                             .step = step,
                             .steps = 100,
                             .tokens = 64 * step,
                             .loss = 2.5,
                             .aux_loss = 1.125,
                             .z_loss = 0.25,
                             .lr = 1e-3,
                             .grad_norm = 0.5,
                             .tokens_per_second = 41234.5,
                             .elapsed_s = 1.5,
                             .eta_s = 7,
                             .eval_bits_per_byte = 2.0};
}

static json_t *read_line(const char *path, int index) {
    FILE *file = fopen(path, "r");
    char line[4096];
    assert_non_null(file);
    for (int i = 0; i <= index; ++i) assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    json_t *root = json_loads(line, 0, NULL);
    assert_non_null(root);
    return root;
}

static double number_at(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* Twelve steps, of which the third leaves its layers out and the last has evaluated and rung. */
static void write_metrics(void **state) {
    /* of the optional losses, layer 0 has the sequences' and layer 2 none */
    const moelm_router_stats router[3] = {
        {1.25, 0.5, 0.75, 0.125, {1.5, NAN, NAN, NAN, NAN, NAN}},
        {0,    0,   0,    0,     {0}                           },
        {1.0,  0.0, NAN,  0.25,  {NAN, NAN, NAN, NAN, NAN, NAN}}
    };
    moelm_alarm ringing[] = {
        {MOELM_ALARM_DEAD,    2, 1,  0,  7, 0,   0  },
        {MOELM_ALARM_ENTROPY, 0, -1, -1, 1, 0.5, 0.6}
    };
    const moelm_alarms alarms = {.ringing = ringing, .n_ringing = 2};
    moelm_run_log *log;
    moe_error error;
    assert_ok(moelm_run_log_open(*state, 0, &load, &log, &error), &error);
    for (int64_t step = 1; step <= 12; ++step) {
        moe_lm_progress progress = progress_at(step);
        const moelm_metrics metrics = {.progress = &progress,
                                       .load = &load,
                                       .router = router,
                                       .alarms = step == 12 ? &alarms : NULL,
                                       .evaluated = step == 12,
                                       .layers = step != 3};
        assert_ok(moelm_run_log_metrics(log, &metrics, &error), &error);
        assert_ok(moelm_run_log_say(log, "a line", &error), &error);
    }
    assert_ok(moelm_run_log_sync(log, &error), &error);
    moelm_run_log_close(log);
}

static void check_layers(const json_t *line) {
    const json_t *layers = json_object_get(line, "layers"), *layer = json_array_get(layers, 1);
    assert_int_equal(json_array_size(layers), 2); /* the dense layer is left out */
    assert_int_equal(number_at(layer, "layer"), 2);
    assert_int_equal(number_at(layer, "experts"), 3);
    assert_true(json_is_null(json_object_get(layer, "router_entropy")));
    assert_true(number_at(layer, "router_loss") == 0.25);
    assert_null(json_object_get(layer, "seq_aux_loss"));
    layer = json_array_get(layers, 0);
    assert_true(number_at(layer, "seq_aux_loss") == 1.5);
    assert_null(json_object_get(layer, "gshard_loss"));
    assert_true(fabs(number_at(layer, "dropped") - 10.0 / 13) < 1e-8);
    assert_true(fabs(number_at(layer, "load_max") - 11 / 6.5) < 1e-8);
    assert_true(fabs(number_at(layer, "load_cv") - 4.5 / 6.5) < 1e-8);
}

static void check_alarms(const json_t *line) {
    const json_t *rung = json_object_get(line, "alarms"), *alarm = json_array_get(rung, 0);
    assert_int_equal(json_array_size(rung), 2);
    assert_string_equal(json_string_value(json_object_get(alarm, "kind")), "dead");
    assert_int_equal(number_at(alarm, "layer"), 2);
    assert_int_equal(number_at(alarm, "expert"), 1);
    assert_int_equal(number_at(alarm, "revived_from"), 0);
    assert_int_equal(number_at(alarm, "steps"), 7);
    alarm = json_array_get(rung, 1);
    assert_string_equal(json_string_value(json_object_get(alarm, "kind")), "entropy");
    assert_true(number_at(alarm, "value") == 0.5 && number_at(alarm, "bound") == 0.6);
}

static void test_metrics(void **state) {
    char *path = scratch_path(state, "metrics.jsonl");
    write_metrics(state);
    json_t *line = read_line(path, 10);
    assert_int_equal(number_at(line, "schema"), 1);
    assert_int_equal(number_at(line, "step"), 11);
    assert_int_equal(number_at(line, "tokens"), 704);
    assert_true(number_at(line, "loss") == 2.5 && number_at(line, "aux_loss") == 1.125);
    assert_true(json_is_null(json_object_get(line, "eval_bits_per_byte")));
    assert_null(json_object_get(line, "alarms"));
    check_layers(line);
    json_decref(line);
    line = read_line(path, 11);
    assert_true(number_at(line, "eval_bits_per_byte") == 2.0);
    check_alarms(line);
    json_decref(line);
    line = read_line(path, 2);
    assert_int_equal(json_array_size(json_object_get(line, "layers")), 0);
    json_decref(line);
    free(path);
}

/* Opened again at step 9 the log loses lines 10, 11 and 12; what was said stays said. */
static void test_metrics_are_cut(void **state) {
    char *path = scratch_path(state, "metrics.jsonl"), *text = scratch_path(state, "main.log");
    moelm_run_log *log;
    moe_error error;
    write_metrics(state);
    const long whole = size_of(path);
    assert_ok(moelm_run_log_open(*state, 9, &load, &log, &error), &error);
    moelm_run_log_close(log);
    json_t *line = read_line(path, 8);
    assert_int_equal(number_at(line, "step"), 9);
    json_decref(line);
    assert_true(size_of(path) < whole);
    assert_int_equal(size_of(text), 12 * 7);
    free(text);
    free(path);
}

static void test_text(void **state) {
    (void)state;
    char text[400];
    moe_lm_progress progress = progress_at(30);
    progress.load_cv = 0.18;
    progress.load_max = 1.32;
    progress.dropped = 0.004;
    progress.eval_step = 30;
    moe_lm_progress_text(&progress, text, sizeof text);
    assert_string_equal(text, "step=30/100 loss=2.5000 eta=7s aux=1.1250 z=0.2500 lr=1.0e-03 gnorm=0.50 "
                              "tok/s=41.2k drop=0.4% cv=0.18 maxload=1.32 dead=0 eval=2.0000");
    progress.eval_step = 20; /* an old figure is not this step's */
    moe_lm_progress_text(&progress, text, sizeof text);
    assert_null(strstr(text, "eval="));
    progress.event = "eval";
    moe_lm_progress_text(&progress, text, sizeof text);
    assert_string_equal(text, "step=30/100 held-out text: 2.0000 bits per byte");
    progress.event = "checkpoint runs/a";
    moe_lm_progress_text(&progress, text, sizeof text);
    assert_string_equal(text, "step=30/100 checkpoint runs/a");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_load_bytes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_load_is_cut, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_load_on_full_disk, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_metrics, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_metrics_are_cut, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
