/* layer_desc.c: the layer's descriptor: its table of options, its defaults, its checks.
 * One row a field; NeMo's, Automodel's, Hugging Face's, lucidrains' and sigma-MoE's names are aliases.
 * Source: the names follow the option tables of those systems' configuration classes.
 */
#include "layer/layer_desc.h"

#include "core/option.h"

#include <moekit/op.h>

#include <math.h>
#include <stddef.h>
#include <string.h>

static const char *const activations[] = {"swiglu", "gelu", "relu", NULL};
static const char *const scores[] = {"softmax", NULL};
static const char *const drop_policies[] = {"probs", "position", NULL};

#define FIELD(name) offsetof(moe_layer_desc, name)

static const moe_option options[] = {
    {"moe.d_model",                   "dim dmodel",                                                   MOE_OPT_INT,    FIELD(d_model),            "0",       0, 1 << 20, NULL,
     "width of the tokens; a language model sets it from model.d_model"                                                                                                                                                                                                      },
    {"moe.num_experts",               "num_moe_experts n_routed_experts num_local_experts n_experts", MOE_OPT_INT,
     FIELD(num_experts),                                                                                                                         "8",       0, 65536,   NULL,
     "routed experts; 0 makes the layer its shared expert, a dense FFN"                                                                                                                                                                                                      },
    {"moe.top_k",                     "moe_router_topk n_activated_experts num_experts_per_tok k",    MOE_OPT_INT,    FIELD(top_k),              "0",
     0,                                                                                                                                                        65536,   NULL,        "experts per token; 0: 2, or all where there are fewer"                                 },
    {"moe.expert_hidden_size",
     "moe_ffn_hidden_size moe_inter_dim moe_intermediate_size expert_size hidden_dim",                MOE_OPT_INT,
     FIELD(expert_hidden_size),                                                                                                                  "256",     0, 1 << 20, NULL,        "hidden width of one expert"                                                            },
    {"moe.expert",                    "",                                                             MOE_OPT_CHOICE, FIELD(expert),             "ffn",     0, 0,       NULL,
     "kind of expert; a registered plug-in's name"                                                                                                                                                                                                                           },
    {"moe.activation",                "expert_activation",                                            MOE_OPT_CHOICE, FIELD(activation),         "swiglu",  0, 0,       activations,
     "swiglu is gated, gelu (exact) and relu are not"                                                                                                                                                                                                                        },
    {"moe.expert_bias",               "",                                                             MOE_OPT_BOOL,   FIELD(expert_bias),        "false",   0, 0,       NULL,
     "biases on both projections of every expert"                                                                                                                                                                                                                            },
    {"moe.num_shared_experts",        "n_shared_experts",                                             MOE_OPT_INT,    FIELD(num_shared_experts), "0",       0, 1024,    NULL,
     "experts every token meets, fused into one FFN"                                                                                                                                                                                                                         },
    {"moe.shared_expert_hidden_size", "shared_expert_inter_dim",                                      MOE_OPT_INT,
     FIELD(shared_expert_hidden_size),                                                                                                           "0",       0, 1 << 20, NULL,
     "hidden width of each shared expert; 0: that of a routed one"                                                                                                                                                                                                           },
    {"moe.score_function",            "moe_router_score_function score_func scoring_func",            MOE_OPT_CHOICE,
     FIELD(score_function),                                                                                                                      "softmax", 0, 0,       scores,      "what turns router logits into scores"                                                  },
    {"moe.score_before_topk",         "moe_router_pre_softmax softmax_before_topk",                   MOE_OPT_BOOL,
     FIELD(score_before_topk),                                                                                                                   "false",   0, 0,       NULL,
     "score all experts, then select; else select, then score the selected"                                                                                                                                                                                                  },
    {"moe.norm_topk_prob",            "",                                                             MOE_OPT_BOOL,   FIELD(norm_topk_prob),     "false",   0, 0,       NULL,
     "divide the selected weights by their sum; needs score_before_topk"                                                                                                                                                                                                     },
    {"moe.routed_scaling_factor",     "moe_router_topk_scaling_factor route_scale",                   MOE_OPT_FLOAT,
     FIELD(routed_scaling_factor),                                                                                                               "1",       0, 1e6,     NULL,        "multiplies the routing weights"                                                        },
    {"moe.input_jitter_eps",          "moe_input_jitter_eps router_jitter_noise",                     MOE_OPT_FLOAT,
     FIELD(input_jitter_eps),                                                                                                                    "0",       0, 0.999,   NULL,        "training: the router sees x * U(1-eps, 1+eps)"                                         },
    {"moe.capacity_factor",           "moe_expert_capacity_factor",                                   MOE_OPT_FLOAT,  FIELD(capacity_factor),    "0",       0, 1e6,
     NULL,                                                                                                                                                                           "rows an expert may take: ceil(T*K/E * factor), at most T; 0: dropless"                 },
    {"moe.drop_policy",               "moe_token_drop_policy",                                        MOE_OPT_CHOICE, FIELD(drop_policy),        "probs",   0, 0,
     drop_policies,                                                                                                                                                                  "who stays in a full expert: the largest weights (probs) or the first tokens (position)"},
    {"moe.aux_loss_coeff",            "moe_aux_loss_coeff router_aux_loss_coef",                      MOE_OPT_FLOAT,  FIELD(aux_loss_coeff),
     "0",                                                                                                                                                   0, 1e6,     NULL,        "coefficient of the Switch load-balancing loss"                                         },
    {"moe.z_loss_coeff",              "moe_z_loss_coeff",                                             MOE_OPT_FLOAT,  FIELD(z_loss_coeff),       "0",       0, 1e6,     NULL,
     "coefficient of the router z-loss"                                                                                                                                                                                                                                      },
    {"moe.init_std",                  "init_method_std",                                              MOE_OPT_FLOAT,  FIELD(init_std),           "0.02",    0, 1e3,     NULL,
     "standard deviation of the initial weights"                                                                                                                                                                                                                             },
    {"moe.init_std_down",             "",                                                             MOE_OPT_FLOAT,  FIELD(init_std_down),      "0",       0, 1e3,     NULL,
     "the same for down projections; 0: init_std"                                                                                                                                                                                                                            },
};

const moe_option *moe_layer_options(size_t *count) {
    *count = sizeof options / sizeof *options;
    return options;
}

moe_status moe_layer_desc_set(moe_layer_desc *desc, const char *key, const char *value, moe_error *error) {
    const moei_option_table table = {options, sizeof options / sizeof *options};
    const moe_option *row = moei_option_find(table, key);
    if (!row) {
        size_t distance;
        const char *nearest = moei_option_nearest(table, key, &distance);
        return moei_error_set(error, MOE_ERR_ARGUMENT, "unknown option '%s'; the nearest is '%s'", key,
                              nearest);
    }
    return moei_option_set(row, desc, value, error);
}

static void fill_defaults(moe_layer_desc *d) {
    if (!d->expert) d->expert = "ffn";
    if (!d->activation) d->activation = "swiglu";
    if (!d->score_function) d->score_function = "softmax";
    if (!d->drop_policy) d->drop_policy = "probs";
    if (d->num_experts > 0 && d->top_k == 0) d->top_k = d->num_experts < 2 ? d->num_experts : 2;
    if (d->shared_expert_hidden_size == 0) d->shared_expert_hidden_size = d->expert_hidden_size;
    if (d->routed_scaling_factor == 0) d->routed_scaling_factor = 1;
    if (d->init_std == 0) d->init_std = 0.02f;
    if (d->init_std_down == 0) d->init_std_down = d->init_std;
}

static bool one_of(const char *value, const char *const *choices) {
    for (; *choices; ++choices)
        if (strcmp(value, *choices) == 0) return true;
    return false;
}

static moe_status check_shape(moe_ctx *ctx, const moe_layer_desc *d) {
    if (d->dtype != MOE_F32 && d->dtype != MOE_F64)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "dtype: %d is neither MOE_F32 nor MOE_F64", (int)d->dtype);
    if (d->d_model < 1)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "d_model: %d; a layer needs a width of at least 1",
                            d->d_model);
    if (d->num_experts < 0 || d->num_shared_experts < 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "num_experts and num_shared_experts cannot be negative");
    if (d->num_experts == 0 && d->num_shared_experts == 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "num_experts: 0 without shared experts; set num_experts or num_shared_experts");
    if (d->num_experts > 0 && (d->top_k < 1 || d->top_k > d->num_experts))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "top_k: %d is outside 1 .. num_experts = %d", d->top_k,
                            d->num_experts);
    if (d->num_experts > 0 && d->expert_hidden_size < 1)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "expert_hidden_size: %d; an expert needs at least 1",
                            d->expert_hidden_size);
    if (d->num_shared_experts > 0 && d->shared_expert_hidden_size < 1)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "shared_expert_hidden_size: %d; a shared expert needs at least 1",
                            d->shared_expert_hidden_size);
    return MOE_OK;
}

static moe_status check_numbers(moe_ctx *ctx, const moe_layer_desc *d) {
    const struct {
        const char *name;
        float value;
    } fields[] = {
        {"routed_scaling_factor", d->routed_scaling_factor},
        {"input_jitter_eps",      d->input_jitter_eps     },
        {"capacity_factor",       d->capacity_factor      },
        {"aux_loss_coeff",        d->aux_loss_coeff       },
        {"z_loss_coeff",          d->z_loss_coeff         },
        {"init_std",              d->init_std             },
        {"init_std_down",         d->init_std_down        }
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; ++i)
        if (!(isfinite(fields[i].value) && fields[i].value >= 0))
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %g is not a finite number >= 0", fields[i].name,
                                (double)fields[i].value);
    if (d->input_jitter_eps >= 1)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "input_jitter_eps: %g would let tokens vanish; it must be below 1",
                            (double)d->input_jitter_eps);
    return MOE_OK;
}

static moe_status check_choices(moe_ctx *ctx, const moe_layer_desc *d) {
    moe_error error;
    moe_act act;
    if (moe_act_by_name(d->activation, &act, &error) != MOE_OK)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s", error.text);
    if (!one_of(d->score_function, scores))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "score_function: '%s' is not one of: softmax",
                            d->score_function);
    if (!one_of(d->drop_policy, drop_policies))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "drop_policy: '%s' is not one of: probs, position",
                            d->drop_policy);
    if (d->norm_topk_prob && !d->score_before_topk)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "norm_topk_prob: weights scored after the selection already sum to 1; "
                            "set score_before_topk or leave norm_topk_prob off");
    return MOE_OK;
}

moe_status moei_layer_desc_fill(moe_ctx *ctx, const moe_layer_desc *given, moe_layer_desc *filled) {
    if (!given || given->size != sizeof *given)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_layer_desc.size is %zu; set it to sizeof(moe_layer_desc) = %zu",
                            given ? given->size : 0, sizeof *given);
    moe_layer_desc d = *given;
    fill_defaults(&d);
    MOEI_TRY(check_shape(ctx, &d));
    MOEI_TRY(check_numbers(ctx, &d));
    MOEI_TRY(check_choices(ctx, &d));
    *filled = d;
    return MOE_OK;
}
