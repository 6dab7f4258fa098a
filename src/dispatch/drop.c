/* drop.c: which slots of a full expert stay.
 * n slots of one expert and one group of tokens -> at most C of them.
 * Source: Megatron core (probs, position); GShard, Lepikhin et al. 2020, algorithm 1 (rank_major). Ties:
 * lower token.
 */
#include "core/order.h"
#include "core/real.h"
#include "dispatch/dispatch.h"

#include <math.h>

static double weight_of(const moei_routing *routing, int32_t slot) {
    return moei_real_load(routing->dtype, routing->weight, slot);
}

/* Those stay that weigh more than the last one with a place, and of its equals the first. */
static void drop_lightest(const moei_routing *routing, int64_t capacity, const int32_t *slots, int64_t n,
                          double *room, int32_t *row_of) {
    double least = INFINITY;
    int64_t equals = capacity;
    for (int64_t i = 0; i < n; ++i) room[i] = weight_of(routing, slots[i]);
    if (capacity > 0) least = moei_nth_largest(room, n, capacity - 1);
    for (int64_t i = 0; i < n; ++i) equals -= weight_of(routing, slots[i]) > least;
    for (int64_t i = 0; i < n; ++i) {
        const double weight = weight_of(routing, slots[i]);
        if (weight < least || (weight == least && --equals < 0)) row_of[slots[i]] = -1;
    }
}

/* The other policies keep the front of the list: it stands in their order. */
void moei_drop_slots(const moei_routing *routing, int64_t capacity, moei_drop drop, const int32_t *slots,
                     int64_t n, double *room, int32_t *row_of) {
    if (n <= capacity) return;
    if (drop == MOEI_DROP_PROBS)
        drop_lightest(routing, capacity, slots, n, room, row_of);
    else
        for (int64_t i = capacity; i < n; ++i) row_of[slots[i]] = -1;
}
