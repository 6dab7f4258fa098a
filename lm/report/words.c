/* words.c: sentences from numbers: how well the model predicts, how the router shares the work, what the
 * experts follow. Shares are mutual information over the entropy of the first-choice expert.
 */
#include "report/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A share of explained entropy from here on counts as following; below the second it counts as nothing. */
static const double follows = 0.20, nothing = 0.05;
/* Coefficients of variation of a load that reads as even, fairly even, uneven. */
static const double even = 0.15, fairly_even = 0.40, uneven = 0.80;

double moei_run_held_out(const moei_run *run) {
    if (run->eval.found) return run->eval.bits_per_byte;
    const moei_metrics *metrics = &run->metrics;
    for (int32_t i = metrics->n_points - 1; i >= 0; --i) {
        if (metrics->run[MOEI_HELD_OUT][i].n > 0) return metrics->run[MOEI_HELD_OUT][i].mean;
    }
    return NAN;
}

double moei_run_parameters(const moei_run *run, const char *which) {
    const json_t *number = json_object_get(json_object_get(run->about, "parameters"), which);
    return json_is_number(number) ? json_number_value(number) : NAN;
}

moei_point moei_metrics_tail(const moei_metrics *metrics, int32_t index, moei_layer_series series) {
    const moei_point *points = moei_metrics_layer(metrics, index, series);
    moei_point tail = {.low = INFINITY, .high = -INFINITY};
    for (int32_t i = metrics->n_points * 3 / 4; i < metrics->n_points; ++i) {
        if (points[i].n == 0) continue;
        tail.n += points[i].n;
        tail.mean += (points[i].mean - tail.mean) * (double)points[i].n / (double)tail.n;
        tail.low = fmin(tail.low, points[i].low);
        tail.high = fmax(tail.high, points[i].high);
    }
    if (tail.n == 0) tail.mean = tail.low = tail.high = NAN;
    return tail;
}

const char *moei_words_follow(const moei_eval_layer *layer) {
    if (!(layer->expert_bits > 0)) return "";
    double token = layer->token_bits / layer->expert_bits,
           position = layer->position_bits / layer->expert_bits;
    if (!isfinite(token) || !isfinite(position)) return "";
    if (token >= follows && position >= follows) return "token and position";
    if (token >= follows) return "token";
    return position >= follows ? "position" : "context";
}

static void shares(moei_html *html, const moei_eval_layer *layer) {
    moei_html_printf(html, "the token at hand explains %s of the choice, ",
                     moei_percent(layer->token_bits / layer->expert_bits, 0).s);
    if (isfinite(layer->previous_bits)) {
        moei_html_printf(html, "the token before it %s, ",
                         moei_percent(layer->previous_bits / layer->expert_bits, 0).s);
    }
    moei_html_printf(html, "its position in the window %s.",
                     moei_percent(layer->position_bits / layer->expert_bits, 1).s);
}

void moei_words_follow_sentence(moei_html *html, const moei_eval_layer *layer) {
    const char *what = moei_words_follow(layer);
    if (!*what) {
        moei_html_put(html, layer->expert_bits <= 0
                                ? "one expert is always the first choice: nothing to explain."
                                : "what the experts follow was not measured.");
    } else if (strcmp(what, "context") != 0) {
        moei_html_printf(html, "experts follow the <strong>%s</strong>: ", what);
        shares(html, layer);
    } else if (layer->token_bits < nothing * layer->expert_bits) {
        moei_html_put(html, "experts follow neither token nor position, but the <strong>context</strong>: ");
        shares(html, layer);
    } else {
        moei_html_put(html, "experts follow the token only a little, mostly the <strong>context</strong>: ");
        shares(html, layer);
    }
}

void moei_words_lead(moei_html *html, const moei_run *run) {
    double total = moei_run_parameters(run, "total"), active = moei_run_parameters(run, "active");
    const moei_metrics *metrics = &run->metrics;
    moei_html_put(html, "<p class=\"lead\">A language model");
    if (isfinite(total)) moei_html_printf(html, " of %s parameters", moei_short(total).s);
    if (isfinite(active))
        moei_html_printf(html, ", %s of them at work on any one byte", moei_short(active).s);
    if (metrics->n_layers > 0) {
        moei_html_printf(html, ", with %d experts in each of %d %s", metrics->experts[0], metrics->n_layers,
                         metrics->n_layers == 1 ? "layer" : "layers");
    }
    moei_html_put(html, ": how it learned, how its router shared out the work, and what each expert came to "
                        "stand for.</p>\n");
}

static void say_held_out(moei_html *html, const moei_run *run) {
    double bits = moei_run_held_out(run);
    if (!isfinite(bits)) {
        moei_html_put(html, "<li>No held-out text was evaluated yet.</li>\n");
        return;
    }
    moei_html_printf(html, "<li>On held-out text the model needs <strong>%s bits per byte</strong>",
                     moei_fixed(bits, 2).s);
    for (int32_t i = 0; i < run->eval.n_baselines; ++i) {
        double share = bits / run->eval.baseline[i].bits_per_byte - 1;
        int32_t left = run->eval.n_baselines - i;
        moei_html_put(html, i == 0 ? ": " : left == 1 ? " and " : ", ");
        moei_html_printf(html, "%s %s than ", moei_percent(fabs(share), 0).s, share < 0 ? "fewer" : "more");
        moei_html_text(html, run->eval.baseline[i].name);
    }
    moei_html_put(html, ".</li>\n");
}

static const char *balance(double cv) {
    return cv < even ? "even" : cv < fairly_even ? "fairly even" : cv < uneven ? "uneven" : "very uneven";
}

static void say_load(moei_html *html, const moei_metrics *metrics) {
    double cv = 0, busiest = 0, dropped = 0, dead = 0;
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        cv = fmax(cv, moei_metrics_tail(metrics, l, MOEI_CV).mean);
        busiest = fmax(busiest, moei_metrics_tail(metrics, l, MOEI_MAX_LOAD).mean);
        dropped = fmax(dropped, moei_metrics_tail(metrics, l, MOEI_DROPPED).mean);
        dead += moei_metrics_tail(metrics, l, MOEI_DEAD).low;
    }
    moei_html_printf(
        html,
        "<li>In the last quarter of the run the load is <strong>%s</strong>: in the least balanced layer "
        "it varies by %s of its mean, and the busiest expert gets %s times its fair share.</li>\n",
        balance(cv), moei_percent(cv, 0).s, moei_fixed(busiest, 2).s);
    moei_html_put(html, "<li>");
    if (dead >= 0.5) {
        moei_html_printf(html, "<strong>%s %s</strong> never got a row there", moei_fixed(dead, 0).s,
                         dead < 1.5 ? "expert" : "experts");
    } else {
        moei_html_put(html, "No expert stays without work");
    }
    if (dropped > 0) {
        moei_html_printf(html, "; up to %s of a layer&#8217;s rows are dropped.</li>\n",
                         moei_percent(dropped, 2).s);
    } else {
        moei_html_put(html, "; no row is dropped.</li>\n");
    }
}

static void say_alarms(moei_html *html, const moei_metrics *metrics) {
    if (metrics->n_alarms == 0) return;
    moei_html_printf(
        html,
        "<li><strong>%s %s</strong> rang while it trained; <a href=\"#alarms\">they are listed</a> "
        "under the balance.</li>\n",
        moei_count(metrics->n_alarms).s, metrics->n_alarms == 1 ? "alarm" : "alarms");
}

static void say_follow(moei_html *html, const moei_eval *eval) {
    double token = 0, position = 0;
    int32_t n = 0;
    for (int32_t l = 0; l < eval->n_layers; ++l) {
        if (!*moei_words_follow(&eval->layer[l])) continue;
        token += eval->layer[l].token_bits / eval->layer[l].expert_bits;
        position += eval->layer[l].position_bits / eval->layer[l].expert_bits;
        ++n;
    }
    if (n == 0) return;
    token /= n, position /= n;
    const char *what = token >= follows && token > position ? "the token"
                       : position >= follows                ? "the position"
                                                            : "the context";
    moei_html_printf(
        html,
        "<li>Experts follow <strong>%s</strong>: over all layers the token explains %s of which expert "
        "comes first, the position %s.</li>\n",
        what, moei_percent(token, 0).s, moei_percent(position, 1).s);
}

static void say_progress(moei_html *html, const moei_run *run) {
    const char *planned = moei_run_setting(run, "train.steps");
    int64_t steps = planned ? strtoll(planned, NULL, 10) : 0;
    if (!run->metrics.found || run->metrics.last_step >= steps) return;
    moei_html_printf(html, "<li>The run has reached step %s of %s: %s.</li>\n",
                     moei_count(run->metrics.last_step).s, moei_count(steps).s,
                     run->metrics.finished ? "its time (train.max_seconds) was over"
                                           : "it is still going, or was stopped");
}

void moei_words_findings(moei_html *html, const moei_run *run) {
    moei_html_put(html, "<ul class=\"findings\">\n");
    say_progress(html, run);
    say_held_out(html, run);
    if (run->metrics.n_layers > 0) say_load(html, &run->metrics);
    say_alarms(html, &run->metrics);
    say_follow(html, &run->eval);
    moei_html_put(html, "</ul>\n");
}
