/* score.h: bits that a model needs for a text, in windows that overlap by half.
 * A window feeds `length` tokens; every token of the text but the first is predicted in exactly one window,
 * from at least half a window of what stands before it (the first window excepted).
 */
#ifndef MOELM_SCORE_H
#define MOELM_SCORE_H

#include "model/model.h"
#include "train/data.h"

/* Windows that went through the model together: those of index first .. first + n_seq of the text. */
typedef struct moelm_windows {
    moelm_reading text;
    int64_t length;    /* tokens of every window */
    int64_t n_windows; /* of the whole text */
    int64_t first, n_seq;
} moelm_windows;
/* Those of a text in windows of at most `longest` tokens; none is through yet. */
moelm_windows moelm_windows_of(const moelm_reading *text, int64_t longest);
/* Where window `index` begins in the text. */
int64_t moelm_window_start(const moelm_windows *windows, int64_t index);

/* Called after each forward, while the layers still hold its routing. */
typedef moe_status (*moelm_score_fn)(void *user, moe_lm *lm, const moelm_windows *windows);

typedef struct moelm_score_hooks {
    const moelm_route *replay; /* [n_layers] window by window; NULL: routed anew */
    moelm_score_fn on_windows; /* NULL: none */
    void *user;
} moelm_score_hooks;

/* Bits for all of the text; its first token, where nothing precedes it, costs log2 of the vocabulary. The
 * model is reserved for what this takes. hooks may be NULL. Failures are told on the model's context. */
moe_status moelm_score(moe_lm *lm, const moelm_reading *text, int64_t longest, const moelm_score_hooks *hooks,
                       double *bits);

/* Sequences of `length` tokens that go through the model together. One reserved for training takes no more
 * than it has memory for, where that changes nothing: memory for more would be memory for backward too. */
int64_t moelm_score_sequences(const moe_lm *lm, int64_t length);

#endif
