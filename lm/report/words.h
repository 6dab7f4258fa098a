/* words.h: what the numbers mean, in plain sentences.
 * Thresholds are ours and stand at the head of words.c.
 */
#ifndef MOEI_WORDS_H
#define MOEI_WORDS_H

#include "report/html.h"
#include "report/run.h"

/* Bits per byte on held-out text, from eval.json, else from the last evaluation while training; NaN: none. */
double moei_run_held_out(const moei_run *run);
/* Parameters of the model, "total" or "active", from run.json; NaN: not told. */
double moei_run_parameters(const moei_run *run, const char *which);

/* Over the last quarter of the logged steps. */
moei_point moei_metrics_tail(const moei_metrics *metrics, int32_t index, moei_layer_series series);

/* "token", "position", "token and position", "context", or "" where nothing was measured. */
const char *moei_words_follow(const moei_eval_layer *layer);
/* The same as a sentence with its shares. */
void moei_words_follow_sentence(moei_html *html, const moei_eval_layer *layer);

/* One sentence: what model, what text, what page. */
void moei_words_lead(moei_html *html, const moei_run *run);
/* What came out, as list items. */
void moei_words_findings(moei_html *html, const moei_run *run);

#endif
