/* golden_sigma.c: recorded runs of the sigma-MoE layer.
 * x [.., n, d], out [.., n, v_dim]; expert_sel [E, d], keys [E, d, n_hidden], values [E, n_hidden, v_dim].
 * Source: sigma-MoE, moe_layer_simple.py as of 2024-01.
 */
#include "golden.h"

#include <math.h>
#include <string.h>

static const char *const modes[] = {"sigmoid", "sigmoid", "softmax", "softmax", "sinkmoid", "sinkmoid", NULL};
static const char *const activations[] = {"relu",       "relu",       "gelu",      "gelu",
                                          "leaky_relu", "leaky_relu", "leakyrelu", "leaky_relu",
                                          "silu",       "silu",       NULL};
static const char *const objectives[] = {"sum(out*dout)+3*loss", "", NULL};
static const golden_param params[] = {
    {"gate.weight",         "expert_sel", GOLDEN_AS_IS},
    {"experts.up.weight",   "keys",       GOLDEN_AS_IS},
    {"experts.down.weight", "values",     GOLDEN_AS_IS},
    {"experts.up.bias",     "bias",       GOLDEN_AS_IS},
    {"output.bias",         "o_bias",     GOLDEN_AS_IS},
};
enum { N_PARAMS = sizeof params / sizeof *params };

typedef struct sigma {
    const char *mode;
    bool training, after;
    moe_layer_desc desc;
    moe_draws draws;
    moe_call call;
    golden_pass pass;
    int32_t *reference; /* [T, K] what the reference chose, in its order */
} sigma;

static void read_options(golden_case *c, sigma *run) {
    run->mode = golden_choice(c, "selection_mode", "sigmoid", modes);
    run->training = golden_bool(c, "training", true);
    run->after = golden_bool(c, "activation_after_topk", false);
    const bool softmax = strcmp(run->mode, "softmax") == 0;
    const bool sinkhorn = strcmp(run->mode, "sinkmoid") == 0 && run->training;
    const bool bias = golden_bool(c, "bias", false);
    const int32_t iterations = (int32_t)golden_int(c, "sinkhorn_n_iters", 3);
    const float dropout = (float)golden_real(c, "dropout", 0);
    const float expert_dropout = (float)golden_real(c, "expert_dropout", 0);
    const int32_t d = (int32_t)golden_int_required(c, "dmodel");
    run->desc = (moe_layer_desc){
        .size = sizeof run->desc,
        .d_model = d,
        .output_size = (int32_t)golden_int(c, "v_dim", d),
        .num_experts = (int32_t)golden_int_required(c, "n_experts"),
        .top_k = (int32_t)golden_int_required(c, "k"),
        .expert_hidden_size = (int32_t)golden_int_required(c, "expert_size"),
        .activation = golden_choice(c, "activation", "relu", activations),
        .expert_up_bias = bias,
        .output_bias = bias,
        .dropout = run->training ? dropout : 0,
        .score_function = softmax ? "softmax" : "sigmoid",
        .score_before_topk = !run->after && !sinkhorn,
        .router_type = sinkhorn ? "sinkhorn" : "top_k",
        .sinkhorn_variant = sinkhorn ? "sigma_moe" : NULL,
        .sinkhorn_iters = sinkhorn ? iterations : 0,
        .expert_dropout = run->training ? expert_dropout : 0,
        .entropy_loss_coeff = 1,
    };
    if (run->desc.top_k < 1)
        golden_fail(c, "option 'k' is %d; a token has at least one expert", run->desc.top_k);
    golden_skip(c, "weight_std_scale"); /* of the initial weights, which are recorded */
    golden_choice(c, "objective", objectives[0], objectives);
}

/* Leading dimensions of x are batches; each is balanced by itself, and a matrix is one batch. */
static void read_tensors(golden_case *c, sigma *run) {
    const golden_tensor *x = golden_find(c, "x"), *dout = golden_find(c, "dout");
    if (!x || x->recorded->n_dim < 2 || golden_dim(x, -1) != run->desc.d_model) {
        golden_fail(c, "tensor 'x' must be [.., n, dmodel]");
        return;
    }
    run->pass = (golden_pass){.n_tokens = x->count / run->desc.d_model,
                              .d_in = run->desc.d_model,
                              .d_out = run->desc.output_size,
                              .x = x->value,
                              .dy = dout ? dout->value : NULL};
    const golden_tensor *uniform = golden_find(c, "expert_dropout_uniform");
    run->draws =
        (moe_draws){.size = sizeof run->draws, .expert_dropout = uniform ? golden_floats(c, uniform) : NULL};
    run->call = (moe_call){.size = sizeof run->call,
                           .mode = MOE_TRAIN,
                           .loss_scale = 3,
                           .sequence_length = golden_dim(x, -2),
                           .draws = &run->draws};
    const int64_t pairs = run->pass.n_tokens * run->desc.num_experts;
    const golden_tensor *keep = golden_find(c, "dropout_keep");
    if (run->desc.expert_dropout > 0 && (!uniform || uniform->count != pairs))
        golden_fail(c, "expert_dropout without 'expert_dropout_uniform' [.., n, E]");
    if (run->desc.dropout > 0 &&
        (!keep || keep->count != run->pass.n_tokens * run->desc.top_k * run->desc.expert_hidden_size))
        golden_fail(c, "dropout without 'dropout_keep' [.., n, k, expert_size]");
}

/* --- the order of the reference's picks --------------------------------------------------------------- */

/* dropout_keep is recorded by the slots of torch.topk(sorted=False), whose order is what quickselect
 * leaves: median of three to the front, partition around it, insertion sort of the last three; where
 * K is at most E / 64 it sorts. The indices themselves are not recorded. */
typedef struct pick {
    double score;
    int32_t expert;
} pick;

static bool before(const pick *a, int64_t i, int64_t j) {
    return a[i].score > a[j].score;
}

static void swap(pick *a, int64_t i, int64_t j) {
    pick kept = a[i];
    a[i] = a[j];
    a[j] = kept;
}

static void insertion_sort(pick *a, int64_t first, int64_t last) {
    for (int64_t i = first + 1; i < last; ++i)
        for (int64_t j = i; j > first && before(a, j, j - 1); --j) swap(a, j, j - 1);
}

static int64_t median(const pick *a, int64_t i, int64_t j, int64_t k) {
    if (before(a, i, j)) return before(a, j, k) ? j : before(a, i, k) ? k : i;
    return before(a, i, k) ? i : before(a, j, k) ? k : j;
}

static void quickselect(pick *a, int64_t n, int64_t nth) {
    int64_t first = 0, last = n;
    while (last - first > 3) {
        swap(a, first, median(a, first + 1, first + (last - first) / 2, last - 1));
        int64_t low = first + 1, high = last;
        for (;; ++low) {
            while (before(a, low, first)) ++low;
            do --high;
            while (before(a, first, high));
            if (low >= high) break;
            swap(a, low, high);
        }
        *(low <= nth ? &first : &last) = low;
    }
    insertion_sort(a, first, last);
}

/* Selection scores of one token as the reference sees them; sinkmoid's are the layer's own view. */
static void score(const sigma *run, const golden_tensor *gate, int64_t t, pick *a) {
    const int64_t E = run->desc.num_experts, d = run->desc.d_model;
    double sum = 0, largest = -INFINITY;
    for (int64_t e = 0; e < E; ++e) {
        a[e] = (pick){0, (int32_t)e};
        for (int64_t j = 0; j < d; ++j) a[e].score += run->pass.x[t * d + j] * gate->value[e * d + j];
        largest = fmax(largest, a[e].score);
    }
    const bool softmax = strcmp(run->mode, "softmax") == 0;
    for (int64_t e = 0; e < E; ++e) sum += exp(a[e].score - largest);
    for (int64_t e = 0; e < E; ++e) {
        if (run->desc.sinkhorn_iters > 0)
            a[e].score = (double)((const float *)run->pass.view.selection)[t * E + e];
        else if (softmax && !run->after)
            a[e].score = exp(a[e].score - largest) / sum;
        else if (!softmax && !run->after)
            a[e].score = 1 / (1 + exp(-a[e].score));
        const float *uniform = run->draws.expert_dropout;
        if (uniform && uniform[t * E + e] < run->desc.expert_dropout) a[e].score = -INFINITY;
    }
}

static void reference_picks(golden_case *c, sigma *run) {
    const int64_t T = run->pass.n_tokens, E = run->desc.num_experts, K = run->desc.top_k;
    const golden_tensor *gate = golden_find(c, "expert_sel");
    pick *a = golden_alloc(c, (size_t)E, sizeof *a);
    run->reference = golden_alloc(c, (size_t)(T * K), sizeof *run->reference);
    for (int64_t t = 0; t < T; ++t) {
        score(run, gate, t, a);
        if (K * 64 <= E)
            insertion_sort(a, 0, E);
        else
            quickselect(a, E, K - 1);
        for (int64_t k = 0; k < K; ++k) run->reference[t * K + k] = a[k].expert;
    }
}

/* --- what the layer cannot choose by itself ----------------------------------------------------------- */

static bool is_dropped(const sigma *run, int64_t t, int32_t e) {
    const float *uniform = run->draws.expert_dropout;
    return uniform && uniform[t * run->desc.num_experts + e] < run->desc.expert_dropout;
}

/* Where expert dropout leaves a token fewer than K experts the layer brings dropped ones back; the
 * reference picks among them all the same, with gates that are NaN unless they are read again from the
 * logits. Such runs are replayed, without the picks that made NaN. Slot k takes our k-th best. */
static const int32_t *replay_short_tokens(golden_case *c, sigma *run) {
    const int64_t T = run->pass.n_tokens, K = run->desc.top_k;
    const bool reread = run->after || strcmp(run->mode, "sinkmoid") == 0;
    int32_t *replay = golden_alloc(c, (size_t)(T * K), sizeof *replay);
    int64_t n_short = 0;
    memcpy(replay, run->pass.view.expert, (size_t)(T * K) * sizeof *replay);
    for (int64_t t = 0; t < T; ++t) {
        bool is_short = false;
        for (int64_t k = 0; k < K; ++k) is_short = is_short || is_dropped(run, t, run->reference[t * K + k]);
        n_short += is_short;
        for (int64_t k = 0; is_short && k < K; ++k) {
            int32_t e = run->reference[t * K + k];
            replay[t * K + k] = is_dropped(run, t, e) && !reread ? -1 : e;
        }
    }
    if (n_short == 0) return NULL;
    c->undefined_allowed = !reread;
    golden_note(c, "%lld of %lld tokens have fewer than k live experts: replayed%s", (long long)n_short,
                (long long)T, reread ? "" : ", without the gates of minus infinity of the reference");
    return replay;
}

/* The recorded masks, moved from the reference's slots to ours. */
static void order_masks(golden_case *c, sigma *run, const int32_t *chosen) {
    const golden_tensor *keep = golden_find(c, "dropout_keep");
    if (!keep || run->desc.dropout <= 0) return;
    const int64_t K = run->desc.top_k, n = run->desc.expert_hidden_size;
    uint8_t *mask = golden_alloc(c, (size_t)keep->count, 1);
    for (int64_t t = 0; t < run->pass.n_tokens; ++t)
        for (int64_t k = 0; k < K; ++k) {
            const int32_t e = chosen[t * K + k];
            int64_t slot = 0;
            while (slot < K && run->reference[t * K + slot] != e) ++slot;
            if (slot == K && e >= 0) {
                golden_fail(c, "token %lld goes to expert %d, which the reference did not choose",
                            (long long)t, e);
                return;
            }
            for (int64_t j = 0; slot < K && j < n; ++j)
                mask[(t * K + k) * n + j] = keep->value[(t * K + slot) * n + j] != 0;
        }
    run->draws.dropout_keep = mask;
}

void golden_sigma(golden_case *c) {
    sigma run = {0};
    read_options(c, &run);
    if (!golden_options_done(c)) return;
    read_tensors(c, &run);
    moe_layer *layer = golden_layer(c, &run.desc, run.pass.n_tokens);
    if (!layer || !golden_set_params(c, layer, params, N_PARAMS)) return;
    if (run.desc.dropout > 0 || run.desc.expert_dropout > 0) {
        moe_call first = run.call; /* only to learn what the layer chooses */
        if (!golden_forward(c, layer, &first, &run.pass)) return;
        reference_picks(c, &run);
        run.call.replay_expert = replay_short_tokens(c, &run);
        order_masks(c, &run, run.call.replay_expert ? run.call.replay_expert : run.pass.view.expert);
        if (run.call.replay_expert) run.draws.expert_dropout = NULL; /* nobody selects */
    }
    if (!golden_forward(c, layer, &run.call, &run.pass)) return;
    golden_compare(c, "out", run.pass.y, run.pass.n_tokens * run.pass.d_out, GOLDEN_VALUE);
    golden_compare_one(c, "loss", run.pass.stats.loss, GOLDEN_VALUE);
    if (!run.pass.dy || !golden_backward(c, layer, &run.pass)) return;
    golden_compare(c, "d_x", run.pass.dx, run.pass.n_tokens * run.pass.d_in, GOLDEN_GRADIENT);
    golden_compare_grads(c, layer, params, N_PARAMS);
    if (c->n_undefined > 0)
        golden_note(c, "%lld recorded numbers are not finite and not compared", (long long)c->n_undefined);
}
