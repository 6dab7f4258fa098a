/* order.c: the n-th largest of an array without sorting it.
 * v[n], rank -> v[rank] of the order, largest first.
 * Source: quickselect (Hoare 1961), with the middle as the pivot.
 */
#include "core/order.h"

double moei_nth_largest(double *v, int64_t n, int64_t rank) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        const double pivot = v[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (v[i] > pivot) ++i;
            while (v[j] < pivot) --j;
            if (i > j) break;
            const double swap = v[i];
            v[i++] = v[j];
            v[j--] = swap;
        }
        if (rank <= j)
            high = j;
        else if (rank >= i)
            low = i;
        else
            break;
    }
    return v[rank];
}
