/* bench_problem.c: reads, prints and fills problems.
 * A skewed gate is exact: gate row e is the unit vector e and x[t,e] holds the logit, so d must be at least
 * E; logits log p(e) + Gumbel noise draw K experts without replacement from p (Kool et al. 2019).
 */
#include "bench_problem.h"

#include <moekit/op.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static moe_status refuse(moe_error *error, const char *what, const char *word, size_t length) {
    error->status = MOE_ERR_ARGUMENT;
    snprintf(error->text, sizeof error->text,
             "problem: '%.*s': %s; a problem is like e8,t4096,d256,n256,k2,skew=zipf1.0", (int)length, word,
             what);
    return MOE_ERR_ARGUMENT;
}

/* "e8": a known prefix and a number; false: another kind of word. */
static bool parse_size(const char *word, size_t length, bench_problem *problem) {
    int64_t wide = problem->n_tokens;
    const struct {
        const char *prefix;
        int32_t *field;
    } sizes[] = {
        {"shared", &problem->n_shared },
        {"e",      &problem->n_experts},
        {"d",      &problem->d_model  },
        {"n",      &problem->hidden   },
        {"k",      &problem->top_k    },
        {"t",      NULL               }
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        size_t n = strlen(sizes[i].prefix);
        char *end;
        if (length <= n || memcmp(word, sizes[i].prefix, n) != 0) continue;
        errno = 0;
        long long value = strtoll(word + n, &end, 10);
        if (end != word + length || errno || value < 0 || value > 1 << 24) continue;
        if (sizes[i].field)
            *sizes[i].field = (int32_t)value;
        else
            wide = value;
        problem->n_tokens = wide;
        return true;
    }
    return false;
}

static bool is_word(const char *word, size_t length, const char *name) {
    return strlen(name) == length && memcmp(word, name, length) == 0;
}

static moe_status parse_word(const char *word, size_t length, bench_problem *problem, moe_error *error) {
    static const char *const activations[] = {"swiglu", "gelu", "relu"};
    if (is_word(word, length, "f32") || is_word(word, length, "f64")) {
        problem->dtype = word[1] == '3' ? MOE_F32 : MOE_F64;
        return MOE_OK;
    }
    if (is_word(word, length, "skew=even")) {
        problem->skew = BENCH_EVEN;
        return MOE_OK;
    }
    if (length > 9 && memcmp(word, "skew=zipf", 9) == 0) {
        char *end;
        problem->exponent = strtod(word + 9, &end);
        problem->skew = BENCH_ZIPF;
        bool good = end == word + length && problem->exponent >= 0 && problem->exponent <= 10;
        return good ? MOE_OK : refuse(error, "the exponent is a number from 0 to 10", word, length);
    }
    for (size_t i = 0; i < sizeof activations / sizeof *activations; ++i)
        if (length > 4 && memcmp(word, "act=", 4) == 0 && is_word(word + 4, length - 4, activations[i])) {
            problem->activation = activations[i];
            return MOE_OK;
        }
    return parse_size(word, length, problem) ? MOE_OK : refuse(error, "not understood", word, length);
}

moe_status bench_problem_parse(const char *text, bench_problem *problem, moe_error *error) {
    bench_problem parsed = {
        .n_experts = 8, .d_model = 256, .hidden = 256, .top_k = 2, .n_tokens = 4096, .activation = "swiglu"};
    for (const char *word = text; *word;) {
        size_t length = strcspn(word, ",");
        moe_status status = parse_word(word, length, &parsed, error);
        if (status != MOE_OK) return status;
        word += length + (word[length] == ',');
    }
    if (parsed.n_tokens < 1 || parsed.d_model < 1 || parsed.hidden < 1)
        return refuse(error, "t, d and n are at least 1", text, strlen(text));
    if (parsed.n_experts < 1 || parsed.top_k < 1 || parsed.top_k > parsed.n_experts)
        return refuse(error, "e is at least 1, and k from 1 to e", text, strlen(text));
    if (parsed.skew != BENCH_RANDOM && parsed.d_model < parsed.n_experts)
        return refuse(error, "a skew needs d of at least e", text, strlen(text));
    *problem = parsed;
    return MOE_OK;
}

void bench_problem_print(const bench_problem *problem, char *text, size_t size) {
    char shared[24] = "", skew[32] = "";
    if (problem->n_shared) snprintf(shared, sizeof shared, ",shared%d", problem->n_shared);
    if (problem->skew == BENCH_EVEN) snprintf(skew, sizeof skew, ",skew=even");
    if (problem->skew == BENCH_ZIPF) snprintf(skew, sizeof skew, ",skew=zipf%g", problem->exponent);
    snprintf(text, size, "e%d,t%lld,d%d,n%d,k%d%s,act=%s%s,%s", problem->n_experts,
             (long long)problem->n_tokens, problem->d_model, problem->hidden, problem->top_k, shared,
             problem->activation, skew, problem->dtype == MOE_F32 ? "f32" : "f64");
}

double bench_problem_flop(const bench_problem *problem) {
    double products = strcmp(problem->activation, "swiglu") == 0 ? 3 : 2; /* [d,n] matrices of one expert */
    double rows = (double)problem->n_tokens * (problem->top_k + problem->n_shared);
    return 2 * products * rows * problem->d_model * problem->hidden;
}

static void set_number(moe_dtype dtype, void *data, int64_t index, double value) {
    if (dtype == MOE_F32)
        ((float *)data)[index] = (float)value;
    else
        ((double *)data)[index] = value;
}

static double uniform(uint32_t word) {
    return ((double)word + 0.5) * 0x1p-32;
}

static double logit_of(const bench_problem *problem, int64_t t, int32_t e) {
    if (problem->skew == BENCH_EVEN) {
        int64_t distance =
            (e - t * problem->top_k % problem->n_experts + problem->n_experts) % problem->n_experts;
        return distance < problem->top_k ? 4.0 : 0.0;
    }
    uint32_t word[4];
    moe_random(1, MOE_DRAW_TEST, 2, (uint64_t)t, (uint64_t)e, word);
    return -problem->exponent * log(e + 1.0) - log(-log(uniform(word[0])));
}

void bench_problem_fill(const bench_problem *problem, void *x, void *gate) {
    const int64_t d = problem->d_model;
    moe_random_normal(1, MOE_DRAW_TEST, 1, 0, problem->dtype, x, problem->n_tokens * d, 1);
    if (problem->skew == BENCH_RANDOM) return;
    for (int32_t e = 0; e < problem->n_experts; ++e)
        for (int64_t i = 0; i < d; ++i) set_number(problem->dtype, gate, e * d + i, i == e ? 1.0 : 0.0);
    for (int64_t t = 0; t < problem->n_tokens; ++t)
        for (int32_t e = 0; e < problem->n_experts; ++e)
            set_number(problem->dtype, x, t * d + e, logit_of(problem, t, e));
}
