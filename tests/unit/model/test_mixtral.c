/* test_mixtral.c: a recorded run of transformers' Mixtral on a tiny random checkpoint.
 * tests/golden/mixtral: logits [2,20,96], 16 greedy tokens, losses, gradients of the loss without balance.
 * Source: transformers 5.17 on the CPU in float32. Its `loss` is `train_loss` + 0.02 * `aux_loss`; gradients
 * are those of `train_loss`, so the coefficient is set to 0 for them.
 */
#include "unit/model/recorded.h"

#include "format/file.h"

#define GOLDEN "tests/golden/mixtral"
enum { SEQS = 2, LENGTH = 20, VOCAB = 96, D = 32, ROWS = SEQS * LENGTH };

static recorded_run run;

static int open_expected(void **state) {
    (void)state;
    run = recorded_open(GOLDEN);
    return 0;
}

static int close_expected(void **state) {
    (void)state;
    recorded_close(&run);
    return 0;
}

static void test_logits(void **state) {
    (void)state;
    recorded_check_logits(&run, SEQS, LENGTH, VOCAB, "f32", TEST_ISAS_F32, 1e-5);
}

/* The same checkpoint rounded to bf16 (4e-3 a number) and computed in it. */
static void test_logits_bf16(void **state) {
    (void)state;
    recorded_check_logits(&run, SEQS, LENGTH, VOCAB, "bf16", TEST_ISAS, 3e-2);
}

static void test_greedy(void **state) {
    (void)state;
    recorded_check_greedy(&run, 6, 16);
}

/* The checkpoint with another router_aux_loss_coef, the same tensors. */
static char *with_coefficient(void **state, const char *coefficient) {
    char *text, *end, config[2000];
    size_t bytes;
    moe_error error;
    assert_ok(moelm_file_read(GOLDEN "/config.json", 1, 1 << 16, &text, &bytes, &error), &error);
    char *at = strstr(text, "\"router_aux_loss_coef\": ") + strlen("\"router_aux_loss_coef\": ");
    end = strchr(at, ',');
    snprintf(config, sizeof config, "%.*s%s%s", (int)(at - text), text, coefficient, end);
    free(text);
    char *to = scratch_path(state, "config.json");
    scratch_put(to, config, strlen(config));
    free(to);
    to = scratch_path(state, "model.safetensors");
    assert_ok(moelm_file_read(GOLDEN "/model.safetensors", 1, 1 << 20, &text, &bytes, &error), &error);
    scratch_put(to, text, bytes);
    free(text);
    free(to);
    return *state;
}

static void test_gradients(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_load(ctx, with_coefficient(state, "0.0"));
    int32_t ids[ROWS], targets[ROWS];
    recorded_ids(&run, "input_ids", ids, ROWS);
    recorded_targets(ids, ROWS, LENGTH, targets);
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    double loss, aux;
    must(ctx, moe_lm_loss(lm, ids, targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux));
    assert_true(fabs(loss - (double)recorded_one(&run, "train_loss")) < 1e-5);
    assert_true(aux == 0.0);

    recorded_near(&run, "grad.model.embed_tokens.weight", model_param(lm, "embed.weight").grad, VOCAB * D,
                  1e-5);
    recorded_near(&run, "grad.model.layers.0.mlp.gate.weight",
                  model_param(lm, "blocks.0.ffn.gate.weight").grad, 8 * D, 1e-5);
    recorded_near(&run, "grad.model.layers.1.mlp.gate.weight",
                  model_param(lm, "blocks.1.ffn.gate.weight").grad, 8 * D, 1e-5);

    /* theirs is [E, 2n, d], ours [E, d, 2n] */
    enum { E = 8, N2 = 96 };
    static float turned[E * N2 * D];
    const float *grad = model_param(lm, "blocks.1.ffn.experts.up.weight").grad;
    for (int e = 0; e < E; ++e)
        for (int i = 0; i < N2; ++i)
            for (int j = 0; j < D; ++j) turned[(e * N2 + i) * D + j] = grad[(e * D + j) * N2 + i];
    recorded_near(&run, "grad.model.layers.1.mlp.experts.gate_up_proj", turned, E * N2 * D, 1e-5);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Their aux_loss takes both layers at once, E * sum_e f_e P_e with sum_e f_e = K; ours is the mean of the
 * layers times K where the layers' loads are alike, and never far from it here. */
static void test_balance_has_their_scale(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_load(ctx, GOLDEN);
    int32_t ids[ROWS], targets[ROWS];
    recorded_ids(&run, "input_ids", ids, ROWS);
    recorded_targets(ids, ROWS, LENGTH, targets);
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    double loss, aux;
    must(ctx, moe_lm_loss(lm, ids, targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux));
    double theirs = (double)recorded_one(&run, "loss") - (double)recorded_one(&run, "train_loss");
    assert_true(fabs(theirs - 0.02 * (double)recorded_one(&run, "aux_loss")) < 1e-6);
    if (fabs(aux - theirs) > 0.25 * theirs) fail_msg("aux %g, theirs %g", aux, theirs);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_logits_bf16),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test_setup_teardown(test_gradients, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_balance_has_their_scale),
    };
    return cmocka_run_group_tests(tests, open_expected, close_expected);
}
