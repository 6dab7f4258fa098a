/* load.h: rows per layer and expert, summed over forwards, and what they say about balance.
 * Layer l owns first[l] .. first[l + 1] of kept[] and dropped[]; a dense layer owns none.
 */
#ifndef MOELM_LOAD_H
#define MOELM_LOAD_H

#include <moekit/lm.h>

typedef struct moelm_load {
    int32_t n_layers;
    int64_t *first;           /* [n_layers + 1] */
    uint64_t *kept, *dropped; /* [first[n_layers]] */
} moelm_load;

/* Zeroed counts for the layers of a model. */
moe_status moelm_load_create(moe_lm *lm, moelm_load *load, moe_error *error);
void moelm_load_destroy(moelm_load *load);
void moelm_load_clear(moelm_load *load);

/* Adds what the layers routed in the model's last forward. */
moe_status moelm_load_add_forward(moelm_load *load, moe_lm *lm, moe_error *error);
void moelm_load_add(moelm_load *load, const moelm_load *other);

static inline int32_t moelm_load_experts(const moelm_load *load, int32_t layer) {
    return (int32_t)(load->first[layer + 1] - load->first[layer]);
}

/* Balance of one layer's experts over kept and dropped rows; the meaning is that of moe_stats. */
typedef struct moelm_balance {
    double cv, max, entropy, dropped; /* dropped: share of the routed rows */
    int32_t n_dead;
} moelm_balance;
moelm_balance moelm_load_balance(const moelm_load *load, int32_t layer);

#endif
