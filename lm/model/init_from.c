/* init_from.c: moe_lm_init_from: parameters from a checkpoint of a like model, by name and shape.
 * Heads, positions and norms must be the checkpoint's, or its numbers would mean something else. Its layer
 * may be chosen, limited and trained otherwise, and may lack parameters, which are left alone: both are told.
 * Source: docs/run-directory.md, train.from.
 */
#include "core/ctx.h"
#include "core/real.h"
#include "model/checkpoint.h"
#include "model/model.h"

#include <stdio.h>
#include <string.h>

typedef struct pair {
    moe_lm *to, *from;
    const char *directory;
} pair;

/* What the shapes of parameters do not show. */
static moe_status check_model(const pair *p) {
    const struct {
        const char *key;
        double here, there;
    } rows[] = {
        {"model.n_heads",    p->to->heads,             p->from->heads            },
        {"model.n_kv_heads", p->to->kv_heads,          p->from->kv_heads         },
        {"model.head_dim",   p->to->head_dim,          p->from->head_dim         },
        {"model.rope_base",  (double)p->to->rope_base, (double)p->from->rope_base},
        {"model.norm_eps",   (double)p->to->eps,       (double)p->from->eps      },
        {"model.clip_qkv",   (double)p->to->clip,      (double)p->from->clip     },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; ++i)
        if (rows[i].here != rows[i].there)
            return moe_ctx_fail(p->to->ctx, MOE_ERR_ARGUMENT,
                                "%s: its model has %s %g, which is %g here; a model that begins with its "
                                "parameters has what it has",
                                p->directory, rows[i].key, rows[i].there, rows[i].here);
    const char *here = p->to->config->model.qk_norm, *there = p->from->config->model.qk_norm;
    if (strcmp(here, there) != 0)
        return moe_ctx_fail(
            p->to->ctx, MOE_ERR_ARGUMENT,
            "%s: its model has model.qk_norm %s, which is %s here; a model that begins with its "
            "parameters has what it has",
            p->directory, there, here);
    return MOE_OK;
}

/* The parameter of that name; looked for from `first` on, since models list theirs in one order. -1: none. */
static int32_t find(const moe_lm *lm, const char *name, int32_t first) {
    const int32_t count = moe_lm_param_count(lm);
    for (int32_t i = 0; i < count; ++i) {
        const int32_t at = (first + i) % count;
        if (strcmp(lm->entries[at].name, name) == 0) return at;
    }
    return -1;
}

static moe_status check_shape(const pair *p, const moe_param *to, const moe_param *from) {
    if (moelm_param_alike(to, from)) return MOE_OK;
    char shape[2][100];
    const moe_param *of[2] = {from, to};
    for (int i = 0; i < 2; ++i) {
        int n = snprintf(shape[i], sizeof shape[i], "%s", moei_dtype_name(of[i]->dtype));
        for (int32_t d = 0; d < of[i]->n_dim; ++d)
            n += snprintf(shape[i] + n, sizeof shape[i] - (size_t)n, "%s%lld", d ? ", " : "[",
                          (long long)of[i]->dim[d]);
        snprintf(shape[i] + n, sizeof shape[i] - (size_t)n, "]");
    }
    return moe_ctx_fail(p->to->ctx, MOE_ERR_INPUT, "%s: %s is %s, and the model here wants %s", p->directory,
                        to->name, shape[0], shape[1]);
}

/* Checks, then copies. Counts the parameters here that are not there and names the first in text[size]. */
static moe_status walk(const pair *p, bool copies, int32_t *missing, char *text, size_t size) {
    int32_t next = 0;
    *missing = 0;
    for (int32_t i = 0; i < moe_lm_param_count(p->to); ++i) {
        moe_param to = {.size = sizeof to}, from = {.size = sizeof from};
        MOEI_TRY(moe_lm_param(p->to, i, &to));
        if (!to.value)
            return moe_ctx_fail(p->to->ctx, MOE_ERR_STATE,
                                "moe_lm_init_from: moe_layer_quantize has given %s back (drop_weights)",
                                to.name);
        const int32_t at = find(p->from, to.name, next);
        if (at < 0) {
            if ((*missing)++ == 0) snprintf(text, size, "%s", to.name);
            continue;
        }
        next = at + 1;
        if (moe_lm_param(p->from, at, &from) != MOE_OK)
            return moe_ctx_fail(p->to->ctx, MOE_ERR_STATE, "%s: %s", p->directory, to.name);
        if (copies)
            moelm_param_copy(&to, &from);
        else
            MOEI_TRY(check_shape(p, &to, &from));
    }
    return MOE_OK;
}

/* What the checkpoint has and the model has not would be lost without a word. */
static moe_status check_all_used(const pair *p) {
    int32_t next = 0;
    for (int32_t i = 0; i < moe_lm_param_count(p->from); ++i) {
        const int32_t at = find(p->to, p->from->entries[i].name, next);
        if (at < 0)
            return moe_ctx_fail(p->to->ctx, MOE_ERR_INPUT, "%s: %s has no place in the model here",
                                p->directory, p->from->entries[i].name);
        next = at + 1;
    }
    return MOE_OK;
}

/* Adds settings of the layer that are another there to text[size], as many as there is room for. */
static void tell_other(const pair *p, char *text, size_t size) {
    size_t used = strlen(text);
    const char *between = used ? "; of another layer: " : "of another layer: ";
    for (size_t i = 0; i < moe_lm_config_count(p->to->config) && used < size; ++i) {
        moe_lm_config_entry here, there;
        moe_lm_config_entry_get(p->to->config, i, &here);
        moe_lm_config_entry_get(p->from->config, i, &there);
        const char *key = here.option->key;
        if (strncmp(key, "moe.", 4) != 0 || moelm_config_is_preset(p->to->config, key) ||
            strcmp(here.value, there.value) == 0)
            continue;
        used +=
            (size_t)snprintf(text + used, size - used, "%s%s %.40s there, %.40s here", between, key,
                             *there.value ? there.value : "nothing", *here.value ? here.value : "nothing");
        between = ", ";
    }
}

static moe_status take(const pair *p, char *told, size_t size) {
    char name[MOELM_NAME];
    int32_t missing;
    MOEI_TRY(check_model(p));
    MOEI_TRY(check_all_used(p));
    MOEI_TRY(walk(p, false, &missing, name, sizeof name));
    MOEI_TRY(walk(p, true, &missing, name, sizeof name));
    if (missing > 0)
        snprintf(told, size, "it lacks %d parameters, first %s, which stay as drawn", missing, name);
    tell_other(p, told, size);
    return MOE_OK;
}

moe_status moelm_init_from(moe_lm *lm, const char *directory, char *told, size_t size) {
    pair p = {.to = lm, .directory = directory};
    told[0] = '\0';
    const moe_lm_load_desc desc = {.size = sizeof desc, .dtype = lm->config->model.dtype};
    MOEI_TRY(moelm_checkpoint_open(lm->ctx, directory, &desc, &p.from));
    moe_status status = take(&p, told, size);
    moe_lm_destroy(p.from);
    return status;
}

moe_status moe_lm_init_from(moe_lm *lm, const char *directory) {
    char told[MOELM_TOLD];
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_init_from", "directory", directory));
    MOEI_TRY(moelm_init_from(lm, directory, told, sizeof told));
    if (told[0] != '\0') moei_log(lm->ctx, MOE_LOG_WARN, "%s: %s", directory, told);
    return MOE_OK;
}
