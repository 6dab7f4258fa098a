/* test_model_loss.c: the loss and its gradients: central differences, bits, linearity, wrong inputs.
 * Tiny models of every shape of block: grouped heads, tied head, dense layers, shared experts, capacity.
 * Source: for a direction u, 8 (loss(w + h u) - loss(w - h u)) - (loss(w + 2 h u) - loss(w - 2 h u)) is
 * 12 h <gradient, u> + O(h^5).
 */
#include "unit/model/model_fixture.h"

#include "model/model.h"

enum { SEQS = 3, LENGTH = 7, ROWS = SEQS * LENGTH, VOCAB = 23 };

typedef struct data {
    int32_t tokens[ROWS], targets[ROWS];
} data;

static data random_data(uint64_t stream) {
    data d;
    model_tokens(d.tokens, ROWS, VOCAB, stream);
    model_tokens(d.targets, ROWS, VOCAB, stream + 1);
    d.targets[3] = d.targets[ROWS - 1] = -1;
    return d;
}

static double total(moe_ctx *ctx, moe_lm *lm, const data *d, float grad_scale) {
    double loss, aux;
    must(ctx, moe_lm_loss(lm, d->tokens, d->targets, SEQS, LENGTH, 5, grad_scale, &loss, &aux));
    return loss + aux;
}

/* 1. Gradients. */

static double length_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void move(float *value, const float *start, const float *direction, int64_t n, double step) {
    for (int64_t i = 0; i < n; ++i) value[i] = (float)((double)start[i] + step * (double)direction[i]);
}

/* Along the gradient itself, bent by noise so that no single number decides: the slope is then as large as
 * it can be against the rounding of an f32 loss. */
static void direct(float *direction, const float *grad, int64_t n, uint64_t stream) {
    double length = length_of(grad, n);
    moe_random_normal(test_seed(), MOE_DRAW_TEST, 78, stream, MOE_F32, direction, n, 0.5 / sqrt((double)n));
    for (int64_t i = 0; i < n; ++i) direction[i] += (float)((double)grad[i] / length);
}

static double slope_error(moe_ctx *ctx, moe_lm *lm, const data *d, const moe_param *param,
                          const float *grad) {
    const double step =
        4e-3; /* smaller ones leave the rounding of the loss, of small gradients most of them */
    int64_t n = model_numbers(param);
    float *value = param->value, *start = malloc((size_t)n * sizeof *start),
          *u = malloc((size_t)n * sizeof *u);
    assert_non_null(start);
    assert_non_null(u);
    memcpy(start, value, (size_t)n * sizeof *start);
    direct(u, grad, n, (uint64_t)n);
    double slope = 0;
    for (int64_t i = 0; i < n; ++i) slope += (double)grad[i] * (double)u[i];
    double difference = 0;
    for (int i = 0; i < 4; ++i) {
        static const double at[] = {1, -1, 2, -2}, weight[] = {8.0 / 12, -8.0 / 12, -1.0 / 12, 1.0 / 12};
        move(value, start, u, n, at[i] * step);
        difference += weight[i] * total(ctx, lm, d, 1.0F) / step;
    }
    memcpy(value, start, (size_t)n * sizeof *start);
    free(start);
    free(u);
    return fabs(difference - slope) / fabs(slope);
}

static void check_gradients(const char *const *pairs) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    data d = random_data(1);
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    total(ctx, lm, &d, 1.0F);
    int32_t count = moe_lm_param_count(lm);
    float **grads = calloc((size_t)count, sizeof *grads);
    assert_non_null(grads);
    for (int32_t i = 0; i < count; ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        size_t bytes = (size_t)model_numbers(&param) * sizeof(float);
        grads[i] = malloc(bytes);
        assert_non_null(grads[i]);
        memcpy(grads[i], param.grad, bytes);
    }
    for (int32_t i = 0; i < count; ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        if (!(length_of(grads[i], model_numbers(&param)) > 1e-6)) fail_msg("%s has no gradient", param.name);
        double error = slope_error(ctx, lm, &d, &param, grads[i]);
        if (!(error < 1e-2)) fail_msg("%s: gradient off by %g, model of %s", param.name, error, pairs[0]);
        free(grads[i]);
    }
    free(grads);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_gradients(void **state) {
    (void)state;
    /* K = E keeps the choice of experts still while weights move; the losses stay on */
    static const char *const all[] = {"moe.top_k", "4", "moe.aux_loss_coeff", "0.5", "moe.z_loss_coeff",
                                      "0.1",       NULL};
    static const char *const tied[] = {"model.tie_embeddings", "true", "moe.top_k", "4", NULL};
    static const char *const dense[] = {
        "model.moe_layer_freq", "2",    "moe.top_k", "4", "moe.activation", "gelu",
        "moe.expert_bias",      "true", NULL};
    static const char *const shared[] = {
        "moe.num_shared_experts", "1",    "moe.top_k", "4", "model.head_dim", "6", "model.n_kv_heads", "1",
        "moe.score_before_topk",  "true", NULL};
    static const char *const by_head[] = {"model.qk_norm",  "head", "moe.top_k", "4",
                                          "model.head_dim", "6",    NULL};
    static const char *const full[] = {"model.qk_norm", "full", "moe.top_k", "4", NULL};
    check_gradients(by_head);
    check_gradients(full);
    check_gradients(all);
    check_gradients(tied);
    check_gradients(dense);
    check_gradients(shared);
}

/* 2. Bits. */

static void copy_grads(moe_ctx *ctx, moe_lm *lm, float **out, int64_t *n) {
    *n = 0;
    *out = NULL;
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        int64_t more = model_numbers(&param);
        *out = realloc(*out, (size_t)(*n + more) * sizeof **out);
        assert_non_null(*out);
        memcpy(*out + *n, param.grad, (size_t)more * sizeof **out);
        *n += more;
    }
}

static void test_same_bits_for_any_threads(void **state) {
    (void)state;
    static const char *const pairs[] = {"moe.input_jitter_eps", "0.1", "moe.capacity_factor", "1.0", NULL};
    float *first = NULL;
    double first_loss = 0;
    data d = random_data(3);
    for (int threads = 1; threads <= 4; threads *= 2) {
        moe_ctx *ctx = test_ctx(NULL, threads);
        moe_lm *lm = model_make(ctx, pairs);
        must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
        double loss = total(ctx, lm, &d, 1.0F);
        float *grads;
        int64_t n;
        copy_grads(ctx, lm, &grads, &n);
        if (!first) {
            first = grads;
            first_loss = loss;
        } else {
            assert_memory_equal(&loss, &first_loss, sizeof loss);
            assert_memory_equal(grads, first, (size_t)n * sizeof *grads);
            free(grads);
        }
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
    free(first);
}

/* A sequence alone has the logits it has among others. */
static void test_batch_does_not_matter(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(9);
    float many[ROWS * VOCAB], one[LENGTH * VOCAB];
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, d.tokens, SEQS, LENGTH, many));
    for (int s = 0; s < SEQS; ++s) {
        must(ctx, moe_lm_logits(lm, d.tokens + s * LENGTH, 1, LENGTH, one));
        assert_memory_equal(one, many + s * LENGTH * VOCAB, sizeof one);
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* No token sees a later one. */
static void test_causal(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(11);
    float before[LENGTH * VOCAB], after[LENGTH * VOCAB];
    must(ctx, moe_lm_reserve(lm, 1, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, d.tokens, 1, LENGTH, before));
    d.tokens[4] = (d.tokens[4] + 1) % VOCAB;
    must(ctx, moe_lm_logits(lm, d.tokens, 1, LENGTH, after));
    assert_memory_equal(before, after, 4 * VOCAB * sizeof *before);
    assert_memory_not_equal(before + 4 * VOCAB, after + 4 * VOCAB, VOCAB * sizeof *before);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* 3. What the call says it does. */

static void test_loss_is_that_of_the_logits(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(13);
    float logits[ROWS * VOCAB];
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, d.tokens, SEQS, LENGTH, logits));
    double sum = 0, loss, aux;
    for (int r = 0; r < ROWS; ++r) {
        if (d.targets[r] < 0) continue;
        double mass = 0;
        for (int v = 0; v < VOCAB; ++v) mass += exp((double)logits[r * VOCAB + v]);
        sum += log(mass) - (double)logits[r * VOCAB + d.targets[r]];
    }
    must(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 0.0F, &loss, &aux));
    assert_true(fabs(loss - sum / (ROWS - 2)) < 1e-5);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Two halves of weight one half add up to the whole; zero_grad and a larger reserve do what they say. */
static void test_gradients_add_and_scale(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(15);
    float *whole, *halves;
    int64_t n;
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    total(ctx, lm, &d, 1.0F);
    copy_grads(ctx, lm, &whole, &n);
    moe_lm_zero_grad(lm);
    total(ctx, lm, &d, 0.5F);
    must(ctx, moe_lm_reserve(lm, 2 * SEQS, LENGTH, MOE_TRAIN));
    total(ctx, lm, &d, 0.5F);
    copy_grads(ctx, lm, &halves, &n);
    assert_memory_equal(whole, halves, (size_t)n * sizeof *whole); /* halving and doubling are exact */
    free(halves);
    total(ctx, lm, &d, 0.0F);
    copy_grads(ctx, lm, &halves, &n);
    assert_memory_equal(whole, halves, (size_t)n * sizeof *whole);
    free(halves);
    free(whole);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* The first forward of a step, into gradients that hold anything: those of zeros added to. */
static void test_gradients_stored(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(21);
    float *added, *stored;
    double loss, same_loss;
    int64_t n;
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    must(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 5, 0.5F, &loss, NULL));
    copy_grads(ctx, lm, &added, &n);
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        if (param.grad) memset(param.grad, 0xff, (size_t)model_numbers(&param) * sizeof(float));
    }
    moelm_pass pass = {
        .tokens = d.tokens,
        .n_seq = SEQS,
        .length = LENGTH,
        .call = {.size = sizeof pass.call,
                 .mode = MOE_TRAIN,
                 .step = 5,
                 .loss_scale = 0.5F,
                 .overwrite_grad = true}
    };
    must(ctx, moelm_loss(lm, &pass, d.targets, &same_loss));
    assert_true(loss == same_loss);
    copy_grads(ctx, lm, &stored, &n);
    for (int64_t i = 0; i < n; ++i)
        if (!(stored[i] == added[i]))
            fail_msg("gradient %lld is %g, and %g added to zero", (long long)i, (double)stored[i],
                     (double)added[i]);
    free(added);
    free(stored);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* A vocabulary so large that the logits of a batch are made in several pieces. */
static void test_head_in_pieces(void **state) {
    (void)state;
    /* clang-format off */
    static const char *const pairs[] = {
        "model.vocab_size", "300000",  "model.d_model", "4",  "model.n_heads", "1",
        "model.n_kv_heads", "1",  "model.n_layers", "1",  NULL
    };
    /* clang-format on */
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_make(ctx, pairs);
    data d = random_data(17);
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    double loss, aux, sum = 0;
    for (int s = 0; s < SEQS; ++s) {
        const int32_t *targets = d.targets + s * LENGTH;
        int counted = 0;
        for (int i = 0; i < LENGTH; ++i) counted += targets[i] >= 0;
        must(ctx, moe_lm_loss(lm, d.tokens + s * LENGTH, targets, 1, LENGTH, 0, 0.0F, &loss, &aux));
        sum += counted * loss;
    }
    must(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux));
    assert_true(fabs(loss - sum / (ROWS - 2)) < 1e-9);
    /* the gradient of the head sums to zero over the vocabulary: softmax and one-hot both sum to one */
    const moe_param head = model_param(lm, "head.weight");
    for (int j = 0; j < 4; ++j) {
        double column = 0, size = 0;
        for (int64_t v = 0; v < 300000; ++v) {
            column += (double)((float *)head.grad)[v * 4 + j];
            size += fabs((double)((float *)head.grad)[v * 4 + j]);
        }
        assert_true(fabs(column) < 1e-4 * size);
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* 4. Wrong inputs. */

static void test_wrong_inputs(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(19);
    static float logits[ROWS * VOCAB];
    double loss = 7, aux = 7;
    must_fail(ctx, moe_lm_logits(lm, d.tokens, 1, LENGTH, logits), MOE_ERR_STATE, "moe_lm_reserve");
    must_fail(ctx, moe_lm_reserve(lm, 0, 4, MOE_INFER), MOE_ERR_ARGUMENT, "at least 1");
    must_fail(ctx, moe_lm_reserve(lm, 1, 33, MOE_INFER), MOE_ERR_ARGUMENT, "context of 32");
    must_fail(ctx, moe_lm_reserve(lm, INT64_MAX, 32, MOE_INFER), MOE_ERR_ARGUMENT, "at once");
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_INFER));
    must_fail(ctx, moe_lm_logits(lm, d.tokens, SEQS + 1, LENGTH, logits), MOE_ERR_STATE,
              "21 tokens reserved");
    must_fail(ctx, moe_lm_logits(lm, d.tokens, 1, 0, logits), MOE_ERR_ARGUMENT, "at least 1");
    must_fail(ctx, moe_lm_logits(lm, d.tokens, INT64_MAX, 2, logits), MOE_ERR_STATE, "reserved");
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux), MOE_ERR_STATE,
              "MOE_TRAIN");
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    must_fail(ctx, moe_lm_loss(lm, d.tokens, NULL, SEQS, LENGTH, 0, 1.0F, &loss, &aux), MOE_ERR_ARGUMENT,
              "targets");
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, NAN, &loss, &aux), MOE_ERR_ARGUMENT,
              "grad_scale");
    d.tokens[5] = VOCAB;
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux), MOE_ERR_ARGUMENT,
              "tokens[5] is 23");
    d.tokens[5] = -1;
    must_fail(ctx, moe_lm_logits(lm, d.tokens, SEQS, LENGTH, logits), MOE_ERR_ARGUMENT, "tokens[5] is -1");
    d = random_data(19);
    d.targets[2] = -2;
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux), MOE_ERR_ARGUMENT,
              "targets[2] is -2");
    for (int i = 0; i < ROWS; ++i) d.targets[i] = -1;
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux), MOE_ERR_ARGUMENT,
              "no loss to take");
    assert_true(loss == 7 && aux == 7);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

static void test_damaged_weights_are_told(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    data d = random_data(21);
    double loss = 7, aux;
    must(ctx, moe_lm_reserve(lm, SEQS, LENGTH, MOE_TRAIN));
    ((float *)model_param(lm, "final_norm.weight").value)[0] = NAN;
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 1.0F, &loss, &aux), MOE_ERR_NUMERIC,
              "not finite; a lower learning rate may help");
    must_fail(ctx, moe_lm_loss(lm, d.tokens, d.targets, SEQS, LENGTH, 0, 0.0F, &loss, &aux), MOE_ERR_NUMERIC,
              "not finite");
    assert_null(strstr(moe_ctx_error(ctx), "learning rate")); /* nothing learns */
    assert_true(loss == 7);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_batch_does_not_matter),
        cmocka_unit_test(test_causal),
        cmocka_unit_test(test_loss_is_that_of_the_logits),
        cmocka_unit_test(test_gradients_add_and_scale),
        cmocka_unit_test(test_gradients_stored),
        cmocka_unit_test(test_head_in_pieces),
        cmocka_unit_test(test_wrong_inputs),
        cmocka_unit_test(test_damaged_weights_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
