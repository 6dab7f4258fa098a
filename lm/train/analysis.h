/* analysis.h: what the experts of a model did on a text: load, and what their choice tells of the token,
 * its position and the token before, as eval.json keeps it (docs/run-directory.md).
 * Memory: experts * (2 * vocabulary + 32) counts a layer.
 */
#ifndef MOELM_ANALYSIS_H
#define MOELM_ANALYSIS_H

#include <jansson.h>

#include "train/score.h"

typedef struct moelm_analysis moelm_analysis;
/* tokenizer: whose the tokens are, kept by the caller; NULL: they are bytes. */
moe_status moelm_analysis_create(moe_lm *lm, const moe_tokenizer *tokenizer, moelm_analysis **analysis,
                                 moe_error *error);
void moelm_analysis_destroy(moelm_analysis *analysis);

/* A moelm_score_fn; `user` is the analysis. Every token is counted once, in windows that do not overlap. */
moe_status moelm_analysis_add(void *user, moe_lm *lm, const moelm_windows *windows);

/* The array `layers` of eval.json; NULL when memory ran out. */
json_t *moelm_analysis_layers(const moelm_analysis *analysis);

#endif
