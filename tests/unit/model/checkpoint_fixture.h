/* checkpoint_fixture.h: what tests of checkpoints share: models of each family, and saved directories whose
 * tensors are changed. Source: the file format of safetensors; numbers below 2^8 are exact in bf16 and f16.
 */
#ifndef CHECKPOINT_FIXTURE_H
#define CHECKPOINT_FIXTURE_H

#include "unit/model/model_fixture.h"

#include "format/safetensors.h"

/* clang-format off */
static const char *const mixtral[] = {
    "moe.z_loss_coeff", "0.003",  "moe.aux_loss_coeff", "0.01",  "model.head_dim", "6",
    "moe.score_before_topk", "true",  "moe.norm_topk_prob", "true",  NULL
};
/* clang-format on */
static const char *const tied[] = {"model.tie_embeddings", "true", "moe.input_jitter_eps", "0.125", NULL};
/* clang-format off */
static const char *const moekit[] = {
    "moe.num_shared_experts", "2",  "moe.expert_bias", "true",  "moe.activation", "gelu",
    "model.moe_layer_freq", "2",  "moe.capacity_factor", "1.25",  "moe.drop_policy", "position",  NULL
};
/* clang-format on */
static const char *const qwen[] = {"model.qk_norm",
                                   "head",
                                   "model.head_dim",
                                   "6",
                                   "model.moe_layer_freq",
                                   "2",
                                   "model.moe_layer_offset",
                                   "1",
                                   "model.ffn_hidden_size",
                                   "10",
                                   NULL};
/* clang-format off */
static const char *const olmoe[] = {"model.qk_norm", "full",  "moe.score_before_topk", "true", "model.clip_qkv", "1.5",  NULL};
/* clang-format on */

enum { MAX_TENSORS = 64 };
typedef struct edit {
    moelm_st_tensor tensor[MAX_TENSORS];
    size_t count;
} edit;

/* The tensors of a saved directory, to be changed and written back. */
static inline moelm_safetensors *open_edit(const char *directory, edit *e) {
    moelm_safetensors *file;
    moe_error error;
    assert_ok(moelm_safetensors_open(directory, &file, &error), &error);
    e->count = moelm_safetensors_count(file);
    assert_true(e->count < MAX_TENSORS);
    for (size_t i = 0; i < e->count; ++i) e->tensor[i] = *moelm_safetensors_at(file, i);
    return file;
}

static inline void write_edit(const char *directory, const char *name, const moelm_st_tensor *tensor,
                              size_t count) {
    char path[1000];
    moe_error error;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_ok(moelm_safetensors_write(path, tensor, count, NULL, 0, &error), &error);
}

/* A saved tiny model with numbers k/8, |k| < 128: exact in every format. */
static inline moe_lm *save_exact(moe_ctx *ctx, const char *path, const char *const *pairs) {
    moe_lm *lm = model_make(ctx, pairs);
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        for (int64_t j = 0; j < model_numbers(&param); ++j)
            ((float *)param.value)[j] = (float)((i * 31 + j * 7) % 255 - 127) / 8.0F;
    }
    must(ctx, moe_lm_save(lm, path));
    return lm;
}

static inline void remove_in(const char *directory, const char *name) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_int_equal(remove(path), 0);
}

#endif
