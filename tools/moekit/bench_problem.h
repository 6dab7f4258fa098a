/* bench_problem.h: a problem in one string, the same for benches, tests and bug reports:
 * e8,t4096,d256,n256,k2[,shared1][,act=gelu][,skew=zipf1.0][,f32|f64], in any order.
 */
#ifndef MOEKIT_BENCH_PROBLEM_H
#define MOEKIT_BENCH_PROBLEM_H

#include <moekit/moe.h>

typedef enum bench_skew {
    BENCH_RANDOM, /* whatever random gate weights give: nearly balanced */
    BENCH_EVEN,   /* round-robin: every expert gets T*K/E rows */
    BENCH_ZIPF    /* expert e is drawn with probability ~ 1 / (e+1)^exponent */
} bench_skew;

typedef struct bench_problem {
    int32_t n_experts, d_model, hidden, top_k, n_shared;
    int64_t n_tokens;
    const char *activation;
    bench_skew skew;
    double exponent;
    moe_dtype dtype;
} bench_problem;

/* Fills what the text leaves out from "e8,t4096,d256,n256,k2". */
moe_status bench_problem_parse(const char *text, bench_problem *problem, moe_error *error);
void bench_problem_print(const bench_problem *problem, char *text, size_t size);
/* Multiplications and additions of the expert products of one forward; forward with backward is three times
 * that. */
double bench_problem_flop(const bench_problem *problem);
/* Random tokens x[T,d] and, for a skew, gate[E,d] such that the router picks experts as the problem says. */
void bench_problem_fill(const bench_problem *problem, void *x, void *gate);

#endif
