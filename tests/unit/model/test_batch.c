/* test_batch.c: texts written at once against each alone: tokens, and the logits behind them to the bit.
 * Shapes: a tiny model of 23 tokens and a context of 32; texts of 1 to 100 tokens.
 * Source: moe_lm_generate, which test_generate.c holds against full forwards.
 */
#include "unit/model/model_fixture.h"

#include "model/model.h"

enum { VOCAB = 23, CONTEXT = 32, TEXTS = 9 };

/* A text to write, and what came of it. */
typedef struct job {
    int32_t prompt[100];
    int64_t n_prompt, n_new;
    moe_lm_sampler sampler;
    model_taken taken;
} job;

/* Lengths that fit, fill and leave the window; greedy and drawn; some stop early. */
static void make_jobs(job *jobs) {
    static const int64_t n_prompt[TEXTS] = {5, 1, 32, 17, 100, 2, 9, 31, 5};
    static const int64_t n_new[TEXTS] = {20, 60, 1, 40, 33, 1, 90, 9, 0};
    for (int i = 0; i < TEXTS; ++i) {
        jobs[i] = (job){.n_prompt = n_prompt[i], .n_new = n_new[i], .taken.stop_after = i % 4 == 3 ? 7 : 0};
        jobs[i].sampler = (moe_lm_sampler){.size = sizeof(moe_lm_sampler),
                                           .temperature = i % 3 == 0 ? 0.0F : 1.5F,
                                           .top_p = i % 3 == 1 ? 0.9F : 0.0F,
                                           .top_k = i % 3 == 2 ? 5 : 0,
                                           .seed = test_seed() + (uint64_t)i};
        model_tokens(jobs[i].prompt, n_prompt[i], VOCAB, (uint64_t)i);
    }
}

static moe_lm_text text_of(job *j) {
    return (moe_lm_text){.size = sizeof(moe_lm_text),
                         .prompt = j->prompt,
                         .n_prompt = j->n_prompt,
                         .n_new = j->n_new,
                         .sampler = &j->sampler,
                         .on_token = model_take,
                         .user = &j->taken};
}

static moe_lm_batch *batch_make(moe_ctx *ctx, moe_lm *lm, int64_t max_texts, int64_t max_length) {
    const moe_lm_batch_desc desc = {.size = sizeof desc, .max_texts = max_texts, .max_length = max_length};
    moe_lm_batch *batch = NULL;
    must(ctx, moe_lm_batch_create(lm, &desc, &batch));
    return batch;
}

/* Texts join as soon as there is a place. Returns the most that were written at once. */
static int64_t write_all(moe_ctx *ctx, moe_lm_batch *batch, int64_t max_texts, job *jobs, int n) {
    int64_t most = 0;
    for (int next = 0; next < n || moe_lm_batch_live(batch) > 0;) {
        while (next < n && moe_lm_batch_live(batch) < max_texts) {
            const moe_lm_text text = text_of(&jobs[next++]);
            must(ctx, moe_lm_batch_add(batch, &text));
        }
        if (moe_lm_batch_live(batch) > most) most = moe_lm_batch_live(batch);
        must(ctx, moe_lm_batch_step(batch));
    }
    return most;
}

static void same_tokens(const model_taken *a, const model_taken *b, int i) {
    if (a->n != b->n || memcmp(a->token, b->token, (size_t)a->n * sizeof *a->token) != 0)
        fail_msg("text %d: %lld tokens beside others, %lld alone, or others", i, (long long)a->n,
                 (long long)b->n);
}

/* 1. A text beside others is the text alone. */

static void check_model(const char *isa, const char *const *pairs) {
    moe_ctx *ctx = isa ? test_ctx_if_supported(isa) : test_ctx(NULL, 3);
    if (!ctx) return;
    moe_lm *lm = model_make(ctx, pairs);
    static job alone[TEXTS], jobs[TEXTS];
    make_jobs(alone);
    for (int i = 0; i < TEXTS; ++i)
        must(ctx, moe_lm_generate(lm, alone[i].prompt, alone[i].n_prompt, alone[i].n_new, &alone[i].sampler,
                                  model_take, &alone[i].taken));
    static const int64_t sizes[] = {1, 2, 5, TEXTS};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        moe_lm_batch *batch = batch_make(ctx, lm, sizes[s], 0);
        make_jobs(jobs);
        const int64_t most = write_all(ctx, batch, sizes[s], jobs, TEXTS);
        assert_int_equal(most, sizes[s] < TEXTS ? sizes[s] : TEXTS - 1); /* the last is over at once */
        for (int i = 0; i < TEXTS; ++i) same_tokens(&jobs[i].taken, &alone[i].taken, i);
        moe_lm_batch_destroy(batch);
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_every_isa(void **state) {
    (void)state;
    static const char *const bf16[] = {"model.dtype", "bf16", NULL};
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        if (isa < TEST_ISAS_F32) check_model(test_isas[isa], NULL);
        check_model(test_isas[isa], bf16);
    }
    check_model(NULL, NULL);
}

/* Routers of every kind, those too whose choices neighbours have a say in: such texts take a pass each. */
static void test_every_router(void **state) {
    (void)state;
    /* clang-format off */
    static const char *const cases[][9] = {
        {"moe.router_type", "noisy_top_k"},
        {"moe.router_type", "quantile"},
        {"moe.router_type", "hash"},
        {"moe.router_type", "balanced"},
        {"moe.router_type", "random"},
        {"moe.router_type", "expert_choice"},
        {"moe.router_type", "gshard_top2"},
        {"moe.router_type", "gshard_top2", "moe.second_policy_eval", "random"},
        {"moe.router_type", "sinkhorn", "moe.top_k", "1"},
        {"moe.capacity_factor", "0.5"},
        {"moe.capacity_factor", "0.5", "moe.capacity_factor_eval", "-1"},
        {"moe.capacity_factor", "0.5", "moe.capacity_group", "sequence"},
        {"moe.num_shared_experts", "1", "model.tie_embeddings", "true"},
        {"model.moe_layer_freq", "2"},
        {"model.qk_norm", "head"},
        {"model.qk_norm", "full", "model.dense_layers", "1"},
        {"model.moe_layer_freq", "0"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) check_model(NULL, cases[i]);
}

/* The logits themselves: equal tokens could hide other bits. */
static void check_logits(const char *isa, const char *dtype) {
    enum { LENGTH = 12, N = 7 };
    const char *const pairs[] = {"model.dtype", dtype, NULL};
    moe_ctx *ctx = test_ctx_if_supported(isa);
    if (!ctx) return;
    moe_lm *lm = model_make(ctx, pairs);
    int32_t tokens[N][LENGTH], newest[N];
    float right[LENGTH * VOCAB], logits[N * VOCAB];
    moelm_cache cache[N], *caches[N];
    moei_arena arena = {0};
    moelm_cache_carve(lm, &arena, N, LENGTH, cache);
    void *block = malloc(arena.used);
    assert_non_null(block);
    arena = (moei_arena){.base = block};
    moelm_cache_carve(lm, &arena, N, LENGTH, cache);
    must(ctx, moe_lm_reserve(lm, 1, LENGTH, MOE_INFER));
    must(ctx, moe_lm_reserve(lm, N, 1, MOE_INFER));
    for (int i = 0; i < N; ++i) { /* text i has 3 + i tokens, the last of which is read beside others */
        caches[i] = &cache[i];
        model_tokens(tokens[i], LENGTH, VOCAB, (uint64_t)i);
        moelm_pass pass = {.tokens = tokens[i],
                           .n_seq = 1,
                           .length = 2 + i,
                           .cache = &caches[i],
                           .call = {.size = sizeof pass.call}};
        must(ctx, moelm_forward(lm, &pass));
        cache[i].n = 2 + i;
        newest[i] = tokens[i][2 + i];
    }
    moelm_pass pass = {
        .tokens = newest, .n_seq = N, .length = 1, .cache = caches, .call = {.size = sizeof pass.call}};
    must(ctx, moelm_forward(lm, &pass));
    must(ctx, moelm_head(lm, 0, N, logits));
    for (int i = 0; i < N; ++i) {
        must(ctx, moe_lm_logits(lm, tokens[i], 1, 3 + i, right));
        assert_memory_equal(logits + i * VOCAB, right + (2 + i) * VOCAB, VOCAB * sizeof *right);
    }
    free(block);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_logits_beside_others(void **state) {
    (void)state;
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        if (isa < TEST_ISAS_F32) check_logits(test_isas[isa], "f32");
        check_logits(test_isas[isa], "bf16");
    }
}

/* 2. What texts have in common. */

/* Tokens that the first layer has met: it counts those of its last forward. */
static int64_t tokens_of_step(moe_ctx *ctx, moe_lm *lm) {
    moe_stats stats = {.size = sizeof stats};
    must(ctx, moe_lm_layer_stats(lm, 0, &stats));
    return stats.n_tokens;
}

/* Of texts with one prompt the first reads it; the step's last pass is over the last tokens of the others. */
static void test_one_prompt_is_read_once(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    static job jobs[4], alone;
    moe_lm_batch *batch = batch_make(ctx, lm, 4, 0);
    for (int i = 0; i < 4; ++i) {
        jobs[i] = (job){.n_prompt = 20, .n_new = 30, .taken.stop_after = i == 1 ? 3 : 0};
        jobs[i].sampler = (moe_lm_sampler){.size = sizeof(moe_lm_sampler), .temperature = 1.5F};
        jobs[i].sampler.seed = (uint64_t)i;
        model_tokens(jobs[i].prompt, 20, VOCAB, 1);
        const moe_lm_text text = text_of(&jobs[i]);
        must(ctx, moe_lm_batch_add(batch, &text));
    }
    must(ctx, moe_lm_batch_step(batch));
    assert_int_equal(tokens_of_step(ctx, lm), 3);
    must(ctx, moe_lm_batch_step(batch));
    assert_int_equal(tokens_of_step(ctx, lm), 4);
    must(ctx, moe_lm_batch_step(batch)); /* the second is over */
    assert_int_equal(moe_lm_batch_live(batch), 3);
    jobs[1].taken = (model_taken){0}; /* and comes again, with the end of its prompt changed */
    jobs[1].prompt[15] = (jobs[1].prompt[15] + 1) % VOCAB;
    const moe_lm_text again = text_of(&jobs[1]);
    must(ctx, moe_lm_batch_add(batch, &again));
    while (moe_lm_batch_live(batch) > 0) must(ctx, moe_lm_batch_step(batch));
    for (int i = 0; i < 4; ++i) {
        alone = jobs[i];
        alone.taken = (model_taken){0};
        must(ctx, moe_lm_generate(lm, alone.prompt, 20, 30, &alone.sampler, model_take, &alone.taken));
        same_tokens(&jobs[i].taken, &alone.taken, i);
        assert_true(i == 0 || memcmp(jobs[0].taken.token, alone.taken.token, sizeof alone.taken.token) != 0);
    }
    moe_lm_batch_destroy(batch);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* An empty batch remembers nothing of what the model was. */
static void test_training_between(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    static job jobs[2][2];
    moe_lm_batch *batch = batch_make(ctx, lm, 2, 0);
    for (int round = 0; round < 2; ++round) {
        for (int i = 0; i < 2; ++i) {
            jobs[round][i] = (job){.n_prompt = 12, .n_new = 15, .sampler = {.size = sizeof(moe_lm_sampler)}};
            model_tokens(jobs[round][i].prompt, 12, VOCAB, (uint64_t)i);
        }
        write_all(ctx, batch, 2, jobs[round], 2);
        const moe_param param = model_param(lm, "blocks.0.qkv.weight");
        if (round == 0) moe_random_normal(test_seed(), MOE_DRAW_TEST, 9, 9, MOE_F32, param.value, 16, 2.0);
        must(ctx, moe_lm_reserve(lm, 2, 16, MOE_TRAIN)); /* moves all memory */
    }
    for (int i = 0; i < 2; ++i) {
        model_taken right = {0};
        must(ctx, moe_lm_generate(lm, jobs[1][i].prompt, 12, 15, &jobs[1][i].sampler, model_take, &right));
        same_tokens(&jobs[1][i].taken, &right, i);
    }
    moe_lm_batch_destroy(batch);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* 3. What goes wrong. */

static void test_wrong_inputs(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    moe_lm_batch *batch = NULL;
    moe_lm_batch_desc desc = {.size = sizeof desc};
    must_fail(ctx, moe_lm_batch_create(lm, &desc, &batch), MOE_ERR_ARGUMENT, "max_texts: 0");
    desc.max_texts = (int64_t)1 << 40;
    must_fail(ctx, moe_lm_batch_create(lm, &desc, &batch), MOE_ERR_ARGUMENT, "max_texts: 1099511627776");
    desc.max_texts = 2;
    desc.max_length = -1;
    must_fail(ctx, moe_lm_batch_create(lm, &desc, &batch), MOE_ERR_ARGUMENT, "max_length: -1");
    assert_null(batch);
    batch = batch_make(ctx, lm, 2, 10);
    job j = {
        .prompt = {3, 1, VOCAB},
          .n_prompt = 3, .n_new = 4, .sampler.size = sizeof(moe_lm_sampler)
    };
    moe_lm_text text = text_of(&j);
    must_fail(ctx, moe_lm_batch_add(batch, &text), MOE_ERR_ARGUMENT, "prompt[2] is 23");
    j.prompt[2] = 4;
    text.n_new = 8;
    must_fail(ctx, moe_lm_batch_add(batch, &text), MOE_ERR_ARGUMENT, "max_length of 10");
    text.n_new = 7;
    must(ctx, moe_lm_batch_add(batch, &text)); /* as long as it may be */
    must(ctx, moe_lm_batch_add(batch, &text));
    must_fail(ctx, moe_lm_batch_add(batch, &text), MOE_ERR_STATE, "as many as max_texts");
    text.n_new = 0; /* takes no place */
    must(ctx, moe_lm_batch_add(batch, &text));
    must(ctx, moe_lm_batch_step(batch));
    assert_int_equal(moe_lm_batch_live(batch), 2);
    moe_lm_batch_destroy(batch); /* with texts in it */
    moe_lm_destroy(lm);
    static const char *const far[] = {"model.context", "1000000", NULL};
    lm = model_make(ctx, far);
    desc = (moe_lm_batch_desc){.size = sizeof desc, .max_texts = 1 << 16};
    must_fail(ctx, moe_lm_batch_create(lm, &desc, &batch), MOE_ERR_ARGUMENT, "65536 of 1000000 tokens");
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* A weight that is not a number stops the step; mended, the texts go on as if nothing had been. */
static void test_a_failed_step_is_made_again(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    static job jobs[TEXTS], right[TEXTS];
    make_jobs(jobs);
    make_jobs(right);
    float *gain = model_param(lm, "final_norm.weight").value;
    moe_lm_batch *batch = batch_make(ctx, lm, TEXTS, 0);
    for (int i = 0; i < TEXTS; ++i) {
        const moe_lm_text text = text_of(&jobs[i]);
        must(ctx, moe_lm_batch_add(batch, &text));
    }
    for (int round = 0; moe_lm_batch_live(batch) > 0; ++round) {
        const int64_t live = moe_lm_batch_live(batch);
        if (round % 5 == 0) {
            const float kept = gain[3];
            gain[3] = NAN;
            must_fail(ctx, moe_lm_batch_step(batch), MOE_ERR_NUMERIC, "logit");
            gain[3] = kept;
            assert_int_equal(moe_lm_batch_live(batch), live);
        }
        must(ctx, moe_lm_batch_step(batch));
    }
    for (int i = 0; i < TEXTS; ++i) {
        must(ctx, moe_lm_generate(lm, right[i].prompt, right[i].n_prompt, right[i].n_new, &right[i].sampler,
                                  model_take, &right[i].taken));
        same_tokens(&jobs[i].taken, &right[i].taken, i);
    }
    moe_lm_batch_destroy(batch);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* From a token's function the model may be used, the batch may not. */
typedef struct nested {
    moe_ctx *ctx;
    moe_lm *lm;
    moe_lm_batch *batch;
    job inner;
    moe_status add, step;
    model_taken taken;
} nested;

static bool use_within(void *user, int32_t token) {
    nested *n = user;
    const moe_lm_text text = text_of(&n->inner);
    n->add = moe_lm_batch_add(n->batch, &text);
    n->step = moe_lm_batch_step(n->batch);
    n->inner.taken.n = 0;
    must(n->ctx, moe_lm_generate(n->lm, n->inner.prompt, n->inner.n_prompt, n->inner.n_new, &n->inner.sampler,
                                 model_take, &n->inner.taken));
    return model_take(&n->taken, token);
}

static void test_within_a_step(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_make(ctx, NULL);
    static job jobs[TEXTS];
    static nested n[2];
    make_jobs(jobs);
    moe_lm_batch *batch = batch_make(ctx, lm, 3, 0);
    for (int i = 0; i < 2; ++i) {
        n[i] = (nested){.ctx = ctx, .lm = lm, .batch = batch, .inner = jobs[3]};
        moe_lm_text text = text_of(&jobs[i]);
        text.on_token = use_within;
        text.user = &n[i];
        must(ctx, moe_lm_batch_add(batch, &text));
    }
    while (moe_lm_batch_live(batch) > 0) must(ctx, moe_lm_batch_step(batch));
    for (int i = 0; i < 2; ++i) {
        model_taken right = {0};
        assert_int_equal(n[i].add, MOE_ERR_STATE);
        assert_int_equal(n[i].step, MOE_ERR_STATE);
        must(ctx, moe_lm_generate(lm, jobs[i].prompt, jobs[i].n_prompt, jobs[i].n_new, &jobs[i].sampler,
                                  model_take, &right));
        same_tokens(&n[i].taken, &right, i);
    }
    moe_lm_batch_destroy(batch);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* 4. Memory. */

typedef struct meter {
    size_t used, limit;
    int refused;
} meter;

static void *meter_alloc(void *user, size_t bytes, size_t align) {
    meter *m = user;
    if (bytes > m->limit - m->used) {
        ++m->refused;
        return NULL;
    }
    m->used += bytes;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void meter_free(void *user, void *ptr, size_t bytes) {
    meter *m = user;
    m->used -= ptr ? bytes : 0;
    free(ptr);
}

/* What is measured is taken, nothing is taken afterwards, and what does not fit is told and given back. */
static void test_memory(void **state) {
    (void)state;
    meter m = {.limit = SIZE_MAX};
    moe_ctx_desc desc = {
        .size = sizeof desc, .seed = 1, .n_threads = 2, .host = {meter_alloc, meter_free, &m}
    };
    moe_ctx *ctx;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    moe_lm *lm = model_make(ctx, NULL);
    const moe_lm_batch_desc few = {.size = sizeof few, .max_texts = 4, .max_length = 24};
    size_t bytes = 0;
    must(ctx, moe_lm_reserve(lm, 1, 24, MOE_INFER));
    must(ctx, moe_lm_reserve(lm, 4, 1, MOE_INFER));
    must(ctx, moe_lm_batch_measure(lm, &few, &bytes));
    const size_t before = m.used;
    moe_lm_batch *batch = NULL;
    m.limit = before + bytes / 2;
    must_fail(ctx, moe_lm_batch_create(lm, &few, &batch), MOE_ERR_MEMORY, "4 texts of 24 tokens");
    assert_null(batch);
    assert_int_equal(m.used, before);
    m.limit = SIZE_MAX;
    must(ctx, moe_lm_batch_create(lm, &few, &batch));
    assert_int_equal(m.used - before, bytes);
    m.limit = m.used;
    static job jobs[6];
    for (int i = 0; i < 6; ++i) {
        jobs[i] = (job){.n_prompt = 3 + i, .n_new = 24 - 3 - i, .sampler = {.size = sizeof(moe_lm_sampler)}};
        model_tokens(jobs[i].prompt, 3 + i, VOCAB, (uint64_t)i);
    }
    write_all(ctx, batch, 4, jobs, 6);
    assert_int_equal(m.used, m.limit);
    assert_int_equal(m.refused, 1);
    moe_lm_batch_destroy(batch);
    assert_int_equal(m.used, before);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    assert_int_equal(m.used, 0);
}

/* 5. What is said where neighbours have a say. */

static int warnings;
static void count_warnings(void *user, moe_log_level level, const char *text) {
    (void)user;
    warnings += level == MOE_LOG_WARN && strstr(text, "in a pass each") != NULL;
}

static void test_neighbours_are_warned_of(void **state) {
    (void)state;
    static const char *const pairs[] = {"moe.capacity_factor", "1", NULL};
    moe_ctx_desc desc = {.size = sizeof desc, .seed = 1, .n_threads = 1, .log = count_warnings};
    moe_ctx *ctx;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    for (int limited = 0; limited < 2; ++limited) {
        moe_lm *lm = model_make(ctx, limited ? pairs : NULL);
        moe_lm_batch_destroy(batch_make(ctx, lm, 1, 0));
        assert_int_equal(warnings, 0);
        moe_lm_batch_destroy(batch_make(ctx, lm, 2, 0));
        assert_int_equal(warnings, limited);
        moe_lm_destroy(lm);
    }
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_isa),
        cmocka_unit_test(test_every_router),
        cmocka_unit_test(test_logits_beside_others),
        cmocka_unit_test(test_one_prompt_is_read_once),
        cmocka_unit_test(test_training_between),
        cmocka_unit_test(test_wrong_inputs),
        cmocka_unit_test(test_a_failed_step_is_made_again),
        cmocka_unit_test(test_within_a_step),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_neighbours_are_warned_of),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
