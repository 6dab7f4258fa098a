/* op_model.c: the public operations of a model around the layer: norm, rotary embedding, attention, loss,
 * optimizer. Each checks its arguments (op_check.h), then calls the context's kernel.
 * Arguments and shapes: moekit/op.h.
 */
#include <inttypes.h>

#include "core/ctx.h"
#include "core/real.h"
#include "kernel/kernel.h"
#include "kernel/op_check.h"

static moe_status check_rmsnorm(moe_ctx *ctx, const char *op, const moe_rmsnorm_args *args) {
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    const moei_limit sizes[] = {
        {"rows",  args->rows,  0, INT32_MAX    },
        {"n",     args->n,     1, MOEI_NORM_MAX},
        {"heads", args->heads, 0, MOEI_NORM_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, sizes, MOEI_COUNT(sizes)));
    const int64_t heads = args->heads ? args->heads : 1, width = heads * args->n;
    const moei_limit limits[] = {
        {"heads * n",    width,                         1,     MOEI_LD_MAX},
        {"rows * heads", args->rows * heads,            0,     INT32_MAX  },
        {"ldx",          args->ldx ? args->ldx : width, width, MOEI_LD_MAX},
        {"ldy",          args->ldy ? args->ldy : width, width, MOEI_LD_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    return moei_op_real(ctx, op, "eps", (double)args->eps, 0.0);
}

moe_status moe_rmsnorm(moe_ctx *ctx, const moe_rmsnorm_args *args) {
    const char *op = "moe_rmsnorm";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_rmsnorm(ctx, op, args));
    if (args->rows == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"x",    args->x,    size},
        {"gain", args->gain, size},
        {"y",    args->y,    size}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    const moei_need may[] = {
        {"inv_rms", args->inv_rms, wide}
    };
    MOEI_TRY(moei_op_whole(ctx, op, may, MOEI_COUNT(may)));
    ctx->kernels[args->dtype]->rmsnorm(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_rmsnorm_backward(moe_ctx *ctx, const moe_rmsnorm_args *args) {
    const char *op = "moe_rmsnorm_backward";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_rmsnorm(ctx, op, args));
    if (args->rows == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"x",       args->x,       size},
        {"gain",    args->gain,    size},
        {"inv_rms", args->inv_rms, wide},
        {"dy",      args->dy,      size},
        {"dx",      args->dx,      size},
        {"dgain",   args->dgain,   wide}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    ctx->kernels[args->dtype]->rmsnorm_backward(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_rope(moe_ctx *ctx, const moe_rope_args *args) {
    const char *op = "moe_rope";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    const moei_limit limits[] = {
        {"rows",     args->rows,     0,                                     INT32_MAX        },
        {"heads",    args->heads,    1,                                     INT32_MAX        },
        {"head_dim", args->head_dim, 2,                                     MOEI_HEAD_DIM_MAX},
        {"ldx",      args->ldx,      (int64_t)args->heads * args->head_dim, MOEI_LD_MAX      }
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    if (args->head_dim % 2 != 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: head_dim is %" PRId32 "; it must be even", op,
                            args->head_dim);
    MOEI_TRY(moei_op_real(ctx, op, "base", (double)args->base, 1.0));
    if (args->rows == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype);
    const moei_need needs[] = {
        {"x",        args->x,        size                  },
        {"position", args->position, sizeof *args->position}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    ctx->kernels[args->dtype]->rope(&ctx->team, args);
    return MOE_OK;
}

/* Of each sequence its keys, where they are told by lists. */
static moe_status check_kv_lists(moe_ctx *ctx, const char *op, const moe_attention_args *a) {
    const moei_need needs[] = {
        {"kv_lens", a->kv_lens, sizeof *a->kv_lens},
        {"kv_rows", a->kv_rows, sizeof *a->kv_rows}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    for (int64_t s = 0; s < a->n_seq; ++s)
        if (a->kv_lens[s] < a->q_len || a->kv_lens[s] > INT32_MAX || a->kv_rows[s] < 0 ||
            a->kv_rows[s] > INT32_MAX - a->kv_lens[s])
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: kv_lens[%" PRId64 "] is %" PRId64 ", kv_rows[%" PRId64 "] is %" PRId64
                                "; at least %" PRId64 " keys from row 0 or later, which end by row %d",
                                op, s, a->kv_lens[s], s, a->kv_rows[s], a->q_len, INT32_MAX);
    return MOE_OK;
}

static moe_status check_attention(moe_ctx *ctx, const char *op, const moe_attention_args *a) {
    MOEI_TRY(moei_op_dtype(ctx, op, a->dtype));
    const bool lists = a->kv_lens || a->kv_rows;
    const int64_t kv_len = lists ? a->q_len : a->kv_len, kv_stride = lists ? kv_len : a->kv_stride;
    const moei_limit limits[] = {
        {"n_seq",     a->n_seq,    0,                                  INT32_MAX        },
        {"q_len",     a->q_len,    0,                                  INT32_MAX        },
        {"kv_len",    kv_len,      a->q_len,                           INT32_MAX        },
        {"kv_stride", kv_stride,   kv_len,                             INT32_MAX        },
        {"heads",     a->heads,    1,                                  INT32_MAX        },
        {"kv_heads",  a->kv_heads, 1,                                  a->heads         },
        {"head_dim",  a->head_dim, 1,                                  MOEI_HEAD_DIM_MAX},
        {"ldq",       a->ldq,      (int64_t)a->heads * a->head_dim,    MOEI_LD_MAX      },
        {"ldkv",      a->ldkv,     (int64_t)a->kv_heads * a->head_dim, MOEI_LD_MAX      },
        {"ldo",       a->ldo,      (int64_t)a->heads * a->head_dim,    MOEI_LD_MAX      }
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    MOEI_TRY(moei_op_finite(ctx, op, "scale", (double)a->scale));
    if (lists) MOEI_TRY(check_kv_lists(ctx, op, a));
    if (a->n_seq > 0 && kv_stride > INT32_MAX / a->n_seq)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: n_seq is %" PRId64 ", kv_stride is %" PRId64
                            "; together they must be at most %d rows",
                            op, a->n_seq, kv_stride, INT32_MAX);
    if (a->heads % a->kv_heads != 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: heads is %" PRId32 "; it must be a multiple of kv_heads, %" PRId32, op,
                            a->heads, a->kv_heads);
    return MOE_OK;
}

moe_status moe_attention(moe_ctx *ctx, const moe_attention_args *args) {
    const char *op = "moe_attention";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_attention(ctx, op, args));
    if (args->n_seq == 0 || args->q_len == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"q",   args->q,   size},
        {"k",   args->k,   size},
        {"v",   args->v,   size},
        {"out", args->out, size}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    const moei_need may[] = {
        {"lse", args->lse, wide}
    };
    MOEI_TRY(moei_op_whole(ctx, op, may, MOEI_COUNT(may)));
    ctx->kernels[args->dtype]->attention(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_attention_backward(moe_ctx *ctx, const moe_attention_args *args) {
    const char *op = "moe_attention_backward";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_attention(ctx, op, args));
    if (args->kv_lens || args->kv_rows)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: kv_lens and kv_rows are of the forward alone", op);
    const moei_limit limits[] = {
        {"kv_len",    args->kv_len,    args->q_len, args->q_len},
        {"kv_stride", args->kv_stride, args->q_len, args->q_len}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    if (args->n_seq == 0 || args->q_len == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"q",     args->q,     size},
        {"k",     args->k,     size},
        {"v",     args->v,     size},
        {"out",   args->out,   size},
        {"dout",  args->dout,  size},
        {"lse",   args->lse,   wide},
        {"dq",    args->dq,    size},
        {"dk",    args->dk,    size},
        {"dv",    args->dv,    size},
        {"delta", args->delta, wide}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    ctx->kernels[args->dtype]->attention_backward(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_cross_entropy(moe_ctx *ctx, const moe_cross_entropy_args *args) {
    const char *op = "moe_cross_entropy";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    const moei_limit limits[] = {
        {"rows", args->rows, 0,       INT32_MAX  },
        {"n",    args->n,    1,       INT32_MAX  },
        {"ld",   args->ld,   args->n, MOEI_LD_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    MOEI_TRY(moei_op_finite(ctx, op, "grad_scale", args->grad_scale));
    if (args->rows == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"logits",   args->logits,   size                },
        {"target",   args->target,   sizeof *args->target},
        {"row_loss", args->row_loss, wide                }
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    for (int64_t r = 0; r < args->rows; ++r)
        if (args->target[r] < -1 || args->target[r] >= args->n)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: target[%" PRId64 "] is %" PRId32 "; it must lie in -1 .. %" PRId64, op,
                                r, args->target[r], args->n - 1);
    ctx->kernels[args->dtype]->cross_entropy(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_adamw(moe_ctx *ctx, const moe_adamw_args *args) {
    const char *op = "moe_adamw";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    const moei_limit limits[] = {
        {"n",    args->n,    0, INT64_MAX},
        {"step", args->step, 1, INT64_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    MOEI_TRY(moei_op_real(ctx, op, "beta1", args->beta1, 0.0));
    MOEI_TRY(moei_op_real(ctx, op, "beta2", args->beta2, 0.0));
    MOEI_TRY(moei_op_real(ctx, op, "eps", args->eps, 0.0));
    MOEI_TRY(moei_op_real(ctx, op, "lr", args->lr, 0.0));
    MOEI_TRY(moei_op_real(ctx, op, "weight_decay", args->weight_decay, 0.0));
    MOEI_TRY(moei_op_finite(ctx, op, "grad_scale", args->grad_scale));
    if (args->grad_scale == 0.0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: grad_scale is 0, which leaves no gradient; 1 takes it as it is", op);
    if (args->beta1 >= 1.0 || args->beta2 >= 1.0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: beta1 is %g, beta2 is %g; both must be below 1", op,
                            args->beta1, args->beta2);
    if (args->master && args->dtype != MOE_BF16)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: master must be NULL unless dtype is MOE_BF16", op);
    if (args->grad_dtype != args->dtype && args->grad_dtype != moei_wide(args->dtype))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: grad_dtype is %d where dtype is %d; it must be that, or MOE_F32 of MOE_BF16",
                            op, (int)args->grad_dtype, (int)args->dtype);
    if (args->n == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"value",         args->value,                                          size                             },
        {"m",             args->m,                                              wide                             },
        {"v",             args->v,                                              wide                             },
        {"grad",          args->grad,                                           moe_dtype_bytes(args->grad_dtype)},
        {"master (bf16)", args->dtype == MOE_BF16 ? args->master : args->value, sizeof *args->master             }
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    ctx->kernels[args->dtype]->adamw(&ctx->team, args);
    return MOE_OK;
}
