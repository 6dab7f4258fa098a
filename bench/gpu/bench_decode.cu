/* bench_decode.cu: time of one layer (router, experts, combine) for small batches, bf16, swiglu: by the
 * kernels for few tokens, also with packed weights, by the general ones, and by moe_layer, whose gate is
 * another; beside the time that reading the chosen experts' weights takes at the rate of a plain read
 * measured in the same run, and beside three kernels that wait for each other and only read as many bytes, or
 * as many as packed ones have. Steps have tokens of their own, so that weights come from memory; all steps of
 * a batch size are one CUDA graph. Run: make bench-gpu, or build/release/gpu/bench_decode [BATCH or 0 [FORMAT
 * ...]].
 */
#include "gpu_common.cuh"

#include "kernel/cuda/early.cuh"

#include <functional>
#include <moekit/cuda.h>
#include <moekit/quant.h>
#include <set>

struct Shape {
    const char *name;
    int64_t d, n;
    int experts, top_k;
};
static const Shape shapes[] = {
    {"Qwen3-30B", 2048, 768,   128, 8},
    {"Mixtral",   4096, 14336, 8,   2},
};
enum { STEPS = 24, MAX_BATCH = 128, ROUNDS = 7 };

static __global__ void read_kernel(const uint4 *from, int64_t n, uint32_t *sink) {
    uint32_t sum = 0;
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    moei::let_next_start(); /* where it was launched to start early */
    moei::await_earlier();
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j)
            v[j] = i + j * step < n ? __ldcs(from + i + j * step) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (sum == 0x12345678) *sink = sum;
}

/* Both matrices in few bits. */
struct Packed {
    moe_packed *w1 = NULL, *w2 = NULL;
    Packed(moe_ctx *ctx, const Shape &s, const char *format, const bf16 *up, const bf16 *down) {
        moe_packed_desc desc = {};
        desc.size = sizeof desc, desc.format = format, desc.dtype = MOE_BF16, desc.n_groups = s.experts;
        desc.k = s.d, desc.n = 2 * s.n, desc.n_runs = 2;
        pack(ctx, &desc, up, &w1);
        desc.k = s.n, desc.n = s.d, desc.n_runs = 1;
        pack(ctx, &desc, down, &w2);
    }
    Packed(const Packed &) = delete;
    ~Packed() { moe_packed_destroy(w1), moe_packed_destroy(w2); }
    double bytes() const { return (double)(moe_packed_bytes(w1) + moe_packed_bytes(w2)); }
    static void pack(moe_ctx *ctx, const moe_packed_desc *desc, const bf16 *from, moe_packed **to) {
        if (moe_packed_create(ctx, desc, from, to) != MOE_OK) printf("%s\n", moe_ctx_error(ctx)), exit(1);
    }
};

struct Layer {
    Shape s;
    Buffer<bf16> x, gate, w1, w2, h, y_rows, y;
    Buffer<float> lse, weight, row_weight;
    Buffer<char> scratch;
    Buffer<uint32_t> drawn;
    Buffer<int> expert, row_token, row_slot, row_of;
    Buffer<int64_t> offset, count; /* count: routed, kept, real tokens, capacity */
    Buffer<uint8_t> tile_count;
    Buffer<moei_fault> fault;
    explicit Layer(const Shape &shape)
        : s(shape), x(STEPS * MAX_BATCH * s.d), gate(s.experts * s.d), w1(s.experts * s.d * 2 * s.n),
          w2(s.experts * s.n * s.d), h(MAX_BATCH * s.top_k * s.n), y_rows(MAX_BATCH * s.top_k * s.d),
          y(MAX_BATCH * s.d), lse(MAX_BATCH), weight(MAX_BATCH * s.top_k), row_weight(MAX_BATCH * s.top_k),
          scratch((int64_t)moei_few_scratch_bytes(MOEI_FEW_ROWS, s.d, s.n)), drawn(MOEI_FEW_COUNTERS),
          expert(STEPS * MAX_BATCH * s.top_k), row_token(MAX_BATCH * s.top_k), row_slot(MAX_BATCH * s.top_k),
          row_of(MAX_BATCH * s.top_k), offset(s.experts + 1), count(2 * s.experts + 2),
          tile_count((int64_t)moei_plan_scratch_bytes(MAX_BATCH, MAX_BATCH * s.top_k, s.experts)), fault(1) {
        x.random(1, 1), gate.random(2, 1 / sqrtf((float)s.d)), w1.random(3, 1 / sqrtf((float)s.d));
        w2.random(4, 1 / sqrtf((float)s.n)), drawn.put(std::vector<uint32_t>(MOEI_FEW_COUNTERS, 0));
    }
    moei_router_args route_args(const bf16 *tokens, int *chosen, int64_t batch) {
        moei_router_args a = {};
        a.dtype = MOE_BF16, a.n_tokens = batch, a.d = a.ldx = s.d, a.n_experts = s.experts;
        a.top_k = s.top_k, a.scale = 1, a.x = tokens, a.gate = gate.data, a.lse = lse.data;
        a.expert = chosen, a.weight = weight.data, a.tile_count = tile_count.data, a.fault = fault.data;
        return a;
    }
    moei_plan_args plan_args(const int *chosen, int64_t batch) {
        moei_plan_args a = {};
        a.n_tokens = batch, a.n_rows = batch * s.top_k, a.n_experts = s.experts, a.top_k = s.top_k;
        a.expert = chosen, a.weight = weight.data, a.offset = offset.data, a.routed = count.data;
        a.kept = count.data + s.experts, a.n_valid = count.data + 2 * s.experts, a.capacity = a.n_valid + 1;
        a.row_token = row_token.data, a.row_slot = row_slot.data, a.row_of = row_of.data;
        a.row_weight = row_weight.data, a.tile_count = tile_count.data, a.counted = true;
        return a;
    }
    moe_gemm_rows_args rows_args(int64_t n, int64_t k, const bf16 *b, int64_t batch) {
        moe_gemm_rows_args a = {};
        a.dtype = MOE_BF16, a.n_groups = s.experts, a.offset = offset.data, a.n_rows = batch * s.top_k;
        a.n = n, a.k = k, a.b = b, a.ldb = n, a.b_group = n * k;
        return a;
    }
    /* packed: NULL for weights in bf16. */
    void few_step(int i, int64_t batch, const Packed *packed, cudaStream_t stream) {
        const moei_team team = team_of(stream);
        int *chosen = expert.data + i * MAX_BATCH * s.top_k;
        moei_router_args route = route_args(x.data + i * MAX_BATCH * s.d, chosen, batch);
        route.tile_count = NULL; /* no plan follows */
        moei_few_args decode = {};
        decode.dtype = MOE_BF16, decode.n_tokens = batch, decode.d = decode.ldx = decode.ldy = s.d;
        decode.n = s.n, decode.n_experts = s.experts, decode.top_k = s.top_k, decode.x = route.x;
        decode.w1 = w1.data, decode.w2 = w2.data, decode.act = MOE_ACT_SWIGLU, decode.expert = chosen;
        if (packed) decode.w1_packed = packed->w1, decode.w2_packed = packed->w2;
        decode.weight = weight.data, decode.scratch = scratch.data, decode.drawn = drawn.data;
        decode.y = y.data;
        CUDA_OK(moei_cuda_route_few(&team, &route));
        CUDA_OK(moei_cuda_few(&team, &decode));
    }
    void general_step(int i, int64_t batch, cudaStream_t stream) {
        const moei_team team = team_of(stream);
        const bf16 *tokens = x.data + i * MAX_BATCH * s.d;
        int *chosen = expert.data + i * MAX_BATCH * s.top_k;
        const moei_router_args route = route_args(tokens, chosen, batch);
        const moei_plan_args plan = plan_args(chosen, batch);
        moe_gemm_rows_args r = rows_args(2 * s.n, s.d, w1.data, batch);
        r.a = tokens, r.lda = s.d, r.a_row = row_token.data;
        r.epilogue = MOE_EPI_ACT, r.act = MOE_ACT_SWIGLU, r.h = h.data, r.ldh = s.n;
        CUDA_OK(moei_cuda_route(&team, &route));
        moei_plan__cuda(&team, &plan);
        CUDA_OK(moei_cuda_gemm_rows(&team, &r, MOEI_SCHEDULE_AUTO));
        r = rows_args(s.d, s.n, w2.data, batch);
        r.a = h.data, r.lda = s.n, r.c = y_rows.data, r.ldc = s.d;
        CUDA_OK(moei_cuda_gemm_rows(&team, &r, MOEI_SCHEDULE_AUTO));
        moe_gather_sum_args sum = {};
        sum.dtype = MOE_BF16, sum.n_tokens = batch, sum.n = sum.ld_rows = sum.ld_out = s.d;
        sum.top_k = s.top_k, sum.rows = y_rows.data, sum.row_of = row_of.data, sum.weight = weight.data;
        sum.out = y.data;
        moei_gather_sum__cuda(&team, &sum);
        CUDA_OK(cudaGetLastError());
    }
    /* Router, up and down, each a kernel that reads as much as it would of `bytes` of weights, or nothing. */
    void read_step(int i, double bytes, cudaStream_t stream) {
        const int64_t n = (int64_t)(bytes / 16), up = n * 2 / 3, down = n / 3;
        const auto read = [&](int blocks, const Buffer<bf16> &of, int64_t pieces) {
            const int64_t from = i * pieces % (of.n / 8 - pieces + 1);
            CUDA_OK(moei::launch_early(read_kernel, dim3((unsigned)blocks), 512, 0, stream,
                                       (const uint4 *)of.data + from, pieces, (uint32_t *)lse.data));
        };
        read(8, gate, bytes > 0 ? gate.n / 8 : 0);
        read(264, w1, up);
        read(264, w2, down);
    }
    double experts_met(int64_t batch) const {
        const std::vector<int> chosen = expert.get();
        double experts = 0;
        for (int i = 0; i < STEPS; ++i) {
            const int *first = &chosen[(size_t)(i * MAX_BATCH * s.top_k)];
            experts += (double)std::set<int>(first, first + batch * s.top_k).size();
        }
        return experts / STEPS;
    }
};

/* The same through the public interface, its choice of kernels. */
struct PublicLayer {
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    explicit PublicLayer(const Shape &s) {
        moe_ctx_desc ctx_desc = {};
        moe_layer_desc desc = {};
        moe_error error = {};
        ctx_desc.size = sizeof ctx_desc, ctx_desc.device = MOE_CUDA, ctx_desc.seed = 1;
        desc.size = sizeof desc, desc.dtype = MOE_BF16, desc.d_model = (int32_t)s.d;
        desc.num_experts = s.experts, desc.top_k = s.top_k, desc.expert_hidden_size = (int32_t)s.n;
        if (moe_ctx_create(&ctx_desc, &ctx, &error) != MOE_OK) printf("%s\n", error.text), exit(1);
        ok(moe_layer_create(ctx, &desc, &layer));
        ok(moe_layer_reserve(layer, MAX_BATCH, MOE_INFER));
    }
    PublicLayer(const PublicLayer &) = delete;
    ~PublicLayer() {
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
    void ok(moe_status status) const {
        if (status != MOE_OK) printf("%s\n", moe_ctx_error(ctx)), exit(1);
    }
    void step(const Layer &of, int i, int64_t batch, cudaStream_t stream) {
        const moe_mat x = {of.x.data + i * MAX_BATCH * of.s.d, batch, of.s.d, of.s.d, MOE_BF16};
        const moe_mat y = {of.y.data, batch, of.s.d, of.s.d, MOE_BF16};
        ok(moe_cuda_set_stream(ctx, stream));
        ok(moe_layer_forward(layer, x, y, NULL, NULL));
    }
};

/* us of a step: its number, the stream. */
static double time_steps(const std::function<void(int, cudaStream_t)> &step) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t steps;
    CUDA_OK(cudaStreamCreate(&stream));
    step(0, stream);
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < STEPS; ++i) step(i, stream);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&steps, graph, 0));
    Timer timer;
    std::vector<double> us;
    for (int round = -1; round < ROUNDS; ++round) {
        timer.start(stream);
        CUDA_OK(cudaGraphLaunch(steps, stream));
        const double ms = timer.stop_ms(stream);
        if (round >= 0) us.push_back(1000. * ms / STEPS);
    }
    CUDA_OK(cudaGraphExecDestroy(steps));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaStreamDestroy(stream));
    return median(us);
}

static double read_rate(const Buffer<bf16> &from) {
    Buffer<uint32_t> sink(1);
    Timer timer;
    std::vector<double> ms;
    for (int round = 0; round < ROUNDS; ++round) {
        timer.start();
        read_kernel<<<132 * 8, 512>>>((const uint4 *)from.data, from.n / 8, sink.data);
        ms.push_back(timer.stop_ms());
    }
    return 2. * (double)from.n / median(ms) * 1e-9; /* TB/s */
}

static void print_way(int64_t batch, const char *way, double us, double bytes, double rate) {
    printf("  batch %3d %-9s %8.1f us, %7.1f MB of weights, %.2f TB/s, %4.1f %% of plain read\n", (int)batch,
           way, us, bytes * 1e-6, bytes / us * 1e-6, 100 * bytes / us * 1e-6 / rate);
}

static double time_read(Layer &layer, double bytes) {
    return time_steps([&](int i, cudaStream_t stream) { layer.read_step(i, bytes, stream); });
}

static void time_batch(Layer &layer, PublicLayer &whole, int64_t batch, double rate) {
    const double general =
        time_steps([&](int i, cudaStream_t stream) { layer.general_step(i, batch, stream); });
    const double bytes = layer.experts_met(batch) * 6. * (double)(layer.s.n * layer.s.d);
    if (batch <= MOEI_FEW_TOKENS)
        print_way(batch, "few",
                  time_steps([&](int i, cudaStream_t stream) { layer.few_step(i, batch, NULL, stream); }),
                  bytes, rate);
    print_way(batch, "general", general, bytes, rate);
    print_way(batch, "read", time_read(layer, bytes), bytes, rate);
    printf("  batch %3d %-9s %8.1f us\n", (int)batch, "moe_layer",
           time_steps([&](int i, cudaStream_t stream) { whole.step(layer, i, batch, stream); }));
    whole.ok(moe_cuda_set_stream(whole.ctx, NULL)); /* that one is gone */
}

static void time_packed(Layer &layer, PublicLayer &whole, const char *format, int64_t only, double rate) {
    const Packed packed(whole.ctx, layer.s, format, layer.w1.data, layer.w2.data);
    for (int64_t batch = 1; batch <= MOEI_FEW_PACKED_TOKENS; batch *= 2) {
        if (only && batch != only) continue;
        const double us =
            time_steps([&](int i, cudaStream_t stream) { layer.few_step(i, batch, &packed, stream); });
        const double bytes = layer.experts_met(batch) * packed.bytes() / layer.s.experts;
        print_way(batch, format, us, bytes, rate);
        print_way(batch, "  read", time_read(layer, bytes), bytes, rate);
    }
}

int main(int argc, char **argv) {
    const int64_t only = argc > 1 ? atoi(argv[1]) : 0; /* batch */
    cudaDeviceProp prop;
    CUDA_OK(cudaGetDeviceProperties(&prop, 0));
    printf("%s, medians of %d replays of %d steps\n", prop.name, (int)ROUNDS, (int)STEPS);
    for (const Shape &shape : shapes) {
        Layer layer(shape);
        PublicLayer whole(shape);
        const double rate = read_rate(layer.w1);
        printf("%s: d %d, n %d, E %d, K %d; plain read %.2f TB/s; three kernels that read nothing %.1f us\n",
               shape.name, (int)shape.d, (int)shape.n, shape.experts, shape.top_k, rate, time_read(layer, 0));
        for (int64_t batch = 1; batch <= MAX_BATCH; batch *= 2)
            if (!only || batch == only) time_batch(layer, whole, batch, rate);
        for (int i = 2; i < argc; ++i) time_packed(layer, whole, argv[i], only, rate);
    }
    return 0;
}
