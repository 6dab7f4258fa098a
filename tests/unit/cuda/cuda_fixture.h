/* cuda_fixture.h: what the tests of layers and operations on a GPU share: a context, and arrays copied to it.
 * Source: moekit/cuda.h.
 */
#ifndef CUDA_FIXTURE_H
#define CUDA_FIXTURE_H

#include "support/layer_fixture.h"

#include <moekit/cuda.h>

/* The families of kernels, those of every GPU first. */
enum { CUDA_FAMILIES = 2 };
static char *const cuda_families[CUDA_FAMILIES] = {"cuda", "sm90"};

/* With the kernels of `isa` (NULL: the best); NULL where there is no such GPU: the caller says so by name. */
static inline moe_ctx *cuda_ctx(const char *isa) {
    moe_ctx_desc desc = {.size = sizeof desc, .device = MOE_CUDA, .isa = isa, .seed = test_seed()};
    moe_ctx *ctx = NULL;
    moe_error error = {0};
    if (moe_ctx_create(&desc, &ctx, &error) == MOE_OK) return ctx;
    assert_int_equal(error.status, MOE_ERR_UNSUPPORTED);
    fprintf(stderr, "not run here: %s\n", error.text);
    return NULL;
}

/* False, with a line that says why, where there is no GPU: the program ends with 77. */
static inline bool cuda_is_here(void) {
    moe_ctx *gpu = cuda_ctx("cuda");
    const bool here = gpu != NULL;
    moe_ctx_destroy(gpu);
    return here;
}

/* Whether MOEKIT_ISA, where it is set, is this family's name. */
static inline bool cuda_family_is_wanted(const char *family) {
    const char *isa = getenv("MOEKIT_ISA");
    if (!isa || strcmp(isa, family) == 0) return true;
    fprintf(stderr, "not run here: the kernels of %s, as MOEKIT_ISA is '%s'\n", family, isa);
    return false;
}

/* In f32 Hopper has the kernels of every GPU. */
static inline bool cuda_is_hopper(const moe_ctx *gpu) {
    return strcmp(moe_ctx_isa(gpu), "sm90") == 0;
}

/* A copy in device memory. */
static inline void *cuda_upload(moe_ctx *ctx, const void *from, size_t bytes) {
    void *device = moe_memory_alloc(ctx, bytes);
    assert_non_null(device);
    must(ctx, moe_memory_copy(ctx, device, from, bytes));
    return device;
}

/* The same of a matrix; the host's is freed. */
static inline void *uploaded(moe_ctx *ctx, moe_mat host) {
    void *device = cuda_upload(ctx, host.data, test_bytes(host));
    free(host.data);
    return device;
}

#endif
