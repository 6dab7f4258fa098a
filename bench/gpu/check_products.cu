/* check_products.cu: the part of check_moe for grouped products: every epilogue, both schedules, loads from
 * even to all rows in one group, rows by index or in order, gradients of weights alone and in one launch.
 * a[R,k] b[E,k,n] -> c[R,n]; a[R,m] b[R,n] -> c[E,m,n]. Source: moekit/op.h.
 */
#include "check.cuh"

#include <numeric>
#include <string.h>

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
    const bf16 *b = gather == trans ? p.w2.data : p.w1.data; /* of w1 as much as the product is large */
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

/* With factor[r] vector[group of r] added; not on every GPU. */
static void check_store_plus(Problem &p) {
    const int64_t k = p.c.n, n = p.c.d;
    Buffer<bf16> c(p.c.rows * n);
    Buffer<float> factor(p.c.rows), vector(p.c.groups * n);
    factor.random(seed + 9, 1), vector.random(seed + 10, 1);
    moe_gemm_rows_args args = rows_args(p, n, k, p.w1.data, true);
    args.a = p.h.data, args.lda = k, args.c = c.data, args.ldc = n;
    const moei_rows_plus plus = {factor.data, vector.data};
    const bool taken = moei_gemm_rows_plus__sm90(&team, &args, &plus);
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> ref = p.product(args), f = factor.get(), v = vector.get();
    const std::vector<int64_t> offset = offsets_of(p.c);
    std::vector<double> want(ref.begin(), ref.end());
    for (int g = 0; g < p.c.groups; ++g)
        for (int64_t i = offset[(size_t)g] * n; i < offset[(size_t)g + 1] * n; ++i)
            want[(size_t)i] += (double)f[(size_t)(i / n)] * (double)v[(size_t)(g * n + i % n)];
    verdict(p.name("store plus").c_str(), taken ? distance(c.get(), want) : 1, 4e-3, c.guard_intact());
}

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
    if (!portable) check_store_plus(p);
    check_act(p, swiglu, MOEI_SCHEDULE_AUTO, false, true, false);
    for (bool gather : {false, true}) {
        check_store(p, gather, false, MOEI_SCHEDULE_AUTO, gather, true);
        check_act(p, swiglu, MOEI_SCHEDULE_AUTO, gather, true, true);
        check_act(p, gelu, MOEI_SCHEDULE_AUTO, true, gather, true);
    }
    for (int kind = MOE_ACT_RELU; kind < MOEI_ACTS; ++kind)
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

void check_products(size_t n_cases) {
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
    const Case odd[] = {
        {5,   613,  700, 67,  41,  1},
        {9,   1409, 400, 130, 205, 2},
        {700, 3001, 512, 136, 24,  1}
    };
    for (size_t i = 0; i < n_cases && i < sizeof cases / sizeof *cases; ++i) check_case(cases[i]);
    for (const Case &c : odd)
        if (portable) check_case(c);
}
