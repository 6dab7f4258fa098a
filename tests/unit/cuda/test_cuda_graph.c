/* test_cuda_graph.c: a layer's calls captured in a CUDA graph: replays give the bits of plain calls. Those
 * are forward and backward, or inference of few tokens, whose kernels share counters that each launch leaves
 * as it found them. The layer's routing is the device's, so no call waits; x changes between replays in
 * place.
 */
#include "unit/cuda/cuda_fixture.h"

#include <cuda_runtime_api.h>

typedef struct variant {
    const char *isa;
    moe_dtype dtype;
    moe_mode mode; /* MOE_TRAIN: backward too */
    int64_t tokens;
    int32_t width;
    float capacity_factor;
    const char *format; /* of packed weights; NULL: plain ones */
    int32_t n_experts;  /* by fours the kernels of the router's backward take it */
    float loss_coeff;   /* 0: the router's part of dx is added to the experts' rows */
} variant;

/* Matrices of [tokens, width], one after the other: what the calls read, then what they write. */
enum { X, DY, Y, DX, PARTS };

static size_t part_bytes(const variant *v) {
    return (size_t)v->tokens * (size_t)v->width * moe_dtype_bytes(v->dtype);
}

static moe_mat part(char *device, size_t i, const variant *v) {
    return (moe_mat){device + i * part_bytes(v), v->tokens, v->width, 0, v->dtype};
}

static void call(moe_ctx *ctx, moe_layer *layer, const variant *v, char *device) {
    const moe_mat x = part(device, X, v);
    if (v->mode == MOE_INFER) {
        must(ctx, moe_layer_forward(layer, x, part(device, Y, v), NULL, NULL));
        return;
    }
    must(ctx, moe_layer_forward(layer, x, part(device, Y, v), &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, x, part(device, DY, v), part(device, DX, v)));
}

static void capture(moe_ctx *ctx, moe_layer *layer, const variant *v, char *device, cudaGraphExec_t *exec) {
    cudaStream_t stream = moe_cuda_stream(ctx);
    cudaGraph_t graph;
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    call(ctx, layer, v, device);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
}

static moe_layer *make(moe_ctx *ctx, const variant *v) {
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .dtype = v->dtype,
                                 .d_model = v->width,
                                 .num_experts = v->n_experts,
                                 .top_k = 3,
                                 .expert_hidden_size = 40,
                                 .capacity_factor = v->capacity_factor,
                                 .aux_loss_coeff = v->loss_coeff,
                                 .z_loss_coeff = v->loss_coeff,
                                 .num_shared_experts = 1,
                                 .init_std = 0.3f}; /* so that routing is decided, not a tie */
    const moe_quant_desc packed = {.size = sizeof packed, .format = v->format};
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, v->tokens, v->mode));
    if (v->format) must(ctx, moe_layer_quantize(layer, &packed));
    assert_true(moe_layer_routes_on_device(layer));
    return layer;
}

static void replays_are_calls(void **state) {
    const variant *v = *state;
    moe_ctx *ctx = cuda_ctx(v->isa);
    if (!ctx) skip();
    const size_t read = Y * part_bytes(v), all = PARTS * part_bytes(v), written = all - read;
    moe_layer *layer = make(ctx, v);
    char *device = moe_memory_alloc(ctx, all), *poison = malloc(written), *called = malloc(written),
         *replayed = malloc(written);
    cudaGraphExec_t exec;
    assert_true(device && poison && called && replayed);
    memset(poison, 0xff, written);
    for (uint32_t round = 0; round < 3; ++round) {
        moe_mat host = test_random(v->dtype, Y * v->tokens, v->width, 10 + round);
        must(ctx, moe_memory_copy(ctx, device, host.data, read));
        must(ctx, moe_memory_copy(ctx, device + read, poison, written));
        free(host.data);
        call(ctx, layer, v, device);
        must(ctx, moe_memory_copy(ctx, called, device + read, written));
        if (round == 0) capture(ctx, layer, v, device, &exec);
        must(ctx, moe_memory_copy(ctx, device + read, poison, written));
        assert_int_equal(cudaGraphLaunch(exec, moe_cuda_stream(ctx)), cudaSuccess);
        must(ctx, moe_memory_copy(ctx, replayed, device + read, written));
        assert_memory_equal(called, replayed, written);
        assert_memory_not_equal(called, poison, part_bytes(v)); /* y */
    }
    cudaGraphExecDestroy(exec);
    free(poison), free(called), free(replayed);
    moe_memory_free(ctx, device, all);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

int main(void) {
    /* Hopper's own kernels take widths that are multiples of 8, and their plan is the one without capacities.
     */
    variant variants[] = {
        {"cuda", MOE_F32,  MOE_TRAIN, 203, 36, 1.1f, NULL,   9,  0.1f},
        {"cuda", MOE_BF16, MOE_TRAIN, 203, 36, 1.1f, NULL,   9,  0.1f},
        {"cuda", MOE_BF16, MOE_TRAIN, 203, 40, 0,    NULL,   12, 0   },
        {"sm90", MOE_BF16, MOE_TRAIN, 203, 40, 0,    NULL,   9,  0.1f},
        {"sm90", MOE_BF16, MOE_TRAIN, 203, 40, 0,    NULL,   12, 0.1f},
        {"sm90", MOE_BF16, MOE_TRAIN, 203, 40, 0,    NULL,   12, 0   },
        {"sm90", MOE_BF16, MOE_INFER, 5,   40, 0,    NULL,   9,  0.1f},
        {"sm90", MOE_BF16, MOE_INFER, 125, 40, 0,    NULL,   9,  0.1f},
        {"sm90", MOE_BF16, MOE_INFER, 5,   40, 0,    "int4", 9,  0.1f},
        {"sm90", MOE_BF16, MOE_INFER, 16,  40, 0,    "nf4",  9,  0.1f},
    };
    enum { VARIANTS = sizeof variants / sizeof *variants };
    struct CMUnitTest tests[VARIANTS];
    if (!cuda_is_here()) return 77;
    for (int i = 0; i < VARIANTS; ++i)
        tests[i] = (struct CMUnitTest)cmocka_unit_test_prestate(replays_are_calls, &variants[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
