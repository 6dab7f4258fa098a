/* bench_problem.h: a problem in one string, the same for benches, tests and bug reports:
 * e8,t4096,d256,n256,k2[,shared1][,act=gelu][,bias][,skew=zipf1.0][,int4g32][,saved=mxfp8][,bf16|f32|f64],
 * or a model's name and what differs: olmoe,t512,skew=even. Words count in their order.
 */
#ifndef MOEKIT_BENCH_PROBLEM_H
#define MOEKIT_BENCH_PROBLEM_H

#include <moekit/moe.h>

enum { BENCH_MOST_K = 1024 }; /* of a Zipf skew */

typedef enum bench_skew {
    BENCH_RANDOM, /* whatever random gate weights give: nearly balanced */
    BENCH_EVEN,   /* round-robin: every expert gets T*K/E rows */
    BENCH_ZIPF    /* expert e is drawn with probability ~ 1 / (e+1)^exponent */
} bench_skew;

typedef struct bench_problem {
    int32_t n_experts, d_model, hidden, top_k, n_shared;
    int64_t n_tokens;
    const char *activation; /* as moe_layer_option_at lists them */
    bool bias;
    bench_skew skew;
    double exponent;
    moe_dtype dtype;
    const char *format; /* of packed experts, in inference; NULL: they are of dtype */
    int32_t group;      /* 0: the format's own */
    bool saved_mxfp8;   /* what training keeps of the experts is in 8 bits */
} bench_problem;

/* A model's MoE layer: what its name stands for in a problem. */
typedef struct bench_shape {
    const char *name, *problem;
} bench_shape;
extern const bench_shape bench_shapes[]; /* ends with a NULL name */

/* Fills what the text leaves out from "e8,t4096,d256,n256,k2". */
moe_status bench_problem_parse(const char *text, bench_problem *problem, moe_error *error);
/* Whether a text with "=" in its first word is a problem, by that word: "skew=even,e4"; else it may be a
 * setting. */
bool bench_problem_begins(const char *text);
void bench_problem_print(const bench_problem *problem, char *text, size_t size);
/* The layer of the problem, with the usual balance loss. */
moe_layer_desc bench_problem_layer(const bench_problem *problem);
/* Numbers of the weight matrices of one expert: 2*d*n, or 3*d*n where the activation is gated. */
int64_t bench_problem_weights(const bench_problem *problem);
/* Multiplications and additions of the expert products of one forward of n_tokens; backward takes twice that.
 */
double bench_problem_flop(const bench_problem *problem, int64_t n_tokens);
/* What moe_call.replay_expert makes of a skew: expert[T, K], no expert twice for a token. Not of
 * BENCH_RANDOM, where the router decides. */
void bench_problem_route(const bench_problem *problem, int32_t *expert);

#endif
