/* gemm_openblas.c: sgemm of OpenBLAS, which has no bf16 product in the builds of Debian.
 * a[m,k] or [k,m], b[k,n] or [n,k] -> c[m,n], row by row.
 * Source: cblas.h.
 */
#include "peer_gemm.h"

#include <cblas.h>
#include <stdio.h>
#include <string.h>

/* The configuration begins with "OpenBLAS 0.3.21 " and goes on with how it was built. */
static void about(char *text, size_t size) {
    snprintf(text, size, "%.*s (%s)", (int)strcspn(openblas_get_config() + 9, " ") + 9, openblas_get_config(),
             openblas_get_corename());
}

static const char *run(const gemm *g) {
    const int m = (int)g->m, n = (int)g->n, k = (int)g->k;
    cblas_sgemm(CblasRowMajor, g->a_trans ? CblasTrans : CblasNoTrans, g->b_trans ? CblasTrans : CblasNoTrans,
                m, n, k, 1.0F, g->a, g->a_trans ? m : k, g->b, g->b_trans ? k : n, 0.0F, g->c, n);
    return NULL;
}

const gemm_library peer_gemm = {.about = about, .run = run};
