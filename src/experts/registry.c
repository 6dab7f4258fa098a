/* registry.c: the kinds of expert a context knows: ours, then those the caller registered.
 * A name finds the same table whoever wrote it.
 * Source: oneDNN's and PETSc's method-by-string registries.
 */
#include "experts/experts.h"

#include <string.h>

static const moe_expert_ops *const built_in[] = {&moei_expert_ffn, &moei_expert_identity, &moei_expert_zero};

const moe_expert_ops *moei_expert_find(const moe_ctx *ctx, const char *name) {
    for (size_t i = 0; i < sizeof built_in / sizeof *built_in; ++i)
        if (strcmp(built_in[i]->name, name) == 0) return built_in[i];
    for (const moei_expert_entry *entry = ctx->experts; entry; entry = entry->next)
        if (strcmp(entry->ops.name, name) == 0) return &entry->ops;
    return NULL;
}

moe_status moe_expert_register(moe_ctx *ctx, const moe_expert_ops *given) {
    if (!ctx) return MOE_ERR_ARGUMENT;
    moe_expert_ops table;
    const moe_expert_ops *ops = &table;
    MOEI_TRY(moei_ctx_desc_read(ctx, &table, sizeof table, given, "moe_expert_ops"));
    if (!ops->name || !*ops->name)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_expert_ops.name is empty; a kind is found by its name");
    if (strpbrk(ops->name, ", \t\n") || strspn(ops->name, "0123456789") > 0)
        return moe_ctx_fail(
            ctx, MOE_ERR_ARGUMENT,
            "expert '%s': expert_kinds takes a comma or a space for an end and a first digit for "
            "a width; choose a name without them",
            ops->name);
    if (!ops->create || !ops->destroy || !ops->param_count || !ops->param || !ops->bind_grad ||
        !ops->saved_bytes || !ops->scratch_bytes || !ops->forward)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "expert '%s': every function but backward is required",
                            ops->name);
    if (moei_expert_find(ctx, ops->name))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "expert '%s' is registered already; choose another name",
                            ops->name);
    moei_expert_entry *entry = moe_ctx_alloc(ctx, sizeof *entry + strlen(ops->name) + 1);
    if (!entry) return moei_ctx_no_memory(ctx, "a kind of expert");
    *entry = (moei_expert_entry){.ops = *ops, .next = ctx->experts};
    entry->ops.name = strcpy(entry->name, ops->name);
    ctx->experts = entry;
    return MOE_OK;
}

void moei_expert_ask(moe_ctx *ctx) {
    ctx->error.status = MOE_OK;
}

moe_status moei_expert_answer(moe_ctx *ctx, const moe_expert_ops *ops, const char *function,
                              moe_status status) {
    if (status == MOE_OK || ctx->error.status != MOE_OK) return status;
    return moe_ctx_fail(ctx, status, "expert '%s': its %s failed and did not say why (%s)", ops->name,
                        function, moe_status_name(status));
}

static bool is_ours(const moe_expert_ops *ops) {
    for (size_t i = 0; i < sizeof built_in / sizeof *built_in; ++i)
        if (ops == built_in[i]) return true;
    return ops == &moei_expert_mixed;
}

void moei_expert_bind_value(const moe_expert_ops *ops, void *self, int32_t index, void *value) {
    if (ops == &moei_expert_mixed) moei_expert_mixed_bind_value(self, index, value);
    if (ops == &moei_expert_ffn) moei_ffn_bind_value(self, index, value);
}

moe_status moei_expert_create(moe_ctx *ctx, const moe_expert_ops *ops, const moe_expert_desc *desc,
                              void **self) {
    moe_expert_desc told = *desc;
    told.user = ops->user;
    if (ctx->host && !ops->on_device)
        return moe_ctx_fail(
            ctx, MOE_ERR_UNSUPPORTED,
            "expert '%s' computes in the host's memory; one that takes device pointers says so by "
            "moe_expert_ops.on_device",
            ops->name);
    if (desc->unowned && !is_ours(ops))
        return moe_ctx_fail(
            ctx, MOE_ERR_UNSUPPORTED,
            "unowned: the parameters of expert '%s' are its own; built-in kinds alone take lent ones",
            ops->name);
    moei_expert_ask(ctx);
    return moei_expert_answer(ctx, ops, "create", ops->create(ctx, &told, self));
}

static moe_status check_shape(moe_ctx *ctx, const moe_expert_ops *ops, const moe_param *param) {
    if (param->n_dim < 1 || param->n_dim > 3)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "expert '%s': parameter '%s' has %d dimensions; 1 to 3 are possible", ops->name,
                            param->name, param->n_dim);
    for (int32_t i = 0; i < param->n_dim; ++i)
        if (param->dim[i] < 1)
            return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                                "expert '%s': dim[%d] of parameter '%s' is %lld; it must be at least 1",
                                ops->name, i, param->name, (long long)param->dim[i]);
    if ((unsigned)param->dtype < MOEI_DTYPES) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                        "expert '%s': dtype of parameter '%s' is %d; it must be MOE_F32, MOE_F64 or MOE_BF16",
                        ops->name, param->name, (int)param->dtype);
}

moe_status moei_expert_check_param(moe_ctx *ctx, const moe_expert_ops *ops, const void *self, int32_t index,
                                   size_t room) {
    moe_param param = {.size = sizeof param}, other = param;
    moei_expert_ask(ctx);
    MOEI_TRY(moei_expert_answer(ctx, ops, "param", ops->param(self, index, &param)));
    if (!param.name || !*param.name || strlen(param.name) >= room)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "expert '%s': parameter %d is called '%.80s'; a name has 1 to %zu bytes here",
                            ops->name, index, param.name ? param.name : "", room - 1);
    for (int32_t i = 0; i < index; ++i)
        if (ops->param(self, i, &other) == MOE_OK && strcmp(other.name, param.name) == 0)
            return moe_ctx_fail(
                ctx, MOE_ERR_ARGUMENT,
                "expert '%s': parameters %d and %d are both called '%s'; each needs a name of "
                "its own",
                ops->name, i, index, param.name);
    return check_shape(ctx, ops, &param);
}
