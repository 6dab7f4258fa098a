/* grad_check.h: a layer's gradients against finite differences, in f64 on the reference kernels.
 * Objective: sum(y * g) + the layer's own losses, g random. Public headers only.
 */
#ifndef MOEKIT_GRAD_CHECK_H
#define MOEKIT_GRAD_CHECK_H

#include <moekit/expert.h>

typedef struct grad_check_options {
    moe_layer_desc desc;        /* dtype and sizes of 0 are filled in: d_model 6, expert_hidden_size 5 */
    const moe_expert_ops *kind; /* registered first, for desc.expert to name; NULL: none */
    const moe_call *call;       /* what every forward is told; NULL: a training call */
    bool replay;                /* every forward but the first is told the experts that the first chose */
    int64_t n_tokens;
    uint64_t seed;
} grad_check_options;

enum { GRAD_CHECK_TENSORS = 40, GRAD_CHECK_NAME = 64 };

typedef struct grad_check_tensor {
    char name[GRAD_CHECK_NAME]; /* "x" or a parameter's name */
    int64_t checked;
    int64_t skipped; /* the objective has a kink within reach: another routing, a ReLU at 0 */
    double largest;  /* largest |finite difference| */
    double error;    /* largest |gradient - finite difference| / max(largest, 1e-3 max(1, losses)) */
} grad_check_tensor;

typedef struct grad_check_result {
    int32_t n_tensors;
    grad_check_tensor tensor[GRAD_CHECK_TENSORS];
    double worst; /* largest error of all tensors */
    int64_t checked, skipped;
} grad_check_result;

/* Numbers only; the verdict is the caller's. A failure of the layer itself is its status. */
moe_status grad_check(const grad_check_options *options, grad_check_result *result, moe_error *error);

#endif
