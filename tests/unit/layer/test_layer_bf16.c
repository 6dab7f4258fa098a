/* test_layer_bf16.c: a layer that stores bf16 against the same layer in f64 on the same (rounded) numbers.
 * Bound: 1e-2 of the norm of what is compared: 8 significant bits are 4e-3 a number, and Z, A and rows are
 * rounded on the way.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moekit/op.h>

#include "core/real.h"
#include "moekit/bench/bench_problem.h"

enum { SEED = 20261122, SEQUENCE = 3 };
/* Of few tokens (or sequences, where those are routed) a single one may have cancelled. */
static double bound_of(const moe_layer_desc *desc, int64_t T) {
    const int64_t routed = desc->routing_unit ? T / SEQUENCE : T;
    return routed >= 32 ? 1e-2 : 5e-2;
}

typedef struct subject {
    moe_ctx *ctx;
    moe_layer *layer;
    moe_dtype dtype;
    int64_t T, d, d_out;
    void *x, *dy, *y, *dx;
} subject;

static void *numbers(moe_dtype dtype, int64_t n) {
    void *block = malloc((size_t)(n ? n : 1) * moe_dtype_bytes(dtype));
    assert_non_null(block);
    memset(block, 0xa5, (size_t)n * moe_dtype_bytes(dtype));
    return block;
}

static void convert(moe_dtype from_dtype, const void *from, moe_dtype to_dtype, void *to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) moei_real_store(to_dtype, to, i, moei_real_load(from_dtype, from, i));
}

static void made(moe_ctx *ctx, moe_status status) {
    if (status != MOE_OK) fail_msg("%s", moe_ctx_error(ctx));
}

static subject open_subject(const moe_layer_desc *given, moe_dtype dtype, int64_t T, int32_t n_threads) {
    subject s = {.dtype = dtype, .T = T};
    moe_layer_desc desc = *given;
    moe_error error;
    const moe_ctx_desc ctx_desc = {.size = sizeof ctx_desc, .n_threads = n_threads, .seed = SEED};
    if (moe_ctx_create(&ctx_desc, &s.ctx, &error) != MOE_OK) fail_msg("%s", error.text);
    desc.dtype = dtype;
    made(s.ctx, moe_layer_create(s.ctx, &desc, &s.layer));
    made(s.ctx, moe_layer_reserve(s.layer, T, MOE_TRAIN));
    s.d = desc.d_model;
    s.d_out = moe_layer_get_desc(s.layer)->output_size;
    s.x = numbers(dtype, T * s.d);
    s.dx = numbers(dtype, T * s.d);
    s.y = numbers(dtype, T * s.d_out);
    s.dy = numbers(dtype, T * s.d_out);
    return s;
}

static void close_subject(subject *s) {
    free(s->x);
    free(s->dx);
    free(s->y);
    free(s->dy);
    moe_layer_destroy(s->layer);
    moe_ctx_destroy(s->ctx);
}

static int64_t count_of(const moe_param *param) {
    int64_t n = 1;
    for (int32_t i = 0; i < param->n_dim; ++i) n *= param->dim[i];
    return n;
}

static moe_param param_of(const subject *s, int32_t index) {
    moe_param param = {.size = sizeof param};
    made(s->ctx, moe_layer_param(s->layer, index, &param));
    return param;
}

/* Inputs, and biases that are not zero: both as bf16 has them. */
static void draw(subject *s) {
    moe_random_normal(SEED, MOE_DRAW_TEST, 1, 0, s->dtype, s->x, s->T * s->d, 1);
    moe_random_normal(SEED, MOE_DRAW_TEST, 2, 0, s->dtype, s->dy, s->T * s->d_out, 1);
    for (int32_t i = 0; i < moe_layer_param_count(s->layer); ++i) {
        const moe_param param = param_of(s, i);
        const double std = strstr(param.name, "gate") ? 0.3 : 0.2;
        if (!param.buffer)
            moe_random_normal(SEED, MOE_DRAW_TEST, 3, (uint64_t)i, param.dtype, param.value, count_of(&param),
                              std);
    }
}

static void copy_inputs(const subject *from, subject *to) {
    convert(from->dtype, from->x, to->dtype, to->x, from->T * from->d);
    convert(from->dtype, from->dy, to->dtype, to->dy, from->T * from->d_out);
    for (int32_t i = 0; i < moe_layer_param_count(from->layer); ++i) {
        const moe_param a = param_of(from, i), b = param_of(to, i);
        assert_string_equal(a.name, b.name);
        convert(a.dtype, a.value, b.dtype, b.value, count_of(&a));
    }
}

static void run(subject *s, const moe_call *given) {
    moe_call call = *given;
    call.size = sizeof call;
    call.mode = MOE_TRAIN;
    const moe_mat x = {s->x, s->T, s->d, 0, s->dtype}, dx = {s->dx, s->T, s->d, 0, s->dtype};
    const moe_mat y = {s->y, s->T, s->d_out, 0, s->dtype}, dy = {s->dy, s->T, s->d_out, 0, s->dtype};
    made(s->ctx, moe_layer_forward(s->layer, x, y, &call, NULL));
    made(s->ctx, moe_layer_backward(s->layer, x, dy, dx));
}

static void near(const char *variant, const char *what, double bound, moe_dtype dtype, const void *have,
                 const void *want, int64_t n) {
    double distance = 0, norm = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double a = moei_real_load(dtype, have, i), b = moei_real_load(MOE_F64, want, i);
        distance += (a - b) * (a - b);
        norm += b * b;
    }
    if (!(sqrt(distance) <= bound * sqrt(norm)))
        fail_msg("%s: %s is off by %.3g of its norm %.3g (seed %d)", variant, what, sqrt(distance / norm),
                 sqrt(norm), SEED);
}

typedef struct variant {
    const char *name;
    moe_layer_desc desc; /* over the shape */
} variant;

/* clang-format off */
static const variant variants[] = {
    {"swiglu", {.aux_loss_coeff = 0.1F, .z_loss_coeff = 0.01F}},
    {"gelu", {.activation = "gelu"}},
    {"geglu, its own pass", {.activation = "geglu"}},
    {"swigluoai with biases", {.activation = "swigluoai", .expert_bias = true, .router_bias = true}},
    {"relu with biases", {.activation = "relu", .expert_bias = true}},
    {"shared and gated", {.num_shared_experts = 2, .shared_expert_gate = true}},
    {"latent", {.latent_size = 11, .expert_bias = true}},
    {"output", {.output_size = 9, .output_bias = true}},
    {"capacity", {.capacity_factor = 1, .drop_policy = "position"}},
    {"recompute", {.recompute = "layer"}},
    {"dropout", {.dropout = 0.25F}},
    {"jitter", {.input_jitter_eps = 0.1F}},
    {"sigmoid with bias", {.score_function = "sigmoid", .selection_bias = true, .norm_topk_prob = true}},
    {"f64 router", {.router_dtype = "f64"}},
    {"at the input", {.weight_apply = "input", .top_k = 1, .score_function = "sigmoid"}},
    {"unequal", {.expert_kinds = "13,identity,5,zero,7"}},
    {"sequences", {.routing_unit = "sequence"}},
    {"expert choice", {.router_type = "expert_choice", .capacity_factor = 2}},
    {"noisy", {.router_type = "noisy_top_k", .load_loss_coeff = 0.1F, .importance_loss_coeff = 0.1F}},
};
/* clang-format on */

typedef struct shape {
    int64_t T;
    int32_t d, n, E, K;
} shape;

static moe_layer_desc desc_of(const variant *v, const shape *s) {
    moe_layer_desc desc = v->desc;
    desc.size = sizeof desc;
    desc.d_model = s->d;
    desc.num_experts = s->E;
    if (!desc.top_k) desc.top_k = s->K;
    desc.expert_hidden_size = s->n;
    return desc;
}

static void compare(const variant *v, const shape *size) {
    const moe_layer_desc desc = desc_of(v, size);
    const moe_call call = {.step = 3, .sequence_length = SEQUENCE};
    const double bound = bound_of(&desc, size->T);
    subject have = open_subject(&desc, MOE_BF16, size->T, 2), want = open_subject(&desc, MOE_F64, size->T, 1);
    draw(&have);
    copy_inputs(&have, &want);
    run(&have, &call);
    run(&want, &call);
    near(v->name, "y", bound, MOE_BF16, have.y, want.y, have.T * have.d_out);
    near(v->name, "dx", bound, MOE_BF16, have.dx, want.dx, have.T * have.d);
    for (int32_t i = 0; i < moe_layer_param_count(have.layer); ++i) {
        const moe_param a = param_of(&have, i), b = param_of(&want, i);
        if (!a.buffer) assert_int_equal(a.dtype, MOE_BF16);
        assert_int_equal(a.grad_dtype, MOE_F32);
        assert_int_equal(b.grad_dtype, MOE_F64);
        if (b.grad) near(v->name, a.name, bound, a.grad_dtype, a.grad, b.grad, count_of(&a));
    }
    close_subject(&have);
    close_subject(&want);
}

static void test_against_f64(void **state) {
    (void)state;
    static const shape shapes[] = {
        {39,  24, 16, 5, 2},
        {6,   7,  3,  5, 2},
        {129, 33, 65, 5, 3},
    };
    for (size_t i = 0; i < sizeof variants / sizeof *variants; ++i)
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; ++j) compare(&variants[i], &shapes[j]);
}

/* Every byte, whatever the number of threads. */
static void test_threads(void **state) {
    (void)state;
    static const shape size = {66, 40, 24, 5, 2};
    for (size_t i = 0; i < sizeof variants / sizeof *variants; ++i) {
        const moe_layer_desc desc = desc_of(&variants[i], &size);
        const moe_call call = {.step = 3, .sequence_length = SEQUENCE};
        subject one = open_subject(&desc, MOE_BF16, size.T, 1);
        draw(&one);
        run(&one, &call);
        for (int32_t threads = 2; threads <= 5; threads += threads == 3 ? 2 : 1) {
            subject many = open_subject(&desc, MOE_BF16, size.T, threads);
            draw(&many);
            run(&many, &call);
            assert_memory_equal(one.y, many.y, (size_t)(one.T * one.d_out) * 2);
            assert_memory_equal(one.dx, many.dx, (size_t)(one.T * one.d) * 2);
            for (int32_t p = 0; p < moe_layer_param_count(one.layer); ++p) {
                const moe_param a = param_of(&one, p), b = param_of(&many, p);
                if (a.grad) assert_memory_equal(a.grad, b.grad, (size_t)count_of(&a) * 4);
            }
            close_subject(&many);
        }
        close_subject(&one);
    }
}

/* Weights and Z take half of what they take in f32, and gradients as much. */
static void test_memory(void **state) {
    (void)state;
    bench_problem p;
    moe_error error;
    assert_int_equal(bench_problem_parse("e8,t512,d256,n128,k2", &p, &error), MOE_OK);
    const moe_layer_desc desc = bench_problem_layer(&p);
    subject narrow = open_subject(&desc, MOE_BF16, p.n_tokens, 1),
            wide = open_subject(&desc, MOE_F32, p.n_tokens, 1);
    moe_layer_bytes a = {.size = sizeof a}, b = {.size = sizeof b};
    assert_int_equal(moe_layer_measure(narrow.layer, p.n_tokens, MOE_TRAIN, &a), MOE_OK);
    assert_int_equal(moe_layer_measure(wide.layer, p.n_tokens, MOE_TRAIN, &b), MOE_OK);
    const size_t z = (size_t)(p.n_tokens * p.top_k * 2 * p.hidden); /* numbers */
    assert_int_equal(2 * a.params, b.params);
    assert_int_equal(a.grads, b.grads);
    assert_int_equal(b.saved - a.saved, 2 * z);
    /* with the caller's x, 2Td + 4TKn and 12 bytes a routed row; besides, what the router's gradient needs
     * (prob and lse), counts of experts, and the ends of cache lines */
    const size_t rows = (size_t)(p.n_tokens * p.top_k), E = (size_t)p.n_experts;
    const size_t router = 4 * (size_t)p.n_tokens * (E + 1), rest = 4 * 8 * E + 16 * 64;
    if (a.saved > 2 * z + 12 * rows + router + rest)
        fail_msg("%zu bytes are kept beside Z, %zu a routed row", a.saved - 2 * z,
                 (a.saved - 2 * z - router) / rows);
    close_subject(&narrow);
    close_subject(&wide);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_f64),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
