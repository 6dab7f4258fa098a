/* names.c: the names of names.h. */
#include "route/names.h"

#include <stddef.h>

const char *const moei_router_types[] = {[MOEI_ROUTER_TOP_K] = "top_k",
                                         [MOEI_ROUTER_GSHARD_TOP2] = "gshard_top2",
                                         [MOEI_ROUTER_NOISY_TOP_K] = "noisy_top_k",
                                         [MOEI_ROUTER_SINKHORN] = "sinkhorn",
                                         [MOEI_ROUTER_QUANTILE] = "quantile",
                                         [MOEI_ROUTER_EXPERT_CHOICE] = "expert_choice",
                                         [MOEI_ROUTER_HASH] = "hash",
                                         [MOEI_ROUTER_RANDOM] = "random",
                                         [MOEI_ROUTER_BALANCED] = "balanced",
                                         [MOEI_ROUTER_TYPES] = NULL};
const char *const moei_units[] = {
    [MOEI_UNIT_TOKEN] = "token", [MOEI_UNIT_SEQUENCE] = "sequence", [MOEI_UNIT_TASK] = "task", NULL};
const char *const moei_scores[] = {
    [MOEI_SOFTMAX] = "softmax", [MOEI_SIGMOID] = "sigmoid", [MOEI_SQRTSOFTPLUS] = "sqrtsoftplus", NULL};
const char *const moei_router_dtypes[] = {
    [MOEI_GATE_AUTO] = "auto", [MOEI_GATE_F32] = "f32",   [MOEI_GATE_F64] = "f64",
    [MOEI_GATE_FP32] = "fp32", [MOEI_GATE_FP64] = "fp64", NULL};
const char *const moei_router_inits[] = {[MOEI_INIT_NORMAL] = "normal",
                                         [MOEI_INIT_NORMAL_UNIT] = "normal_unit",
                                         [MOEI_INIT_FAN_IN_RENORM] = "normal_fan_in_renorm",
                                         [MOEI_INIT_ZEROS] = "zeros",
                                         NULL};
const char *const moei_group_scores[] = {
    [MOEI_GROUP_TOP2_SUM] = "top2_sum", [MOEI_GROUP_MAX] = "max", [MOEI_GROUP_TOPN_SUM] = "topn_sum", NULL};
const char *const moei_second_policies[] = {
    [MOEI_SECOND_ALL] = "all",       [MOEI_SECOND_NONE] = "none",     [MOEI_SECOND_THRESHOLD] = "threshold",
    [MOEI_SECOND_RANDOM] = "random", [MOEI_SECOND_SAMPLE] = "sample", NULL};
const char *const moei_sinkhorns[] = {[MOEI_SINKHORN_STANDARD] = "standard",
                                      [MOEI_SINKHORN_MEGATRON] = "megatron",
                                      [MOEI_SINKHORN_SIGMA] = "sigma_moe",
                                      NULL};
