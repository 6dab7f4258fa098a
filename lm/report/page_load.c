/* page_load.c: section "Load": heat maps of rows per expert over time, one a layer.
 * Load of an expert: rows the router sent to it, dropped ones included, over the mean of its layer.
 */
#include "report/page.h"
#include "report/svg.h"

#include <stdio.h>
#include <stdlib.h>

/* Shares of the mean of one layer: value[bin, expert], and row_mean[expert] over all bins. */
static void layer_shares(const moelm_report_load *load, int32_t layer, double *value, double *row_mean) {
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

static void draw_layer(moelm_html *html, const moelm_report_load *load, int32_t layer, double *value,
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
             moelm_fixed(row_mean[most], 2).s, least, moelm_fixed(row_mean[least], 2).s);
    snprintf(description, sizeof description, "Heat map of %d experts over %d intervals of steps; %s.",
             experts, load->n_bins, about);
    moelm_heat_draw(html, &(moelm_heat){.id = id,
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

static void write_maps(moelm_html *html, const moelm_report_load *load) {
    int64_t widest = 0;
    for (int32_t l = 0; l < load->n_layers; ++l)
        widest = load->experts[l] > widest ? load->experts[l] : widest;
    double *value = calloc((size_t)(widest * (load->n_bins + 1)), sizeof *value);
    if (!value) {
        html->failed = true;
        return;
    }
    moelm_html_put(
        html, "<p class=\"note\">One map per layer: experts from top to bottom, steps from left to right. "
              "Numbers at the right, if there is room for them, are means over the run.</p>\n");
    moelm_heat_legend(html);
    moelm_html_put(html, "<div class=\"multiples\">\n");
    for (int32_t l = 0; l < load->n_layers; ++l) {
        if (load->experts[l] > 0) draw_layer(html, load, l, value, value + widest * load->n_bins);
    }
    moelm_html_put(html, "</div>\n");
    free(value);
}

void moelm_page_load(moelm_html *html, const moelm_run *run) {
    moelm_section_begin(html, "load", "Load of the experts");
    if (run->load.torn) {
        moelm_html_missing(html, "The last record of <code>load.bin</code> is not whole and was left out.");
    }
    if (run->load.found) {
        write_maps(html, &run->load);
    } else {
        moelm_html_missing(html, "There are no records in <code>load.bin</code>, so there are no heat maps.");
    }
    moelm_section_end(html);
}
