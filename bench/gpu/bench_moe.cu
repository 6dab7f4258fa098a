/* bench_moe.cu: times of the CUDA kernels of one MoE layer, forward and backward, beside cuBLAS.
 * Every round runs, in one process and interleaved: an 8192^3 product, cuBLAS batched products of the same
 * sizes with even rows and nothing else (the bound), our forward (router included) and our backward.
 * Run: make bench-gpu, or build/release/gpu/bench_moe [PREFIX OF A NAME [ROUNDS]]. Environment: FREE=8
 * runs dX beside the weight gradients on 8 multiprocessors; ZIPF=1 adds uneven loads; UP=1 and more: below.
 * FLOPs: 6 T n d K forward, 12 backward (the router's are not counted). swiglu, bf16.
 */
#include "gpu_common.cuh"

#include <cublas_v2.h>
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
enum Kernel { ROUTE, PLAN, UP, DOWN, COMBINE, DH, DW2, DX_ROWS, DW1, DX, N_KERNELS };
static const char *const kernel_name[N_KERNELS] = {"route", "plan", "up",     "down", "combine",
                                                   "dH",    "dW2",  "dXrows", "dW1",  "dX"};

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
    int tiles, pitch;
    Buffer<bf16> x, gate, w1, w2, z, h, y_rows, y, dy, wa, dw1, dw2, dx;
    Buffer<float> lse, weight, row_weight, part;
    Buffer<int> expert, bad, offset, row_token, row_of;
    Buffer<uint8_t> count;
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
        : c(cc), rows(c.tokens * c.top_k), tiles((int)((c.tokens + 127) / 128)),
          pitch((c.experts + 3) / 4 * 4), x(c.tokens * c.d), gate(c.experts * c.d),
          w1(c.experts * c.d * 2 * c.n), w2(c.experts * c.n * c.d), z(rows * 2 * c.n), h(rows * c.n),
          y_rows(rows * c.d), y(c.tokens * c.d), dy(c.tokens * c.d), wa(rows * c.n), dw1(w1.n), dw2(w2.n),
          dx(c.tokens * c.d), lse(c.tokens), weight(rows), row_weight(rows),
          part(rows * moei_cuda_dweight_parts(c.n)), expert(rows), bad(1), offset(c.experts + 1),
          row_token(rows), row_of(rows), count((int64_t)tiles * pitch) {
        const float s = 1 / sqrtf((float)c.d);
        CUDA_OK(cudaStreamCreateWithPriority(&main_stream, cudaStreamNonBlocking, -1));
        CUDA_OK(cudaStreamCreateWithPriority(&side_stream, cudaStreamNonBlocking, 0));
        for (cudaEvent_t *event : {&fork, join, join + 1})
            CUDA_OK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
        x.random(1, 1), gate.random(2, s), w1.random(3, s), w2.random(4, 1 / sqrtf((float)c.n)),
            dy.random(5, 1);
    }
    void run(Kernel which, moei_stream stream) {
        const moei_cuda_route_args route = {c.tokens,  c.d,         c.experts,   c.top_k,    x.data,
                                            gate.data, false,       false,       1,          NULL,
                                            lse.data,  expert.data, weight.data, count.data, bad.data};
        const moei_cuda_plan_args plan = {c.tokens,    c.experts,      c.top_k,     expert.data,
                                          weight.data, count.data,     offset.data, row_token.data,
                                          row_of.data, row_weight.data};
        const moei_cuda_gather_sum_args combine = {c.tokens,    c.d,         c.top_k, y_rows.data,
                                                   row_of.data, weight.data, y.data,  false};
        moei_cuda_gather_sum_args combine_dx = combine;
        combine_dx.weight = NULL, combine_dx.out = dx.data;
        moei_cuda_gemm_rows_args r = {};
        r.n_groups = c.experts, r.offset = offset.data, r.max_rows = rows;
        moei_cuda_gemm_outer_args o = {};
        o.n_groups = c.experts, o.offset = offset.data, o.max_rows = rows, o.m = c.d, o.lda = c.d;
        o.a_row = row_token.data, o.free_sms = stream ? free_sms : 0;
        switch (which) {
        case ROUTE:
            CUDA_OK(moei_cuda_route(&route, stream));
            return;
        case PLAN:
            CUDA_OK(moei_cuda_plan(&plan, stream));
            return;
        case COMBINE:
            CUDA_OK(moei_cuda_gather_sum(&combine, stream));
            return;
        case DX:
            CUDA_OK(moei_cuda_gather_sum(&combine_dx, stream));
            return;
        case UP:
            r.n = c.n, r.k = c.d, r.a = x.data, r.lda = c.d, r.a_row = row_token.data, r.b = w1.data;
            r.epilogue = MOE_EPI_ACT, r.act = MOE_ACT_SWIGLU, r.z = z.data, r.ldz = 2 * c.n, r.h = h.data;
            r.ldh = c.n, r.schedule = up_schedule;
            break;
        case DOWN:
            r.n = c.d, r.k = c.n, r.a = h.data, r.lda = c.n, r.b = w2.data, r.c = y_rows.data, r.ldc = c.d;
            r.schedule = down_schedule;
            break;
        case DH:
            r.n = c.n, r.k = c.d, r.a = dy.data, r.lda = c.d, r.a_row = row_token.data, r.b = w2.data,
            r.b_trans = true;
            r.epilogue = MOE_EPI_ACT_GRAD, r.act = MOE_ACT_SWIGLU, r.z = r.dz = z.data, r.ldz = 2 * c.n;
            r.h = wa.data, r.ldh = c.n, r.row_weight = row_weight.data, r.dweight_part = part.data;
            r.schedule = dh_schedule;
            break;
        case DX_ROWS:
            r.n = c.d, r.k = 2 * c.n, r.a = z.data, r.lda = 2 * c.n, r.b = w1.data, r.b_trans = true;
            r.c = y_rows.data, r.ldc = c.d, r.schedule = dx_schedule;
            break;
        case DW2:
            o.n = c.n, o.a = dy.data, o.b = wa.data, o.ldb = c.n, o.c = dw2.data, o.c_trans = true;
            CUDA_OK(moei_cuda_gemm_outer(&o, stream));
            return;
        case DW1:
            o.n = 2 * c.n, o.a = x.data, o.b = z.data, o.ldb = 2 * c.n, o.c = dw1.data;
            CUDA_OK(moei_cuda_gemm_outer(&o, stream));
            return;
        default:
            return;
        }
        CUDA_OK(moei_cuda_gemm_rows(&r, stream));
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
        run(DW1, main_stream);
        run(DX, side_stream);
        run(DW2, main_stream);
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
        return k == UP || k == DX_ROWS || k == DW1 ? 2 * unit : k == DOWN || k == DH || k == DW2 ? unit : 0;
    }
    /* Fewest bytes (performance.md section 1.2). */
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

struct Summary {
    double blas_8192, bound_f, bound_b, fwd, bwd, kernel[N_KERNELS];
};
static double timed(Timer &timer, void (*fn)(void *), void *arg) {
    timer.start();
    fn(arg);
    return timer.stop_ms();
}

static Summary time_layer(Layer &layer, Buffer<bf16> &big, int rounds) {
    Timer timer;
    std::vector<double> t[5 + N_KERNELS];
    auto big_product = [](void *p) {
        bf16 *m = ((Buffer<bf16> *)p)->data;
        product(m, false, m + 8192 * 8192, false, m + 2 * 8192 * 8192, 8192, 8192, 8192, 1);
    };
    layer.forward();
    CUDA_OK(cudaDeviceSynchronize());
    for (int round = -2; round < rounds; ++round) {
        double now[5 + N_KERNELS];
        now[0] = timed(timer, big_product, &big);
        now[1] = timed(
            timer, [](void *l) { ((Layer *)l)->bound_forward(); }, &layer);
        now[2] = timed(
            timer, [](void *l) { ((Layer *)l)->bound_backward(); }, &layer);
        layer.w1.random(3,
                        1 / sqrtf((float)layer.c.d)); /* fresh after the bound's products used the buffers */
        now[3] = timed(
            timer, [](void *l) { ((Layer *)l)->forward(); }, &layer);
        now[4] = timed(
            timer, [](void *l) { ((Layer *)l)->backward(); }, &layer);
        for (int k = layer.routed ? ROUTE : UP; k < N_KERNELS; ++k) {
            layer.y.random(6, 1); /* keeps the device busy until the launch is queued */
            timer.start();
            layer.run((Kernel)k, 0);
            now[5 + k] = timer.stop_ms();
        }
        for (int i = 0; i < 5 + N_KERNELS && round >= 0; ++i) t[i].push_back(now[i]);
    }
    CUDA_OK(cudaDeviceSynchronize());
    Summary s = {median(t[0]), median(t[1]), median(t[2]), median(t[3]), median(t[4]), {0}};
    for (int k = 0; k < N_KERNELS; ++k) s.kernel[k] = median(t[5 + k]);
    return s;
}

static void print_kernels(const Layer &layer, const Summary &s) {
    printf("%-11s", layer.c.name);
    for (int k = 0; k < N_KERNELS; ++k) {
        const double ms = s.kernel[k];
        if (ms == 0) continue;
        if (layer.flops(k) > 0)
            printf(" %s %.3f (%.0f TF)", kernel_name[k], ms, layer.flops(k) / ms * 1e-9);
        else
            printf(" %s %.3f (%.2f TB/s)", kernel_name[k], ms, layer.bytes(k) / ms * 1e-9);
    }
    printf("\n");
}

/* Zipf(1.0) loads: experts drawn without replacement; the rest as in the layer, without the router. */
static void force_zipf(Layer &layer) {
    const Config &c = layer.c;
    std::vector<int> expert((size_t)layer.rows);
    std::vector<uint8_t> count((size_t)(layer.tiles * layer.pitch), 0);
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
            ++count[(size_t)(t / 128 * layer.pitch + e)];
        }
    layer.expert.put(expert);
    layer.count.put(count);
    layer.weight.random(9, 1);
    layer.run(PLAN, 0);
    layer.routed = false;
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
        const Summary s = time_layer(layer, big, rounds);
        print_kernels(layer, s);
        const double f = 6. * (double)layer.rows * (double)(c.n * c.d) * 1e-9;
        char line[240];
        snprintf(line, sizeof line,
                 "%-11s %4.0f | %4.0f %4.0f | %4.0f %4.0f | %4.1f %% %4.1f %% %4.1f %% | %s", c.name,
                 2 * 8192. * 8192 * 8192 / s.blas_8192 * 1e-9, f / s.bound_f, 2 * f / s.bound_b, f / s.fwd,
                 2 * f / s.bwd, 100 * s.bound_f / s.fwd, 100 * s.bound_b / s.bwd,
                 100 * (s.bound_f + s.bound_b) / (s.fwd + s.bwd), c.published);
        table.push_back(line);
        if (getenv("ZIPF")) {
            layer.routed = false;
            const Summary even = time_layer(layer, big, rounds);
            force_zipf(layer);
            const Summary zipf = time_layer(layer, big, rounds);
            print_kernels(layer, zipf);
            snprintf(line, sizeof line, "%-11s Zipf(1.0) against even: forward %+.1f %%, backward %+.1f %%",
                     c.name, 100 * (zipf.fwd / even.fwd - 1), 100 * (zipf.bwd / even.bwd - 1));
            table.push_back(line);
        }
        fflush(stdout);
    }
    printf("\nTFLOP/s    8192 | bound f b | ours f  b | share f, b, both       | published f / b\n");
    for (const std::string &line : table) printf("%s\n", line.c_str());
    return 0;
}
