/* bench_moe.cu: times of the CUDA kernels of one MoE layer, forward and backward, beside cuBLAS.
 * Every round runs, in one process and interleaved: an 8192^3 product, cuBLAS batched products of the same
 * sizes with even rows and nothing else (the bound), our kernels' forward (router included) and backward, and
 * moe_layer's own.
 * Run: make bench-gpu, or build/release/gpu/bench_moe [PREFIX OF A NAME [ROUNDS]]. Environment: FREE=8
 * runs dX beside the weight gradients on 8 multiprocessors; ZIPF=1 adds uneven loads; UP=1 and more: below.
 * ISA=cuda times the grouped products of any GPU instead of Hopper's (not the layer: MOEKIT_ISA=cuda does).
 * FLOPs: 6 T n d K forward, 12 backward (the router's are not counted). swiglu, bf16.
 */
#include "gpu_common.cuh"

#include <cublas_v2.h>
#include <moekit/cuda.h>
#include <string.h>

struct Config {
    const char *name;
    int64_t tokens, d, n;
    int experts, top_k;
    const char *published; /* SonicMoE, forward / backward TFLOP/s */
};
static const Config configs[] = {
    {"7B n256",    24576, 1536, 256,  128, 8,  "363 / 404"},
    {"7B n512",    24576, 1536, 512,  64,  4,  "434 / 438"},
    {"7B n1024",   24576, 1536, 1024, 32,  2,  "466 / 466"},
    {"30B n256",   32768, 4096, 256,  256, 16, "427 / 459"},
    {"30B n512",   32768, 4096, 512,  128, 8,  "502 / 511"},
    {"30B n1024",  32768, 4096, 1024, 64,  4,  "551 / 553"},
    {"120B n512",  32768, 4096, 512,  256, 16, "517 / 526"},
    {"120B n1024", 32768, 4096, 1024, 128, 8,  "558 / 566"},
    {"120B n2048", 32768, 4096, 2048, 64,  4,  "596 / 586"},
    {"1.4B n256",  40960, 768,  256,  128, 8,  "338 / 366"},
    {"1.4B n512",  40960, 768,  512,  64,  4,  "399 / 400"},
    {"1.4B n1024", 40960, 768,  1024, 32,  2,  "405 / 436"},
};
enum Kernel { ROUTE, PLAN, UP, DOWN, COMBINE, DH, DX_ROWS, DW, DX, DW2, DW1, N_KERNELS };
static const char *const kernel_name[N_KERNELS] = {"route",  "plan", "up", "down", "combine", "dH",
                                                   "dXrows", "dW",   "dX", "dW2",  "dW1"};

/* ISA=cuda */
static const bool portable = getenv("ISA") && strcmp(getenv("ISA"), "cuda") == 0;
static cublasHandle_t blas;
static void blas_ok(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) printf("cuBLAS status %d\n", (int)status), exit(1);
}
/* Row-major C[m,n] = op(A) op(B), `batch` times. */
static void product(const bf16 *a, bool ta, const bf16 *b, bool tb, bf16 *c, int64_t m, int64_t n, int64_t k,
                    int batch) {
    const float one = 1, zero = 0;
    blas_ok(cublasGemmStridedBatchedEx(blas, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                                       (int)n, (int)m, (int)k, &one, b, CUDA_R_16BF, (int)(tb ? k : n), n * k,
                                       a, CUDA_R_16BF, (int)(ta ? m : k), m * k, &zero, c, CUDA_R_16BF,
                                       (int)n, m * n, batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

struct Layer {
    Config c;
    int64_t rows;
    Buffer<bf16> x, gate, w1, w2, z, h, y_rows, y, dy, wa, dw1, dw2, dx;
    Buffer<float> prob, lse, weight, row_weight, part, dweight;
    Buffer<int> expert, row_token, row_slot, row_of;
    Buffer<int64_t> offset, count; /* count: routed, kept, real tokens, capacity */
    Buffer<uint8_t> tile_count;
    Buffer<moei_fault> fault;
    moei_schedule up_schedule = forced("UP"), down_schedule = forced("DOWN"), dh_schedule = forced("DH"),
                  dx_schedule = forced("DX");
    bool routed = true;
    int free_sms = getenv("FREE") ? atoi(getenv("FREE")) : 0;
    cudaStream_t main_stream, side_stream;
    cudaEvent_t fork, join[2];

    /* UP=1 and the like force a schedule. */
    static moei_schedule forced(const char *name) {
        const char *text = getenv(name);
        return text ? (moei_schedule)atoi(text) : MOEI_SCHEDULE_AUTO;
    }

    explicit Layer(const Config &cc)
        : c(cc), rows(c.tokens * c.top_k), x(c.tokens * c.d), gate(c.experts * c.d),
          w1(c.experts * c.d * 2 * c.n), w2(c.experts * c.n * c.d), z(rows * 2 * c.n), h(rows * c.n),
          y_rows(rows * c.d), y(c.tokens * c.d), dy(c.tokens * c.d), wa(rows * c.n), dw1(w1.n), dw2(w2.n),
          dx(c.tokens * c.d), prob(c.tokens * c.experts), lse(c.tokens), weight(rows), row_weight(rows),
          part(rows * moe_dweight_parts(c.n)), dweight(rows), expert(rows), row_token(rows), row_slot(rows),
          row_of(rows), offset(c.experts + 1), count(2 * c.experts + 2),
          tile_count((int64_t)moei_plan_scratch_bytes(c.tokens, rows, c.experts)), fault(1) {
        const float s = 1 / sqrtf((float)c.d);
        CUDA_OK(cudaStreamCreateWithPriority(&main_stream, cudaStreamNonBlocking, -1));
        CUDA_OK(cudaStreamCreateWithPriority(&side_stream, cudaStreamNonBlocking, 0));
        for (cudaEvent_t *event : {&fork, join, join + 1})
            CUDA_OK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
        x.random(1, 1), gate.random(2, s), w1.random(3, s), w2.random(4, 1 / sqrtf((float)c.n)),
            dy.random(5, 1);
    }
    moei_router_args route_args() {
        moei_router_args a = {};
        a.dtype = MOE_BF16, a.n_tokens = c.tokens, a.d = a.ldx = c.d, a.n_experts = c.experts;
        a.top_k = c.top_k, a.scale = 1, a.x = x.data, a.gate = gate.data, a.prob = prob.data;
        a.lse = lse.data, a.expert = expert.data, a.weight = weight.data, a.tile_count = tile_count.data;
        a.fault = fault.data;
        return a;
    }
    moei_plan_args plan_args() {
        moei_plan_args a = {};
        a.n_tokens = c.tokens, a.n_rows = rows, a.n_experts = c.experts, a.top_k = c.top_k;
        a.expert = expert.data, a.weight = weight.data, a.offset = offset.data, a.routed = count.data;
        a.kept = count.data + c.experts, a.n_valid = count.data + 2 * c.experts, a.capacity = a.n_valid + 1;
        a.row_token = row_token.data, a.row_slot = row_slot.data, a.row_of = row_of.data;
        a.row_weight = row_weight.data, a.tile_count = tile_count.data, a.counted = routed;
        return a;
    }
    moe_gather_sum_args sum_args(const float *of_weight, bf16 *out) {
        moe_gather_sum_args a = {};
        a.dtype = MOE_BF16, a.n_tokens = c.tokens, a.n = a.ld_rows = a.ld_out = c.d, a.top_k = c.top_k;
        a.rows = y_rows.data, a.row_of = row_of.data, a.weight = of_weight, a.out = out;
        return a;
    }
    /* The product with [k, n] of every expert, or its transpose. */
    moe_gemm_rows_args rows_args(int64_t n, int64_t k, const bf16 *b, bool trans) {
        moe_gemm_rows_args a = {};
        a.dtype = MOE_BF16, a.n_groups = c.experts, a.offset = offset.data, a.n_rows = rows, a.n = n, a.k = k;
        a.b = b, a.b_trans = trans, a.ldb = trans ? k : n, a.b_group = n * k;
        return a;
    }
    moe_gemm_outer_args outer_args(Kernel which) {
        moe_gemm_outer_args a = {};
        a.dtype = MOE_BF16, a.n_groups = c.experts, a.offset = offset.data, a.n_rows = rows;
        if (which == DW1) {
            a.m = a.lda = c.d, a.n = a.ldb = 2 * c.n, a.a = x.data, a.a_row = row_token.data, a.b = z.data;
            a.c = dw1.data;
        } else {
            a.m = a.lda = c.n, a.n = a.ldb = c.d, a.a = wa.data, a.b = dy.data, a.b_row = row_token.data;
            a.c = dw2.data;
        }
        a.ldc = a.n, a.c_group = a.m * a.n;
        return a;
    }
    void weight_gradient(const moei_team *team, Kernel which) {
        const moe_gemm_outer_args a = outer_args(which);
        if (portable)
            moei_gemm_outer__cuda(team, &a);
        else
            CUDA_OK(moei_cuda_gemm_outer(team, &a));
    }
    void weight_gradients(const moei_team *team) {
        const moe_gemm_outer_args both[] = {outer_args(DW2), outer_args(DW1)};
        const moei_gemm_outers_args args = {both, 2, NULL};
        if (portable)
            weight_gradient(team, DW2), weight_gradient(team, DW1);
        else
            CUDA_OK(moei_cuda_gemm_outers(team, &args));
    }
    void product_of_rows(const moei_team *team, Kernel which) {
        moe_gemm_rows_args r = {};
        moei_schedule schedule = which == UP     ? up_schedule
                                 : which == DOWN ? down_schedule
                                 : which == DH   ? dh_schedule
                                                 : dx_schedule;
        if (which == UP) {
            r = rows_args(2 * c.n, c.d, w1.data, false);
            r.a = x.data, r.lda = c.d, r.a_row = row_token.data;
            r.epilogue = MOE_EPI_ACT, r.act = MOE_ACT_SWIGLU, r.c = z.data, r.ldc = 2 * c.n;
            r.h = h.data, r.ldh = c.n;
        } else if (which == DOWN) {
            r = rows_args(c.d, c.n, w2.data, false);
            r.a = h.data, r.lda = c.n, r.c = y_rows.data, r.ldc = c.d;
        } else if (which == DH) {
            r = rows_args(c.n, c.d, w2.data, true);
            r.a = dy.data, r.lda = c.d, r.a_row = row_token.data;
            r.epilogue = MOE_EPI_ACT_GRAD, r.act = MOE_ACT_SWIGLU, r.z = r.dz = z.data, r.ldz = 2 * c.n;
            r.wa = wa.data, r.ldwa = c.n, r.row_weight = row_weight.data;
            r.dweight = dweight.data, r.dweight_part = part.data;
        } else {
            r = rows_args(c.d, 2 * c.n, w1.data, true);
            r.a = z.data, r.lda = 2 * c.n, r.c = y_rows.data, r.ldc = c.d;
        }
        if (portable)
            moei_gemm_rows__cuda(team, &r);
        else
            CUDA_OK(moei_cuda_gemm_rows(team, &r, schedule));
    }
    void run(Kernel which, cudaStream_t stream) {
        moei_team team = team_of(stream);
        team.spare = stream ? free_sms : 0;
        if (which == ROUTE) {
            const moei_router_args route = route_args();
            CUDA_OK(moei_cuda_route(&team, &route));
        } else if (which == PLAN) {
            const moei_plan_args plan = plan_args();
            moei_plan__cuda(&team, &plan);
        } else if (which == COMBINE || which == DX) {
            const moe_gather_sum_args sum =
                which == DX ? sum_args(NULL, dx.data) : sum_args(weight.data, y.data);
            moei_gather_sum__cuda(&team, &sum);
        } else if (which == DW1 || which == DW2) {
            weight_gradient(&team, which);
        } else if (which == DW) {
            weight_gradients(&team);
        } else {
            product_of_rows(&team, which);
        }
        CUDA_OK(cudaGetLastError());
    }
    void forward() {
        for (int k = routed ? ROUTE : UP; k <= COMBINE; ++k) run((Kernel)k, 0);
    }
    /* dX only moves bytes, so it runs beside the products of the weights' gradients, on SMs they leave free.
     */
    void backward() {
        if (free_sms == 0) {
            for (int k = DH; k <= DX; ++k) run((Kernel)k, 0);
            return;
        }
        run(DH, 0);
        run(DX_ROWS, 0);
        CUDA_OK(cudaEventRecord(fork, 0));
        CUDA_OK(cudaStreamWaitEvent(main_stream, fork, 0));
        CUDA_OK(cudaStreamWaitEvent(side_stream, fork, 0));
        run(DW, main_stream);
        run(DX, side_stream);
        CUDA_OK(cudaEventRecord(join[0], main_stream));
        CUDA_OK(cudaEventRecord(join[1], side_stream));
        CUDA_OK(cudaStreamWaitEvent(0, join[0], 0));
        CUDA_OK(cudaStreamWaitEvent(0, join[1], 0));
    }
    /* The same products by cuBLAS, rows spread evenly and standing in order in y_rows. */
    void bound_forward() {
        const int64_t m = rows / c.experts;
        product(y_rows.data, false, w1.data, false, z.data, m, 2 * c.n, c.d, c.experts);
        product(h.data, false, w2.data, false, y_rows.data, m, c.d, c.n, c.experts);
    }
    void bound_backward() {
        const int64_t m = rows / c.experts;
        product(y_rows.data, false, w2.data, true, wa.data, m, c.n, c.d, c.experts);
        product(h.data, true, y_rows.data, false, dw2.data, c.n, c.d, m, c.experts);
        product(z.data, false, w1.data, true, y_rows.data, m, c.d, 2 * c.n, c.experts);
        product(y_rows.data, true, z.data, false, dw1.data, c.d, 2 * c.n, m, c.experts);
    }
    double flops(int k) const {
        const double unit = 2. * (double)rows * (double)c.n * (double)c.d;
        return k == DW                               ? 3 * unit
               : k == UP || k == DX_ROWS || k == DW1 ? 2 * unit
               : k == DOWN || k == DH || k == DW2    ? unit
                                                     : 0;
    }
    /* Fewest bytes: each operand from memory once, each result to it once; of gathered rows, all of x once.
     */
    double bytes(int k) const {
        const double td = 2. * (double)(c.tokens * c.d), rn = 2. * (double)(rows * c.n),
                     rd = 2. * (double)(rows * c.d);
        const double w = 2. * (double)(c.experts * c.n * c.d);
        switch (k) {
        case ROUTE:
            return td;
        case UP:
            return td + 2 * w + 3 * rn;
        case DOWN:
            return rn + w + rd;
        case COMBINE:
        case DX:
            return rd + td;
        case DH:
            return td + w + 5 * rn;
        case DW2:
            return td + rn + w;
        case DX_ROWS:
            return 2 * rn + 2 * w + rd;
        case DW1:
            return td + 2 * rn + 2 * w;
        default:
            return 0;
        }
    }
};

/* The same layer through the public interface, router and its way back: new gradients, of experts in bf16; or
 * f32 ones that are added to. */
struct PublicLayer {
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    moe_mat x, y, dy, dx;
    const bool adds;
    PublicLayer(const Layer &l, bool adds_)
        : x(view(l.x, l.c)), y(view(l.y, l.c)), dy(view(l.dy, l.c)), dx(view(l.dx, l.c)), adds(adds_) {
        moe_ctx_desc ctx_desc = {};
        moe_layer_desc desc = {};
        ctx_desc.size = sizeof ctx_desc, ctx_desc.device = MOE_CUDA, ctx_desc.seed = 1;
        desc.size = sizeof desc, desc.dtype = MOE_BF16, desc.d_model = (int32_t)l.c.d;
        desc.num_experts = l.c.experts, desc.top_k = l.c.top_k, desc.expert_hidden_size = (int32_t)l.c.n;
        moe_error error = {};
        if (moe_ctx_create(&ctx_desc, &ctx, &error) != MOE_OK) printf("%s\n", error.text), exit(1);
        ok(moe_layer_create(ctx, &desc, &layer));
        if (!adds) ok(moe_layer_set_grad_dtype(layer, MOE_BF16));
        ok(moe_layer_reserve(layer, l.c.tokens, MOE_TRAIN));
    }
    PublicLayer(const PublicLayer &) = delete;
    ~PublicLayer() {
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
    static moe_mat view(const Buffer<bf16> &of, const Config &c) {
        return {of.data, c.tokens, c.d, c.d, MOE_BF16};
    }
    void ok(moe_status status) const {
        if (status != MOE_OK) printf("%s\n", moe_ctx_error(ctx)), exit(1);
    }
    void forward() {
        moe_call call = {};
        call.size = sizeof call, call.mode = MOE_TRAIN, call.overwrite_grad = !adds;
        ok(moe_layer_forward(layer, x, y, &call, NULL));
    }
    void backward() { ok(moe_layer_backward(layer, x, dy, dx)); }
    /* On the context's stream, once the default stream has done what it has. */
    double timed(Timer &timer, void (PublicLayer::*step)()) {
        const cudaStream_t stream = (cudaStream_t)moe_cuda_stream(ctx);
        timer.start();
        CUDA_OK(cudaStreamWaitEvent(stream, timer.begin, 0));
        timer.start(stream);
        (this->*step)();
        return timer.stop_ms(stream);
    }
};

struct Summary {
    double blas_8192, bound_f, bound_b, fwd, bwd, layer_f, layer_b, adds_b, kernel[N_KERNELS];
};
static double timed(Timer &timer, void (*fn)(void *), void *arg) {
    timer.start();
    fn(arg);
    return timer.stop_ms();
}

/* Milliseconds of a CUDA graph that TIMES times writes all of y, so that L2 is full of other data, and then
 * routes and plans, if told so. */
static double graph_ms(Layer &layer, bool routes, int times) {
    const cudaStream_t stream = layer.main_stream;
    cudaGraph_t graph;
    cudaGraphExec_t steps;
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < times; ++i) {
        CUDA_OK(cudaMemsetAsync(layer.y.data, i, (size_t)layer.y.n * sizeof(bf16), stream));
        if (!routes) continue;
        layer.run(ROUTE, stream);
        layer.run(PLAN, stream);
    }
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&steps, graph, 0));
    Timer timer;
    std::vector<double> ms;
    for (int round = -2; round < 9; ++round) {
        timer.start(stream);
        CUDA_OK(cudaGraphLaunch(steps, stream));
        const double now = timer.stop_ms(stream);
        if (round >= 0) ms.push_back(now);
    }
    CUDA_OK(cudaGraphExecDestroy(steps));
    CUDA_OK(cudaGraphDestroy(graph));
    return median(ms);
}

/* Router and plan one behind the other: what they add to such a graph. */
static double route_and_plan_ms(Layer &layer) {
    enum { TIMES = 12 };
    CUDA_OK(cudaDeviceSynchronize());
    return (graph_ms(layer, true, TIMES) - graph_ms(layer, false, TIMES)) / TIMES;
}

static Summary time_layer(Layer &layer, PublicLayer &whole, PublicLayer &adding, Buffer<bf16> &big,
                          int rounds) {
    enum { TOTALS = 8 };
    Timer timer;
    std::vector<double> t[TOTALS + N_KERNELS];
    auto big_product = [](void *p) {
        bf16 *m = ((Buffer<bf16> *)p)->data;
        product(m, false, m + 8192 * 8192, false, m + 2 * 8192 * 8192, 8192, 8192, 8192, 1);
    };
    layer.forward();
    CUDA_OK(cudaDeviceSynchronize());
    for (int round = -2; round < rounds; ++round) {
        double now[TOTALS + N_KERNELS] = {}; /* 0: not timed */
        now[0] = timed(timer, big_product, &big);
        now[1] = timed(
            timer, [](void *l) { ((Layer *)l)->bound_forward(); }, &layer);
        now[2] = timed(
            timer, [](void *l) { ((Layer *)l)->bound_backward(); }, &layer);
        layer.w1.random(3,
                        1 / sqrtf((float)layer.c.d)); /* fresh after the bound's products used the buffers */
        big_product(&big); /* keeps the device busy until the calls are queued, here and below */
        now[3] = timed(
            timer, [](void *l) { ((Layer *)l)->forward(); }, &layer);
        big_product(&big);
        now[4] = timed(
            timer, [](void *l) { ((Layer *)l)->backward(); }, &layer);
        big_product(&big);
        now[5] = whole.timed(timer, &PublicLayer::forward);
        big_product(&big);
        now[6] = whole.timed(timer, &PublicLayer::backward);
        big_product(&big);
        adding.timed(timer, &PublicLayer::forward);
        now[7] = adding.timed(timer, &PublicLayer::backward);
        for (int k = layer.routed ? ROUTE : UP; k < N_KERNELS; ++k) {
            layer.y.random(6, 1);
            timer.start();
            layer.run((Kernel)k, 0);
            now[TOTALS + k] = timer.stop_ms();
        }
        for (int i = 0; i < TOTALS + N_KERNELS && round >= 0; ++i) t[i].push_back(now[i]);
    }
    CUDA_OK(cudaDeviceSynchronize());
    Summary s = {median(t[0]), median(t[1]), median(t[2]), median(t[3]), median(t[4]),
                 median(t[5]), median(t[6]), median(t[7]), {0}};
    for (int k = 0; k < N_KERNELS; ++k) s.kernel[k] = median(t[TOTALS + k]);
    return s;
}

static void print_kernels(const Layer &layer, const Summary &s) {
    printf("%-11s", layer.c.name);
    for (int k = 0; k < N_KERNELS; ++k) {
        const double ms = s.kernel[k];
        if (ms == 0) continue;
        if (layer.flops(k) > 0)
            printf(" %s %.3f (%.0f TF)", kernel_name[k], ms, layer.flops(k) / ms * 1e-9);
        else if (layer.bytes(k) > 0)
            printf(" %s %.3f (%.2f TB/s)", kernel_name[k], ms, layer.bytes(k) / ms * 1e-9);
        else
            printf(" %s %.3f", kernel_name[k], ms);
    }
    printf("\n");
}

/* Zipf(1.0) loads: experts drawn without replacement; the rest as in the layer, without the router. */
static void force_zipf(Layer &layer) {
    const Config &c = layer.c;
    std::vector<int> expert((size_t)layer.rows);
    std::vector<double> sum(1, 0);
    for (int e = 0; e < c.experts; ++e) sum.push_back(sum.back() + 1. / (e + 1));
    uint64_t draw = 0;
    for (int64_t t = 0; t < c.tokens; ++t)
        for (int k = 0; k < c.top_k; ++k) {
            int *row = &expert[(size_t)(t * c.top_k)], e;
            do {
                const double u = mix(draw++ * 0x9E3779B97F4A7C15ull + 5) / 4294967296. * sum.back();
                e = (int)(std::upper_bound(sum.begin(), sum.end(), u) - sum.begin()) - 1;
            } while (std::find(row, row + k, e) != row + k);
            row[k] = e;
        }
    layer.expert.put(expert);
    layer.weight.random(9, 1);
    layer.routed = false;
    layer.run(PLAN, 0);
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : ""; /* prefix of names */
    const int rounds = argc > 2 ? atoi(argv[2]) : 15;
    std::vector<std::string> table;
    blas_ok(cublasCreate(&blas));
    cudaDeviceProp prop;
    CUDA_OK(cudaGetDeviceProperties(&prop, 0));
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
    printf("%s, %d SMs, driver API %d, runtime %d, %d rounds, medians\n", prop.name, prop.multiProcessorCount,
           driver, runtime, rounds);
    Buffer<bf16> big(3ll * 8192 * 8192);
    big.random(77, 1);
    for (const Config &c : configs) {
        if (strncmp(c.name, only, strlen(only)) != 0) continue;
        Layer layer(c);
        PublicLayer whole(layer, false), adding(layer, true);
        const Summary s = time_layer(layer, whole, adding, big, rounds);
        print_kernels(layer, s);
        printf("%-11s router and plan add %.4f ms to a CUDA graph\n", c.name, route_and_plan_ms(layer));
        const double f = 6. * (double)layer.rows * (double)(c.n * c.d) * 1e-9;
        char line[240];
        snprintf(
            line, sizeof line,
            "%-11s %4.0f | %4.0f %4.0f | %4.0f %4.0f | %4.0f %4.0f %4.0f | %4.1f %% %4.1f %% %4.1f %% | %s",
            c.name, 2 * 8192. * 8192 * 8192 / s.blas_8192 * 1e-9, f / s.bound_f, 2 * f / s.bound_b, f / s.fwd,
            2 * f / s.bwd, f / s.layer_f, 2 * f / s.layer_b, 2 * f / s.adds_b, 100 * s.bound_f / s.fwd,
            100 * s.bound_b / s.bwd, 100 * (s.bound_f + s.bound_b) / (s.fwd + s.bwd), c.published);
        table.push_back(line);
        if (getenv("ZIPF")) {
            layer.routed = false;
            const Summary even = time_layer(layer, whole, adding, big, rounds);
            force_zipf(layer);
            const Summary zipf = time_layer(layer, whole, adding, big, rounds);
            print_kernels(layer, zipf);
            snprintf(line, sizeof line, "%-11s Zipf(1.0) against even: forward %+.1f %%, backward %+.1f %%",
                     c.name, 100 * (zipf.fwd / even.fwd - 1), 100 * (zipf.bwd / even.bwd - 1));
            table.push_back(line);
        }
        fflush(stdout);
    }
    printf("\nTFLOP/s    8192 | bound f b | kernels f b | layer f b, b adding in f32 | share of kernels f, "
           "b, both | "
           "published f / b\n");
    for (const std::string &line : table) printf("%s\n", line.c_str());
    return 0;
}
