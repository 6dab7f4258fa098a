/* score.c: bits that a model needs for a text.
 * tokens, targets: [n_seq, length]; targets that another window scores are -1.
 * Source: strided evaluation as in Baevski and Auli 2019, with a stride of half the context.
 */
#include "train/score.h"

#include "core/status.h"

#include <math.h>

/* Tokens of one forward: enough to fill the kernels, few enough to fit beside a model in training. */
enum { FORWARD_TOKENS = 4096 };

/* In training what is reserved serves, unless how many tokens there are together matters. */
int64_t moelm_score_sequences(const moe_lm *lm, int64_t length) {
    int64_t most = length < FORWARD_TOKENS ? FORWARD_TOKENS / length : 1;
    if (lm->memory.mode != MOE_TRAIN || moelm_company(lm)) return most;
    int64_t there = lm->memory.max_rows / length;
    return there < 1 ? 1 : there < most ? there : most;
}

static int64_t stride(const moelm_windows *w) {
    return w->length > 1 ? w->length / 2 : 1;
}

/* The last window ends with the text, so all are equally long. */
int64_t moelm_window_start(const moelm_windows *w, int64_t index) {
    int64_t start = index * stride(w), last = w->text.n - 1 - w->length;
    return start < last ? start : last;
}

moelm_windows moelm_windows_of(const moelm_reading *text, int64_t longest) {
    int64_t n = text->n - 1; /* tokens that have a successor */
    moelm_windows w = {.text = *text, .length = n < longest ? n : longest};
    w.n_windows = 1 + (n - w.length + stride(&w) - 1) / stride(&w);
    return w;
}

/* Fills the tokens of windows first .. first + n_seq; returns how many targets are counted. */
static int64_t fill(const moelm_windows *w, int32_t *tokens, int32_t *targets) {
    int64_t counted = 0;
    for (int64_t i = 0; i < w->n_seq; ++i) {
        int64_t index = w->first + i, start = moelm_window_start(w, index);
        int64_t scored = index > 0 ? moelm_window_start(w, index - 1) + w->length : 0;
        for (int64_t j = 0; j < w->length; ++j) {
            bool mine = start + j >= scored && start + j + 1 >= w->text.begun;
            tokens[i * w->length + j] = moelm_reading_at(&w->text, start + j);
            targets[i * w->length + j] = mine ? moelm_reading_at(&w->text, start + j + 1) : -1;
            counted += mine;
        }
    }
    return counted;
}

/* Scores the windows w->first .. + n_seq; nats grows by what they cost. tokens: room for targets behind. */
static moe_status score_windows(moe_lm *lm, const moelm_windows *w, const moelm_score_hooks *hooks,
                                int32_t *tokens, double *nats) {
    int32_t *targets = tokens + w->n_seq * w->length;
    int64_t counted = fill(w, tokens, targets);
    double loss;
    moelm_pass pass = {
        .tokens = tokens,
        .n_seq = w->n_seq,
        .length = w->length,
        .replay = hooks->replay,
        .replay_row = w->first * w->length,
        .call = {.size = sizeof pass.call, .mode = MOE_INFER}
    };
    MOEI_TRY(moelm_loss(lm, &pass, targets, &loss));
    *nats += loss * (double)counted;
    return hooks->on_windows ? hooks->on_windows(hooks->user, lm, w) : MOE_OK;
}

moe_status moelm_score(moe_lm *lm, const moelm_reading *text, int64_t longest, const moelm_score_hooks *hooks,
                       double *bits) {
    static const moelm_score_hooks none = {0};
    moelm_windows w = moelm_windows_of(text, longest);
    int64_t most = moelm_score_sequences(lm, w.length);
    if (most > w.n_windows) most = w.n_windows;
    MOEI_TRY(moe_lm_reserve(lm, most, w.length, MOE_INFER));
    size_t buffer_bytes = (size_t)(most * w.length) * 2 * sizeof(int32_t);
    int32_t *tokens = moe_ctx_alloc(lm->ctx, buffer_bytes);
    if (!tokens) return MOE_ERR_MEMORY;

    moe_status status = MOE_OK;
    double nats = text->begun ? 0 : log((double)lm->vocab);
    for (; w.first < w.n_windows && status == MOE_OK; w.first += w.n_seq) {
        w.n_seq = most < w.n_windows - w.first ? most : w.n_windows - w.first;
        status = score_windows(lm, &w, hooks ? hooks : &none, tokens, &nats);
    }
    moe_ctx_free(lm->ctx, tokens, buffer_bytes);
    if (status == MOE_OK) *bits = nats / log(2.0);
    return status;
}
