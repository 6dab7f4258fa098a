/* check_moe.cu: every CUDA kernel of the layer against plain CUDA-core loops in f32 and host sums in f64.
 * Fresh random data (seed printed), poisoned outputs with guards, odd shapes, empty experts, uneven loads.
 * Run: make bench-gpu, or build/release/gpu/check_moe [SEED [CASES]]; few cases for compute-sanitizer.
 * ISA=cuda checks the grouped products of any GPU instead of Hopper's, and odd widths too.
 */
#include "gpu_common.cuh"

#include <numeric>
#include <string.h>
#include <time.h>

static int n_failed, n_checked;
static uint64_t seed;
static moei_team team;
static bool portable; /* ISA=cuda */

static void verdict(const char *what, double error, double limit, bool guards) {
    ++n_checked;
    const bool good = error <= limit && guards; /* NaN fails */
    if (!good) ++n_failed;
    if (!good || getenv("VERBOSE"))
        printf("%s %-64s error %.2e limit %.0e%s\n", good ? "ok  " : "FAIL", what, error, limit,
               guards ? "" : " GUARD OVERWRITTEN");
}
/* ||got - want|| / ||want||; NaN anywhere is NaN. */
template <class T> static double distance(const std::vector<T> &got, const std::vector<double> &want) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        const double d = (double)(float)got[i] - want[i];
        diff += d * d, norm += want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static void gemm_rows(const moe_gemm_rows_args &args, moei_schedule schedule) {
    if (portable)
        moei_gemm_rows__cuda(&team, &args);
    else
        CUDA_OK(moei_cuda_gemm_rows(&team, &args, schedule));
    CUDA_OK(cudaDeviceSynchronize());
}
static void gemm_outer(const moe_gemm_outer_args &args) {
    if (portable)
        moei_gemm_outer__cuda(&team, &args);
    else
        CUDA_OK(moei_cuda_gemm_outer(&team, &args));
    CUDA_OK(cudaDeviceSynchronize());
}

static __global__ void product_ref(const bf16 *a, int64_t lda, const int *a_row, const bf16 *b, bool trans,
                                   const bf16 *bias, const int64_t *offset, int groups, int64_t n, int64_t k,
                                   float *out) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, r = i / n, j = i % n;
    if (r >= offset[groups]) return;
    int g = 0;
    while (r >= offset[g + 1]) ++g;
    const bf16 *row = a + (a_row ? a_row[r] : r) * lda, *w = b + g * n * k;
    float sum = 0;
    for (int64_t x = 0; x < k; ++x)
        sum += __bfloat162float(row[x]) * __bfloat162float(trans ? w[j * k + x] : w[x * n + j]);
    out[i] = sum + (bias ? __bfloat162float(bias[g * n + j]) : 0.f);
}
static __global__ void outer_ref(const bf16 *a, int64_t lda, const int *a_row, const bf16 *b, int64_t ldb,
                                 const int64_t *offset, int64_t m, int64_t n, float *out) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    const int g = blockIdx.y;
    if (i >= m * n) return;
    float sum = 0;
    for (int64_t r = offset[g]; r < offset[g + 1]; ++r)
        sum +=
            __bfloat162float(a[(a_row ? a_row[r] : r) * lda + i / n]) * __bfloat162float(b[r * ldb + i % n]);
    out[g * m * n + i] = sum;
}

struct Case {
    int groups, rows, tokens, d, n;
    int load; /* 0 even, 1 random with empties, 2 Zipf, 3 all in one */
};
static std::vector<int64_t> offsets_of(const Case &c) {
    std::vector<double> share((size_t)c.groups);
    for (int g = 0; g < c.groups; ++g)
        share[(size_t)g] = c.load == 0 ? 1
                           : c.load == 1
                               ? (mix(seed + (uint64_t)g * 31) % 3 ? mix(seed ^ (uint64_t)g) % 1000 : 0)
                           : c.load == 2 ? 1.0 / (g + 1)
                                         : (g == c.groups / 2);
    double total = std::accumulate(share.begin(), share.end(), 1e-9), run = 0;
    std::vector<int64_t> offset(1, 0);
    for (int g = 0; g < c.groups; ++g) {
        run += share[(size_t)g];
        offset.push_back((int64_t)(run / total * c.rows));
    }
    offset.back() = c.rows;
    return offset;
}

struct Problem {
    Case c;
    Buffer<int64_t> offset;
    Buffer<int> row;
    Buffer<bf16> x, h, w1, w2, bias; /* bias: of any product */
    Buffer<float> row_weight;
    explicit Problem(const Case &cc)
        : c(cc), offset(c.groups + 1), row(c.rows), x((int64_t)c.tokens * c.d), h((int64_t)c.rows * c.n),
          w1((int64_t)c.groups * c.d * 2 * c.n), w2((int64_t)c.groups * c.n * c.d),
          bias((int64_t)c.groups * std::max(c.d, 2 * c.n)), row_weight(c.rows) {
        std::vector<int> index((size_t)c.rows);
        for (int r = 0; r < c.rows; ++r)
            index[(size_t)r] = (int)(mix(seed * 7 + (uint64_t)r) % (uint32_t)c.tokens);
        offset.put(offsets_of(c));
        row.put(index);
        const float s = 1 / sqrtf((float)c.d);
        x.random(seed + 1, 1), h.random(seed + 2, 1), w1.random(seed + 3, s), w2.random(seed + 4, s);
        row_weight.random(seed + 5, 1), bias.random(seed + 6, 1);
    }
    std::vector<float> product(const moe_gemm_rows_args &args) {
        Buffer<float> out(c.rows * args.n);
        product_ref<<<(unsigned)((c.rows * args.n + 255) / 256), 256>>>(
            (const bf16 *)args.a, args.lda, args.a_row, (const bf16 *)args.b, args.b_trans,
            (const bf16 *)args.bias, offset.data, c.groups, args.n, args.k, out.data);
        CUDA_OK(cudaDeviceSynchronize());
        return out.get();
    }
    std::string name(const char *what) const {
        char text[160];
        snprintf(text, sizeof text, "%s E %d R %d d %d n %d load %d", what, c.groups, c.rows, c.d, c.n,
                 c.load);
        return text;
    }
};

/* The product of group g, [k, n] or transposed, and what all calls have in common. */
static moe_gemm_rows_args rows_args(const Problem &p, int64_t n, int64_t k, const bf16 *b, bool trans) {
    moe_gemm_rows_args args = {};
    args.dtype = MOE_BF16, args.n_groups = p.c.groups, args.offset = p.offset.data, args.n_rows = p.c.rows;
    args.n = n, args.k = k, args.b = b, args.b_trans = trans, args.ldb = trans ? k : n;
    args.b_group = n * k;
    return args;
}

static void check_store(Problem &p, bool gather, bool trans, moei_schedule schedule, bool accumulate,
                        bool biased) {
    /* Gathered x[d] -> 2n or n; contiguous h[n] -> d. */
    const int64_t k = gather ? p.c.d : p.c.n, n = gather ? (trans ? p.c.n : 2 * p.c.n) : p.c.d;
    const bf16 *b = gather == trans ? p.w2.data : p.w1.data;
    if (!gather && trans) b = p.w1.data; /* any dense [E, d, n] will do */
    if (!gather && !trans) b = p.w2.data;
    const bf16 *a = gather ? p.x.data : p.h.data;
    Buffer<bf16> c(p.c.rows * n);
    std::vector<bf16> before;
    if (accumulate) c.random(seed + 9, 1), before = c.get();
    moe_gemm_rows_args args = rows_args(p, n, k, b, trans);
    args.a = a, args.lda = k, args.a_row = gather ? p.row.data : NULL;
    args.c = c.data, args.ldc = n, args.accumulate = accumulate, args.bias = biased ? p.bias.data : NULL;
    gemm_rows(args, schedule);
    std::vector<float> ref = p.product(args);
    std::vector<double> want(ref.begin(), ref.end());
    for (size_t i = 0; i < before.size(); ++i) want[i] += (double)(float)before[i];
    char what[80];
    snprintf(what, sizeof what, "store gather %d trans %d schedule %d add %d bias %d", gather, trans,
             schedule, accumulate, biased);
    verdict(p.name(what).c_str(), distance(c.get(), want), 4e-3, c.guard_intact());
}

/* f32 out of bf16, as logits are: contiguous rows, B transposed; without offsets the rows are one group's. */
static void check_store_wide(Problem &p, bool one_group, bool accumulate) {
    const int64_t k = p.c.n, n = p.c.d;
    Buffer<float> c(p.c.rows * n);
    Buffer<int64_t> whole(2);
    std::vector<float> before;
    if (accumulate) c.random(seed + 9, 1), before = c.get();
    moe_gemm_rows_args args = rows_args(p, n, k, p.w1.data, true);
    args.a = p.h.data, args.lda = k, args.c = c.data, args.ldc = n, args.accumulate = accumulate;
    args.c_wide = true;
    if (one_group) args.offset = NULL, args.n_groups = 1;
    gemm_rows(args, MOEI_SCHEDULE_AUTO);
    Buffer<float> ref(p.c.rows * n);
    whole.put({0, p.c.rows});
    product_ref<<<(unsigned)((p.c.rows * n + 255) / 256), 256>>>(p.h.data, k, NULL, p.w1.data, true, NULL,
                                                                 one_group ? whole.data : p.offset.data,
                                                                 args.n_groups, n, k, ref.data);
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> plain = ref.get();
    std::vector<double> want(plain.begin(), plain.end());
    for (size_t i = 0; i < before.size(); ++i) want[i] += (double)before[i];
    char what[80];
    snprintf(what, sizeof what, "store wide one group %d add %d", one_group, accumulate);
    verdict(p.name(what).c_str(), distance(c.get(), want), 1e-5, c.guard_intact());
}

/* An activation and its numbers. */
struct Act {
    moe_act act;
    moe_act_numbers numbers;
};
static const Act swiglu = {MOE_ACT_SWIGLU, {}}, gelu = {MOE_ACT_GELU, {}}, relu2 = {MOE_ACT_RELU2, {}};
static const Act clamped = {
    MOE_ACT_SWIGLU, {1.702, 1.5, 1}
};

static void check_act(Problem &p, const Act &act, moei_schedule schedule, bool keep, bool gather,
                      bool biased) {
    const moei_act_rule rule = moei_act_rule_for(act.act, act.numbers);
    const bool gated = rule.gated;
    const int64_t n = p.c.n, width = gated ? 2 * n : n;
    Buffer<bf16> z(p.c.rows * width), h(p.c.rows * n);
    const int *row = gather ? p.row.data : NULL;
    if (!gather && p.c.tokens < p.c.rows) return;
    moe_gemm_rows_args args = rows_args(p, width, p.c.d, p.w1.data, false);
    args.a = p.x.data, args.lda = p.c.d, args.a_row = row;
    args.epilogue = MOE_EPI_ACT, args.act = act.act, args.act_numbers = act.numbers;
    args.c = keep ? z.data : NULL, args.ldc = width, args.h = h.data, args.ldh = n;
    args.bias = biased ? p.bias.data : NULL;
    gemm_rows(args, schedule);
    std::vector<float> ref = p.product(args);
    std::vector<double> want_h((size_t)(p.c.rows * n));
    for (int64_t r = 0; r < p.c.rows; ++r)
        for (int64_t j = 0; j < n; ++j)
            want_h[(size_t)(r * n + j)] = moei_act_at(&rule, (double)ref[(size_t)(r * width + j)],
                                                      gated ? (double)ref[(size_t)(r * width + n + j)] : 0)
                                              .value;
    char what[80];
    snprintf(what, sizeof what, "act %d limit %g schedule %d keep %d gather %d bias %d", act.act,
             act.numbers.limit, schedule, keep, gather, biased);
    verdict(p.name(what).c_str(), distance(h.get(), want_h), 5e-3, h.guard_intact());
    if (keep)
        verdict(p.name("  its z").c_str(), distance(z.get(), std::vector<double>(ref.begin(), ref.end())),
                4e-3, z.guard_intact());
}

static void check_act_grad(Problem &p, const Act &act, moei_schedule schedule, bool in_place, bool gather) {
    const moei_act_rule rule = moei_act_rule_for(act.act, act.numbers);
    const bool gated = rule.gated;
    const int64_t n = p.c.n, width = gated ? 2 * n : n;
    const int *row = gather ? p.row.data : NULL;
    if (!gather && p.c.tokens < p.c.rows) return;
    Buffer<bf16> z(p.c.rows * width), dz(p.c.rows * width), wa(p.c.rows * n);
    Buffer<float> part(p.c.rows * moe_dweight_parts(n)), dweight(p.c.rows);
    z.random(seed + 11, 1);
    const std::vector<bf16> z_old = z.get();
    moe_gemm_rows_args args = rows_args(p, n, p.c.d, p.w2.data, true);
    args.a = p.x.data, args.lda = p.c.d, args.a_row = row;
    args.epilogue = MOE_EPI_ACT_GRAD, args.act = act.act, args.act_numbers = act.numbers;
    args.z = z.data, args.dz = in_place ? z.data : dz.data, args.ldz = width, args.wa = wa.data,
    args.ldwa = n;
    args.row_weight = p.row_weight.data, args.dweight = dweight.data, args.dweight_part = part.data;
    gemm_rows(args, schedule);
    std::vector<float> da = p.product(args);
    std::vector<float> w = p.row_weight.get();
    std::vector<double> want_z(z_old.size()), want_a(da.size()), want_w((size_t)p.c.rows);
    for (int64_t r = 0; r < p.c.rows; ++r) {
        for (int64_t j = 0; j < n; ++j) {
            const size_t at = (size_t)(r * width + j), i = (size_t)(r * n + j);
            const moei_act_point a = moei_act_at(&rule, (double)(float)z_old[at],
                                                 gated ? (double)(float)z_old[at + (size_t)n] : 0);
            want_z[at] = w[(size_t)r] * da[i] * a.d_gate;
            if (gated) want_z[at + (size_t)n] = w[(size_t)r] * da[i] * a.d_up;
            want_a[i] = w[(size_t)r] * a.value;
            want_w[(size_t)r] += da[i] * a.value;
        }
    }
    Buffer<bf16> &out = in_place ? z : dz;
    char what[80];
    snprintf(what, sizeof what, "act_grad %d limit %g schedule %d in place %d gather %d", act.act,
             act.numbers.limit, schedule, in_place, gather);
    verdict(p.name(what).c_str(), distance(out.get(), want_z), 5e-3, out.guard_intact());
    verdict(p.name("  its weighted A").c_str(), distance(wa.get(), want_a), 5e-3, wa.guard_intact());
    verdict(p.name("  its dweight").c_str(), distance(dweight.get(), want_w), 3e-3,
            part.guard_intact() && dweight.guard_intact());
}

/* Gathered: the rows of x, or turned, of what is on the other side. T: C's numbers. */
template <class T> static void check_outer(Problem &p, bool trans, bool gather, bool accumulate) {
    const int64_t m = p.c.d, n = p.c.n;
    const int *row = gather ? p.row.data : NULL;
    if (!gather && (trans || p.c.tokens < p.c.rows)) return;
    Buffer<T> c(p.c.groups * m * n);
    std::vector<T> before;
    if (accumulate) c.random(seed + 9, 1), before = c.get();
    moe_gemm_outer_args args = {};
    args.dtype = MOE_BF16, args.n_groups = p.c.groups, args.offset = p.offset.data, args.n_rows = p.c.rows;
    args.m = trans ? n : m, args.n = trans ? m : n;
    args.a = trans ? p.h.data : p.x.data, args.lda = args.m, args.a_row = trans ? NULL : row;
    args.b = trans ? p.x.data : p.h.data, args.ldb = args.n, args.b_row = trans ? row : NULL;
    args.c = c.data, args.ldc = args.n, args.c_group = m * n;
    args.accumulate = accumulate, args.c_wide = sizeof(T) == sizeof(float);
    gemm_outer(args);
    Buffer<float> ref(p.c.groups * m * n);
    outer_ref<<<dim3((unsigned)((m * n + 255) / 256), (unsigned)p.c.groups), 256>>>(
        p.x.data, m, row, p.h.data, n, p.offset.data, m, n, ref.data);
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> plain = ref.get();
    std::vector<double> want(plain.size());
    for (int64_t g = 0; g < p.c.groups; ++g)
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) {
                const size_t to = (size_t)(g * m * n + (trans ? j * m + i : i * n + j));
                want[to] = (double)plain[(size_t)(g * m * n + i * n + j)] +
                           (accumulate ? (double)(float)before[to] : 0);
            }
    char what[80];
    snprintf(what, sizeof what, "outer trans %d gather %d add %d bytes %d", trans, gather, accumulate,
             (int)sizeof(T));
    verdict(p.name(what).c_str(), distance(c.get(), want), args.c_wide ? 1e-5 : 4e-3, c.guard_intact());
}

/* Products in one launch, and one over other groups: the bits of each by itself. */
template <class T> static void check_outers(Problem &p, bool accumulate, bool with_aside) {
    const int64_t d = p.c.d, n = p.c.n, tokens = p.c.tokens;
    if (portable || p.c.tokens < 2) return; /* other GPUs have no such launch */
    Buffer<T> c[3][2];
    Buffer<int64_t> thirds(3);
    thirds.put({0, tokens / 3, tokens});
    moe_gemm_outer_args product[3] = {};
    for (moe_gemm_outer_args &a : product) {
        a.dtype = MOE_BF16, a.n_groups = p.c.groups, a.offset = p.offset.data, a.n_rows = p.c.rows;
        a.m = a.lda = n, a.n = a.ldb = a.ldc = d, a.a = p.h.data, a.b = p.x.data, a.b_row = p.row.data;
        a.c_group = n * d, a.accumulate = accumulate, a.c_wide = sizeof(T) == sizeof(float);
    }
    product[1].m = product[1].lda = d, product[1].n = product[1].ldb = product[1].ldc = n;
    product[1].a = p.x.data, product[1].a_row = p.row.data, product[1].b = p.h.data, product[1].b_row = NULL;
    product[2].n_groups = 2, product[2].offset = thirds.data, product[2].n_rows = tokens;
    product[2].m = product[2].lda = d, product[2].a = p.x.data, product[2].b_row = NULL;
    product[2].c_group = d * d;
    for (int alone = 0; alone < 2; ++alone) {
        for (int i = 0; i < 3; ++i) {
            c[i][alone] = Buffer<T>(i == 2 ? 2 * d * d : p.c.groups * d * n);
            if (accumulate) c[i][alone].random(seed + 9, 1);
            product[i].c = c[i][alone].data;
            if (alone && (i < 2 || with_aside)) CUDA_OK(moei_cuda_gemm_outer(&team, &product[i]));
        }
        const moei_gemm_outers_args args = {product, 2, with_aside ? &product[2] : NULL};
        if (!alone) CUDA_OK(moei_cuda_gemm_outers(&team, &args));
    }
    CUDA_OK(cudaDeviceSynchronize());
    int different = 0;
    for (auto &of : c)
        different += memcmp(of[0].get().data(), of[1].get().data(), (size_t)of[0].n * sizeof(T)) != 0;
    char what[80];
    snprintf(what, sizeof what, "outers add %d aside %d bytes %d: those that differ", accumulate, with_aside,
             (int)sizeof(T));
    verdict(p.name(what).c_str(), (double)different, 0,
            c[0][0].guard_intact() && c[1][0].guard_intact() && c[2][0].guard_intact());
}

static void check_gather_sum(int64_t tokens, int top_k, int64_t n, bool weighted, bool accumulate) {
    const int64_t rows = tokens * top_k;
    Buffer<bf16> in(rows * n), out(tokens * n);
    Buffer<float> weight(rows);
    Buffer<int> row_of(rows);
    in.random(seed, 1), weight.random(seed + 1, 1);
    std::vector<int> index((size_t)rows);
    for (int64_t i = 0; i < rows; ++i)
        index[(size_t)i] =
            mix(seed + (uint64_t)i) % 17 == 0 ? -1 : (int)(mix(seed * 3 + (uint64_t)i) % (uint32_t)rows);
    row_of.put(index);
    std::vector<bf16> before;
    if (accumulate) out.random(seed + 9, 1), before = out.get();
    const moe_gather_sum_args args = {MOE_BF16, tokens, n,           top_k,
                                      in.data,  n,      row_of.data, weighted ? weight.data : NULL,
                                      out.data, n,      accumulate};
    moei_gather_sum__cuda(&team, &args);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<bf16> v = in.get();
    const std::vector<float> w = weight.get();
    std::vector<double> want((size_t)(tokens * n));
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < n; ++j) {
            double sum = accumulate ? (double)(float)before[(size_t)(t * n + j)] : 0;
            for (int k = 0; k < top_k; ++k) {
                const size_t i = (size_t)(t * top_k + k);
                if (index[i] >= 0)
                    sum += (weighted ? w[i] : 1) * (double)(float)v[(size_t)(index[i] * n + j)];
            }
            want[(size_t)(t * n + j)] = sum;
        }
    char what[80];
    snprintf(what, sizeof what, "gather_sum T %d K %d n %d weighted %d add %d", (int)tokens, top_k, (int)n,
             weighted, accumulate);
    verdict(what, distance(out.get(), want), 4e-3, out.guard_intact());
}

/* Selection must equal a stable sort of the kernel's own logits; the plan a counting sort of the selection.
 * Of odd numbers of tokens every seventh is masked. */
static void check_route(int64_t tokens, int experts, int top_k, int64_t d, bool before, bool norm, bool ties,
                        bool few) {
    Buffer<bf16> x(tokens * d), gate(experts * d);
    const int64_t slots = tokens * top_k;
    Buffer<float> logits(tokens * experts), prob(tokens * experts), lse(tokens), weight(slots),
        row_weight(slots);
    Buffer<int> expert(slots), token(slots), row_of(slots), row_slot(slots);
    Buffer<int64_t> offset(experts + 1), count(2 * experts + 2);
    Buffer<uint8_t> tile_count((int64_t)moei_plan_scratch_bytes(tokens, slots, experts));
    Buffer<moei_fault> fault(1);
    Buffer<uint8_t> mask(tokens);
    std::vector<uint8_t> real((size_t)tokens, 1);
    for (size_t t = 3; t < real.size() && tokens % 2; t += 7) real[t] = 0;
    mask.put(real);
    x.random(seed, 1), gate.random(seed + 1, 1 / sqrtf((float)d));
    if (ties) { /* half of the experts twice */
        std::vector<bf16> g = gate.get();
        for (int e = 0; e + 1 < experts; e += 2) std::copy_n(g.begin() + e * d, d, g.begin() + (e + 1) * d);
        gate.put(g);
    }
    fault.put({{UINT64_MAX}});
    moei_router_args route = {};
    route.dtype = MOE_BF16, route.n_tokens = tokens, route.n_experts = experts, route.top_k = top_k;
    route.d = route.ldx = d, route.x = x.data, route.gate = gate.data;
    route.score_before_topk = before, route.norm_topk_prob = norm, route.scale = 1.5;
    route.logits = logits.data, route.prob = prob.data, route.lse = lse.data;
    route.expert = expert.data, route.weight = weight.data, route.tile_count = tile_count.data;
    route.fault = fault.data, route.mask = mask.data;
    moei_plan_args plan = {};
    plan.n_tokens = tokens, plan.n_rows = slots, plan.n_experts = experts, plan.top_k = top_k;
    plan.expert = expert.data, plan.weight = weight.data, plan.offset = offset.data;
    plan.routed = count.data, plan.kept = count.data + experts, plan.n_valid = count.data + 2 * experts;
    plan.capacity = plan.n_valid + 1, plan.row_token = token.data, plan.row_slot = row_slot.data;
    plan.row_of = row_of.data, plan.row_weight = row_weight.data, plan.tile_count = tile_count.data;
    plan.mask = mask.data;
    plan.counted = !few || tokens % 2; /* else it counts itself */
    CUDA_OK(few ? moei_cuda_route_few(&team, &route) : moei_cuda_route(&team, &route));
    moei_plan__cuda(&team, &plan);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaDeviceSynchronize());
    Buffer<int64_t> one(2);
    one.put({0, tokens});
    Buffer<float> ref(tokens * experts);
    product_ref<<<(unsigned)((tokens * experts + 255) / 256), 256>>>(x.data, d, NULL, gate.data, true, NULL,
                                                                     one.data, 1, experts, d, ref.data);
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> l = logits.get(), r = ref.get(), w = weight.get(), s = lse.get(),
                             rw = row_weight.get();
    const std::vector<float> p = prob.get();
    const std::vector<int> e = expert.get(), rt = token.get(), ro = row_of.get(), rs = row_slot.get();
    const std::vector<int64_t> o = offset.get(), counts = count.get();
    char what[100];
    snprintf(what, sizeof what, "route T %d E %d K %d d %d before %d norm %d ties %d few %d", (int)tokens,
             experts, top_k, (int)d, before, norm, ties, few);
    verdict(what, distance(l, std::vector<double>(r.begin(), r.end())), 1e-5, logits.guard_intact());
    int64_t wrong = fault.get()[0].first != UINT64_MAX, wrong_plan = 0;
    std::vector<double> want_w, want_s, want_p;
    std::vector<int> rows((size_t)experts, 0), order((size_t)experts);
    for (int64_t t = 0; t < tokens; ++t) {
        const float *row = &l[(size_t)(t * experts)];
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [row](int a, int b) { return row[a] > row[b]; });
        double sum = 0, chosen = 0;
        if (!real[(size_t)t]) {
            want_s.push_back(0);
            want_p.insert(want_p.end(), (size_t)experts, 0);
            want_w.insert(want_w.end(), (size_t)top_k, 0);
            for (int k = 0; k < top_k; ++k) wrong += e[(size_t)(t * top_k + k)] != -1;
            continue;
        }
        for (int i = 0; i < experts; ++i) sum += exp((double)row[i] - row[order[0]]);
        for (int k = 0; k < top_k; ++k) chosen += exp((double)row[order[(size_t)k]] - row[order[0]]);
        want_s.push_back(row[order[0]] + log(sum));
        for (int i = 0; i < experts; ++i) want_p.push_back(exp((double)row[i] - want_s.back()));
        for (int k = 0; k < top_k; ++k) {
            wrong += e[(size_t)(t * top_k + k)] != order[(size_t)k];
            want_w.push_back(1.5 * exp((double)row[order[(size_t)k]] - row[order[0]]) /
                             (before && !norm ? sum : chosen));
            ++rows[(size_t)order[(size_t)k]];
        }
    }
    verdict("  its selection (wrong entries)", (double)wrong, 0, expert.guard_intact());
    verdict("  its weights", distance(w, want_w), 1e-5, weight.guard_intact());
    verdict("  its lse", distance(s, want_s), 1e-5, lse.guard_intact());
    verdict("  its scores", distance(p, want_p), 1e-5, prob.guard_intact());
    std::vector<int> next(1, 0);
    for (int i = 0; i < experts; ++i) next.push_back(next.back() + rows[(size_t)i]);
    for (int i = 0; i <= experts; ++i) wrong_plan += o[(size_t)i] != next[(size_t)i];
    for (int i = 0; i < 2 * experts; ++i) wrong_plan += counts[(size_t)i] != rows[(size_t)(i % experts)];
    wrong_plan += counts[(size_t)(2 * experts)] != std::count(real.begin(), real.end(), 1) ||
                  counts[(size_t)(2 * experts + 1)] != -1;
    for (int64_t i = 0; i < tokens * top_k && wrong == 0; ++i) {
        if (e[(size_t)i] < 0) {
            wrong_plan += ro[(size_t)i] != -1;
            continue;
        }
        const int at = next[(size_t)e[(size_t)i]]++;
        wrong_plan += ro[(size_t)i] != at || rt[(size_t)at] != i / top_k || rs[(size_t)at] != i ||
                      rw[(size_t)at] != w[(size_t)i];
    }
    verdict("  its plan (wrong entries)", (double)wrong_plan, 0,
            row_of.guard_intact() && token.guard_intact() && offset.guard_intact() && count.guard_intact() &&
                tile_count.guard_intact());
}

/* Experts may repeat between tokens and be missing (-1). */
static void check_decode(int64_t tokens, int experts, int top_k, int64_t d, int64_t n, const Act &act) {
    const moei_act_rule rule = moei_act_rule_for(act.act, act.numbers);
    const bool gated = rule.gated;
    const int64_t width = gated ? 2 * n : n, choices = tokens * top_k;
    Buffer<bf16> x(tokens * d), w1(experts * d * width), w2(experts * n * d), y(tokens * d),
        again(tokens * d);
    Buffer<float> weight(choices);
    Buffer<int> expert(choices);
    Buffer<char> scratch((int64_t)moei_few_scratch_bytes(tokens, choices, experts, n));
    Buffer<uint32_t> drawn(2);
    std::vector<int> chosen;
    for (int64_t t = 0; t < tokens; ++t) {
        const int start = (int)(mix(seed * 5 + (uint64_t)t) % (uint32_t)experts);
        for (int k = 0; k < top_k; ++k)
            chosen.push_back(mix(seed + (uint64_t)(t * top_k + k)) % 9 ? (start + 3 * k) % experts : -1);
    }
    x.random(seed, 1), w1.random(seed + 1, 1 / sqrtf((float)d)), w2.random(seed + 2, 1 / sqrtf((float)n));
    weight.random(seed + 3, 1), expert.put(chosen);
    moei_few_args args = {};
    args.dtype = MOE_BF16, args.n_tokens = tokens, args.d = args.ldx = args.ldy = d, args.n = n;
    args.n_experts = experts, args.top_k = top_k, args.x = x.data, args.w1 = w1.data, args.w2 = w2.data;
    args.act = act.act, args.act_numbers = act.numbers, args.expert = expert.data, args.weight = weight.data,
    args.scratch = scratch.data, args.drawn = drawn.data, args.y = y.data;
    drawn.put({0, 0});
    y.random(seed + 4, 1);
    const std::vector<bf16> was = y.get();
    args.accumulate = tokens % 2;
    CUDA_OK(cudaMemcpy(again.data, y.data, (size_t)(tokens * d) * sizeof(bf16), cudaMemcpyDeviceToDevice));
    CUDA_OK(moei_cuda_decode(&team, &args));
    scratch.poison();
    args.y = again.data;
    CUDA_OK(moei_cuda_decode(&team, &args));
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<bf16> xv = x.get(), v1 = w1.get(), v2 = w2.get(), got = y.get(), twice = again.get();
    const std::vector<float> w = weight.get();
    std::vector<double> want((size_t)(tokens * d));
    for (size_t i = 0; i < want.size() && args.accumulate; ++i) want[i] = (double)(float)was[i];
    for (int64_t i = 0; i < choices; ++i) {
        const int64_t t = i / top_k, e = chosen[(size_t)i];
        if (e < 0) continue;
        std::vector<double> z((size_t)width);
        for (int64_t k = 0; k < d; ++k)
            for (int64_t j = 0; j < width; ++j)
                z[(size_t)j] += (double)(float)xv[(size_t)(t * d + k)] *
                                (double)(float)v1[(size_t)((e * d + k) * width + j)];
        for (int64_t k = 0; k < n; ++k) {
            const double a =
                w[(size_t)i] * moei_act_at(&rule, z[(size_t)k], gated ? z[(size_t)(n + k)] : 0).value;
            for (int64_t j = 0; j < d; ++j)
                want[(size_t)(t * d + j)] += a * (double)(float)v2[(size_t)((e * n + k) * d + j)];
        }
    }
    char what[100];
    snprintf(what, sizeof what, "decode T %d E %d K %d d %d n %d act %d", (int)tokens, experts, top_k, (int)d,
             (int)n, act.act);
    verdict(what, distance(got, want), 4e-3, y.guard_intact() && scratch.guard_intact());
    verdict("  the same bits again", memcmp(got.data(), twice.data(), got.size() * sizeof(bf16)) != 0, 0,
            true);
}

/* Against f64, so near that dlogits' low halves must count. Opposed: the high halves of experts e and e + 1,
 * whose gate is the same, cancel, and the low halves are all that dx, whose bf16 would hide them, is made of.
 */
static void check_gate_grad(int64_t tokens, int experts, int64_t d, bool opposed, bool accumulate) {
    const moei_gate_grad_scratch at = moei_gate_grad_carve(tokens, experts, d);
    Buffer<float> dlogits(tokens * experts), dgate(experts * d);
    Buffer<bf16> x(tokens * d), gate(experts * d), dx(tokens * d);
    Buffer<char> scratch((int64_t)at.bytes);
    dlogits.random(seed, 1), dgate.random(seed + 1, 1), dx.random(seed + 2, 1e-3f);
    x.random(seed + 3, 1), gate.random(seed + 4, 1);
    std::vector<float> dl = dlogits.get();
    std::vector<bf16> g = gate.get();
    for (int64_t i = 0; opposed && i + 1 < tokens * experts; i += 2)
        dl[(size_t)i + 1] = -__bfloat162float(__float2bfloat16(dl[(size_t)i]));
    for (int e = 0; opposed && e + 1 < experts; e += 2)
        std::copy_n(g.begin() + e * d, d, g.begin() + (e + 1) * d);
    gate.put(g);
    std::vector<bf16> pairs((size_t)(2 * tokens * experts));
    for (int64_t i = 0; i < tokens * experts; ++i) {
        bf16 *high = pairs.data() + i / experts * 2 * experts + i % experts;
        *high = __float2bfloat16(dl[(size_t)i]);
        high[experts] = __float2bfloat16(dl[(size_t)i] - __bfloat162float(*high));
    }
    CUDA_OK(cudaMemcpy(scratch.data, pairs.data(), pairs.size() * sizeof(bf16), cudaMemcpyHostToDevice));
    const std::vector<bf16> xv = x.get(), was_x = dx.get();
    const std::vector<float> was_gate = dgate.get();
    moei_gate_grad_args args = {};
    args.dtype = MOE_BF16, args.n_tokens = tokens, args.d = args.ldx = args.ld_dx = d;
    args.n_experts = experts, args.accumulate = accumulate, args.x = x.data, args.gate = gate.data;
    args.dgate = dgate.data, args.dx = dx.data, args.scratch = scratch.data;
    moei_gate_products products;
    moei_gate_grad__cuda(&team, &args, &products);
    gemm_rows(products.dx, MOEI_SCHEDULE_AUTO);
    gemm_outer(products.dgate);
    moei_gate_grad_end__cuda(&team, &args);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaDeviceSynchronize());
    std::vector<double> want_gate(was_gate.begin(), was_gate.end()), want_x((size_t)(tokens * d));
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < d; ++j) {
            double sum = accumulate ? (double)(float)was_x[(size_t)(t * d + j)] : 0;
            for (int e = 0; e < experts; ++e) {
                const double v = dl[(size_t)(t * experts + e)];
                sum += v * (double)(float)g[(size_t)(e * d + j)];
                want_gate[(size_t)(e * d + j)] += v * (double)(float)xv[(size_t)(t * d + j)];
            }
            want_x[(size_t)(t * d + j)] = sum;
        }
    char what[100];
    snprintf(what, sizeof what, "gate_grad T %d E %d d %d opposed %d: dgate", (int)tokens, experts, (int)d,
             opposed);
    verdict(what, distance(dgate.get(), want_gate), 1e-4, dgate.guard_intact() && scratch.guard_intact());
    verdict("  its dx", distance(dx.get(), want_x), 5e-3, dx.guard_intact());
}

/* What a call writes, run after run: the same bits. */
static void check_same_bits(Problem &p) {
    const int64_t n = p.c.n, d = p.c.d, rows = p.c.rows, groups = p.c.groups;
    std::vector<std::vector<bf16>> first;
    std::vector<float> first_part;
    int64_t different = 0;
    for (int run = 0; run < 3; ++run) {
        Buffer<bf16> z(rows * 2 * n), h(rows * n), c(rows * d), w(groups * d * n), wt(groups * d * n);
        Buffer<float> part(rows * moe_dweight_parts(n)), dweight(rows);
        moe_gemm_rows_args r = rows_args(p, 2 * n, d, p.w1.data, false);
        r.a = p.x.data, r.lda = d, r.a_row = p.row.data;
        r.epilogue = MOE_EPI_ACT, r.act = MOE_ACT_SWIGLU, r.c = z.data, r.ldc = 2 * n, r.h = h.data,
        r.ldh = n;
        gemm_rows(r, MOEI_SCHEDULE_AUTO);
        r = rows_args(p, n, d, p.w2.data, true);
        r.a = p.x.data, r.lda = d, r.a_row = p.row.data;
        r.epilogue = MOE_EPI_ACT_GRAD, r.act = MOE_ACT_SWIGLU, r.z = r.dz = z.data, r.ldz = 2 * n;
        r.wa = h.data, r.ldwa = n, r.row_weight = p.row_weight.data;
        r.dweight = dweight.data, r.dweight_part = part.data;
        gemm_rows(r, MOEI_SCHEDULE_AUTO);
        r = rows_args(p, d, n, p.w2.data, false);
        r.a = h.data, r.lda = n, r.c = c.data, r.ldc = d;
        gemm_rows(r, MOEI_SCHEDULE_AUTO);
        moe_gemm_outer_args o = {};
        o.dtype = MOE_BF16, o.n_groups = p.c.groups, o.offset = p.offset.data, o.n_rows = rows;
        o.m = d, o.n = o.ldc = o.ldb = n, o.c_group = d * n, o.a = p.x.data, o.lda = d, o.a_row = p.row.data;
        o.b = h.data, o.c = w.data;
        gemm_outer(o);
        o.m = n, o.n = o.ldc = o.ldb = d, o.a = h.data, o.lda = n, o.a_row = NULL;
        o.b = p.x.data, o.b_row = p.row.data, o.c = wt.data;
        gemm_outer(o);
        const std::vector<std::vector<bf16>> now = {z.get(), h.get(), c.get(), w.get(), wt.get()};
        const std::vector<float> now_part = dweight.get();
        if (run == 0) first = now, first_part = now_part;
        for (size_t i = 0; i < now.size(); ++i)
            different += memcmp(first[i].data(), now[i].data(), now[i].size() * sizeof(bf16)) != 0;
        different += memcmp(first_part.data(), now_part.data(), now_part.size() * sizeof(float)) != 0;
    }
    verdict(p.name("same bits in three runs (buffers that differ)").c_str(), (double)different, 0, true);
}

static void check_case(const Case &c) {
    Problem p(c);
    const moei_schedule both[] = {MOEI_SCHEDULE_COOPERATIVE, MOEI_SCHEDULE_PINGPONG};
    for (moei_schedule schedule : both) {
        check_store(p, false, false, schedule, false, false);
        check_store(p, false, true, schedule, true, false);
        check_act(p, swiglu, schedule, true, true, false);
        check_act_grad(p, swiglu, schedule, true, true);
    }
    check_store(p, true, false, MOEI_SCHEDULE_AUTO, false, false);
    check_store(p, true, true, MOEI_SCHEDULE_AUTO, false, false);
    check_store_wide(p, false, false);
    check_store_wide(p, true, true);
    check_act(p, swiglu, MOEI_SCHEDULE_AUTO, false, true, false);
    for (bool gather : {false, true}) {
        check_store(p, gather, false, MOEI_SCHEDULE_AUTO, gather, true);
        check_act(p, swiglu, MOEI_SCHEDULE_AUTO, gather, true, true);
        check_act(p, gelu, MOEI_SCHEDULE_AUTO, true, gather, true);
    }
    for (int kind = MOE_ACT_RELU; kind <= MOE_ACT_GEGLU; ++kind)
        for (int i = 0; i < 4; ++i) {
            Act act = {(moe_act)kind, {}};
            if (i / 2) act.numbers = {1.702, 1.5, 1};
            check_act(p, act, MOEI_SCHEDULE_AUTO, true, i % 2, false);
            check_act_grad(p, act, MOEI_SCHEDULE_AUTO, false, i % 2);
        }
    for (int i = 0; i < 8; ++i) {
        check_outer<bf16>(p, i & 1, i >> 1 & 1, i >> 2);
        check_outer<float>(p, i & 1, i >> 1 & 1, i >> 2);
    }
    for (int i = 0; i < 4; ++i) {
        check_outers<bf16>(p, i & 1, i >> 1);
        check_outers<float>(p, i & 1, i >> 1);
    }
    check_same_bits(p);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    team = team_of(0);
    portable = getenv("ISA") && strcmp(getenv("ISA"), "cuda") == 0;
    printf("check_moe: seed %llu\n", (unsigned long long)seed);
    const Case cases[] = {
        {1,   128,  128,  64,   64,  0},
        {1,   256,  300,  256,  256, 0},
        {5,   613,  211,  72,   40,  1},
        {8,   1009, 1200, 192,  128, 1},
        {17,  2003, 997,  200,  72,  2},
        {64,  3001, 512,  320,  256, 2},
        {128, 4099, 640,  136,  8,   1},
        {7,   1531, 400,  512,  384, 3},
        {33,  6007, 800,  448,  264, 1},
        {9,   2111, 900,  1024, 192, 2}
    };
    const size_t n_cases = argc > 2 ? strtoull(argv[2], NULL, 0) : sizeof cases / sizeof *cases;
    for (size_t i = 0; i < n_cases && i < sizeof cases / sizeof *cases; ++i) check_case(cases[i]);
    const Case odd[] = {
        {5,   613,  700, 67,  41,  1},
        {9,   1409, 400, 130, 205, 2},
        {700, 3001, 512, 136, 24,  1}
    };
    for (const Case &c : odd)
        if (portable) check_case(c);
    for (int i = 0; i < 8; ++i)
        check_gather_sum(i % 2 ? 331 : 64, 1 + i + (i > 5) * 4, i % 3 ? 72 : 1536, i & 1, i & 2);
    check_route(128, 64, 2, 64, false, false, false, false);
    check_route(1009, 128, 8, 200, true, true, true, false);
    check_route(300, 60, 4, 136, true, false, true, false);
    check_route(257, 256, 16, 320, false, false, false, false);
    check_route(1, 8, 1, 64, true, false, false, false);
    check_route(4000, 3, 3, 64, false, false, true, false);
    check_route(2053, 128, 8, 200, true, true, true, false);
    check_route(1031, 256, 16, 320, false, false, false, false);
    check_route(1100, 256, 20, 136, true, false, true, false);
    check_route(1501, 100, 12, 72, false, false, false, false);
    check_route(1203, 200, 6, 136, true, true, true, false);
    check_route(1205, 120, 25, 72, false, false, false, false);
    check_route(1207, 50, 12, 72, true, false, true, false);
    check_route(1209, 64, 32, 136, false, false, false, false);
    check_route(20011, 128, 8, 1536, true, false, false, false);
    check_route(131100, 5, 2, 64, false, false, false, false); /* more than the plan in one kernel takes */
    check_route(1, 128, 8, 2048, false, false, false, true);
    check_route(8, 60, 4, 136, true, true, true, true);
    check_route(5, 256, 16, 72, true, false, true, true);
    check_route(12, 128, 8, 2048, true, true, true, true);
    check_route(15, 3, 3, 64, false, false, true, true);
    check_route(16, 250, 32, 328, false, false, false, true);
    check_decode(1, 16, 4, 256, 128, swiglu);
    check_decode(8, 11, 8, 200, 72, swiglu);
    check_decode(3, 64, 2, 1048, 264, clamped);
    check_decode(7, 5, 2, 136, 40, gelu);
    check_decode(2, 8, 2, 64, 8, relu2);
    check_decode(9, 130, 6, 328, 136, swiglu);
    check_decode(16, 32, 8, 512, 64, clamped);
    check_decode(15, 300, 4, 192, 200, gelu);
    check_decode(16, 40, 16, 1032, 72, swiglu);
    check_decode(1, 128, 8, 2048, 768, swiglu);
    for (bool opposed : {false, true}) {
        check_gate_grad(1009, 64, 200, opposed, opposed);
        check_gate_grad(131, 12, 72, opposed, opposed);
        check_gate_grad(3001, 128, 256, opposed, false);
        check_gate_grad(1, 4, 64, opposed, opposed);
    }
    printf("check_moe: %d checks, %d failed\n", n_checked, n_failed);
    return n_failed != 0;
}
