/* names.h: every name a router's settings can have, once: what the options accept and what the router looks
 * up. Each list is NULL-terminated and in the order of its enumeration.
 */
#ifndef MOEI_ROUTE_NAMES_H
#define MOEI_ROUTE_NAMES_H

typedef enum moei_router_type {
    MOEI_ROUTER_TOP_K,
    MOEI_ROUTER_GSHARD_TOP2,
    MOEI_ROUTER_NOISY_TOP_K,
    MOEI_ROUTER_SINKHORN,
    MOEI_ROUTER_QUANTILE,
    MOEI_ROUTER_EXPERT_CHOICE,
    MOEI_ROUTER_HASH,
    MOEI_ROUTER_RANDOM,
    MOEI_ROUTER_BALANCED,
    MOEI_ROUTER_TYPES
} moei_router_type;
typedef enum moei_unit { MOEI_UNIT_TOKEN, MOEI_UNIT_SEQUENCE, MOEI_UNIT_TASK } moei_unit;
typedef enum moei_score { MOEI_SOFTMAX, MOEI_SIGMOID, MOEI_SQRTSOFTPLUS } moei_score;
typedef enum moei_router_dtype { /* fp32 and fp64 are NeMo's words */
                                 MOEI_GATE_AUTO,
                                 MOEI_GATE_F32,
                                 MOEI_GATE_F64,
                                 MOEI_GATE_FP32,
                                 MOEI_GATE_FP64
} moei_router_dtype;
/* How the gate is drawn. */
typedef enum moei_gate_init {
    MOEI_INIT_NORMAL,
    MOEI_INIT_NORMAL_UNIT,
    MOEI_INIT_FAN_IN_RENORM,
    MOEI_INIT_ZEROS
} moei_gate_init;
typedef enum moei_group_score { MOEI_GROUP_TOP2_SUM, MOEI_GROUP_MAX, MOEI_GROUP_TOPN_SUM } moei_group_score;
/* Whether a second choice stays. */
typedef enum moei_second_policy {
    MOEI_SECOND_ALL,
    MOEI_SECOND_NONE,
    MOEI_SECOND_THRESHOLD,
    MOEI_SECOND_RANDOM,
    MOEI_SECOND_SAMPLE
} moei_second_policy;
typedef enum moei_sinkhorn {
    MOEI_SINKHORN_STANDARD,
    MOEI_SINKHORN_MEGATRON,
    MOEI_SINKHORN_SIGMA
} moei_sinkhorn;

extern const char *const moei_router_types[];
extern const char *const moei_units[];
extern const char *const moei_scores[];
extern const char *const moei_router_dtypes[];
extern const char *const moei_router_inits[];
extern const char *const moei_group_scores[];
extern const char *const moei_second_policies[];
extern const char *const moei_sinkhorns[];

#endif
