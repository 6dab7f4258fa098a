/* run.h: a run directory in memory, cut down to what a page can show.
 * Steps are gathered into at most MOEI_POINTS buckets while reading, load.bin into at most MOEI_BINS, so
 * memory depends on the model and not on how long it trained. Source: docs/run-directory.md.
 */
#ifndef MOEI_RUN_H
#define MOEI_RUN_H

#include <jansson.h>
#include <moekit/moe.h>

enum {
    MOEI_POINTS = 400,         /* points of a curve */
    MOEI_BINS = 120,           /* columns of a heat map */
    MOEI_HEAT_CELLS = 250000,  /* of all heat maps together */
    MOEI_SAMPLE_BYTES = 20000, /* shown of sample.txt */
    MOEI_TYPICAL = 12,         /* tokens of an expert */
    MOEI_ALARMS = 40           /* listed one by one */
};

/* Memory of one run, freed at once. */
typedef struct moei_pool {
    struct moei_pool_block *last;
} moei_pool;
/* Zeroed; NULL when there is none. */
void *moei_pool_take(moei_pool *pool, size_t count, size_t bytes);
void moei_pool_free(moei_pool *pool);

/* What one bucket of steps held; n = 0: nothing. */
typedef struct moei_point {
    double mean, low, high;
    int64_t n;
} moei_point;

typedef enum moei_run_series {
    MOEI_LOSS = 0, /* bits per byte */
    MOEI_AUX,
    MOEI_Z,
    MOEI_GRAD_NORM,
    MOEI_LR,
    MOEI_SPEED,
    MOEI_HELD_OUT, /* bits per byte */
    MOEI_RUN_SERIES
} moei_run_series;
typedef enum moei_layer_series {
    MOEI_CV = 0,
    MOEI_MAX_LOAD,
    MOEI_LOAD_ENTROPY,
    MOEI_ROUTER_ENTROPY,
    MOEI_DROPPED,
    MOEI_DEAD,
    MOEI_LAYER_SERIES
} moei_layer_series;

typedef struct moei_alarm {
    int64_t step, steps;
    char kind;                           /* 'd' dead expert, 'e' entropy, 'r' rows dropped */
    int32_t layer, expert, revived_from; /* -1: none */
    double value, bound;
} moei_alarm;

typedef struct moei_metrics {
    bool found;
    bool torn; /* the last line is not whole */
    bool finished;
    int64_t n_lines, last_step, tokens;
    double elapsed_s;
    int32_t n_points;
    double *step; /* [n_points] last of the bucket */
    int32_t n_layers;
    int32_t *layer, *experts;         /* [n_layers] */
    moei_point *run[MOEI_RUN_SERIES]; /* [n_points] each */
    moei_point *of_layer;             /* [n_layers, MOEI_LAYER_SERIES, n_points] */
    int64_t n_alarms;                 /* all that rang */
    moei_alarm alarm[MOEI_ALARMS];    /* the first of them */
} moei_metrics;
const moei_point *moei_metrics_layer(const moei_metrics *metrics, int32_t index, moei_layer_series series);

typedef struct moei_load {
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
} moei_load;

typedef struct moei_typical {
    int64_t token, count;
    double lift;
} moei_typical;
typedef struct moei_eval_layer {
    int32_t layer, experts, top_k;
    double *load;            /* [experts] rows kept */
    double dropped, load_cv; /* dropped: share */
    double router_entropy, expert_bits, token_bits, position_bits, previous_bits;
    int32_t *n_typical;    /* [experts] */
    moei_typical *typical; /* [experts, MOEI_TYPICAL] */
} moei_eval_layer;
typedef struct moei_baseline {
    const char *name;
    double bits_per_byte;
} moei_baseline;
typedef struct moei_eval {
    bool found;
    const char *text, *checkpoint; /* "" where not told */
    int64_t bytes;
    double bits_per_byte;
    int32_t n_baselines, n_layers;
    moei_baseline *baseline;
    moei_eval_layer *layer;
} moei_eval;

typedef struct moei_setting {
    const char *key, *value;
} moei_setting;

typedef struct moei_run {
    const char *name; /* last part of the directory's path */
    moei_metrics metrics;
    moei_load load;
    moei_eval eval;
    json_t *about;      /* run.json, NULL: none */
    json_t *eval_json;  /* owns the texts of eval */
    int64_t n_settings; /* config.resolved.yaml, 0: none */
    moei_setting *setting;
    char *sample; /* NULL: none */
    size_t sample_bytes;
    moei_pool pool;
} moei_run;

/* Reads what is there. Missing files are told by `found`, NULL or 0; broken ones are MOE_ERR_INPUT. */
moe_status moei_run_read(const char *run_dir, moei_run *run, moe_error *error);
void moei_run_free(moei_run *run);
/* Value of a setting, NULL if there is none. */
const char *moei_run_setting(const moei_run *run, const char *key);

/* The parts, each in a file of its own. */
moe_status moei_metrics_read(const char *path, moei_pool *pool, moei_metrics *metrics, moe_error *error);
moe_status moei_load_read(const char *path, moei_pool *pool, moei_load *load, moe_error *error);
moe_status moei_eval_read(const char *path, moei_pool *pool, json_t **root, moei_eval *eval,
                          moe_error *error);

#endif
