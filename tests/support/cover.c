/* cover.c: the greedy generator of pairwise covering layers, judged by moe_layer_desc_check alone.
 * value[F]: the number of each factor's value; pair[V,V]: what is known of two values.
 * Source: AETG (cover.h); a refusal's words name the options that could mend it, and no other is tried.
 */
#include "support/cover.h"

#include "core/option.h"

#include <ctype.h>

enum { FACTORS = 128, VALUES_EACH = 16, REASON = 200 };
enum { REPAIR_STEPS = 20000, TRIES = 3, QUICK = 30, SEEN = 1 << 16 }; /* of searches */

#define CALL_INT(field, max) MOE_OPT_INT, offsetof(cover_problem, field), "1", 1, max, NULL
#define CALL_BOOL(field)     MOE_OPT_BOOL, offsetof(cover_problem, field), "false", 0, 0, NULL
/* clang-format off */
static const moe_option call_rows[] = {
    {"call.tokens",        "", CALL_INT(n_tokens, COVER_TOKENS), ""},
    {"call.sequences",     "", CALL_INT(n_sequences, 2),         ""},
    {"call.token_mask",    "", CALL_BOOL(masked),                ""},
    {"call.replay_expert", "", CALL_BOOL(replayed),              ""},
};
/* clang-format on */

typedef struct factor {
    moe_option row;   /* its offset is that in a cover_problem */
    const char *word; /* the last part of its key */
    size_t word_length;
    const char *value[VALUES_EACH];
    int n_values, first; /* number of its first value among all */
} factor;

typedef struct choice {
    uint8_t value[FACTORS];
} choice;

typedef enum knowledge { UNKNOWN, COVERED, REFUSED } knowledge;

typedef struct reason {
    char text[REASON];
    int64_t pairs;
    int a, b; /* the first of them */
} reason;

typedef struct builder {
    factor factor[FACTORS];
    int n_factors, n_values, n_reasons;
    uint8_t *pair;         /* [V,V] knowledge */
    cover_problem *single; /* [V] the value's field is set */
    int *factor_of;        /* [V] */
    reason *reason;        /* as many as differ */
    uint64_t seed, block;
    int64_t steps;       /* left of a search */
    uint64_t search;     /* its number */
    uint64_t seen[SEEN]; /* hashes of what searches have looked at, 0: none */
    int n_seen;
} builder;

static uint32_t word_of(builder *b, uint32_t purpose) {
    uint32_t word[4];
    moe_random(b->seed, MOE_DRAW_TEST, purpose, 0, b->block++, word);
    return word[0];
}

/* --- factors ------------------------------------------------------------ */

static size_t field_bytes(moe_option_type type) {
    if (type == MOE_OPT_BOOL) return sizeof(bool);
    if (type == MOE_OPT_CHOICE) return sizeof(const char *);
    if (type != MOE_OPT_INT && type != MOE_OPT_FLOAT) fail_msg("cover.c: a type of option it does not know");
    return type == MOE_OPT_INT ? sizeof(int32_t) : sizeof(float);
}

static void list_values(factor *f) {
    static const char *const truth[] = {"false", "true", NULL};
    const moe_option *row = &f->row;
    const char *const *value = row->choices;
    if (row->type == MOE_OPT_BOOL) value = truth;
    if (!value) value = cover_values(row->key);
    if (!value) fail_msg("%s: no values to try; give it some in tests/support/cover_values.c", row->key);
    /* The default goes first. */
    if (row->choices) f->value[f->n_values++] = row->initial;
    for (; *value && f->n_values < VALUES_EACH; ++value)
        if (!row->choices || strcmp(*value, row->initial) != 0) f->value[f->n_values++] = *value;
    const bool number = row->type == MOE_OPT_INT || row->type == MOE_OPT_FLOAT;
    /* Without a tolerance Sinkhorn runs all of its 10000 iterations: too slow for differences. */
    const bool slow = strcmp(row->key, "moe.sinkhorn_tol") == 0;
    if (number && row->min == MOE_ZERO && !slow && f->n_values < VALUES_EACH) f->value[f->n_values++] = "-1";
}

static void add_factor(builder *b, const moe_option *row, size_t base) {
    if (b->n_factors == FACTORS) fail_msg("cover.c: more than %d factors", FACTORS);
    factor *f = &b->factor[b->n_factors++];
    *f = (factor){.row = *row, .word = strrchr(row->key, '.') + 1, .first = b->n_values};
    f->word_length = strlen(f->word);
    f->row.offset += base;
    list_values(f);
    b->n_values += f->n_values;
}

static void set_field(cover_problem *to, const cover_problem *from, const moe_option *row) {
    memcpy((char *)to + row->offset, (const char *)from + row->offset, field_bytes(row->type));
}

static void fill_singles(builder *b) {
    b->single = calloc((size_t)b->n_values, sizeof *b->single);
    b->factor_of = calloc((size_t)b->n_values, sizeof *b->factor_of);
    b->pair = calloc((size_t)b->n_values * (size_t)b->n_values, 1);
    assert_true(b->single && b->factor_of && b->pair);
    for (int i = 0; i < b->n_factors; ++i)
        for (int v = 0; v < b->factor[i].n_values; ++v) {
            const int number = b->factor[i].first + v;
            moe_error error;
            if (moei_option_set(&b->factor[i].row, &b->single[number], b->factor[i].value[v], &error) !=
                MOE_OK)
                fail_msg("cover.c: %s", error.text);
            b->factor_of[number] = i;
        }
}

static void list_factors(builder *b) {
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) add_factor(b, row, offsetof(cover_problem, desc));
    for (size_t i = 0; i < sizeof call_rows / sizeof *call_rows; ++i) add_factor(b, &call_rows[i], 0);
    fill_singles(b);
}

static cover_problem problem_of(const builder *b, const choice *c) {
    cover_problem p = {.desc = {.size = sizeof p.desc}};
    for (int i = 0; i < b->n_factors; ++i)
        set_field(&p, &b->single[b->factor[i].first + c->value[i]], &b->factor[i].row);
    return p;
}

/* --- what goes together ------------------------------------------------------------ */

/* NULL: nothing is wrong; else the refusal, in `error`. */
static const char *refusal(const builder *b, const choice *c, moe_error *error) {
    const cover_problem p = problem_of(b, c);
    if (moe_layer_desc_check(&p.desc, error) != MOE_OK) return error->text;
    if (p.n_tokens % p.n_sequences != 0) return "call.sequences: does not divide call.tokens";
    if (p.replayed && p.desc.num_experts == 0)
        return "call.replay_expert: there is no router: num_experts is 0";
    return NULL;
}

static bool in_word(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

/* named[i]: the text has the last part of factor i's key as a word. */
static void list_named(const builder *b, const char *text, bool named[FACTORS]) {
    memset(named, 0, FACTORS * sizeof *named);
    for (size_t length; *text; text += length ? length : 1) {
        for (length = 0; in_word(text[length]);) ++length;
        for (int i = 0; i < b->n_factors && length > 0; ++i)
            if (b->factor[i].word_length == length && memcmp(b->factor[i].word, text, length) == 0)
                named[i] = true;
    }
}

static void begin_search(builder *b, int64_t steps) {
    b->steps = steps;
    ++b->search;
    if (b->n_seen + steps < SEEN / 2) return;
    memset(b->seen, 0, sizeof b->seen);
    b->n_seen = 0;
}

/* Whether this search has been at the choice before, by another order of the same changes. */
static bool been_at(builder *b, const choice *c) {
    uint64_t hash = 14695981039346656037u ^ b->search;
    for (int i = 0; i < b->n_factors; ++i) hash = (hash ^ c->value[i]) * 1099511628211u;
    hash |= 1;
    uint64_t at = hash >> 32;
    for (at %= SEEN; b->seen[at]; at = (at + 1) % SEEN)
        if (b->seen[at] == hash) return true;
    b->seen[at] = hash;
    ++b->n_seen;
    return false;
}

/* Changes factors that are not locked and that the refusal names until nothing is refused. Depth first; a
 * factor changes once, so the search ends. */
static bool repair(builder *b, choice *c, const bool *locked) {
    moe_error error = {0};
    if (been_at(b, c) || --b->steps < 0) return false;
    const char *text = refusal(b, c, &error);
    if (!text) return true;
    bool named[FACTORS];
    list_named(b, text, named);
    for (int i = 0; i < b->n_factors; ++i) {
        const factor *f = &b->factor[i];
        if (locked[i] || !named[i]) continue;
        bool more[FACTORS];
        memcpy(more, locked, sizeof more);
        more[i] = true;
        for (int v = 0; v < f->n_values; ++v) {
            choice next = *c;
            if (v == c->value[i]) continue;
            next.value[i] = (uint8_t)v;
            if (!repair(b, &next, more)) continue;
            *c = next;
            return true;
        }
    }
    return false;
}

/* Every way that refusals name, to a legal problem with both values; false: there is none. */
static bool complete(builder *b, int one, int two, choice *c) {
    bool locked[FACTORS] = {false};
    *c = (choice){{0}};
    const int f = b->factor_of[one], g = b->factor_of[two];
    c->value[f] = (uint8_t)(one - b->factor[f].first);
    c->value[g] = (uint8_t)(two - b->factor[g].first);
    locked[f] = locked[g] = true;
    begin_search(b, REPAIR_STEPS);
    if (repair(b, c, locked)) return true;
    if (b->steps < 0)
        fail_msg("%s %s, %s %s: no end to the refusals", b->factor[f].row.key,
                 b->factor[f].value[one - b->factor[f].first], b->factor[g].row.key,
                 b->factor[g].value[two - b->factor[g].first]);
    return false;
}

static void note_refusal(builder *b, int one, int two) {
    const int f = b->factor_of[one], g = b->factor_of[two];
    choice c = {{0}};
    moe_error error = {0};
    c.value[f] = (uint8_t)(one - b->factor[f].first);
    c.value[g] = (uint8_t)(two - b->factor[g].first);
    const char *text = refusal(b, &c, &error);
    assert_non_null(text);
    b->pair[one * b->n_values + two] = b->pair[two * b->n_values + one] = REFUSED;
    int i = 0;
    while (i < b->n_reasons && strncmp(b->reason[i].text, text, REASON - 1) != 0) ++i;
    if (i == b->n_reasons) {
        b->reason = realloc(b->reason, (size_t)++b->n_reasons * sizeof *b->reason);
        assert_non_null(b->reason);
        b->reason[i] = (reason){.a = one, .b = two};
        snprintf(b->reason[i].text, REASON, "%.*s", REASON - 1, text);
    }
    ++b->reason[i].pairs;
}

/* --- the greedy choice ------------------------------------------------------------ */

/* Pairs of value v of factor i with the others of the choice that no problem has yet. */
static int gain_of(const builder *b, const choice *c, int i, int v) {
    const uint8_t *known = b->pair + (size_t)(b->factor[i].first + v) * (size_t)b->n_values;
    int gain = 0;
    for (int j = 0; j < b->n_factors; ++j)
        gain += j != i && known[b->factor[j].first + c->value[j]] == UNKNOWN;
    return gain;
}

/* The value of the factor with the next smaller gain than `below`, or the next number of an equal one. */
static int next_best(const int *gain, int n, int below, int after) {
    int best = -1;
    for (int v = 0; v < n; ++v) {
        const bool left = gain[v] < below || (gain[v] == below && v > after);
        if (left && (best < 0 || gain[v] > gain[best])) best = v;
    }
    return best;
}

/* Gives factor i the value that meets most new ones and is, with few repairs, legal. */
static void improve(builder *b, choice *c, int i, const bool *locked) {
    const factor *f = &b->factor[i];
    int gain[VALUES_EACH], below = INT32_MAX, after = -1;
    for (int v = 0; v < f->n_values; ++v) gain[v] = gain_of(b, c, i, v);
    for (int n = 0; n < TRIES; ++n) {
        const int v = next_best(gain, f->n_values, below, after);
        choice next = *c;
        if (v < 0 || gain[v] == 0 || v == c->value[i]) return;
        below = gain[v], after = v;
        next.value[i] = (uint8_t)v;
        begin_search(b, QUICK);
        if (!repair(b, &next, locked)) continue;
        *c = next;
        return;
    }
}

static void extend(builder *b, choice *c, int one, int two) {
    bool locked[FACTORS] = {false};
    int order[FACTORS];
    locked[b->factor_of[one]] = locked[b->factor_of[two]] = true;
    for (int i = 0; i < b->n_factors; ++i) {
        const int j = (int)(word_of(b, 1) % (uint32_t)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    for (int i = 0; i < b->n_factors; ++i) {
        if (locked[order[i]]) continue;
        locked[order[i]] = true;
        improve(b, c, order[i], locked);
    }
}

static void mark_covered(builder *b, const choice *c, cover_set *set) {
    for (int i = 0; i < b->n_factors; ++i)
        for (int j = 0; j < i; ++j) {
            const int one = b->factor[i].first + c->value[i], two = b->factor[j].first + c->value[j];
            uint8_t *known = &b->pair[one * b->n_values + two];
            if (*known == REFUSED)
                fail_msg("%s and %s go together after all", b->factor[i].row.key, b->factor[j].row.key);
            set->n_covered += *known == UNKNOWN;
            *known = b->pair[two * b->n_values + one] = COVERED;
        }
}

static void add_problem(builder *b, const choice *c, cover_set *set) {
    set->problem = realloc(set->problem, (size_t)(set->n_problems + 1) * sizeof *set->problem);
    assert_non_null(set->problem);
    set->problem[set->n_problems++] = problem_of(b, c);
    mark_covered(b, c, set);
}

/* Pairs in a random order, so that neighbours in the table share no more problems than others. */
static int *shuffled_pairs(builder *b, int *count) {
    int *pair = malloc((size_t)b->n_values * (size_t)b->n_values * sizeof *pair), n = 0;
    assert_non_null(pair);
    for (int one = 0; one < b->n_values; ++one)
        for (int two = 0; two < one; ++two)
            if (b->factor_of[one] != b->factor_of[two]) pair[n++] = one * b->n_values + two;
    for (int i = n - 1; i > 0; --i) {
        const int j = (int)(word_of(b, 2) % (uint32_t)(i + 1)), kept = pair[i];
        pair[i] = pair[j];
        pair[j] = kept;
    }
    *count = n;
    return pair;
}

cover_set cover_make(uint64_t seed) {
    cover_set set = {.n_problems = 0};
    builder *b = calloc(1, sizeof *b);
    int n_pairs;
    assert_non_null(b);
    b->seed = seed;
    list_factors(b);
    int *pair = shuffled_pairs(b, &n_pairs);
    for (int i = 0; i < n_pairs; ++i) {
        const int one = pair[i] / b->n_values, two = pair[i] % b->n_values;
        choice c;
        if (b->pair[pair[i]] != UNKNOWN) continue;
        if (!complete(b, one, two, &c)) {
            note_refusal(b, one, two);
            ++set.n_refused;
            continue;
        }
        extend(b, &c, one, two);
        add_problem(b, &c, &set);
    }
    free(pair);
    set.n_values = b->n_values;
    set.n_feasible = n_pairs - set.n_refused;
    set.inside = b;
    return set;
}

void cover_free(cover_set *set) {
    builder *b = set->inside;
    if (!b) return; /* making it failed */
    free(b->pair), free(b->single), free(b->factor_of), free(b->reason), free(b);
    free(set->problem);
}

int cover_print_refused(const cover_set *set) {
    const builder *b = set->inside;
    for (int i = 0; i < b->n_reasons; ++i) {
        const reason *r = &b->reason[i];
        const factor *f = &b->factor[b->factor_of[r->a]], *g = &b->factor[b->factor_of[r->b]];
        fprintf(stderr, "%6lld refused, as %s '%s' with %s '%s': %s\n", (long long)r->pairs, f->row.key,
                f->value[r->a - f->first], g->row.key, g->value[r->b - g->first], r->text);
    }
    return b->n_reasons;
}

static bool holds_value(const builder *b, const cover_problem *p, int number) {
    const moe_option *row = &b->factor[b->factor_of[number]].row;
    const char *held = (const char *)p, *value = (const char *)&b->single[number];
    return memcmp(held + row->offset, value + row->offset, field_bytes(row->type)) == 0;
}

static bool any_holds(const cover_set *set, const bool *good, int one, int two) {
    bool held = false;
    for (const cover_problem *p = set->problem; p < set->problem + set->n_problems && !held; ++p)
        held = good[p - set->problem] && holds_value(set->inside, p, one) && holds_value(set->inside, p, two);
    return held;
}

int64_t cover_pairs(const cover_set *set, const bool *good) {
    const builder *b = set->inside;
    int64_t pairs = 0;
    for (int i = 0; i < b->n_values * b->n_values; ++i) {
        const int one = i / b->n_values, two = i % b->n_values;
        pairs += two < one && b->factor_of[one] != b->factor_of[two] && any_holds(set, good, one, two);
    }
    return pairs;
}

int cover_missing(const cover_set *set, const bool *good,
                  bool (*excused)(const char *key, const char *value)) {
    const builder *b = set->inside;
    int missing = 0;
    for (int number = 0; number < b->n_values; ++number) {
        const factor *f = &b->factor[b->factor_of[number]];
        const char *value = f->value[number - f->first];
        if (any_holds(set, good, number, number) || excused(f->row.key, value)) continue;
        fprintf(stderr, "in no such problem: %s '%s'\n", f->row.key, value);
        ++missing;
    }
    return missing;
}

/* --- problems at random ------------------------------------------------------------ */

static choice draw_choice(builder *b, uint64_t number) {
    choice c = {{0}};
    b->block = number << 16;
    const uint32_t n = 2 + word_of(b, 3) % 20;
    for (uint32_t k = 0; k < n; ++k) {
        const int i = (int)(word_of(b, 3) % (uint32_t)b->n_factors);
        c.value[i] = (uint8_t)(word_of(b, 3) % (uint32_t)b->factor[i].n_values);
    }
    return c;
}

void cover_draw_any(const cover_set *set, uint64_t number, cover_problem *problem) {
    builder *b = set->inside;
    const choice c = draw_choice(b, number);
    *problem = problem_of(b, &c);
}

int cover_draw(const cover_set *set, uint64_t number, cover_problem *problem, char text[COVER_TEXT]) {
    static const bool free_all[FACTORS] = {false};
    builder *b = set->inside;
    choice c;
    int wrong = 0;
    do {
        c = draw_choice(b, number);
        number += 1u << 20;
        begin_search(b, QUICK * 10);
    } while (!repair(b, &c, free_all));
    *problem = problem_of(b, &c);
    text[0] = '\0';
    for (int i = 0; i < b->n_factors; ++i)
        for (int j = 0; j < i; ++j) {
            const factor *f = &b->factor[i], *g = &b->factor[j];
            if (b->pair[(f->first + c.value[i]) * b->n_values + g->first + c.value[j]] != REFUSED) continue;
            ++wrong;
            snprintf(text, COVER_TEXT, "%s '%s' with %s '%s'", f->row.key, f->value[c.value[i]], g->row.key,
                     g->value[c.value[j]]);
        }
    return wrong;
}

/* --- use ------------------------------------------------------------ */

moe_layer_desc cover_desc(const cover_problem *problem, moe_dtype dtype) {
    moe_layer_desc desc = problem->desc;
    const char *type = desc.router_dtype;
    desc.dtype = dtype;
    if (dtype == MOE_F64 && (strcmp(type, "f32") == 0 || strcmp(type, "fp32") == 0))
        desc.router_dtype = "auto";
    return desc;
}

void cover_describe(const cover_problem *problem, char text[COVER_TEXT]) {
    size_t used = 0;
    const moe_option *row;
    text[0] = '\0';
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        char value[64];
        const char *const *values = cover_values(row->key);
        moei_option_get(row, &problem->desc, value, sizeof value);
        if (strcmp(value, values ? values[0] : row->initial) == 0 || used >= COVER_TEXT) continue;
        used += (size_t)snprintf(text + used, COVER_TEXT - used, " %s %s", strchr(row->key, '.') + 1, value);
    }
    if (used < COVER_TEXT)
        snprintf(text + used, COVER_TEXT - used, " tokens %d sequences %d%s%s", problem->n_tokens,
                 problem->n_sequences, problem->masked ? " masked" : "",
                 problem->replayed ? " replayed" : "");
}

void cover_begin_call(const cover_problem *problem, cover_call *call) {
    const int32_t tasks = problem->desc.num_tasks;
    *call = (cover_call){.call = test_train_call};
    for (int32_t t = 0; t < COVER_TOKENS; ++t) {
        call->mask[t] = t % 3 != 1;
        call->task[t] = tasks > 0 ? (t + 1) % tasks : 0;
    }
    call->call.sequence_length = problem->n_tokens / problem->n_sequences;
    if (problem->masked) call->call.token_mask = call->mask;
    if (tasks > 0) call->call.task = call->task;
}
