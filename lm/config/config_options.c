/* config_options.c: every setting of the model, its training, its data and the run: one row a field.
 * Rows name a field of moe_lm_config by offset; moe.* rows come from moe_layer_option_at.
 * Source: the aliases are names of NeMo and Megatron, Hugging Face and lucidrains in the same sense.
 */
#include "config/config.h"

#include <stddef.h>
#include <string.h>

#define AT(field) offsetof(moe_lm_config, field)

static const char *const dtypes[] = {"f32", "bf16", NULL};
static const char *const qk_norms[] = {"none", "head", "full", NULL};
static const char *const alarm_actions[] = {"warn", "stop", "revive", NULL};

/* Three lines an option: its names; type, field, default, limits, choices; its help. clang-format would align
 * them in columns too wide to read. */
/* clang-format off */
static const moe_option options[] = {
    {"model.dtype", "torch_dtype precision",
     MOE_OPT_CHOICE, AT(model.dtype), "f32", 0, 0, dtypes,
     "type of weights and activations; for bf16 the optimizer keeps f32 masters"},
    {"model.vocab_size", "",
     MOE_OPT_INT, AT(model.vocab_size), "256", 2, 1 << 24, NULL,
     "tokens known to the model; 256: bytes"},
    {"model.d_model", "hidden_size dim dmodel n_embd",
     MOE_OPT_INT, AT(model.d_model), "128", 1, 1 << 18, NULL,
     "width of the residual stream"},
    {"model.n_layers", "num_layers num_hidden_layers n_layer depth",
     MOE_OPT_INT, AT(model.n_layers), "4", 1, MOELM_MAX_LAYERS, NULL,
     "decoder blocks"},
    {"model.n_heads", "num_attention_heads n_head heads",
     MOE_OPT_INT, AT(model.n_heads), "4", 1, 4096, NULL,
     "query heads"},
    {"model.n_kv_heads", "num_key_value_heads num_query_groups kv_heads",
     MOE_OPT_INT, AT(model.n_kv_heads), "0", 0, 4096, NULL,
     "key and value heads; 0: as many as query heads"},
    {"model.head_dim", "kv_channels dim_head",
     MOE_OPT_INT, AT(model.head_dim), "0", 0, MOELM_MAX_HEAD_DIM, NULL,
     "width of one head; 0: d_model / n_heads"},
    {"model.context", "max_position_embeddings max_seq_len",
     MOE_OPT_INT, AT(model.context), "256", 1, 1 << 24, NULL,
     "longest sequence, in tokens"},
    {"model.rope_base", "rope_theta rotary_base",
     MOE_OPT_FLOAT, AT(model.rope_base), "10000", 1, 1e12, NULL,
     "base of the rotary embedding's frequencies"},
    {"model.norm_eps", "rms_norm_eps layernorm_epsilon",
     MOE_OPT_FLOAT, AT(model.norm_eps), "1e-5", 0, 1, NULL,
     "added to the mean square in RMSNorm"},
    {"model.qk_norm", "qk_layernorm use_qk_norm",
     MOE_OPT_CHOICE, AT(model.qk_norm), "none", 0, 0, qk_norms,
     "RMSNorm of queries and keys before rotation; head: each head by itself, as in Qwen3; full: all heads of a token together, as in OLMoE"},
    {"model.clip_qkv", "",
     MOE_OPT_FLOAT, AT(model.clip_qkv), "0", 0, 1e30, NULL,
     "clips queries, keys and values to this magnitude, after norms and before rotation; 0: off"},
    {"model.tie_embeddings", "tie_word_embeddings share_embeddings_and_output_weights",
     MOE_OPT_BOOL, AT(model.tie_embeddings), "false", 0, 0, NULL,
     "the output projection is the embedding"},
    {"model.moe_layer_freq", "",
     MOE_OPT_INT, AT(model.moe_layer_freq), "1", 0, 4096, NULL,
     "layer i has routed experts if i % freq is moe_layer_offset; 0: none, a dense model"},
    {"model.moe_layer_offset", "",
     MOE_OPT_INT, AT(model.moe_layer_offset), "0", 0, 4095, NULL,
     "first layer with routed experts, below moe_layer_freq"},
    {"model.dense_layers", "",
     MOE_OPT_TEXT, AT(model.dense_layers), "", 0, MOELM_PATH, NULL,
     "layers that have no routed experts whatever moe_layer_freq says, as 0,3; empty: none"},
    {"model.ffn_hidden_size", "dense_hidden_size inter_dim",
     MOE_OPT_INT, AT(model.ffn_hidden_size), "0", 0, MOELM_MAX_WIDTH, NULL,
     "width of a dense layer's FFN; 0: the width one token meets in a routed layer"},
    {"model.init_std", "init_method_std initializer_range",
     MOE_OPT_FLOAT, AT(model.init_std), "0.02", 0, 1e3, NULL,
     "standard deviation of the initial weights"},

    {"train.from", "pretrained_checkpoint restore_from_path",
     MOE_OPT_TEXT, AT(train.from), "", 0, MOELM_PATH, NULL,
     "checkpoint directory whose parameters training begins with, as a new run; empty: they are drawn"},
    {"train.steps", "max_steps train_iters",
     MOE_OPT_INT64, AT(train.steps), "1000", 1, 1e12, NULL,
     "optimizer steps"},
    {"train.batch_size", "micro_batch_size per_device_train_batch_size",
     MOE_OPT_INT64, AT(train.batch_size), "16", 1, 1 << 24, NULL,
     "sequences in one forward"},
    {"train.length", "seq_length seq_len encoder_seq_length",
     MOE_OPT_INT64, AT(train.length), "0", 0, 1 << 24, NULL,
     "tokens of one training sequence; 0: model.context"},
    {"train.grad_accum", "gradient_accumulation_steps accumulate_grad_batches",
     MOE_OPT_INT64, AT(train.grad_accum), "1", 1, 1 << 20, NULL,
     "forwards whose gradients make one step"},
    {"train.lr", "learning_rate",
     MOE_OPT_DOUBLE, AT(train.lr), "1e-3", 1e-12, 1e3, NULL,
     "highest learning rate"},
    {"train.min_lr_ratio", "",
     MOE_OPT_DOUBLE, AT(train.min_lr_ratio), "0.1", 0, 1, NULL,
     "learning rate at the end, as a share of lr"},
    {"train.warmup_steps", "lr_warmup_iters",
     MOE_OPT_INT64, AT(train.warmup_steps), "100", 0, 1e12, NULL,
     "steps over which the learning rate rises to lr"},
    {"train.weight_decay", "adam_weight_decay",
     MOE_OPT_DOUBLE, AT(train.weight_decay), "0.1", 0, 1e3, NULL,
     "decoupled weight decay of matrices; embeddings, norms and biases have none"},
    {"train.beta1", "adam_beta1",
     MOE_OPT_DOUBLE, AT(train.beta1), "0.9", 0, 0.999999, NULL,
     "AdamW: memory of the mean gradient"},
    {"train.beta2", "adam_beta2",
     MOE_OPT_DOUBLE, AT(train.beta2), "0.95", 0, 0.999999, NULL,
     "AdamW: memory of the mean squared gradient"},
    {"train.adam_eps", "adam_epsilon",
     MOE_OPT_DOUBLE, AT(train.adam_eps), "1e-8", 1e-30, 1, NULL,
     "AdamW: added to the root of the mean squared gradient"},
    {"train.clip", "gradient_clip_val max_grad_norm clip_grad",
     MOE_OPT_DOUBLE, AT(train.clip), "1", 0, 1e12, NULL,
     "largest global gradient norm; 0: off"},
    {"train.max_seconds", "",
     MOE_OPT_DOUBLE, AT(train.max_seconds), "0", 0, 1e9, NULL,
     "ends the run and its schedule after so many seconds, so results depend on speed; 0: off"},
    {"train.log_every", "log_every_n_steps logging_steps log_interval",
     MOE_OPT_INT64, AT(train.log_every), "10", 0, 1e12, NULL,
     "steps from one line of metrics.jsonl to the next; 0: only the last step"},
    {"train.eval_every", "eval_steps eval_interval",
     MOE_OPT_INT64, AT(train.eval_every), "0", 0, 1e12, NULL,
     "steps from one evaluation to the next; 0: only at the end"},
    {"train.save_every", "save_steps save_interval",
     MOE_OPT_INT64, AT(train.save_every), "0", 0, 1e12, NULL,
     "steps from one checkpoint to the next; 0: only at the end"},
    {"train.load_every", "",
     MOE_OPT_INT64, AT(train.load_every), "10", 1, 1e12, NULL,
     "steps summed in one record of load.bin"},
    {"train.eval_bytes", "",
     MOE_OPT_INT64, AT(train.eval_bytes), "65536", 0, 1e15, NULL,
     "bytes of the held-out text used while training; 0: all"},
    {"train.keep", "save_total_limit",
     MOE_OPT_INT, AT(train.keep), "2", 1, 1 << 20, NULL,
     "newest checkpoints kept"},
    {"train.seed", "",
     MOE_OPT_INT64, AT(train.seed), "1", 0, 9e15, NULL,
     "seed of initial weights, batches and all else that training draws"},
    {"train.log_layers", "moe_per_layer_logging",
     MOE_OPT_BOOL, AT(train.log_layers), "true", 0, 0, NULL,
     "metrics.jsonl tells losses and load of every layer, not only of the whole model"},
    {"train.alarm_dead_steps", "",
     MOE_OPT_INT64, AT(train.alarm_dead_steps), "0", 0, 1e12, NULL,
     "alarm: so many steps in a row without a row make an expert dead (except those of moe.fake_skip_first); 0: off"},
    {"train.alarm_entropy", "",
     MOE_OPT_DOUBLE, AT(train.alarm_entropy), "0", 0, 1, NULL,
     "alarm: the entropy of a layer's load, as a share of its maximum, is below this; 0: off"},
    {"train.alarm_dropped", "",
     MOE_OPT_DOUBLE, AT(train.alarm_dropped), "0", 0, 1, NULL,
     "alarm: the share of a layer's rows dropped for lack of capacity is above this; 0: off"},
    {"train.alarm_steps", "",
     MOE_OPT_INT64, AT(train.alarm_steps), "1", 1, 1e12, NULL,
     "steps in a row that alarm_entropy or alarm_dropped must be broken"},
    {"train.alarm_action", "",
     MOE_OPT_CHOICE, AT(train.alarm_action), "warn", 0, 0, alarm_actions,
     "warn: told and logged; stop: saved, exit code 7; revive: a dead expert becomes its layer's busiest, noised"},

    {"data.train", "train_file",
     MOE_OPT_TEXT, AT(data.train), "", 0, MOELM_PATH, NULL,
     "text to learn from; relative paths start at the current directory, also in a file"},
    {"data.eval", "validation_file",
     MOE_OPT_TEXT, AT(data.eval), "", 0, MOELM_PATH, NULL,
     "held-out text, never learned from; empty: none"},
    {"data.tokenizer", "tokenizer_name_or_path",
     MOE_OPT_TEXT, AT(data.tokenizer), "", 0, MOELM_PATH, NULL,
     "tokenizer.json, or a directory with one; empty: that of train.from, or where it has none bytes"},

    {"run.dir", "output_dir",
     MOE_OPT_TEXT, AT(run.dir), "", 0, MOELM_PATH, NULL,
     "directory that receives everything a run leaves behind"},
    {"run.threads", "num_threads",
     MOE_OPT_INT, AT(run.threads), "0", 0, MOELM_MAX_THREADS, NULL,
     "threads; results do not depend on it; 0: one per core"},
    {"run.isa", "",
     MOE_OPT_TEXT, AT(run.isa), "", 0, 16, NULL,
     "instruction set of the kernels: ref, avx2, avx512, avx512bf16, amx, neon; empty: the best found"},
    {"run.resume_any_isa", "",
     MOE_OPT_BOOL, AT(run.resume_any_isa), "false", 0, 0, NULL,
     "resume a checkpoint of another instruction set, though the bits then differ from an unbroken run's"},

    {"moe.preset", "",
     MOE_OPT_CHOICE, AT(preset), "", 0, 0, NULL,
     "another system's layer, sizes left alone; other keys of the same file or level override it"},
};
/* clang-format on */

const moe_option *moelm_config_options(size_t *count) {
    *count = sizeof options / sizeof *options;
    return options;
}

static const moelm_config_override overrides[] = {
    {"moe.aux_loss_coeff", "0.01",  "coefficient of the Switch load-balancing loss over the batch"                },
    {"moe.z_loss_coeff",   "0.001", "coefficient of the router z-loss; of two levels, the outer gate's"           },
    {"moe.init_std",       "0",     "standard deviation of the experts' initial weights; 0: model.init_std; -1: 0"},
};

const moelm_config_override *moelm_config_overrides(size_t *count) {
    *count = sizeof overrides / sizeof *overrides;
    return overrides;
}

const char *moelm_config_word(const char *key, const char *value) {
    static const struct {
        const char *key, *theirs, *ours;
    } words[] = {
        {"model.dtype",      "float32",        "f32" },
        {"model.dtype",      "torch.float32",  "f32" },
        {"model.dtype",      "fp32",           "f32" },
        {"model.dtype",      "32",             "f32" },
        {"model.dtype",      "32-true",        "f32" },
        {"model.dtype",      "bfloat16",       "bf16"},
        {"model.dtype",      "torch.bfloat16", "bf16"},
        {"model.dtype",      "bf16-mixed",     "bf16"},
        {"model.qk_norm",    "true",           "head"},
        {"model.qk_norm",    "false",          "none"},
        {"model.clip_qkv",   "",               "0"   },
        {"model.n_kv_heads", "",               "0"   },
        {"model.head_dim",   "",               "0"   },
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
        if (strcmp(key, words[i].key) == 0 && strcmp(value, words[i].theirs) == 0) return words[i].ours;
    return value;
}
