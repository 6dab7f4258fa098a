/* mixtral.c: Mixtral's checkpoints: weights of the chosen experts renormalised, experts in every layer.
 * Tensors: block_sparse_moe.experts.E.w1 (gate), w3 (up), w2 (down). Source: Jiang et al. 2024;
 * MixtralForCausalLM of the transformers library.
 */
#include "model/families/form.h"

static const moelm_form_field fields[] = {
    {"num_local_experts",       "moe.num_experts",        NULL   },
    {"vocab_size",              "model.vocab_size",       NULL   },
    {"hidden_size",             "model.d_model",          NULL   },
    {"num_hidden_layers",       "model.n_layers",         NULL   },
    {"num_attention_heads",     "model.n_heads",          NULL   },
    {"max_position_embeddings", "model.context",          NULL   },
    {"rms_norm_eps",            "model.norm_eps",         NULL   },
    {"num_experts_per_tok",     "moe.top_k",              NULL   },
    {"intermediate_size",       "moe.expert_hidden_size", NULL   },
    {"num_key_value_heads",     "model.n_kv_heads",       "0"    },
    {"head_dim",                "model.head_dim",         "0"    },
    {"tie_word_embeddings",     "model.tie_embeddings",   "false"},
    {"initializer_range",       "model.init_std",         "0.02" },
    {"router_jitter_noise",     "moe.input_jitter_eps",   "0"    },
    {NULL,                      NULL,                     NULL   },
};
static const char *const refused[] = {"rope_scaling", "quantization_config", NULL};

static const moelm_form form = {
    .architecture = "MixtralForCausalLM",
    .fields = fields,
    .qk_norm = "none",
    .rope_base = 1e6,
    .aux_loss = 0.001,
    .refused = refused,
    .ffn = "block_sparse_moe",
    .gate = "w1",
    .up = "w3",
    .down = "w2",
};

const moelm_family moelm_family_mixtral = {"mixtral",        moelm_form_fits,  moelm_form_read,
                                           moelm_form_write, moelm_form_visit, &form};
