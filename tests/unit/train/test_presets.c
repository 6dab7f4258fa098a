/* test_presets.c: a run with every preset goes on from a checkpoint with the bits of an unbroken one, buffers
 * included; and losses that a layer has reach metrics.jsonl, those that it has not do not.
 */
#include "unit/train/train_fixture.h"

#include "format/safetensors.h"

#include <math.h>

#define LAST "checkpoints/step-00000012"

/* What every preset needs: 8 experts divide into the groups of deepseek_v3; jitter and capacity of the tiny
 * run are not theirs. */
#define PRESET(name)                                                                                         \
    "moe.num_experts", "8", "moe.preset", name, "train.lr", "0.02", "train.steps", "12",                     \
        "train.alarm_steps", "1"

static void test_resume(void **state) {
    for (const char *const *name = moe_layer_presets(); *name; ++name) {
        const char *const pairs[] = {PRESET(*name), NULL};
        char parts[60];
        snprintf(parts, sizeof parts, "%s-parts", *name);
        train_result whole = train_run(state, &(train_setup){.dir = *name, .pairs = pairs});
        if (whole.status != MOE_OK) fail_msg("%s: %s", *name, whole.text);
        train_result part = train_run(state, &(train_setup){.dir = parts, .pairs = pairs, .stop_after = 7});
        train_must_fail(&part, MOE_ERR_INTERRUPTED, "");
        part = train_run(state, &(train_setup){.dir = parts, .pairs = pairs, .resume = true, .threads = 2});
        if (part.status != MOE_OK) fail_msg("%s: %s", *name, part.text);
        if (!(whole.last.loss < whole.first_loss - 0.5))
            fail_msg("%s: loss %g, then %g", *name, whole.first_loss, whole.last.loss);
        train_same_file(state, *name, parts, LAST "/model.safetensors");
        train_same_file(state, *name, parts, LAST "/optimizer.safetensors");
        train_same_file(state, *name, parts, LAST "/config.json");
        train_same_metrics(state, *name, parts);
    }
}

/* The selection bias moves by its rate once a step, is saved with the model, and is nothing AdamW knows. */
static void test_selection_bias(void **state) {
    static const char *const pairs[] = {PRESET("automodel"), "moe.selection_bias_update_rate", "0.01", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = pairs});
    train_must(&result);
    char *path = scratch_path(state, "a/" LAST),
         *moments = scratch_path(state, "a/" LAST "/optimizer.safetensors");
    moelm_safetensors *file;
    moe_error error;
    assert_ok(moelm_safetensors_open(path, &file, &error), &error);
    const moelm_st_tensor *bias = moelm_safetensors_find(file, "blocks.0.ffn.gate.selection_bias");
    assert_non_null(bias);
    assert_int_equal(bias->bytes, 8 * sizeof(float));
    double largest = 0;
    for (int e = 0; e < 8; ++e) {
        float value;
        memcpy(&value, (const char *)bias->data + e * (int)sizeof value, sizeof value);
        const double steps = (double)value / 0.01;
        assert_true(fabs(steps - round(steps)) < 1e-3 &&
                    fabs(steps) < 12.5); /* 12 steps, each 1 up, down or 0 */
        largest = fmax(largest, fabs(steps));
    }
    assert_true(largest > 0.5);
    moelm_safetensors_close(file);
    assert_ok(moelm_safetensors_open(moments, &file, &error), &error);
    assert_null(moelm_safetensors_find(file, "m.blocks.0.ffn.gate.selection_bias"));
    assert_non_null(moelm_safetensors_find(file, "m.blocks.0.ffn.gate.weight"));
    moelm_safetensors_close(file);
    free(moments);
    free(path);
}

/* A frozen router keeps its first bits: neither gradients nor weight decay reach it. */
static void test_frozen_router(void **state) {
    /* clang-format off */
    static const char *const pairs[] = {
        "moe.router_frozen", "true",  "train.weight_decay", "0.5",  "train.save_every", "1",
        "train.keep", "100",  NULL
    };
    /* clang-format on */
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = pairs});
    train_must(&result);
    static const char *const steps[] = {"a/checkpoints/step-00000001", "a/" LAST};
    static const char *const names[] = {"blocks.0.ffn.gate.weight", "blocks.0.ffn.experts.up.weight"};
    moelm_safetensors *file[2];
    moe_error error;
    for (int i = 0; i < 2; ++i) {
        char *path = scratch_path(state, steps[i]);
        assert_ok(moelm_safetensors_open(path, &file[i], &error), &error);
        free(path);
    }
    for (int i = 0; i < 2; ++i) {
        const moelm_st_tensor *p = moelm_safetensors_find(file[0], names[i]),
                              *q = moelm_safetensors_find(file[1], names[i]);
        assert_int_equal(memcmp(p->data, q->data, p->bytes) == 0, i == 0);
    }
    moelm_safetensors_close(file[0]);
    moelm_safetensors_close(file[1]);
}

static bool metrics_tell(void **state, const char *dir, const char *key) {
    char name[100];
    size_t bytes;
    snprintf(name, sizeof name, "%s/metrics.jsonl", dir);
    char *text = train_read(state, name, &bytes);
    bool found = strstr(text, key) != NULL;
    free(text);
    return found;
}

static void test_losses_are_told(void **state) {
    static const struct {
        const char *preset, *has, *lacks;
    } cases[] = {
        {"mixtral",     "\"aux_loss\":",     "\"seq_aux_loss\":"},
        {"deepseek_v3", "\"seq_aux_loss\":", "\"gshard_loss\":" },
        {"lucidrains",  "\"gshard_loss\":",  "\"load_loss\":"   },
        {"t2t_noisy",   "\"load_loss\":",    "\"entropy_loss\":"},
        {"sigma_moe",   "\"entropy_loss\":", "\"gshard_loss\":" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        const char *const pairs[] = {PRESET(cases[i].preset), NULL};
        train_result result = train_run(state, &(train_setup){.dir = cases[i].preset, .pairs = pairs});
        train_must(&result);
        if (!metrics_tell(state, cases[i].preset, cases[i].has))
            fail_msg("%s: no %s", cases[i].preset, cases[i].has);
        if (metrics_tell(state, cases[i].preset, cases[i].lacks))
            fail_msg("%s: %s", cases[i].preset, cases[i].lacks);
    }
    static const char *const whole_only[] = {"moe_per_layer_logging", "false", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "whole", .pairs = whole_only});
    train_must(&result);
    assert_true(metrics_tell(state, "whole", "\"layers\":[]"));
    assert_true(metrics_tell(state, "whole", "\"aux_loss\":1."));
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_resume),
        IN_SCRATCH(test_selection_bias),
        IN_SCRATCH(test_frozen_router),
        IN_SCRATCH(test_losses_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
