/* page_curves.c: section "Training": the losses and what else is one number a step, as small multiples.
 * Each curve is the mean of its bucket of steps, the band behind it reaches from the lowest to the highest.
 */
#include "report/page.h"
#include "report/svg.h"

#include <math.h>
#include <stdio.h>

/* What decides where an axis starts: small changes around a value, or the size of the value. */
typedef enum axis_kind { FROM_ZERO, AROUND, LOG_IF_WIDE } axis_kind;

/* clang-format off */
static const struct {
    moelm_run_series series;
    const char *id, *title, *about;
    axis_kind kind;
    bool of_router; /* left out where no layer has one */
} chart_row[] = {
    {MOELM_LOSS, "c-loss", "Cross-entropy", "bits per byte; circles: data.eval", LOG_IF_WIDE, false},
    {MOELM_AUX, "c-aux", "Load-balancing loss", "1 is perfect balance; without its coefficient", AROUND, true},
    {MOELM_Z, "c-z", "Router z-loss", "without its coefficient", LOG_IF_WIDE, true},
    {MOELM_GRAD_NORM, "c-grad", "Gradient norm", "of all parameters, before clipping", LOG_IF_WIDE, false},
    {MOELM_LR, "c-lr", "Learning rate", "warm-up, then cosine", FROM_ZERO, false},
    {MOELM_SPEED, "c-speed", "Speed", "tokens per second", FROM_ZERO, false},
};
/* clang-format on */

typedef struct extent {
    double low, high;
    int64_t n;
} extent;

static void widen(extent *range, const moelm_point *points, int32_t n_points) {
    for (int32_t i = 0; i < n_points; ++i) {
        if (points[i].n == 0) continue;
        range->low = fmin(range->low, points[i].low);
        range->high = fmax(range->high, points[i].high);
        range->n += 1;
    }
}

static const moelm_point *end_point(const moelm_point *points, int32_t n_points, int32_t direction) {
    int32_t i = direction > 0 ? 0 : n_points - 1;
    while (points[i].n == 0) i += direction;
    return &points[i];
}

static moelm_axis fit_axis(extent range, axis_kind kind) {
    bool wide = range.low > 0 && range.high > 2.5 * range.low;
    if (kind == LOG_IF_WIDE && wide) return moelm_axis_log(range.low, range.high);
    return moelm_axis_linear(kind == AROUND ? range.low : fmin(range.low, 0), range.high, 0);
}

static void draw_chart(moelm_html *html, const moelm_run *run, size_t row) {
    const moelm_report_metrics *metrics = &run->metrics;
    const moelm_point *points = metrics->run[chart_row[row].series];
    const moelm_point *held_out = metrics->run[MOELM_HELD_OUT];
    bool is_loss = chart_row[row].series == MOELM_LOSS;
    extent range = {.low = INFINITY, .high = -INFINITY};
    widen(&range, points, metrics->n_points);
    if (range.n == 0) return;
    char description[400];
    snprintf(description, sizeof description, "From %s at step %s to %s at step %s; lowest %s, highest %s.",
             moelm_digits(end_point(points, metrics->n_points, 1)->mean, 3).s,
             moelm_count((int64_t)metrics->step[0]).s,
             moelm_digits(end_point(points, metrics->n_points, -1)->mean, 3).s,
             moelm_count(metrics->last_step).s, moelm_digits(range.low, 3).s, moelm_digits(range.high, 3).s);
    if (is_loss) widen(&range, held_out, metrics->n_points);
    moelm_chart chart = {
        .id = chart_row[row].id,
        .title = chart_row[row].title,
        .about = chart_row[row].about,
        .description = description,
        .x = moelm_axis_linear(0, (double)metrics->last_step, MOELM_AXIS_TIGHT | MOELM_AXIS_WHOLE),
        .y = fit_axis(range, chart_row[row].kind)};
    moelm_chart_begin(html, &chart);
    if (metrics->n_lines > metrics->n_points)
        moelm_chart_band(html, &chart, metrics->step, points, metrics->n_points);
    if (is_loss && run->eval.n_baselines > 0) {
        const double bits = run->eval.baseline[0].bits_per_byte;
        char name[100];
        snprintf(name, sizeof name, "%.40s %s", run->eval.baseline[0].name, moelm_fixed(bits, 2).s);
        moelm_chart_rule(html, &chart, bits, name);
    }
    moelm_chart_line(html, &chart, metrics->step, points, metrics->n_points, "main", chart_row[row].title);
    if (is_loss) moelm_chart_marks(html, &chart, metrics->step, held_out, metrics->n_points, "data.eval");
    moelm_chart_end(html);
}

void moelm_page_curves(moelm_html *html, const moelm_run *run) {
    moelm_section_begin(html, "training", "Training");
    if (run->metrics.torn) {
        moelm_html_missing(
            html, "The last line of <code>metrics.jsonl</code> is not whole and was left out: the run "
                  "is still writing, or was killed.");
    }
    if (!run->metrics.found) {
        moelm_html_missing(html, "No step is in <code>metrics.jsonl</code> yet, so there are no curves.");
    } else {
        moelm_html_printf(html,
                          "<p class=\"note\">From left to right: %s logged step%s. If there are more than a "
                          "picture can show, the "
                          "curve is their mean and the band reaches from the lowest to the highest.</p>\n",
                          moelm_count(run->metrics.n_lines).s, run->metrics.n_lines == 1 ? "" : "s");
        moelm_html_put(html, "<div class=\"multiples\">\n");
        for (size_t row = 0; row < sizeof chart_row / sizeof *chart_row; ++row)
            if (!chart_row[row].of_router || !moelm_run_is_dense(run)) draw_chart(html, run, row);
        moelm_html_put(html, "</div>\n");
    }
    moelm_section_end(html);
}
