/* page_balance.c: section "Balance": how evenly every layer's router shares out its rows, step by step.
 * One line a layer, coloured by depth; what never happened is said instead of drawn.
 */
#include "report/page.h"
#include "report/svg.h"

#include <math.h>
#include <stdio.h>

/* clang-format off */
static const struct {
    moelm_layer_series series;
    const char *id, *title, *about;
    bool from_zero;
    unsigned flags;       /* moelm_axis_flags */
    const char *all_zero; /* said instead of a chart of nothing */
} chart_row[] = {
    {MOELM_CV, "l-cv", "Coefficient of variation", "of the rows per expert; 0 is perfect balance", true, 0,
     NULL},
    {MOELM_MAX_LOAD, "l-max", "Busiest expert", "its rows over the mean; 1 is perfect balance", false, 0,
     NULL},
    {MOELM_LOAD_ENTROPY, "l-ent", "Entropy of the load", "over its maximum; 1 is perfect balance", false, 0,
     NULL},
    {MOELM_ROUTER_ENTROPY, "l-router", "Entropy of the router", "nats a token; 0 is a router without doubt",
     true, 0, NULL},
    {MOELM_DROPPED, "l-drop", "Drop rate", "share of the rows, for lack of capacity", true,
     MOELM_AXIS_PERCENT, "No row was dropped at any logged step."},
    {MOELM_DEAD, "l-dead", "Dead experts", "experts without a row in a step", true, MOELM_AXIS_WHOLE,
     "No expert was without a row at any logged step."},
};
/* clang-format on */

static void draw_chart(moelm_html *html, const moelm_report_metrics *metrics, size_t row) {
    double low = INFINITY, high = -INFINITY;
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        const moelm_point *points = moelm_report_metrics_layer(metrics, l, chart_row[row].series);
        for (int32_t i = 0; i < metrics->n_points; ++i) {
            if (points[i].n == 0) continue;
            low = fmin(low, points[i].mean), high = fmax(high, points[i].mean);
        }
    }
    if (!(low <= high) || (chart_row[row].all_zero && high == 0)) return;
    char description[160];
    snprintf(description, sizeof description, "One line a layer, between %s and %s.", moelm_digits(low, 3).s,
             moelm_digits(high, 3).s);
    moelm_chart chart = {
        .id = chart_row[row].id,
        .title = chart_row[row].title,
        .about = chart_row[row].about,
        .description = description,
        .x = moelm_axis_linear(0, (double)metrics->last_step, MOELM_AXIS_TIGHT | MOELM_AXIS_WHOLE),
        .y = moelm_axis_linear(chart_row[row].from_zero ? 0 : low, high, chart_row[row].flags)};
    moelm_chart_begin(html, &chart);
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        char class_name[16], title[32];
        snprintf(class_name, sizeof class_name, "d%d", moelm_depth(l, metrics->n_layers));
        snprintf(title, sizeof title, "layer %d", metrics->layer[l]);
        moelm_chart_line(html, &chart, metrics->step,
                         moelm_report_metrics_layer(metrics, l, chart_row[row].series), metrics->n_points,
                         class_name, title);
    }
    moelm_chart_end(html);
}

static bool all_zero(const moelm_report_metrics *metrics, moelm_layer_series series) {
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        const moelm_point *points = moelm_report_metrics_layer(metrics, l, series);
        for (int32_t i = 0; i < metrics->n_points; ++i) {
            if (points[i].high != 0) return false;
        }
    }
    return true;
}

/* Every layer by name while that fits a line, else the two ends of the scale. */
static void write_layer_legend(moelm_html *html, const moelm_report_metrics *metrics) {
    moelm_html_put(html, "<p class=\"legend\">Lines: ");
    bool each = metrics->n_layers <= MOELM_DEPTHS;
    for (int32_t i = 0; i < (each ? metrics->n_layers : MOELM_DEPTHS); ++i) {
        int32_t layer = metrics->layer[each ? i : i * (metrics->n_layers - 1) / (MOELM_DEPTHS - 1)];
        moelm_html_printf(html, " <span class=\"key\"><i class=\"swatch d%d\"></i>layer %d</span>",
                          each ? moelm_depth(i, metrics->n_layers) : i, layer);
    }
    moelm_html_put(html, each ? "</p>\n" : " and those between</p>\n");
}

static void write_curves(moelm_html *html, const moelm_report_metrics *metrics) {
    size_t n_rows = sizeof chart_row / sizeof *chart_row;
    write_layer_legend(html, metrics);
    moelm_html_put(html, "<div class=\"multiples\">\n");
    for (size_t row = 0; row < n_rows; ++row) draw_chart(html, metrics, row);
    moelm_html_put(html, "</div>\n<p class=\"note\">");
    for (size_t row = 0; row < n_rows; ++row) {
        if (!chart_row[row].all_zero || !all_zero(metrics, chart_row[row].series)) continue;
        moelm_html_printf(html, "%s ", chart_row[row].all_zero);
    }
    moelm_html_put(html, "</p>\n");
}

static void write_alarm(moelm_html *html, const moelm_report_alarm *alarm) {
    moelm_html_printf(html, "<li>Step %s, layer %d: ", moelm_count(alarm->step).s, alarm->layer);
    if (alarm->kind == 'd') {
        moelm_html_printf(html, "expert %d had no row for %s steps", alarm->expert,
                          moelm_count(alarm->steps).s);
        if (alarm->revived_from >= 0) {
            moelm_html_printf(html, "; it began again as a copy of expert %d", alarm->revived_from);
        }
    } else if (alarm->kind == 'e') {
        moelm_html_printf(html, "the entropy of the load fell to %s of its maximum; the bound is %s",
                          moelm_fixed(alarm->value, 3).s, moelm_fixed(alarm->bound, 3).s);
    } else {
        moelm_html_printf(html, "%s of the rows were dropped; the bound is %s",
                          moelm_percent(alarm->value, 1).s, moelm_percent(alarm->bound, 1).s);
    }
    moelm_html_put(html, ".</li>\n");
}

static void write_alarms(moelm_html *html, const moelm_report_metrics *metrics) {
    if (metrics->n_alarms == 0) return;
    const int64_t listed = metrics->n_alarms < MOELM_ALARMS ? metrics->n_alarms : MOELM_ALARMS;
    moelm_html_printf(html, "<h3 id=\"alarms\">Alarms: %s</h3>\n", moelm_count(metrics->n_alarms).s);
    if (listed < metrics->n_alarms) {
        moelm_html_printf(
            html, "<p class=\"note\">The first %s of them; all are in <code>metrics.jsonl</code>.</p>\n",
            moelm_count(listed).s);
    }
    moelm_html_put(html, "<ul class=\"findings\">\n");
    for (int64_t i = 0; i < listed; ++i) write_alarm(html, &metrics->alarm[i]);
    moelm_html_put(html, "</ul>\n");
}

void moelm_page_balance(moelm_html *html, const moelm_run *run) {
    const moelm_report_metrics *metrics = &run->metrics;
    moelm_section_begin(html, "balance", "Balance over the steps");
    if (metrics->n_layers > 0) {
        write_curves(html, metrics);
    } else if (metrics->found) {
        moelm_html_missing(
            html, "No layer of this model has routed experts, or <code>train.log_layers</code> was off.");
    } else {
        moelm_html_missing(
            html, "Curves of each layer come from <code>metrics.jsonl</code>, which has no step yet.");
    }
    write_alarms(html, metrics);
    moelm_section_end(html);
}
