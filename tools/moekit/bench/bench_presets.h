/* bench_presets.h: moekit bench presets: every preset trained alike, and a table of how it balanced.
 */
#ifndef MOEKIT_BENCH_PRESETS_H
#define MOEKIT_BENCH_PRESETS_H

#include "cli.h"

/* Operands after the first are configuration files; `jobs` trainings run at once. Returns the exit code. */
int bench_presets(cli_args *args, int64_t jobs);

#endif
