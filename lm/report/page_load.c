/* page_load.c: section "Load": heat maps of rows per expert over time, and curves of every layer.
 * Load of an expert: rows the router sent to it, dropped ones included, over the mean of its layer.
 */
#include "report/page.h"
#include "report/svg.h"
#include "report/words.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    moei_layer_series series;
    const char *id, *title, *about;
    bool from_zero;
    const char *all_zero; /* said instead of a chart of nothing */
} chart_row[] = {
    {MOEI_CV,             "l-cv",     "Coefficient of variation", "of the rows per expert; 0 is perfect balance", true,  NULL},
    {MOEI_MAX_LOAD,       "l-max",    "Busiest expert",           "its rows over the mean; 1 is perfect balance", false, NULL},
    {MOEI_LOAD_ENTROPY,   "l-ent",    "Entropy of the load",      "over its maximum; 1 is perfect balance",       false,
     NULL                                                                                                                    },
    {MOEI_ROUTER_ENTROPY, "l-router", "Entropy of the router",    "nats a token; 0 is a router without doubt",
     true,                                                                                                               NULL},
    {MOEI_DROPPED,        "l-drop",   "Drop rate",                "share of the rows over an expert's capacity",  true,
     "No row was dropped at any logged step."                                                                                },
    {MOEI_DEAD,           "l-dead",   "Dead experts",             "experts without a row in a step",              true,
     "No expert was without a row at any logged step."                                                                       },
};

static void draw_chart(moei_html *html, const moei_metrics *metrics, size_t row) {
    double low = INFINITY, high = -INFINITY;
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        const moei_point *points = moei_metrics_layer(metrics, l, chart_row[row].series);
        for (int32_t i = 0; i < metrics->n_points; ++i) {
            if (points[i].n == 0) continue;
            low = fmin(low, points[i].mean), high = fmax(high, points[i].mean);
        }
    }
    if (!(low <= high) || (chart_row[row].all_zero && high == 0)) return;
    char description[160];
    snprintf(description, sizeof description, "One line a layer, between %s and %s.", moei_digits(low, 3).s,
             moei_digits(high, 3).s);
    moei_chart chart = {.id = chart_row[row].id,
                        .title = chart_row[row].title,
                        .about = chart_row[row].about,
                        .description = description,
                        .x = moei_axis_linear(0, (double)metrics->last_step, 4, true),
                        .y = moei_axis_linear(chart_row[row].from_zero ? 0 : low, high, 4, false)};
    moei_chart_begin(html, &chart);
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        char class_name[16], title[32];
        snprintf(class_name, sizeof class_name, "d%d", moei_depth(l, metrics->n_layers));
        snprintf(title, sizeof title, "layer %d", metrics->layer[l]);
        moei_chart_line(html, &chart, metrics->step, moei_metrics_layer(metrics, l, chart_row[row].series),
                        metrics->n_points, class_name, title);
    }
    moei_chart_end(html);
}

static bool all_zero(const moei_metrics *metrics, moei_layer_series series) {
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        const moei_point *points = moei_metrics_layer(metrics, l, series);
        for (int32_t i = 0; i < metrics->n_points; ++i) {
            if (points[i].high != 0) return false;
        }
    }
    return true;
}

/* Every layer by name while that fits a line, else the two ends of the scale. */
static void write_layer_legend(moei_html *html, const moei_metrics *metrics) {
    moei_html_put(html, "<p class=\"legend\">Lines: ");
    bool each = metrics->n_layers <= MOEI_DEPTHS;
    for (int32_t i = 0; i < (each ? metrics->n_layers : MOEI_DEPTHS); ++i) {
        int32_t layer = metrics->layer[each ? i : i * (metrics->n_layers - 1) / (MOEI_DEPTHS - 1)];
        moei_html_printf(html, " <span class=\"key\"><i class=\"swatch d%d\"></i>layer %d</span>",
                         each ? moei_depth(i, metrics->n_layers) : i, layer);
    }
    moei_html_put(html, each ? "</p>\n" : " and those between</p>\n");
}

static void write_curves(moei_html *html, const moei_metrics *metrics) {
    moei_html_put(html, "<h3 class=\"group\">Balance over the steps</h3>\n");
    if (metrics->n_layers == 0) {
        moei_html_missing(html, metrics->found
                                    ? "No layer of this model has routed experts."
                                    : "Curves of each layer come from <code>metrics.jsonl</code>, which "
                                      "has no step yet.");
        return;
    }
    write_layer_legend(html, metrics);
    moei_html_put(html, "<div class=\"multiples\">\n");
    size_t n_rows = sizeof chart_row / sizeof *chart_row;
    for (size_t row = 0; row < n_rows; ++row) draw_chart(html, metrics, row);
    moei_html_put(html, "</div>\n<p class=\"note\">");
    for (size_t row = 0; row < n_rows; ++row) {
        if (!chart_row[row].all_zero || !all_zero(metrics, chart_row[row].series)) continue;
        moei_html_printf(html, "%s ", chart_row[row].all_zero);
    }
    moei_html_put(html, "</p>\n");
}

/* Shares of the mean of one layer: value[bin, expert], and row_mean[expert] over all bins. */
static void layer_shares(const moei_load *load, int32_t layer, double *value, double *row_mean) {
    int64_t total = load->first[load->n_layers], experts = load->experts[layer];
    for (int64_t e = 0; e < experts; ++e) row_mean[e] = 0;
    for (int64_t bin = 0; bin < load->n_bins; ++bin) {
        const double *rows = load->routed + bin * total + load->first[layer];
        double sum = 0;
        for (int64_t e = 0; e < experts; ++e) sum += rows[e];
        for (int64_t e = 0; e < experts; ++e) {
            value[bin * experts + e] = sum > 0 ? rows[e] * (double)experts / sum : -1;
            row_mean[e] +=
                load->routed_in[layer] > 0 ? rows[e] * (double)experts / load->routed_in[layer] : 0;
        }
    }
}

static void draw_layer(moei_html *html, const moei_load *load, int32_t layer, double *value,
                       double *row_mean) {
    int32_t experts = load->experts[layer];
    layer_shares(load, layer, value, row_mean);
    int32_t least = 0, most = 0;
    for (int32_t e = 1; e < experts; ++e) {
        if (row_mean[e] < row_mean[least]) least = e;
        if (row_mean[e] > row_mean[most]) most = e;
    }
    char id[24], title[32], about[200], description[400];
    snprintf(id, sizeof id, "h-%d", layer);
    snprintf(title, sizeof title, "Layer %d", layer);
    snprintf(about, sizeof about, "busiest over the run: expert %d (%s), least busy: %d (%s)", most,
             moei_fixed(row_mean[most], 2).s, least, moei_fixed(row_mean[least], 2).s);
    snprintf(description, sizeof description, "Heat map of %d experts over %d intervals of steps; %s.",
             experts, load->n_bins, about);
    moei_heat_draw(html, &(moei_heat){.id = id,
                                      .title = title,
                                      .about = about,
                                      .description = description,
                                      .row_name = "expert",
                                      .n_rows = experts,
                                      .n_bins = load->n_bins,
                                      .row_stride = 1,
                                      .bin_stride = experts,
                                      .value = value,
                                      .row_mean = row_mean,
                                      .step = load->step});
}

static void write_maps(moei_html *html, const moei_load *load) {
    int64_t widest = 0;
    for (int32_t l = 0; l < load->n_layers; ++l)
        widest = load->experts[l] > widest ? load->experts[l] : widest;
    double *value = calloc((size_t)(widest * (load->n_bins + 1)), sizeof *value);
    if (!value) {
        html->failed = true;
        return;
    }
    moei_html_put(html,
                  "<p class=\"note\">One map a layer: experts from top to bottom, steps from left to right. "
                  "The numbers at the right are the means over the run.</p>\n");
    moei_heat_legend(html);
    moei_html_put(html, "<div class=\"multiples\">\n");
    for (int32_t l = 0; l < load->n_layers; ++l) {
        if (load->experts[l] > 0) draw_layer(html, load, l, value, value + widest * load->n_bins);
    }
    moei_html_put(html, "</div>\n");
    free(value);
}

void moei_page_load(moei_html *html, const moei_run *run) {
    moei_section_begin(html, "load", "Load of the experts");
    if (run->load.torn) {
        moei_html_missing(html, "The last record of <code>load.bin</code> is not whole and was left out.");
    }
    if (run->load.found) {
        write_maps(html, &run->load);
    } else {
        moei_html_missing(html, "There are no records in <code>load.bin</code>, so there are no heat maps.");
    }
    write_curves(html, &run->metrics);
    moei_section_end(html);
}
