/* olmoe.c: OLMoE's checkpoints: queries and keys of a token normed over all heads together and perhaps
 * clipped, weights of the chosen experts as they are or renormalised, experts in every layer. Tensors:
 * mlp.experts.E.{gate,up,down}_proj, self_attn.{q,k}_norm. Source: Muennighoff et al. 2024; OlmoeForCausalLM
 * of the transformers library.
 */
#include "model/families/form.h"

static const moelm_form_field fields[] = {
    {"num_experts",             "moe.num_experts",        NULL   },
    {"vocab_size",              "model.vocab_size",       NULL   },
    {"hidden_size",             "model.d_model",          NULL   },
    {"num_hidden_layers",       "model.n_layers",         NULL   },
    {"num_attention_heads",     "model.n_heads",          NULL   },
    {"max_position_embeddings", "model.context",          NULL   },
    {"num_experts_per_tok",     "moe.top_k",              NULL   },
    {"intermediate_size",       "moe.expert_hidden_size", NULL   },
    {"rms_norm_eps",            "model.norm_eps",         "1e-5" },
    {"num_key_value_heads",     "model.n_kv_heads",       "0"    },
    {"tie_word_embeddings",     "model.tie_embeddings",   "false"},
    {"initializer_range",       "model.init_std",         "0.02" },
    {"clip_qkv",                "model.clip_qkv",         "0"    },
    {NULL,                      NULL,                     NULL   },
};
static const char *const refused[] = {"attention_bias", "rope_scaling", "quantization_config", NULL};

static const moelm_form form = {
    .architecture = "OlmoeForCausalLM",
    .fields = fields,
    .num_experts_too = "num_local_experts",
    .qk_norm = "full",
    .rope_base = 1e4,
    .aux_loss = 0.01,
    .says_norm_topk_prob = true,
    .narrow_heads = true,
    .refused = refused,
    .ffn = "mlp",
    .gate = "gate_proj",
    .up = "up_proj",
    .down = "down_proj",
};

const moelm_family moelm_family_olmoe = {"olmoe",          moelm_form_fits,  moelm_form_read,
                                         moelm_form_write, moelm_form_visit, &form};
