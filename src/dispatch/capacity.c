/* capacity.c: how many rows an expert may take from one group of tokens: the formulas in use, by name.
 * n tokens, K experts a token, E experts, factor f -> C rows. In integers, so that no platform rounds
 * differently. Source: the systems the rows are named after; "switch" is Fedus et al. 2021, equation 3.
 */
#include "core/integer.h"
#include "core/option.h"
#include "dispatch/dispatch.h"

#include "core/desc.h"

#include <math.h>

/* A factor as the decimal fraction its author wrote: over / under. */
typedef struct decimal {
    int64_t over, under;
} decimal;

/* Six decimals, or what the seven digits of a float leave of them; products below stay within 64 bits. */
static decimal decimal_of(float factor) {
    decimal value = {0, 1000000};
    while (value.under > 1 && (double)factor * (double)value.under > 1e7) value.under /= 10;
    value.over = llround(fmin((double)factor * (double)value.under, 1e7));
    return value;
}

/* ceil(K n f / E) */
static int64_t assignments_up(int64_t n, int32_t K, int32_t E, decimal f) {
    return moei_ceil_div(n * K * f.over, E * f.under);
}

/* floor(K n f / E) */
static int64_t assignments_down(int64_t n, int32_t K, int32_t E, decimal f) {
    return n * K * f.over / (E * f.under);
}

/* ceil(n f / E): tokens count once, however many experts they go to */
static int64_t tokens_up(int64_t n, int32_t K, int32_t E, decimal f) {
    (void)K;
    return moei_ceil_div(n * f.over, E * f.under);
}

/* floor(n f / E) */
static int64_t tokens_down(int64_t n, int32_t K, int32_t E, decimal f) {
    (void)K;
    return n * f.over / (E * f.under);
}

/* K floor(f ceil(n / E)) */
static int64_t share_times_k(int64_t n, int32_t K, int32_t E, decimal f) {
    return K * (moei_ceil_div(n, E) * f.over / f.under);
}

/* floor(K ceil(f n) / E) */
static int64_t rounded_tokens_down(int64_t n, int32_t K, int32_t E, decimal f) {
    return moei_ceil_div(n * f.over, f.under) * K / E;
}

struct moei_capacity_formula {
    int64_t (*rows)(int64_t n, int32_t K, int32_t E, decimal f);
    int32_t minimum;   /* where the descriptor gives none */
    bool minimum_wins; /* the minimum may exceed the group */
};

typedef enum formula_name {
    MEGATRON,
    DEEPSPEED,
    MEGABLOCKS,
    LUCIDRAINS,
    GSHARD,
    SWITCH,
    TUTEL,
    FASTMOE,
    FORMULAS
} formula_name;

const char *const moei_capacity_formulas[] = {
    [MEGATRON] = "megatron",     [DEEPSPEED] = "deepspeed", [MEGABLOCKS] = "megablocks",
    [LUCIDRAINS] = "lucidrains", [GSHARD] = "gshard",       [SWITCH] = "switch",
    [TUTEL] = "tutel",           [FASTMOE] = "fastmoe",     [FORMULAS] = NULL};

/* clang-format off */
static const struct moei_capacity_formula formulas[FORMULAS] = {
    [MEGATRON]   = {assignments_up,      0, false},
    [DEEPSPEED]  = {assignments_up,      4, false},
    [MEGABLOCKS] = {assignments_down,    0, false},
    [LUCIDRAINS] = {tokens_down,         4, true },
    [GSHARD]     = {tokens_down,         0, false},
    [SWITCH]     = {tokens_up,           0, false},
    [TUTEL]      = {share_times_k,       0, false},
    [FASTMOE]    = {rounded_tokens_down, 0, false},
};
/* clang-format on */

const char *const moei_drop_policies[] = {[MOEI_DROP_PROBS] = "probs",
                                          [MOEI_DROP_POSITION] = "position",
                                          [MOEI_DROP_RANK_MAJOR] = "rank_major",
                                          NULL};
enum { SCOPE_BATCH, SCOPE_SEQUENCE };
const char *const moei_capacity_scopes[] = {[SCOPE_BATCH] = "batch", [SCOPE_SEQUENCE] = "sequence", NULL};

static int64_t round_up(int64_t value, int64_t multiple) {
    return multiple > 1 ? moei_ceil_div(value, multiple) * multiple : value;
}

/* The formulas count for training, where a batch is large. Decoding comes with one token, of which those that
 * round down leave nothing: a model without experts. So in inference an expert takes 1 row at least. */
static int64_t minimum_of(const moei_capacity *rule, moe_mode mode) {
    if (rule->minimum != 0) return rule->minimum; /* MOE_ZERO: below any */
    return rule->formula->minimum > 0 || mode == MOE_TRAIN ? rule->formula->minimum : 1;
}

static int64_t rows_of(const moei_capacity *rule, moe_mode mode, bool inner, int64_t n, int32_t K,
                       int32_t E) {
    const float factor = (inner ? rule->factor_inner : rule->factor)[mode];
    if (factor <= 0) return -1;
    const struct moei_capacity_formula *formula = rule->formula;
    const int64_t minimum = minimum_of(rule, mode);
    int64_t rows = formula->rows(n, K, E, decimal_of(factor));
    if (rows > n) rows = n;
    if (rows < minimum) rows = minimum;
    rows = round_up(rows, rule->multiple);
    return rows > n && !formula->minimum_wins ? n : rows;
}

bool moei_drops_by_weight(const moei_capacity *capacity) {
    const float *factor = capacity->factor;
    return capacity->drop == MOEI_DROP_PROBS && (factor[MOE_INFER] > 0 || factor[MOE_TRAIN] > 0);
}

moe_status moei_capacity_init(const moe_layer_desc *desc, bool by_expert, moei_capacity *capacity,
                              moe_error *error) {
    const char *lost = NULL;
    const float inner = desc->capacity_factor_inner;
    const float train = by_expert && desc->capacity_factor == 0 ? 1 : desc->capacity_factor;
    const float eval = (float)moei_number(desc->capacity_factor_eval, (double)train);
    *capacity = (moei_capacity){
        .formula = &formulas[moei_option_resolve(desc->capacity_formula, moei_capacity_formulas, &lost)],
        .rows = rows_of,
        .minimum = desc->min_capacity,
        .multiple = desc->capacity_multiple,
        .top_k = desc->top_k,
        .by_sequence =
            moei_option_resolve(desc->capacity_group, moei_capacity_scopes, &lost) == SCOPE_SEQUENCE,
        .pad = desc->pad_to_capacity,
        .drop = (moei_drop)moei_option_resolve(desc->drop_policy, moei_drop_policies, &lost)};
    capacity->factor[MOE_TRAIN] = train;
    capacity->factor[MOE_INFER] = eval;
    capacity->factor_inner[MOE_TRAIN] = (float)moei_number(inner, (double)train);
    capacity->factor_inner[MOE_INFER] = (float)moei_number(inner, (double)eval);
    if (!lost) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INTERNAL, "capacity: '%s' is in the options, but not built in",
                          lost);
}
