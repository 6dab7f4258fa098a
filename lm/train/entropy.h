/* entropy.h: entropy and mutual information, in bits, estimated from counts.
 * The plain estimate of an entropy from N draws over m seen outcomes is too small by about (m - 1) / 2N nats
 * (Miller 1955, Madow 1948); of a mutual information, too large by the sum of such terms.
 */
#ifndef MOELM_ENTROPY_H
#define MOELM_ENTROPY_H

#include <stdint.h>

/* Of the distribution that count[n] was drawn from; 0 for no draws. */
double moelm_entropy_bits(const uint64_t *count, int64_t n);
/* Of row and column of joint[rows, cols]; never below 0. */
double moelm_mutual_bits(const uint64_t *joint, int64_t rows, int64_t cols);

#endif
