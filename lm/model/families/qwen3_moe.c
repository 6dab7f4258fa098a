/* qwen3_moe.c: Qwen3-MoE's checkpoints: each head's queries and keys normed, head_dim of its own, weights of
 * the chosen experts renormalised or not, layers without experts at equal distances or listed. Tensors:
 * mlp.experts.E.{gate,up,down}_proj, or mlp.{gate,up,down}_proj, self_attn.{q,k}_norm. Source: Qwen3
 * technical report (2025); Qwen3MoeForCausalLM of the transformers library.
 */
#include "model/families/form.h"

static const moelm_form_field fields[] = {
    {"num_experts",             "moe.num_experts",        NULL   },
    {"vocab_size",              "model.vocab_size",       NULL   },
    {"hidden_size",             "model.d_model",          NULL   },
    {"num_hidden_layers",       "model.n_layers",         NULL   },
    {"num_attention_heads",     "model.n_heads",          NULL   },
    {"max_position_embeddings", "model.context",          NULL   },
    {"rms_norm_eps",            "model.norm_eps",         NULL   },
    {"num_experts_per_tok",     "moe.top_k",              NULL   },
    {"moe_intermediate_size",   "moe.expert_hidden_size", NULL   },
    {"intermediate_size",       "model.ffn_hidden_size",  NULL   },
    {"num_key_value_heads",     "model.n_kv_heads",       NULL   },
    {"head_dim",                "model.head_dim",         "0"    },
    {"tie_word_embeddings",     "model.tie_embeddings",   "false"},
    {"initializer_range",       "model.init_std",         "0.02" },
    {NULL,                      NULL,                     NULL   },
};
static const char *const refused[] = {"attention_bias", "rope_scaling", "quantization_config", NULL};

static const moelm_form form = {
    .architecture = "Qwen3MoeForCausalLM",
    .fields = fields,
    .num_experts_too = "num_local_experts",
    .qk_norm = "head",
    .rope_base = 1e4,
    .aux_loss = 0.001,
    .says_norm_topk_prob = true,
    .has_dense = true,
    .window_has_switch = true,
    .refused = refused,
    .ffn = "mlp",
    .gate = "gate_proj",
    .up = "up_proj",
    .down = "down_proj",
};

const moelm_family moelm_family_qwen3_moe = {"qwen3_moe",      moelm_form_fits,  moelm_form_read,
                                             moelm_form_write, moelm_form_visit, &form};
