/* layer_call.c: whether this layer reads what a call tells it. What would be ignored is refused.
 * Each rule: a field is set, what reads it is not there, and the text says what would.
 * Source: a recorded run repeated with draws that nobody reads differs silently; so it is said.
 */
#include "layer/layer_desc.h"
#include "layer/layer_experts.h"

typedef struct told_rule {
    const void *told; /* the field; NULL: not set */
    bool read;
    const char *field, *reason;
} told_rule;

/* An array that a call points to, and the bytes of its numbers. */
typedef struct told_array {
    const void *told;
    size_t bytes;
    const char *field;
} told_array;

static moe_status check_arrays(moe_ctx *ctx, const char *owner, const told_array *array, size_t count) {
    for (size_t i = 0; i < count; ++i)
        MOEI_TRY(moei_ctx_whole(ctx, owner, array[i].field, array[i].told, array[i].bytes));
    return MOE_OK;
}

static moe_status check_rules(moe_ctx *ctx, const told_rule *rule, size_t count) {
    for (size_t i = 0; i < count; ++i)
        if (rule[i].told && !rule[i].read)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: %s", rule[i].field, rule[i].reason);
    return MOE_OK;
}

/* Where second choices go by chance. */
static bool draws_second(const moe_layer_desc *d, moe_mode mode) {
    const char *policy = mode == MOE_TRAIN ? d->second_policy_train : d->second_policy_eval;
    return moei_router_kind_of(d).top2 && (moei_is(policy, "random") || moei_is(policy, "sample"));
}

/* A rule has its text below its field: aligned, the lines would be too long. */
/* clang-format off */
static moe_status check_draws(moe_ctx *ctx, const moe_layer_desc *d, const moe_call *call,
                              const moe_draws *draws) {
    const bool train = call->mode == MOE_TRAIN, selects = !call->replay_expert;
    const bool second = draws_second(d, call->mode);
    const told_rule rules[] = {
        {draws->second_policy, second && selects, "moe_draws.second_policy",
         "needs router_type gshard_top2, second_policy random or sample in this mode, and no replay"},
        {draws->second_policy_inner, second && selects && d->num_groups_outer > 0,
         "moe_draws.second_policy_inner",
         "is of two levels; needs num_groups_outer, second_policy random or sample in this mode, and no "
         "replay"},
        {draws->expert_dropout, train && selects && d->expert_dropout > 0, "moe_draws.expert_dropout",
         "needs expert_dropout, MOE_TRAIN, and no replay"},
        {draws->noise, train && moei_router_kind_of(d).noisy, "moe_draws.noise",
         "needs router_type noisy_top_k and MOE_TRAIN"},
        {draws->dropout_keep, !*d->expert_kinds, "moe_draws.dropout_keep",
         "has one width for all experts, [T,K,n]; those of expert_kinds have widths of their own"},
        {draws->dropout_keep, train && d->dropout > 0, "moe_draws.dropout_keep",
         "needs dropout and MOE_TRAIN"},
    };
    const told_array arrays[] = {
        {draws->second_policy, sizeof *draws->second_policy, "second_policy"},
        {draws->second_policy_inner, sizeof *draws->second_policy_inner, "second_policy_inner"},
        {draws->expert_dropout, sizeof *draws->expert_dropout, "expert_dropout"},
        {draws->noise, sizeof *draws->noise, "noise"},
    };
    MOEI_TRY(check_arrays(ctx, "moe_draws", arrays, sizeof arrays / sizeof *arrays));
    return check_rules(ctx, rules, sizeof rules / sizeof *rules);
}

moe_status moei_layer_call_check(const moe_layer *layer, const moe_call *call, const moe_draws *draws) {
    const moe_layer_desc *d = &layer->desc;
    const bool routed = d->num_experts > 0;
    const told_rule rules[] = {
        {call->task, moei_is(d->routing_unit, "task"), "moe_call.task", "needs routing_unit task"},
        {call->token_id, moei_router_kind_of(d).hashes, "moe_call.token_id",
         "needs router_type hash: no other router looks at it"},
        {call->token_id, moei_is(d->routing_unit, "token"), "moe_call.token_id",
         "is of single tokens; needs routing_unit token"},
        {call->replay_expert, routed, "moe_call.replay_expert", "there is no router: num_experts is 0"},
        {call->replay_weight, routed, "moe_call.replay_weight", "there is no router: num_experts is 0"},
        {call->loss_scale != 0 ? &call->loss_scale : NULL, call->mode == MOE_TRAIN, "moe_call.loss_scale",
         "multiplies gradients; needs MOE_TRAIN"},
        {call->overwrite_grad ? &call->overwrite_grad : NULL, call->mode == MOE_TRAIN,
         "moe_call.overwrite_grad", "is of the backward that follows; needs MOE_TRAIN"},
    };
    const told_array arrays[] = {
        {call->task, sizeof *call->task, "task"},
        {call->token_id, sizeof *call->token_id, "token_id"},
        {call->replay_expert, sizeof *call->replay_expert, "replay_expert"},
        {call->replay_weight, routed ? moe_dtype_bytes(layer->routing.dtype) : 1, "replay_weight"},
    };
    MOEI_TRY(check_rules(layer->ctx, rules, sizeof rules / sizeof *rules));
    MOEI_TRY(check_arrays(layer->ctx, "moe_call", arrays, sizeof arrays / sizeof *arrays));
    return draws ? check_draws(layer->ctx, d, call, draws) : MOE_OK;
}
/* clang-format on */
