/* test_generate.c: the cache against the full forward, the sliding window, the sampler, wrong inputs.
 * Shapes: a tiny model of 23 tokens and a context of 32.
 * Source: decoding with a cache is the full forward, computed once a token.
 */
#include "unit/model/model_fixture.h"

#include "core/rng.h"
#include "model/model.h"

enum { VOCAB = 23, CONTEXT = 32 };

static const moe_lm_sampler greedy = {.size = sizeof greedy};

/* 1. Cache. */

static void *make_cache(const moe_lm *lm, moelm_cache *cache) {
    moei_arena arena = {0};
    moelm_cache_carve(lm, &arena, 1, CONTEXT, cache);
    arena = (moei_arena){.base = malloc(arena.used)};
    assert_non_null(arena.base);
    moelm_cache_carve(lm, &arena, 1, CONTEXT, cache);
    return arena.base;
}

/* Every split of a text into what is read at once and what follows gives the bits of the whole. */
static void check_cache(const char *isa, const char *const *pairs) {
    enum { LENGTH = 21 };
    moe_ctx *ctx = test_ctx_if_supported(isa);
    if (!ctx) return;
    moe_lm *lm = model_make(ctx, pairs);
    int32_t tokens[LENGTH];
    float full[LENGTH * VOCAB], cached[VOCAB];
    model_tokens(tokens, LENGTH, VOCAB, 1);
    must(ctx, moe_lm_reserve(lm, 1, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, tokens, 1, LENGTH, full));
    moelm_cache cache, *caches[1] = {&cache};
    void *block = make_cache(lm, &cache);
    for (int64_t first = 1; first <= LENGTH; first += 5) {
        cache.n = 0;
        for (int64_t n = first; n <= LENGTH; ++n) {
            moelm_pass pass = {.tokens = tokens + cache.n,
                               .n_seq = 1,
                               .length = n - cache.n,
                               .cache = caches,
                               .call = {.size = sizeof pass.call}};
            must(ctx, moelm_forward(lm, &pass));
            cache.n = n;
            must(ctx, moelm_head(lm, pass.length - 1, 1, cached));
            assert_memory_equal(cached, full + (n - 1) * VOCAB, sizeof cached);
        }
    }
    free(block);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_cache_is_the_full_forward(void **state) {
    (void)state;
    static const char *const by_head[] = {"model.qk_norm", "head", NULL}, *const full[] = {"model.qk_norm",
                                                                                           "full", NULL};
    for (int isa = 0; isa < TEST_ISAS_F32; ++isa) {
        check_cache(test_isas[isa], NULL);
        check_cache(test_isas[isa], by_head);
        check_cache(test_isas[isa], full);
    }
}

/* 2. Generation. */

static int32_t best_of(const float *logits) {
    int32_t best = 0;
    for (int32_t i = 1; i < VOCAB; ++i)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Greedy text by the documented rule and nothing but full forwards. */
static void expect(moe_ctx *ctx, moe_lm *lm, const int32_t *prompt, int n_prompt, int n_new, int32_t *out) {
    int32_t window[CONTEXT];
    static float logits[CONTEXT * VOCAB];
    int n = n_prompt < CONTEXT ? n_prompt : CONTEXT;
    memcpy(window, prompt + n_prompt - n, (size_t)n * sizeof *window);
    must(ctx, moe_lm_reserve(lm, 1, CONTEXT, MOE_INFER));
    for (int i = 0; i < n_new; ++i) {
        must(ctx, moe_lm_logits(lm, window, 1, n, logits));
        out[i] = best_of(logits + (n - 1) * VOCAB);
        if (n == CONTEXT) {
            memmove(window, window + CONTEXT / 2 + 1, (CONTEXT / 2 - 1) * sizeof *window);
            n = CONTEXT / 2 - 1;
        }
        window[n++] = out[i];
    }
}

static int warnings;
static void count_warnings(void *user, moe_log_level level, const char *text) {
    (void)user;
    warnings += level == MOE_LOG_WARN && strstr(text, "its last 32 are read") != NULL;
}

static void check_text(moe_ctx *ctx, int n_prompt, int n_new) {
    moe_lm *lm = model_make(ctx, NULL), *other = model_make(ctx, NULL);
    int32_t prompt[100], right[200];
    model_taken taken = {0};
    model_tokens(prompt, n_prompt, VOCAB, (uint64_t)n_prompt);
    must(ctx, moe_lm_generate(lm, prompt, n_prompt, n_new, &greedy, model_take, &taken));
    expect(ctx, other, prompt, n_prompt, n_new, right);
    assert_int_equal(taken.n, n_new);
    assert_memory_equal(taken.token, right, (size_t)n_new * sizeof *right);
    moe_lm_destroy(other);
    moe_lm_destroy(lm);
}

static void test_text_and_sliding_window(void **state) {
    (void)state;
    moe_ctx_desc desc = {.size = sizeof desc, .seed = test_seed(), .n_threads = 2, .log = count_warnings};
    moe_ctx *ctx;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    check_text(ctx, 5, 0);
    check_text(ctx, 5, 20);
    check_text(ctx, 1, CONTEXT - 1); /* exactly the context */
    check_text(ctx, CONTEXT, 1);
    assert_int_equal(warnings, 0);
    check_text(ctx, 3, 100); /* slides several times */
    check_text(ctx, 100, 40);
    assert_int_equal(warnings, 1);
    moe_ctx_destroy(ctx);
}

static void test_context_of_one(void **state) {
    (void)state;
    static const char *const pairs[] = {"model.context", "1", NULL};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    const int32_t prompt = 7;
    model_taken taken = {0};
    must(ctx, moe_lm_generate(lm, &prompt, 1, 9, &greedy, model_take, &taken));
    assert_int_equal(taken.n, 9);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_stop_seed_and_training_between(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    const int32_t prompt[] = {3, 1, 4};
    moe_lm_sampler sampler = {.size = sizeof sampler, .temperature = 2.0F, .seed = test_seed()};
    model_taken first = {0}, again = {0}, other = {0}, stopped = {.stop_after = 4};
    must(ctx, moe_lm_generate(lm, prompt, 3, 60, &sampler, model_take, &first));
    must(ctx, moe_lm_reserve(lm, 2, 16, MOE_TRAIN)); /* moves all memory, keeps the model */
    must(ctx, moe_lm_generate(lm, prompt, 3, 60, &sampler, model_take, &again));
    assert_memory_equal(first.token, again.token, sizeof first.token);
    must(ctx, moe_lm_generate(lm, prompt, 3, 60, &sampler, model_take, &stopped));
    assert_int_equal(stopped.n, 4);
    assert_memory_equal(first.token, stopped.token, 4 * sizeof *first.token);
    ++sampler.seed;
    must(ctx, moe_lm_generate(lm, prompt, 3, 60, &sampler, model_take, &other));
    assert_memory_not_equal(first.token, other.token, sizeof first.token);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_wrong_inputs(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    int32_t prompt[] = {3, 1, VOCAB};
    model_taken taken = {0};
    moe_lm_sampler s = greedy;
    must_fail(ctx, moe_lm_generate(lm, prompt, 0, 1, &s, model_take, &taken), MOE_ERR_ARGUMENT, "empty");
    must_fail(ctx, moe_lm_generate(lm, prompt, 3, 1, &s, model_take, &taken), MOE_ERR_ARGUMENT,
              "prompt[2] is 23");
    must_fail(ctx, moe_lm_generate(lm, prompt, 2, -1, &s, model_take, &taken), MOE_ERR_ARGUMENT,
              "-1 new tokens");
    must_fail(ctx, moe_lm_generate(lm, prompt, 2, 1, NULL, model_take, &taken), MOE_ERR_ARGUMENT, "sampler");
    s.temperature = NAN;
    must_fail(ctx, moe_lm_generate(lm, prompt, 2, 1, &s, model_take, &taken), MOE_ERR_ARGUMENT,
              "temperature");
    s = (moe_lm_sampler){.size = sizeof s, .top_p = 1.5F};
    must_fail(ctx, moe_lm_generate(lm, prompt, 2, 1, &s, model_take, &taken), MOE_ERR_ARGUMENT, "top_p: 1.5");
    s = (moe_lm_sampler){.size = sizeof s, .top_k = -3};
    must_fail(ctx, moe_lm_generate(lm, prompt, 2, 1, &s, model_take, &taken), MOE_ERR_ARGUMENT, "top_k: -3");
    ((float *)model_param(lm, "final_norm.weight").value)[3] = NAN;
    must_fail(ctx, moe_lm_generate(lm, prompt, 2, 1, &greedy, model_take, &taken), MOE_ERR_NUMERIC, "logit");
    assert_int_equal(taken.n, 0);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* 3. The sampler alone. */

static int32_t draw(moe_ctx *ctx, const moe_lm_sampler *s, uint64_t position, const float *logits,
                    int32_t n) {
    int32_t heap[64];
    must(ctx, moelm_logits_check(ctx, logits, n));
    const int32_t token = moelm_draw(s, position, logits, n, heap);
    assert_in_range(token, 0, n - 1);
    return token;
}

static void test_greedy_ties_to_the_lower_token(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    const float logits[] = {-1, 2, 0, 2, 2, 1};
    const moe_lm_sampler first = {.size = sizeof first, .temperature = 1, .top_k = 1};
    assert_int_equal(draw(ctx, &greedy, 0, logits, 6), 1);
    assert_int_equal(draw(ctx, &first, 0, logits, 6), 1);
    assert_int_equal(draw(ctx, &greedy, 0, logits, 1), 0);
    moe_ctx_destroy(ctx);
}

/* Shares of 20000 draws against the probabilities that temperature, top-k and top-p leave. */
static void check_shares(moe_lm_sampler s, const double *right) {
    enum { N = 20000, TOKENS = 6 };
    const float logits[TOKENS] = {0.5F, 2.0F, -1.0F, 1.0F, 2.0F, 0.0F};
    moe_ctx *ctx = test_ctx(NULL, 1);
    int64_t count[TOKENS] = {0};
    s.size = sizeof s;
    s.seed = test_seed();
    for (uint64_t i = 0; i < N; ++i) ++count[draw(ctx, &s, i, logits, TOKENS)];
    for (int t = 0; t < TOKENS; ++t) {
        double share = (double)count[t] / N, spread = sqrt(right[t] * (1 - right[t]) / N);
        if (right[t] == 0.0)
            assert_int_equal(count[t], 0);
        else if (!(fabs(share - right[t]) <= 5.5 * spread))
            fail_msg("token %d: share %g, right %g (seed %llu)", t, share, right[t],
                     (unsigned long long)s.seed);
    }
    moe_ctx_destroy(ctx);
}

static void softmax(const double *x, double *p, int n) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += exp(x[i]);
    for (int i = 0; i < n; ++i) p[i] = exp(x[i]) / sum;
}

static void test_shares_of_draws(void **state) {
    (void)state;
    double p[6];
    softmax((double[]){0.5, 2, -1, 1, 2, 0}, p, 6);
    check_shares((moe_lm_sampler){.temperature = 1.0F}, p);
    softmax((double[]){0.25, 1, -0.5, 0.5, 1, 0}, p, 6);
    check_shares((moe_lm_sampler){.temperature = 2.0F, .top_p = 1.0F, .top_k = 99}, p);
    softmax((double[]){-INFINITY, 2, -INFINITY, 1, 2, -INFINITY}, p, 6);
    check_shares((moe_lm_sampler){.temperature = 1.0F, .top_k = 3}, p);
    /* tokens 1 and 4 hold 0.74 of the mass: 0.5 needs both, 0.3 only the first of the equals */
    check_shares((moe_lm_sampler){.temperature = 1.0F, .top_p = 0.5F}, (double[]){0, 0.5, 0, 0, 0.5, 0});
    check_shares((moe_lm_sampler){.temperature = 1.0F, .top_p = 0.3F}, (double[]){0, 1, 0, 0, 0, 0});
    /* of the best three the first two hold 0.845 */
    check_shares((moe_lm_sampler){.temperature = 1.0F, .top_k = 3, .top_p = 0.84F},
                 (double[]){0, 0.5, 0, 0, 0.5, 0});
}

/* Every token ranked and weighed, then as documented. */
static int32_t plain_draw(const moe_lm_sampler *s, uint64_t position, const float *logits, int32_t n) {
    int32_t order[64];
    double p[64], sum = 0, walked = 0;
    for (int32_t i = 0; i < n; ++i) { /* by insertion: the later of equals goes behind */
        int32_t at = i;
        for (; at > 0 && logits[order[at - 1]] < logits[i]; --at) order[at] = order[at - 1];
        order[at] = i;
    }
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    for (int32_t i = 0; i < n; ++i)
        sum += p[i] = exp((double)(logits[order[i]] - logits[order[0]]) / (double)s->temperature);
    for (int32_t i = 0; i < n && s->top_p > 0; ++i)
        if ((walked += p[i]) >= (double)s->top_p * sum) n = i + 1;
    if (s->top_p > 0) sum = walked;
    uint32_t word[4];
    moe_random(s->seed, MOE_DRAW_SAMPLE, 0, position, 0, word);
    walked = 0;
    for (int32_t i = 0; i < n; ++i)
        if ((walked += p[i]) >= moei_uniform(word[0]) * sum) return order[i];
    return order[n - 1];
}

static void test_draws_are_those_of_all_ranked(void **state) {
    (void)state;
    enum { N = 3000, TOKENS = 64 };
    static const float rules[][3] = {
  /* temperature, top_k, top_p */
        {1.0F, 0,  0    },
        {0.7F, 0,  0.9F },
        {3.0F, 7,  0    },
        {2.0F, 20, 0.5F },
        {1.0F, 64, 0.99F}
    };
    moe_ctx *ctx = test_ctx(NULL, 1);
    for (uint64_t i = 0; i < N; ++i) {
        float logits[TOKENS];
        const float *rule = rules[i % (sizeof rules / sizeof *rules)];
        const moe_lm_sampler s = {.size = sizeof s,
                                  .temperature = rule[0],
                                  .top_k = (int32_t)rule[1],
                                  .top_p = rule[2],
                                  .seed = test_seed()};
        moe_random_normal(test_seed(), MOE_DRAW_TEST, 5, i, MOE_F32, logits, TOKENS, 2.0);
        if (i % 3 == 0) /* with equals */
            for (int t = 0; t < TOKENS; ++t) logits[t] = rintf(logits[t]);
        assert_int_equal(draw(ctx, &s, i, logits, TOKENS), plain_draw(&s, i, logits, TOKENS));
    }
    moe_ctx_destroy(ctx);
}

/* There is one cache: a text within a text would be another one than either. */
typedef struct nested {
    moe_lm *lm;
    moe_status inner;
    model_taken taken;
} nested;

static bool generate_again(void *user, int32_t token) {
    nested *n = user;
    model_taken inner = {0};
    const int32_t prompt = 3;
    n->inner = moe_lm_generate(n->lm, &prompt, 1, 4, &greedy, model_take, &inner);
    return model_take(&n->taken, token) && inner.n == 0;
}

static void test_one_text_at_a_time(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    const int32_t prompt[3] = {1, 2, 3};
    model_taken plain = {0};
    nested n = {.lm = lm};
    must(ctx, moe_lm_generate(lm, prompt, 3, 12, &greedy, model_take, &plain));
    must(ctx, moe_lm_generate(lm, prompt, 3, 12, &greedy, generate_again, &n));
    assert_int_equal(n.inner, MOE_ERR_STATE);
    assert_int_equal(n.taken.n, 12);
    assert_memory_equal(n.taken.token, plain.token, 12 * sizeof *plain.token);
    must(ctx, moe_lm_generate(lm, prompt, 3, 1, &greedy, model_take, &plain)); /* free again */
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Where caches are is told for as many sequences as were reserved, however many tokens these have. */
static void test_more_caches_than_reserved(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    must(ctx, moe_lm_reserve(lm, 1, 8, MOE_INFER));
    moelm_cache *const caches[2] = {NULL, NULL};
    static const int32_t tokens[2] = {1, 2};
    moelm_pass pass = {.tokens = tokens, .n_seq = 2, .length = 1, .cache = caches};
    must_fail(ctx, moelm_forward(lm, &pass), MOE_ERR_STATE, "2 sequences are more than the 1 sequences");
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static int long_prompts;
static void count_long_prompts(void *user, moe_log_level level, const char *text) {
    (void)user;
    long_prompts += level == MOE_LOG_WARN && strstr(text, "is longer than the context") != NULL;
}

/* Samples of one prompt: said once. By moe_lm_generate each time. */
static void test_a_long_prompt_is_told_once(void **state) {
    (void)state;
    moe_ctx_desc desc = {.size = sizeof desc, .seed = 1, .n_threads = 1, .log = count_long_prompts};
    moe_ctx *ctx;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    moe_lm *lm = model_make(ctx, NULL);
    const moe_lm_batch_desc one = {.size = sizeof one, .max_texts = 1};
    moe_lm_batch *batch;
    must(ctx, moe_lm_batch_create(lm, &one, &batch));
    const moe_lm_sampler sampler = {.size = sizeof sampler};
    int32_t prompt[41] = {0};
    static model_taken taken;
    for (int i = 0; i < 6; ++i) {
        const int64_t n = 40 + i / 3;
        const moe_lm_text text = {sizeof text, prompt, n, 1, &sampler, model_take, &taken};
        must(ctx, moe_lm_batch_add(batch, &text));
        must(ctx, moe_lm_batch_step(batch));
        assert_int_equal(long_prompts, 1 + i / 3);
    }
    for (int i = 0; i < 2; ++i) must(ctx, moe_lm_generate(lm, prompt, 40, 1, &sampler, model_take, &taken));
    assert_int_equal(long_prompts, 4);
    moe_lm_batch_destroy(batch);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache_is_the_full_forward),
        cmocka_unit_test(test_text_and_sliding_window),
        cmocka_unit_test(test_context_of_one),
        cmocka_unit_test(test_stop_seed_and_training_between),
        cmocka_unit_test(test_one_text_at_a_time),
        cmocka_unit_test(test_wrong_inputs),
        cmocka_unit_test(test_greedy_ties_to_the_lower_token),
        cmocka_unit_test(test_shares_of_draws),
        cmocka_unit_test(test_draws_are_those_of_all_ranked),
        cmocka_unit_test(test_more_caches_than_reserved),
        cmocka_unit_test(test_a_long_prompt_is_told_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
