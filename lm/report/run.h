/* run.h: a run directory in memory, cut down to what a page can show.
 * Steps are gathered into at most MOELM_POINTS buckets while reading, load.bin into at most MOELM_BINS, so
 * memory depends on the model and not on how long it trained. Source: docs/run-directory.md.
 */
#ifndef MOELM_RUN_H
#define MOELM_RUN_H

#include <jansson.h>
#include <moekit/moe.h>

enum {
    MOELM_POINTS = 400,         /* points of a curve */
    MOELM_BINS = 120,           /* columns of a heat map */
    MOELM_HEAT_CELLS = 250000,  /* of all heat maps together */
    MOELM_SAMPLE_BYTES = 20000, /* shown of sample.txt */
    MOELM_TYPICAL = 12,         /* tokens of an expert */
    MOELM_ALARMS = 40           /* listed one by one */
};

/* Memory of one run, freed at once. */
typedef struct moelm_pool {
    struct moelm_pool_block *last;
} moelm_pool;
/* Zeroed; NULL when there is none. */
void *moelm_pool_take(moelm_pool *pool, size_t count, size_t bytes);
void moelm_pool_free(moelm_pool *pool);

/* What one bucket of steps held; n = 0: nothing. */
typedef struct moelm_point {
    double mean, low, high;
    int64_t n;
} moelm_point;

typedef enum moelm_run_series {
    MOELM_LOSS = 0, /* bits per byte */
    MOELM_AUX,
    MOELM_Z,
    MOELM_GRAD_NORM,
    MOELM_LR,
    MOELM_SPEED,
    MOELM_HELD_OUT, /* bits per byte */
    MOELM_RUN_SERIES
} moelm_run_series;
typedef enum moelm_layer_series {
    MOELM_CV = 0,
    MOELM_MAX_LOAD,
    MOELM_LOAD_ENTROPY,
    MOELM_ROUTER_ENTROPY,
    MOELM_DROPPED,
    MOELM_DEAD,
    MOELM_LAYER_SERIES
} moelm_layer_series;

typedef struct moelm_report_alarm {
    int64_t step, steps;
    char kind;                           /* 'd' dead expert, 'e' entropy, 'r' rows dropped */
    int32_t layer, expert, revived_from; /* -1: none */
    double value, bound;
} moelm_report_alarm;

typedef struct moelm_report_metrics {
    bool found;
    bool torn; /* the last line is not whole */
    bool finished;
    int64_t n_lines, last_step, tokens;
    double elapsed_s;
    double bytes_per_token; /* 1, unless a tokenizer made the tokens */
    int32_t n_points;
    double *step; /* [n_points] last of the bucket */
    int32_t n_layers;
    int32_t *layer, *experts;               /* [n_layers] */
    moelm_point *run[MOELM_RUN_SERIES];     /* [n_points] each */
    moelm_point *of_layer;                  /* [n_layers, MOELM_LAYER_SERIES, n_points] */
    int64_t n_alarms;                       /* all that rang */
    moelm_report_alarm alarm[MOELM_ALARMS]; /* the first of them */
} moelm_report_metrics;
const moelm_point *moelm_report_metrics_layer(const moelm_report_metrics *metrics, int32_t index,
                                              moelm_layer_series series);

typedef struct moelm_report_load {
    bool found;
    bool torn;
    int64_t n_records;
    int32_t n_layers, n_bins;
    int32_t *experts;  /* [n_layers], 0: dense */
    int64_t *first;    /* [n_layers + 1] column of the layer's first expert */
    uint64_t *step;    /* [n_bins] last of the bin */
    double *routed;    /* [n_bins, first[n_layers]] rows kept and dropped */
    double *dropped;   /* [n_layers] */
    double *routed_in; /* [n_layers] */
    double *late;      /* [first[n_layers]] rows kept and dropped in the last quarter of the records */
} moelm_report_load;

typedef struct moelm_typical {
    int64_t token, count;
    double lift;
    const char *text; /* NULL: a byte, or not told */
} moelm_typical;
typedef struct moelm_eval_layer {
    int32_t layer, experts, top_k;
    double *load;            /* [experts] rows kept */
    double dropped, load_cv; /* dropped: share */
    double router_entropy, expert_bits, token_bits, position_bits, previous_bits;
    int32_t *n_typical;     /* [experts] */
    moelm_typical *typical; /* [experts, MOELM_TYPICAL] */
} moelm_eval_layer;
typedef struct moelm_baseline {
    const char *name;
    double bits_per_byte;
} moelm_baseline;
typedef struct moelm_eval {
    bool found;
    const char *text, *sha256, *checkpoint; /* "" where not told */
    int64_t bytes;
    double bits_per_byte;
    int32_t n_baselines, n_layers;
    moelm_baseline *baseline;
    moelm_eval_layer *layer;
} moelm_eval;

typedef struct moelm_setting {
    const char *key, *value;
    bool changed; /* is not at its default */
} moelm_setting;

typedef struct moelm_run {
    const char *name; /* last part of the directory's path */
    moelm_report_metrics metrics;
    moelm_report_load load;
    moelm_eval eval;
    json_t *about;      /* run.json, NULL: none */
    json_t *eval_json;  /* owns the texts of eval */
    int64_t n_settings; /* config.resolved.yaml, 0: none */
    moelm_setting *setting;
    const char *foresight; /* moe_lm_config_foresight of the settings; NULL: none */
    char *sample;          /* NULL: none */
    size_t sample_bytes;
    moelm_pool pool;
} moelm_run;

/* Reads what is there. Missing files are told by `found`, NULL or 0; broken ones are MOE_ERR_INPUT. */
moe_status moelm_run_read(const char *run_dir, moelm_run *run, moe_error *error);
/* Whether that reads this file. */
bool moelm_run_reads(const char *run_dir, const char *path);
void moelm_run_free(moelm_run *run);
/* Whether no layer has routed experts, as far as the files that tell layers are there. */
bool moelm_run_is_dense(const moelm_run *run);
/* Whether tokens are a tokenizer's; else they are bytes. */
bool moelm_run_has_tokenizer(const moelm_run *run);
/* Value of a setting, NULL if there is none. */
const char *moelm_run_setting(const moelm_run *run, const char *key);
/* What run.json tells of the file under a key ("data.train"); NULL: nothing. */
const json_t *moelm_run_input(const moelm_run *run, const char *key);

/* The parts, each in a file of its own. */
moe_status moelm_report_metrics_read(const char *path, moelm_pool *pool, moelm_report_metrics *metrics,
                                     moe_error *error);
moe_status moelm_report_load_read(const char *path, moelm_pool *pool, moelm_report_load *load,
                                  moe_error *error);
moe_status moelm_eval_read(const char *path, moelm_pool *pool, json_t **root, moelm_eval *eval,
                           moe_error *error);

#endif
