/* op.c: the public operations: each checks its arguments, then calls the context's kernel.
 * Arguments and shapes: moekit/op.h. A wrong one is told by name, with its value and what would be right.
 * What costs more than the check of a few numbers (index arrays, overlap) is the caller's duty.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/ctx.h"
#include "core/real.h"
#include "core/timing.h"
#include "kernel/kernel.h"
#include "kernel/packed.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Rows are counted in 31 bits: so far apart, all of them have their bytes counted in 63. */
enum { LD_MAX = 1 << 29 };

/* The same of matrices, `n` of them. */
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

/* A whole number and the range it must lie in. */
typedef struct limit {
    const char *field;
    int64_t value, min, max;
} limit;

/* A pointer that the call needs. */
typedef struct need {
    const char *field;
    const void *ptr;
} need;

static moe_status check_limits(moe_ctx *ctx, const char *op, const limit *limits, size_t n) {
    for (const limit *l = limits; l < limits + n; ++l) {
        if (l->value >= l->min && l->value <= l->max) continue;
        if (l->value < l->min && l->max >= LD_MAX)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s is %" PRId64 "; it must be at least %" PRId64,
                                op, l->field, l->value, l->min);
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: %s is %" PRId64 "; it must lie in %" PRId64 " .. %" PRId64, op, l->field,
                            l->value, l->min, l->max);
    }
    return MOE_OK;
}

static moe_status check_needs(moe_ctx *ctx, const char *op, const need *needs, size_t n) {
    for (const need *p = needs; p < needs + n; ++p) MOEI_TRY(moei_ctx_need(ctx, op, p->field, p->ptr));
    return MOE_OK;
}

/* The CPU serves every operation in every dtype; a device has the rows of kernel.def. */
static moe_status check_dtype(moe_ctx *ctx, const char *op, moe_dtype dtype) {
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

/* A real number that must not be below `min`; NaN fails too. */
static moe_status check_real(moe_ctx *ctx, const char *op, const char *field, double value, double min) {
    if (value >= min) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s is %g; it must be at least %g", op, field, value, min);
}

/* offset[n_groups + 1] rises from 0 or more; *rows is how many rows it spans. On a device only the caller
 * knows. */
static moe_status check_offset(moe_ctx *ctx, const char *op, const int64_t *offset, int32_t n_groups,
                               int64_t n_rows, int64_t *rows) {
    const limit limits[] = {
        {"n_groups", n_groups, 0, INT32_MAX}
    };
    const need needs[] = {
        {"offset", offset}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    const limit told[] = {
        {"n_rows", n_rows, 0, INT32_MAX}
    };
    if (moei_isa_is_cuda((moei_isa)ctx->isa)) {
        *rows = n_rows;
        MOEI_TRY(check_limits(ctx, op, told, COUNT(told)));
        return check_needs(ctx, op, needs, n_groups != 1 ? COUNT(needs) : 0);
    }
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    for (int32_t g = 0; g <= n_groups; ++g) {
        int64_t before = g ? offset[g - 1] : 0;
        if (offset[g] < before)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: offset[%" PRId32 "] is %" PRId64 "; it must be at least %" PRId64
                                ", where the group before it begins",
                                op, g, offset[g], before);
    }
    const limit last[] = {
        {"offset[n_groups]", offset[n_groups], 0, INT32_MAX}
    };
    *rows = offset[n_groups] - offset[0];
    return check_limits(ctx, op, last, COUNT(last));
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
    int64_t gate_and_up = moe_act_gated(a->act) ? 2 : 1;
    if (a->epilogue == MOE_EPI_STORE) {
        const limit limits[] = {
            {"ldc", a->ldc, a->n, LD_MAX}
        };
        const need needs[] = {
            {"c", a->c}
        };
        MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
        return check_needs(ctx, op, needs, COUNT(needs));
    }
    if (a->epilogue == MOE_EPI_ACT) {
        if (a->n % gate_and_up != 0)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "%s: n is %" PRId64 "; a gated activation needs an even number of columns",
                                op, a->n);
        const limit limits[] = {
            {"ldc", a->c ? a->ldc : a->n, a->n,               LD_MAX},
            {"ldh", a->ldh,               a->n / gate_and_up, LD_MAX}
        };
        const need needs[] = {
            {"h", a->h}
        };
        MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
        return check_needs(ctx, op, needs, COUNT(needs));
    }
    if (a->bias)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: bias must be NULL with MOE_EPI_ACT_GRAD", op);
    const limit limits[] = {
        {"ldz",  a->ldz,  a->n * gate_and_up, LD_MAX},
        {"ldwa", a->ldwa, a->n,               LD_MAX}
    };
    const need needs[] = {
        {"z",                           a->z                               },
        {"dz",                          a->dz                              },
        {"wa",                          a->wa                              },
        {"dweight_part (with dweight)", a->dweight ? a->dweight_part : a->z}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    return check_needs(ctx, op, needs, COUNT(needs));
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
    for (size_t i = 0; i < COUNT(same); ++i)
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
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    MOEI_TRY(check_offset(ctx, op, args->offset, args->n_groups, args->n_rows, &rows));
    const int64_t row_of_b = args->b_trans ? args->k : args->n;
    const limit limits[] = {
        {"n",        args->n,                       0,             INT64_MAX                },
        {"k",        args->k,                       1,             INT64_MAX                },
        {"lda",      args->lda,                     args->k,       LD_MAX                   },
        {"ldb",      packed ? row_of_b : args->ldb, row_of_b,      LD_MAX                   },
        {"b_group",  packed ? 0 : args->b_group,    0,             apart_max(args->n_groups)},
        {"epilogue", args->epilogue,                MOE_EPI_STORE, MOE_EPI_ACT_GRAD         },
        {"act",      args->act,                     MOE_ACT_NONE,  MOE_ACT_GEGLU            }
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (packed) MOEI_TRY(check_packed(ctx, op, args));
    if (rows == 0 || args->n == 0) return MOE_OK;
    const need needs[] = {
        {"a", args->a                                },
        {"b", packed ? (const void *)packed : args->b}
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    MOEI_TRY(check_epilogue(ctx, op, args));
    const moei_kernels *kernels = ctx->kernels[args->dtype];
    (packed ? kernels->gemm_packed : kernels->gemm_rows)(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_gemm_outer(moe_ctx *ctx, const moe_gemm_outer_args *args) {
    const char *op = "moe_gemm_outer";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    int64_t rows;
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    MOEI_TRY(check_offset(ctx, op, args->offset, args->n_groups, args->n_rows, &rows));
    const limit limits[] = {
        {"m",       args->m,       0,       INT64_MAX                },
        {"n",       args->n,       0,       INT64_MAX                },
        {"lda",     args->lda,     args->m, LD_MAX                   },
        {"ldb",     args->ldb,     args->n, LD_MAX                   },
        {"ldc",     args->ldc,     args->n, LD_MAX                   },
        {"c_group", args->c_group, 0,       apart_max(args->n_groups)}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (args->n_groups == 0 || args->m == 0 || args->n == 0) return MOE_OK;
    if (matrices_meet(args->n_groups, args->m, args->n, args->ldc, args->c_group))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: c_group is %" PRId64 "; the matrices of %" PRId64 " by %" PRId64
                            " with ldc %" PRId64 " would overlap",
                            op, args->c_group, args->m, args->n, args->ldc);
    const need needs[] = {
        {"c", args->c},
        {"a", args->a},
        {"b", args->b}
    };
    MOEI_TRY(check_needs(ctx, op, needs, rows > 0 ? COUNT(needs) : 1));
    ctx->kernels[args->dtype]->gemm_outer(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_gather_sum(moe_ctx *ctx, const moe_gather_sum_args *args) {
    const char *op = "moe_gather_sum";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    const limit limits[] = {
        {"n_tokens", args->n_tokens, 0,       INT32_MAX},
        {"n",        args->n,        0,       INT64_MAX},
        {"top_k",    args->top_k,    0,       INT32_MAX},
        {"ld_rows",  args->ld_rows,  args->n, LD_MAX   },
        {"ld_out",   args->ld_out,   args->n, LD_MAX   }
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (args->n_tokens == 0 || args->n == 0) return MOE_OK;
    const need needs[] = {
        {"out",    args->out   },
        {"row_of", args->row_of},
        {"rows",   args->rows  }
    };
    MOEI_TRY(check_needs(ctx, op, needs, args->top_k > 0 ? COUNT(needs) : 1));
    ctx->kernels[args->dtype]->gather_sum(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_colsum(moe_ctx *ctx, const moe_colsum_args *args) {
    const char *op = "moe_colsum";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    int64_t rows;
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    MOEI_TRY(check_offset(ctx, op, args->offset, args->n_groups, args->n_rows, &rows));
    const limit limits[] = {
        {"n",   args->n,   0,       INT64_MAX},
        {"lda", args->lda, args->n, LD_MAX   }
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (args->n_groups == 0 || args->n == 0) return MOE_OK;
    const need needs[] = {
        {"out", args->out},
        {"a",   args->a  }
    };
    MOEI_TRY(check_needs(ctx, op, needs, rows > 0 ? COUNT(needs) : 1));
    ctx->kernels[args->dtype]->colsum(&ctx->team, args);
    return MOE_OK;
}

static moe_status check_rmsnorm(moe_ctx *ctx, const char *op, const moe_rmsnorm_args *args) {
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    const limit limits[] = {
        {"rows", args->rows, 0, INT32_MAX    },
        {"n",    args->n,    1, MOEI_NORM_MAX}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    return check_real(ctx, op, "eps", (double)args->eps, 0.0);
}

moe_status moe_rmsnorm(moe_ctx *ctx, const moe_rmsnorm_args *args) {
    const char *op = "moe_rmsnorm";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_rmsnorm(ctx, op, args));
    if (args->rows == 0) return MOE_OK;
    const need needs[] = {
        {"x",    args->x   },
        {"gain", args->gain},
        {"y",    args->y   }
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    ctx->kernels[args->dtype]->rmsnorm(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_rmsnorm_backward(moe_ctx *ctx, const moe_rmsnorm_args *args) {
    const char *op = "moe_rmsnorm_backward";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_rmsnorm(ctx, op, args));
    if (args->rows == 0) return MOE_OK;
    const need needs[] = {
        {"x",       args->x      },
        {"gain",    args->gain   },
        {"inv_rms", args->inv_rms},
        {"dy",      args->dy     },
        {"dx",      args->dx     },
        {"dgain",   args->dgain  }
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    ctx->kernels[args->dtype]->rmsnorm_backward(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_rope(moe_ctx *ctx, const moe_rope_args *args) {
    const char *op = "moe_rope";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    const limit limits[] = {
        {"rows",     args->rows,     0,                                     INT32_MAX        },
        {"heads",    args->heads,    1,                                     INT32_MAX        },
        {"head_dim", args->head_dim, 2,                                     MOEI_HEAD_DIM_MAX},
        {"ldx",      args->ldx,      (int64_t)args->heads * args->head_dim, LD_MAX           }
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (args->head_dim % 2 != 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: head_dim is %" PRId32 "; it must be even", op,
                            args->head_dim);
    MOEI_TRY(check_real(ctx, op, "base", (double)args->base, 1.0));
    if (args->rows == 0) return MOE_OK;
    const need needs[] = {
        {"x",        args->x       },
        {"position", args->position}
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    ctx->kernels[args->dtype]->rope(&ctx->team, args);
    return MOE_OK;
}

static moe_status check_attention(moe_ctx *ctx, const char *op, const moe_attention_args *a) {
    MOEI_TRY(check_dtype(ctx, op, a->dtype));
    const limit limits[] = {
        {"n_seq",     a->n_seq,     0,                                  INT32_MAX                                },
        {"q_len",     a->q_len,     0,                                  INT32_MAX                                },
        {"kv_len",    a->kv_len,    a->q_len,                           INT32_MAX                                },
        {"kv_stride", a->kv_stride, a->kv_len,                          INT32_MAX / (a->n_seq > 0 ? a->n_seq : 1)},
        {"heads",     a->heads,     1,                                  INT32_MAX                                },
        {"kv_heads",  a->kv_heads,  1,                                  a->heads                                 },
        {"head_dim",  a->head_dim,  1,                                  MOEI_HEAD_DIM_MAX                        },
        {"ldq",       a->ldq,       (int64_t)a->heads * a->head_dim,    LD_MAX                                   },
        {"ldkv",      a->ldkv,      (int64_t)a->kv_heads * a->head_dim, LD_MAX                                   },
        {"ldo",       a->ldo,       (int64_t)a->heads * a->head_dim,    LD_MAX                                   }
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
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
    const need needs[] = {
        {"q",   args->q  },
        {"k",   args->k  },
        {"v",   args->v  },
        {"out", args->out}
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    ctx->kernels[args->dtype]->attention(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_attention_backward(moe_ctx *ctx, const moe_attention_args *args) {
    const char *op = "moe_attention_backward";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_attention(ctx, op, args));
    const limit limits[] = {
        {"kv_len",    args->kv_len,    args->q_len, args->q_len},
        {"kv_stride", args->kv_stride, args->q_len, args->q_len}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (args->n_seq == 0 || args->q_len == 0) return MOE_OK;
    const need needs[] = {
        {"q",     args->q    },
        {"k",     args->k    },
        {"v",     args->v    },
        {"out",   args->out  },
        {"dout",  args->dout },
        {"lse",   args->lse  },
        {"dq",    args->dq   },
        {"dk",    args->dk   },
        {"dv",    args->dv   },
        {"delta", args->delta}
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    ctx->kernels[args->dtype]->attention_backward(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_cross_entropy(moe_ctx *ctx, const moe_cross_entropy_args *args) {
    const char *op = "moe_cross_entropy";
    MOEI_TRY(moei_ctx_need(ctx, op, "args", args));
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    const limit limits[] = {
        {"rows", args->rows, 0,       INT32_MAX},
        {"n",    args->n,    1,       INT32_MAX},
        {"ld",   args->ld,   args->n, LD_MAX   }
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (args->rows == 0) return MOE_OK;
    const need needs[] = {
        {"logits",   args->logits  },
        {"target",   args->target  },
        {"row_loss", args->row_loss}
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
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
    MOEI_TRY(check_dtype(ctx, op, args->dtype));
    const limit limits[] = {
        {"n",    args->n,    0, INT64_MAX},
        {"step", args->step, 1, INT64_MAX}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    MOEI_TRY(check_real(ctx, op, "beta1", args->beta1, 0.0));
    MOEI_TRY(check_real(ctx, op, "beta2", args->beta2, 0.0));
    MOEI_TRY(check_real(ctx, op, "eps", args->eps, 0.0));
    if (!isfinite(args->lr) || !isfinite(args->weight_decay) || !isfinite(args->grad_scale))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "%s: lr is %g, weight_decay is %g, grad_scale is %g; all must be finite", op,
                            args->lr, args->weight_decay, args->grad_scale);
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
    const need needs[] = {
        {"value",         args->value                                         },
        {"m",             args->m                                             },
        {"v",             args->v                                             },
        {"grad",          args->grad                                          },
        {"master (bf16)", args->dtype == MOE_BF16 ? args->master : args->value}
    };
    MOEI_TRY(check_needs(ctx, op, needs, COUNT(needs)));
    ctx->kernels[args->dtype]->adamw(&ctx->team, args);
    return MOE_OK;
}

moe_status moe_sum_squares(moe_ctx *ctx, moe_dtype dtype, const void *x, int64_t n, double *sum) {
    const char *op = "moe_sum_squares";
    MOEI_TRY(moei_ctx_need(ctx, op, "sum", sum));
    MOEI_TRY(check_dtype(ctx, op, dtype));
    const limit limits[] = {
        {"n", n, 0, INT64_MAX}
    };
    MOEI_TRY(check_limits(ctx, op, limits, COUNT(limits)));
    if (n > 0) MOEI_TRY(moei_ctx_need(ctx, op, "x", x));
    *sum = ctx->kernels[dtype]->sum_squares(&ctx->team, dtype, x, n);
    return MOE_OK;
}

moe_status moe_peak(moe_ctx *ctx, moe_dtype dtype, double seconds, double *per_second) {
    const char *op = "moe_peak";
    const int64_t rounds = 100000; /* some tens of microseconds to a millisecond */
    MOEI_TRY(moei_ctx_need(ctx, op, "per_second", per_second));
    MOEI_TRY(check_dtype(ctx, op, dtype));
    MOEI_TRY(check_real(ctx, op, "seconds", seconds, 0.0));
    const double began = moei_timing_now();
    *per_second = 0;
    for (double now = began; now - began < seconds || now == began;) {
        const double count = ctx->kernels[dtype]->peak(&ctx->team, rounds), then = now;
        now = moei_timing_now();
        if (count / (now - then) > *per_second) *per_second = count / (now - then);
    }
    return MOE_OK;
}
