/* entropy.c: entropy and mutual information from counts, corrected for few draws.
 * joint[rows, cols] of counts -> bits.
 * Source: Miller, "Note on the bias of information estimates", 1955.
 */
#include "train/entropy.h"

#include <math.h>

/* Sums that an entropy is made of, gathered one outcome at a time. */
typedef struct tally {
    double n, n_log_n; /* sum of counts, sum of count * ln count */
    int64_t seen;
} tally;

static void add_outcome(tally *t, uint64_t count) {
    if (count == 0) return;
    double c = (double)count;
    t->n += c;
    t->n_log_n += c * log(c);
    t->seen++;
}

static double nats(const tally *t) {
    if (t->n == 0) return 0;
    return log(t->n) - t->n_log_n / t->n + (double)(t->seen - 1) / (2 * t->n);
}

double moelm_entropy_bits(const uint64_t *count, int64_t n) {
    tally t = {0};
    for (int64_t i = 0; i < n; ++i) add_outcome(&t, count[i]);
    return nats(&t) / log(2.0);
}

double moelm_mutual_bits(const uint64_t *joint, int64_t rows, int64_t cols) {
    tally row = {0}, col = {0}, both = {0};
    for (int64_t r = 0; r < rows; ++r) {
        uint64_t sum = 0;
        for (int64_t c = 0; c < cols; ++c) {
            add_outcome(&both, joint[r * cols + c]);
            sum += joint[r * cols + c];
        }
        add_outcome(&row, sum);
    }
    for (int64_t c = 0; c < cols; ++c) {
        uint64_t sum = 0;
        for (int64_t r = 0; r < rows; ++r) sum += joint[r * cols + c];
        add_outcome(&col, sum);
    }
    double mutual = nats(&row) + nats(&col) - nats(&both);
    return mutual > 0 ? mutual / log(2.0) : 0;
}
