/* test_model_null.c: NULL for handles, names, values and places, through every public function of
 * libmoekit-lm. Statuses alone where there is no model or context to tell; else the text names what is
 * missing. Source: the rule on NULL at the top of moekit/moe.h; tests/scripts/check_null.sh finds functions
 * not named here.
 */
#include "model_fixture.h"

static void configurations(void **state) {
    (void)state;
    moe_error error = {0};
    moe_lm_config *config = model_config(NULL);
    moe_lm_config_entry entry;
    char path[9];
    test_told(moe_lm_config_create(NULL, &error), error.text, "moe_lm_config_create: config is NULL");
    test_told(moe_lm_config_set(NULL, "seed", "1", "test", &error), error.text, "config_set: config is NULL");
    test_told(moe_lm_config_set(config, NULL, "1", "test", &error), error.text, "config_set: key is NULL");
    test_told(moe_lm_config_set(config, "seed", NULL, "test", &error), error.text,
              "config_set: value is NULL");
    assert_ok(moe_lm_config_set(config, "moe.top_k", "1", NULL, &error), &error);
    test_told(moe_lm_config_load(NULL, "a.yaml", &error), error.text, "config_load: config is NULL");
    test_told(moe_lm_config_load(config, NULL, &error), error.text, "config_load: yaml_path is NULL");
    test_told(moe_lm_config_load_checkpoint(NULL, "a", &error), error.text,
              "load_checkpoint: config is NULL");
    test_told(moe_lm_config_load_checkpoint(config, NULL, &error), error.text,
              "load_checkpoint: directory is NULL");
    test_told(moe_lm_config_environment(NULL, &error), error.text, "config_environment: config is NULL");
    test_told(moe_lm_config_make_dense(NULL, "test", &error), error.text,
              "config_make_dense: config is NULL");
    test_told(moe_lm_config_check(NULL, &error), error.text, "config_check: config is NULL");
    test_told(moe_lm_config_save(NULL, "a.yaml", &error), error.text, "config_save: config is NULL");
    test_told(moe_lm_config_save(config, NULL, &error), error.text, "config_save: yaml_path is NULL");
    test_told(moe_lm_config_find(NULL, "seed", &entry, &error), error.text, "config_find: config is NULL");
    test_told(moe_lm_config_find(config, NULL, &entry, &error), error.text, "config_find: key is NULL");
    test_told(moe_lm_config_find(config, "seed", NULL, &error), error.text, "config_find: entry is NULL");
    test_told(moe_lm_newest_checkpoint(NULL, path, sizeof path, &error), error.text, "run_dir is NULL");
    test_told(moe_lm_newest_checkpoint("r", NULL, 9, &error), error.text, "path is NULL");
    test_told(moe_lm_report(NULL, "a.html", &error), error.text, "moe_lm_report: run_dir is NULL");
    test_told(moe_lm_report("r", NULL, &error), error.text, "moe_lm_report: html_path is NULL");
    assert_int_equal(moe_lm_config_count(NULL), 0);
    assert_null(moe_lm_config_foresight(NULL));
    moe_lm_config_entry_get(NULL, 0, &entry);
    moe_lm_config_entry_get(config, 0, NULL);
    moe_lm_config_destroy(NULL);
    moe_lm_config_destroy(config);
}

static void models_that_are_not_there(void **state) {
    (void)state;
    moe_lm_config *config = model_config(NULL);
    moe_lm *lm = NULL;
    const int32_t token[2] = {1, 2};
    float logit;
    double loss, aux;
    moe_param param = {.size = sizeof param};
    moe_stats stats = {.size = sizeof stats};
    moe_lm_info info = {.size = sizeof info};
    moe_lm_eval_result result = {.size = sizeof result};
    const moe_lm_sampler sampler = {.size = sizeof sampler};
    const moe_lm_train_options options = {.size = sizeof options, .run_dir = "never"};
    const moe_lm_load_desc load_desc = {.size = sizeof load_desc, .dtype = "f32"};
    test_refused(moe_lm_create(NULL, config, &lm));
    test_refused(moe_lm_load(NULL, "never", &lm));
    test_refused(moe_lm_load_as(NULL, "never", "f32", &lm));
    test_refused(moe_lm_load_with(NULL, "never", &load_desc, &lm));
    test_refused(moe_lm_load_with(NULL, "never", NULL, &lm));
    test_refused(moe_lm_save(NULL, "never"));
    test_refused(moe_lm_init_from(NULL, "never"));
    test_refused(moe_lm_get_info(NULL, &info));
    test_refused(moe_lm_measure(NULL, 1, 1, MOE_INFER, NULL));
    test_refused(moe_lm_layer_stats(NULL, 0, &stats));
    test_refused(moe_lm_param(NULL, 0, &param));
    test_refused(moe_lm_reserve(NULL, 1, 1, MOE_INFER));
    test_refused(moe_lm_logits(NULL, token, 1, 1, &logit));
    test_refused(moe_lm_loss(NULL, token, token, 1, 1, 0, 0, &loss, &aux));
    test_refused(moe_lm_generate(NULL, token, 1, 1, &sampler, NULL, NULL));
    const moe_lm_batch_desc batch_desc = {.size = sizeof batch_desc, .max_texts = 1};
    moe_lm_batch *batch = NULL;
    size_t bytes;
    test_refused(moe_lm_batch_measure(NULL, &batch_desc, &bytes));
    test_refused(moe_lm_batch_create(NULL, &batch_desc, &batch));
    test_refused(moe_lm_batch_add(NULL, NULL));
    test_refused(moe_lm_batch_step(NULL));
    assert_int_equal(moe_lm_batch_live(NULL), 0);
    moe_lm_batch_destroy(NULL);
    assert_null(batch);
    test_refused(moe_lm_train(NULL, config, &options));
    test_refused(moe_lm_train_check(NULL, config, &options, &info));
    test_refused(moe_lm_eval(NULL, "never", NULL, &result));
    assert_null(lm);
    assert_null(moe_lm_layer(NULL, 0));
    assert_int_equal(moe_lm_param_count(NULL), 0);
    moe_lm_zero_grad(NULL);
    moe_lm_destroy(NULL);
    moe_lm_config_destroy(config);
}

static bool stop(void *user, int32_t token) {
    (void)user;
    (void)token;
    return false;
}

static void what_a_model_misses_is_named(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1);
    const char *text = moe_ctx_error(ctx);
    moe_lm_config *config = model_config(NULL);
    moe_lm *lm = model_make(ctx, NULL);
    const int32_t token[2] = {1, 2};
    float logits[2 * 23];
    double loss;
    moe_lm_eval_result result = {.size = sizeof result};
    const moe_lm_sampler sampler = {.size = sizeof sampler};
    char line[9] = "as it was";
    must(ctx, moe_lm_reserve(lm, 1, 2, MOE_INFER));
    test_told(moe_lm_create(ctx, NULL, &lm), text, "config is NULL");
    test_told(moe_lm_create(ctx, config, NULL), text, "moe_lm_create: lm is NULL");
    test_told(moe_lm_load(ctx, NULL, &lm), text, "moe_lm_load: directory is NULL");
    test_told(moe_lm_load(ctx, "never", NULL), text, "moe_lm_load: lm is NULL");
    test_told(moe_lm_save(lm, NULL), text, "moe_lm_save: directory is NULL");
    test_told(moe_lm_init_from(lm, NULL), text, "moe_lm_init_from: directory is NULL");
    test_told(moe_lm_get_info(lm, NULL), text, "moe_lm_info: the pointer is NULL");
    test_told(moe_lm_measure(lm, 1, 2, MOE_INFER, NULL), text, "moe_lm_measure: bytes is NULL");
    test_told(moe_lm_layer_stats(lm, 0, NULL), text, "moe_stats: the pointer is NULL");
    test_told(moe_lm_param(lm, 0, NULL), text, "moe_param: the pointer is NULL");
    test_told(moe_lm_logits(lm, NULL, 1, 2, logits), text, "tokens: NULL");
    test_told(moe_lm_logits(lm, token, 1, 2, NULL), text, "moe_lm_logits: logits is NULL");
    test_told(moe_lm_loss(lm, token, NULL, 1, 2, 0, 0, &loss, NULL), text, "targets: NULL");
    test_told(moe_lm_loss(lm, token, token, 1, 2, 0, 0, NULL, NULL), text, "moe_lm_loss: loss is NULL");
    must(ctx, moe_lm_loss(lm, token, token, 1, 2, 0, 0, &loss, NULL)); /* aux is not wanted */
    test_told(moe_lm_generate(lm, NULL, 1, 1, &sampler, stop, NULL), text, "prompt is NULL");
    test_told(moe_lm_generate(lm, token, 0, 1, &sampler, stop, NULL), text, "the prompt is empty");
    test_told(moe_lm_generate(lm, token, 1, 1, NULL, stop, NULL), text, "a sampler and a function");
    test_told(moe_lm_generate(lm, token, 1, 1, &sampler, NULL, NULL), text, "a sampler and a function");
    const moe_lm_batch_desc two = {.size = sizeof two, .max_texts = 2};
    const moe_lm_text nothing = {
        .size = sizeof nothing, .n_prompt = 1, .sampler = &sampler, .on_token = stop};
    moe_lm_batch *batch = NULL;
    size_t bytes;
    test_told(moe_lm_batch_measure(lm, NULL, &bytes), text, "moe_lm_batch_desc: the pointer is NULL");
    test_told(moe_lm_batch_measure(lm, &two, NULL), text, "moe_lm_batch_measure: bytes is NULL");
    test_told(moe_lm_batch_create(lm, NULL, &batch), text, "moe_lm_batch_desc: the pointer is NULL");
    test_told(moe_lm_batch_create(lm, &two, NULL), text, "moe_lm_batch_create: batch is NULL");
    must(ctx, moe_lm_batch_create(lm, &two, &batch));
    test_told(moe_lm_batch_add(batch, NULL), text, "moe_lm_text: the pointer is NULL");
    test_told(moe_lm_batch_add(batch, &nothing), text, "moe_lm_batch_add: prompt is NULL");
    moe_lm_batch_destroy(batch);
    test_told(moe_lm_eval(lm, NULL, NULL, &result), text, "moe_lm_eval: text_path is NULL");
    test_told(moe_lm_eval(lm, "never", NULL, NULL), text, "moe_lm_eval_result: the pointer is NULL");
    moe_lm_progress_text(NULL, line, sizeof line);
    moe_lm_progress_text(&(moe_lm_progress){.size = sizeof(moe_lm_progress)}, NULL, 0);
    assert_memory_equal(line, "as it was", sizeof line);
    moe_lm_destroy(lm);
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
}

static void what_training_misses_is_named(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1);
    const char *text = moe_ctx_error(ctx);
    moe_lm_config *config = model_config(NULL);
    moe_lm_info info = {.size = sizeof info};
    const moe_lm_train_options options = {.size = sizeof options, .run_dir = "never"};
    const moe_lm_load_desc load_desc = {.size = sizeof load_desc, .dtype = "f32"};
    test_told(moe_lm_train(ctx, NULL, &options), text, "moe_lm_train: config is NULL");
    test_told(moe_lm_train(ctx, config, NULL), text, "moe_lm_train_options: the pointer is NULL");
    test_told(moe_lm_train_check(ctx, NULL, &options, &info), text, "moe_lm_train_check: config is NULL");
    test_told(moe_lm_train_check(ctx, config, NULL, &info), text,
              "moe_lm_train_options: the pointer is NULL");
    test_told(moe_lm_train_check(ctx, config, &options, NULL), text, "moe_lm_info: the pointer is NULL");
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configurations),
        cmocka_unit_test(models_that_are_not_there),
        cmocka_unit_test(what_a_model_misses_is_named),
        cmocka_unit_test(what_training_misses_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
