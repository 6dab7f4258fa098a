/* layer_fixture.h: what the layer tests share: a context, a layer, random tokens, one call.
 * The seed of every draw is printed when a test fails (MOEKIT_TEST_SEED repeats it).
 */
#ifndef MOEKIT_TEST_LAYER_FIXTURE_H
#define MOEKIT_TEST_LAYER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <moekit/expert.h>
#include <moekit/moe.h>
#include <moekit/op.h>
#include <moekit/option.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline uint64_t test_seed(void) {
    static uint64_t seed;
    if (seed) return seed;
    const char *text = getenv("MOEKIT_TEST_SEED");
    seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    fprintf(stderr, "MOEKIT_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* How many names a list has that ends with NULL. */
static inline size_t test_names(const char *const *list) {
    size_t n = 0;
    while (list[n]) ++n;
    return n;
}

static inline moe_ctx *test_ctx(const char *isa, int32_t n_threads) {
    moe_ctx_desc desc = {.size = sizeof desc, .isa = isa, .n_threads = n_threads, .seed = test_seed()};
    moe_ctx *ctx = NULL;
    moe_error error = {0};
    if (moe_ctx_create(&desc, &ctx, &error) != MOE_OK) fail_msg("context: %s", error.text);
    return ctx;
}

/* The instruction sets of CPUs: the first four have kernels of f32 of their own, the others of bf16 alone. */
enum { TEST_ISAS_F32 = 4, TEST_ISAS = 6 };
static const char *const test_isas[TEST_ISAS] = {"ref", "avx2", "avx512", "neon", "avx512bf16", "amx"};

/* NULL where the machine lacks the instruction set: the caller says so by name. */
static inline moe_ctx *test_ctx_if_supported(const char *isa) {
    moe_ctx_desc desc = {.size = sizeof desc, .isa = isa, .n_threads = 1, .seed = test_seed()};
    moe_ctx *ctx = NULL;
    moe_error error = {0};
    if (moe_ctx_create(&desc, &ctx, &error) == MOE_OK) return ctx;
    assert_int_equal(error.status, MOE_ERR_UNSUPPORTED);
    fprintf(stderr, "not run here: isa %s (%s)\n", isa, error.text);
    return NULL;
}

#define must(ctx, call)                                                                                      \
    do {                                                                                                     \
        if ((call) != MOE_OK) fail_msg("%s: %s", #call, moe_ctx_error(ctx));                                 \
    } while (0)

/* `text` is where the failure just met was told. */
static inline void test_told(moe_status status, const char *text, const char *expected) {
    assert_int_equal(status, MOE_ERR_ARGUMENT);
    if (!strstr(text, expected)) fail_msg("'%s' does not say '%s'", text, expected);
}

/* A call that has nobody to tell, or whose text matters less: the status says it. */
#define test_refused(call)                                                                                   \
    do {                                                                                                     \
        const moe_status refused_status = (call);                                                            \
        if (refused_status != MOE_ERR_ARGUMENT) fail_msg("%s: %s", #call, moe_status_name(refused_status));  \
    } while (0)

/* [rows, cols] of N(0,1), a stream of its own for each `purpose`. Freed by the caller. */
static inline moe_mat test_random(moe_dtype dtype, int64_t rows, int64_t cols, uint32_t purpose) {
    moe_mat mat = {NULL, rows, cols, cols, dtype};
    mat.data = malloc((size_t)(rows * cols + 1) * moe_dtype_bytes(dtype));
    assert_non_null(mat.data);
    moe_random_normal(test_seed(), MOE_DRAW_TEST, purpose, 0, dtype, mat.data, rows * cols, 1.0);
    return mat;
}

/* Poisoned, so that a number nobody wrote is seen. */
static inline moe_mat test_output(moe_dtype dtype, int64_t rows, int64_t cols) {
    moe_mat mat = {NULL, rows, cols, cols, dtype};
    size_t bytes = (size_t)(rows * cols + 1) * moe_dtype_bytes(dtype);
    mat.data = malloc(bytes);
    assert_non_null(mat.data);
    memset(mat.data, 0xff, bytes); /* NaN */
    return mat;
}

static inline double test_at(moe_mat mat, int64_t row, int64_t col) {
    int64_t i = row * mat.stride + col;
    return mat.dtype == MOE_F64 ? ((const double *)mat.data)[i] : (double)((const float *)mat.data)[i];
}

static inline size_t test_bytes(moe_mat mat) {
    return (size_t)(mat.rows * mat.cols) * moe_dtype_bytes(mat.dtype);
}

/* A layer reserved for training; its gate is widened so that routing is decided, not a tie. */
static inline moe_layer *test_layer(moe_ctx *ctx, const moe_layer_desc *desc, int64_t max_tokens) {
    moe_layer *layer = NULL;
    moe_layer_desc wide = *desc;
    if (wide.init_std == 0) wide.init_std = 0.3f;
    must(ctx, moe_layer_create(ctx, &wide, &layer));
    must(ctx, moe_layer_reserve(layer, max_tokens, MOE_TRAIN));
    return layer;
}

static inline moe_layer_bytes test_measure(moe_ctx *ctx, const moe_layer *layer, int64_t max_tokens) {
    moe_layer_bytes bytes = {.size = sizeof bytes};
    must(ctx, moe_layer_measure(layer, max_tokens, MOE_TRAIN, &bytes));
    return bytes;
}

/* To the bit; field by field, as between fields anything may stand. */
static inline bool test_same_stats(const moe_stats *a, const moe_stats *b) {
    const int64_t count[][2] = {
        {a->n_tokens,  b->n_tokens },
        {a->n_routed,  b->n_routed },
        {a->n_kept,    b->n_kept   },
        {a->n_dropped, b->n_dropped},
        {a->n_dead,    b->n_dead   }
    };
    const double real[][2] = {
        {a->loss,              b->loss             },
        {a->aux_loss,          b->aux_loss         },
        {a->z_loss,            b->z_loss           },
        {a->seq_aux_loss,      b->seq_aux_loss     },
        {a->global_aux_loss,   b->global_aux_loss  },
        {a->gshard_loss,       b->gshard_loss      },
        {a->second_place_loss, b->second_place_loss},
        {a->importance_loss,   b->importance_loss  },
        {a->load_loss,         b->load_loss        },
        {a->entropy_loss,      b->entropy_loss     },
        {a->load_cv,           b->load_cv          },
        {a->load_max,          b->load_max         },
        {a->load_entropy,      b->load_entropy     },
        {a->router_entropy,    b->router_entropy   }
    };
    bool same = true;
    for (size_t i = 0; i < sizeof count / sizeof *count; ++i) same = same && count[i][0] == count[i][1];
    for (size_t i = 0; i < sizeof real / sizeof *real; ++i)
        same = same && memcmp(&real[i][0], &real[i][1], sizeof(double)) == 0;
    return same;
}

/* Biases as they may be after training, none of them zero: N(0, std^2). */
static inline void test_fill_biases(moe_ctx *ctx, moe_layer *layer, double std) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (strstr(param.name, "bias"))
            moe_random_normal(test_seed(), MOE_DRAW_TEST, 90, (uint64_t)i, param.dtype, param.value,
                              param.dim[0] * param.dim[1] * param.dim[2], std);
    }
}

static const moe_call test_train_call = {.size = sizeof(moe_call), .mode = MOE_TRAIN, .step = 7};

#endif
