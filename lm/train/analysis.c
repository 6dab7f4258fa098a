/* analysis.c: counts of what every expert was chosen for, and the figures made from them.
 * token, previous: [E, V]; position: [E, 32]; rows, dropped: [E]. Choice means the expert of largest weight.
 * Source: docs/run-directory.md.
 */
#include "train/analysis.h"

#include "core/real.h"
#include "core/status.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/entropy.h"
#include "train/load.h"

enum { PARTS = 32, TYPICAL = 12, SEEN_AT_LEAST = 20 };

typedef struct layer_counts {
    uint64_t *token, *previous, *position; /* first choices */
    double router_entropy;                 /* sum over tokens */
    double n_tokens;
    int32_t top_k;
} layer_counts;

struct moelm_analysis {
    moelm_load load;                /* rows of all K choices */
    const moe_tokenizer *tokenizer; /* NULL: tokens are bytes */
    int64_t vocab;
    int64_t next; /* first token of the text not counted yet */
    layer_counts *layer;
    uint64_t *block; /* all counts */
};

static int64_t counts_per_expert(const moelm_analysis *a) {
    return 2 * a->vocab + PARTS;
}

moe_status moelm_analysis_create(moe_lm *lm, const moe_tokenizer *tokenizer, moelm_analysis **analysis,
                                 moe_error *error) {
    moe_lm_info info = {.size = sizeof info};
    moe_lm_get_info(lm, &info);
    moelm_analysis *a = calloc(1, sizeof *a);
    if (!a) return moei_error_set(error, MOE_ERR_MEMORY, "no memory for the analysis of the experts");
    a->tokenizer = tokenizer;
    a->vocab = info.vocab_size;
    moe_status status = moelm_load_create(lm, &a->load, error);
    if (status == MOE_OK) {
        size_t n_experts = (size_t)a->load.first[info.n_layers];
        a->layer = calloc((size_t)info.n_layers, sizeof *a->layer);
        a->block = calloc(n_experts * (size_t)counts_per_expert(a) + 1, sizeof *a->block);
        if (!a->layer || !a->block)
            status =
                moei_error_set(error, MOE_ERR_MEMORY, "no memory for the analysis of %zu experts", n_experts);
    }
    if (status != MOE_OK) {
        moelm_analysis_destroy(a);
        return status;
    }
    for (int32_t l = 0; l < info.n_layers; ++l) {
        int64_t n = moelm_load_experts(&a->load, l);
        a->layer[l].top_k = moe_layer_get_desc(moe_lm_layer(lm, l))->top_k;
        a->layer[l].token = a->block + a->load.first[l] * counts_per_expert(a);
        a->layer[l].previous = a->layer[l].token + n * a->vocab;
        a->layer[l].position = a->layer[l].previous + n * a->vocab;
    }
    *analysis = a;
    return MOE_OK;
}

void moelm_analysis_destroy(moelm_analysis *a) {
    if (!a) return;
    moelm_load_destroy(&a->load);
    free(a->layer);
    free(a->block);
    free(a);
}

/* 1. Counting. */

/* The slot of largest weight that is routed: of some routers the slots are in the order of the experts. */
static int32_t first_choice(const moe_routing_view *view, int64_t row) {
    const int32_t *expert = view->expert + row * view->top_k;
    int32_t best = -1;
    double most = 0;
    for (int32_t k = 0; k < view->top_k; ++k) {
        const double weight = moei_real_load(view->dtype, view->weight, row * view->top_k + k);
        if (expert[k] < 0 || (best >= 0 && weight <= most)) continue;
        best = k;
        most = weight;
    }
    return best < 0 ? -1 : expert[best];
}

/* Counts token `j` of the window that starts at `start`; row: where it stands in the forward. */
static void count_token(moelm_analysis *a, int32_t l, const moe_routing_view *view, const moelm_windows *w,
                        int64_t start, int64_t j, int64_t row) {
    const int32_t *expert = view->expert + row * view->top_k, *row_of = view->row_of + row * view->top_k;
    layer_counts *counts = &a->layer[l];
    for (int32_t k = 0; k < view->top_k; ++k) {
        if (expert[k] < 0) continue;
        uint64_t *rows = row_of[k] < 0 ? a->load.dropped : a->load.kept;
        rows[a->load.first[l] + expert[k]]++;
    }
    int64_t first = first_choice(view, row);
    if (first < 0) return; /* routed nowhere */
    counts->token[first * a->vocab + moelm_reading_at(&w->text, start + j)]++;
    counts->position[first * PARTS + j * PARTS / w->length]++;
    if (start + j > 0) counts->previous[first * a->vocab + moelm_reading_at(&w->text, start + j - 1)]++;
}

static moe_status count_layer(moelm_analysis *a, moe_lm *lm, int32_t l, const moelm_windows *w) {
    moe_routing_view view = {.size = sizeof view};
    moe_stats stats = {.size = sizeof stats};
    MOEI_TRY(moe_layer_routing(moe_lm_layer(lm, l), &view));
    MOEI_TRY(moe_lm_layer_stats(lm, l, &stats));
    a->layer[l].router_entropy += stats.router_entropy * (double)stats.n_tokens;
    a->layer[l].n_tokens += (double)stats.n_tokens;
    int64_t next = a->next;
    for (int64_t i = 0; i < w->n_seq; ++i) {
        /* Even windows lie side by side; the last one brings what is left. */
        bool last = w->first + i == w->n_windows - 1;
        if ((w->first + i) % 2 != 0 && !last) continue;
        int64_t start = moelm_window_start(w, w->first + i);
        for (int64_t j = next > start ? next - start : 0; j < w->length; ++j)
            count_token(a, l, &view, w, start, j, i * w->length + j);
        next = start + w->length;
    }
    return MOE_OK;
}

static int64_t next_after(int64_t next, const moelm_windows *w) {
    for (int64_t i = w->first; i < w->first + w->n_seq; ++i)
        if (i % 2 == 0 || i == w->n_windows - 1) next = moelm_window_start(w, i) + w->length;
    return next;
}

moe_status moelm_analysis_add(void *user, moe_lm *lm, const moelm_windows *windows) {
    moelm_analysis *a = user;
    for (int32_t l = 0; l < a->load.n_layers; ++l)
        if (moelm_load_experts(&a->load, l) > 0) MOEI_TRY(count_layer(a, lm, l, windows));
    a->next = next_after(a->next, windows);
    return MOE_OK;
}

/* 2. Figures. */

typedef struct candidate {
    int64_t token;
    uint64_t count;
    double lift;
} candidate;

static int by_lift(const void *x, const void *y) {
    const candidate *a = x, *b = y;
    if (a->lift != b->lift) return a->lift < b->lift ? 1 : -1;
    if (a->count != b->count) return a->count < b->count ? 1 : -1;
    return (a->token > b->token) - (a->token < b->token);
}

/* A token as it reads behind another, where a space before it is kept. NULL: it has no text by itself, as a
 * part of a character. */
static json_t *token_text(const moe_tokenizer *tokenizer, int64_t token) {
    const int32_t twice[] = {(int32_t)token, (int32_t)token};
    moe_token_text once = {0}, both = {0};
    const char *text = NULL;
    if (moe_tokenizer_decode(tokenizer, twice, 1, 0, &once, NULL) == MOE_OK &&
        moe_tokenizer_decode(tokenizer, twice, 2, 0, &both, NULL) == MOE_OK && both.count > once.count &&
        (once.count == 0 || memcmp(both.bytes, once.bytes, once.count) == 0))
        text = both.bytes + once.count;
    const bool whole = text && *text != '\0' && !strstr(text, "\xEF\xBF\xBD");
    json_t *json = whole ? json_string(text) : NULL;
    moe_token_text_free(&once);
    moe_token_text_free(&both);
    return json;
}

static json_t *candidates_array(const candidate *candidates, size_t n, const moe_tokenizer *tokenizer) {
    json_t *array = json_array();
    for (size_t i = 0; i < n && i < TYPICAL; ++i) {
        const candidate *c = &candidates[i];
        json_array_append_new(array, json_pack("{s:I, s:I, s:f, s:o*}", "token", (json_int_t)c->token,
                                               "count", (json_int_t)c->count, "lift", c->lift, "text",
                                               tokenizer ? token_text(tokenizer, c->token) : NULL));
    }
    return array;
}

/* Up to TYPICAL tokens by lift = P(token | expert) / P(token), if above 1. scratch: [V] */
static json_t *typical_tokens(const moelm_analysis *a, const uint64_t *token, int64_t expert,
                              const uint64_t *total, uint64_t n_all, candidate *scratch) {
    const int64_t vocab = a->vocab;
    uint64_t n_expert = 0;
    size_t n = 0;
    for (int64_t v = 0; v < vocab; ++v) n_expert += token[expert * vocab + v];
    for (int64_t v = 0; v < vocab; ++v) {
        uint64_t count = token[expert * vocab + v];
        if (count == 0 || total[v] < SEEN_AT_LEAST) continue;
        double of_expert = (double)count / (double)n_expert, of_all = (double)total[v] / (double)n_all;
        if (of_expert > of_all) scratch[n++] = (candidate){v, count, of_expert / of_all};
    }
    qsort(scratch, n, sizeof *scratch, by_lift);
    return candidates_array(scratch, n, a->tokenizer);
}

static json_t *typical_of_layer(const moelm_analysis *a, int32_t l) {
    int32_t n_experts = moelm_load_experts(&a->load, l);
    const uint64_t *token = a->layer[l].token;
    uint64_t *total = calloc((size_t)a->vocab, sizeof *total), n_all = 0;
    candidate *scratch = calloc((size_t)a->vocab, sizeof *scratch);
    json_t *array = total && scratch ? json_array() : NULL;
    for (int64_t i = 0; array && i < n_experts * a->vocab; ++i) {
        total[i % a->vocab] += token[i];
        n_all += token[i];
    }
    for (int32_t e = 0; array && e < n_experts; ++e)
        json_array_append_new(array, typical_tokens(a, token, e, total, n_all, scratch));
    free(scratch);
    free(total);
    return array;
}

/* Bits of the first choice itself: the most that any of the mutual informations can be. */
static double choice_entropy(const moelm_analysis *a, int32_t l) {
    int32_t n_experts = moelm_load_experts(&a->load, l);
    uint64_t *count = calloc((size_t)n_experts, sizeof *count);
    if (!count) return NAN;
    for (int64_t i = 0; i < n_experts * (int64_t)PARTS; ++i) count[i / PARTS] += a->layer[l].position[i];
    double bits = moelm_entropy_bits(count, n_experts);
    free(count);
    return bits;
}

static json_t *layer_figures(const moelm_analysis *a, int32_t l) {
    int32_t n_experts = moelm_load_experts(&a->load, l);
    const layer_counts *counts = &a->layer[l];
    moelm_balance balance = moelm_load_balance(&a->load, l);
    json_t *load = json_array();
    for (int64_t e = a->load.first[l]; e < a->load.first[l + 1]; ++e)
        json_array_append_new(load, json_integer((json_int_t)a->load.kept[e]));
    double router = counts->n_tokens > 0 ? counts->router_entropy / counts->n_tokens : 0;
    return json_pack("{s:i, s:i, s:i, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "layer", l, "experts",
                     n_experts, "top_k", counts->top_k, "load", load, "dropped", balance.dropped, "load_cv",
                     balance.cv, "router_entropy", router, "expert_entropy_bits", choice_entropy(a, l),
                     "mi_token_bits", moelm_mutual_bits(counts->token, n_experts, a->vocab),
                     "mi_position_bits", moelm_mutual_bits(counts->position, n_experts, PARTS),
                     "mi_previous_bits", moelm_mutual_bits(counts->previous, n_experts, a->vocab), "typical",
                     typical_of_layer(a, l));
}

json_t *moelm_analysis_layers(const moelm_analysis *a) {
    json_t *layers = json_array();
    for (int32_t l = 0; layers && l < a->load.n_layers; ++l) {
        if (moelm_load_experts(&a->load, l) == 0) continue;
        json_t *figures = layer_figures(a, l);
        if (!figures || json_array_append_new(layers, figures) != 0) {
            json_decref(layers);
            return NULL;
        }
    }
    return layers;
}
