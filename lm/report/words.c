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

double moelm_run_bits(const moelm_run *run) {
    if (run->eval.found) return run->eval.bits_per_byte;
    const moelm_report_metrics *metrics = &run->metrics;
    for (int32_t i = metrics->n_points - 1; i >= 0; --i) {
        if (metrics->run[MOELM_HELD_OUT][i].n > 0) return metrics->run[MOELM_HELD_OUT][i].mean;
    }
    return NAN;
}

/* "" where run.json does not tell. */
static const char *input_hash(const moelm_run *run, const char *key) {
    const char *hash = json_string_value(json_object_get(moelm_run_input(run, key), "sha256"));
    return hash ? hash : "";
}

moelm_text_kind moelm_run_text(const moelm_run *run) {
    const char *train = input_hash(run, "data.train"), *held_out = input_hash(run, "data.eval");
    const char *text = run->eval.found ? run->eval.sha256 : held_out;
    if (*text == '\0') return MOELM_TEXT_OTHER;
    if (strcmp(text, train) == 0) return MOELM_TEXT_TRAINED;
    return strcmp(text, held_out) == 0 ? MOELM_TEXT_HELD_OUT : MOELM_TEXT_OTHER;
}

double moelm_run_parameters(const moelm_run *run, const char *which) {
    const json_t *number = json_object_get(json_object_get(run->about, "parameters"), which);
    return json_is_number(number) ? json_number_value(number) : NAN;
}

moelm_point moelm_report_metrics_tail(const moelm_report_metrics *metrics, int32_t index,
                                      moelm_layer_series series) {
    const moelm_point *points = moelm_report_metrics_layer(metrics, index, series);
    moelm_point tail = {.low = INFINITY, .high = -INFINITY};
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

const char *moelm_words_follow(const moelm_eval_layer *layer) {
    if (!(layer->expert_bits > 0)) return "";
    double token = layer->token_bits / layer->expert_bits,
           position = layer->position_bits / layer->expert_bits;
    if (!isfinite(token) || !isfinite(position)) return "";
    if (token >= follows && position >= follows) return "token and position";
    if (token >= follows) return "token";
    return position >= follows ? "position" : "context";
}

static void shares(moelm_html *html, const moelm_eval_layer *layer) {
    moelm_html_printf(html, "the token at hand explains %s of the choice, ",
                      moelm_percent(layer->token_bits / layer->expert_bits, 0).s);
    if (isfinite(layer->previous_bits)) {
        moelm_html_printf(html, "the token before it %s, ",
                          moelm_percent(layer->previous_bits / layer->expert_bits, 0).s);
    }
    moelm_html_printf(html, "its position in the window %s.",
                      moelm_percent(layer->position_bits / layer->expert_bits, 1).s);
}

void moelm_words_follow_sentence(moelm_html *html, const moelm_eval_layer *layer) {
    const char *what = moelm_words_follow(layer);
    if (!*what) {
        moelm_html_put(html, layer->expert_bits <= 0
                                 ? "one expert is always the first choice: nothing to explain."
                                 : "what the experts follow was not measured.");
    } else if (strcmp(what, "context") != 0) {
        moelm_html_printf(html, "experts follow the <strong>%s</strong>: ", what);
        shares(html, layer);
    } else if (layer->token_bits < nothing * layer->expert_bits) {
        moelm_html_put(html, "experts follow neither token nor position, but the <strong>context</strong>: ");
        shares(html, layer);
    } else {
        moelm_html_put(html, "experts follow the token only a little, mostly the <strong>context</strong>: ");
        shares(html, layer);
    }
}

void moelm_words_lead(moelm_html *html, const moelm_run *run) {
    double total = moelm_run_parameters(run, "total"), active = moelm_run_parameters(run, "active");
    const moelm_report_metrics *metrics = &run->metrics;
    moelm_html_put(html, "<p class=\"lead\">A language model");
    if (isfinite(total)) moelm_html_printf(html, " of %s parameters", moelm_short(total).s);
    if (isfinite(active))
        moelm_html_printf(html, ", %s of them at work on any one %s", moelm_short(active).s,
                          moelm_run_has_tokenizer(run) ? "token" : "byte");
    if (metrics->n_layers > 0) {
        moelm_html_printf(html, ", with %d experts in each of %d %s", metrics->experts[0], metrics->n_layers,
                          metrics->n_layers == 1 ? "layer" : "layers");
    }
    moelm_html_put(html,
                   moelm_run_is_dense(run)
                       ? ": how it learned. No layer of this model has routed experts.</p>\n"
                       : ": how it learned, how its router shared out the work, and what each expert came "
                         "to stand for.</p>\n");
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void say_bits(moelm_html *html, const moelm_run *run) {
    static const char *const kind[] = {[MOELM_TEXT_HELD_OUT] = "On held-out text",
                                       [MOELM_TEXT_TRAINED] = "On text it was <strong>trained on</strong>",
                                       [MOELM_TEXT_OTHER] = "On another text than the run&#8217;s own"};
    double bits = moelm_run_bits(run);
    if (!isfinite(bits)) {
        moelm_html_put(html, "<li>No held-out text was evaluated yet.</li>\n");
        return;
    }
    moelm_html_printf(html, "<li>%s", kind[moelm_run_text(run)]);
    if (run->eval.found) {
        moelm_html_put(html, " (");
        moelm_html_text(html, run->eval.text);
        moelm_html_printf(html, ", %s bytes; ", moelm_count(run->eval.bytes).s);
        moelm_html_text(html, last_part(run->eval.checkpoint));
        moelm_html_put(html, ")");
    }
    moelm_html_printf(html, " the model needs <strong>%s bits per byte</strong>", moelm_fixed(bits, 2).s);
    for (int32_t i = 0; i < run->eval.n_baselines; ++i) {
        double share = bits / run->eval.baseline[i].bits_per_byte - 1;
        int32_t left = run->eval.n_baselines - i;
        moelm_html_put(html, i == 0 ? ": " : left == 1 ? " and " : ", ");
        if (fabs(share) < 0.005)
            moelm_html_put(html, "as many as ");
        else
            moelm_html_printf(html, "%s %s than ", moelm_percent(fabs(share), 0).s,
                              share < 0 ? "fewer" : "more");
        moelm_html_text(html, run->eval.baseline[i].name);
    }
    moelm_html_put(html, ".</li>\n");
    if (run->foresight)
        moelm_html_printf(html,
                          "<li><strong>This figure looks ahead</strong> and does not compare with those of "
                          "models that see only what was before: %s.</li>\n",
                          run->foresight);
}

static const char *balance(double cv) {
    return cv < even ? "even" : cv < fairly_even ? "fairly even" : cv < uneven ? "uneven" : "very uneven";
}

/* Experts without a row in the last quarter of load.bin. */
static int64_t count_idle(const moelm_report_load *load) {
    int64_t idle = 0;
    for (int64_t e = 0; load->found && e < load->first[load->n_layers]; ++e) idle += load->late[e] == 0;
    return idle;
}

static void say_load(moelm_html *html, const moelm_run *run) {
    const moelm_report_metrics *metrics = &run->metrics;
    const moelm_report_load *load = &run->load;
    double cv = 0, busiest = -1, dropped = 0; /* -1: not measured */
    for (int32_t l = 0; l < metrics->n_layers; ++l) {
        cv = fmax(cv, moelm_report_metrics_tail(metrics, l, MOELM_CV).mean);
        busiest = fmax(busiest, moelm_report_metrics_tail(metrics, l, MOELM_MAX_LOAD).mean);
        dropped = fmax(dropped, moelm_report_metrics_tail(metrics, l, MOELM_DROPPED).mean);
    }
    if (busiest == 0) {
        moelm_html_put(html,
                       "<li>In the last quarter of the run <strong>no expert has a single row</strong>: "
                       "tokens pass by all of them.</li>\n");
        return;
    }
    moelm_html_printf(
        html,
        "<li>In the last quarter of the run the load is <strong>%s</strong>: in the least balanced layer "
        "it varies by %s of its mean, and the busiest expert gets %s times its fair share.</li>\n",
        balance(cv), moelm_percent(cv, 0).s, moelm_fixed(busiest < 0 ? NAN : busiest, 2).s);
    const int64_t idle = count_idle(load);
    moelm_html_put(html, "<li>");
    if (idle > 0)
        moelm_html_printf(html, "<strong>%s of %s experts</strong> never got a row there; ",
                          moelm_count(idle).s, moelm_count(load->first[load->n_layers]).s);
    else if (load->found)
        moelm_html_put(html, "No expert stays without work; ");
    if (dropped > 0) {
        moelm_html_printf(html, "up to %s of a layer&#8217;s rows are dropped.</li>\n",
                          moelm_percent(dropped, 2).s);
    } else {
        moelm_html_put(html, "no row is dropped.</li>\n");
    }
}

static void say_alarms(moelm_html *html, const moelm_report_metrics *metrics) {
    if (metrics->n_alarms == 0) return;
    moelm_html_printf(
        html,
        "<li><strong>%s %s</strong> rang while it trained; <a href=\"#alarms\">they are listed</a> "
        "under the balance.</li>\n",
        moelm_count(metrics->n_alarms).s, metrics->n_alarms == 1 ? "alarm" : "alarms");
}

static void say_follow(moelm_html *html, const moelm_eval *eval) {
    double token = 0, position = 0;
    int32_t n = 0;
    for (int32_t l = 0; l < eval->n_layers; ++l) {
        if (!*moelm_words_follow(&eval->layer[l])) continue;
        token += eval->layer[l].token_bits / eval->layer[l].expert_bits;
        position += eval->layer[l].position_bits / eval->layer[l].expert_bits;
        ++n;
    }
    if (n == 0) return;
    token /= n, position /= n;
    const char *what = token >= follows && token > position ? "the token"
                       : position >= follows                ? "the position"
                                                            : "the context";
    moelm_html_printf(
        html,
        "<li>Experts follow <strong>%s</strong>: over all layers the token explains %s of which expert "
        "comes first, the position %s.</li>\n",
        what, moelm_percent(token, 0).s, moelm_percent(position, 1).s);
}

static void say_progress(moelm_html *html, const moelm_run *run) {
    const char *planned = moelm_run_setting(run, "train.steps");
    int64_t steps = planned ? strtoll(planned, NULL, 10) : 0;
    if (!run->metrics.found || run->metrics.last_step >= steps) return;
    moelm_html_printf(html, "<li>The run has reached step %s of %s: %s.</li>\n",
                      moelm_count(run->metrics.last_step).s, moelm_count(steps).s,
                      run->metrics.finished ? "its time (train.max_seconds) was over"
                                            : "it is still going, or was stopped");
}

void moelm_words_findings(moelm_html *html, const moelm_run *run) {
    moelm_html_put(html, "<ul class=\"findings\">\n");
    say_progress(html, run);
    say_bits(html, run);
    if (run->metrics.n_layers > 0) say_load(html, run);
    say_alarms(html, &run->metrics);
    say_follow(html, &run->eval);
    moelm_html_put(html, "</ul>\n");
}
