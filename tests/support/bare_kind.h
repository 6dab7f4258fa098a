/* bare_kind.h: a kind of expert without parameters, that keeps nothing from forward to backward: for tests
 * that bring what it computes, or set more of the table. self: a bare_expert.
 * Source: moekit/expert.h.
 */
#ifndef BARE_KIND_H
#define BARE_KIND_H

#include <moekit/expert.h>

typedef struct bare_expert {
    moe_ctx *ctx;
    moe_expert_desc desc;
} bare_expert;

static inline moe_status bare_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    bare_expert *bare = moe_ctx_alloc(ctx, sizeof *bare);
    if (!bare) return MOE_ERR_MEMORY;
    *bare = (bare_expert){ctx, *desc};
    *self = bare;
    return MOE_OK;
}

static inline void bare_destroy(void *self) {
    moe_ctx_free(((bare_expert *)self)->ctx, self, sizeof(bare_expert));
}

static inline int32_t bare_param_count(const void *self) {
    (void)self;
    return 0;
}

static inline moe_status bare_param(const void *self, int32_t index, moe_param *param) {
    (void)self, (void)index, (void)param;
    return MOE_ERR_ARGUMENT;
}

static inline void bare_bind_grad(void *self, int32_t index, void *grad) {
    (void)self, (void)index, (void)grad;
}

static inline size_t bare_saved_bytes(const void *self, int64_t max_rows) {
    (void)self, (void)max_rows;
    return 0;
}

static inline size_t bare_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    (void)self, (void)max_rows, (void)mode;
    return 0;
}

/* backward NULL: it serves inference only. */
static inline moe_expert_ops bare_kind(const char *name,
                                       moe_status (*forward)(void *self, const moe_expert_io *io),
                                       moe_status (*backward)(void *self, const moe_expert_io *io)) {
    return (moe_expert_ops){.size = sizeof(moe_expert_ops),
                            .name = name,
                            .create = bare_create,
                            .destroy = bare_destroy,
                            .param_count = bare_param_count,
                            .param = bare_param,
                            .bind_grad = bare_bind_grad,
                            .saved_bytes = bare_saved_bytes,
                            .scratch_bytes = bare_scratch_bytes,
                            .forward = forward,
                            .backward = backward};
}

#endif
