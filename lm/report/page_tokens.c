/* page_tokens.c: section "Tokens": those most typical of each expert.
 * typical[experts, MOELM_TYPICAL] of eval.json in, a table a layer out; large models show fewer tokens and
 * keep all but the first layers folded, so that the page stays usable.
 */
#include "report/page.h"

#include <string.h>

enum { CHIPS = 24000, FEWEST = 3, ROWS_OPEN = 64 };
static const char *const heading[] = {"Expert", "Share of rows", "Typical tokens", NULL};

static void write_chip(moelm_html *html, const moelm_typical *typical, bool bytes) {
    const char byte = (char)typical->token;
    moelm_html_put(html, "<li><kbd>");
    if (typical->text)
        moelm_html_token(html, typical->text, strlen(typical->text));
    else if (bytes && typical->token < 256)
        moelm_html_token(html, &byte, 1);
    else
        moelm_html_printf(html, "#%lld", (long long)typical->token);
    moelm_html_printf(html, "</kbd>%s&#215;<small>%s</small></li>",
                      moelm_fixed(typical->lift, typical->lift < 9.95 ? 1 : 0).s,
                      moelm_short((double)typical->count).s);
}

static void write_expert(moelm_html *html, const moelm_eval_layer *layer, int32_t expert, double rows,
                         int32_t most, bool bytes) {
    moelm_html_printf(html, "<tr><th scope=\"row\">%d</th><td>%s</td><td>", expert,
                      moelm_percent(rows > 0 ? layer->load[expert] / rows : 0, 1).s);
    int32_t n = layer->n_typical[expert] < most ? layer->n_typical[expert] : most;
    if (n > 0) {
        moelm_html_put(html, "<ul class=\"chips\">");
        for (int32_t i = 0; i < n; ++i)
            write_chip(html, &layer->typical[(int64_t)expert * MOELM_TYPICAL + i], bytes);
        moelm_html_put(html, "</ul>");
    } else {
        moelm_html_put(html, "<small>no token was seen often enough</small>");
    }
    moelm_html_put(html, "</td></tr>\n");
}

static void write_layer(moelm_html *html, const moelm_eval_layer *layer, bool open, int32_t most,
                        bool bytes) {
    double rows = 0;
    for (int32_t e = 0; e < layer->experts; ++e) rows += layer->load[e];
    moelm_html_printf(html, "<details%s><summary>Layer %d</summary>\n", open ? " open=\"open\"" : "",
                      layer->layer);
    moelm_table_begin(html, "tokens", "Experts and their tokens", heading);
    for (int32_t e = 0; e < layer->experts; ++e) write_expert(html, layer, e, rows, most, bytes);
    moelm_table_end(html);
    moelm_html_put(html, "</details>\n");
}

void moelm_page_tokens(moelm_html *html, const moelm_run *run) {
    const moelm_eval *eval = &run->eval;
    int64_t n_experts = 0, rows_open = 0;
    for (int32_t l = 0; l < eval->n_layers; ++l) n_experts += eval->layer[l].experts;
    moelm_section_begin(html, "tokens", "Tokens typical of each expert");
    if (n_experts == 0) {
        moelm_html_missing(
            html, "Typical tokens are found by <code>moekit eval --run</code>, which did not run yet.");
    } else {
        int64_t fit = CHIPS / n_experts;
        int32_t most = (int32_t)(fit < FEWEST ? FEWEST : fit > MOELM_TYPICAL ? MOELM_TYPICAL : fit);
        moelm_html_put(
            html,
            "<p class=\"note\">Beside each token its lift (how many times more often it is among the tokens "
            "whose first choice is this expert than in the text) and how often it was counted there. "
            "<kbd>&#x2423;</kbd> is a space, <kbd>&#x23ce;</kbd> a new line.");
        if (moelm_run_has_tokenizer(run))
            moelm_html_put(
                html,
                " <kbd>#</kbd> and a number stand for a token that is no text by itself, such as a part "
                "of a character.");
        moelm_html_put(html, "</p>\n");
        for (int32_t l = 0; l < eval->n_layers; ++l) {
            rows_open += eval->layer[l].experts;
            write_layer(html, &eval->layer[l], l == 0 || rows_open <= ROWS_OPEN, most,
                        !moelm_run_has_tokenizer(run));
        }
    }
    moelm_section_end(html);
}
