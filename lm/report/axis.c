/* axis.c: where the ticks of an axis lie: at 1, 2 or 5 times a power of ten.
 * Lowest and highest value in, limits and at most MOELM_MAX_TICKS ticks out.
 * Source: Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990.
 */
#include "report/svg.h"

#include <math.h>
#include <string.h>

enum { WANTED = 4 }; /* steps between ticks, about */
static const double NEAR = 1.15;

/* The round step nearest to `rough`. */
static double round_step(double rough) {
    double power = pow(10, floor(log10(rough))), part = rough / power;
    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

moelm_axis moelm_axis_linear(double low, double high, unsigned flags) {
    if (!(isfinite(low) && isfinite(high))) low = 0, high = 1;
    if (high - low <= 1e-9 * fabs(high)) { /* one value: give it a neighbourhood that starts at zero */
        low = low < 0 ? 2 * low : 0;
        high = high > 0 ? 2 * high : high < 0 ? 0 : 1;
    }
    double step = round_step((high - low) / WANTED);
    if (flags & MOELM_AXIS_WHOLE) step = fmax(step, 1);
    moelm_axis axis = {.min = low, .max = high, .percent = flags & MOELM_AXIS_PERCENT};
    if (!(flags & MOELM_AXIS_TIGHT)) {
        axis.min = step * floor(low / step + 1e-9);
        axis.max = step * ceil(high / step - 1e-9);
    }
    double first = ceil(axis.min / step - 1e-9);
    for (; axis.n_ticks < MOELM_MAX_TICKS; ++axis.n_ticks) {
        double tick = step * (first + axis.n_ticks);
        if (tick > axis.max + 1e-9 * step) break;
        axis.tick[axis.n_ticks] = tick;
    }
    return axis;
}

static const double round_number[] = {1, 1.5, 2, 3, 4, 5, 6, 8};

/* A curve that ends a little beyond the last number would end where none stands: the axis goes as far. */
static void reach_ticks(moelm_axis *axis, unsigned wanted) {
    const double low = axis->min, high = axis->max;
    const int first = (int)floor(log10(low)), last = (int)floor(log10(high)) + 1;
    for (int power = first; power <= last; ++power) {
        for (int i = 0; i < 8; ++i) {
            const double tick = round_number[i] * pow(10, power);
            if (!(wanted >> i & 1u)) continue;
            if (tick < low && low < NEAR * tick) axis->min = tick / 1.001;
            if (tick > high && tick < NEAR * high) axis->max = tick * 1.001;
        }
    }
}

moelm_axis moelm_axis_log(double low, double high) {
    moelm_axis axis = {.min = low / 1.03, .max = high * 1.03, .logarithmic = true};
    double decades = log10(axis.max / axis.min);
    /* Few decades need more ticks in each: all mantissas, 1-2-5, or powers of ten alone. */
    unsigned wanted = decades < 1.1 ? 0xff : decades < 3 ? 0x25 : 0x01;
    int stride = decades > 10 ? (int)ceil(decades / 10) : 1;
    if (decades < 3) reach_ticks(&axis, wanted);
    int first = (int)floor(log10(axis.min));
    for (int power = first; power <= first + 700 && axis.n_ticks < MOELM_MAX_TICKS; power += stride) {
        for (int i = 0; i < 8 && axis.n_ticks < MOELM_MAX_TICKS; ++i) {
            double tick = round_number[i] * pow(10, power);
            if (!(wanted >> i & 1u) || tick < axis.min) continue;
            if (tick > axis.max) return axis;
            axis.tick[axis.n_ticks++] = tick;
        }
    }
    return axis;
}

double moelm_axis_place(const moelm_axis *axis, double value) {
    if (!axis->logarithmic) return (value - axis->min) / (axis->max - axis->min);
    return log(value / axis->min) / log(axis->max / axis->min);
}

/* Ticks of one axis share their decimals, so that 0, 0.5, 1 reads 0.0, 0.5, 1.0. */
static moelm_report_text linear_tick(const moelm_axis *axis, double tick, double scale) {
    double step = scale * (axis->n_ticks > 1 ? axis->tick[1] - axis->tick[0] : axis->max - axis->min);
    double largest = scale * fmax(fabs(axis->min), fabs(axis->max));
    if (largest >= 10000) return moelm_short(tick * scale);
    if (largest < 1e-3) return tick == 0 ? moelm_fixed(0, 0) : moelm_digits(tick * scale, 2);
    int decimals = (int)ceil(-log10(step) - 1e-9);
    return moelm_fixed(tick * scale, decimals > 0 ? decimals : 0);
}

moelm_report_text moelm_tick(const moelm_axis *axis, int index) {
    double tick = axis->tick[index];
    if (!axis->logarithmic) {
        moelm_report_text text = linear_tick(axis, tick, axis->percent ? 100 : 1);
        if (axis->percent) strncat(text.s, "\xc2\xa0%", sizeof text.s - strlen(text.s) - 1);
        return text;
    }
    double mantissa = tick / pow(10, floor(log10(tick) + 1e-9));
    return moelm_digits(tick, fabs(mantissa - 1.5) < 1e-6 ? 2 : 1);
}
