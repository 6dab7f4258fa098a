/* test_cuda_graph.c: forward and backward captured in a CUDA graph: replays give the bits of plain calls.
 * The layer's routing is the device's, so no call waits; x changes between replays in place.
 */
#include "unit/cuda/cuda_fixture.h"

#include <cuda_runtime_api.h>

enum { TOKENS = 203 };

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

typedef struct variant {
    const char *isa;
    moe_dtype dtype;
    int32_t width;
    float capacity_factor;
} variant;

static size_t part_bytes(const variant *v) {
    return (size_t)TOKENS * (size_t)v->width * moe_dtype_bytes(v->dtype);
}

static moe_mat part(char *device, size_t i, const variant *v) {
    return (moe_mat){device + i * part_bytes(v), TOKENS, v->width, 0, v->dtype};
}

static void replays_are_calls(void **state) {
    const variant *v = *state;
    moe_ctx *ctx = cuda_ctx(v->isa);
    if (!ctx) skip();
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .dtype = v->dtype,
                                 .d_model = v->width,
                                 .num_experts = 9,
                                 .top_k = 3,
                                 .expert_hidden_size = 40,
                                 .capacity_factor = v->capacity_factor,
                                 .aux_loss_coeff = 0.1f,
                                 .z_loss_coeff = 0.1f,
                                 .num_shared_experts = 1};
    const size_t bytes = 2 * part_bytes(v);
    moe_layer *layer = test_layer(ctx, &desc, TOKENS);
    char *device = moe_memory_alloc(ctx, 2 * bytes), *called = malloc(bytes), *replayed = malloc(bytes);
    cudaGraphExec_t exec;
    assert_true(device && called && replayed);
    const moe_mat x = part(device, 0, v), dy = part(device, 1, v), y = part(device, 2, v),
                  dx = part(device, 3, v);
    assert_true(moe_layer_routes_on_device(layer));
    for (uint32_t round = 0; round < 3; ++round) {
        moe_mat host = test_random(v->dtype, 2 * TOKENS, v->width, 10 + round);
        must(ctx, moe_memory_copy(ctx, device, host.data, bytes));
        free(host.data);
        must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
        must(ctx, moe_layer_backward(layer, x, dy, dx));
        must(ctx, moe_memory_copy(ctx, called, y.data, bytes));
        if (round == 0) capture(ctx, layer, x, y, dy, dx, &exec);
        memset(replayed, 0xff, bytes);
        must(ctx, moe_memory_copy(ctx, y.data, replayed, bytes));
        assert_int_equal(cudaGraphLaunch(exec, moe_cuda_stream(ctx)), cudaSuccess);
        must(ctx, moe_memory_copy(ctx, replayed, y.data, bytes));
        assert_memory_equal(called, replayed, bytes);
    }
    cudaGraphExecDestroy(exec);
    free(called), free(replayed);
    moe_memory_free(ctx, device, 2 * bytes);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

int main(void) {
    /* Hopper's own kernels take widths that are multiples of 8, and their plan is the one without capacities.
     */
    variant f32 = {"cuda", MOE_F32, 36, 1.1f}, bf16 = {"cuda", MOE_BF16, 36, 1.1f},
            hopper = {"sm90", MOE_BF16, 40, 0};
    if (!cuda_is_here()) return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(replays_are_calls, &f32),
                                       cmocka_unit_test_prestate(replays_are_calls, &bf16),
                                       cmocka_unit_test_prestate(replays_are_calls, &hopper)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
