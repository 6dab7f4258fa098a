/* test_alarm.c: alarms ring when they should and only then, and what each action does about them; a revived
 * expert is the busiest one with noise.
 */
#include "unit/train/train_fixture.h"

#include "train/alarm.h"
#include "train/revive.h"

#include <moekit/op.h>

#include <math.h>

enum { E = 4, LAYERS = 2 };

/* 1. Counting, on loads made by hand. */

typedef struct bench {
    moe_ctx *ctx;
    moe_lm *lm;
    moelm_load load;
    moelm_alarms alarms;
} bench;

static moe_lm_config *model_settings(const char *const *pairs) {
    /* clang-format off */
    static const char *const tiny[] = {
        "model.d_model", "8",  "model.n_layers", "2",  "model.n_heads", "2",
        "moe.expert_hidden_size", "6",  "model.context", "8",  NULL
    };
    /* clang-format on */
    moe_lm_config *config;
    moe_error error;
    assert_ok(moe_lm_config_create(&config, &error), &error);
    assert_ok(moe_lm_config_set(config, "moe.num_experts", "4", "test", &error), &error);
    for (const char *const *p = tiny; *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    for (const char *const *p = pairs; p && *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    return config;
}

static bench begin(const char *const *pairs) {
    bench b;
    moe_error error;
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1, .seed = 5};
    moe_lm_config *config = model_settings(pairs);
    assert_ok(moe_ctx_create(&desc, &b.ctx, &error), &error);
    if (moe_lm_create(b.ctx, config, &b.lm) != MOE_OK) fail_msg("%s", moe_ctx_error(b.ctx));
    assert_ok(moelm_load_create(b.lm, &b.load, &error), &error);
    assert_ok(moelm_alarms_create(&b.load, &b.alarms, &error), &error);
    moe_lm_config_destroy(config);
    return b;
}

static void end(bench *b) {
    moelm_alarms_destroy(&b->alarms);
    moelm_load_destroy(&b->load);
    moe_lm_destroy(b->lm);
    moe_ctx_destroy(b->ctx);
}

/* Rows kept of both layers, [2, 4], and `dropped` more of expert 0 of layer 0. */
static int32_t count(bench *b, const moelm_train_config *train, const uint64_t kept[LAYERS * E],
                     uint64_t dropped) {
    moelm_load_clear(&b->load);
    for (int i = 0; i < LAYERS * E; ++i) b->load.kept[i] = kept[i];
    b->load.dropped[0] = dropped;
    moelm_alarms_count(&b->alarms, train, &b->load, b->lm);
    return b->alarms.n_ringing;
}

static const uint64_t good[] = {5, 5, 5, 5, 5, 5, 5, 5}, silent[] = {5, 5, 5, 5, 5, 0, 5, 5};
static const uint64_t collapsed[] = {5, 5, 5, 5, 17, 1, 1, 1};

static void test_dead_rings_once(void **state) {
    (void)state;
    bench b = begin(NULL);
    const moelm_train_config train = {.alarm_dead_steps = 3, .alarm_steps = 1, .alarm_action = "warn"};
    for (int round = 0; round < 2; ++round) {
        assert_int_equal(count(&b, &train, silent, 0), 0);
        assert_int_equal(count(&b, &train, silent, 0), 0);
        assert_int_equal(count(&b, &train, silent, 0), 1);
        assert_int_equal(b.alarms.ringing[0].kind, MOELM_ALARM_DEAD);
        assert_int_equal(b.alarms.ringing[0].layer, 1);
        assert_int_equal(b.alarms.ringing[0].expert, 1);
        for (int i = 0; i < 9; ++i) assert_int_equal(count(&b, &train, silent, 0), 0);
        assert_int_equal(count(&b, &train, good, 0), 0); /* alive: it may ring again */
    }
    /* rows that were dropped were asked for: the expert is not dead */
    const uint64_t kept[] = {0, 5, 5, 5, 5, 5, 5, 5};
    for (int i = 0; i < 5; ++i) assert_int_equal(count(&b, &train, kept, 3), 0);
    char text[200];
    const moelm_alarm alarm = {MOELM_ALARM_DEAD, 1, 3, 2, 10, 0, 0};
    moelm_alarm_text(&alarm, text, sizeof text);
    assert_string_equal(text,
                        "layer 1: expert 3 had no row for 10 steps; it begins again as expert 2, with noise");
    end(&b);
}

static void test_without_rows_all_are_dead(void **state) {
    (void)state;
    bench b = begin(NULL);
    const moelm_train_config train = {.alarm_dead_steps = 1, .alarm_steps = 1, .alarm_action = "warn"};
    const uint64_t none[LAYERS * E] = {0};
    assert_int_equal(count(&b, &train, none, 0), LAYERS * E);
    const moelm_balance balance = moelm_load_balance(&b.load, 0);
    assert_int_equal(balance.n_dead, E);
    assert_true(balance.entropy == 1 && balance.max == 0 && balance.cv == 0); /* as moe_stats has it */
    end(&b);
}

static void test_actions_count_anew(void **state) {
    (void)state;
    static const char *const actions[] = {"stop", "revive"};
    for (size_t i = 0; i < 2; ++i) {
        bench b = begin(NULL);
        const moelm_train_config train = {
            .alarm_dead_steps = 2, .alarm_steps = 1, .alarm_action = actions[i]};
        for (int step = 1; step <= 6; ++step) assert_int_equal(count(&b, &train, silent, 0), step % 2 == 0);
        end(&b);
    }
}

static void test_bounds(void **state) {
    (void)state;
    bench b = begin(NULL);
    const moelm_train_config train = {
        .alarm_entropy = 0.7, .alarm_dropped = 0.2, .alarm_steps = 2, .alarm_action = "warn"};
    assert_int_equal(count(&b, &train, collapsed, 0), 0);
    assert_int_equal(count(&b, &train, collapsed, 0), 1);
    assert_int_equal(b.alarms.ringing[0].kind, MOELM_ALARM_ENTROPY);
    assert_int_equal(b.alarms.ringing[0].layer, 1);
    double entropy = -(0.85 * log(0.85) + 3 * 0.05 * log(0.05)) / log(4);
    assert_true(fabs(b.alarms.ringing[0].value - entropy) < 1e-12);
    assert_int_equal(count(&b, &train, good, 6), 0); /* 6 of 26 are more than a fifth */
    assert_int_equal(count(&b, &train, good, 6), 1);
    assert_int_equal(b.alarms.ringing[0].kind, MOELM_ALARM_DROPPED);
    assert_true(fabs(b.alarms.ringing[0].value - 6.0 / 26) < 1e-12);
    assert_int_equal(count(&b, &train, good, 5), 0); /* exactly the bound */
    assert_int_equal(count(&b, &train, good, 6), 0);
    assert_int_equal(count(&b, &train, good, 5), 0);
    assert_int_equal(count(&b, &train, good, 6), 0);
    end(&b);
}

/* 2. Reviving. */

static moe_param param_of(const moelm_optimizer *o, const char *name) {
    for (int32_t i = 0; i < o->count; ++i)
        if (strcmp(o->slot[i].param.name, name) == 0) return o->slot[i].param;
    fail_msg("no parameter %s", name);
    return (moe_param){0};
}

static int64_t numbers_of(const moe_param *p) {
    return p->dim[0] * p->dim[1] * p->dim[2];
}

static void fill(moelm_optimizer *o) {
    for (int32_t i = 0; i < o->count; ++i) {
        moelm_slot *slot = &o->slot[i];
        const int64_t n = numbers_of(&slot->param);
        moe_random_normal(11, MOE_DRAW_TEST, (uint32_t)i, 1, MOE_F32, slot->param.value, n, 1);
        if (!slot->m) continue;
        moe_random_normal(11, MOE_DRAW_TEST, (uint32_t)i, 2, MOE_F32, slot->m, n, 1);
        moe_random_normal(11, MOE_DRAW_TEST, (uint32_t)i, 3, MOE_F32, slot->v, n, 1);
    }
}

static bool has_experts(const char *name) {
    return strstr(name, "blocks.1.ffn.experts.") || strstr(name, "blocks.1.ffn.gate.");
}

/* Row 3 of every expert parameter of layer 1 becomes row 0 with a hundredth of noise; all else stays. */
static void check_revived(const moelm_optimizer *before, const moelm_optimizer *o) {
    int n_rows = 0;
    for (int32_t i = 0; i < o->count; ++i) {
        const moe_param *p = &o->slot[i].param;
        const float *value = p->value, *old = before->slot[i].param.value, *m = o->slot[i].m;
        const int64_t n = has_experts(p->name) ? numbers_of(p) / E : 0;
        double square = 0, off = 0;
        for (int64_t j = 0; j < numbers_of(p); ++j) {
            if (n > 0 && j / n == 3) {
                square += (double)old[j - 3 * n] * (double)old[j - 3 * n];
                off += pow((double)value[j] - (double)old[j - 3 * n], 2);
                if (m && m[j] != 0) fail_msg("%s: a moment is left", p->name);
            } else if (value[j] != old[j] || (m && m[j] != ((const float *)before->slot[i].m)[j])) {
                fail_msg("%s[%lld] changed", p->name, (long long)j);
            }
        }
        if (n == 0) continue;
        ++n_rows;
        const double share = sqrt(off / square);
        if (p->n_dim == 1 ? share != 0 : !(share > 0.004 && share < 0.02))
            fail_msg("%s: noise %g", p->name, share);
    }
    assert_int_equal(n_rows, 7); /* up, down, their biases; router row, its bias, selection bias */
}

static void test_revive(void **state) {
    (void)state;
    /* clang-format off */
    static const char *const pairs[] = {
        "moe.expert_bias", "true",  "moe.router_bias", "true",  "moe.score_function", "sigmoid",
        "moe.score_before_topk", "true",  "moe.selection_bias", "true",  NULL
    };
    /* clang-format on */
    const moelm_revival revival = {.layer = 1, .n_experts = E, .dead = 3, .from = 0, .seed = 9, .step = 40};
    bench b[3];
    moelm_optimizer o[3];
    for (int i = 0; i < 3; ++i) {
        b[i] = begin(pairs);
        assert_int_equal(moe_lm_reserve(b[i].lm, 1, 8, MOE_TRAIN), MOE_OK);
        assert_int_equal(moelm_optimizer_create(b[i].ctx, b[i].lm, &o[i]), MOE_OK);
        fill(&o[i]);
        if (i > 0) moelm_revive(&o[i], &revival);
    }
    check_revived(&o[0], &o[1]);
    for (int32_t i = 0; i < o[1].count; ++i) /* the same draws each time */
        assert_memory_equal(o[1].slot[i].param.value, o[2].slot[i].param.value,
                            (size_t)numbers_of(&o[1].slot[i].param) * sizeof(float));
    moelm_revival later = revival;
    later.step = 41;
    moelm_revive(&o[2], &later);
    const moe_param p = param_of(&o[1], "blocks.1.ffn.gate.weight"), q = param_of(&o[2], p.name);
    assert_memory_not_equal(p.value, q.value, (size_t)numbers_of(&p) * sizeof(float));
    for (int i = 0; i < 3; ++i) {
        moelm_optimizer_destroy(&o[i]);
        end(&b[i]);
    }
}

/* 3. Runs. 8 rows a step for 32 experts: most of them stand idle. */

#define IDLE                                                                                                 \
    "moe.num_experts", "32", "moe.top_k", "1", "moe.capacity_factor", "0", "train.batch_size", "1",          \
        "train.grad_accum", "1", "train.length", "8", "train.alarm_dead_steps", "3"

static int count_text(const char *text, const char *what) {
    int n = 0;
    for (; (text = strstr(text, what)); text += strlen(what)) ++n;
    return n;
}

static int count_in_file(void **state, const char *name, const char *what) {
    size_t bytes;
    char *text = train_read(state, name, &bytes);
    int n = count_text(text, what);
    free(text);
    return n;
}

static void test_warn(void **state) {
    static const char *const pairs[] = {IDLE, NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = pairs});
    train_must(&result);
    assert_int_equal(result.n_steps, 12);
    int told = count_in_file(state, "a/main.log", " alarm: layer ");
    assert_true(told > 10);
    assert_int_equal(count_in_file(state, "a/metrics.jsonl", "\"kind\":\"dead\""), told);
    assert_int_equal(count_in_file(state, "a/metrics.jsonl", "\"revived_from\":null"), told);
    assert_int_equal(count_in_file(state, "a/metrics.jsonl", "{\"schema\":1,\"step\":3,"),
                     1); /* not a logged step */
}

static void test_stop(void **state) {
    static const char *const pairs[] = {IDLE, "train.alarm_action", "stop", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = pairs});
    train_must_fail(&result, MOE_ERR_ALARM, "alarm in step 3: layer 0: expert ");
    assert_true(train_exists(state, "a/checkpoints/step-00000003/model.safetensors"));
    result = train_run(state, &(train_setup){.dir = "a", .pairs = pairs, .resume = true});
    train_must_fail(&result, MOE_ERR_ALARM, "resume ");
    assert_true(result.last.step > 3);
}

static void test_revive_in_a_run(void **state) {
    static const char *const pairs[] = {IDLE, "train.alarm_action", "revive", NULL};
    train_result whole = train_run(state, &(train_setup){.dir = "whole", .pairs = pairs});
    train_must(&whole);
    int revived = count_in_file(state, "whole/main.log", "it begins again as expert");
    assert_true(revived > 20);
    assert_int_equal(count_in_file(state, "whole/metrics.jsonl", "\"revived_from\":null"), 0);
    for (int64_t stop = 2; stop < 12; stop += 3) {
        char dir[40];
        snprintf(dir, sizeof dir, "parts%d", (int)stop);
        train_result part = train_run(state, &(train_setup){.dir = dir, .pairs = pairs, .stop_after = stop});
        train_must_fail(&part, MOE_ERR_INTERRUPTED, "");
        part = train_run(state, &(train_setup){.dir = dir, .pairs = pairs, .resume = true, .threads = 2});
        train_must(&part);
        train_same_file(state, "whole", dir, "checkpoints/step-00000012/model.safetensors");
        train_same_file(state, "whole", dir, "checkpoints/step-00000012/optimizer.safetensors");
        train_same_metrics(state, "whole", dir);
    }
}

static void test_bounds_in_a_run(void **state) {
    static const char *const entropy[] = {
        "train.alarm_entropy", "1", "train.alarm_steps", "2", "train.alarm_action", "stop", NULL};
    static const char *const dropped[] = {
        "moe.capacity_factor", "0.5", "train.alarm_dropped", "0.3", "train.alarm_action", "stop", NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = entropy});
    train_must_fail(&result, MOE_ERR_ALARM, "alarm in step 2: layer 0: the entropy of the load is 0.");
    assert_int_equal(count_in_file(state, "a/metrics.jsonl", "\"kind\":\"entropy\""), 2); /* of both layers */
    result = train_run(state, &(train_setup){.dir = "b", .pairs = dropped});
    train_must_fail(&result, MOE_ERR_ALARM, "of the rows were dropped, more than 30.0%");
    assert_true(count_in_file(state, "b/metrics.jsonl", "\"kind\":\"dropped\"") >= 1);
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dead_rings_once),
        cmocka_unit_test(test_without_rows_all_are_dead),
        cmocka_unit_test(test_actions_count_anew),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_revive),
        IN_SCRATCH(test_warn),
        IN_SCRATCH(test_stop),
        IN_SCRATCH(test_revive_in_a_run),
        IN_SCRATCH(test_bounds_in_a_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
