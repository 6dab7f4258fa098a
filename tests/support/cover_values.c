/* cover_values.c: the values of numbers and free names that the covering set tries.
 * The ordinary one first; small layers, so that thousands of them run in a second.
 * Source: the limits and defaults of moe_layer_option_at.
 */
#include "support/cover.h"

static const struct {
    const char *key, *value[6];
} tried[] = {
    {"moe.d_model",                    {"5", "2"}                                                    },
    {"moe.output_size",                {"0", "3"}                                                    },
    {"moe.num_experts",                {"4", "6", "1", "0"}                                          },
    {"moe.num_groups_outer",           {"0", "2", "3"}                                               },
    {"moe.top_k",                      {"0", "1", "3", "4"}                                          },
    {"moe.top_k_min",                  {"0", "1", "2"}                                               },
    {"moe.expert_hidden_size",         {"3", "4"}                                                    },
    {"moe.latent_size",                {"0", "3"}                                                    },
    {"moe.expert",                     {"ffn", "identity", "zero"}                                   },
    {"moe.expert_kinds",               {"", "3,identity,zero,2", "3,3,2,identity,zero,3", "identity"}},
    {"moe.activation_alpha",           {"0", "1.1"}                                                  },
    {"moe.activation_limit",           {"0", "0.8"}                                                  },
    {"moe.glu_linear_offset",          {"0", "0.5"}                                                  },
    {"moe.dropout",                    {"0", "0.3"}                                                  },
    {"moe.num_shared_experts",         {"0", "1", "2"}                                               },
    {"moe.shared_expert_hidden_size",  {"0", "2"}                                                    },
    {"moe.shared_expert_activation",   {"", "relu2", "geglu", "quick_gelu"}                          },
    {"moe.input_jitter_eps",           {"0", "0.1"}                                                  },
    {"moe.num_tasks",                  {"0", "3"}                                                    },
    {"moe.routed_scaling_factor",      {"1", "2.5"}                                                  },
    {"moe.num_groups",                 {"0", "2", "3"}                                               },
    {"moe.group_top_k",                {"0", "1", "2"}                                               },
    {"moe.selection_bias_update_rate", {"0", "0.01"}                                                 },
    {"moe.expert_dropout",             {"0", "0.3"}                                                  },
    {"moe.token_rounding",             {"0", "3", "8"}                                               },
    {"moe.second_threshold_train",     {"0", "0.4"}                                                  },
    {"moe.second_threshold_eval",      {"0", "0.4"}                                                  },
    {"moe.noise_epsilon",              {"0", "0.3"}                                                  },
    {"moe.sinkhorn_iters",             {"0", "2"}                                                    },
    {"moe.sinkhorn_tol",               {"0", "0.01"}                                                 },
    {"moe.quantile_ema",               {"0", "0.5"}                                                  },
    {"moe.fake_noise",                 {"0", "0.5"}                                                  },
    {"moe.fake_skip_first",            {"0", "1"}                                                    },
    {"moe.force_bias_std",             {"0", "0.5"}                                                  },
    {"moe.capacity_factor",            {"0", "0.75", "1.25"}                                         },
    {"moe.capacity_factor_eval",       {"0", "2"}                                                    },
    {"moe.capacity_factor_inner",      {"0", "1.5"}                                                  },
    {"moe.min_capacity",               {"0", "2"}                                                    },
    {"moe.capacity_multiple",          {"0", "2"}                                                    },
    {"moe.aux_loss_coeff",             {"0", "0.7"}                                                  },
    {"moe.seq_aux_loss_coeff",         {"0", "0.6"}                                                  },
    {"moe.global_aux_loss_coeff",      {"0", "0.5"}                                                  },
    {"moe.gshard_loss_coeff",          {"0", "0.4"}                                                  },
    {"moe.second_place_loss_coeff",    {"0", "0.6"}                                                  },
    {"moe.importance_loss_coeff",      {"0", "0.3"}                                                  },
    {"moe.load_loss_coeff",            {"0", "0.4"}                                                  },
    {"moe.entropy_loss_coeff",         {"0", "0.5"}                                                  },
    {"moe.z_loss_coeff",               {"0", "0.2"}                                                  },
    {"moe.init_std",                   {"0.4", "0.02", "0"}                                          },
    {"moe.init_std_down",              {"0", "0.3"}                                                  },
    {"moe.init_std_scale",             {"0", "0.5"}                                                  },
    {"call.tokens",                    {"12", "6", "1"}                                              },
    {"call.sequences",                 {"1", "2"}                                                    },
};

const char *const *cover_values(const char *key) {
    for (size_t i = 0; i < sizeof tried / sizeof *tried; ++i)
        if (strcmp(tried[i].key, key) == 0) return tried[i].value;
    return NULL;
}
