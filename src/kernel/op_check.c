/* op_check.c: checks of the arguments of public operations.
 * Shapes: moekit/op.h. What costs more than the check of a few numbers (index arrays, overlap of operands) is
 * the caller's duty.
 */
#include "kernel/op_check.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/ctx.h"
#include "kernel/kernel.h"

moe_status moei_op_limits(moe_ctx *ctx, const char *op, const moei_limit *limits, size_t n) {
    for (const moei_limit *l = limits; l < limits + n; ++l) {
        if (l->value >= l->min && l->value <= l->max) continue;
        if (l->value < l->min && l->max >= MOEI_LD_MAX)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s is %" PRId64 "; it must be at least %" PRId64,
                                op, l->field, l->value, l->min);
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: %s is %" PRId64 "; it must lie in %" PRId64 " .. %" PRId64, op, l->field,
                            l->value, l->min, l->max);
    }
    return MOE_OK;
}

moe_status moei_op_needs(moe_ctx *ctx, const char *op, const moei_need *needs, size_t n) {
    for (const moei_need *p = needs; p < needs + n; ++p) MOEI_TRY(moei_ctx_need(ctx, op, p->field, p->ptr));
    return moei_op_whole(ctx, op, needs, n);
}

moe_status moei_op_whole(moe_ctx *ctx, const char *op, const moei_need *may, size_t n) {
    for (const moei_need *p = may; p < may + n; ++p)
        MOEI_TRY(moei_ctx_whole(ctx, op, p->field, p->ptr, p->bytes));
    return MOE_OK;
}

moe_status moei_op_dtype(moe_ctx *ctx, const char *op, moe_dtype dtype) {
    if (dtype == MOE_F32 || dtype == MOE_F64 || dtype == MOE_BF16) {
        if (!moei_isa_is_cuda((moei_isa)ctx->isa) ||
            moei_kernel_serves(MOEI_ISA_CUDA, op + strlen("moe_"), dtype))
            return MOE_OK;
        return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED,
                            "%s: not built for dtype %d on CUDA; a CPU context has it", op, (int)dtype);
    }
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: dtype is %d; it must be MOE_F32, MOE_F64 or MOE_BF16", op,
                        (int)dtype);
}

moe_status moei_op_real(moe_ctx *ctx, const char *op, const char *field, double value, double min) {
    if (value >= min && isfinite(value)) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s is %g; it must be at least %g and finite", op, field,
                        value, min);
}

moe_status moei_op_finite(moe_ctx *ctx, const char *op, const char *field, double value) {
    if (isfinite(value)) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s is %g; it must be finite", op, field, value);
}
