/* ctx.c: what every part of the library asks of its context: errors, log, memory.
 * Making one needs the kernels, so that is in layer/context.c.
 * Source: the error rules of UCX's CodeStyle (the finder of a fault writes its text).
 */
#include "core/ctx.h"

#include "core/arena.h"
#include "core/desc.h"

#include <stdio.h>

const char *moe_ctx_error(const moe_ctx *ctx) {
    return ctx ? ctx->error.text : "no context";
}
int32_t moe_ctx_threads(const moe_ctx *ctx) {
    return ctx ? ctx->desc.n_threads : 0;
}
uint64_t moe_ctx_seed(const moe_ctx *ctx) {
    return ctx ? ctx->desc.seed : 0;
}
const char *moe_ctx_isa(const moe_ctx *ctx) {
    return ctx ? ctx->desc.isa : "";
}
const char *moe_ctx_kernel(const moe_ctx *ctx, const char *op) {
    return moe_ctx_kernel_of(ctx, op, MOE_F32);
}
const char *moe_ctx_kernel_of(const moe_ctx *ctx, const char *op, moe_dtype dtype) {
    return ctx && op ? ctx->kernel_name(ctx->isa, op, dtype) : NULL;
}

moe_status moe_ctx_fail(moe_ctx *ctx, moe_status status, const char *format, ...) {
    if (!ctx) return status;
    va_list args;
    va_start(args, format);
    moei_error_setv(&ctx->error, status, format, args);
    va_end(args);
    moei_log(ctx, MOE_LOG_ERROR, "%s", ctx->error.text);
    return status;
}

moe_status moei_ctx_need(moe_ctx *ctx, const char *call, const char *field, const void *ptr) {
    if (ctx && ptr) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s is NULL; this call needs it", call, field);
}

moe_status moei_ctx_whole(moe_ctx *ctx, const char *call, const char *field, const void *ptr, size_t bytes) {
    if ((uintptr_t)ptr % bytes == 0) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                        "%s: %s is at %p, within an element; those of %zu bytes lie at multiples of that",
                        call, field, ptr, bytes);
}

moe_status moei_ctx_no_memory(moe_ctx *ctx, const char *format, ...) {
    char purpose[120];
    const moe_error refused = ctx->error;
    va_list args;
    va_start(args, format);
    vsnprintf(purpose, sizeof purpose, format, args);
    va_end(args);
    return moe_ctx_fail(ctx, refused.status != MOE_OK ? refused.status : MOE_ERR_MEMORY, "%s: %s", purpose,
                        refused.text);
}

moe_status moei_ctx_desc_read(moe_ctx *ctx, void *ours, size_t our_size, const void *given,
                              const char *name) {
    moe_error error;
    moe_status status = moei_desc_read(ours, our_size, given, name, &error);
    return status == MOE_OK ? MOE_OK : moe_ctx_fail(ctx, status, "%s", error.text);
}

moe_status moei_ctx_desc_check_out(moe_ctx *ctx, const void *out, size_t our_size, const char *name) {
    moe_error error;
    moe_status status = moei_desc_check_out(out, our_size, name, &error);
    return status == MOE_OK ? MOE_OK : moe_ctx_fail(ctx, status, "%s", error.text);
}

moe_status moei_ctx_desc_write(moe_ctx *ctx, void *out, const void *ours, size_t our_size, const char *name) {
    moe_error error;
    moe_status status = moei_desc_write(out, ours, our_size, name, &error);
    return status == MOE_OK ? MOE_OK : moe_ctx_fail(ctx, status, "%s", error.text);
}

void moei_log(const moe_ctx *ctx, moe_log_level level, const char *format, ...) {
    if (!ctx->desc.log) return;
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ctx->desc.log(ctx->desc.log_user, level, text);
}

void *moe_ctx_alloc(moe_ctx *ctx, size_t bytes) {
    if (!ctx) return NULL;
    if (bytes == 0) bytes = 1;
    void *ptr = ctx->desc.host.alloc(ctx->desc.host.user, bytes, MOEI_ALIGN);
    if (!ptr) moe_ctx_fail(ctx, MOE_ERR_MEMORY, "cannot allocate %zu bytes", bytes);
    return ptr;
}

void moe_ctx_free(moe_ctx *ctx, void *ptr, size_t bytes) {
    if (ctx && ptr) ctx->desc.host.free(ctx->desc.host.user, ptr, bytes ? bytes : 1);
}
