/* run.c: which files a run directory has, read one after the other into one struct.
 * What is missing stays empty; only a directory with nothing of a run is refused.
 * Source: docs/run-directory.md.
 */
#include "report/run.h"
#include "core/status.h"
#include "format/file.h"
#include "format/json.h"
#include "format/yaml.h"

#include <moekit/lm.h>

#include <stdlib.h>
#include <string.h>

struct moelm_pool_block {
    struct moelm_pool_block *previous;
    max_align_t data[];
};

void *moelm_pool_take(moelm_pool *pool, size_t count, size_t bytes) {
    const size_t most = (SIZE_MAX >> 1) / (bytes > 0 ? bytes : 1);
    if (count > most) return NULL;
    struct moelm_pool_block *block = calloc(1, sizeof *block + count * bytes);
    if (!block) return NULL;
    block->previous = pool->last;
    pool->last = block;
    return block->data;
}

void moelm_pool_free(moelm_pool *pool) {
    while (pool->last) {
        struct moelm_pool_block *block = pool->last;
        pool->last = block->previous;
        free(block);
    }
}

static char *copy(moelm_pool *pool, const char *text, size_t length) {
    char *to = moelm_pool_take(pool, length + 1, 1);
    if (to) memcpy(to, text, length);
    return to;
}

static moe_status no_memory(const char *path, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for what it holds", path);
}

typedef struct settings {
    moelm_run *run;
    const char *path;
    moe_error *error;
} settings;

static moe_status add_setting(void *user, const char *key, const char *value, int line, int column) {
    (void)line;
    (void)column;
    enum { ROOM = 64 };
    const settings *to = user;
    moelm_run *run = to->run;
    if (run->n_settings % ROOM == 0) {
        moelm_setting *more = moelm_pool_take(&run->pool, (size_t)run->n_settings + ROOM, sizeof *more);
        if (!more) return no_memory(to->path, to->error);
        if (run->n_settings > 0) memcpy(more, run->setting, (size_t)run->n_settings * sizeof *more);
        run->setting = more;
    }
    moelm_setting *setting = &run->setting[run->n_settings];
    setting->key = copy(&run->pool, key, strlen(key));
    setting->value = copy(&run->pool, value, strlen(value));
    if (!setting->key || !setting->value) return no_memory(to->path, to->error);
    run->n_settings += 1;
    return MOE_OK;
}

bool moelm_run_is_dense(const moelm_run *run) {
    const moelm_report_load *load = &run->load;
    const bool none = load->n_layers > 0 ? load->first[load->n_layers] == 0 : run->eval.found;
    return none && run->metrics.n_layers == 0 && run->eval.n_layers == 0;
}

const char *moelm_run_setting(const moelm_run *run, const char *key) {
    for (int64_t i = 0; i < run->n_settings; ++i) {
        if (strcmp(run->setting[i].key, key) == 0) return run->setting[i].value;
    }
    return NULL;
}

const json_t *moelm_run_input(const moelm_run *run, const char *key) {
    const json_t *inputs = json_object_get(run->about, "inputs");
    for (size_t i = 0; i < json_array_size(inputs); ++i) {
        const json_t *input = json_array_get(inputs, i);
        const char *name = json_string_value(json_object_get(input, "key"));
        if (name && strcmp(name, key) == 0) return input;
    }
    return NULL;
}

bool moelm_run_has_tokenizer(const moelm_run *run) {
    return moelm_run_input(run, "data.tokenizer") != NULL;
}

/* A run of another version may have settings that are not ours; they are shown all the same. */
static moe_status judge_settings(const char *path, moelm_run *run, moe_error *error) {
    moe_lm_config *config;
    moe_lm_config_entry entry;
    MOEI_TRY(moe_lm_config_create(&config, error));
    for (int64_t i = 0; i < run->n_settings; ++i) {
        moelm_setting *setting = &run->setting[i];
        const bool known = moe_lm_config_find(config, setting->key, &entry, NULL) == MOE_OK;
        setting->changed = !known || strcmp(entry.value, setting->value) != 0;
    }
    if (moe_lm_config_load(config, path, NULL) == MOE_OK) run->foresight = moe_lm_config_foresight(config);
    moe_lm_config_destroy(config);
    return MOE_OK;
}

/* One reader a file, all of one type, so that the list below is the list of a run's files. */
typedef moe_status (*reader)(const char *path, moelm_run *run, moe_error *error);

static moe_status read_about(const char *path, moelm_run *run, moe_error *error) {
    return moelm_json_load(path, &run->about, error);
}
static moe_status read_config(const char *path, moelm_run *run, moe_error *error) {
    settings to = {.run = run, .path = path, .error = error};
    MOEI_TRY(moelm_yaml_load(path, add_setting, &to, error));
    return judge_settings(path, run, error);
}
/* run.json is read before: it tells how many bytes a token stands for, if not one. */
static double bytes_per_token(const moelm_run *run) {
    const double bytes =
        json_number_value(json_object_get(moelm_run_input(run, "data.train"), "bytes_per_token"));
    return bytes > 0 ? bytes : 1;
}
static moe_status read_metrics(const char *path, moelm_run *run, moe_error *error) {
    run->metrics.bytes_per_token = bytes_per_token(run);
    return moelm_report_metrics_read(path, &run->pool, &run->metrics, error);
}
static moe_status read_load(const char *path, moelm_run *run, moe_error *error) {
    return moelm_report_load_read(path, &run->pool, &run->load, error);
}
static moe_status read_eval(const char *path, moelm_run *run, moe_error *error) {
    return moelm_eval_read(path, &run->pool, &run->eval_json, &run->eval, error);
}
static moe_status read_sample(const char *path, moelm_run *run, moe_error *error) {
    moelm_file_map map;
    MOEI_TRY(moelm_file_map_open(path, &map, error));
    size_t shown = map.bytes < MOELM_SAMPLE_BYTES ? map.bytes : MOELM_SAMPLE_BYTES;
    run->sample = copy(&run->pool, (const char *)map.data, shown);
    run->sample_bytes = map.bytes;
    moelm_file_map_close(&map);
    return run->sample ? MOE_OK : no_memory(path, error);
}

static const struct {
    const char *name;
    reader read;
} file[] = {
    {"run.json",             read_about  },
    {"config.resolved.yaml", read_config },
    {"metrics.jsonl",        read_metrics},
    {"load.bin",             read_load   },
    {"eval.json",            read_eval   },
    {"sample.txt",           read_sample }
};
enum { FILES = sizeof file / sizeof *file };

bool moelm_run_reads(const char *run_dir, const char *path) {
    bool reads = false;
    for (size_t i = 0; i < FILES && !reads; ++i) {
        char *read = moelm_path_join(run_dir, file[i].name);
        reads = read && moelm_path_same(read, path);
        free(read);
    }
    return reads;
}

static moe_status read_files(const char *run_dir, moelm_run *run, moe_error *error) {
    bool any = false;
    for (size_t i = 0; i < FILES; ++i) {
        char *path = moelm_path_join(run_dir, file[i].name);
        if (!path) return no_memory(run_dir, error);
        moe_status status = MOE_OK;
        if (moelm_file_exists(path)) {
            any = true;
            status = file[i].read(path, run, error);
        }
        free(path);
        MOEI_TRY(status);
    }
    if (any) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INPUT,
                          "%s: not a run directory: none of run.json, metrics.jsonl, eval.json is in it",
                          run_dir);
}

static const char *last_part(moelm_pool *pool, const char *path) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') --end;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') --start;
    return copy(pool, path + start, end - start);
}

moe_status moelm_run_read(const char *run_dir, moelm_run *run, moe_error *error) {
    *run = (moelm_run){0};
    run->name = last_part(&run->pool, run_dir);
    if (!run->name) return no_memory(run_dir, error);
    return read_files(run_dir, run, error);
}

void moelm_run_free(moelm_run *run) {
    json_decref(run->about);
    json_decref(run->eval_json);
    moelm_pool_free(&run->pool);
    *run = (moelm_run){0};
}
