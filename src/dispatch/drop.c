/* drop.c: which slots of a full expert stay.
 * n slots of one expert and one group of tokens -> at most C of them.
 * Source: Megatron core (probs, position); GShard, Lepikhin et al. 2020, algorithm 1 (rank_major). Ties:
 * lower token.
 */
#include "core/real.h"
#include "dispatch/dispatch.h"

/* Order in which slots are kept: larger weight first, then the earlier slot. Total, so any selection
 * algorithm gives the same set. */
static bool keeps_before(const moei_routing *routing, int32_t a, int32_t b) {
    double weight_a = moei_real_load(routing->dtype, routing->weight, a);
    double weight_b = moei_real_load(routing->dtype, routing->weight, b);
    return weight_a != weight_b ? weight_a > weight_b : a < b;
}

static void swap_slots(int32_t *a, int32_t *b) {
    int32_t slot = *a;
    *a = *b;
    *b = slot;
}

/* Quickselect (Hoare 1961): moves the `keep` slots that come first in the order to the front. */
static void select_front(const moei_routing *routing, int32_t *slots, int64_t n, int64_t keep) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        int32_t pivot = slots[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (keeps_before(routing, slots[i], pivot)) ++i;
            while (keeps_before(routing, pivot, slots[j])) --j;
            if (i <= j) swap_slots(&slots[i++], &slots[j--]);
        }
        if (keep <= j + 1)
            high = j;
        else if (keep >= i)
            low = i;
        else
            return;
    }
}

/* The other policies keep the front of the list: it stands in their order. */
void moei_drop_slots(const moei_routing *routing, int64_t capacity, moei_drop drop, int32_t *slots, int64_t n,
                     int32_t *row_of) {
    if (n <= capacity) return;
    if (drop == MOEI_DROP_PROBS) select_front(routing, slots, n, capacity);
    for (int64_t i = capacity; i < n; ++i) row_of[slots[i]] = -1;
}
