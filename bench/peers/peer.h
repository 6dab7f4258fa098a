/* peer.h: what a library timed by bench_peers.py looks like from Python: the experts of one swiglu layer on
 * routes that are given. Each peer is a shared library of its own, loaded into a process of its own, and
 * defines these calls. x, y, dy, dx [T, d]; expert, weight [T, K]; dw1 [E, d, 2n], dw2 [E, n, d]. Where a
 * call returns other than 0, peer_error tells what went wrong.
 */
#ifndef MOEKIT_PEER_H
#define MOEKIT_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PEER_API __attribute__((visibility("default")))

typedef struct peer_problem {
    int32_t n_experts, top_k, d_model, hidden;
    int64_t n_tokens;   /* at most, a call */
    int32_t bf16;       /* else f32; gradients of weights too, routing weights are f32 in both */
    int32_t training;   /* peer_step will be called, else peer_forward alone: weights may be packed once */
    int32_t n_threads;  /* as in OMP_NUM_THREADS */
    void *w1, *w2;      /* [E, d, 2n] gate columns first, [E, n, d]: read, for as long as the peer lives */
    const char *format; /* "": weights as they are; "int8", "int4": packed by the peer, of inference alone */
} peer_problem;

typedef struct peer_batch {
    int64_t n_tokens;
    const int32_t *expert;
    const float *weight;
    void *x, *y;   /* read, written */
    void *dy, *dx; /* of peer_step: read, written */
} peer_batch;

typedef struct peer peer;
PEER_API peer *peer_create(const peer_problem *problem); /* NULL: peer_error(NULL) tells why */
PEER_API void peer_destroy(peer *p);
PEER_API const char *peer_error(const peer *p);
PEER_API void peer_about(char *text, size_t size); /* library and version */
PEER_API int peer_forward(peer *p, const peer_batch *batch);
/* Forward and backward: y, dx and, anew, the gradients of the weights. */
PEER_API int peer_step(peer *p, const peer_batch *batch);
PEER_API void peer_gradients(const peer *p, const void **dw1, const void **dw2);

#endif
