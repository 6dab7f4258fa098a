/* gemm_libxsmm.c: libxsmm's own sgemm over threads (libxsmmext). Its bf16 kernels are parts of one tile,
 * around which a caller builds the blocking himself: not a product that could be called here.
 */
#include "peer_gemm.h"

#include <libxsmm.h>
#include <stdio.h>

static void about(char *text, size_t size) {
    snprintf(text, size, "libxsmm %s (%s)", LIBXSMM_VERSION, libxsmm_get_target_arch());
}

/* Column-major, so C^T = B^T A^T. */
static const char *run(const gemm *g) {
    const libxsmm_blasint m = (libxsmm_blasint)g->m, n = (libxsmm_blasint)g->n, k = (libxsmm_blasint)g->k;
    const libxsmm_blasint lda = g->a_trans ? m : k, ldb = g->b_trans ? k : n;
    const float one = 1, zero = 0;
    libxsmm_sgemm_omp(g->b_trans ? "T" : "N", g->a_trans ? "T" : "N", &n, &m, &k, &one, g->b, &ldb, g->a,
                      &lda, &zero, g->c, &n);
    return NULL;
}

const gemm_library peer_gemm = {.about = about, .run = run};
