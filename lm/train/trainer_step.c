/* trainer_step.c: one optimizer step: windows, losses and gradients of every forward, clipping, update.
 * tokens, targets: [batch_size, length]; window `a * batch_size + b` of the step is row b of forward a.
 * Source: gradient clipping by global norm, Pascanu, Mikolov and Bengio 2013.
 */
#include "train/trainer.h"

#include "core/status.h"
#include "model/model.h"
#include "train/schedule.h"

#include <math.h>
#include <stdio.h>

static void fill_batch(moelm_trainer *t, int64_t step, int64_t forward) {
    int64_t batch = t->config->train.batch_size;
    for (int64_t b = 0; b < batch; ++b)
        moelm_text_window(&t->train, (uint64_t)t->config->train.seed, (uint64_t)step,
                          (uint64_t)(forward * batch + b), t->length, t->tokens + b * t->length,
                          t->targets + b * t->length);
}

static moe_status add_router_stats(moelm_trainer *t, double share) {
    for (int32_t l = 0; l < t->load.n_layers; ++l) {
        moe_stats stats = {.size = sizeof stats};
        MOEI_TRY(moelm_trainer_ctx(t, moe_lm_layer_stats(t->lm, l, &stats)));
        moelm_router_stats_add(&t->router[l], &stats, share);
    }
    return moelm_load_add_forward(&t->load, t->lm, &t->error);
}

/* One forward of the step with its gradients, of which the first begins new sums. */
static moe_status forward(moelm_trainer *t, int64_t step, int64_t number, double *loss) {
    const moelm_train_config *train = &t->config->train;
    moelm_pass pass = {
        .tokens = t->tokens,
        .n_seq = train->batch_size,
        .length = t->length,
        .call = {.size = sizeof pass.call,
                 .mode = MOE_TRAIN,
                 /* jitter is keyed by the forward, so that no two of a step share it */
                 .step = (uint64_t)(step * train->grad_accum + number),
                 .loss_scale = (float)(1.0 / (double)train->grad_accum),
                 .overwrite_grad = number == 0}
    };
    fill_batch(t, step, number);
    const moe_status status = moelm_loss(t->lm, &pass, t->targets, loss);
    if (status == MOE_OK) return MOE_OK;
    return moei_error_set(&t->error, status, "step %lld: %s", (long long)step, moe_ctx_error(t->ctx));
}

static moe_status forwards(moelm_trainer *t, int64_t step, double *loss) {
    const moelm_train_config *train = &t->config->train;
    double share = 1.0 / (double)train->grad_accum;
    *loss = 0;
    moelm_load_clear(&t->load);
    for (int32_t l = 0; l < t->load.n_layers; ++l)
        moelm_router_stats_clear(&t->router[l], moe_layer_get_desc(moe_lm_layer(t->lm, l)));
    for (int64_t a = 0; a < train->grad_accum; ++a) {
        double part;
        if (a > 0 && t->options->should_stop && t->options->should_stop(t->options->user))
            return MOE_ERR_INTERRUPTED;
        MOEI_TRY(forward(t, step, a, &part));
        *loss += share * part;
        MOEI_TRY(add_router_stats(t, share));
    }
    return MOE_OK;
}

static moe_status check_finite(moelm_trainer *t, int64_t step, const char *what, double value) {
    if (isfinite(value)) return MOE_OK;
    char kept[64] = "there is no checkpoint before it";
    const char *name = isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    if (t->saved_step > 0)
        snprintf(kept, sizeof kept, "the checkpoint of step %lld is good", (long long)t->saved_step);
    return moei_error_set(&t->error, MOE_ERR_NUMERIC,
                          "step %lld: the %s is %s; step %lld was not applied and %s. Lower train.lr, "
                          "lengthen train.warmup_steps or %s train.clip",
                          (long long)step, what, name, (long long)step, kept,
                          t->config->train.clip > 0 ? "lower" : "set");
}

static void summarise(moelm_trainer *t, double loss, double norm, double lr) {
    moe_lm_progress *p = &t->progress;
    double n_routed = 0, dropped = 0;
    p->loss = loss;
    p->grad_norm = norm;
    p->lr = lr;
    p->aux_loss = p->z_loss = p->load_cv = p->load_max = p->load_entropy = p->dropped = 0;
    p->n_dead = 0;
    for (int32_t l = 0; l < t->load.n_layers; ++l) {
        if (moelm_load_experts(&t->load, l) == 0) continue;
        moelm_balance balance = moelm_load_balance(&t->load, l);
        n_routed += 1;
        p->aux_loss += t->router[l].aux_loss;
        p->z_loss += t->router[l].z_loss;
        p->load_cv += balance.cv;
        p->load_entropy += balance.entropy;
        if (balance.max > p->load_max) p->load_max = balance.max;
        dropped += balance.dropped;
        p->n_dead += balance.n_dead;
    }
    if (n_routed == 0) return;
    p->aux_loss /= n_routed;
    p->z_loss /= n_routed;
    p->load_cv /= n_routed;
    p->load_entropy /= n_routed;
    p->dropped = dropped / n_routed;
}

/* Selection biases move by what the step's forwards counted. */
static moe_status end_layers(moelm_trainer *t) {
    for (int32_t l = 0; l < t->load.n_layers; ++l)
        MOEI_TRY(moelm_trainer_ctx(t, moe_layer_end_step(moe_lm_layer(t->lm, l), NULL)));
    return MOE_OK;
}

moe_status moelm_trainer_step(moelm_trainer *t, int64_t step) {
    const moelm_train_config *train = &t->config->train;
    double loss, norm, lr = moelm_schedule_lr(train, step, moelm_trainer_elapsed(t));
    MOEI_TRY(forwards(t, step, &loss));
    MOEI_TRY(check_finite(t, step, "loss", loss));
    MOEI_TRY(moelm_trainer_ctx(t, moelm_optimizer_norm(&t->optimizer, &norm)));
    MOEI_TRY(check_finite(t, step, "gradient's norm", norm));
    double scale = train->clip > 0 && norm > train->clip ? train->clip / norm : 1;
    MOEI_TRY(moelm_trainer_ctx(t, moelm_optimizer_step(&t->optimizer, train, step, lr, scale)));
    MOEI_TRY(end_layers(t));
    summarise(t, loss, norm, lr);
    return MOE_OK;
}
