/* cv_squared.c: the squared coefficient of variation, and its gradient.
 * v[n] -> population variance / (mean^2 + 1e-10).
 * Source: Shazeer et al. 2017, equations 7 and 11; the guard is tensor2tensor's.
 */
#include "loss/loss.h"

static const double guard = 1e-10;

static double mean_of(const double *v, int32_t n) {
    double sum = 0;
    for (int32_t i = 0; i < n; ++i) sum += v[i];
    return sum / n;
}

static double variance_of(const double *v, int32_t n, double mean) {
    double sum = 0;
    for (int32_t i = 0; i < n; ++i) sum += (v[i] - mean) * (v[i] - mean);
    return sum / n;
}

double moei_cv_squared(const double *v, int32_t n) {
    const double mean = mean_of(v, n);
    return variance_of(v, n, mean) / (mean * mean + guard);
}

void moei_cv_squared_gradient(const double *v, int32_t n, double scale, double *grad) {
    const double mean = mean_of(v, n), variance = variance_of(v, n, mean), below = mean * mean + guard;
    for (int32_t i = 0; i < n; ++i)
        grad[i] += scale * (2 * (v[i] - mean) / (n * below) - 2 * mean * variance / (n * below * below));
}
