/* test_cuda_graph.c: forward and backward captured in a CUDA graph: replays give the bits of plain calls.
 * The layer's routing is the device's, so no call waits; x changes between replays in place.
 */
#include "support/layer_fixture.h"

#include <moekit/cuda.h>

#include <cuda_runtime_api.h>

enum { TOKENS = 203, WIDTH = 36, NUMBERS = TOKENS * WIDTH };

static void capture(moe_ctx *ctx, moe_layer *layer, moe_mat x, moe_mat y, moe_mat dy, moe_mat dx,
                    cudaGraphExec_t *exec) {
    cudaStream_t stream = moe_cuda_stream(ctx);
    cudaGraph_t graph;
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
}

static void replays_are_calls(void **state) {
    moe_ctx *ctx = *state;
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .d_model = WIDTH,
                                 .num_experts = 9,
                                 .top_k = 3,
                                 .expert_hidden_size = 40,
                                 .capacity_factor = 1.1f,
                                 .aux_loss_coeff = 0.1f,
                                 .z_loss_coeff = 0.1f,
                                 .num_shared_experts = 1};
    moe_layer *layer = test_layer(ctx, &desc, TOKENS);
    float *device = moe_memory_alloc(ctx, 4 * NUMBERS * sizeof *device);
    float *called = malloc(2 * NUMBERS * sizeof *called), *replayed = malloc(2 * NUMBERS * sizeof *replayed);
    cudaGraphExec_t exec;
    assert_true(device && called && replayed);
    const moe_mat x = {device, TOKENS, WIDTH, 0, MOE_F32}, dy = {device + NUMBERS, TOKENS, WIDTH, 0, MOE_F32};
    const moe_mat y = {device + 2 * NUMBERS, TOKENS, WIDTH, 0, MOE_F32},
                  dx = {device + 3 * NUMBERS, TOKENS, WIDTH, 0, MOE_F32};
    assert_true(moe_layer_routes_on_device(layer));
    for (uint32_t round = 0; round < 3; ++round) {
        moe_mat host = test_random(MOE_F32, 2 * TOKENS, WIDTH, 10 + round);
        must(ctx, moe_memory_copy(ctx, device, host.data, 2 * NUMBERS * sizeof(float)));
        free(host.data);
        must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
        must(ctx, moe_layer_backward(layer, x, dy, dx));
        must(ctx, moe_memory_copy(ctx, called, y.data, 2 * NUMBERS * sizeof(float)));
        if (round == 0) capture(ctx, layer, x, y, dy, dx, &exec);
        memset(replayed, 0xff, 2 * NUMBERS * sizeof *replayed);
        must(ctx, moe_memory_copy(ctx, y.data, replayed, 2 * NUMBERS * sizeof(float)));
        assert_int_equal(cudaGraphLaunch(exec, moe_cuda_stream(ctx)), cudaSuccess);
        must(ctx, moe_memory_copy(ctx, replayed, y.data, 2 * NUMBERS * sizeof(float)));
        assert_memory_equal(called, replayed, 2 * NUMBERS * sizeof(float));
    }
    cudaGraphExecDestroy(exec);
    free(called), free(replayed);
    moe_memory_free(ctx, device, 4 * NUMBERS * sizeof *device);
    moe_layer_destroy(layer);
}

int main(void) {
    const moe_ctx_desc desc = {.size = sizeof desc, .device = MOE_CUDA, .seed = test_seed()};
    moe_error error = {0};
    moe_ctx *ctx = NULL;
    if (moe_ctx_create(&desc, &ctx, &error) != MOE_OK) {
        fprintf(stderr, "not run here: %s\n", error.text);
        return error.status == MOE_ERR_UNSUPPORTED ? 77 : 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(replays_are_calls, ctx)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    moe_ctx_destroy(ctx);
    return failed;
}
