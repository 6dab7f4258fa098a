/* memory.h: the memory that a context's device computes in, and the table a device is behind.
 * On the CPU it is the context's own. On another device pointers are the device's: the host touches them
 * through these calls only, and kernels queue on the device's stream.
 */
#ifndef MOEI_MEMORY_H
#define MOEI_MEMORY_H

#include <moekit/moe.h>

/* Steps of a queue beside the first, for work that only moves bytes while products compute. */
typedef enum moei_beside {
    MOEI_BESIDE_OFFER,   /* what is to run there comes later; who makes its inputs may mark */
    MOEI_BESIDE_WEIGHED, /* the gradients of the rows' weights are queued, those of the rows not yet */
    MOEI_BESIDE_MARK,  /* all it needs is queued: products from here on leave it room. Not offered: nothing */
    MOEI_BESIDE_ENTER, /* calls from here on queue there, after the mark, or after all where nobody marked */
    MOEI_BESIDE_END    /* back to the first queue, which waits for what was queued there */
} moei_beside;

/* One row a device. `open` prepares ctx->device_state from ctx->desc and tells failures by moe_ctx_fail. */
typedef struct moei_device {
    const char *name;
    moe_status (*open)(moe_ctx *ctx);
    void (*close)(moe_ctx *ctx);
    int32_t (*capability)(const moe_ctx *ctx);  /* once open: 10 * major + minor; NULL on the CPU */
    void *(*alloc)(moe_ctx *ctx, size_t bytes); /* NULL, with a text recorded, when it does not fit */
    void (*free)(moe_ctx *ctx, void *ptr, size_t bytes);
    /* Either side may be the host's; queued, but what the host holds is read, or written, on return. */
    moe_status (*copy)(moe_ctx *ctx, void *to, const void *from, size_t bytes);
    moe_status (*clear)(moe_ctx *ctx, void *ptr, size_t bytes); /* to zeros; queued */
    void (*beside)(moe_ctx *ctx, moei_beside step);             /* NULL: there is no other queue */
    moe_status (*wait)(moe_ctx *ctx);  /* until all that was queued is done; what the device reported */
    moe_status (*check)(moe_ctx *ctx); /* the same of what is known already, without waiting */
} moei_device;

extern const moei_device moei_device_cpu;

/* What a kernel found wrong, a word of host memory that the device lowers: layer, token, kind, from the
 * highest bits down, so that of many tokens the first one of the first layer is told. */
typedef enum moei_fault_kind { MOEI_FAULT_LOGIT = 0, MOEI_FAULT_REPLAY } moei_fault_kind;
enum { MOEI_FAULT_TOKEN_BIT = 8, MOEI_FAULT_LAYER_BIT = 40 };
typedef struct moei_fault {
    uint64_t first; /* UINT64_MAX: nothing */
} moei_fault;

void *moei_memory_alloc(moe_ctx *ctx, size_t bytes);
void moei_memory_free(moe_ctx *ctx, void *ptr, size_t bytes);
moe_status moei_memory_clear(moe_ctx *ctx, void *ptr, size_t bytes);
moe_status moei_memory_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes);

void moei_beside_step(moe_ctx *ctx, moei_beside step);
/* What MOEI_BESIDE_OFFER offers. */
typedef struct moei_offer {
    void (*before)(void *arg); /* who has weighed or marks first calls it: it queues what needs the gradients
                                  of the rows' weights, on the first queue. Nobody: it was not called. NULL:
                                  nothing */
    void *arg;
    double intensity; /* bytes that it moves for each operation of the products it is to run beside */
} moei_offer;
void moei_beside_offer(moe_ctx *ctx, const moei_offer *offer);

/* A block of device memory for the host to fill: the block itself on the CPU, else a copy beside it. NULL
 * when there is no room. Every opened view is closed; that puts its bytes in place. */
void *moei_memory_open(moe_ctx *ctx, void *ptr, size_t bytes);
moe_status moei_memory_close(moe_ctx *ctx, void *ptr, void *view, size_t bytes);

#endif
