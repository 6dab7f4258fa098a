/* op.c: the public operations that the layer is made of, and what serves all of them. Each checks its
 * arguments (op_check.h), then calls the context's kernel. Arguments and shapes: moekit/op.h. A model's are
 * in op_model.c.
 */
#include <inttypes.h>

#include "core/ctx.h"
#include "core/real.h"
#include "core/timing.h"
#include "kernel/kernel.h"
#include "kernel/op_check.h"
#include "kernel/packed.h"

/* How far apart `n` matrices may lie: their bytes are counted in 63 bits. */
static int64_t apart_max(int64_t n) {
    return INT64_MAX / (int64_t)sizeof(double) / (n > 0 ? n : 1);
}

/* Rows of n, `ld` apart, of m; the next matrix begins `apart` later: behind this one, or beside it in the
 * same rows. */
static bool matrices_meet(int64_t matrices, int64_t m, int64_t n, int64_t ld, int64_t apart) {
    if (matrices < 2) return false;
    const bool behind = apart >= n && (apart - n) / ld >= m - 1;
    const bool beside = apart >= n && (ld - n) / apart >= matrices - 1;
    return !behind && !beside;
}

/* offset[n_groups + 1] rises from 0 or more; *rows is how many rows it spans. On a device only the caller
 * knows. */
static moe_status check_offset(moe_ctx *ctx, const char *op, const int64_t *offset, int32_t n_groups,
                               int64_t n_rows, int64_t *rows) {
    const moei_limit limits[] = {
        {"n_groups", n_groups, 0, INT32_MAX}
    };
    const moei_need needs[] = {
        {"offset", offset, sizeof *offset}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    const moei_limit told[] = {
        {"n_rows", n_rows, 0, INT32_MAX}
    };
    if (moei_isa_is_cuda((moei_isa)ctx->isa)) {
        *rows = n_rows;
        MOEI_TRY(moei_op_limits(ctx, op, told, MOEI_COUNT(told)));
        return moei_op_needs(ctx, op, needs, n_groups != 1 ? MOEI_COUNT(needs) : 0);
    }
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    for (int32_t g = 0; g <= n_groups; ++g) {
        int64_t before = g ? offset[g - 1] : 0;
        if (offset[g] < before)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: offset[%" PRId32 "] is %" PRId64 "; it must be at least %" PRId64
                                ", where the group before it begins",
                                op, g, offset[g], before);
    }
    const moei_limit last[] = {
        {"offset[n_groups]", offset[n_groups], 0, INT32_MAX}
    };
    *rows = offset[n_groups] - offset[0];
    return moei_op_limits(ctx, op, last, MOEI_COUNT(last));
}

void moe_parallel(moe_ctx *ctx, int64_t n_tasks, moe_task_fn fn, void *arg) {
    if (!ctx || !fn) return;
    moei_parallel(ctx->host ? &ctx->host->team : &ctx->team, n_tasks, fn, arg);
}

size_t moe_thread_scratch_bytes(void) {
    return MOEI_THREAD_SCRATCH;
}

int64_t moe_dweight_parts(int64_t n) {
    return (n + MOEI_DWEIGHT_COLS - 1) / MOEI_DWEIGHT_COLS;
}

/* What the epilogue of a grouped product reads and writes beyond A and B. */
static moe_status check_epilogue(moe_ctx *ctx, const char *op, const moe_gemm_rows_args *a) {
    if (a->accumulate && a->epilogue != MOE_EPI_STORE)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: accumulate goes with MOE_EPI_STORE only", op);
    if (a->c_wide && a->epilogue != MOE_EPI_STORE)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: c_wide goes with MOE_EPI_STORE only", op);
    const size_t size = moe_dtype_bytes(a->dtype), wide = moe_dtype_bytes(moei_wide(a->dtype));
    int64_t gate_and_up = moe_act_gated(a->act) ? 2 : 1;
    if (a->epilogue == MOE_EPI_STORE) {
        const moei_limit limits[] = {
            {"ldc", a->ldc, a->n, MOEI_LD_MAX}
        };
        const moei_need needs[] = {
            {"c", a->c, a->c_wide ? wide : size}
        };
        MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
        return moei_op_needs(ctx, op, needs, MOEI_COUNT(needs));
    }
    if (a->epilogue == MOE_EPI_ACT) {
        if (a->n % gate_and_up != 0)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: n is %" PRId64 "; a gated activation needs an even number of columns",
                                op, a->n);
        const moei_limit limits[] = {
            {"ldc", a->c ? a->ldc : a->n, a->n,               MOEI_LD_MAX},
            {"ldh", a->ldh,               a->n / gate_and_up, MOEI_LD_MAX}
        };
        const moei_need needs[] = {
            {"h", a->h, size}
        };
        const moei_need may[] = {
            {"c", a->c, size}
        };
        MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
        MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
        return moei_op_whole(ctx, op, may, MOEI_COUNT(may));
    }
    if (a->bias)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: bias must be NULL with MOE_EPI_ACT_GRAD", op);
    const moei_limit limits[] = {
        {"ldz",  a->ldz,  a->n * gate_and_up, MOEI_LD_MAX},
        {"ldwa", a->ldwa, a->n,               MOEI_LD_MAX}
    };
    const moei_need needs[] = {
        {"z",                           a->z,                                size                    },
        {"dz",                          a->dz,                               size                    },
        {"wa",                          a->wa,                               size                    },
        {"dweight_part (with dweight)", a->dweight ? a->dweight_part : a->z, a->dweight ? wide : size}
    };
    const moei_need may[] = {
        {"row_weight", a->row_weight, wide},
        {"dweight",    a->dweight,    wide}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    return moei_op_whole(ctx, op, may, MOEI_COUNT(may));
}

/* B packed in few bits is this product's, in memory that its device reads. */
static moe_status check_packed(moe_ctx *ctx, const char *op, const moe_gemm_rows_args *a) {
    const moe_packed *p = a->b_packed;
    const bool gated = a->epilogue == MOE_EPI_ACT && moe_act_gated(a->act);
    const struct {
        const char *field;
        int64_t packed, call;
    } same[] = {
        {"dtype",    p->dtype,    a->dtype     },
        {"n_groups", p->n_groups, a->n_groups  },
        {"n",        p->n,        a->n         },
        {"k",        p->k,        a->k         },
        {"n_runs",   p->n_runs,   gated ? 2 : 1}
    };
    if (p->ctx->device != ctx->device || (ctx->host && p->ctx->desc.device_index != ctx->desc.device_index))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: b_packed was made by a context of %s, device %d; this one computes on %s, "
                            "device %d",
                            op, p->ctx->device->name, p->ctx->desc.device_index, ctx->device->name,
                            ctx->desc.device_index);
    if (a->epilogue == MOE_EPI_ACT_GRAD)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: b_packed goes with MOE_EPI_STORE and MOE_EPI_ACT; MOE_EPI_ACT_GRAD needs b",
                            op);
    for (size_t i = 0; i < MOEI_COUNT(same); ++i)
        if (same[i].packed != same[i].call)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: b_packed was made for %s %" PRId64 "; this call needs %" PRId64, op,
                                same[i].field, same[i].packed, same[i].call);
    return MOE_OK;
}

moe_status moe_gemm_rows(moe_ctx *ctx, const moe_gemm_rows_args *args) {
    const char *op = "moe_gemm_rows";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    const moe_packed *packed = args->b_packed;
    int64_t rows;
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    MOEI_TRY(check_offset(ctx, op, args->offset, args->n_groups, args->n_rows, &rows));
    const int64_t row_of_b = args->b_trans ? args->k : args->n;
    const moei_limit limits[] = {
        {"n",        args->n,                       0,             MOEI_LD_MAX              },
        {"k",        args->k,                       1,             INT64_MAX                },
        {"lda",      args->lda,                     args->k,       MOEI_LD_MAX              },
        {"ldb",      packed ? row_of_b : args->ldb, row_of_b,      MOEI_LD_MAX              },
        {"b_group",  packed ? 0 : args->b_group,    0,             apart_max(args->n_groups)},
        {"epilogue", args->epilogue,                MOE_EPI_STORE, MOE_EPI_ACT_GRAD         },
        {"act",      args->act,                     MOE_ACT_NONE,  MOEI_ACTS - 1            }
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    if (packed) MOEI_TRY(check_packed(ctx, op, args));
    if (rows == 0 || args->n == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype);
    const moei_need needs[] = {
        {"a", args->a,                                 size             },
        {"b", packed ? (const void *)packed : args->b, packed ? 1 : size}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, MOEI_COUNT(needs)));
    MOEI_TRY(check_epilogue(ctx, op, args));
    const moei_need may[] = {
        {"a_row", args->a_row, sizeof *args->a_row},
        {"bias",  args->bias,  size               }
    };
    MOEI_TRY(moei_op_whole(ctx, op, may, MOEI_COUNT(may)));
    const moei_kernels *kernels = ctx->kernels[args->dtype];
    (packed ? kernels->gemm_packed : kernels->gemm_rows)(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_gemm_outer(moe_ctx *ctx, const moe_gemm_outer_args *args) {
    const char *op = "moe_gemm_outer";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    int64_t rows;
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    MOEI_TRY(check_offset(ctx, op, args->offset, args->n_groups, args->n_rows, &rows));
    const moei_limit limits[] = {
        {"m",       args->m,       0,       INT64_MAX                },
        {"n",       args->n,       0,       INT64_MAX                },
        {"lda",     args->lda,     args->m, MOEI_LD_MAX              },
        {"ldb",     args->ldb,     args->n, MOEI_LD_MAX              },
        {"ldc",     args->ldc,     args->n, MOEI_LD_MAX              },
        {"c_group", args->c_group, 0,       apart_max(args->n_groups)}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    if (args->n_groups == 0 || args->m == 0 || args->n == 0) return MOE_OK;
    if (matrices_meet(args->n_groups, args->m, args->n, args->ldc, args->c_group))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: c_group is %" PRId64 "; the matrices of %" PRId64 " by %" PRId64
                            " with ldc %" PRId64 " would overlap",
                            op, args->c_group, args->m, args->n, args->ldc);
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"c", args->c, args->c_wide ? wide : size},
        {"a", args->a, size                      },
        {"b", args->b, size                      }
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, rows > 0 ? MOEI_COUNT(needs) : 1));
    const moei_need may[] = {
        {"a_row", args->a_row, sizeof *args->a_row},
        {"b_row", args->b_row, sizeof *args->b_row}
    };
    MOEI_TRY(moei_op_whole(ctx, op, may, MOEI_COUNT(may)));
    ctx->kernels[args->dtype]->gemm_outer(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_gather_sum(moe_ctx *ctx, const moe_gather_sum_args *args) {
    const char *op = "moe_gather_sum";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    const moei_limit limits[] = {
        {"n_tokens", args->n_tokens, 0,       INT32_MAX  },
        {"n",        args->n,        0,       INT64_MAX  },
        {"top_k",    args->top_k,    0,       INT32_MAX  },
        {"ld_rows",  args->ld_rows,  args->n, MOEI_LD_MAX},
        {"ld_out",   args->ld_out,   args->n, MOEI_LD_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    if (args->n_tokens == 0 || args->n == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"out",    args->out,    size                },
        {"row_of", args->row_of, sizeof *args->row_of},
        {"rows",   args->rows,   size                }
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, args->top_k > 0 ? MOEI_COUNT(needs) : 1));
    const moei_need may[] = {
        {"weight", args->weight, wide}
    };
    MOEI_TRY(moei_op_whole(ctx, op, may, MOEI_COUNT(may)));
    ctx->kernels[args->dtype]->gather_sum(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_colsum(moe_ctx *ctx, const moe_colsum_args *args) {
    const char *op = "moe_colsum";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    int64_t rows;
    MOEI_TRY(moei_op_dtype(ctx, op, args->dtype));
    MOEI_TRY(check_offset(ctx, op, args->offset, args->n_groups, args->n_rows, &rows));
    const moei_limit limits[] = {
        {"n",   args->n,   0,       INT64_MAX  },
        {"lda", args->lda, args->n, MOEI_LD_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    if (args->n_groups == 0 || args->n == 0) return MOE_OK;
    const size_t size = moe_dtype_bytes(args->dtype), wide = moe_dtype_bytes(moei_wide(args->dtype));
    const moei_need needs[] = {
        {"out", args->out, wide},
        {"a",   args->a,   size}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, rows > 0 ? MOEI_COUNT(needs) : 1));
    const moei_need may[] = {
        {"a_row",      args->a_row,      sizeof *args->a_row},
        {"row_weight", args->row_weight, wide               }
    };
    MOEI_TRY(moei_op_whole(ctx, op, may, MOEI_COUNT(may)));
    ctx->kernels[args->dtype]->colsum(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_sum_squares(moe_ctx *ctx, moe_dtype dtype, const void *x, int64_t n, double *sum) {
    const char *op = "moe_sum_squares";
    MOEI_TRY(moei_ctx_need(ctx, op, "sum", sum));
    MOEI_TRY(moei_op_dtype(ctx, op, dtype));
    const moei_limit limits[] = {
        {"n", n, 0, INT64_MAX}
    };
    MOEI_TRY(moei_op_limits(ctx, op, limits, MOEI_COUNT(limits)));
    const moei_need needs[] = {
        {"x", x, moe_dtype_bytes(dtype)}
    };
    MOEI_TRY(moei_op_needs(ctx, op, needs, n > 0 ? 1 : 0));
    *sum = ctx->kernels[dtype]->sum_squares(&ctx->team, dtype, x, n);
    return MOE_OK;
}

moe_status moe_peak(moe_ctx *ctx, moe_dtype dtype, double seconds, double *per_second) {
    const char *op = "moe_peak";
    const int64_t rounds = 100000; /* some tens of microseconds to a millisecond */
    MOEI_TRY(moei_ctx_need(ctx, op, "per_second", per_second));
    MOEI_TRY(moei_op_dtype(ctx, op, dtype));
    MOEI_TRY(moei_op_real(ctx, op, "seconds", seconds, 0.0));
    const double began = moei_timing_now();
    *per_second = 0;
    for (double now = began; now - began < seconds || now == began;) {
        const double count = ctx->kernels[dtype]->peak(&ctx->team, rounds), then = now;
        now = moei_timing_now();
        if (count / (now - then) > *per_second) *per_second = count / (now - then);
    }
    return MOE_OK;
}
