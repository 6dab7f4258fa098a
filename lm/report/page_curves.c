/* page_curves.c: section "Training": the losses and what else is one number a step, as small multiples.
 * Each curve is the mean of its bucket of steps, the band behind it reaches from the lowest to the highest.
 */
#include "report/page.h"
#include "report/svg.h"

#include <math.h>
#include <stdio.h>

/* What decides where an axis starts: small changes around a value, or the size of the value. */
typedef enum axis_kind { FROM_ZERO, AROUND, LOG_IF_WIDE } axis_kind;

static const struct {
    moei_run_series series;
    const char *id, *title, *about;
    axis_kind kind;
} chart_row[] = {
    {MOEI_LOSS,      "c-loss",  "Cross-entropy",       "bits per byte; circles: held-out text",         LOG_IF_WIDE},
    {MOEI_AUX,       "c-aux",   "Load-balancing loss", "1 is perfect balance; without its coefficient", AROUND     },
    {MOEI_Z,         "c-z",     "Router z-loss",       "without its coefficient",                       LOG_IF_WIDE},
    {MOEI_GRAD_NORM, "c-grad",  "Gradient norm",       "of all parameters, before clipping",            LOG_IF_WIDE},
    {MOEI_LR,        "c-lr",    "Learning rate",       "warm-up, then cosine",                          FROM_ZERO  },
    {MOEI_SPEED,     "c-speed", "Speed",               "tokens per second",                             FROM_ZERO  },
};

typedef struct extent {
    double low, high;
    int64_t n;
} extent;

static void widen(extent *range, const moei_point *points, int32_t n_points) {
    for (int32_t i = 0; i < n_points; ++i) {
        if (points[i].n == 0) continue;
        range->low = fmin(range->low, points[i].low);
        range->high = fmax(range->high, points[i].high);
        range->n += 1;
    }
}

static const moei_point *end_point(const moei_point *points, int32_t n_points, int32_t direction) {
    int32_t i = direction > 0 ? 0 : n_points - 1;
    while (points[i].n == 0) i += direction;
    return &points[i];
}

static moei_axis fit_axis(extent range, axis_kind kind) {
    bool wide = range.low > 0 && range.high > 2.5 * range.low;
    if (kind == LOG_IF_WIDE && wide) return moei_axis_log(range.low, range.high);
    return moei_axis_linear(kind == AROUND ? range.low : fmin(range.low, 0), range.high, 0);
}

static void draw_chart(moei_html *html, const moei_run *run, size_t row) {
    const moei_metrics *metrics = &run->metrics;
    const moei_point *points = metrics->run[chart_row[row].series];
    const moei_point *held_out = metrics->run[MOEI_HELD_OUT];
    bool is_loss = chart_row[row].series == MOEI_LOSS;
    extent range = {.low = INFINITY, .high = -INFINITY};
    widen(&range, points, metrics->n_points);
    if (range.n == 0) return;
    char description[400];
    snprintf(description, sizeof description, "From %s at step %s to %s at step %s; lowest %s, highest %s.",
             moei_digits(end_point(points, metrics->n_points, 1)->mean, 3).s,
             moei_count((int64_t)metrics->step[0]).s,
             moei_digits(end_point(points, metrics->n_points, -1)->mean, 3).s,
             moei_count(metrics->last_step).s, moei_digits(range.low, 3).s, moei_digits(range.high, 3).s);
    if (is_loss) widen(&range, held_out, metrics->n_points);
    moei_chart chart = {
        .id = chart_row[row].id,
        .title = chart_row[row].title,
        .about = chart_row[row].about,
        .description = description,
        .x = moei_axis_linear(0, (double)metrics->last_step, MOEI_AXIS_TIGHT | MOEI_AXIS_WHOLE),
        .y = fit_axis(range, chart_row[row].kind)};
    moei_chart_begin(html, &chart);
    if (metrics->n_lines > metrics->n_points)
        moei_chart_band(html, &chart, metrics->step, points, metrics->n_points);
    if (is_loss && run->eval.n_baselines > 0) {
        moei_chart_rule(html, &chart, run->eval.baseline[0].bits_per_byte, run->eval.baseline[0].name);
    }
    moei_chart_line(html, &chart, metrics->step, points, metrics->n_points, "main", chart_row[row].title);
    if (is_loss) moei_chart_marks(html, &chart, metrics->step, held_out, metrics->n_points, "held-out text");
    moei_chart_end(html);
}

void moei_page_curves(moei_html *html, const moei_run *run) {
    moei_section_begin(html, "training", "Training");
    if (run->metrics.torn) {
        moei_html_missing(
            html, "The last line of <code>metrics.jsonl</code> is not whole and was left out: the run "
                  "is still writing, or was killed.");
    }
    if (!run->metrics.found) {
        moei_html_missing(html, "No step is in <code>metrics.jsonl</code> yet, so there are no curves.");
    } else {
        moei_html_printf(
            html,
            "<p class=\"note\">Horizontal: steps. %s logged steps; where they are more than a picture "
            "can show, the curve is their mean and the band reaches from the lowest to the highest.</p>\n",
            moei_count(run->metrics.n_lines).s);
        moei_html_put(html, "<div class=\"multiples\">\n");
        for (size_t row = 0; row < sizeof chart_row / sizeof *chart_row; ++row) draw_chart(html, run, row);
        moei_html_put(html, "</div>\n");
    }
    moei_section_end(html);
}
