/* test_layer_contexts.c: contexts in threads of their own, at the same time: each makes, trains and breaks
 * layers as if it were alone. x[T,d] -> y, dx, the gate's gradient: the bits of one thread.
 * Source: moekit/moe.h, "a context belongs to one thread at a time".
 */
#include "support/layer_fixture.h"

#include <pthread.h>

enum { T = 29, D = 12, E = 6, WORKERS = 4, ROUNDS = 3 };

static const char *const routers[WORKERS] = {"top_k", "sinkhorn", "noisy_top_k", "gshard_top2"};

typedef struct worker {
    const char *router;
    int32_t n_threads;
    float y[T * D], dx[T * D], dgate[E * D];
    const char *failed; /* no assertion leaves a thread that is not the test's */
} worker;

/* One step of a layer; NULL, or what went wrong. */
static const char *one_step(worker *w, moe_ctx *ctx, moe_layer *layer) {
    float x[T * D], dy[T * D];
    moe_param gate = {.size = sizeof gate};
    moe_random_normal(3, MOE_DRAW_TEST, 1, 0, MOE_F32, x, T * D, 1);
    moe_random_normal(3, MOE_DRAW_TEST, 2, 0, MOE_F32, dy, T * D, 1);
    const moe_mat in = {x, T, D, D, MOE_F32}, out = {w->y, T, D, D, MOE_F32};
    if (moe_layer_forward(layer, in, out, &test_train_call, NULL) != MOE_OK) return "forward";
    if (moe_layer_backward(layer, in, (moe_mat){dy, T, D, D, MOE_F32}, (moe_mat){w->dx, T, D, D, MOE_F32}) !=
        MOE_OK)
        return "backward";
    if (moe_layer_param_by_name(layer, "gate.weight", &gate) != MOE_OK) return "the gate";
    memcpy(w->dgate, gate.grad, sizeof w->dgate);
    x[0] = NAN; /* and its error is this context's own */
    if (moe_layer_forward(layer, in, out, &test_train_call, NULL) != MOE_ERR_NUMERIC) return "NaN";
    if (!strstr(moe_ctx_error(ctx), "token 0")) return "the text of an error";
    return NULL;
}

static void *work(void *arg) {
    worker *w = arg;
    for (int round = 0; round < ROUNDS && !w->failed; ++round) {
        const moe_ctx_desc ctx_desc = {.size = sizeof ctx_desc, .n_threads = w->n_threads, .seed = 5};
        moe_layer_desc desc = {.size = sizeof desc,
                               .d_model = D,
                               .num_experts = E,
                               .expert_hidden_size = 7,
                               .router_type = w->router};
        moe_ctx *ctx = NULL;
        moe_layer *layer = NULL;
        if (moe_ctx_create(&ctx_desc, &ctx, NULL) != MOE_OK) {
            w->failed = "context";
            break;
        }
        if (moe_layer_create(ctx, &desc, &layer) != MOE_OK ||
            moe_layer_reserve(layer, T, MOE_TRAIN) != MOE_OK)
            w->failed = "layer";
        else
            w->failed = one_step(w, ctx, layer);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
    return NULL;
}

static void contexts_do_not_meet(void **state) {
    (void)state;
    static worker alone[WORKERS], together[WORKERS];
    pthread_t thread[WORKERS];
    for (int i = 0; i < WORKERS; ++i) {
        alone[i] = (worker){.router = routers[i], .n_threads = 1};
        together[i] = (worker){.router = routers[i], .n_threads = 1 + i % 2};
        work(&alone[i]);
        if (alone[i].failed) fail_msg("%s: %s", routers[i], alone[i].failed);
    }
    for (int i = 0; i < WORKERS; ++i)
        assert_int_equal(pthread_create(&thread[i], NULL, work, &together[i]), 0);
    for (int i = 0; i < WORKERS; ++i) assert_int_equal(pthread_join(thread[i], NULL), 0);
    for (int i = 0; i < WORKERS; ++i) {
        if (together[i].failed) fail_msg("%s, beside others: %s", routers[i], together[i].failed);
        assert_memory_equal(together[i].y, alone[i].y, sizeof alone[i].y);
        assert_memory_equal(together[i].dx, alone[i].dx, sizeof alone[i].dx);
        assert_memory_equal(together[i].dgate, alone[i].dgate, sizeof alone[i].dgate);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(contexts_do_not_meet)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
