/* svg.h: pictures: line charts with axes, heat maps, bars. Colours are classes of the style sheet, so one
 * picture serves light and dark. Widths are those of one viewBox unit = one CSS pixel at the smallest
 * column, so that letters keep their size from a telephone to a wide screen.
 */
#ifndef MOEI_SVG_H
#define MOEI_SVG_H

#include "report/html.h"
#include "report/run.h"

enum { MOEI_MAX_TICKS = 12, MOEI_DEPTHS = 8, MOEI_HEAT_LEVELS = 9 };

typedef enum moei_axis_flags {
    MOEI_AXIS_TIGHT = 1,  /* ends with the data, else with the next tick */
    MOEI_AXIS_WHOLE = 2,  /* ticks at whole numbers only */
    MOEI_AXIS_PERCENT = 4 /* shares, shown as percent */
} moei_axis_flags;
typedef struct moei_axis {
    double min, max;
    bool logarithmic, percent;
    int n_ticks;
    double tick[MOEI_MAX_TICKS]; /* round numbers inside [min, max] */
} moei_axis;
moei_axis moei_axis_linear(double low, double high, unsigned flags);
moei_axis moei_axis_log(double low, double high);            /* 0 < low <= high */
double moei_axis_place(const moei_axis *axis, double value); /* 0 at min, 1 at max */
moei_text moei_tick(const moei_axis *axis, int index);       /* its label */

/* A chart of curves over steps. */
typedef struct moei_chart {
    const char *id;          /* unique on the page */
    const char *title;       /* heading, markup */
    const char *about;       /* one line below it, markup; "" for none */
    const char *description; /* for those who do not see it, markup */
    moei_axis x, y;
} moei_chart;
void moei_chart_begin(moei_html *html, const moei_chart *chart);
void moei_chart_band(moei_html *html, const moei_chart *chart, const double *x, const moei_point *points,
                     int n_points); /* from low to high */
/* class_name: of the stroke. title: markup, shown on hovering. */
void moei_chart_line(moei_html *html, const moei_chart *chart, const double *x, const moei_point *points,
                     int n_points, const char *class_name, const char *title);
void moei_chart_marks(moei_html *html, const moei_chart *chart, const double *x, const moei_point *points,
                      int n_points, const char *what);
/* A dashed line at a value, with its name; nothing where the axis does not reach. */
void moei_chart_rule(moei_html *html, const moei_chart *chart, double value, const char *name);
void moei_chart_end(moei_html *html);

/* Class number, 0..MOEI_DEPTHS-1, of the i-th of n ordered lines. */
int moei_depth(int index, int n);

/* A heat map: rows from top to bottom, bins from left to right. */
typedef struct moei_heat {
    const char *id, *title, *about, *description;
    const char *row_name; /* "expert" */
    int n_rows, n_bins;
    int64_t row_stride, bin_stride; /* of value */
    const double *value;            /* share of the mean; negative: nothing there */
    const double *row_mean;         /* [n_rows] printed at the right end where there is room */
    const uint64_t *step;           /* [n_bins] last of the bin */
} moei_heat;
void moei_heat_draw(moei_html *html, const moei_heat *heat);
void moei_heat_legend(moei_html *html);

/* Bars from zero, the first one in the accent colour. */
typedef struct moei_bar {
    const char *name;
    double value;
} moei_bar;
void moei_bars_draw(moei_html *html, const char *id, const char *title, const char *description,
                    const moei_bar *bars, int n_bars);

#endif
