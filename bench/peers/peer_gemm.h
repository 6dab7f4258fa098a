/* peer_gemm.h: what a library of plain matrix products has to bring so that peer_gemm.c can call it expert by
 * expert. Each gemm_<library>.c defines peer_gemm, and each peer is linked with one of them.
 */
#ifndef MOEKIT_PEER_GEMM_H
#define MOEKIT_PEER_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* C[m, n] = A[m, k] B[k, n], row-major without gaps; A^T is stored where a_trans, B^T where b_trans. */
typedef struct gemm {
    int64_t m, n, k;
    void *a, *b; /* read only */
    void *c;
    bool a_trans, b_trans;
    bool bf16;   /* else f32 */
    bool packed; /* b is what pack made of it */
} gemm;

typedef struct gemm_library {
    void (*about)(char *text, size_t size);
    bool has_bf16;
    /* A copy of g->b in the library's own layout, for products with about g->m rows; NULL: no room. The
     * member itself is NULL where the library has no such layout. */
    void *(*pack)(const gemm *g);
    void (*unpack)(void *packed);      /* frees it */
    const char *(*run)(const gemm *g); /* NULL, or what went wrong */
} gemm_library;

extern const gemm_library peer_gemm;

#endif
