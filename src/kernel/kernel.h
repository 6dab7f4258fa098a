/* kernel.h: the contract of every kernel: one argument struct and one function type an operation.
 * A kernel gets the team of threads it may use and never allocates, fails or prints. Public
 * operations have their arguments in moekit/op.h; the routing ones are here.
 * `_ref` is scalar, reads and writes any dtype in f64 arithmetic, and is the oracle of all others.
 */
#ifndef MOEI_KERNEL_H
#define MOEI_KERNEL_H

#include <moekit/op.h>

#include "core/real.h"
#include "core/thread.h"
#include "kernel/mxfp8.h"
#include "kernel/product.h"
#include "kernel/stage.h"

/* dweight of ACT_GRAD is summed in parts of so many columns: moe_dweight_parts(n) of them a row. */
enum { MOEI_DWEIGHT_COLS = 64 };

/* Scores and top-k. logits[T,E] -> prob, lse, expert, weight (flow.h). With `given` the experts are read
 * instead of selected; -1 slots get weight 0, and the weights are those of a selection of these experts, to
 * the bit. first_bad[0] gets the lowest token with a NaN or infinite logit, or stays -1. */
typedef struct moei_topk_args {
    moe_dtype dtype;
    int64_t n_tokens;
    int32_t n_experts, top_k;
    const uint8_t *mask;
    bool score_before_topk, norm_topk_prob;
    double scale; /* routed_scaling_factor */
    const void *logits;
    bool given;
    void *prob, *lse;
    int32_t *expert;
    void *weight;
    void *entropy;      /* real [T] H(prob), 0 where masked; NULL: not wanted */
    int64_t *first_bad; /* [1] */
} moei_topk_args;

/* dlogits[T,E] from dweight[T,K] and the losses (semantics: Switch aux and z):
 *   aux_grad[E]  d loss / d prob[t,e], the same for every real token; NULL: none
 *   z_grad       d loss / d lse(t) = z_grad * lse(t); 0: none */
typedef struct moei_topk_grad_args {
    moe_dtype dtype;
    int64_t n_tokens;
    int32_t n_experts, top_k;
    const uint8_t *mask;
    bool score_before_topk, norm_topk_prob;
    double scale;
    const void *prob, *lse;
    const int32_t *expert; /* -1: nothing there */
    const void *weight;
    const void *dweight;
    const double *aux_grad;
    double z_grad;
    void *dlogits;
} moei_topk_grad_args;

/* Rows are counted in 31 bits: so far apart, all of them have their bytes counted in 63. */
enum { MOEI_LD_MAX = 1 << 29 };
/* Attention keeps rows of a head in fixed blocks of a thread's scratch. */
enum { MOEI_HEAD_DIM_MAX = 1024 };
/* Numbers of a row that a norm takes: backward keeps a row of sums in a thread's scratch. */
enum { MOEI_NORM_MAX = 1 << 18 };

typedef void moei_gemm_rows_fn(const moei_team *team, const moe_gemm_rows_args *args);
typedef void moei_gemm_outer_fn(const moei_team *team, const moe_gemm_outer_args *args);
typedef void moei_gather_sum_fn(const moei_team *team, const moe_gather_sum_args *args);
typedef void moei_colsum_fn(const moei_team *team, const moe_colsum_args *args);
typedef void moei_topk_fn(const moei_team *team, const moei_topk_args *args);
typedef void moei_topk_grad_fn(const moei_team *team, const moei_topk_grad_args *args);
typedef void moei_rmsnorm_fn(const moei_team *team, const moe_rmsnorm_args *args);
typedef void moei_rope_fn(const moei_team *team, const moe_rope_args *args);
typedef void moei_attention_fn(const moei_team *team, const moe_attention_args *args);
typedef void moei_cross_entropy_fn(const moei_team *team, const moe_cross_entropy_args *args);
typedef void moei_adamw_fn(const moei_team *team, const moe_adamw_args *args);
typedef double moei_sum_squares_fn(const moei_team *team, moe_dtype dtype, const void *x, int64_t n);
/* Runs `rounds` of multiply-adds in the registers of the unit that the products of this dtype use, on every
 * thread; returns how many operations (a multiply-add is two) that was. */
typedef double moei_peak_fn(const moei_team *team, int64_t rounds);
typedef void moei_bias_fn(const moei_team *team, const moei_bias_args *args);
typedef void moei_sigmoid_gate_fn(const moei_team *team, const moei_sigmoid_gate_args *args);
typedef void moei_row_dot_fn(const moei_team *team, const moei_row_dot_args *args);
typedef void moei_copy_rows_fn(const moei_team *team, const moei_copy_rows_args *args);
typedef void moei_convert_fn(const moei_team *team, const moei_convert_args *args);
typedef void moei_act_pass_fn(const moei_team *team, const moei_act_pass_args *args);
typedef void moei_mx_rows_fn(const moei_team *team, const moei_mx_rows_args *args);
typedef void moei_router_fn(const moei_team *team, const moei_router_args *args);
/* The same from x and the gate, logits included. False: not for these arguments, and nothing was done. */
typedef bool moei_route_fn(const moei_team *team, const moei_router_args *args);
typedef bool moei_gemm_outers_fn(const moei_team *team, const moei_gemm_outers_args *args); /* likewise */
typedef bool moei_gemm_rows_plus_fn(const moei_team *team, const moe_gemm_rows_args *args,
                                    const moei_rows_plus *plus); /* likewise */
/* copy_rows, where products over rows of n_groups experts, `hidden` wide, gain more by rows that lie in their
 * order than the copy costs. False: they do not, or not for these arguments, and nothing was done. */
typedef bool moei_order_rows_fn(const moei_team *team, const moei_copy_rows_args *args, int64_t n_groups,
                                int64_t hidden);
/* All of arguments that moei_gate_grad_takes. */
typedef void moei_gate_grad_fn(const moei_team *team, const moei_gate_grad_args *args,
                               moe_gemm_outer_args *product);
typedef void moei_gate_grad_part_fn(const moei_team *team, const moei_gate_grad_args *args);
/* Of arguments that moei_few_takes; false: the driver cannot describe the weights, and nothing was done. */
typedef bool moei_few_fn(const moei_team *team, const moei_few_args *args);
typedef void moei_plan_fn(const moei_team *team, const moei_plan_args *args);
typedef void moei_balance_fn(const moei_team *team, const moei_balance_args *args);

/* The kernels of one dtype, filled once per context by moei_kernel_select. */
typedef struct moei_kernels {
    moei_gemm_rows_fn *gemm_rows;
    moei_gemm_rows_fn *gemm_packed; /* the same where B is packed; NULL: this device has none */
    moei_gemm_outer_fn *gemm_outer;
    moei_gather_sum_fn *gather_sum;
    moei_colsum_fn *colsum;
    moei_topk_fn *topk;
    moei_topk_grad_fn *topk_grad;
    moei_rmsnorm_fn *rmsnorm, *rmsnorm_backward;
    moei_rope_fn *rope;
    moei_attention_fn *attention, *attention_backward;
    moei_cross_entropy_fn *cross_entropy;
    moei_adamw_fn *adamw;
    moei_sum_squares_fn *sum_squares;
    moei_peak_fn *peak;
    moei_bias_fn *add_bias, *bias_grad;
    moei_sigmoid_gate_fn *sigmoid_gate, *sigmoid_gate_grad;
    moei_row_dot_fn *row_dot;
    moei_copy_rows_fn *copy_rows;
    moei_convert_fn *convert;
    moei_act_pass_fn *act_pass, *act_pass_grad;
    moei_mx_rows_fn *mx_save, *mx_restore;
    /* On devices only: NULL on the CPU, where the stages do it. The first eight may be NULL on devices too.
     */
    moei_order_rows_fn *order_rows;
    moei_gemm_rows_plus_fn *gemm_rows_plus;
    moei_gemm_outers_fn *gemm_outers;
    moei_route_fn *route;
    moei_gate_grad_fn *gate_grad;
    moei_gate_grad_part_fn *gate_grad_sum, *gate_grad_end;
    moei_few_fn *few;
    moei_router_fn *router, *router_grad;
    moei_plan_fn *plan, *plan_index;
    moei_balance_fn *balance_grad;
} moei_kernels;

/* Instruction sets in order of preference, worst first. */
typedef enum moei_isa {
    MOEI_ISA_REF = 0,
    MOEI_ISA_AVX2,
    MOEI_ISA_AVX512,
    MOEI_ISA_AVX512BF16,
    MOEI_ISA_AMX,
    MOEI_ISA_NEON,
    MOEI_ISA_COUNT,
    /* A device's: its rows serve its contexts, and no others do. A family's rows serve it alone. */
    MOEI_ISA_CUDA, /* any NVIDIA GPU from compute capability 8.0 */
    MOEI_ISA_SM90, /* Hopper, compute capability 9.0 and no other */
    MOEI_ISA_END
} moei_isa;
const char *moei_isa_name(moei_isa isa);
bool moei_isa_supported(moei_isa isa);           /* this CPU runs it and this build has it */
moei_isa moei_isa_best(void);                    /* the fastest of them */
moei_isa moei_isa_best_cuda(int32_t capability); /* the fastest of a GPU: 90 for compute capability 9.0 */
static inline bool moei_isa_is_cuda(moei_isa isa) {
    return isa > MOEI_ISA_COUNT;
}

/* The dtypes of a row of kernel.def: a bit for each moe_dtype. */
enum {
    MOEI_F32 = 1 << MOE_F32,
    MOEI_BF16 = 1 << MOE_BF16,
    MOEI_F32_BF16 = MOEI_F32 | MOEI_BF16,
    MOEI_ALL = MOEI_F32_BF16 | 1 << MOE_F64
};

/* One row of kernel.def. */
typedef struct moei_kernel_row {
    const char *op;   /* field name in moei_kernels */
    const char *name; /* "gemm_rows__avx512" */
    moei_isa isa;
    unsigned serves; /* bits of dtypes */
    size_t slot;     /* offsetof(moei_kernels, op) */
    void (*fn)(void);
} moei_kernel_row;
const moei_kernel_row *moei_kernel_rows(size_t *count);

/* Fills each dtype's table with the best rows not above `isa`: reference first, then override by slot. */
void moei_kernel_select(moei_isa isa, moei_kernels table[MOEI_DTYPES]);
/* Whether a row of exactly this instruction set serves `op` in `dtype`. */
bool moei_kernel_serves(moei_isa isa, const char *op, moe_dtype dtype);
/* Name of the row chosen for `op` in `dtype`, NULL if there is no such op. */
const char *moei_kernel_chosen(moei_isa isa, const char *op, moe_dtype dtype);

#endif
