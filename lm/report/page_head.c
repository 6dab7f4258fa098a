/* page_head.c: the head of the page: name, one sentence, figures, comparison with compressors, findings.
 * Everything a reader who stops here should know.
 */
#include "report/page.h"
#include "report/svg.h"
#include "report/words.h"

#include <math.h>
#include <stdio.h>

enum { MAX_BARS = 8 };

static void fact(moelm_html *html, const char *name, moelm_report_text value, const char *unit) {
    moelm_html_printf(html, "<div><dt>%s</dt><dd>%s <small>%s</small></dd></div>\n", name, value.s, unit);
}

static const char *const text_name[] = {[MOELM_TEXT_HELD_OUT] = "Held-out text",
                                        [MOELM_TEXT_TRAINED] = "Text it was trained on",
                                        [MOELM_TEXT_OTHER] = "Another text"};

static void write_facts(moelm_html *html, const moelm_run *run) {
    const moelm_report_metrics *metrics = &run->metrics;
    double bits = moelm_run_bits(run), total = moelm_run_parameters(run, "total");
    double active = moelm_run_parameters(run, "active");
    moelm_html_put(html, "<dl class=\"facts\">\n");
    if (isfinite(bits)) fact(html, text_name[moelm_run_text(run)], moelm_fixed(bits, 3), "bits per byte");
    if (metrics->found) {
        fact(html, "Tokens seen", moelm_short((double)metrics->tokens),
             moelm_run_has_tokenizer(run) ? "tokens" : "bytes");
        fact(html, "Steps", moelm_count(metrics->last_step), "");
        fact(html, "Training time", moelm_duration(metrics->elapsed_s), "");
        if (metrics->elapsed_s > 0) {
            fact(html, "Speed, with evaluations", moelm_short((double)metrics->tokens / metrics->elapsed_s),
                 "tokens/s");
        }
    }
    if (isfinite(total)) {
        char unit[64] = "";
        if (isfinite(active)) snprintf(unit, sizeof unit, "%s active", moelm_short(active).s);
        fact(html, "Parameters", moelm_short(total), unit);
    }
    moelm_html_put(html, "</dl>\n");
}

static void write_bars(moelm_html *html, const moelm_run *run) {
    const moelm_eval *eval = &run->eval;
    double bits = moelm_run_bits(run);
    if (!isfinite(bits)) {
        moelm_html_missing(html,
                           "The comparison with gzip, bzip2 and xz appears once held-out text was evaluated "
                           "(<code>moekit eval --run</code>).");
        return;
    }
    moelm_bar bars[MAX_BARS] = {
        {.name = "this model", .value = bits}
    };
    int n_bars = 1;
    for (int32_t i = 0; i < eval->n_baselines && n_bars < MAX_BARS; ++i) {
        bars[n_bars++] =
            (moelm_bar){.name = eval->baseline[i].name, .value = eval->baseline[i].bits_per_byte};
    }
    moelm_bars_draw(html, "bars", "Bits per byte; fewer are better",
                    "The model beside general compressors on the same text.", bars, n_bars);
    if (eval->n_baselines == 0) {
        moelm_html_missing(html, "Compressors to compare with are in <code>eval.json</code>, written by "
                                 "<code>moekit eval --run</code>.");
    }
}

void moelm_page_head(moelm_html *html, const moelm_run *run) {
    moelm_html_put(html, "<header>\n<p class=\"kicker\">moekit &#183; training report</p>\n<h1>");
    moelm_html_text(html, run->name);
    moelm_html_put(html, "</h1>\n");
    moelm_words_lead(html, run);
    moelm_html_put(html, "<div class=\"overview\">\n<div>\n");
    write_facts(html, run);
    moelm_words_findings(html, run);
    moelm_html_put(html, "</div>\n<div class=\"panel\">\n");
    write_bars(html, run);
    moelm_html_put(html, "</div>\n</div>\n<nav aria-label=\"Sections\"><a href=\"#training\">Training</a> ");
    if (!moelm_run_is_dense(run))
        moelm_html_put(html, "<a href=\"#load\">Load</a> <a href=\"#balance\">Balance</a> <a "
                             "href=\"#layers\">Layers</a> <a href=\"#tokens\">Tokens</a> ");
    moelm_html_put(html, "<a href=\"#sample\">Sample</a> <a href=\"#configuration\">Configuration</a> "
                         "<a href=\"#environment\">Environment</a></nav>\n</header>\n");
}
