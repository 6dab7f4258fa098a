/* page_layers.c: section "Layers": one row a layer, and what its experts follow, in words.
 * Numbers of eval.json where there are any, else of the last quarter of the training.
 */
#include "report/page.h"
#include "report/words.h"

#include <math.h>

enum { MANY_LAYERS = 12 };

static const char *const eval_heading[] = {"Layer",
                                           "Experts",
                                           "Load cv",
                                           "Busiest",
                                           "Router entropy, nats",
                                           "Dropped",
                                           "Dead",
                                           "Expert entropy, bits",
                                           "Explained by token, bits",
                                           "by position",
                                           "by previous token",
                                           "Experts follow",
                                           NULL};
static const char *const training_heading[] = {
    "Layer", "Experts", "Load cv", "Busiest", "Router entropy, nats", "Dropped", "Dead", NULL};

static void cell(moelm_html *html, moelm_report_text text) {
    moelm_html_printf(html, "<td>%s</td>", text.s);
}

/* Mutual information with its share of the entropy, also as a bar behind the number. */
static void share_cell(moelm_html *html, double bits, double of) {
    double share = bits / of;
    if (!isfinite(share)) {
        moelm_html_put(html, "<td>&#8211;</td>");
        return;
    }
    double shown = share < 0 ? 0 : share > 1 ? 1 : share;
    moelm_html_printf(html, "<td class=\"share\"><span style=\"width:%s%%\"></span>%s <small>%s</small></td>",
                      moelm_coord(100 * shown).s, moelm_fixed(bits, 2).s, moelm_percent(share, 0).s);
}

static void write_head(moelm_html *html, int32_t layer, int32_t experts, int32_t top_k) {
    moelm_html_printf(html, "<tr><th scope=\"row\">%d</th>", layer);
    if (top_k > 0) {
        moelm_html_printf(html, "<td>%d of %d</td>", top_k, experts);
    } else {
        moelm_html_printf(html, "<td>%d</td>", experts);
    }
}

static void write_eval_row(moelm_html *html, const moelm_eval_layer *layer) {
    double sum = 0, largest = 0;
    int32_t dead = 0;
    for (int32_t e = 0; e < layer->experts; ++e) {
        sum += layer->load[e];
        largest = fmax(largest, layer->load[e]);
        dead += layer->load[e] <= 0;
    }
    write_head(html, layer->layer, layer->experts, layer->top_k);
    cell(html, moelm_fixed(layer->load_cv, 2));
    cell(html, moelm_fixed(sum > 0 ? largest * layer->experts / sum : NAN, 2));
    cell(html, moelm_fixed(layer->router_entropy, 2));
    cell(html, moelm_percent(layer->dropped, 2));
    cell(html, moelm_count(dead));
    cell(html, moelm_fixed(layer->expert_bits, 2));
    share_cell(html, layer->token_bits, layer->expert_bits);
    share_cell(html, layer->position_bits, layer->expert_bits);
    share_cell(html, layer->previous_bits, layer->expert_bits);
    const char *follow = moelm_words_follow(layer);
    moelm_html_printf(html, "<td class=\"word\">%s</td></tr>\n", *follow ? follow : "&#8211;");
}

static void write_training_row(moelm_html *html, const moelm_report_metrics *metrics, int32_t index) {
    write_head(html, metrics->layer[index], metrics->experts[index], 0);
    cell(html, moelm_fixed(moelm_report_metrics_tail(metrics, index, MOELM_CV).mean, 2));
    cell(html, moelm_fixed(moelm_report_metrics_tail(metrics, index, MOELM_MAX_LOAD).mean, 2));
    cell(html, moelm_fixed(moelm_report_metrics_tail(metrics, index, MOELM_ROUTER_ENTROPY).mean, 2));
    cell(html, moelm_percent(moelm_report_metrics_tail(metrics, index, MOELM_DROPPED).mean, 2));
    cell(html, moelm_fixed(moelm_report_metrics_tail(metrics, index, MOELM_DEAD).mean, 1));
    moelm_html_put(html, "</tr>\n");
}

static void write_eval(moelm_html *html, const moelm_eval *eval) {
    moelm_html_put(
        html,
        "<p class=\"note\">Measured on the evaluated text. Mutual information with the expert that comes "
        "first, in bits and as a share of that expert&#8217;s entropy, which bounds it; corrected "
        "for the size of the sample. Position: 32 equal parts of the window.</p>\n");
    moelm_table_begin(html, "numbers", "Layers on the evaluated text", eval_heading);
    for (int32_t l = 0; l < eval->n_layers; ++l) write_eval_row(html, &eval->layer[l]);
    moelm_table_end(html);
    if (eval->n_layers > MANY_LAYERS) return; /* the last column says it */
    moelm_html_put(html, "<ul class=\"findings\">\n");
    for (int32_t l = 0; l < eval->n_layers; ++l) {
        moelm_html_printf(html, "<li>Layer %d: ", eval->layer[l].layer);
        moelm_words_follow_sentence(html, &eval->layer[l]);
        moelm_html_put(html, "</li>\n");
    }
    moelm_html_put(html, "</ul>\n");
}

void moelm_page_layers(moelm_html *html, const moelm_run *run) {
    moelm_section_begin(html, "layers", "Layers, and what their experts follow");
    if (run->eval.n_layers > 0) {
        write_eval(html, &run->eval);
    } else {
        moelm_html_missing(html, "Whether experts follow the token or its position is measured by "
                                 "<code>moekit eval --run</code>; there is no such measurement here.");
        if (run->metrics.n_layers > 0) {
            moelm_table_begin(html, "numbers", "Layers in the last quarter of the training",
                              training_heading);
            for (int32_t l = 0; l < run->metrics.n_layers; ++l) write_training_row(html, &run->metrics, l);
            moelm_table_end(html);
        }
    }
    moelm_section_end(html);
}
