/* read_metrics.c: metrics.jsonl into buckets of steps: mean, lowest and highest of every quantity.
 * Lines in, curves of at most MOELM_POINTS points out; a torn last line is left out and told.
 * Source: docs/run-directory.md, section metrics.jsonl.
 */
#include "config/config.h"
#include "core/status.h"
#include "format/file.h"
#include "format/json.h"
#include "report/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MANY_LAYERS = 12 };

/* Keys of the two series enums, in their order. */
static const char *const run_key[MOELM_RUN_SERIES] = {
    "loss", "aux_loss", "z_loss", "grad_norm", "lr", "tokens_per_second", "eval_bits_per_byte"};
static const char *const layer_key[MOELM_LAYER_SERIES] = {"load_cv",        "load_max", "load_entropy",
                                                          "router_entropy", "dropped",  "dead"};

const moelm_point *moelm_report_metrics_layer(const moelm_report_metrics *metrics, int32_t index,
                                              moelm_layer_series series) {
    return metrics->of_layer + ((int64_t)index * MOELM_LAYER_SERIES + series) * metrics->n_points;
}

static void add(moelm_point *point, double value) {
    if (!isfinite(value)) return;
    if (point->n == 0 || value < point->low) point->low = value;
    if (point->n == 0 || value > point->high) point->high = value;
    point->n += 1;
    point->mean += (value - point->mean) / (double)point->n;
}

/* The lines of the file: where the next one starts, and how many there are. */
typedef struct lines {
    const char *data;
    size_t bytes, at;
    int64_t number; /* of the line handed out last, from 1 */
} lines;

static bool next_line(lines *text, const char **line, size_t *length) {
    while (text->at < text->bytes) {
        const char *start = text->data + text->at;
        const char *end = memchr(start, '\n', text->bytes - text->at);
        *line = start;
        *length = end ? (size_t)(end - start) : text->bytes - text->at;
        text->at += *length + 1;
        text->number += 1;
        if (*length > 0) return true;
    }
    return false;
}

static int64_t count_lines(const char *data, size_t bytes) {
    lines text = {.data = data, .bytes = bytes};
    const char *line;
    size_t length;
    int64_t n = 0;
    while (next_line(&text, &line, &length)) ++n;
    return n;
}

/* Messages name file:line:column, which for a file of one-line objects is the line of the file. */
static moe_status parse_line(const char *path, const lines *text, const char *line, size_t length,
                             json_t **object, moe_error *error) {
    json_error_t fault;
    *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, &fault);
    if (!*object) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s:%lld:%d: %s", path, (long long)text->number,
                              fault.column, fault.text);
    }
    if (json_is_object(*object)) return MOE_OK;
    json_decref(*object);
    return moei_error_set(error, MOE_ERR_INPUT, "%s:%lld: expected an object of one step", path,
                          (long long)text->number);
}

/* The first line says which layers there are; every other line must have the same. */
static moe_status make_room(const json_t *object, const char *where, moelm_pool *pool,
                            moelm_report_metrics *metrics, moe_error *error) {
    json_t *layers = json_object_get(object, "layers");
    size_t n_layers = json_array_size(layers);
    if (n_layers > MOELM_MAX_LAYERS) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %zu layers; at most %d are read", where, n_layers,
                              MOELM_MAX_LAYERS);
    }
    int64_t most = n_layers > MANY_LAYERS ? MOELM_POINTS / 2 : MOELM_POINTS;
    metrics->n_points = (int32_t)(metrics->n_lines < most ? metrics->n_lines : most);
    metrics->n_layers = (int32_t)n_layers;
    size_t points = (size_t)metrics->n_points;
    metrics->step = moelm_pool_take(pool, points, sizeof(double));
    metrics->layer = moelm_pool_take(pool, n_layers, sizeof(int32_t));
    metrics->experts = moelm_pool_take(pool, n_layers, sizeof(int32_t));
    metrics->of_layer = moelm_pool_take(pool, n_layers * MOELM_LAYER_SERIES * points, sizeof(moelm_point));
    moelm_point *run = moelm_pool_take(pool, MOELM_RUN_SERIES * points, sizeof(moelm_point));
    if (!metrics->step || !metrics->layer || !metrics->experts || !metrics->of_layer || !run) {
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for %zu layers", where, n_layers);
    }
    for (int32_t s = 0; s < MOELM_RUN_SERIES; ++s) metrics->run[s] = run + (size_t)s * points;
    for (size_t i = 0; i < n_layers; ++i) {
        int64_t layer, experts;
        const json_t *entry = json_array_get(layers, i);
        MOEI_TRY(moelm_json_get_int(entry, where, "layer", 0, INT32_MAX, &layer, error));
        MOEI_TRY(moelm_json_get_int(entry, where, "experts", 1, MOELM_MAX_EXPERTS, &experts, error));
        metrics->layer[i] = (int32_t)layer;
        metrics->experts[i] = (int32_t)experts;
    }
    return MOE_OK;
}

static moe_status add_layers(const json_t *object, const char *where, int64_t bucket,
                             moelm_report_metrics *metrics, moe_error *error) {
    const json_t *layers = json_object_get(object, "layers");
    if (json_array_size(layers) != (size_t)metrics->n_layers) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %zu layers, but %d on the first line", where,
                              json_array_size(layers), metrics->n_layers);
    }
    for (int32_t i = 0; i < metrics->n_layers; ++i) {
        for (int32_t s = 0; s < MOELM_LAYER_SERIES; ++s) {
            double value = NAN;
            MOEI_TRY(
                moelm_json_opt_real(json_array_get(layers, (size_t)i), where, layer_key[s], &value, error));
            add(metrics->of_layer + ((int64_t)i * MOELM_LAYER_SERIES + s) * metrics->n_points + bucket,
                value);
        }
    }
    return MOE_OK;
}

static moe_status read_alarm(const json_t *object, const char *where, int64_t step, moelm_report_alarm *alarm,
                             moe_error *error) {
    const char *kind;
    int64_t layer, expert = -1, from = -1;
    *alarm = (moelm_report_alarm){.step = step, .value = NAN, .bound = NAN};
    MOEI_TRY(moelm_json_get_string(object, where, "kind", &kind, error));
    MOEI_TRY(moelm_json_get_int(object, where, "layer", 0, INT32_MAX, &layer, error));
    MOEI_TRY(moelm_json_get_int(object, where, "steps", 0, INT64_MAX, &alarm->steps, error));
    MOEI_TRY(moelm_json_opt_int(object, where, "expert", 0, MOELM_MAX_EXPERTS, &expert, error));
    MOEI_TRY(moelm_json_opt_int(object, where, "revived_from", 0, MOELM_MAX_EXPERTS, &from, error));
    MOEI_TRY(moelm_json_opt_real(object, where, "value", &alarm->value, error));
    MOEI_TRY(moelm_json_opt_real(object, where, "bound", &alarm->bound, error));
    alarm->kind = strcmp(kind, "dead") == 0 ? 'd' : strcmp(kind, "entropy") == 0 ? 'e' : 'r';
    alarm->layer = (int32_t)layer;
    alarm->expert = (int32_t)expert;
    alarm->revived_from = (int32_t)from;
    return MOE_OK;
}

static moe_status add_alarms(const json_t *object, const char *where, int64_t step,
                             moelm_report_metrics *metrics, moe_error *error) {
    const json_t *alarms = json_object_get(object, "alarms");
    for (size_t i = 0; i < json_array_size(alarms); ++i, ++metrics->n_alarms)
        if (metrics->n_alarms < MOELM_ALARMS)
            MOEI_TRY(read_alarm(json_array_get(alarms, i), where, step, &metrics->alarm[metrics->n_alarms],
                                error));
    return MOE_OK;
}

static moe_status add_line(const json_t *object, const char *where, int64_t bucket,
                           moelm_report_metrics *metrics, moe_error *error) {
    int64_t step;
    MOEI_TRY(moelm_json_get_int(object, where, "step", 0, INT64_MAX, &step, error));
    MOEI_TRY(moelm_json_opt_int(object, where, "tokens", 0, INT64_MAX, &metrics->tokens, error));
    MOEI_TRY(moelm_json_opt_real(object, where, "elapsed_s", &metrics->elapsed_s, error));
    for (int32_t s = 0; s < MOELM_RUN_SERIES; ++s) {
        double value = NAN;
        MOEI_TRY(moelm_json_opt_real(object, where, run_key[s], &value, error));
        if (s == MOELM_LOSS) value /= log(2.0) * metrics->bytes_per_token; /* nats a token to bits a byte */
        add(&metrics->run[s][bucket], value);
    }
    metrics->step[bucket] = (double)step;
    metrics->last_step = step;
    metrics->finished = json_is_true(json_object_get(object, "finished"));
    MOEI_TRY(add_alarms(object, where, step, metrics, error));
    return add_layers(object, where, bucket, metrics, error);
}

static moe_status read_lines(const char *path, lines *text, moelm_pool *pool, moelm_report_metrics *metrics,
                             moe_error *error) {
    const char *line;
    size_t length;
    for (int64_t i = 0; next_line(text, &line, &length) && i < metrics->n_lines; ++i) {
        char where[600];
        json_t *object;
        snprintf(where, sizeof where, "%s:%lld", path, (long long)text->number);
        MOEI_TRY(parse_line(path, text, line, length, &object, error));
        moe_status status = i == 0 ? make_room(object, where, pool, metrics, error) : MOE_OK;
        if (status == MOE_OK) {
            status = add_line(object, where, i * metrics->n_points / metrics->n_lines, metrics, error);
        }
        json_decref(object);
        MOEI_TRY(status);
    }
    return MOE_OK;
}

moe_status moelm_report_metrics_read(const char *path, moelm_pool *pool, moelm_report_metrics *metrics,
                                     moe_error *error) {
    moelm_file_map map;
    MOEI_TRY(moelm_file_map_open(path, &map, error));
    lines text = {.data = (const char *)map.data, .bytes = map.bytes};
    /* A line is whole only with its newline: one that a killed or running training is writing is left out. */
    metrics->torn = map.bytes > 0 && map.data[map.bytes - 1] != '\n';
    while (metrics->torn && text.bytes > 0 && text.data[text.bytes - 1] != '\n') --text.bytes;
    metrics->n_lines = count_lines(text.data, text.bytes);
    metrics->found = metrics->n_lines > 0;
    moe_status status = read_lines(path, &text, pool, metrics, error);
    moelm_file_map_close(&map);
    return status;
}
