/* check_tokens.cu: the part of check_moe for what is done token by token: routers and the plan of their
 * choices, the sum of a token's rows, the experts of few tokens, the router's way back.
 * x[T,d] gate[E,d] -> expert, weight[T,K], offset[E+1], row_of[T,K]; y[T,d]. Source: kernel/kernel.h.
 */
#include "check.cuh"

#include <numeric>
#include <string.h>

/* As many rows, any of as many, a few -1. */
static std::vector<int> some_rows(int64_t rows) {
    std::vector<int> index((size_t)rows);
    for (int64_t i = 0; i < rows; ++i)
        index[(size_t)i] =
            mix(seed + (uint64_t)i) % 17 == 0 ? -1 : (int)(mix(seed * 3 + (uint64_t)i) % (uint32_t)rows);
    return index;
}

static void check_gather_sum(int64_t tokens, int top_k, int64_t n, bool weighted, bool accumulate) {
    const int64_t rows = tokens * top_k;
    Buffer<bf16> in(rows * n), out(tokens * n);
    Buffer<float> weight(rows);
    Buffer<int> row_of(rows);
    in.random(seed, 1), weight.random(seed + 1, 1);
    const std::vector<int> index = some_rows(rows);
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

struct RouteCase {
    int64_t tokens;
    int experts, top_k;
    int64_t d;
    bool before, norm, ties, few; /* ties: half of the experts twice; few: the router for up to 16 tokens */
};

/* Inputs of a router, and all that it and the plan of its choices write. Of odd numbers of tokens every
 * seventh is masked. */
struct Routing {
    RouteCase c;
    int64_t slots;
    std::vector<uint8_t> real;
    Buffer<bf16> x, gate;
    Buffer<float> logits, prob, lse, weight, row_weight;
    Buffer<int> expert, token, row_of, row_slot;
    Buffer<int64_t> offset, count;
    Buffer<uint8_t> tile_count, mask;
    Buffer<moei_fault> fault;
    explicit Routing(const RouteCase &cc)
        : c(cc), slots(c.tokens * c.top_k), real((size_t)c.tokens, 1), x(c.tokens * c.d),
          gate(c.experts * c.d), logits(c.tokens * c.experts), prob(c.tokens * c.experts), lse(c.tokens),
          weight(slots), row_weight(slots), expert(slots), token(slots), row_of(slots), row_slot(slots),
          offset(c.experts + 1), count(2 * c.experts + 2),
          tile_count((int64_t)moei_plan_scratch_bytes(c.tokens, slots, c.experts)), mask(c.tokens), fault(1) {
        for (size_t t = 3; t < real.size() && c.tokens % 2; t += 7) real[t] = 0;
        mask.put(real);
        x.random(seed, 1), gate.random(seed + 1, 1 / sqrtf((float)c.d));
        fault.put({{UINT64_MAX}});
        if (!c.ties) return;
        std::vector<bf16> g = gate.get();
        for (int e = 0; e + 1 < c.experts; e += 2)
            std::copy_n(g.begin() + e * c.d, c.d, g.begin() + (e + 1) * c.d);
        gate.put(g);
    }
    bool uncounted() const { return c.few && c.tokens > 8; }
    moei_router_args router_args() const {
        moei_router_args args = {};
        args.dtype = MOE_BF16, args.n_tokens = c.tokens, args.n_experts = c.experts, args.top_k = c.top_k;
        args.d = args.ldx = c.d, args.x = x.data, args.gate = gate.data;
        args.score_before_topk = c.before, args.norm_topk_prob = c.norm, args.scale = 1.5;
        args.logits = logits.data, args.prob = prob.data, args.lse = lse.data;
        args.expert = expert.data, args.weight = weight.data;
        args.tile_count = uncounted() ? NULL : tile_count.data;
        args.fault = fault.data, args.mask = mask.data;
        return args;
    }
    moei_plan_args plan_args() const {
        moei_plan_args args = {};
        args.n_tokens = c.tokens, args.n_rows = slots, args.n_experts = c.experts, args.top_k = c.top_k;
        args.expert = expert.data, args.weight = weight.data, args.offset = offset.data;
        args.routed = count.data, args.kept = count.data + c.experts;
        args.n_valid = count.data + 2 * c.experts;
        args.capacity = args.n_valid + 1, args.row_token = token.data, args.row_slot = row_slot.data;
        args.row_of = row_of.data, args.row_weight = row_weight.data, args.tile_count = tile_count.data;
        args.mask = mask.data;
        args.counted = !uncounted() && (!c.few || c.tokens % 2); /* else it counts itself */
        return args;
    }
    void run() {
        const moei_router_args route = router_args();
        const moei_plan_args plan = plan_args();
        CUDA_OK(c.few ? moei_cuda_route_few(&team, &route) : moei_cuda_route(&team, &route));
        moei_plan__cuda(&team, &plan);
        CUDA_OK(cudaGetLastError());
        CUDA_OK(cudaDeviceSynchronize());
    }
};

static void check_logits(const Routing &r, const char *what) {
    const int64_t n = r.c.tokens * r.c.experts;
    Buffer<int64_t> one(2);
    Buffer<float> ref(n);
    one.put({0, r.c.tokens});
    product_ref<<<(unsigned)((n + 255) / 256), 256>>>(r.x.data, r.c.d, NULL, r.gate.data, true, NULL,
                                                      one.data, 1, r.c.experts, r.c.d, ref.data);
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> want = ref.get();
    verdict(what, distance(r.logits.get(), std::vector<double>(want.begin(), want.end())), 1e-5,
            r.logits.guard_intact());
}

/* What a stable sort of the kernel's own logits chooses; returns the rows of each expert. */
static std::vector<int> check_selection(const Routing &r) {
    const std::vector<float> logits = r.logits.get();
    const std::vector<int> expert = r.expert.get();
    std::vector<double> weight, lse, prob;
    std::vector<int> rows((size_t)r.c.experts, 0), order((size_t)r.c.experts);
    int64_t wrong = r.fault.get()[0].first != UINT64_MAX;
    for (int64_t t = 0; t < r.c.tokens; ++t) {
        const float *row = &logits[(size_t)(t * r.c.experts)];
        const int *got = &expert[(size_t)(t * r.c.top_k)];
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [row](int a, int b) { return row[a] > row[b]; });
        if (!r.real[(size_t)t]) {
            lse.push_back(0);
            prob.insert(prob.end(), (size_t)r.c.experts, 0);
            weight.insert(weight.end(), (size_t)r.c.top_k, 0);
            for (int k = 0; k < r.c.top_k; ++k) wrong += got[k] != -1;
            continue;
        }
        const double most = row[order[0]];
        double sum = 0, chosen = 0;
        for (int i = 0; i < r.c.experts; ++i) sum += exp((double)row[i] - most);
        for (int k = 0; k < r.c.top_k; ++k) chosen += exp((double)row[order[(size_t)k]] - most);
        lse.push_back(most + log(sum));
        for (int i = 0; i < r.c.experts; ++i) prob.push_back(exp((double)row[i] - lse.back()));
        for (int k = 0; k < r.c.top_k; ++k) {
            const int e = order[(size_t)k];
            wrong += got[k] != e;
            weight.push_back(1.5 * exp((double)row[e] - most) / (r.c.before && !r.c.norm ? sum : chosen));
            ++rows[(size_t)e];
        }
    }
    verdict("  its selection (wrong entries)", (double)wrong, 0, r.expert.guard_intact());
    verdict("  its weights", distance(r.weight.get(), weight), 1e-5, r.weight.guard_intact());
    verdict("  its lse", distance(r.lse.get(), lse), 1e-5, r.lse.guard_intact());
    verdict("  its scores", distance(r.prob.get(), prob), 1e-5, r.prob.guard_intact());
    return rows;
}

/* The plan is a counting sort of the kernel's own choices, of which each expert must have `rows`. */
static void check_plan(const Routing &r, const std::vector<int> &rows) {
    const int experts = r.c.experts;
    const std::vector<int> expert = r.expert.get(), token = r.token.get(), row_of = r.row_of.get(),
                           row_slot = r.row_slot.get();
    const std::vector<float> weight = r.weight.get(), row_weight = r.row_weight.get();
    const std::vector<int64_t> offset = r.offset.get(), count = r.count.get();
    std::vector<int> next(1, 0);
    int64_t wrong = 0;
    for (int e = 0; e < experts; ++e) next.push_back(next.back() + rows[(size_t)e]);
    for (int e = 0; e <= experts; ++e) wrong += offset[(size_t)e] != next[(size_t)e];
    for (int i = 0; i < 2 * experts; ++i) wrong += count[(size_t)i] != rows[(size_t)(i % experts)];
    wrong += count[(size_t)(2 * experts)] != std::count(r.real.begin(), r.real.end(), 1) ||
             count[(size_t)(2 * experts + 1)] != -1;
    for (int64_t i = 0; i < r.slots; ++i) {
        const int e = expert[(size_t)i];
        if (e < 0) {
            wrong += row_of[(size_t)i] != -1;
            continue;
        }
        const int64_t at = e < experts ? next[(size_t)e]++ : r.slots;
        wrong += at >= r.slots || row_of[(size_t)i] != at || token[(size_t)at] != i / r.c.top_k ||
                 row_slot[(size_t)at] != i || row_weight[(size_t)at] != weight[(size_t)i];
    }
    verdict("  its plan (wrong entries)", (double)wrong, 0,
            r.row_of.guard_intact() && r.token.guard_intact() && r.offset.guard_intact() &&
                r.count.guard_intact() && r.tile_count.guard_intact());
}

static void check_route(const RouteCase &c) {
    Routing r(c);
    r.run();
    char what[100];
    snprintf(what, sizeof what, "route T %d E %d K %d d %d before %d norm %d ties %d few %d", (int)c.tokens,
             c.experts, c.top_k, (int)c.d, c.before, c.norm, c.ties, c.few);
    check_logits(r, what);
    check_plan(r, check_selection(r));
}

/* Experts may repeat between tokens, not within one, and be missing (-1). */
static std::vector<int> some_choices(int64_t tokens, int experts, int top_k, bool none) {
    std::vector<int> chosen;
    const int apart = experts % 3 ? 3 : 1; /* the experts of a token */
    for (int64_t t = 0; t < tokens; ++t) {
        const uint32_t number = mix(seed * 5 + (uint64_t)t);
        const int start = number % 8 < 5 ? 0 : (int)(number / 8 % (uint32_t)experts); /* one has many rows */
        for (int k = 0; k < top_k; ++k) {
            const bool missing = none || mix(seed + (uint64_t)(t * top_k + k)) % 9 == 0;
            chosen.push_back(missing ? -1 : (start + apart * k) % experts);
        }
    }
    return chosen;
}

/* chosen_by_none: no expert is. */
static void check_few(int64_t tokens, int experts, int top_k, int64_t d, int64_t n, const Act &act,
                      bool chosen_by_none = false) {
    const moei_act_rule rule = moei_act_rule_for(act.act, act.numbers);
    const bool gated = rule.gated;
    const int64_t width = gated ? 2 * n : n, choices = tokens * top_k;
    Buffer<bf16> x(tokens * d), w1(experts * d * width), w2(experts * n * d), y(tokens * d),
        again(tokens * d);
    Buffer<float> weight(choices);
    Buffer<int> expert(choices);
    Buffer<char> scratch((int64_t)moei_few_scratch_bytes(choices, d, n));
    Buffer<uint32_t> drawn(MOEI_FEW_COUNTERS);
    const std::vector<int> chosen = some_choices(tokens, experts, top_k, chosen_by_none);
    x.random(seed, 1), w1.random(seed + 1, 1 / sqrtf((float)d)), w2.random(seed + 2, 1 / sqrtf((float)n));
    weight.random(seed + 3, 1), expert.put(chosen);
    moei_few_args args = {};
    args.dtype = MOE_BF16, args.n_tokens = tokens, args.d = args.ldx = args.ldy = d, args.n = n;
    args.n_experts = experts, args.top_k = top_k, args.x = x.data, args.w1 = w1.data, args.w2 = w2.data;
    args.act = act.act, args.act_numbers = act.numbers, args.expert = expert.data, args.weight = weight.data,
    args.scratch = scratch.data, args.drawn = drawn.data, args.y = y.data;
    drawn.put(std::vector<uint32_t>(MOEI_FEW_COUNTERS, 0));
    y.random(seed + 4, 1);
    const std::vector<bf16> was = y.get();
    args.accumulate = tokens % 2;
    CUDA_OK(cudaMemcpy(again.data, y.data, (size_t)(tokens * d) * sizeof(bf16), cudaMemcpyDeviceToDevice));
    CUDA_OK(moei_cuda_few(&team, &args));
    scratch.poison();
    args.y = again.data;
    CUDA_OK(moei_cuda_few(&team, &args));
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
    snprintf(what, sizeof what, "few T %d E %d K %d d %d n %d act %d", (int)tokens, experts, top_k, (int)d,
             (int)n, act.act);
    verdict(what, distance(got, want), 4e-3, y.guard_intact() && scratch.guard_intact());
    verdict("  the same bits again", memcmp(got.data(), twice.data(), got.size() * sizeof(bf16)) != 0, 0,
            true);
    int64_t left = 0;
    for (const uint32_t count : drawn.get()) left += count != 0;
    verdict("  counters that are not 0", (double)left, 0, drawn.guard_intact());
}

/* Against f64, so near that dlogits' low halves must count. Opposed: the high halves of experts e and e + 1,
 * whose gate is the same, cancel, and the low halves are all that dx, whose bf16 would hide them, is made of;
 * then it has no rows besides.
 */
static void check_gate_grad(int64_t tokens, int experts, int64_t d, int top_k, bool accumulate) {
    const bool opposed = top_k == 0;
    const moei_gate_grad_scratch at = moei_gate_grad_carve(tokens, experts, d);
    Buffer<float> dlogits(tokens * experts), dgate(experts * d);
    Buffer<bf16> x(tokens * d), gate(experts * d), dx(tokens * d);
    Buffer<bf16> rows(tokens * top_k * d);
    Buffer<int> row_of(tokens * top_k);
    Buffer<char> scratch((int64_t)at.bytes);
    dlogits.random(seed, 1), dgate.random(seed + 1, 1), dx.random(seed + 2, opposed ? 1e-3f : 1);
    if (top_k > 0) rows.random(seed + 5, 1);
    const std::vector<int> index = some_rows(tokens * top_k);
    row_of.put(index);
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
    const std::vector<bf16> xv = x.get(), was_x = dx.get(), row = rows.get();
    const std::vector<float> was_gate = dgate.get();
    moei_gate_grad_args args = {};
    args.dtype = MOE_BF16, args.n_tokens = tokens, args.d = args.ldx = args.ld_dx = d;
    args.n_experts = experts, args.accumulate = accumulate, args.x = x.data, args.gate = gate.data;
    args.dgate = dgate.data, args.dx = dx.data, args.scratch = scratch.data;
    args.top_k = top_k, args.rows = rows.data, args.ld_rows = d, args.row_of = row_of.data;
    moe_gemm_outer_args product;
    moei_gate_grad__cuda(&team, &args, &product);
    moei_gate_grad_sum__cuda(&team, &args);
    gemm_outer(product);
    moei_gate_grad_end__cuda(&team, &args);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaDeviceSynchronize());
    std::vector<double> want_gate(was_gate.begin(), was_gate.end()), want_x((size_t)(tokens * d));
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < d; ++j) {
            double sum = accumulate ? (double)(float)was_x[(size_t)(t * d + j)] : 0;
            for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i)
                if (index[(size_t)i] >= 0) sum += (double)(float)row[(size_t)(index[(size_t)i] * d + j)];
            for (int e = 0; e < experts; ++e) {
                const double v = dl[(size_t)(t * experts + e)];
                sum += v * (double)(float)g[(size_t)(e * d + j)];
                want_gate[(size_t)(e * d + j)] += v * (double)(float)xv[(size_t)(t * d + j)];
            }
            want_x[(size_t)(t * d + j)] = sum;
        }
    char what[100];
    snprintf(what, sizeof what, "gate_grad T %d E %d d %d K %d add %d: dgate", (int)tokens, experts, (int)d,
             top_k, accumulate);
    verdict(what, distance(dgate.get(), want_gate), 1e-4, dgate.guard_intact() && scratch.guard_intact());
    verdict("  its dx", distance(dx.get(), want_x), 5e-3, dx.guard_intact());
}

/* The gate less its mean, and the sum where the rows have the router's part. */
static void check_gate_in_rows(int64_t tokens, int experts, int64_t d, int top_k) {
    Buffer<float> dgate(experts * d), vector(experts * d);
    Buffer<bf16> x(tokens * d), gate(experts * d), dx(tokens * d), rows(tokens * top_k * d);
    Buffer<int> row_of(tokens * top_k);
    Buffer<char> scratch((int64_t)moei_gate_grad_carve(tokens, experts, d).bytes);
    const std::vector<int> index = some_rows(tokens * top_k);
    x.random(seed, 1), gate.random(seed + 1, 1), rows.random(seed + 2, 1), row_of.put(index);
    moei_gate_grad_args args = {};
    args.dtype = MOE_BF16, args.n_tokens = tokens, args.d = args.ldx = args.ld_dx = args.ld_rows = d;
    args.n_experts = experts, args.x = x.data, args.gate = gate.data, args.dgate = dgate.data;
    args.dx = dx.data, args.scratch = scratch.data, args.vector = vector.data, args.top_k = top_k;
    args.rows = rows.data, args.row_of = row_of.data, args.in_rows = true;
    moe_gemm_outer_args product;
    moei_gate_grad__cuda(&team, &args, &product);
    moei_gate_grad_sum__cuda(&team, &args);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaDeviceSynchronize());
    const std::vector<bf16> g = gate.get(), row = rows.get();
    std::vector<double> centred(g.begin(), g.end()), want((size_t)(tokens * d));
    for (int64_t j = 0; j < d; ++j) {
        double mean = 0;
        for (int e = 0; e < experts; ++e) mean += (double)(float)g[(size_t)(e * d + j)] / experts;
        for (int e = 0; e < experts; ++e) centred[(size_t)(e * d + j)] -= mean;
    }
    for (int64_t i = 0; i < tokens * top_k * d; ++i) {
        const int r = index[(size_t)(i / d)];
        if (r >= 0) want[(size_t)(i / d / top_k * d + i % d)] += (double)(float)row[(size_t)(r * d + i % d)];
    }
    char what[100];
    snprintf(what, sizeof what, "gate_grad T %d E %d d %d K %d: the gate less its mean", (int)tokens, experts,
             (int)d, top_k);
    verdict(what, distance(vector.get(), centred), 1e-5, vector.guard_intact());
    verdict("  dx of rows alone", distance(dx.get(), want), 5e-3, dx.guard_intact());
}

static void check_few_tokens() {
    check_few(1, 16, 4, 256, 128, swiglu);
    check_few(8, 11, 8, 200, 72, swiglu);
    check_few(3, 64, 2, 1048, 264, clamped);
    check_few(7, 5, 2, 136, 40, gelu);
    check_few(2, 8, 2, 64, 8, relu2);
    check_few(9, 130, 6, 328, 136, swiglu);
    check_few(16, 32, 8, 512, 64, clamped);
    check_few(15, 300, 4, 192, 200, gelu);
    check_few(16, 40, 16, 1032, 72, swiglu);
    check_few(1, 128, 8, 2048, 768, swiglu);
    check_few(4, 41, 12, 1032, 72, swiglu);
    check_few(2, 301, 16, 392, 136, gelu);
    check_few(4, 128, 32, 200, 72, swiglu);
    check_few(3, 8, 2, 264, 72, swiglu, true);
    check_few(9, 8, 2, 264, 72, swiglu, true);
    check_few(17, 40, 4, 200, 72, swiglu);
    check_few(128, 12, 3, 136, 40, gelu);
    check_few(33, 300, 8, 328, 200, clamped);
    check_few(100, 64, 8, 512, 264, swiglu);
    check_few(127, 3, 1, 1048, 136, relu2);
    check_few(48, 3, 2, 72, 8, swiglu);
}

void check_tokens() {
    /* clang-format off */
    static const RouteCase routes[] = {
        {128, 64, 2, 64, false, false, false, false},
        {1009, 128, 8, 200, true, true, true, false},
        {300, 60, 4, 136, true, false, true, false},
        {257, 256, 16, 320, false, false, false, false},
        {1, 8, 1, 64, true, false, false, false},
        {4000, 3, 3, 64, false, false, true, false},
        {2053, 128, 8, 200, true, true, true, false},
        {1031, 256, 16, 320, false, false, false, false},
        {1100, 256, 20, 136, true, false, true, false},
        {1501, 100, 12, 72, false, false, false, false},
        {1203, 200, 6, 136, true, true, true, false},
        {1205, 120, 25, 72, false, false, false, false},
        {1207, 50, 12, 72, true, false, true, false},
        {1209, 64, 32, 136, false, false, false, false},
        {20011, 128, 8, 1536, true, false, false, false},
        {131100, 5, 2, 64, false, false, false, false}, /* more than the plan in one kernel takes */
        {1, 128, 8, 2048, false, false, false, true},
        {8, 60, 4, 136, true, true, true, true},
        {5, 256, 16, 72, true, false, true, true},
        {12, 128, 8, 2048, true, true, true, true},
        {15, 3, 3, 64, false, false, true, true},
        {16, 250, 32, 328, false, false, false, true},
        {101, 128, 8, 2048, true, true, true, true},
        {128, 60, 12, 136, false, false, true, true},
    };
    /* clang-format on */
    for (int i = 0; i < 8; ++i)
        check_gather_sum(i % 2 ? 331 : 64, 1 + i + (i > 5) * 4, i % 3 ? 72 : 1536, i & 1, i & 2);
    for (const RouteCase &c : routes) check_route(c);
    check_few_tokens();
    for (bool opposed : {false, true}) {
        check_gate_grad(1009, 64, 200, opposed ? 0 : 8, opposed);
        check_gate_grad(131, 12, 72, opposed ? 0 : 5, true);
        check_gate_grad(3001, 128, 256, opposed ? 0 : 3, false);
        check_gate_grad(1, 4, 64, opposed ? 0 : 1, opposed);
    }
    check_gate_in_rows(1009, 64, 200, 8);
    check_gate_in_rows(131, 12, 72, 5);
    check_gate_in_rows(515, 256, 1088, 16);
    check_gate_grad(77, 60, 136, 2, true);
    check_gate_grad(515, 256, 88, 16, false);
    check_gate_grad(49, 20, 320, 19, true);
}
