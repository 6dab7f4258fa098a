/* trainer_alarm.c: what a run does about its alarms: tells them and, asked to, revives dead experts.
 * Source: docs/run-directory.md, section alarms.
 */
#include "train/revive.h"
#include "train/trainer.h"

#include "core/status.h"

#include <stdio.h>
#include <string.h>

/* The expert with most rows in this step, the lower of equals. */
static int32_t busiest(const moelm_load *load, int32_t layer) {
    const uint64_t *kept = load->kept + load->first[layer], *dropped = load->dropped + load->first[layer];
    int32_t best = 0;
    for (int32_t e = 1; e < moelm_load_experts(load, layer); ++e)
        if (kept[e] + dropped[e] > kept[best] + dropped[best]) best = e;
    return best;
}

static void revive(moelm_trainer *t, moelm_alarm *alarm) {
    alarm->from = busiest(&t->load, alarm->layer);
    const moelm_revival revival = {.layer = alarm->layer,
                                   .n_experts = moelm_load_experts(&t->load, alarm->layer),
                                   .dead = alarm->expert,
                                   .from = alarm->from,
                                   .seed = (uint64_t)t->config->train.seed,
                                   .step = t->state.step};
    moelm_revive(&t->optimizer, &revival);
}

moe_status moelm_trainer_alarms(moelm_trainer *t) {
    const moelm_train_config *train = &t->config->train;
    moelm_alarms *alarms = &t->state.alarms;
    moelm_alarms_count(alarms, train, &t->load, t->lm);
    for (int32_t i = 0; i < alarms->n_ringing; ++i) {
        moelm_alarm *alarm = &alarms->ringing[i];
        char text[200], event[220];
        if (alarm->kind == MOELM_ALARM_DEAD && strcmp(train->alarm_action, "revive") == 0) revive(t, alarm);
        moelm_alarm_text(alarm, text, sizeof text);
        snprintf(event, sizeof event, "alarm: %s", text);
        MOEI_TRY(moelm_trainer_event(t, event));
    }
    return MOE_OK;
}
