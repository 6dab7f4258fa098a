/* layer_desc.c: fills the defaults of a descriptor and has it checked.
 * Defaults that depend on other fields are filled here; all others stand in the table of layer_options.c.
 * Filling a filled descriptor changes nothing, so a layer's own descriptor makes the same layer again.
 */
#include "layer/layer_desc.h"

#include "core/desc.h"
#include "experts/activation.h"
#include "experts/experts.h"
#include "route/route.h"

/* The kinds of expert_plain.c. */
static bool is_plain(const char *kind) {
    return moei_is(kind, "identity") || moei_is(kind, "zero");
}

bool moei_experts_plain(const moe_layer_desc *desc) {
    const char *list = desc->expert_kinds;
    moei_kind kind;
    if (desc->num_experts == 0) return false;
    if (!*list) return is_plain(desc->expert);
    while (moei_kind_next(&list, &kind))
        if (!is_plain(kind.name)) return false;
    return true;
}

static void own_string(const char **field, const char *const *choices) {
    const int32_t place = choices ? moei_option_place(*field, choices) : -1;
    if (place >= 0) *field = choices[place];
}

/* The table's own strings, so that a caller's may go. Names that no table lists stay the caller's. */
static void fill_choices(moe_layer_desc *d) {
    const moei_option_table table = moei_layer_option_table();
    for (size_t i = 0; i < table.count; ++i) {
        const moe_option *row = &table.row[i];
        const char **field = (const char **)(void *)((char *)d + row->offset);
        if (row->type != MOE_OPT_CHOICE) continue;
        if (!*field) *field = row->initial;
        own_string(field, row->choices);
    }
    own_string(&d->shared_expert_activation, moei_activation_names); /* may be empty, so it is free text */
}

static void fill_router(moe_layer_desc *d) {
    const moei_router_kind kind = moei_router_kind_of(d);
    const bool top2 = kind.top2;
    if (d->top_k == 0) d->top_k = d->num_experts < 2 ? d->num_experts : 2;
    if (top2) d->score_before_topk = d->norm_topk_prob = true; /* that is what this router does */
    if (kind.by_expert)
        d->score_before_topk = true; /* experts compare tokens by their scores, not by logits */
    if (top2 && d->second_threshold_train == 0) d->second_threshold_train = 0.2f;
    if (top2 && d->second_threshold_eval == 0) d->second_threshold_eval = 0.2f;
    if (d->capacity_multiple == 0) d->capacity_multiple = 1;
    if (d->num_groups == 1 && d->group_top_k <= 1) d->num_groups = d->group_top_k = 0;
    if (kind.noisy && d->noise_epsilon == 0) d->noise_epsilon = 0.01f;
    if (kind.transports) {
        const bool megatron = moei_is(d->sinkhorn_variant, "megatron");
        if (megatron) d->score_before_topk = true; /* of all experts too */
        if (!megatron && d->sinkhorn_iters == 0) d->sinkhorn_iters = 3;
        if (megatron && d->sinkhorn_tol == 0) d->sinkhorn_tol = 1e-4f;
    }
}

/* Puts Megatron's one coefficient where its type says: of none, nowhere, so that what needs a balance loss is
 * refused. Without a coefficient, or where that loss has its own, the types of other losses stay and are
 * refused. */
static void fill_balance(moe_layer_desc *d) {
    float *loss = NULL;
    if (moei_is(d->aux_loss_type, "none")) {
        d->aux_loss_coeff = 0;
        d->aux_loss_type = "batch";
    }
    if (moei_is(d->aux_loss_type, "sequence")) loss = &d->seq_aux_loss_coeff;
    if (moei_is(d->aux_loss_type, "global")) loss = &d->global_aux_loss_coeff;
    if (!loss || *loss != 0 || d->aux_loss_coeff == 0) return;
    *loss = d->aux_loss_coeff;
    d->aux_loss_coeff = 0;
    d->aux_loss_type = "batch";
}

/* Whether a registered expert is among them: it may draw as it likes. */
static bool has_own_kind(const moe_layer_desc *d) {
    const char *list = d->expert_kinds;
    moei_kind kind;
    if (!*list) return !moei_is(d->expert, "ffn") && !is_plain(d->expert);
    while (moei_kind_next(&list, &kind))
        if (!kind.is_width && !is_plain(kind.name)) return true;
    return false;
}

bool moei_draws_by_std(const moe_layer_desc *d) {
    const bool routed = d->num_experts > 0, gate = routed && moei_is(d->router_init, "normal");
    const bool hidden = (routed && !moei_experts_plain(d)) || d->num_shared_experts > 0;
    const bool normal = moei_is(d->init_scheme, "normal") || moei_is(d->init_scheme, "megatron_scaled");
    return gate || (hidden && normal) || (routed && has_own_kind(d)) || d->latent_size > 0 ||
           d->shared_expert_gate;
}

static void fill_defaults(moe_layer_desc *d) {
    fill_choices(d);
    if (d->output_size == 0) d->output_size = d->d_model;
    if (d->routed_scaling_factor == 0) d->routed_scaling_factor = 1;
    if (d->num_experts > 0) {
        fill_router(d);
        fill_balance(d);
    }
    if (d->num_shared_experts > 0) {
        if (d->shared_expert_hidden_size == 0) d->shared_expert_hidden_size = d->expert_hidden_size;
        if (!*d->shared_expert_activation) d->shared_expert_activation = d->activation;
    }
    if (d->init_std == 0 && moei_draws_by_std(d)) d->init_std = 0.02f;
    if (d->init_std_down == 0 && moei_is(d->init_scheme, "normal")) d->init_std_down = d->init_std;
    if (d->init_std_scale == 0 &&
        (moei_is(d->init_scheme, "sigma_moe") || moei_is(d->router_init, "normal_fan_in_renorm")))
        d->init_std_scale = 1;
}

/* Every field against its row of the table: a value that its own text would not set back is wrong. */
static moe_status check_limits(const moe_layer_desc *d, moe_error *error) {
    const moei_option_table table = moei_layer_option_table();
    moe_layer_desc reread = *d;
    for (size_t i = 0; i < table.count; ++i) {
        char text[256];
        moei_option_get(&table.row[i], d, text, sizeof text);
        MOEI_TRY(moei_option_set(&table.row[i], &reread, text, error));
    }
    return MOE_OK;
}

moe_status moei_layer_desc_fill(const moe_layer_desc *given, moe_layer_desc *filled, moe_error *error) {
    moe_layer_desc d;
    MOEI_TRY(moei_layer_desc_open(given, &d, error));
    MOEI_TRY(check_limits(&d, error));
    fill_defaults(&d);
    MOEI_TRY(moei_layer_desc_check(&d, error));
    *filled = d;
    return MOE_OK;
}

moe_status moe_layer_desc_fill(const moe_layer_desc *desc, moe_layer_desc *filled, moe_error *error) {
    moe_layer_desc d;
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_fill", "desc", desc));
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_fill", "filled", filled));
    MOEI_TRY(moei_desc_check_out(filled, sizeof d, "moe_layer_desc", error));
    MOEI_TRY(moei_layer_desc_fill(desc, &d, error));
    return moei_desc_write(filled, &d, sizeof d, "moe_layer_desc", error);
}

moe_status moe_layer_desc_check(const moe_layer_desc *desc, moe_error *error) {
    moe_layer_desc filled;
    return moei_layer_desc_fill(desc, &filled, error);
}
