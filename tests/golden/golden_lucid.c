/* golden_lucid.c: recorded runs of lucidrains' MoE, flat and of two levels.
 * x, out, dout [b, n, d]; combine, dispatch [b, n, E, C]; gates [d, E], inner [Eo, d, Ei].
 * Source: lucidrains' mixture-of-experts, mixture_of_experts.py as of 2023-09.
 */
#include "golden.h"

#include <string.h>

static const char *const policies[] = {"all",       "all",    "none",   "none", "threshold",
                                       "threshold", "random", "random", NULL};
static const char *const activations[] = {"gelu",      "gelu",       "relu",       "relu",
                                          "leakyrelu", "leaky_relu", "leaky_relu", "leaky_relu",
                                          "silu",      "silu",       NULL};
static const char *const expert_kinds[] = {"2-layer", "ffn", "3-layer", "three", NULL};
static const char *const objectives[] = {"sum(out*dout)+3*loss", "", NULL};

static const golden_param flat_params[] = {
    {"gate.weight",         "gate_w_gating", GOLDEN_TRANSPOSED},
    {"experts.up.weight",   "experts_w1",    GOLDEN_AS_IS     },
    {"experts.down.weight", "experts_w2",    GOLDEN_AS_IS     },
};
static const golden_param flat_three_params[] = {
    {"gate.weight", "gate_w_gating", GOLDEN_TRANSPOSED},
    {"experts.w1",  "experts_w1",    GOLDEN_AS_IS     },
    {"experts.w2",  "experts_w2",    GOLDEN_AS_IS     },
    {"experts.w3",  "experts_w3",    GOLDEN_AS_IS     },
};
static const golden_param levels_params[] = {
    {"gate.weight",         "gate_outer_w_gating", GOLDEN_TRANSPOSED},
    {"gate_inner.weight",   "gate_inner_w_gating", GOLDEN_TRANSPOSED},
    {"experts.up.weight",   "experts_w1",          GOLDEN_AS_IS     },
    {"experts.down.weight", "experts_w2",          GOLDEN_AS_IS     },
};
static const golden_param levels_three_params[] = {
    {"gate.weight",       "gate_outer_w_gating", GOLDEN_TRANSPOSED},
    {"gate_inner.weight", "gate_inner_w_gating", GOLDEN_TRANSPOSED},
    {"experts.w1",        "experts_w1",          GOLDEN_AS_IS     },
    {"experts.w2",        "experts_w2",          GOLDEN_AS_IS     },
    {"experts.w3",        "experts_w3",          GOLDEN_AS_IS     },
};

typedef struct lucid {
    int64_t b, n, d, n_outer; /* n_outer 0: one level */
    bool training, three;
    moe_layer_desc desc;
    moe_draws draws;
    moe_call call;
    golden_pass pass;
} lucid;

static void read_options(golden_case *c, lucid *run) {
    run->b = golden_int_required(c, "b");
    run->n = golden_int_required(c, "n");
    run->d = golden_int_required(c, "dim");
    int64_t experts[2] = {1, 1};
    golden_ints(c, "num_experts", experts, run->n_outer ? 2 : 1);
    run->training = golden_bool(c, "training", true);
    const char *policy = golden_choice(c, "second_policy", "random", policies);
    float threshold = (float)golden_real(c, "threshold", 0.2);
    bool bounded = strcmp(policy, "threshold") == 0 || strcmp(policy, "random") == 0;
    float capacity = (float)golden_real(c, "capacity_factor", run->training ? 1.25 : 2.0);
    const char *expert = golden_choice(c, "experts", "2-layer", expert_kinds);
    run->three = strcmp(expert, "three") == 0;
    golden_choice(c, "objective", objectives[0], objectives);
    run->desc = (moe_layer_desc){
        .size = sizeof run->desc,
        .d_model = (int32_t)run->d,
        .num_experts = (int32_t)(experts[0] * experts[1]),
        .num_groups_outer = run->n_outer ? (int32_t)experts[0] : 0,
        .expert_hidden_size = (int32_t)golden_int(c, "hidden_dim", 4 * run->d),
        .expert = expert,
        .activation = golden_choice(c, "activation", "relu", activations),
        .router_type = "gshard_top2",
        .second_policy_train = policy,
        .second_policy_eval = policy,
        .second_threshold_train = bounded ? threshold : 0,
        .second_threshold_eval = bounded ? threshold : 0,
        .capacity_factor = capacity,
        .capacity_factor_eval = capacity,
        .capacity_formula = "lucidrains",
        .capacity_group = "sequence",
        .drop_policy = "rank_major",
        .gshard_loss_coeff = (float)golden_real(c, "loss_coef", 0.01),
    };
    run->n_outer = run->desc.num_groups_outer;
}

static void read_tensors(golden_case *c, lucid *run) {
    const int64_t tokens[3] = {run->b, run->n, run->d};
    const golden_tensor *x = golden_need(c, "x", 3, tokens), *dout = golden_find(c, "dout");
    if (!x) return;
    run->pass = (golden_pass){.n_tokens = run->b * run->n,
                              .d_in = run->d,
                              .d_out = run->d,
                              .x = x->value,
                              .dy = dout ? dout->value : NULL};
    const golden_tensor *outer = golden_find(c, "uniform0"), *inner = golden_find(c, "uniform1");
    run->draws = (moe_draws){.size = sizeof run->draws,
                             .second_policy = outer ? golden_floats(c, outer) : NULL,
                             .second_policy_inner = inner ? golden_floats(c, inner) : NULL};
    if (strcmp(run->desc.second_policy_train, "random") == 0 && (!outer || (run->n_outer && !inner)))
        golden_fail(c, "the draws of policy 'random' are not recorded");
    run->call = (moe_call){.size = sizeof run->call,
                           .mode = MOE_TRAIN,
                           .loss_scale = 3,
                           .sequence_length = run->n,
                           .draws = &run->draws};
}

/* Slot c of (sequence, expert): all first choices in the order of tokens, then all second ones. */
static void rebuild_combine(golden_case *c, const lucid *run, int64_t capacity, double *combine,
                            double *dispatch) {
    const moe_routing_view *view = &run->pass.view;
    const int64_t E = view->n_experts, K = view->top_k;
    for (int64_t s = 0; s < run->b; ++s) {
        int64_t *taken = golden_alloc(c, (size_t)E, sizeof *taken);
        for (int64_t k = 0; k < K; ++k)
            for (int64_t t = s * run->n; t < (s + 1) * run->n; ++t) {
                int32_t e = view->expert[t * K + k];
                if (e < 0 || view->row_of[t * K + k] < 0) continue;
                int64_t slot = taken[e]++;
                if (slot >= capacity) {
                    golden_fail(c, "expert %d took more than its %lld rows", e, (long long)capacity);
                    return;
                }
                double weight = (double)((const float *)view->weight)[t * K + k];
                combine[(t * E + e) * capacity + slot] = weight;
                dispatch[(t * E + e) * capacity + slot] = weight != 0;
            }
    }
}

static void compare_slots(golden_case *c, const lucid *run) {
    const golden_tensor *recorded = golden_find(c, "combine");
    if (!recorded) recorded = golden_find(c, "dispatch");
    if (!recorded || c->failed) return;
    const int64_t capacity = golden_dim(recorded, -1);
    if (run->pass.view.capacity != capacity)
        golden_fail(c, "capacity: %lld, recorded %lld", (long long)run->pass.view.capacity,
                    (long long)capacity);
    int64_t count = run->pass.n_tokens * run->desc.num_experts * capacity;
    double *combine = golden_alloc(c, (size_t)count, sizeof *combine);
    double *dispatch = golden_alloc(c, (size_t)count, sizeof *dispatch);
    rebuild_combine(c, run, capacity, combine, dispatch);
    golden_compare(c, "combine", combine, count, GOLDEN_VALUE);
    golden_compare(c, "dispatch", dispatch, count, GOLDEN_EXACT);
}

/* The evaluation options are the same layer's in the other mode. */
static void compare_inference(golden_case *c, lucid *run, moe_layer *layer) {
    moe_call call = run->call;
    call.mode = MOE_INFER;
    call.loss_scale = 0; /* of gradients */
    if (golden_forward(c, layer, &call, &run->pass))
        golden_compare(c, "out", run->pass.y, run->pass.n_tokens * run->d, GOLDEN_VALUE);
}

static void run_case(golden_case *c, lucid *run, const golden_param *params, size_t count) {
    if (!golden_options_done(c)) return;
    read_tensors(c, run);
    if (run->three && (c->failed || !golden_register_three(c))) return;
    moe_layer *layer = golden_layer(c, &run->desc, run->pass.n_tokens);
    if (!layer || !golden_set_params(c, layer, params, count)) return;
    if (!run->training) compare_inference(c, run, layer);
    if (!golden_forward(c, layer, &run->call, &run->pass)) return;
    golden_compare(c, "out", run->pass.y, run->pass.n_tokens * run->d, GOLDEN_VALUE);
    golden_compare_one(c, "loss", run->pass.stats.loss, GOLDEN_VALUE);
    if (!run->n_outer) compare_slots(c, run);
    if (!run->pass.dy || !golden_backward(c, layer, &run->pass)) return;
    golden_compare(c, "d_x", run->pass.dx, run->pass.n_tokens * run->d, GOLDEN_GRADIENT);
    golden_compare_grads(c, layer, params, count);
}

#define COUNT(table) (sizeof(table) / sizeof *(table))

void golden_lucid(golden_case *c) {
    lucid run = {0};
    read_options(c, &run);
    if (run.three)
        run_case(c, &run, flat_three_params, COUNT(flat_three_params));
    else
        run_case(c, &run, flat_params, COUNT(flat_params));
}

void golden_lucid_hierarchical(golden_case *c) {
    lucid run = {.n_outer = 1};
    read_options(c, &run);
    if (run.three)
        run_case(c, &run, levels_three_params, COUNT(levels_three_params));
    else
        run_case(c, &run, levels_params, COUNT(levels_params));
}
