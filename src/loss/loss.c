/* loss.c: all losses of a layer at once: what they share, their sum, the sum of their gradients.
 * prob[T,E], expert[T,K] -> count[G,E], prob_sum[G,E]; a table row names each loss and its coefficient.
 * Source: the plain map is that of Megatron core's aux losses: top-K of the scores, without bias or groups.
 */
#include "loss/loss.h"

#include "core/real.h"
#include "kernel/kernel.h"

#include <stddef.h>
#include <string.h>

typedef struct loss_row {
    size_t coeff, stat; /* fields of moe_layer_desc (float) and moe_stats (double) */
    bool always;        /* told even where its coefficient is 0 */
    bool by_scores;     /* reads prob, which a hierarchical router has not */
    double (*value)(const moei_loss_job *job);
    void (*gradient)(const moei_loss_job *job, double scale, moei_loss_grad *grad);
} loss_row;

#define COEFF(name) offsetof(moe_layer_desc, name)
#define STAT(name)  offsetof(moe_stats, name)

/* clang-format off */
static const loss_row losses[] = {
    {COEFF(aux_loss_coeff), STAT(aux_loss), true, true,
     moei_loss_switch, moei_loss_switch_gradient},
    {COEFF(seq_aux_loss_coeff), STAT(seq_aux_loss), false, true,
     moei_loss_sequence, moei_loss_sequence_gradient},
    {COEFF(global_aux_loss_coeff), STAT(global_aux_loss), false, true,
     moei_loss_global, moei_loss_global_gradient},
    {COEFF(gshard_loss_coeff), STAT(gshard_loss), false, false,
     moei_loss_gshard, moei_loss_gshard_gradient},
    {COEFF(second_place_loss_coeff), STAT(second_place_loss), false, true,
     moei_loss_second, moei_loss_second_gradient},
    {COEFF(importance_loss_coeff), STAT(importance_loss), false, false,
     moei_loss_importance, moei_loss_importance_gradient},
    {COEFF(load_loss_coeff), STAT(load_loss), false, false,
     moei_loss_load, moei_loss_load_gradient},
    {COEFF(entropy_loss_coeff), STAT(entropy_loss), false, true,
     moei_loss_entropy, moei_loss_entropy_gradient},
    {COEFF(z_loss_coeff), STAT(z_loss), true, false,
     moei_loss_z, moei_loss_z_gradient},
};
/* clang-format on */

enum { LOSSES = sizeof losses / sizeof *losses };

static double coefficient(const moei_loss_job *job, const loss_row *row) {
    return (double)*(const float *)((const char *)job->desc + row->coeff);
}

bool moei_loss_by_sequence(const moe_layer_desc *desc) {
    return desc->seq_aux_loss_coeff != 0 || desc->gshard_loss_coeff != 0 ||
           desc->second_place_loss_coeff != 0;
}

moei_loss_scratch moei_loss_carve(const moe_layer_desc *desc, moe_dtype dtype, moei_arena *arena,
                                  moei_extent extent) {
    const int64_t E = desc->num_experts, T = extent.tokens, Eo = desc->num_groups_outer;
    const int64_t G = moei_loss_by_sequence(desc) ? extent.sequences : 1;
    moei_loss_scratch s = {.offset = moei_arena_array(arena, G + 1, 1, sizeof(int64_t)),
                           .valid = moei_arena_array(arena, G, 1, sizeof(int64_t)),
                           .count = moei_arena_array(arena, G, E, sizeof(int64_t)),
                           .total = moei_arena_array(arena, E, 1, sizeof(int64_t)),
                           .prob_sum = moei_arena_array(arena, G, E, moe_dtype_bytes(dtype)),
                           .mean = moei_arena_array(arena, E, 1, sizeof(double)),
                           .prob = moei_arena_array(arena, G, E, sizeof(double)),
                           .weight = moei_arena_array(arena, E, 1, sizeof(double)),
                           .load = moei_arena_array(arena, E, 1, sizeof(double)),
                           .usage = moei_arena_array(arena, E, 1, sizeof(double))};
    if (desc->gshard_loss_coeff != 0) s.first = moei_arena_array(arena, G, E, sizeof(int64_t));
    if (desc->gshard_loss_coeff != 0 && Eo > 0) {
        s.gate = moei_arena_array(arena, G, 1 + Eo, sizeof(double));
        s.outer = moei_arena_array(arena, G, Eo, sizeof(double));
    }
    if (desc->second_place_loss_coeff != 0) {
        s.place = moei_arena_array(arena, G, E, sizeof(int64_t));
        s.rest = moei_arena_array(arena, T, 1, sizeof(double));
        s.second = moei_arena_array(arena, G, E, sizeof(double));
    }
    if (moei_aux_plain(desc)) s.plain = moei_arena_array(arena, T, desc->top_k, sizeof(int32_t));
    return s;
}

/* The K largest scores of token t, ties to the lower index. */
static void plain_token(const moei_loss_job *job, int64_t t) {
    const moei_routing *routing = job->routing;
    const int32_t E = routing->n_experts, K = job->desc->top_k;
    int32_t *chosen = job->scratch.plain + t * K;
    double last = 0;
    for (int32_t k = 0; k < K; ++k) {
        int32_t best = -1;
        double best_score = 0;
        for (int32_t e = 0; e < E; ++e) {
            const double score = moei_real_load(routing->dtype, routing->prob, t * E + e);
            if (k > 0 && (score > last || (score == last && e <= chosen[k - 1]))) continue;
            if (best >= 0 && score <= best_score) continue;
            best = e;
            best_score = score;
        }
        chosen[k] = best;
        last = best_score;
    }
}

static void plain_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    const moei_loss_job *job = arg;
    const int64_t K = job->desc->top_k;
    for (int64_t t = first; t < end; ++t) {
        if (!moei_masked(job->batch, t))
            plain_token(job, t);
        else
            for (int64_t k = 0; k < K; ++k) job->scratch.plain[t * K + k] = -1;
    }
}

static void count_map(const moei_loss_job *job, const int32_t *expert, int32_t K) {
    const int32_t E = job->routing->n_experts;
    const moei_loss_scratch *s = &job->scratch;
    memset(s->count, 0, (size_t)(job->n_groups * E) * sizeof *s->count);
    memset(s->total, 0, (size_t)E * sizeof *s->total);
    for (int64_t g = 0; g < job->n_groups; ++g)
        for (int64_t slot = s->offset[g] * K; slot < s->offset[g + 1] * K; ++slot)
            if (expert[slot] >= 0) ++s->count[g * E + expert[slot]];
    for (int64_t i = 0; i < job->n_groups * E; ++i) s->total[i % E] += s->count[i];
}

static void mark_groups(moei_loss_job *job) {
    const moei_loss_scratch *s = &job->scratch;
    job->n_groups = moei_group_count(job->batch, moei_loss_by_sequence(job->desc));
    const int64_t length = job->routing->n_tokens / job->n_groups;
    for (int64_t g = 0; g <= job->n_groups; ++g) s->offset[g] = g * length;
    for (int64_t g = 0; g < job->n_groups; ++g)
        s->valid[g] = moei_real_tokens(job->batch, s->offset[g], length);
}

void moei_loss_count(moei_loss_job *job) {
    mark_groups(job);
    if (!job->scratch.plain) {
        count_map(job, job->routing->expert, job->routing->top_k);
        return;
    }
    moei_parallel_blocks(&job->ctx->team, job->routing->n_tokens, MOEI_LOSS_TOKENS, plain_task, job);
    count_map(job, job->scratch.plain, job->desc->top_k);
}

void moei_loss_history_add(const moei_loss_job *job, moei_loss_history *history) {
    const int32_t E = job->routing->n_experts;
    if (history->ended) memset(history->count, 0, (size_t)E * sizeof *history->count);
    history->ended = false;
    for (int32_t e = 0; e < E; ++e) history->count[e] += job->scratch.total[e];
}

int64_t moei_loss_groups_used(const moei_loss_job *job) {
    int64_t used = 0;
    for (int64_t g = 0; g < job->n_groups; ++g) used += job->scratch.valid[g] > 0;
    return used;
}

void moei_loss_values(const moei_loss_job *job, moe_stats *stats) {
    const moei_routing *routing = job->routing;
    if (!moei_has_levels(routing))
        job->ctx->kernels[routing->dtype]->colsum(&job->ctx->team,
                                                  &(moe_colsum_args){.dtype = routing->dtype,
                                                                     .n_groups = (int32_t)job->n_groups,
                                                                     .offset = job->scratch.offset,
                                                                     .n = routing->n_experts,
                                                                     .a = routing->prob,
                                                                     .lda = routing->n_experts,
                                                                     .out = job->scratch.prob_sum});
    stats->loss = 0;
    for (int i = 0; i < LOSSES; ++i) {
        const loss_row *row = &losses[i];
        const double coeff = coefficient(job, row);
        double *stat = (double *)((char *)stats + row->stat);
        *stat = 0;
        if ((coeff == 0 && !row->always) || (row->by_scores && moei_has_levels(routing))) continue;
        *stat = job->batch->n_valid > 0 ? row->value(job) : 0;
        stats->loss += coeff * *stat;
    }
}

moei_loss_grad moei_loss_gradient(const moei_loss_job *job, double scale) {
    moei_loss_grad grad = {.n_groups = job->n_groups};
    for (int i = 0; i < LOSSES; ++i) {
        const double coeff = coefficient(job, &losses[i]);
        if (coeff != 0 && job->batch->n_valid > 0) losses[i].gradient(job, scale * coeff, &grad);
    }
    return grad;
}

double *moei_loss_want(double **slot, double *memory, int64_t n) {
    if (*slot) return *slot;
    memset(memory, 0, (size_t)n * sizeof *memory);
    return *slot = memory;
}
