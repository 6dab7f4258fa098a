/* words.h: what the numbers mean, in plain sentences.
 * Thresholds are ours and stand at the head of words.c.
 */
#ifndef MOELM_WORDS_H
#define MOELM_WORDS_H

#include "report/html.h"
#include "report/run.h"

/* Bits per byte from eval.json, else from the last evaluation while training; NaN: none. */
double moelm_run_bits(const moelm_run *run);
/* What text that is, by the hashes of run.json: held out only where it is data.eval and not data.train. */
typedef enum moelm_text_kind { MOELM_TEXT_HELD_OUT, MOELM_TEXT_TRAINED, MOELM_TEXT_OTHER } moelm_text_kind;
moelm_text_kind moelm_run_text(const moelm_run *run);
/* Parameters of the model, "total" or "active", from run.json; NaN: not told. */
double moelm_run_parameters(const moelm_run *run, const char *which);

/* Over the last quarter of the logged steps. */
moelm_point moelm_report_metrics_tail(const moelm_report_metrics *metrics, int32_t index,
                                      moelm_layer_series series);

/* "token", "position", "token and position", "context", or "" where nothing was measured. */
const char *moelm_words_follow(const moelm_eval_layer *layer);
/* The same as a sentence with its shares. */
void moelm_words_follow_sentence(moelm_html *html, const moelm_eval_layer *layer);

/* One sentence: what model, what text, what page. */
void moelm_words_lead(moelm_html *html, const moelm_run *run);
/* What came out, as list items. */
void moelm_words_findings(moelm_html *html, const moelm_run *run);

#endif
