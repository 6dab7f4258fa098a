/* registry.c: the kinds of expert a context knows: ours, then those the caller registered.
 * A name finds the same table whoever wrote it.
 * Source: oneDNN's and PETSc's method-by-string registries.
 */
#include "experts/experts.h"

#include <string.h>

static const moe_expert_ops *const built_in[] = {&moei_expert_ffn, &moei_expert_identity, &moei_expert_zero,
                                                 &moei_expert_mixed};

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
    moei_expert_entry *entry = moe_ctx_alloc(ctx, sizeof *entry);
    if (!entry) return MOE_ERR_MEMORY;
    *entry = (moei_expert_entry){*ops, ctx->experts};
    ctx->experts = entry;
    return MOE_OK;
}
