/* test_topk.c: scores, selection and their gradient. The reference against a brute-force ranking and finite
 * differences; every variant against the reference on the same logits.
 */
#include "kernel/guarded.h"

static const int64_t expert_counts[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 60, 64, 65, 128, 257};

typedef struct topk_case {
    test_random random;
    uint64_t seed;
    moei_topk_args args;
    uint8_t mask[70];
    int32_t *expert;
    int64_t first_bad;
    guarded logits, prob, lse, weight, entropy;
} topk_case;

/* Logits on a coarse grid where `ties`, so that equal scores are common. */
static void make_case(topk_case *c, uint64_t seed, moe_dtype dtype, bool ties) {
    *c = (topk_case){.random = {seed * 31 + 5}, .seed = seed, .first_bad = -1};
    test_random *random = &c->random;
    moei_topk_args *args = &c->args;
    int64_t n_experts = random_of(random, expert_counts, sizeof expert_counts / sizeof expert_counts[0]);
    args->dtype = dtype, args->n_tokens = 1 + random_below(random, 70), args->n_experts = (int32_t)n_experts;
    int64_t limit = n_experts < 9 ? n_experts : 9;
    args->top_k = seed % 7 == 0 ? (int32_t)n_experts : 1 + (int32_t)random_below(random, limit);
    args->score_before_topk = seed & 1, args->norm_topk_prob = seed & 2;
    args->scale = seed % 3 ? 1.0 : 2.5;
    for (int64_t t = 0; t < args->n_tokens; ++t) c->mask[t] = random_below(random, 4) != 0;
    if (seed & 4) args->mask = c->mask;
    c->logits = guarded_random(random, dtype, args->n_tokens * n_experts);
    for (int64_t i = 0; i < c->logits.n; ++i) {
        double x = ties ? round(2 * get(&c->logits, i)) : 6 * get(&c->logits, i);
        moei_real_store(dtype, c->logits.data, i, x);
    }
    c->prob = guarded_new(dtype, c->logits.n), c->lse = guarded_new(dtype, args->n_tokens);
    c->weight = guarded_new(dtype, args->n_tokens * args->top_k);
    c->entropy = guarded_new(dtype, args->n_tokens);
    c->expert = malloc((size_t)c->weight.n * sizeof *c->expert);
    args->logits = c->logits.data, args->prob = c->prob.data, args->lse = c->lse.data;
    args->expert = c->expert, args->weight = c->weight.data, args->entropy = c->entropy.data;
    args->first_bad = &c->first_bad;
}

static void free_case(topk_case *c) {
    guarded_free(&c->logits), guarded_free(&c->prob), guarded_free(&c->lse);
    guarded_free(&c->weight), guarded_free(&c->entropy);
    free(c->expert);
}

static void run(const moei_kernel_row *variant, int32_t n_threads, const moei_topk_args *args) {
    moei_team team = test_team(n_threads);
    ((moei_topk_fn *)variant->fn)(&team, args);
}

/* How many experts stand before e: higher logit, or equal and lower index. */
static int32_t rank_of(const topk_case *c, int64_t t, int32_t e) {
    int32_t before = 0;
    double own = get(&c->logits, t * c->args.n_experts + e);
    for (int32_t other = 0; other < c->args.n_experts; ++other) {
        double l = get(&c->logits, t * c->args.n_experts + other);
        before += l > own || (l == own && other < e);
    }
    return before;
}

/* A masked token is routed nowhere and counts for nothing. */
static void check_masked(const topk_case *c, int64_t t) {
    for (int32_t e = 0; e < c->args.n_experts; ++e)
        assert_true(get(&c->prob, t * c->args.n_experts + e) == 0);
    for (int64_t slot = t * c->args.top_k; slot < (t + 1) * c->args.top_k; ++slot) {
        assert_int_equal(c->expert[slot], -1);
        assert_true(get(&c->weight, slot) == 0);
    }
    assert_true(get(&c->lse, t) == 0 && get(&c->entropy, t) == 0);
}

static void check_token(const topk_case *c, int64_t t, const char *name, double eps) {
    const moei_topk_args *args = &c->args;
    int32_t n_experts = args->n_experts, top_k = args->top_k;
    double sum = 0, selected = 0, entropy = 0;
    if (args->mask && !args->mask[t]) {
        check_masked(c, t);
        return;
    }
    for (int32_t e = 0; e < n_experts; ++e) sum += exp(get(&c->logits, t * n_experts + e));
    for (int32_t e = 0; e < n_experts; ++e) {
        double p = exp(get(&c->logits, t * n_experts + e)) / sum;
        check_close(get(&c->prob, t * n_experts + e), p, eps * p, name, c->seed, "prob", e);
        if (rank_of(c, t, e) < top_k) selected += p;
        entropy -= p * log(p);
    }
    check_close(get(&c->lse, t), log(sum), eps * (1 + fabs(log(sum))), name, c->seed, "lse", t);
    check_close(get(&c->entropy, t), entropy, eps * (1 + entropy), name, c->seed, "entropy", t);
    for (int32_t k = 0; k < top_k; ++k) {
        int32_t e = c->expert[t * top_k + k];
        assert_in_range(e, 0, n_experts - 1);
        assert_int_equal(rank_of(c, t, e), k);
        double p = exp(get(&c->logits, t * n_experts + e)) / sum;
        bool over_all = args->score_before_topk && !args->norm_topk_prob;
        double want = args->scale * (over_all ? p : p / selected);
        check_close(get(&c->weight, t * top_k + k), want, eps * want, name, c->seed, "weight", k);
    }
}

static void test_selection_by_brute_force(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("topk", NULL); v; v = next_variant("topk", v)) {
        for (uint64_t seed = 1; seed <= 160; ++seed) {
            moe_dtype dtype = v->serves & 1u << MOE_F64 && seed % 2 ? MOE_F64 : MOE_F32;
            topk_case c;
            make_case(&c, seed, dtype, seed % 3 == 0);
            run(v, 1 + (int32_t)(seed % 3), &c.args);
            assert_int_equal(c.first_bad, -1);
            double eps = dtype == MOE_F64 ? 64 * EPS_F64 : 16 * EPS_F32;
            for (int64_t t = 0; t < c.args.n_tokens; ++t) check_token(&c, t, v->name, eps);
            free_case(&c);
        }
    }
}

/* Given experts: those selected give the same bits, and others the weights of a selection of theirs alone,
 * however far below the best they are. */
static void test_given_experts(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("topk", NULL); v; v = next_variant("topk", v)) {
        for (uint64_t seed = 1; seed <= 60; ++seed) {
            moe_dtype dtype = v->serves & 1u << MOE_F64 && seed % 2 ? MOE_F64 : MOE_F32;
            topk_case c;
            make_case(&c, seed, dtype, false);
            run(v, 2, &c.args);
            const int64_t slots = c.weight.n;
            const size_t bytes = (size_t)slots * moe_dtype_bytes(dtype);
            void *weight = malloc(bytes);
            memcpy(weight, c.weight.data, bytes);
            memset(c.weight.data, 0xff, bytes);
            c.args.given = true;
            run(v, 1, &c.args);
            assert_memory_equal(weight, c.weight.data, bytes);
            free(weight);
            free_case(&c);
        }
        float logits[4] = {200, -100, -101, 0}, prob[4], lse, given[3];
        int32_t expert[3] = {2, -1, 1};
        int64_t first_bad = -1;
        moei_topk_args args = {.n_tokens = 1,
                               .n_experts = 4,
                               .top_k = 3,
                               .scale = 1,
                               .given = true,
                               .logits = logits,
                               .prob = prob,
                               .lse = &lse,
                               .expert = expert,
                               .weight = given,
                               .first_bad = &first_bad};
        run(v, 1, &args);
        check_close((double)given[0], 1 / (1 + exp(1)), 1e-6, v->name, 0, "weight", 0);
        assert_true(given[1] == 0);
        check_close((double)given[2], 1 / (1 + exp(-1)), 1e-6, v->name, 0, "weight", 2);
    }
}

/* The lowest bad token is told, whoever met it first; the others are served. Masked tokens may hold anything.
 */
static void test_bad_logits(void **state) {
    (void)state;
    const double bad[] = {NAN, INFINITY, -INFINITY};
    for (const moei_kernel_row *v = next_variant("topk", NULL); v; v = next_variant("topk", v)) {
        for (uint64_t seed = 1; seed <= 40; ++seed) {
            topk_case c;
            make_case(&c, seed, MOE_F32, false);
            moei_topk_args *args = &c.args;
            int64_t expected = -1;
            for (int i = 0; i < 3; ++i) {
                int64_t t = random_below(&c.random, args->n_tokens),
                        e = random_below(&c.random, args->n_experts);
                moei_real_store(MOE_F32, c.logits.data, t * args->n_experts + e, bad[i]);
                if (args->mask && !args->mask[t]) continue;
                if (expected < 0 || t < expected) expected = t;
            }
            run(v, 2, args);
            assert_int_equal(c.first_bad, expected);
            for (int64_t t = 0; t < expected; ++t) check_token(&c, t, v->name, 16 * EPS_F32);
            free_case(&c);
        }
    }
}

/* Logits as far apart as floats go. */
static void test_extreme_logits(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("topk", NULL); v; v = next_variant("topk", v)) {
        float logits[4] = {-3e38f, 3e38f, 0, 3e38f}, prob[4], lse, weight[3], entropy;
        int32_t expert[3];
        int64_t first_bad = -1;
        moei_topk_args args = {.n_tokens = 1,
                               .n_experts = 4,
                               .top_k = 3,
                               .scale = 1,
                               .logits = logits,
                               .prob = prob,
                               .lse = &lse,
                               .expert = expert,
                               .weight = weight,
                               .entropy = &entropy,
                               .first_bad = &first_bad};
        run(v, 1, &args);
        assert_int_equal(first_bad, -1);
        assert_int_equal(expert[0], 1);
        assert_int_equal(expert[1], 3);
        assert_int_equal(expert[2], 2);
        assert_true(prob[0] == 0 && prob[1] == 0.5f && prob[2] == 0 && prob[3] == 0.5f);
        assert_true(weight[0] == 0.5f && weight[1] == 0.5f && weight[2] == 0 && lse == 3e38f);
        check_close((double)entropy, log(2), 1e-6, v->name, 0, "entropy", 0);
    }
}

typedef struct grad_case {
    topk_case forward;
    moei_topk_grad_args args;
    double aux[257];
    guarded dweight, dlogits;
} grad_case;

static void make_grad(grad_case *g, uint64_t seed, moe_dtype dtype) {
    make_case(&g->forward, seed, dtype, false);
    const moei_topk_args *f = &g->forward.args;
    test_random *random = &g->forward.random;
    run(next_variant("topk", NULL), 1, f);
    g->dweight = guarded_random(random, dtype, f->n_tokens * f->top_k);
    g->dlogits = guarded_new(dtype, f->n_tokens * f->n_experts);
    for (int32_t e = 0; e < f->n_experts; ++e) g->aux[e] = random_real(random);
    g->args = (moei_topk_grad_args){.dtype = dtype,
                                    .n_tokens = f->n_tokens,
                                    .n_experts = f->n_experts,
                                    .top_k = f->top_k,
                                    .mask = f->mask,
                                    .score_before_topk = f->score_before_topk,
                                    .norm_topk_prob = f->norm_topk_prob,
                                    .scale = f->scale,
                                    .prob = f->prob,
                                    .lse = f->lse,
                                    .expert = f->expert,
                                    .weight = f->weight,
                                    .dweight = g->dweight.data,
                                    .aux_grad = seed % 5 ? g->aux : NULL,
                                    .z_grad = seed % 4 ? 0.3 : 0,
                                    .dlogits = g->dlogits.data};
}

static void free_grad(grad_case *g) {
    guarded_free(&g->dweight), guarded_free(&g->dlogits);
    free_case(&g->forward);
}

static void run_grad(const moei_kernel_row *variant, int32_t n_threads, const moei_topk_grad_args *args) {
    moei_team team = test_team(n_threads);
    ((moei_topk_grad_fn *)variant->fn)(&team, args);
}

/* The function whose gradient topk_grad gives: <dweight, weight> + <aux, prob> + z/2 lse^2 over real tokens.
 */
static double objective(const grad_case *g, const int32_t *expert) {
    const moei_topk_args *f = &g->forward.args;
    double total = 0;
    run(next_variant("topk", NULL), 1, f);
    assert_memory_equal(expert, f->expert, (size_t)g->dweight.n * sizeof *expert);
    for (int64_t i = 0; i < g->dweight.n; ++i) total += get(&g->dweight, i) * get(&g->forward.weight, i);
    for (int64_t i = 0; i < g->dlogits.n && g->args.aux_grad; ++i)
        total += g->aux[i % f->n_experts] * get(&g->forward.prob, i);
    for (int64_t t = 0; t < f->n_tokens; ++t)
        total += 0.5 * g->args.z_grad * get(&g->forward.lse, t) * get(&g->forward.lse, t);
    return total;
}

static void test_gradient_by_differences(void **state) {
    (void)state;
    const moei_kernel_row *v = next_variant("topk_grad", NULL);
    const double step = 1e-6;
    for (uint64_t seed = 1; seed <= 60; ++seed) {
        grad_case g;
        make_grad(&g, seed, MOE_F64);
        run_grad(v, 2, &g.args);
        size_t bytes = (size_t)g.dweight.n * sizeof *g.forward.expert;
        int32_t *expert = malloc(bytes);
        memcpy(expert, g.forward.expert, bytes);
        for (int i = 0; i < 12; ++i) {
            int64_t at = random_below(&g.forward.random, g.dlogits.n);
            double x = get(&g.forward.logits, at);
            moei_real_store(MOE_F64, g.forward.logits.data, at, x + step);
            double up = objective(&g, expert);
            moei_real_store(MOE_F64, g.forward.logits.data, at, x - step);
            double down = objective(&g, expert);
            moei_real_store(MOE_F64, g.forward.logits.data, at, x);
            check_close(get(&g.dlogits, at), (up - down) / (2 * step), 1e-7, v->name, seed, "dlogits", at);
        }
        free(expert);
        free_grad(&g);
    }
}

static void test_gradient_variants(void **state) {
    (void)state;
    const moei_kernel_row *ref = next_variant("topk_grad", NULL);
    for (const moei_kernel_row *v = ref; v; v = next_variant("topk_grad", v)) {
        for (uint64_t seed = 1; seed <= 160; ++seed) {
            grad_case g;
            make_grad(&g, seed, MOE_F32);
            run_grad(ref, 1, &g.args);
            guarded first = g.dlogits;
            for (int32_t threads = 1; threads <= 4; threads *= 2) {
                g.dlogits = guarded_new(MOE_F32, first.n);
                g.args.dlogits = g.dlogits.data;
                run_grad(v, threads, &g.args);
                for (int64_t i = 0; i < first.n; ++i) {
                    double p = get(&g.forward.prob, i);
                    check_close(get(&g.dlogits, i), get(&first, i), 64 * EPS_F32 * p, v->name, seed,
                                "dlogits", i);
                }
                if (threads < 4) guarded_free(&g.dlogits);
            }
            guarded_free(&first);
            free_grad(&g);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection_by_brute_force),
        cmocka_unit_test(test_given_experts),
        cmocka_unit_test(test_bad_logits),
        cmocka_unit_test(test_extreme_logits),
        cmocka_unit_test(test_gradient_by_differences),
        cmocka_unit_test(test_gradient_variants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
