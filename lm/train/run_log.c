/* run_log.c: metrics.jsonl, load.bin and main.log, and the line that a terminal shows.
 * One object a logged step; layers without routed experts are left out.
 * Source: docs/run-directory.md.
 */
#include "train/run_log.h"

#include "core/status.h"
#include "format/file.h"
#include "format/lines.h"
#include "train/load_file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct moelm_run_log {
    moelm_lines *metrics, *log;
    moelm_load_file *load;
};

/* 1. Opening. */

#define METRICS_START "{\"schema\":1,\"step\":"

/* Lines of later steps are cut: a resumed run writes them again. */
static bool keep_metrics(void *user, const char *line, size_t length) {
    const int64_t *step = user;
    size_t start = sizeof METRICS_START - 1;
    char digits[24] = "";
    if (length <= start || memcmp(line, METRICS_START, start) != 0) return false;
    size_t rest = length - start < sizeof digits - 1 ? length - start : sizeof digits - 1;
    memcpy(digits, line + start, rest);
    return strtoll(digits, NULL, 10) <= *step;
}

static moe_status open_lines(const char *run_dir, const char *name, moelm_lines_keep_fn keep, void *user,
                             moelm_lines **lines, moe_error *error) {
    char *path = moelm_path_join(run_dir, name);
    if (!path) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", run_dir);
    moe_status status = moelm_lines_open(path, keep, user, lines, error);
    free(path);
    return status;
}

static moe_status open_load(const char *run_dir, int64_t step, const moelm_load *shape,
                            moelm_load_file **load, moe_error *error) {
    char *path = moelm_path_join(run_dir, "load.bin");
    if (!path) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", run_dir);
    moe_status status = moelm_load_file_open(path, shape, step, load, error);
    free(path);
    return status;
}

moe_status moelm_run_log_open(const char *run_dir, int64_t step, const moelm_load *shape, moelm_run_log **log,
                              moe_error *error) {
    moelm_run_log *made = calloc(1, sizeof *made);
    if (!made) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", run_dir);
    moe_status status = open_lines(run_dir, "main.log", NULL, NULL, &made->log, error);
    if (status == MOE_OK)
        status = open_lines(run_dir, "metrics.jsonl", keep_metrics, &step, &made->metrics, error);
    if (status == MOE_OK) status = open_load(run_dir, step, shape, &made->load, error);
    if (status != MOE_OK) {
        moelm_run_log_close(made);
        return status;
    }
    *log = made;
    return MOE_OK;
}

void moelm_run_log_close(moelm_run_log *log) {
    if (!log) return;
    moelm_load_file_close(log->load);
    moelm_lines_close(log->metrics);
    moelm_lines_close(log->log);
    free(log);
}

/* 2. metrics.jsonl. */

/* JSON has no NaN: null says that there is no such number. */
static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

/* A loss that the layer has not is left out. */
static json_t *layer_object(const moelm_load *load, int32_t layer, const moelm_router_stats *router) {
    moelm_balance balance = moelm_load_balance(load, layer);
    json_t *object =
        json_pack("{s:i, s:i, s:o, s:o, s:f, s:f, s:f, s:o, s:f, s:i, s:o}", "layer", layer, "experts",
                  moelm_load_experts(load, layer), "aux_loss", number(router->aux_loss), "z_loss",
                  number(router->z_loss), "load_cv", balance.cv, "load_max", balance.max, "load_entropy",
                  balance.entropy, "router_entropy", number(router->entropy), "dropped", balance.dropped,
                  "dead", balance.n_dead, "router_loss", number(router->total));
    for (int32_t i = 0; object && i < MOELM_OPTIONAL_LOSSES; ++i)
        if (!isnan(router->optional[i]))
            json_object_set_new(object, moelm_optional_loss(i), number(router->optional[i]));
    return object;
}

static json_t *alarm_object(const moelm_alarm *alarm) {
    json_t *object = json_pack("{s:s, s:i}", "kind", moelm_alarm_name(alarm->kind), "layer", alarm->layer);
    if (!object) return NULL;
    json_object_set_new(object, "steps", json_integer((json_int_t)alarm->steps));
    if (alarm->kind == MOELM_ALARM_DEAD) {
        json_object_set_new(object, "expert", json_integer(alarm->expert));
        json_object_set_new(object, "revived_from",
                            alarm->from < 0 ? json_null() : json_integer(alarm->from));
    } else {
        json_object_set_new(object, "value", json_real(alarm->value));
        json_object_set_new(object, "bound", json_real(alarm->bound));
    }
    return object;
}

static char *metrics_line(const moelm_metrics *m) {
    const moe_lm_progress *p = m->progress;
    const moelm_load *load = m->load;
    json_t *layers = json_array(), *alarms = m->alarms && m->alarms->n_ringing > 0 ? json_array() : NULL;
    for (int32_t l = 0; m->layers && l < load->n_layers; ++l)
        if (moelm_load_experts(load, l) > 0)
            json_array_append_new(layers, layer_object(load, l, &m->router[l]));
    for (int32_t i = 0; alarms && i < m->alarms->n_ringing; ++i)
        json_array_append_new(alarms, alarm_object(&m->alarms->ringing[i]));
    json_t *line = json_pack(
        "{s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:o, s:o, s:o*}", "schema", 1, "step",
        (json_int_t)p->step, "tokens", (json_int_t)p->tokens, "loss", p->loss, "aux_loss", p->aux_loss,
        "z_loss", p->z_loss, "lr", p->lr, "grad_norm", p->grad_norm, "tokens_per_second",
        number(p->tokens_per_second), "elapsed_s", p->elapsed_s, "eval_bits_per_byte",
        m->evaluated ? number(p->eval_bits_per_byte) : json_null(), "layers", layers, "alarms", alarms);
    if (line && m->finished) json_object_set_new(line, "finished", json_true());
    char *text = line ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(line);
    return text;
}

moe_status moelm_run_log_metrics(moelm_run_log *log, const moelm_metrics *metrics, moe_error *error) {
    char *text = metrics_line(metrics);
    if (!text) return moei_error_set(error, MOE_ERR_MEMORY, "metrics.jsonl: out of memory");
    moe_status status = moelm_lines_append(log->metrics, text, error);
    free(text);
    return status;
}

/* 3. load.bin and main.log. */

moe_status moelm_run_log_load(moelm_run_log *log, int64_t step, const moelm_load *load, moe_error *error) {
    return moelm_load_file_append(log->load, step, load, error);
}

moe_status moelm_run_log_say(moelm_run_log *log, const char *text, moe_error *error) {
    return moelm_lines_append(log->log, text, error);
}

moe_status moelm_run_log_sync(moelm_run_log *log, moe_error *error) {
    MOEI_TRY(moelm_lines_sync(log->metrics, error));
    MOEI_TRY(moelm_load_file_sync(log->load, error));
    return moelm_lines_sync(log->log, error);
}

/* 4. The line of a terminal. */

/* With a decimal unit: 41.2k. */
static void print_rate(double rate, char *text, size_t size) {
    static const char *const unit[] = {"", "k", "M", "G"};
    size_t i = 0;
    for (; rate >= 1000 && i < 3; ++i) rate /= 1000;
    snprintf(text, size, "%.*f%s", i > 0, rate, unit[i]);
}

static void print_duration(double seconds, char *text, size_t size) {
    if (!isfinite(seconds))
        snprintf(text, size, "?");
    else if (seconds < 100)
        snprintf(text, size, "%.0fs", seconds);
    else if (seconds < 6000)
        snprintf(text, size, "%.0fm", seconds / 60);
    else
        snprintf(text, size, "%.1fh", seconds / 3600);
}

void moe_lm_progress_text(const moe_lm_progress *p, char *text, size_t size) {
    if (!p || !text) return;
    if (p->event && strcmp(p->event, "eval") == 0) {
        snprintf(text, size, "step=%lld/%lld held-out text: %.4f bits per byte", (long long)p->step,
                 (long long)p->steps, p->eval_bits_per_byte);
        return;
    }
    if (p->event) {
        snprintf(text, size, "step=%lld/%lld %s", (long long)p->step, (long long)p->steps, p->event);
        return;
    }
    /* what matters most comes first: a terminal may cut the end */
    char rate[32], eta[32], eval[32] = "";
    print_rate(p->tokens_per_second, rate, sizeof rate);
    print_duration(p->eta_s, eta, sizeof eta);
    if (p->eval_step == p->step && isfinite(p->eval_bits_per_byte))
        snprintf(eval, sizeof eval, " eval=%.4f", p->eval_bits_per_byte);
    snprintf(
        text, size,
        "step=%lld/%lld loss=%.4f eta=%s aux=%.4f z=%.4f lr=%.1e gnorm=%.2f tok/s=%s drop=%.1f%% cv=%.2f "
        "maxload=%.2f dead=%d%s",
        (long long)p->step, (long long)p->steps, p->loss, eta, p->aux_loss, p->z_loss, p->lr, p->grad_norm,
        rate, 100 * p->dropped, p->load_cv, p->load_max, p->n_dead, eval);
}
