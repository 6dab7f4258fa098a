/* svg.h: pictures: line charts with axes, heat maps, bars. Colours are classes of the style sheet, so one
 * picture serves light and dark. Widths are those of one viewBox unit = one CSS pixel at the smallest
 * column, so that letters keep their size from a telephone to a wide screen.
 */
#ifndef MOELM_SVG_H
#define MOELM_SVG_H

#include "report/html.h"
#include "report/run.h"

enum { MOELM_MAX_TICKS = 12, MOELM_DEPTHS = 8, MOELM_HEAT_LEVELS = 9 };

typedef enum moelm_axis_flags {
    MOELM_AXIS_TIGHT = 1,  /* ends with the data, else with the next tick */
    MOELM_AXIS_WHOLE = 2,  /* ticks at whole numbers only */
    MOELM_AXIS_PERCENT = 4 /* shares, shown as percent */
} moelm_axis_flags;
typedef struct moelm_axis {
    double min, max;
    bool logarithmic, percent;
    int n_ticks;
    double tick[MOELM_MAX_TICKS]; /* round numbers inside [min, max] */
} moelm_axis;
moelm_axis moelm_axis_linear(double low, double high, unsigned flags);
moelm_axis moelm_axis_log(double low, double high);              /* 0 < low <= high */
double moelm_axis_place(const moelm_axis *axis, double value);   /* 0 at min, 1 at max */
moelm_report_text moelm_tick(const moelm_axis *axis, int index); /* its label */

/* A chart of curves over steps. */
typedef struct moelm_chart {
    const char *id;          /* unique on the page */
    const char *title;       /* heading, markup */
    const char *about;       /* one line below it, markup; "" for none */
    const char *description; /* for those who do not see it, markup */
    moelm_axis x, y;
} moelm_chart;
void moelm_chart_begin(moelm_html *html, const moelm_chart *chart);
void moelm_chart_band(moelm_html *html, const moelm_chart *chart, const double *x, const moelm_point *points,
                      int n_points); /* from low to high */
/* class_name: of the stroke. title: markup, shown on hovering. */
void moelm_chart_line(moelm_html *html, const moelm_chart *chart, const double *x, const moelm_point *points,
                      int n_points, const char *class_name, const char *title);
void moelm_chart_marks(moelm_html *html, const moelm_chart *chart, const double *x, const moelm_point *points,
                       int n_points, const char *what);
/* A dashed line at a value, with its name; nothing where the axis does not reach. */
void moelm_chart_rule(moelm_html *html, const moelm_chart *chart, double value, const char *name);
void moelm_chart_end(moelm_html *html);

/* Class number, 0..MOELM_DEPTHS-1, of the i-th of n ordered lines. */
int moelm_depth(int index, int n);

/* A heat map: rows from top to bottom, bins from left to right. */
typedef struct moelm_heat {
    const char *id, *title, *about, *description;
    const char *row_name; /* "expert" */
    int n_rows, n_bins;
    int64_t row_stride, bin_stride; /* of value */
    const double *value;            /* share of the mean; negative: nothing there */
    const double *row_mean;         /* [n_rows] printed at the right end where there is room */
    const uint64_t *step;           /* [n_bins] last of the bin */
} moelm_heat;
void moelm_heat_draw(moelm_html *html, const moelm_heat *heat);
void moelm_heat_legend(moelm_html *html);

/* Bars from zero, the first one in the accent colour. */
typedef struct moelm_bar {
    const char *name;
    double value;
} moelm_bar;
void moelm_bars_draw(moelm_html *html, const char *id, const char *title, const char *description,
                     const moelm_bar *bars, int n_bars);

#endif
