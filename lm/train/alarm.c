/* alarm.c: counts the steps that a router's figures have been out of bounds.
 * load[layer, expert] of one step in, alarms that begin out.
 * Source: dead experts and collapsed routers as Shazeer et al. 2017 and Fedus et al. 2021 describe them.
 */
#include "train/alarm.h"

#include "core/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

moe_status moelm_alarms_create(const moelm_load *shape, moelm_alarms *alarms, moe_error *error) {
    size_t n = (size_t)shape->first[shape->n_layers], layers = (size_t)shape->n_layers;
    *alarms = (moelm_alarms){.n_layers = shape->n_layers, .n_experts = shape->first[shape->n_layers]};
    alarms->silent = calloc(n + 2 * layers, sizeof *alarms->silent);
    alarms->ringing = calloc(n + 2 * layers, sizeof *alarms->ringing);
    if (!alarms->silent || !alarms->ringing) {
        moelm_alarms_destroy(alarms);
        return moei_error_set(error, MOE_ERR_MEMORY, "no memory for the alarms of %zu experts", n);
    }
    alarms->even = alarms->silent + n;
    alarms->dropped = alarms->even + layers;
    return MOE_OK;
}

void moelm_alarms_destroy(moelm_alarms *alarms) {
    free(alarms->silent);
    free(alarms->ringing);
    *alarms = (moelm_alarms){0};
}

/* A condition that has held for the steps of `alarm` rings; one that does not hold starts again from 0. */
static void count(moelm_alarms *alarms, uint64_t *held, bool holds, bool again, moelm_alarm alarm) {
    *held = holds ? *held + 1 : 0;
    if (*held != (uint64_t)alarm.steps) return;
    alarms->ringing[alarms->n_ringing++] = alarm;
    if (again) *held = 0;
}

void moelm_alarms_count(moelm_alarms *alarms, const moelm_train_config *train, const moelm_load *load,
                        moe_lm *lm) {
    const bool again = strcmp(train->alarm_action, "warn") != 0;
    alarms->n_ringing = 0;
    for (int32_t l = 0; l < load->n_layers; ++l) {
        const int32_t n_experts = moelm_load_experts(load, l);
        if (n_experts == 0) continue;
        const moelm_balance balance = moelm_load_balance(load, l);
        const int64_t first = load->first[l];
        const int32_t idle = moe_layer_get_desc(moe_lm_layer(lm, l))->fake_skip_first;
        for (int32_t e = idle; train->alarm_dead_steps > 0 && e < n_experts; ++e) {
            const bool silent = load->kept[first + e] + load->dropped[first + e] == 0;
            count(alarms, &alarms->silent[first + e], silent, again,
                  (moelm_alarm){MOELM_ALARM_DEAD, l, e, -1, train->alarm_dead_steps, 0, 0});
        }
        if (train->alarm_entropy > 0)
            count(alarms, &alarms->even[l], balance.entropy < train->alarm_entropy, again,
                  (moelm_alarm){MOELM_ALARM_ENTROPY, l, -1, -1, train->alarm_steps, balance.entropy,
                                train->alarm_entropy});
        if (train->alarm_dropped > 0)
            count(alarms, &alarms->dropped[l], balance.dropped > train->alarm_dropped, again,
                  (moelm_alarm){MOELM_ALARM_DROPPED, l, -1, -1, train->alarm_steps, balance.dropped,
                                train->alarm_dropped});
    }
}

const char *moelm_alarm_name(moelm_alarm_kind kind) {
    static const char *const names[] = {"dead", "entropy", "dropped"};
    return names[kind];
}

void moelm_alarm_text(const moelm_alarm *a, char *text, size_t size) {
    char from[64] = "";
    if (a->from >= 0) snprintf(from, sizeof from, "; it begins again as expert %d, with noise", a->from);
    if (a->kind == MOELM_ALARM_DEAD)
        snprintf(text, size, "layer %d: expert %d had no row for %lld steps%s", a->layer, a->expert,
                 (long long)a->steps, from);
    else if (a->kind == MOELM_ALARM_ENTROPY)
        snprintf(text, size, "layer %d: the entropy of the load is %.3f of its maximum, below %.3f", a->layer,
                 a->value, a->bound);
    else
        snprintf(text, size, "layer %d: %.1f%% of the rows were dropped, more than %.1f%%", a->layer,
                 100 * a->value, 100 * a->bound);
}
