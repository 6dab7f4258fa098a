/* test_cuda_device.c: the memory, streams and numbers of GPUs: copies of pinned memory are done when they
 * return, calls queue on the caller's stream, contexts beside each other keep to themselves, and a GPU that
 * is not there or not the thread's own is told. Skipped by name where there is no GPU or no CUDA.
 * Source: moekit/cuda.h.
 */
#include "unit/cuda/cuda_fixture.h"

#include <cuda_runtime_api.h>

enum { BYTES = 4096, BLOCK = 256 << 20, TIMES = 20, T = 60, D = 64 };

/* Milliseconds of work ahead of what is queued next. */
static void keep_busy(moe_ctx *ctx, void *block) {
    for (int i = 0; i < TIMES; ++i)
        assert_int_equal(cudaMemsetAsync(block, i, BLOCK, moe_cuda_stream(ctx)), cudaSuccess);
}

static void pinned_copies_are_done(void **state) {
    (void)state;
    moe_ctx *ctx = cuda_ctx(NULL);
    unsigned char *pinned = NULL, *block = moe_memory_alloc(ctx, BLOCK),
                  *device = moe_memory_alloc(ctx, BYTES), plain[BYTES];
    assert_true(block && device);
    assert_int_equal(cudaMallocHost((void **)&pinned, BYTES), cudaSuccess);
    for (int i = 0; i < BYTES; ++i) pinned[i] = (unsigned char)(i * 7 + i / 256);
    keep_busy(ctx, block);
    must(ctx, moe_memory_copy(ctx, device, pinned, BYTES));
    memset(pinned, 0xa5, BYTES); /* the source was read, */
    keep_busy(ctx, block);
    must(ctx, moe_memory_copy(ctx, pinned, device, BYTES)); /* and is written on return */
    memcpy(plain, pinned, BYTES);
    must(ctx, moe_ctx_wait(ctx));
    for (int i = 0; i < BYTES; ++i) assert_int_equal(plain[i], (unsigned char)(i * 7 + i / 256));
    assert_int_equal(cudaFreeHost(pinned), cudaSuccess);
    moe_memory_free(ctx, block, BLOCK), moe_memory_free(ctx, device, BYTES);
    moe_ctx_destroy(ctx);
}

/* And is not told once more by who looks next. */
static void memory_that_does_not_fit_is_told(void **state) {
    (void)state;
    moe_ctx *ctx = cuda_ctx(NULL);
    assert_null(moe_memory_alloc(ctx, (size_t)1 << 42));
    assert_non_null(strstr(moe_ctx_error(ctx), "cannot allocate 4398046511104 bytes; "));
    must(ctx, moe_ctx_wait(ctx));
    moe_ctx_destroy(ctx);
}

/* A layer, its x and its y. */
typedef struct place {
    moe_ctx *ctx;
    moe_layer *layer;
    void *x, *y;
} place;

static moe_mat matrix(void *data) {
    return (moe_mat){data, T, D, D, MOE_F32};
}

static place open_place(int32_t layer_index) {
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .d_model = D,
                                 .num_experts = 8,
                                 .top_k = 2,
                                 .expert_hidden_size = 40,
                                 .layer_index = layer_index,
                                 .init_std = 0.3F};
    place p = {.ctx = cuda_ctx(NULL)};
    must(p.ctx, moe_layer_create(p.ctx, &desc, &p.layer));
    must(p.ctx, moe_layer_reserve(p.layer, T, MOE_INFER));
    p.x = uploaded(p.ctx, test_random(MOE_F32, T, D, 1));
    p.y = uploaded(p.ctx, test_output(MOE_F32, T, D));
    return p;
}

static void close_place(place *p) {
    const size_t bytes = T * D * sizeof(float);
    moe_memory_free(p->ctx, p->x, bytes), moe_memory_free(p->ctx, p->y, bytes);
    moe_layer_destroy(p->layer);
    moe_ctx_destroy(p->ctx);
}

static moe_status forward(const place *p) {
    return moe_layer_forward(p->layer, matrix(p->x), matrix(p->y), NULL, NULL);
}

static void fetch(const place *p, float *y) {
    must(p->ctx, moe_memory_copy(p->ctx, y, p->y, T * D * sizeof *y));
}

static size_t nodes_of(cudaGraph_t graph) {
    size_t nodes = 0;
    assert_int_equal(cudaGraphGetNodes(graph, NULL, &nodes), cudaSuccess);
    return nodes;
}

static void expect_y_on(const place *p, cudaStream_t stream, const float *wanted) {
    static float y[T * D];
    must(p->ctx, moe_memory_copy(p->ctx, p->y, p->x, sizeof y)); /* no y any more */
    must(p->ctx, moe_ctx_wait(p->ctx));
    must(p->ctx, moe_cuda_set_stream(p->ctx, stream));
    must(p->ctx, forward(p));
    fetch(p, y);
    assert_memory_equal(y, wanted, sizeof y);
}

static void calls_queue_on_the_stream_they_are_given(void **state) {
    (void)state;
    place p = open_place(0);
    static float y[T * D];
    void *const own = moe_cuda_stream(p.ctx);
    cudaStream_t stream;
    cudaGraph_t graph;
    must(p.ctx, forward(&p));
    fetch(&p, y);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    expect_y_on(&p, stream, y);
    assert_ptr_equal(moe_cuda_stream(p.ctx), stream);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    must(p.ctx, forward(&p));
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_true(nodes_of(graph) > 0); /* there, and nowhere else */
    expect_y_on(&p, cudaStreamLegacy, y);
    expect_y_on(&p, NULL, y);
    assert_ptr_equal(moe_cuda_stream(p.ctx), own);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    close_place(&p);
}

/* What one meets is not told to the other, whose calls are queued in between. */
static void contexts_keep_to_themselves(void **state) {
    (void)state;
    place a = open_place(3), b = open_place(4);
    static float alone[T * D], beside[T * D];
    const float bad = NAN;
    must(b.ctx, forward(&b));
    fetch(&b, alone);
    must(a.ctx, moe_memory_copy(a.ctx, (float *)a.x + 7 * D, &bad, sizeof bad));
    const moe_status first = forward(&a);
    must(b.ctx, forward(&b));
    const moe_status last = first == MOE_OK ? moe_ctx_wait(a.ctx) : first;
    assert_int_equal(last, MOE_ERR_NUMERIC);
    assert_non_null(strstr(moe_ctx_error(a.ctx), "router of layer 3: token 7 has"));
    must(b.ctx, moe_ctx_wait(b.ctx));
    fetch(&b, beside);
    assert_memory_equal(beside, alone, sizeof alone);
    close_place(&a), close_place(&b);
}

static void a_gpu_that_is_not_there_is_told(void **state) {
    (void)state;
    const moe_ctx_desc desc = {.size = sizeof desc, .device = MOE_CUDA, .device_index = 4096};
    moe_ctx *ctx = NULL;
    moe_error error = {0};
    test_told(moe_ctx_create(&desc, &ctx, &error), error.text, "device_index: 4096 is outside 0 .. ");
    assert_null(ctx);
}

/* The calling thread's GPU is to be the context's. */
static void the_gpu_of_another_is_told(void **state) {
    (void)state;
    int gpus = 0;
    assert_int_equal(cudaGetDeviceCount(&gpus), cudaSuccess);
    if (gpus < 2) {
        fprintf(stderr, "not run here: the GPU of another context, as there is but one\n");
        skip();
    }
    place p = open_place(0);
    assert_int_equal(cudaSetDevice(1), cudaSuccess);
    assert_int_equal(forward(&p), MOE_ERR_STATE);
    assert_non_null(strstr(moe_ctx_error(p.ctx), "current GPU is 1, but the context's is 0"));
    assert_null(moe_memory_alloc(p.ctx, BYTES));
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    must(p.ctx, forward(&p));
    must(p.ctx, moe_ctx_wait(p.ctx));
    close_place(&p);
}

int main(void) {
    if (!cuda_is_here()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pinned_copies_are_done),
        cmocka_unit_test(memory_that_does_not_fit_is_told),
        cmocka_unit_test(calls_queue_on_the_stream_they_are_given),
        cmocka_unit_test(contexts_keep_to_themselves),
        cmocka_unit_test(a_gpu_that_is_not_there_is_told),
        cmocka_unit_test(the_gpu_of_another_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
