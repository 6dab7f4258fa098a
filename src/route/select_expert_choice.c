/* select_expert_choice.c: every expert takes the tokens that rank it highest, so all get the same number.
 * selection[T,E] -> expert[T,E]: slot e of a token is e where expert e took it, -1 elsewhere.
 * Source: Zhou et al., Mixture-of-experts with expert choice routing, 2022: C = tokens * K * factor / E.
 */
#include "route/select.h"

int64_t moei_expert_choice_rows(const moei_router *router, moe_mode mode, int64_t n) {
    const moei_capacity *rule = router->capacity;
    const int64_t rows = rule->rows(rule, mode, false, n, rule->top_k, router->n_experts);
    return rows < n ? rows : n;
}

typedef struct taker {
    const moei_routing *routing;
    int64_t e;
} taker;

static double rank_of(const taker *by, int64_t t) {
    return moei_real_load(by->routing->dtype, by->routing->selection, t * by->routing->n_experts + by->e);
}

static bool comes_before(const taker *by, int32_t a, int32_t b) {
    const double za = rank_of(by, a), zb = rank_of(by, b);
    return za != zb ? za > zb : a < b;
}

static void sift_down(const taker *by, int32_t *heap, int64_t n, int64_t at) {
    for (int64_t child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && comes_before(by, heap[child], heap[child + 1])) ++child;
        if (!comes_before(by, heap[at], heap[child])) return;
        const int32_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
    }
}

/* heap[C] keeps the best C seen, the worst of them on top. */
static void take_best(const moei_route_job *job, int64_t e, int64_t first, int64_t n, int64_t C,
                      int32_t *heap) {
    const taker by = {job->routing, e};
    const int64_t E = job->routing->n_experts;
    int64_t held = 0;
    for (int64_t t = first; t < first + n; ++t) {
        if (moei_masked(job->batch, t)) continue;
        if (held < C) {
            heap[held++] = (int32_t)t;
            for (int64_t at = C / 2 - 1; held == C && at >= 0; --at) sift_down(&by, heap, C, at);
        } else if (comes_before(&by, (int32_t)t, heap[0])) {
            heap[0] = (int32_t)t;
            sift_down(&by, heap, C, 0);
        }
    }
    for (int64_t i = 0; i < held; ++i) job->routing->expert[heap[i] * E + e] = (int32_t)e;
}

typedef struct taking {
    const moei_route_job *job;
    int64_t first, n, rows;
} taking;

static void take_task(void *arg, int64_t e, void *scratch) {
    (void)scratch;
    const taking *all = arg;
    take_best(all->job, e, all->first, all->n, all->rows, all->job->scratch.taken + e * all->rows);
}

moe_status moei_select_expert_choice(const moei_route_job *job) {
    const moei_batch *batch = job->batch;
    moei_routing *routing = job->routing;
    const int64_t n = job->router->capacity->by_sequence ? batch->sequence_length : routing->n_tokens,
                  E = routing->n_experts;
    for (int64_t slot = 0; slot < routing->n_tokens * E; ++slot) routing->expert[slot] = -1;
    for (int64_t first = 0; first < routing->n_tokens; first += n) {
        const int64_t real = moei_real_tokens(batch, first, n);
        taking all = {job, first, n, moei_expert_choice_rows(job->router, batch->mode, real)};
        if (all.rows > 0) moei_parallel(&job->ctx->team, E, take_task, &all);
    }
    return MOE_OK;
}
