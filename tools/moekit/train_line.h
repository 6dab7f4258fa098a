/* train_line.h: shows the progress of a training run on stderr, one line of key=value (moe_lm_progress_text).
 * A terminal gets one living line, drawn at most 10 times a second; elsewhere a line each logged step.
 */
#ifndef MOEKIT_TRAIN_LINE_H
#define MOEKIT_TRAIN_LINE_H

#include "cli.h"

typedef struct train_line {
    cli_args *args;
    bool terminal;
    int64_t log_every;      /* train.log_every */
    double shown_at;        /* when the living line was last drawn */
    moe_lm_progress latest; /* what the last call told; its event is not kept */
} train_line;

/* `user` is a train_line; made for moe_lm_train_options.on_progress. */
void train_line_show(void *user, const moe_lm_progress *now);

#endif
