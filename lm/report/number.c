/* number.c: numbers as people read them, the same in every locale, never broken from their units.
 * Values in, at most 47 bytes out; what is not finite becomes a dash.
 * Source: digits by integer arithmetic, because printf's decimal point is the locale's.
 */
#include "report/html.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static moelm_report_text dash(void) {
    return (moelm_report_text){.s = "\xe2\x80\x93"};
}

static double power10(int exponent) {
    double power = 1;
    for (int i = 0; i < exponent; ++i) power *= 10;
    return power;
}

moelm_report_text moelm_fixed(double value, int decimals) {
    moelm_report_text text = {{0}};
    double scale = power10(decimals), magnitude = fabs(value) * scale;
    if (!(magnitude < 9e17)) return dash();
    long long units = llround(magnitude), one = (long long)scale;
    const char *sign = value < 0 && units > 0 ? "\xe2\x88\x92" : ""; /* the minus that is as wide as a plus */
    if (decimals == 0) {
        snprintf(text.s, sizeof text.s, "%s%lld", sign, units);
    } else {
        snprintf(text.s, sizeof text.s, "%s%lld.%0*lld", sign, units / one, decimals, units % one);
    }
    return text;
}

moelm_report_text moelm_coord(double value) {
    moelm_report_text text = {{0}};
    long long tenths = isfinite(value) ? llround(value * 10) : 0, magnitude = tenths < 0 ? -tenths : tenths;
    const char *sign = tenths < 0 ? "-" : "";
    if (magnitude % 10 == 0) {
        snprintf(text.s, sizeof text.s, "%s%lld", sign, magnitude / 10);
    } else {
        snprintf(text.s, sizeof text.s, "%s%lld.%lld", sign, magnitude / 10, magnitude % 10);
    }
    return text;
}

moelm_report_text moelm_count(int64_t value) {
    moelm_report_text text = {{0}};
    char plain[24];
    int length = snprintf(plain, sizeof plain, "%lld", (long long)value), out = 0;
    for (int i = 0; i < length; ++i) {
        int left = length - i;
        if (i > 0 && left % 3 == 0 && plain[i - 1] != '-') text.s[out++] = ',';
        text.s[out++] = plain[i];
    }
    return text;
}

moelm_report_text moelm_digits(double value, int digits) {
    if (!isfinite(value)) return dash();
    if (value == 0) return (moelm_report_text){.s = "0"};
    int exponent = (int)floor(log10(fabs(value)) + 1e-12);
    /* 0.9996 with three digits is 1.00 */
    if (fabs(value) + 0.5 * pow(10, exponent + 1 - digits) >= pow(10, exponent + 1)) ++exponent;
    if (exponent >= 4) return fabs(value) < 9e17 ? moelm_count(llround(value)) : dash();
    int decimals = digits - 1 - exponent;
    if (exponent >= -3) return moelm_fixed(value, decimals < 0 ? 0 : decimals);
    /* Two steps, because 10^-300 has no double of its own on the way. */
    double mantissa = value * power10(-exponent / 2) * power10(-exponent - -exponent / 2);
    moelm_report_text text = moelm_fixed(mantissa, digits - 1);
    size_t length = strlen(text.s);
    snprintf(text.s + length, sizeof text.s - length, "e\xe2\x88\x92%d", -exponent);
    return text;
}

moelm_report_text moelm_short(double value) {
    static const struct {
        double unit;
        const char *name;
    } scale[] = {
        {1e12, "\xc2\xa0T"},
        {1e9,  "\xc2\xa0G"},
        {1e6,  "\xc2\xa0M"},
        {1e3,  "\xc2\xa0k"}
    };
    if (!isfinite(value)) return dash();
    for (size_t i = 0; i < sizeof scale / sizeof *scale; ++i) {
        if (fabs(value) < scale[i].unit * 0.9995) continue;
        moelm_report_text text = moelm_digits(value / scale[i].unit, 3);
        strncat(text.s, scale[i].name, sizeof text.s - strlen(text.s) - 1);
        return text;
    }
    return value == floor(value) ? moelm_fixed(value, 0) : moelm_digits(value, 3);
}

moelm_report_text moelm_percent(double share, int decimals) {
    moelm_report_text text = moelm_fixed(share * 100, decimals);
    if (isfinite(share)) strncat(text.s, "\xc2\xa0%", sizeof text.s - strlen(text.s) - 1);
    return text;
}

moelm_report_text moelm_duration(double seconds) {
    moelm_report_text text = {{0}};
    if (!(seconds >= 0 && seconds < 1e15)) return dash();
    if (seconds < 10) {
        text = moelm_fixed(seconds, 1);
        strncat(text.s, "\xc2\xa0s", sizeof text.s - strlen(text.s) - 1);
        return text;
    }
    long long whole = llround(seconds);
    if (whole < 60) {
        snprintf(text.s, sizeof text.s, "%lld\xc2\xa0s", whole);
    } else if (whole < 3600) {
        snprintf(text.s, sizeof text.s, "%lld\xc2\xa0min %lld\xc2\xa0s", whole / 60, whole % 60);
    } else {
        snprintf(text.s, sizeof text.s, "%lld\xc2\xa0h %lld\xc2\xa0min", whole / 3600, whole % 3600 / 60);
    }
    return text;
}
