/* test_report.c: the report of whole, half and broken runs: sections, escaping, size, same bytes twice.
 * Called with the name of a directory, it writes two runs there for the test that opens them in a browser.
 */
#define _GNU_SOURCE
#include "unit/report/fake_run.h"

#include <moekit/lm.h>

static const fake_run small_run = {
    .layers = 3, .experts = 8, .steps = 400, .load_every = 5, .eval_every = 50, .drops = true, .seed = 7};

static char *read_all(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *text = calloc(*bytes + 1, 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, *bytes, file), *bytes);
    fclose(file);
    return text;
}

/* The page of a run directory; free it. */
static char *render(void **state, size_t *bytes) {
    char *path = scratch_path(state, "report.html");
    moe_error error;
    assert_ok(moe_lm_report(*state, path, &error), &error);
    char *page = read_all(path, bytes);
    free(path);
    return page;
}

static void write_run(void **state, fake_run run) {
    run.dir = *state;
    fake_run_write(run);
}

static void remove_file(void **state, const char *name) {
    char *path = scratch_path(state, name);
    assert_int_equal(remove(path), 0);
    free(path);
}

static void append(void **state, const char *name, const char *text) {
    char *path = scratch_path(state, name);
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    free(path);
}

static int count(const char *text, const char *words) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, words)); at += strlen(words)) ++n;
    return n;
}

static void assert_has(const char *page, const char *words) {
    if (!strstr(page, words)) print_error("the page lacks \"%s\"\n", words);
    assert_non_null(strstr(page, words));
}

static void assert_lacks(const char *page, const char *words) {
    if (strstr(page, words)) print_error("the page has \"%s\"\n", words);
    assert_null(strstr(page, words));
}

static void test_whole_run(void **state) {
    static const char *const words[] = {"id=\"training\"",
                                        "id=\"load\"",
                                        "id=\"balance\"",
                                        "id=\"layers\"",
                                        "id=\"tokens\"",
                                        "id=\"sample\"",
                                        "id=\"configuration\"",
                                        "id=\"environment\"",
                                        "1.98 bits per byte",
                                        "16\xc2\xa0% fewer than gzip",
                                        ">gzip 2.37</text>",
                                        "17\xc2\xa0% more than bzip2",
                                        "1.64\xc2\xa0M",
                                        "606\xc2\xa0k",
                                        "experts follow the <strong>token</strong>",
                                        "id=\"h-2-t\"",
                                        "id=\"c-loss-t\"",
                                        "id=\"l-drop-t\"",
                                        "data.eval, step 400",
                                        "<kbd>\xe2\x90\xa3</kbd>",
                                        "<kbd>\xe2\x8f\x8e</kbd>",
                                        "<kbd>\\xe9</kbd>",
                                        "<kbd>\\x09</kbd>",
                                        "<kbd>&lt;</kbd>",
                                        "expert_hidden_size",
                                        "host.isa"};
    size_t bytes;
    write_run(state, small_run);
    char *page = render(state, &bytes);
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i) assert_has(page, words[i]);
    assert_int_equal(count(page, "<svg "), 1 + 6 + 3 + 6);
    assert_lacks(page, "nan");
    assert_lacks(page, "class=\"missing\"");
    assert_has(page, "at work on any one byte");
    assert_has(page, "<small>bytes</small>");
    assert_lacks(page, "part of a character");
    assert_true(bytes < 400000);
    free(page);
}

/* Tokens of a tokenizer are no bytes: not in their table, nor where they are counted. */
static void test_tokens_of_a_tokenizer(void **state) {
    fake_run run = small_run;
    size_t bytes;
    run.tokenizer = true;
    write_run(state, run);
    char *page = render(state, &bytes);
    assert_has(page, "<kbd>\xe2\x90\xa3&lt;b&gt;\xe2\x8f\x8e</kbd>");
    assert_has(page, "<kbd>#101</kbd>"); /* its text is not told */
    assert_lacks(page, "<kbd>e</kbd>");
    assert_has(page, "at work on any one token");
    assert_has(page, " <small>tokens</small>");
    assert_lacks(page, "<small>bytes</small>");
    assert_has(page, "part of a character");
    free(page);
}

static void test_escapes(void **state) {
    size_t bytes;
    write_run(state, small_run);
    char *page = render(state, &bytes);
    assert_has(page, "8-core &lt;example&gt; &amp; friends");
    assert_has(page, "&lt;the LORD&gt; &amp; none else");
    assert_has(page, "unto the city\\xff, saying");
    assert_lacks(page, "<the LORD>");
    assert_lacks(page, "<script");
    assert_lacks(page, "http");
    free(page);
}

static void test_same_bytes_twice(void **state) {
    size_t bytes, again;
    write_run(state, small_run);
    char *page = render(state, &bytes), *second = render(state, &again);
    assert_int_equal(bytes, again);
    assert_memory_equal(page, second, bytes);
    free(page);
    free(second);
}

static void test_missing_files(void **state) {
    static const char *const name[] = {"eval.json", "load.bin", "sample.txt", "metrics.jsonl",
                                       "config.resolved.yaml"};
    static const char *const words[] = {"moekit eval --run", "no heat maps", "moekit generate --run",
                                        "there are no curves", "no <code>config.resolved.yaml"};
    size_t bytes;
    write_run(state, small_run);
    for (size_t i = 0; i < sizeof name / sizeof *name; ++i) {
        remove_file(state, name[i]);
        char *page = render(state, &bytes);
        assert_has(page, words[i]);
        assert_has(page, "</html>");
        assert_lacks(page, "nan");
        free(page);
    }
    moe_error error;
    remove_file(state, "run.json");
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error,
                 "not a run directory");
}

/* Idle in a quarter of the run is who has no row in it, not who has none in one of its steps. */
static void test_idle_experts(void **state) {
    size_t bytes;
    fake_run run = small_run;
    run.drops = true;
    write_run(state, run);
    char *page = render(state, &bytes), words[80];
    snprintf(words, sizeof words, "<strong>1 of %d experts</strong> never got a row",
             run.layers * run.experts);
    assert_has(page, words);
    free(page);
    run.dir = *state;
    run.drops = false;
    fake_load_bin(&run);
    page = render(state, &bytes);
    assert_has(page, "No expert stays without work");
    assert_lacks(page, "never got a row");
    free(page);
}

/* What was set stands apart from what was not; figures that look ahead say so. */
static void test_settings(void **state) {
    size_t bytes;
    write_run(state, small_run);
    char *page = render(state, &bytes);
    const char *train = strstr(page, "<caption>train</caption>"),
               *steps = train ? strstr(train, ">steps<") : NULL;
    const char *rest = train ? strstr(train, "<details><summary>train: ") : NULL;
    assert_true(steps && rest && steps < rest && strstr(rest, ">seed<"));
    assert_lacks(page, "looks ahead");
    free(page);
    append(state, "config.resolved.yaml", "moe.router_type: expert_choice\n");
    page = render(state, &bytes);
    assert_has(page, "This figure looks ahead");
    assert_has(page, "moe.router_type expert_choice");
    free(page);
    append(state, "config.resolved.yaml", "moe.of_another_version: 3\n");
    page = render(state, &bytes);
    assert_has(page, ">of_another_version<");
    free(page);
}

static void test_one_step(void **state) {
    size_t bytes;
    fake_run run = small_run;
    run.steps = run.load_every = run.eval_every = 1;
    write_run(state, run);
    char *page = render(state, &bytes);
    assert_has(page, "1 logged step. ");
    const char *curve = strstr(page, "<path class=\"line main\" d=\"M");
    assert_non_null(curve);
    assert_has(curve, "h-6\"");
    free(page);
}

static void test_training_without_eval_still_tells_its_last_figure(void **state) {
    size_t bytes;
    write_run(state, small_run);
    remove_file(state, "eval.json");
    char *page = render(state, &bytes);
    assert_has(page, "bits per byte</strong>.");
    assert_has(page, "Layers in the last quarter of the training");
    free(page);
}

/* train.max_seconds ended it: step 150 of 1000000 is the end. */
static void test_training_ended_by_the_clock(void **state) {
    size_t bytes, n;
    fake_run run = small_run;
    run.steps = 150;
    write_run(state, run);
    remove_file(state, "config.resolved.yaml");
    append(state, "config.resolved.yaml", "train: {steps: 1000000}\n");
    char *page = render(state, &n);
    assert_has(page, "still going");
    free(page);
    char *path = scratch_path(state, "metrics.jsonl"), *text = read_all(path, &bytes);
    assert_true(bytes > 2 && text[bytes - 2] == '}');
    scratch_put(path, text, bytes - 2);
    append(state, "metrics.jsonl", ",\"finished\":true}\n");
    free(text);
    free(path);
    page = render(state, &n);
    assert_lacks(page, "still going");
    assert_has(page, "its time (train.max_seconds) was over");
    free(page);
}

/* The last line of metrics.jsonl gets `alarms`. */
static void append_alarms(void **state, const char *alarms) {
    size_t bytes;
    char *path = scratch_path(state, "metrics.jsonl"), *text = read_all(path, &bytes);
    scratch_put(path, text, bytes - 2);
    append(state, "metrics.jsonl", ",\"alarms\":[");
    append(state, "metrics.jsonl", alarms);
    append(state, "metrics.jsonl", "]}\n");
    free(text);
    free(path);
}

static void test_alarms(void **state) {
    size_t bytes;
    write_run(state, small_run);
    char *page = render(state, &bytes);
    assert_lacks(page, "id=\"alarms\"");
    free(page);
    append_alarms(state, "{\"kind\":\"dead\",\"layer\":2,\"steps\":50,\"expert\":7,\"revived_from\":3},"
                         "{\"kind\":\"dead\",\"layer\":0,\"steps\":50,\"expert\":6,\"revived_from\":null},"
                         "{\"kind\":\"entropy\",\"layer\":1,\"steps\":1,\"value\":0.25,\"bound\":0.5},"
                         "{\"kind\":\"dropped\",\"layer\":1,\"steps\":1,\"value\":0.375,\"bound\":0.2}");
    page = render(state, &bytes);
    assert_has(page, "<strong>4 alarms</strong> rang");
    assert_has(page, "layer 2: expert 7 had no row for 50 steps; it began again as a copy of expert 3.");
    assert_has(page, "layer 0: expert 6 had no row for 50 steps.");
    assert_has(page, "the entropy of the load fell to 0.250 of its maximum; the bound is 0.500.");
    assert_has(page, "of the rows were dropped; the bound is");
    free(page);
    char many[60 * 80] = "";
    for (int i = 0; i < 50; ++i)
        sprintf(many + strlen(many), "%s{\"kind\":\"dead\",\"layer\":0,\"steps\":9,\"expert\":1}",
                i ? "," : "");
    write_run(state, small_run);
    append_alarms(state, many);
    page = render(state, &bytes);
    assert_has(page, "Alarms: 50");
    assert_has(page, "The first 40 of them");
    assert_int_equal(count(page, "had no row for 9 steps"), 40);
    free(page);
    write_run(state, small_run);
    append_alarms(state, "{\"kind\":\"dead\",\"layer\":-1,\"steps\":9}");
    moe_error error;
    char *path = scratch_path(state, "report.html");
    assert_fails(moe_lm_report(*state, path, &error), MOE_ERR_INPUT, &error, "layer");
    free(path);
}

static void test_running_training(void **state) {
    size_t bytes;
    fake_run run = small_run;
    run.steps = 150;
    write_run(state, run);
    append(state, "config.resolved.yaml", "  eval_every: 50\n");
    append(state, "metrics.jsonl", "{\"schema\":1,\"step\":151,\"to");
    append(state, "load.bin", "torn");
    char *page = render(state, &bytes);
    assert_has(page, "The last line of <code>metrics.jsonl</code> is not whole");
    assert_has(page, "The last record of <code>load.bin</code> is not whole");
    assert_lacks(page, "step 151");
    free(page);
}

static void test_broken_files_name_their_place(void **state) {
    moe_error error;
    write_run(state, small_run);
    append(state, "metrics.jsonl", "{\"step\":401,}\n");
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error,
                 "metrics.jsonl:401:");
    write_run(state, small_run);
    append(state, "metrics.jsonl", "{\"step\":401,\"layers\":[]}\n");
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error,
                 "metrics.jsonl:401: 0 layers");
    write_run(state, small_run);
    append(state, "eval.json", "}");
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error, "eval.json:2:");
    write_run(state, small_run);
    append(state, "config.resolved.yaml", "  - [\n");
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error,
                 "config.resolved.yaml:");
    write_run(state, small_run);
    char *path = scratch_path(state, "load.bin");
    scratch_put(path, "MOELOAD2abcdefgh", 16);
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error, "MOELOAD1");
    scratch_put(path, "MOELOAD1\xff\xff\xff\xff", 12);
    assert_fails(moe_lm_report(*state, "unwritten.html", &error), MOE_ERR_INPUT, &error, "byte 8");
    free(path);
    assert_int_not_equal(access("unwritten.html", F_OK), 0);
}

static void test_large_model_stays_small(void **state) {
    size_t bytes;
    write_run(
        state,
        (fake_run){
            .layers = 48, .experts = 128, .steps = 1000, .load_every = 5, .eval_every = 100, .seed = 9});
    char *page = render(state, &bytes);
    print_message("48 layers of 128 experts: %zu bytes\n", bytes);
    assert_true(bytes < 5000000);
    assert_int_equal(count(page, "id=\"h-"), 48 * 2); /* a title and a description each */
    free(page);
}

static void test_odd_shapes(void **state) {
    static const fake_run run[] = {
        {.layers = 1, .experts = 1,  .steps = 1,    .load_every = 1, .eval_every = 1,  .seed = 1},
        {.layers = 2, .experts = 3,  .steps = 2,    .load_every = 1, .eval_every = 3,  .seed = 2},
        {.layers = 2, .experts = 17, .steps = 1001, .load_every = 7, .eval_every = 10, .seed = 3},
    };
    for (size_t i = 0; i < sizeof run / sizeof *run; ++i) {
        size_t bytes;
        write_run(state, run[i]);
        char *page = render(state, &bytes);
        assert_has(page, "</html>");
        assert_lacks(page, "nan");
        assert_lacks(page, "inf\"");
        free(page);
    }
}

static void test_dense_layers(void **state) {
    static const unsigned char dense[] = "MOELOAD1\2\0\0\0\0\0\0\0\0\0\0\0\5\0\0\0\0\0\0";
    static const unsigned char mixed[] = "MOELOAD1\2\0\0\0\0\0\0\0\2\0\0\0" /* experts of two layers */
                                         "\5\0\0\0\0\0\0\0"                 /* step */
                                         "\3\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0" /* kept */
                                         "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";  /* dropped */
    size_t bytes;
    char *path = scratch_path(state, "load.bin");
    write_run(state, (fake_run){.experts = 1, .steps = 9, .load_every = 5, .eval_every = 3, .seed = 4});
    scratch_put(path, dense, sizeof dense);
    char *page = render(state, &bytes);
    assert_has(page, "No layer of this model has routed experts");
    assert_has(page, "id=\"training\"");
    assert_lacks(page, "id=\"load\"");
    assert_lacks(page, "#balance");
    assert_lacks(page, "id=\"c-aux");
    free(page);
    scratch_put(path, mixed, sizeof mixed);
    page = render(state, &bytes);
    assert_has(page, "busiest over the run: expert 0 (1.50), least busy: 1 (0.50)");
    assert_has(page, "id=\"h-1-t\"");
    assert_lacks(page, "id=\"h-0-t\"");
    free(page);
    free(path);
}

static void test_unwritable_page(void **state) {
    moe_error error;
    write_run(state, small_run);
    assert_fails(moe_lm_report(*state, "/nowhere/at/all/report.html", &error), MOE_ERR_IO, &error,
                 "/nowhere/at/all");
    assert_int_equal(moe_lm_report(NULL, "x", NULL), MOE_ERR_ARGUMENT);
}

static int write_examples(const char *dir) {
    char small[1000], large[1000];
    snprintf(small, sizeof small, "%s/small", dir);
    snprintf(large, sizeof large, "%s/large", dir);
    if (mkdir(small, 0777) != 0 || mkdir(large, 0777) != 0) return 1;
    fake_run run = small_run;
    run.dir = small;
    fake_run_write(run);
    fake_run_write((fake_run){.dir = large,
                              .layers = 48,
                              .experts = 128,
                              .steps = 500,
                              .load_every = 5,
                              .eval_every = 100,
                              .seed = 9});
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_whole_run, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_tokens_of_a_tokenizer, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_escapes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_idle_experts, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_settings, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_one_step, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_same_bytes_twice, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_missing_files, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_training_without_eval_still_tells_its_last_figure, scratch_setup,
                                        scratch_teardown),
        cmocka_unit_test_setup_teardown(test_running_training, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_alarms, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_training_ended_by_the_clock, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_broken_files_name_their_place, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_large_model_stays_small, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_odd_shapes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_dense_layers, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_unwritable_page, scratch_setup, scratch_teardown),
    };
    return argc == 2 ? write_examples(argv[1]) : cmocka_run_group_tests(tests, NULL, NULL);
}
