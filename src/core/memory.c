/* memory.c: the memory of a context's device, and the CPU's row of the device table.
 * moe_memory_* of moe.h are these with the caller's pointers.
 * Source: docs/architecture.md, "On a GPU".
 */
#include "core/memory.h"

#include "core/ctx.h"

#include <string.h>

static moe_status cpu_open(moe_ctx *ctx) {
    (void)ctx;
    return MOE_OK;
}

static void cpu_close(moe_ctx *ctx) {
    (void)ctx;
}

static moe_status cpu_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes) {
    (void)ctx;
    memcpy(to, from, bytes);
    return MOE_OK;
}

static moe_status cpu_clear(moe_ctx *ctx, void *ptr, size_t bytes) {
    (void)ctx;
    memset(ptr, 0, bytes);
    return MOE_OK;
}

const moei_device moei_device_cpu = {.name = "cpu",
                                     .open = cpu_open,
                                     .close = cpu_close,
                                     .alloc = moe_ctx_alloc,
                                     .free = moe_ctx_free,
                                     .copy = cpu_copy,
                                     .clear = cpu_clear,
                                     .wait = cpu_open,
                                     .check = cpu_open};

void *moei_memory_alloc(moe_ctx *ctx, size_t bytes) {
    return ctx->device->alloc(ctx, bytes);
}

void moei_memory_free(moe_ctx *ctx, void *ptr, size_t bytes) {
    if (ptr) ctx->device->free(ctx, ptr, bytes);
}

moe_status moei_memory_clear(moe_ctx *ctx, void *ptr, size_t bytes) {
    return bytes > 0 ? ctx->device->clear(ctx, ptr, bytes) : MOE_OK;
}

moe_status moei_memory_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes) {
    return bytes > 0 ? ctx->device->copy(ctx, to, from, bytes) : MOE_OK;
}

void moei_beside_step(moe_ctx *ctx, moei_beside step) {
    if (!ctx->device->beside) return;
    void (*const before)(void *arg) = ctx->offer.before;
    const bool due = step == MOEI_BESIDE_WEIGHED || step == MOEI_BESIDE_MARK;
    if (due || step == MOEI_BESIDE_END) ctx->offer.before = NULL;
    if (due && before) before(ctx->offer.arg);
    ctx->device->beside(ctx, step);
}

void moei_beside_offer(moe_ctx *ctx, const moei_offer *offer) {
    ctx->offer = *offer;
    moei_beside_step(ctx, MOEI_BESIDE_OFFER);
}

void *moei_memory_open(moe_ctx *ctx, void *ptr, size_t bytes) {
    return ctx->device == &moei_device_cpu ? ptr : moe_ctx_alloc(ctx, bytes);
}

moe_status moei_memory_close(moe_ctx *ctx, void *ptr, void *view, size_t bytes) {
    if (view == ptr) return MOE_OK;
    const moe_status status = moei_memory_copy(ctx, ptr, view, bytes);
    moe_ctx_free(ctx, view, bytes);
    return status;
}

void *moe_memory_alloc(moe_ctx *ctx, size_t bytes) {
    if (!ctx) return NULL;
    return moei_memory_alloc(ctx, bytes);
}

void moe_memory_free(moe_ctx *ctx, void *ptr, size_t bytes) {
    if (ctx) moei_memory_free(ctx, ptr, bytes);
}

moe_status moe_memory_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes) {
    if (!ctx) return MOE_ERR_ARGUMENT;
    if (bytes > 0 && (!to || !from))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "moe_memory_copy: %s is NULL for %zu bytes",
                            to ? "from" : "to", bytes);
    return moei_memory_copy(ctx, to, from, bytes);
}

moe_status moe_ctx_wait(moe_ctx *ctx) {
    if (!ctx) return MOE_ERR_ARGUMENT;
    return ctx->device->wait(ctx);
}
