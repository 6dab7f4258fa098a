/* begin.c: the parameters that a run begins with: those drawn, or those of the checkpoint in train.from.
 * The model must be the checkpoint's. How experts are chosen and trained may be changed, and is told.
 * Source: docs/run-directory.md.
 */
#include "core/ctx.h"
#include "model/checkpoint.h"
#include "train/trainer.h"

#include <stdio.h>
#include <string.h>

/* Of model.*: what does not change what a parameter means. */
static bool may_differ(const char *key) {
    static const char *const keys[] = {"model.dtype", "model.context", "model.init_std"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i)
        if (strcmp(key, keys[i]) == 0) return true;
    return false;
}

/* Writes what of moe.* is another here than there to text[size], as much of it as there is room for. */
static moe_status compare(const moelm_trainer *t, const moe_lm_config *theirs, char *text, size_t size,
                          moe_error *error) {
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < moe_lm_config_count(theirs); ++i) {
        moe_lm_config_entry there, here;
        moe_lm_config_entry_get(theirs, i, &there);
        moe_lm_config_entry_get(t->config, i, &here);
        const char *key = here.option->key;
        if (strcmp(here.value, there.value) == 0 || moelm_config_is_preset(theirs, key)) continue;
        if (strncmp(key, "model.", 6) == 0 && !may_differ(key))
            return moei_error_set(
                error, MOE_ERR_ARGUMENT,
                "train.from: %s has %s %.100s, but it is %.100s here (%.100s); leave it as it "
                "is there, or begin without train.from",
                t->config->train.from, key, there.value, here.value, here.origin);
        if (strncmp(key, "moe.", 4) == 0 && used < size)
            used += (size_t)snprintf(text + used, size - used, "%s%s %.40s, not %.40s", used ? "; " : "", key,
                                     here.value, there.value);
    }
    return MOE_OK;
}

static moe_status read_from(moelm_trainer *t, const moe_lm_config *theirs) {
    char other[600];
    MOEI_TRY(compare(t, theirs, other, sizeof other, &t->error));
    MOEI_TRY(moelm_trainer_ctx(t, moelm_checkpoint_read(t->lm, t->config->train.from)));
    moelm_optimizer_take_masters(&t->optimizer);
    if (other[0] != '\0')
        moei_log(t->ctx, MOE_LOG_WARN, "train.from: here is another layer than in %.200s: %s",
                 t->config->train.from, other);
    return MOE_OK;
}

moe_status moelm_trainer_begin(moelm_trainer *t) {
    const char *from = t->config->train.from;
    moe_lm_config *theirs;
    if (*from == '\0') return MOE_OK;
    MOEI_TRY(moe_lm_config_create(&theirs, &t->error));
    moe_status status = moe_lm_config_load_checkpoint(theirs, from, &t->error);
    if (status == MOE_OK) status = read_from(t, theirs);
    moe_lm_config_destroy(theirs);
    t->from_checkpoint = status == MOE_OK;
    return status;
}
