/* bench_sparsity.h: moekit bench sparsity: whether experts pay: a mixture against dense models of equal
 * active and of equal total size.
 */
#ifndef MOEKIT_BENCH_SPARSITY_H
#define MOEKIT_BENCH_SPARSITY_H

#include "cli.h"

enum { SPARSITY_MODELS = 3, SPARSITY_SEEDS = 8, SPARSITY_POINTS = 64, SPARSITY_STEPS = 1 << 16 };

/* What one training told: held-out figures at `step`, and what its steps took. */
typedef struct sparsity_curve {
    int64_t n_points, n_steps;
    double step[SPARSITY_POINTS], bits[SPARSITY_POINTS];
    double seconds[SPARSITY_STEPS]; /* of every step */
    double elapsed;                 /* at the step before */
} sparsity_curve;

typedef struct sparsity {
    const char *name[SPARSITY_MODELS];
    sparsity_curve *curve[SPARSITY_MODELS]; /* [n_seeds] */
    double params[SPARSITY_MODELS], active[SPARSITY_MODELS];
    int64_t n_seeds;
} sparsity;

/* Operands after the first are configuration files. Returns the exit code. */
int bench_sparsity(cli_args *args, int64_t seeds, int64_t jobs);

/* Mean, lowest and highest held-out figure of a model at point `i`. */
typedef struct sparsity_spread {
    double mean, low, high;
} sparsity_spread;
sparsity_spread sparsity_at(const sparsity *s, int model, int64_t i);

/* bench_sparsity_page.c */
void sparsity_page(FILE *out, const cli_args *args, const sparsity *s, const char *picture);
void sparsity_picture(FILE *out, const sparsity *s);

#endif
