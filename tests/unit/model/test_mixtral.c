/* test_mixtral.c: a recorded run of transformers' Mixtral on a tiny random checkpoint.
 * tests/golden/mixtral: logits [2,20,96], 16 greedy tokens, losses, gradients of the loss without balance.
 * Source: transformers 5.17 on the CPU in float32. Its `loss` is `train_loss` + 0.02 * `aux_loss`; gradients
 * are those of `train_loss`, so the coefficient is set to 0 for them.
 */
#include "unit/model/model_fixture.h"

#include "format/file.h"
#include "format/safetensors.h"

#define GOLDEN "tests/golden/mixtral"
enum { SEQS = 2, LENGTH = 20, VOCAB = 96, D = 32, ROWS = SEQS * LENGTH };

static moelm_safetensors *expected;

static int open_expected(void **state) {
    moe_error error;
    (void)state;
    return moelm_safetensors_open(GOLDEN "/expected.safetensors", &expected, &error) == MOE_OK ? 0 : -1;
}

static int close_expected(void **state) {
    (void)state;
    moelm_safetensors_close(expected);
    return 0;
}

static const void *recorded(const char *name, size_t bytes) {
    const moelm_st_tensor *tensor = moelm_safetensors_find(expected, name);
    assert_non_null(tensor);
    assert_int_equal(tensor->bytes, bytes);
    void *copy = malloc(bytes); /* aligned */
    assert_non_null(copy);
    memcpy(copy, tensor->data, bytes);
    return copy;
}

static void read_ids(const char *name, int32_t *ids, int64_t n) {
    const int64_t *wide = recorded(name, (size_t)n * sizeof *wide);
    for (int64_t i = 0; i < n; ++i) ids[i] = (int32_t)wide[i];
    free((void *)wide);
}

static float read_one(const char *name) {
    const float *value = recorded(name, sizeof *value);
    float one = *value;
    free((void *)value);
    return one;
}

static void assert_near(const char *name, const float *values, int64_t n, double limit) {
    const float *right = recorded(name, (size_t)n * sizeof *right);
    double distance = model_distance(values, right, n);
    if (!(distance <= limit))
        fail_msg("%s: off by %g of its largest number, limit %g", name, distance, limit);
    free((void *)right);
}

/* The logits of the recorded text in a dtype, by the first `n_isas` instruction sets. */
static void check_logits(const char *dtype, int n_isas, double limit) {
    int32_t ids[ROWS];
    read_ids("input_ids", ids, ROWS);
    for (int isa = 0; isa < n_isas; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        moe_lm *lm = NULL;
        must(ctx, moe_lm_load_as(ctx, GOLDEN, dtype, &lm));
        must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_INFER));
        float logits[ROWS * VOCAB];
        must(ctx, moe_lm_logits(lm, ids, SEQS, LENGTH, logits));
        assert_near("logits", logits, ROWS * VOCAB, limit);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
}

static void test_logits(void **state) {
    (void)state;
    check_logits("f32", TEST_ISAS_F32, 1e-5);
}

/* The same checkpoint rounded to bf16 (4e-3 a number) and computed in it. */
static void test_logits_bf16(void **state) {
    (void)state;
    check_logits("bf16", TEST_ISAS, 3e-2);
}

static void test_greedy(void **state) {
    (void)state;
    enum { PROMPT = 6, NEW = 16 };
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_load(ctx, GOLDEN);
    int32_t right[PROMPT + NEW];
    read_ids("generated", right, PROMPT + NEW);
    const moe_lm_sampler greedy = {.size = sizeof greedy};
    model_taken taken = {0};
    must(ctx, moe_lm_generate(lm, right, PROMPT, NEW, &greedy, model_take, &taken));
    assert_int_equal(taken.n, NEW);
    assert_memory_equal(taken.token, right + PROMPT, NEW * sizeof *right);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
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

static void read_targets(const int32_t *ids, int32_t *targets) {
    for (int i = 0; i < ROWS; ++i) targets[i] = i % LENGTH == LENGTH - 1 ? -1 : ids[i + 1];
}

static void test_gradients(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_load(ctx, with_coefficient(state, "0.0"));
    int32_t ids[ROWS], targets[ROWS];
    read_ids("input_ids", ids, ROWS);
    read_targets(ids, targets);
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    double loss, aux;
    must(ctx, moe_lm_loss(lm, ids, targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux));
    assert_true(fabs(loss - (double)read_one("train_loss")) < 1e-5);
    assert_true(aux == 0.0);

    assert_near("grad.model.embed_tokens.weight", model_param(lm, "embed.weight").grad, VOCAB * D, 1e-5);
    assert_near("grad.model.layers.0.mlp.gate.weight", model_param(lm, "blocks.0.ffn.gate.weight").grad,
                8 * D, 1e-5);
    assert_near("grad.model.layers.1.mlp.gate.weight", model_param(lm, "blocks.1.ffn.gate.weight").grad,
                8 * D, 1e-5);

    /* theirs is [E, 2n, d], ours [E, d, 2n] */
    enum { E = 8, N2 = 96 };
    static float turned[E * N2 * D];
    const float *grad = model_param(lm, "blocks.1.ffn.experts.up.weight").grad;
    for (int e = 0; e < E; ++e)
        for (int i = 0; i < N2; ++i)
            for (int j = 0; j < D; ++j) turned[(e * N2 + i) * D + j] = grad[(e * D + j) * N2 + i];
    assert_near("grad.model.layers.1.mlp.experts.gate_up_proj", turned, E * N2 * D, 1e-5);
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
    read_ids("input_ids", ids, ROWS);
    read_targets(ids, targets);
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    double loss, aux;
    must(ctx, moe_lm_loss(lm, ids, targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux));
    double theirs = (double)read_one("loss") - (double)read_one("train_loss");
    assert_true(fabs(theirs - 0.02 * (double)read_one("aux_loss")) < 1e-6);
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
