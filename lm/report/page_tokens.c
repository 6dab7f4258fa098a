/* page_tokens.c: section "Tokens": those most typical of each expert.
 * typical[experts, MOEI_TYPICAL] of eval.json in, a table a layer out; large models show fewer tokens and
 * keep all but the first layers folded, so that the page stays usable.
 */
#include "report/page.h"

enum { CHIPS = 24000, FEWEST = 3, ROWS_OPEN = 64 };
static const char *const heading[] = {"Expert", "Share of rows", "Typical tokens", NULL};

static void write_chip(moei_html *html, const moei_typical *typical) {
    moei_html_put(html, "<li><kbd>");
    moei_html_token(html, typical->token);
    moei_html_printf(html, "</kbd>%s&#215;<small>%s</small></li>",
                     moei_fixed(typical->lift, typical->lift < 9.95 ? 1 : 0).s,
                     moei_short((double)typical->count).s);
}

static void write_expert(moei_html *html, const moei_eval_layer *layer, int32_t expert, double rows,
                         int32_t most) {
    moei_html_printf(html, "<tr><th scope=\"row\">%d</th><td>%s</td><td>", expert,
                     moei_percent(rows > 0 ? layer->load[expert] / rows : 0, 1).s);
    int32_t n = layer->n_typical[expert] < most ? layer->n_typical[expert] : most;
    if (n > 0) {
        moei_html_put(html, "<ul class=\"chips\">");
        for (int32_t i = 0; i < n; ++i) write_chip(html, &layer->typical[(int64_t)expert * MOEI_TYPICAL + i]);
        moei_html_put(html, "</ul>");
    } else {
        moei_html_put(html, "<small>no token was seen often enough</small>");
    }
    moei_html_put(html, "</td></tr>\n");
}

static void write_layer(moei_html *html, const moei_eval_layer *layer, bool open, int32_t most) {
    double rows = 0;
    for (int32_t e = 0; e < layer->experts; ++e) rows += layer->load[e];
    moei_html_printf(html, "<details%s><summary>Layer %d</summary>\n", open ? " open=\"open\"" : "",
                     layer->layer);
    moei_table_begin(html, "tokens", "Experts and their tokens", heading);
    for (int32_t e = 0; e < layer->experts; ++e) write_expert(html, layer, e, rows, most);
    moei_table_end(html);
    moei_html_put(html, "</details>\n");
}

void moei_page_tokens(moei_html *html, const moei_run *run) {
    const moei_eval *eval = &run->eval;
    int64_t n_experts = 0, rows_open = 0;
    for (int32_t l = 0; l < eval->n_layers; ++l) n_experts += eval->layer[l].experts;
    moei_section_begin(html, "tokens", "Tokens typical of each expert");
    if (n_experts == 0) {
        moei_html_missing(
            html, "Typical tokens are found by <code>moekit eval --run</code>, which did not run yet.");
    } else {
        int64_t fit = CHIPS / n_experts;
        int32_t most = (int32_t)(fit < FEWEST ? FEWEST : fit > MOEI_TYPICAL ? MOEI_TYPICAL : fit);
        moei_html_put(
            html, "<p class=\"note\">Beside each token its lift (how many times more often the expert meets "
                  "it than the text has it) and how often it was counted. "
                  "<kbd>&#x2423;</kbd> is a space, <kbd>&#x23ce;</kbd> a new line.</p>\n");
        for (int32_t l = 0; l < eval->n_layers; ++l) {
            rows_open += eval->layer[l].experts;
            write_layer(html, &eval->layer[l], l == 0 || rows_open <= ROWS_OPEN, most);
        }
    }
    moei_section_end(html);
}
