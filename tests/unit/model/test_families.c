/* test_families.c: recorded runs of transformers' Qwen3-MoE and OLMoE on tiny random checkpoints.
 * tests/golden/{qwen3_moe,olmoe}: logits [2,20,48], 16 greedy tokens, the loss and gradients of gates, norms
 * and embedding. Norms are around 1, matrices N(0, 0.2^2); heads of Qwen3-MoE are wider than d_model /
 * n_heads, and its middle layer has no experts. Source: transformers 5.23 on the CPU in float32,
 * router_aux_loss_coef 0.
 */
#include "unit/model/recorded.h"

enum { SEQS = 2, LENGTH = 20, VOCAB = 48, ROWS = SEQS * LENGTH };
static const char *const goldens[] = {"tests/golden/qwen3_moe", "tests/golden/olmoe"};
enum { GOLDENS = sizeof goldens / sizeof *goldens };

static void test_logits(void **state) {
    (void)state;
    for (int i = 0; i < GOLDENS; ++i) {
        recorded_run run = recorded_open(goldens[i]);
        recorded_check_logits(&run, SEQS, LENGTH, VOCAB, "f32", TEST_ISAS_F32, 1e-5);
        recorded_close(&run);
    }
}

static void test_greedy(void **state) {
    (void)state;
    for (int i = 0; i < GOLDENS; ++i) {
        recorded_run run = recorded_open(goldens[i]);
        recorded_check_greedy(&run, 6, 16);
        recorded_close(&run);
    }
}

/* Our name of a parameter that is the same tensor in both. */
static void our_name(const char *theirs, char *ours, size_t size) {
    static const struct {
        const char *theirs, *ours;
    } names[] = {
        {"input_layernorm.weight",          "norm.weight"    },
        {"post_attention_layernorm.weight", "ffn_norm.weight"},
        {"self_attn.q_norm.weight",         "q_norm.weight"  },
        {"self_attn.k_norm.weight",         "k_norm.weight"  },
        {"mlp.gate.weight",                 "ffn.gate.weight"},
    };
    char *end;
    ours[0] = '\0';
    if (strcmp(theirs, "model.embed_tokens.weight") == 0) snprintf(ours, size, "embed.weight");
    if (strcmp(theirs, "model.norm.weight") == 0) snprintf(ours, size, "final_norm.weight");
    if (strncmp(theirs, "model.layers.", 13) != 0) return;
    const long layer = strtol(theirs + 13, &end, 10);
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i)
        if (strcmp(end + 1, names[i].theirs) == 0)
            snprintf(ours, size, "blocks.%ld.%s", layer, names[i].ours);
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < GOLDENS; ++i) {
        recorded_run run = recorded_open(goldens[i]);
        moe_ctx *ctx = test_ctx(NULL, 2);
        moe_lm *lm = model_load(ctx, goldens[i]);
        int32_t ids[ROWS], targets[ROWS], compared = 0;
        recorded_ids(&run, "input_ids", ids, ROWS);
        recorded_targets(ids, ROWS, LENGTH, targets);
        must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
        double loss, aux;
        must(ctx, moe_lm_loss(lm, ids, targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux));
        assert_true(fabs(loss - (double)recorded_one(&run, "train_loss")) < 1e-5);
        assert_true(aux == 0.0);
        for (size_t t = 0; t < moelm_safetensors_count(run.file); ++t) {
            const char *name = moelm_safetensors_at(run.file, t)->name;
            char ours[100];
            if (strncmp(name, "grad.", 5) != 0) continue;
            our_name(name + 5, ours, sizeof ours);
            const moe_param param = model_param(lm, ours);
            recorded_near(&run, name, param.grad, model_numbers(&param), 1e-5);
            ++compared;
        }
        /* four norms a layer, the last one, the embedding, and a gate in two layers */
        assert_int_equal(compared, i == 0 ? 16 : 12);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
        recorded_close(&run);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
