/* lm.h: a decoder language model around the layer: configure, train, evaluate, generate, report.
 * Link with libmoekit-lm. The conventions are those of moe.h.
 */
#ifndef MOEKIT_LM_H
#define MOEKIT_LM_H

#include <moekit/option.h>
#include <moekit/tokenizer.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1. Configuration: every setting of model, layer, training and data under one dotted name. Later calls win,
 * so the caller's order decides: defaults, files, environment, command line. */
typedef struct moe_lm_config moe_lm_config;
MOE_API moe_status moe_lm_config_create(moe_lm_config **config, moe_error *error);
MOE_API void moe_lm_config_destroy(moe_lm_config *config);
/* `origin` is a few words for `config show --origin`, e.g. "command line"; NULL: "set". Unknown keys are
 * MOE_ERR_ARGUMENT and name the nearest. Names of NeMo, Hugging Face and others are accepted. */
MOE_API moe_status moe_lm_config_set(moe_lm_config *config, const char *key, const char *value,
                                     const char *origin, moe_error *error);
/* On an error the configuration is as it was; this holds for the next two calls as well. */
MOE_API moe_status moe_lm_config_load(moe_lm_config *config, const char *yaml_path, moe_error *error);
/* Reads MOEKIT_<NAME> for every name of a key: dots become underscores, letters upper case. A variable that
 * names no key is MOE_ERR_ARGUMENT, but for those of the context (MOEKIT_ISA, MOEKIT_NUM_THREADS). */
MOE_API moe_status moe_lm_config_environment(moe_lm_config *config, moe_error *error);
/* Takes model.* and moe.* from a checkpoint directory's config.json, to train that model further (train.from)
 * or one like it. */
MOE_API moe_status moe_lm_config_load_checkpoint(moe_lm_config *config, const char *directory,
                                                 moe_error *error);
/* Makes every layer dense, and resets what only routed experts have: for a model to compare this one with. */
MOE_API moe_status moe_lm_config_make_dense(moe_lm_config *config, const char *origin, moe_error *error);
/* Checks combinations (heads divide d_model, context fits, ...) without making anything. */
MOE_API moe_status moe_lm_config_check(const moe_lm_config *config, moe_error *error);
/* NULL, or the setting that lets later tokens of a text decide on the experts of earlier ones, outside
 * training too. Bits per byte of such a model do not compare with those of one that sees only what came
 * before. */
MOE_API const char *moe_lm_config_foresight(const moe_lm_config *config);
MOE_API moe_status moe_lm_config_save(const moe_lm_config *config, const char *yaml_path, moe_error *error);

typedef struct moe_lm_config_entry {
    const moe_option *option;
    char value[1024];
    const char *origin; /* "default" where nobody set it */
} moe_lm_config_entry;
MOE_API size_t moe_lm_config_count(const moe_lm_config *config);
MOE_API void moe_lm_config_entry_get(const moe_lm_config *config, size_t index, moe_lm_config_entry *entry);
/* One entry by key or alias. */
MOE_API moe_status moe_lm_config_find(const moe_lm_config *config, const char *key,
                                      moe_lm_config_entry *entry, moe_error *error);

/* 2. Model. Tokens are bytes, 0..255, unless the checkpoint's vocabulary says otherwise. */
typedef struct moe_lm moe_lm;
/* A model with new weights, drawn with the context's seed; the configuration is copied. */
MOE_API moe_status moe_lm_create(moe_ctx *ctx, const moe_lm_config *config, moe_lm **lm);
/* Opens a checkpoint directory: config.json and safetensors, in one file or shards, as transformers writes
 * them for Mixtral, Qwen3-MoE and OLMoE, or our own. If a config.json asks for what this model does not do,
 * that is MOE_ERR_UNSUPPORTED, with all of it in one text. Tensors that do not fit the model are refused
 * (MOE_ERR_INPUT) before memory is taken for any. Of the files, only what is being read stays in memory. */
MOE_API moe_status moe_lm_load(moe_ctx *ctx, const char *directory, moe_lm **lm);
/* The same with weights and activations of `dtype`, "f32" or "bf16", whatever the file has; NULL: the file's.
 * This is then the type in which the model is saved. */
MOE_API moe_status moe_lm_load_as(moe_ctx *ctx, const char *directory, const char *dtype, moe_lm **lm);
/* The same with all options. A desc of zeros is moe_lm_load. */
typedef struct moe_lm_load_desc {
    size_t size;
    const char *dtype;   /* as of moe_lm_load_as */
    const char *experts; /* NULL, or a format of moe_quant_desc (quant.h): each layer's experts are packed as
                            soon as they are read, and their own weights given back, so that never more than
                            one layer is there unpacked. For inference only: such a model is neither trained
                            nor saved. "bf16x2" loses no bit of bf16 weights; others it rounds to bf16 */
    int32_t experts_group; /* moe_quant_desc.group */
    uint8_t reserved[4];   /* 0: no padding, as in moe_ctx_desc */
} moe_lm_load_desc;
MOE_API moe_status moe_lm_load_with(moe_ctx *ctx, const char *directory, const moe_lm_load_desc *desc,
                                    moe_lm **lm);
/* Sets the parameters to those of a checkpoint, by name, to train on from another model. Heads, rope_base,
 * norm_eps, qk_norm and clip_qkv must be the checkpoint's (MOE_ERR_ARGUMENT), and each of its parameters must
 * have a place of its shape here (MOE_ERR_INPUT); on an error the model is as it was. Parameters that the
 * checkpoint lacks stay as they are, and moe.* may differ: the log warns of both. Layers packed by
 * moe_layer_quantize must be packed again by the caller; if one has given its weights back, this is
 * MOE_ERR_STATE. */
MOE_API moe_status moe_lm_init_from(moe_lm *lm, const char *directory);
/* Writes config.json and model.safetensors into a new directory, atomically; missing parents are made.
 * MOE_ERR_STATE if a layer has given its weights back (quant.h). */
MOE_API moe_status moe_lm_save(moe_lm *lm, const char *directory);
MOE_API void moe_lm_destroy(moe_lm *lm);

typedef struct moe_lm_info {
    size_t size;
    int64_t vocab_size, d_model, context;
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
    int64_t params_total;  /* all numbers of the model */
    int64_t params_active; /* those one token meets: K of E experts */
} moe_lm_info;
MOE_API moe_status moe_lm_get_info(const moe_lm *lm, moe_lm_info *info);
/* The layer of block `index`, for its load, routing and parameters. */
MOE_API moe_layer *moe_lm_layer(moe_lm *lm, int32_t index);
/* Statistics of the layer of block `index` in the last forward (moe_lm_loss or moe_lm_logits). */
MOE_API moe_status moe_lm_layer_stats(const moe_lm *lm, int32_t index, moe_stats *stats);
/* Every parameter of the model, blocks included, under its checkpoint-independent name. */
MOE_API int32_t moe_lm_param_count(const moe_lm *lm);
MOE_API moe_status moe_lm_param(const moe_lm *lm, int32_t index, moe_param *param);

/* Reserves for n_seq sequences of `length` tokens at once. */
MOE_API moe_status moe_lm_reserve(moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode);
/* Bytes that the model holds after such a reserve, parameters and gradients included. Refuses what
 * moe_lm_reserve would, and like it announces n_seq to the layers (moe_layer_limit_sequences), unless more
 * were announced before. */
MOE_API moe_status moe_lm_measure(moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode, size_t *bytes);
/* logits[n_seq*length, vocab] of tokens[n_seq*length], every position, without a cache. */
MOE_API moe_status moe_lm_logits(moe_lm *lm, const int32_t *tokens, int64_t n_seq, int64_t length,
                                 float *logits);
/* Mean cross-entropy in nats of predicting targets[i] from tokens[..i] (target -1: not counted), plus
 * the layers' own losses in *aux. With grad_scale > 0 also adds grad_scale * gradient (aux included)
 * to every parameter's grad. `step` keys jitter. With grad_scale 0 it evaluates: no jitter, and a
 * reserve for MOE_INFER is enough. A failure leaves the gradients undefined. */
MOE_API moe_status moe_lm_loss(moe_lm *lm, const int32_t *tokens, const int32_t *targets, int64_t n_seq,
                               int64_t length, uint64_t step, float grad_scale, double *loss, double *aux);
MOE_API void moe_lm_zero_grad(moe_lm *lm);

/* 3. Generation with a KV cache. */
typedef struct moe_lm_sampler {
    size_t size;
    float temperature; /* 0: greedy */
    int32_t top_k;     /* 0: all */
    float top_p;       /* 0 or 1: all */
    uint64_t seed;
} moe_lm_sampler;
/* Receives every new token, but not those of the prompt. Returns false to stop, which is no failure. */
typedef bool (*moe_lm_token_fn)(void *user, int32_t token);
/* Continues a prompt; reserves what it needs. A text may be longer than the context: when the window is full,
 * its last half is read again as a new window. Of a prompt longer than the context, the end that fits is
 * read, and the log warns. If logits are equal, the lower token wins. A draw depends on (seed, place in the
 * text) alone. One text at a time: a call from within on_token is MOE_ERR_STATE. */
MOE_API moe_status moe_lm_generate(moe_lm *lm, const int32_t *prompt, int64_t n_prompt, int64_t n_new,
                                   const moe_lm_sampler *sampler, moe_lm_token_fn on_token, void *user);

/* Several texts at once. A step draws one token of each in a single pass, so weights are read once. Texts
 * join between steps and leave when they are done. Each gets the tokens that moe_lm_generate gives it alone,
 * to the bits of the logits. If neighbours matter (moe_layer_company), each text takes a pass of its own:
 * nothing is gained, and the log warns. The model must outlive its batches, and its parameters must not
 * change while a text is being written. */
typedef struct moe_lm_batch moe_lm_batch;
typedef struct moe_lm_batch_desc {
    size_t size;
    int64_t max_texts;  /* at once, 1 or more: each has keys and values of its own */
    int64_t max_length; /* of prompt and new tokens of any text; 0, or more than the context: texts may be of
                           any length, and take the memory of a context */
} moe_lm_batch_desc;
typedef struct moe_lm_text {
    size_t size;
    const int32_t *prompt; /* [n_prompt], copied; a beginning in common with another text is read once */
    int64_t n_prompt, n_new;
    const moe_lm_sampler *sampler; /* copied */
    moe_lm_token_fn on_token;      /* receives the new tokens, step by step; it may use the model, but not its
                                      batch */
    void *user;
} moe_lm_text;
/* Bytes of the batch alone. Its passes are measured by moe_lm_measure: one of one sequence of max_length, and
 * one of max_texts sequences of one token (of one sequence, if texts beside each other affect the
 * routing). */
MOE_API moe_status moe_lm_batch_measure(moe_lm *lm, const moe_lm_batch_desc *desc, size_t *bytes);
/* Reserves the batch and its passes; no later call on the batch allocates. */
MOE_API moe_status moe_lm_batch_create(moe_lm *lm, const moe_lm_batch_desc *desc, moe_lm_batch **batch);
MOE_API void moe_lm_batch_destroy(moe_lm_batch *batch);
/* MOE_ERR_STATE if max_texts are being written. A text with n_new 0 is done at once and takes no place. */
MOE_API moe_status moe_lm_batch_add(moe_lm_batch *batch, const moe_lm_text *text);
/* Draws one more token of every text; new texts have their whole prompts read first. After a failure every
 * text has either got this step's token or will get it from the next step. */
MOE_API moe_status moe_lm_batch_step(moe_lm_batch *batch);
/* How many texts are being written; 0 for NULL. */
MOE_API int64_t moe_lm_batch_live(const moe_lm_batch *batch);

/* 4. Training. */
typedef struct moe_lm_progress {
    size_t size;
    int64_t step, steps;
    int64_t tokens;                               /* seen so far */
    double loss, aux_loss, z_loss, lr, grad_norm; /* of the step; NaN before the first step since the start or
                                                     resume */
    double tokens_per_second, elapsed_s, eta_s;
    double load_cv, load_max;  /* mean over MoE layers, largest over them */
    double load_entropy;       /* as a share of its maximum, mean over them */
    double dropped;            /* share of routed rows */
    int32_t n_dead;            /* experts without a row in this step, all layers */
    double eval_bits_per_byte; /* last evaluation, NaN before the first */
    const char *event;         /* NULL, or what happened: "eval", "checkpoint <path>", "resume <path>", "begin
                                  <path>", "alarm ...", "over ..." of a run whose time is over */
    int64_t eval_step;         /* that of eval_bits_per_byte; 0 before the first */
} moe_lm_progress;
/* Formats progress as the line of key=value that main.log keeps and a terminal shows. */
MOE_API void moe_lm_progress_text(const moe_lm_progress *progress, char *text, size_t size);
typedef struct moe_lm_train_options {
    size_t size;
    const char *run_dir; /* made; an existing one is MOE_ERR_ARGUMENT unless `resume`. NULL: key run.dir */
    bool resume;   /* continue from the newest complete checkpoint of run_dir; damaged ones are set aside */
    bool move_old; /* an existing run_dir is first renamed run_dir.1, .2, ..., unless one trains in it */
    void (*on_progress)(void *user, const moe_lm_progress *progress);
    bool (*should_stop)(void *user); /* asked between forwards: true saves and returns MOE_ERR_INTERRUPTED */
    void *user;
    const char *command; /* recorded in run.json */
} moe_lm_train_options;
/* Trains from a configuration into a run directory (docs/run-directory.md). A run that saved and stopped
 * early is MOE_ERR_INTERRUPTED, or MOE_ERR_ALARM if an alarm stopped it. */
MOE_API moe_status moe_lm_train(moe_ctx *ctx, const moe_lm_config *config,
                                const moe_lm_train_options *options);
/* Refuses what moe_lm_train would refuse before its first step (settings, texts, the directory, too little
 * memory) without making anything, and tells the sizes of the model it would train. Of the options, run_dir,
 * resume and move_old matter. A run_dir or data.train that is "" is taken as not yet known. */
MOE_API moe_status moe_lm_train_check(moe_ctx *ctx, const moe_lm_config *config,
                                      const moe_lm_train_options *options, moe_lm_info *info);
/* Newest complete checkpoint of a run directory, its path into path[size]; MOE_ERR_INPUT if there is none. */
MOE_API moe_status moe_lm_newest_checkpoint(const char *run_dir, char *path, size_t size, moe_error *error);

/* 5. Evaluation of a text, with what the experts did on it. */
typedef struct moe_lm_baseline {
    const char *name; /* "gzip" */
    double bits_per_byte;
} moe_lm_baseline;
typedef struct moe_lm_eval_options {
    size_t size;
    int64_t max_bytes; /* of the text, 2 or more; 0: all */
    /* No output may replace what is read: text, trace, a file of `checkpoint`. */
    const char *json_path;  /* NULL: no analysis; else written as docs/run-directory.md says */
    const char *checkpoint; /* the model's directory, recorded there; NULL: "" */
    const moe_lm_baseline *baselines;
    size_t n_baselines;
    /* Route traces, docs/routes.md: which experts every token went to, with which weights. */
    const char *record_routes; /* NULL, or the file to write */
    const char *replay_routes; /* NULL, or a file written for the same text, used instead of the routers */
    /* NULL, or called after every forward: `done` of `bytes` are predicted, about so many with a tokenizer */
    void (*on_progress)(void *user, int64_t done, int64_t bytes);
    void *user;
    const moe_tokenizer *tokenizer; /* of the model's vocabulary; NULL: its 256 tokens are bytes */
    int64_t window; /* most tokens of a window; 0: the context, with a tokenizer at most 4096 */
} moe_lm_eval_options;
typedef struct moe_lm_eval_result {
    size_t size;
    int64_t n_bytes;      /* predicted */
    double bits_per_byte; /* bits of all tokens / n_bytes */
    double seconds;
    int64_t n_tokens;  /* predicted; n_bytes without a tokenizer */
    double perplexity; /* per token: 2^(mean bits of a token) */
} moe_lm_eval_result;
/* Predicts every token of the file once, in windows that overlap by half. The first token costs
 * log2(vocab_size) bits, unless the tokenizer puts something before a text: this is then read first and costs
 * nothing. A vocabulary other than the 256 bytes needs a tokenizer (else MOE_ERR_UNSUPPORTED) with no more
 * tokens than the model (else MOE_ERR_INPUT). A text cut by max_bytes ends before the character that would be
 * cut (MOE_ERR_INPUT if that is its first). options NULL: the whole text, no analysis. */
MOE_API moe_status moe_lm_eval(moe_lm *lm, const char *text_path, const moe_lm_eval_options *options,
                               moe_lm_eval_result *result);

/* 6. Report: one self-contained HTML file from a run directory (docs/run-directory.md). It replaces none of
 * the files it reads. */
MOE_API moe_status moe_lm_report(const char *run_dir, const char *html_path, moe_error *error);

#ifdef __cplusplus
}
#endif
#endif
