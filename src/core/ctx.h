/* ctx.h: the context: kernels, threads, memory, log, registered experts, last error.
 * One thread at a time uses it; nothing of it is global.
 */
#ifndef MOEI_CTX_H
#define MOEI_CTX_H

#include <moekit/expert.h>
#include <moekit/moe.h>
#include <moekit/op.h>

#include "core/memory.h"
#include "core/real.h"
#include "core/status.h"
#include "core/thread.h"

struct moei_timing;

typedef struct moei_expert_entry {
    moe_expert_ops ops; /* its name is ours */
    struct moei_expert_entry *next;
    char name[];
} moei_expert_entry;

struct moe_ctx {
    moe_ctx_desc desc; /* defaults filled in */
    moei_team team;
    const struct moei_device *device; /* memory.h */
    void *device_state;               /* of the device's row */
    struct moei_fault *fault;         /* NULL on the CPU */
    moei_offer offer;                 /* the last, of moei_beside_offer */
    const moe_gemm_outer_args
        *ride; /* waits to share a launch with the next moei_outer_products; NULL: none */
    const struct moei_rows_plus *plus; /* waits for the next moei_rows_product; NULL: nothing */
    moe_ctx *host; /* on a device: the CPU context that does what the device cannot; else NULL */
    int isa;       /* moei_isa; kernels above it are not used */
    const struct moei_kernels *kernels[MOEI_DTYPES]; /* indexed by moe_dtype */
    const char *(*kernel_name)(int isa, const char *op, moe_dtype dtype);
    moei_expert_entry *experts; /* registered by the caller */
    struct moei_timing *timing; /* timing.h; NULL: nobody asked */
    moe_error error;
};

/* moei_error_need for those who have a context, or were given none: then the status alone tells it. */
moe_status moei_ctx_need(moe_ctx *ctx, const char *call, const char *field, const void *ptr);
/* Data that begins within an element of so many bytes cannot be read as such in C. NULL begins nowhere. */
moe_status moei_ctx_whole(moe_ctx *ctx, const char *call, const char *field, const void *ptr, size_t bytes);

/* Says what the memory was for that has just been refused; returns the status of that refusal:
 * MOE_ERR_MEMORY, or what else a device gave as its reason. */
moe_status moei_ctx_no_memory(moe_ctx *ctx, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* desc.h for those who have a context. */
moe_status moei_ctx_desc_read(moe_ctx *ctx, void *ours, size_t our_size, const void *given, const char *name);
moe_status moei_ctx_desc_check_out(moe_ctx *ctx, const void *out, size_t our_size, const char *name);
moe_status moei_ctx_desc_write(moe_ctx *ctx, void *out, const void *ours, size_t our_size, const char *name);

/* The offsets of a product's only group: kernels of a device know it by its rows alone. */
static inline const int64_t *moei_one_group(const moe_ctx *ctx, const int64_t offset[2]) {
    return ctx->host ? NULL : offset;
}

void moei_log(const moe_ctx *ctx, moe_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
