/* config.h: the resolved settings of a model and its training, one field an option.
 * The tables in config_options.c name, default, limit and explain each field; moe.* is the layer's own.
 */
#ifndef MOELM_CONFIG_H
#define MOELM_CONFIG_H

#include <moekit/lm.h>

#include "core/option.h"

enum { MOELM_PATH = 1024, MOELM_ORIGIN = 256 };

/* What the tables allow; the layer and the kernels take no more. */
enum {
    MOELM_MAX_LAYERS = 4096,
    MOELM_MAX_EXPERTS = 65536,
    MOELM_MAX_WIDTH = 1 << 24, /* of an FFN */
    MOELM_MAX_HEAD_DIM = 1024,
    MOELM_MAX_THREADS = 1024
};

typedef struct moelm_model_config {
    const char *dtype;      /* "f32" or "bf16" */
    int32_t vocab_size;     /* 256: bytes */
    int32_t d_model;        /* alias hidden_size */
    int32_t n_layers;       /* alias num_hidden_layers, num_layers */
    int32_t n_heads;        /* alias num_attention_heads */
    int32_t n_kv_heads;     /* 0: n_heads; alias num_key_value_heads, num_query_groups */
    int32_t head_dim;       /* 0: d_model / n_heads */
    int32_t context;        /* longest sequence; alias max_position_embeddings */
    float rope_base;        /* alias rope_theta */
    float norm_eps;         /* alias rms_norm_eps */
    const char *qk_norm;    /* "none" "head" "full" */
    float clip_qkv;         /* 0: off */
    bool tie_embeddings;    /* alias tie_word_embeddings */
    int32_t moe_layer_freq; /* layer i has routed experts iff i % freq == offset; 0: none (dense model) */
    int32_t moe_layer_offset;
    char dense_layers[MOELM_PATH]; /* those that have none all the same: "0,3" */
    int32_t ffn_hidden_size; /* width of the FFN of the other layers; 0: what a token meets in a routed one */
    float init_std;
} moelm_model_config;

typedef struct moelm_train_config {
    char from[MOELM_PATH]; /* checkpoint that training begins with; "": parameters are drawn */
    int64_t steps;
    int64_t batch_size;      /* sequences in one forward */
    int64_t length;          /* tokens of one training sequence; 0: model.context */
    int64_t grad_accum;      /* forwards per step */
    double lr, min_lr_ratio; /* cosine from lr down to lr * min_lr_ratio */
    int64_t warmup_steps;
    double weight_decay, beta1, beta2, adam_eps;
    double clip;                               /* global gradient norm; 0: off */
    double max_seconds;                        /* 0: no limit; else the schedule also ends with the clock */
    int64_t log_every, eval_every, save_every; /* steps; 0: only at the end */
    int64_t load_every;                        /* steps of one load.bin interval */
    int64_t eval_bytes;                        /* of the held-out text used while training; 0: all */
    int32_t keep;                              /* newest checkpoints kept */
    int64_t seed;
    bool log_layers;          /* metrics.jsonl tells every layer */
    int64_t alarm_dead_steps; /* without a row; 0: off, as below */
    double alarm_entropy;     /* least entropy of a layer's load, of its maximum */
    double alarm_dropped;     /* largest share of a layer's rows dropped */
    int64_t alarm_steps;      /* steps in a row that a bound is broken */
    const char *alarm_action; /* "warn" "stop" "revive" */
} moelm_train_config;

typedef struct moelm_data_config {
    char train[MOELM_PATH];     /* text file */
    char eval[MOELM_PATH];      /* held-out text file; "": none */
    char tokenizer[MOELM_PATH]; /* tokenizer.json or a directory with one; "": that of train.from, else bytes
                                 */
} moelm_data_config;

typedef struct moelm_run_config {
    char dir[MOELM_PATH];
    int32_t threads; /* 0: all */
    char isa[16];    /* "": best */
    bool resume_any_isa;
} moelm_run_config;

struct moe_lm_config {
    moelm_model_config model;
    const char *preset; /* the last one named; NULL or "": none */
    moe_layer_desc moe; /* d_model, layer_index and dtype are filled in by moelm_config_layer */
    moelm_train_config train;
    moelm_data_config data;
    moelm_run_config run;

    moe_option *row; /* [count] every option; offsets count from the start of this struct */
    size_t count;
    char (*origin)[MOELM_ORIGIN];    /* [count] who set row i */
    struct moelm_config_text *texts; /* strings that the descriptor points at */
};

/* The options of model.*, train.*, data.* and run.*; offsets count from the start of moe_lm_config. */
const moe_option *moelm_config_options(size_t *count);

/* Where the language model wants another default than the layer alone. */
typedef struct moelm_config_override {
    const char *key, *initial, *help;
} moelm_config_override;
const moelm_config_override *moelm_config_overrides(size_t *count);

/* Makes the layer that of another system, as moe_layer_desc_preset does, whoever spoke before. */
moe_status moelm_config_preset(moe_lm_config *config, const char *name, const char *origin, moe_error *error);
/* What a configuration says at one moment, for a caller who may have to take back what follows. */
typedef struct moelm_config_copy {
    moe_lm_config values;
    char (*origin)[MOELM_ORIGIN];
} moelm_config_copy;
moe_status moelm_config_keep(const moe_lm_config *config, moelm_config_copy *copy, moe_error *error);
/* Frees the copy; where `status` is an error, the configuration says again what it said. */
void moelm_config_settle(moe_lm_config *config, moelm_config_copy *copy, moe_status status);
/* Whether a key names the preset, which a level sets before its other keys. */
bool moelm_config_is_preset(const moe_lm_config *config, const char *key);
/* What the keys of one level, a file or the environment, said of each row. */
typedef struct moelm_config_said {
    char by[MOELM_ORIGIN]; /* "": nobody */
    moe_lm_config_entry entry;
} moelm_config_said;
/* After `by` has set a key: refuses that it said another value of a row than a key of its level had, by
 * whatever names, since nobody knows which was meant. said [count]. */
moe_status moelm_config_once(const moe_lm_config *config, moelm_config_said *said, const char *key,
                             const char *value, const char *by, moe_error *error);
/* Another system's word for a value of one of our own rows ("bfloat16"), as ours; any other as it is. */
const char *moelm_config_word(const char *key, const char *value);

/* Settings of ours that another system has under one name. */
typedef struct moelm_config_pairs {
    int32_t count; /* 0: the name is none of those */
    const char *key[2];
    char value[2][MOELM_PATH];
} moelm_config_pairs;
/* Those that say which layers have experts; a layer, which knows no others, has no such settings. */
moe_status moelm_config_layers(const char *name, const char *value, moelm_config_pairs *pairs,
                               moe_error *error);

/* The layer descriptor of block `index`: routed experts, or a dense FFN where the frequency says so. */
void moelm_config_layer(const moe_lm_config *config, int32_t index, moe_layer_desc *desc);

/* Whether block `index` has routed experts. */
bool moelm_config_is_routed(const moe_lm_config *config, int32_t index);
/* Width of the FFN of those that have none. */
int64_t moelm_config_dense_width(const moe_lm_config *config);
/* The first number of a list like "0,3", which *at goes behind. false: the list is over, or **at is no
 * number. */
bool moelm_config_next_layer(const char **at, int32_t *layer);

/* model.dtype as a number. */
moe_dtype moelm_config_dtype(const moe_lm_config *config);
/* Tokens of one training sequence: train.length, or the model's context where that is 0. */
int64_t moelm_config_length(const moe_lm_config *config);

#endif
