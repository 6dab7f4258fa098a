/* bench_problem.c: reads and prints problems, and draws the routes of a skew.
 * A Zipf route is exact: the K largest of log p(e) + Gumbel noise are K experts drawn from p without
 * replacement. Source: Kool et al. 2019 (Gumbel-top-k).
 */
#include "bench/bench_problem.h"

#include <moekit/op.h>
#include <moekit/option.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens and dtype are the caller's: a shape says what the model's authors did. */
const bench_shape bench_shapes[] = {
    {"mixtral",     "e8,d4096,n14336,k2"                   }, /* 8x7B, Jiang et al. 2024 */
    {"olmoe",       "e64,d2048,n1024,k8"                   }, /* 1B-7B, Muennighoff et al. 2024 */
    {"qwen3-30b",   "e128,d2048,n768,k8"                   }, /* 30B-A3B, Qwen team 2025 */
    {"deepseek-v3", "e256,d7168,n2048,k8,shared1"          }, /* DeepSeek-AI 2024 */
    {"gpt-oss",     "e32,d2880,n2880,k4,act=swigluoai,bias"}, /* 20B, OpenAI 2025 */
    {"fine-7b",     "e128,d1536,n256,k8"                   }, /* finest 7B of SonicMoE, Guo et al. 2025 */
    {NULL,          NULL                                   }
};

static const char *const dtype_name[] = {[MOE_F32] = "f32", [MOE_F64] = "f64", [MOE_BF16] = "bf16"};

static moe_status refuse(moe_error *error, const char *what, const char *word, size_t length) {
    error->status = MOE_ERR_ARGUMENT;
    snprintf(error->text, sizeof error->text,
             "problem: '%.*s': %s; a problem is like e8,t4096,d256,n256,k2,skew=zipf1.0 or olmoe,t512",
             (int)length, word, what);
    return MOE_ERR_ARGUMENT;
}

/* A misspelt model; the message is the usual one where nothing is near. */
static moe_status refuse_unknown(moe_error *error, const char *word, size_t length) {
    char name[32], what[80] = "not understood";
    size_t least = (length + 2) / 3 + 1;
    snprintf(name, sizeof name, "%.*s", (int)length, word);
    for (const bench_shape *shape = bench_shapes; shape->name; ++shape) {
        const moe_option row = {.key = shape->name, .aliases = ""};
        const size_t distance = moe_option_distance(&row, name);
        if (distance >= least) continue;
        least = distance;
        snprintf(what, sizeof what, "not understood; did you mean '%s'?", shape->name);
    }
    return refuse(error, what, word, length);
}

static bool is_word(const char *word, size_t length, const char *name) {
    return strlen(name) == length && memcmp(word, name, length) == 0;
}

/* "e8": a known prefix and a number. */
static moe_status parse_size(const char *word, size_t length, bench_problem *problem, moe_error *error) {
    int32_t tokens = -1;
    const struct {
        const char *prefix;
        int32_t *field;
    } sizes[] = {
        {"shared", &problem->n_shared },
        {"e",      &problem->n_experts},
        {"d",      &problem->d_model  },
        {"n",      &problem->hidden   },
        {"k",      &problem->top_k    },
        {"t",      &tokens            }
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        size_t n = strlen(sizes[i].prefix);
        char *end;
        if (length <= n || memcmp(word, sizes[i].prefix, n) != 0) continue;
        errno = 0;
        long long value = strtoll(word + n, &end, 10);
        if (end != word + length || value < 0) continue;
        if (errno || value > 1 << 24) return refuse(error, "a size is at most 16777216", word, length);
        *sizes[i].field = (int32_t)value;
        if (tokens >= 0) problem->n_tokens = tokens;
        return MOE_OK;
    }
    return refuse_unknown(error, word, length);
}

static moe_status parse_skew(const char *word, size_t length, bench_problem *problem, moe_error *error) {
    if (is_word(word, length, "skew=even")) {
        problem->skew = BENCH_EVEN;
        return MOE_OK;
    }
    char *end = NULL;
    if (length > 9 && memcmp(word, "skew=zipf", 9) == 0) problem->exponent = strtod(word + 9, &end);
    if (end != word + length) return refuse(error, "a skew is even or like zipf1.0", word, length);
    problem->skew = BENCH_ZIPF;
    if (problem->exponent >= 0 && problem->exponent <= 10) return MOE_OK;
    return refuse(error, "the exponent is a number from 0 to 10", word, length);
}

static moe_status parse_activation(const char *word, size_t length, bench_problem *problem,
                                   moe_error *error) {
    const moe_option *row = moe_layer_option_find("moe.activation");
    const size_t key = strlen("act=");
    char all[256] = "not an activation of the layer, which has";
    for (const char *const *name = row ? row->choices : NULL; name && *name; ++name) {
        if (is_word(word + key, length - key, *name)) {
            problem->activation = *name;
            return MOE_OK;
        }
        const size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, " %s", *name);
    }
    return refuse(error, all, word, length);
}

static moe_status parse_saved(const char *word, size_t length, bench_problem *problem, moe_error *error) {
    if (!is_word(word, length, "saved=mxfp8"))
        return refuse(error, "saved=mxfp8 is what training may keep in fewer bits", word, length);
    problem->saved_mxfp8 = true;
    return MOE_OK;
}

/* Words that have a value behind "=". */
static const struct {
    const char *name;
    moe_status (*parse)(const char *word, size_t length, bench_problem *problem, moe_error *error);
} values[] = {
    {"skew=",  parse_skew      },
    {"act=",   parse_activation},
    {"saved=", parse_saved     }
};
enum { VALUES = sizeof values / sizeof *values };

bool bench_problem_begins(const char *text) {
    for (size_t i = 0; i < VALUES; ++i)
        if (strncmp(text, values[i].name, strlen(values[i].name)) == 0) return true;
    return false;
}

/* "int4g32", "nf4": packed experts; false: another kind of word. */
static bool parse_format(const char *word, size_t length, bench_problem *problem) {
    for (const char *const *name = moe_packed_formats(); *name; ++name) {
        const size_t n = strlen(*name);
        if (length < n || memcmp(word, *name, n) != 0) continue;
        char *end = NULL;
        const long group = length > n + 1 && word[n] == 'g' ? strtol(word + n + 1, &end, 10) : 0;
        if (length != n && (end != word + length || group < 1 || group > 1024)) return false;
        problem->format = *name;
        problem->group = (int32_t)group;
        return true;
    }
    return false;
}

static moe_status parse_word(const char *word, size_t length, bench_problem *problem, moe_error *error) {
    for (int i = 0; i < 3; ++i)
        if (is_word(word, length, dtype_name[i])) {
            problem->dtype = (moe_dtype)i;
            return MOE_OK;
        }
    if (is_word(word, length, "bias")) {
        problem->bias = true;
        return MOE_OK;
    }
    for (size_t i = 0; i < VALUES; ++i)
        if (strncmp(word, values[i].name, strlen(values[i].name)) == 0)
            return values[i].parse(word, length, problem, error);
    if (parse_format(word, length, problem)) return MOE_OK;
    return parse_size(word, length, problem, error);
}

static moe_status parse_words(const char *text, bench_problem *problem, moe_error *error) {
    for (const char *word = text; *word;) {
        const size_t length = strcspn(word, ",");
        const bench_shape *shape = bench_shapes;
        while (shape->name && !is_word(word, length, shape->name)) ++shape;
        moe_status status = MOE_OK;
        for (const char *part = shape->name ? shape->problem : word;;) {
            const size_t n = strcspn(part, ",");
            status = parse_word(part, n, problem, error);
            if (!shape->name || status != MOE_OK || !part[n]) break;
            part += n + 1;
        }
        if (status != MOE_OK) return status;
        word += length + (word[length] == ',');
    }
    return MOE_OK;
}

moe_status bench_problem_parse(const char *text, bench_problem *problem, moe_error *error) {
    bench_problem parsed = {
        .n_experts = 8, .d_model = 256, .hidden = 256, .top_k = 2, .n_tokens = 4096, .activation = "swiglu"};
    moe_status status = parse_words(text, &parsed, error);
    if (status != MOE_OK) return status;
    if (parsed.n_tokens < 1 || parsed.d_model < 1 || parsed.hidden < 1)
        return refuse(error, "t, d and n are at least 1", text, strlen(text));
    if (parsed.n_experts < 1 || parsed.top_k < 1 || parsed.top_k > parsed.n_experts)
        return refuse(error, "e is at least 1, and k from 1 to e", text, strlen(text));
    if (parsed.skew == BENCH_ZIPF && parsed.top_k > BENCH_MOST_K)
        return refuse(error, "a Zipf skew goes with k of at most 1024", text, strlen(text));
    *problem = parsed;
    return MOE_OK;
}

void bench_problem_print(const bench_problem *problem, char *text, size_t size) {
    char shared[24] = "", skew[32] = "", group[16] = "";
    if (problem->group) snprintf(group, sizeof group, "g%d", problem->group);
    if (problem->n_shared) snprintf(shared, sizeof shared, ",shared%d", problem->n_shared);
    if (problem->skew == BENCH_EVEN) snprintf(skew, sizeof skew, ",skew=even");
    if (problem->skew == BENCH_ZIPF) snprintf(skew, sizeof skew, ",skew=zipf%g", problem->exponent);
    snprintf(text, size, "e%d,t%lld,d%d,n%d,k%d%s,act=%s%s%s%s%s%s%s,%s", problem->n_experts,
             (long long)problem->n_tokens, problem->d_model, problem->hidden, problem->top_k, shared,
             problem->activation, problem->bias ? ",bias" : "", skew, problem->format ? "," : "",
             problem->format ? problem->format : "", group, problem->saved_mxfp8 ? ",saved=mxfp8" : "",
             dtype_name[problem->dtype]);
}

moe_layer_desc bench_problem_layer(const bench_problem *problem) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .dtype = problem->dtype,
                            .d_model = problem->d_model,
                            .num_experts = problem->n_experts,
                            .top_k = problem->top_k,
                            .expert_hidden_size = problem->hidden,
                            .num_shared_experts = problem->n_shared,
                            .activation = problem->activation,
                            .expert_bias = problem->bias,
                            .saved_dtype = problem->saved_mxfp8 ? "mxfp8" : NULL,
                            .aux_loss_coeff = 0.01F};
}

int64_t bench_problem_weights(const bench_problem *problem) {
    /* every gated activation says so in its name */
    const int64_t matrices = strstr(problem->activation, "glu") ? 3 : 2;
    return matrices * problem->d_model * problem->hidden;
}

double bench_problem_flop(const bench_problem *problem, int64_t n_tokens) {
    const double rows = (double)n_tokens * (problem->top_k + problem->n_shared);
    return 2 * rows * (double)bench_problem_weights(problem);
}

static double uniform(uint32_t word) {
    return ((double)word + 0.5) * 0x1p-32;
}

/* Keeps slot[K] the experts of the largest keys, descending. */
static void insert(int32_t *slot, double *key, int32_t n, int32_t e, double value) {
    int32_t at = n;
    while (at > 0 && value > key[at - 1]) --at;
    if (at == n) return;
    for (int32_t i = n - 1; i > at; --i) {
        slot[i] = slot[i - 1];
        key[i] = key[i - 1];
    }
    slot[at] = e;
    key[at] = value;
}

void bench_problem_route(const bench_problem *problem, int32_t *expert) {
    const int32_t K = problem->top_k, E = problem->n_experts;
    for (int64_t t = 0; t < problem->n_tokens; ++t) {
        int32_t *slot = expert + t * K;
        if (problem->skew == BENCH_EVEN) {
            for (int32_t k = 0; k < K; ++k) slot[k] = (int32_t)((t * K + k) % E);
            continue;
        }
        double key[BENCH_MOST_K];
        for (int32_t k = 0; k < K; ++k) key[k] = -INFINITY;
        for (int32_t e = 0; e < E; ++e) {
            uint32_t word[4];
            moe_random(1, MOE_DRAW_TEST, 2, (uint64_t)t, (uint64_t)e, word);
            insert(slot, key, K, e, -problem->exponent * log(e + 1.0) - log(-log(uniform(word[0]))));
        }
    }
}
