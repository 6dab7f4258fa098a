/* bench_step.h: moekit bench step: where the time of a training step goes.
 */
#ifndef MOEKIT_BENCH_STEP_H
#define MOEKIT_BENCH_STEP_H

#include "cli.h"

/* Operands after the first are configuration files; `steps` are timed, after a few that warm up. Returns the
 * exit code. */
int bench_step(cli_args *args, int64_t steps);

#endif
