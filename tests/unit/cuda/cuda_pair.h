/* cuda_pair.h: one layer in two places, on a GPU and in f64 on the CPU, with the same numbers in each.
 * x[T,d], dy[T,d_out] drawn and rounded to the GPU's dtype; outputs poisoned; parameters drawn, so that no
 * bias is zero. Distances are norm(difference) / norm(f64). Source: moekit/cuda.h.
 */
#ifndef CUDA_PAIR_H
#define CUDA_PAIR_H

#include "unit/cuda/cuda_fixture.h"

#include "core/real.h"

typedef struct cuda_problem {
    const char *name, *settings;
    int64_t tokens;
    bool masked, on_device;   /* on_device: the device's kernels are to route it */
    bool none_real;           /* what is masked is every token, else one in five */
    bool eight_bits;          /* Z is saved in 8 bits */
    bool replayed, reweighed; /* choices are given; their weights too */
    int64_t sequence;
} cuda_problem;

static inline double *cuda_widened(moe_dtype dtype, const void *from, int64_t n) {
    double *value = malloc((size_t)(n + 1) * sizeof *value);
    assert_non_null(value);
    for (int64_t i = 0; i < n; ++i) value[i] = moei_real_load(dtype, from, i);
    return value;
}

/* N(0, std^2), rounded to `dtype`. */
static inline void *cuda_drawn(moe_dtype dtype, uint32_t purpose, int64_t n, double std) {
    float *exact = malloc((size_t)(n + 1) * sizeof *exact);
    void *rounded = malloc((size_t)(n + 1) * moe_dtype_bytes(dtype));
    assert_true(exact && rounded);
    moe_random_normal(test_seed(), MOE_DRAW_TEST, purpose, 0, MOE_F32, exact, n, std);
    for (int64_t i = 0; i < n; ++i) moei_real_store(dtype, rounded, i, (double)exact[i]);
    free(exact);
    return rounded;
}

static inline int64_t cuda_numbers(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

/* Device memory as doubles on the host. */
static inline double *cuda_fetched(moe_ctx *ctx, moe_dtype dtype, const void *device, int64_t n) {
    const size_t bytes = (size_t)n * moe_dtype_bytes(dtype);
    void *host = malloc(bytes + 1);
    assert_non_null(host);
    must(ctx, moe_memory_copy(ctx, host, device, bytes));
    double *value = cuda_widened(dtype, host, n);
    free(host);
    return value;
}

static inline void cuda_close_to(const char *what, const cuda_problem *p, const double *got,
                                 const double *wanted, int64_t n, double bound) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (isnan(got[i]))
            fail_msg("%s, %s: number %lld is NaN (seed %llu)", p->name, what, (long long)i,
                     (unsigned long long)test_seed());
        difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
        size += wanted[i] * wanted[i];
    }
    const double relative = sqrt(difference) / (sqrt(size) + 1e-30);
    if (size > 0 ? relative > bound : difference > 0)
        fail_msg("%s, %s: off by %.3g, bound %.3g (seed %llu)", p->name, what, relative, bound,
                 (unsigned long long)test_seed());
}

/* One layer in both places, the same numbers in each. */
typedef struct cuda_pair {
    moe_ctx *cpu, *gpu;
    moe_layer *exact, *layer;
    moe_dtype dtype;
    void *x, *dy; /* host */
    double *x64, *dy64;
    void *d_x, *d_y, *d_dy, *d_dx, *d_mask;
    uint8_t *mask;
    /* Choices and weights for a replay, of the CPU's router and of the GPU's. */
    int32_t *choice, *d_choice;
    double *weight;
    float *d_weight;
    int64_t d, n_in, n_out;
} cuda_pair;

static inline void cuda_copy_params(const cuda_pair *p) {
    for (int32_t i = 0; i < moe_layer_param_count(p->layer); ++i) {
        moe_param ours = {.size = sizeof ours}, theirs = {.size = sizeof theirs};
        must(p->gpu, moe_layer_param(p->layer, i, &ours));
        must(p->cpu, moe_layer_param(p->exact, i, &theirs));
        assert_string_equal(ours.name, theirs.name);
        const int64_t n = cuda_numbers(&ours);
        void *value = cuda_drawn(ours.dtype, 100 + (uint32_t)i, n,
                                 ours.buffer      ? 0.05
                                 : ours.n_dim > 1 ? 0.4
                                                  : 0.1);
        must(p->gpu, moe_memory_copy(p->gpu, ours.value, value, (size_t)n * moe_dtype_bytes(ours.dtype)));
        for (int64_t j = 0; j < n; ++j) ((double *)theirs.value)[j] = moei_real_load(ours.dtype, value, j);
        free(value);
    }
}

static inline moe_layer_desc cuda_described(const cuda_problem *p) {
    moe_layer_desc desc = {
        .size = sizeof desc, .d_model = 24, .num_experts = 8, .top_k = 2, .expert_hidden_size = 20};
    static char text[400]; /* names of kinds point into it */
    char *rest = text;
    snprintf(text, sizeof text, "%s", p->settings);
    for (char *key; (key = strtok_r(rest, " ", &rest)) != NULL;) {
        char *value = strchr(key, '=');
        moe_error error = {0};
        assert_non_null(value);
        *value++ = 0;
        if (moe_layer_desc_set(&desc, key, value, &error) != MOE_OK) fail_msg("%s: %s", p->name, error.text);
    }
    return desc;
}

/* Choices that no router made: some slots have none. */
static inline void cuda_draw_choices(cuda_pair *both, int64_t tokens, int32_t n_experts, int32_t top_k) {
    const size_t slots = (size_t)tokens * (size_t)top_k;
    float *narrow = malloc((slots + 1) * sizeof *narrow);
    both->choice = malloc((slots + 1) * sizeof *both->choice);
    both->weight = malloc((slots + 1) * sizeof *both->weight);
    assert_true(narrow && both->choice && both->weight);
    for (int64_t t = 0; t < tokens; ++t)
        for (int32_t k = 0; k < top_k; ++k) {
            const int64_t slot = t * top_k + k;
            both->choice[slot] = t % 7 == 3 && k == top_k - 1 ? -1 : (int32_t)((5 * t + k) % n_experts);
            both->weight[slot] = narrow[slot] = (float)(1 + (3 * t + k) % 5) / 8;
        }
    both->d_choice = cuda_upload(both->gpu, both->choice, slots * sizeof *both->choice);
    both->d_weight = cuda_upload(both->gpu, narrow, slots * sizeof *narrow);
    free(narrow);
}

static inline cuda_pair cuda_pair_open(moe_ctx *gpu, const cuda_problem *p, moe_dtype dtype) {
    cuda_pair both = {.gpu = gpu, .cpu = test_ctx("ref", 1), .dtype = dtype};
    moe_layer_desc desc = cuda_described(p);
    const int32_t d_out = desc.output_size ? desc.output_size : desc.d_model;
    const size_t real = moe_dtype_bytes(dtype);
    both.d = desc.d_model;
    desc.dtype = MOE_F64;
    must(both.cpu, moe_layer_create(both.cpu, &desc, &both.exact));
    must(both.cpu, moe_layer_reserve(both.exact, p->tokens, MOE_TRAIN));
    desc.dtype = dtype;
    must(gpu, moe_layer_create(gpu, &desc, &both.layer));
    must(gpu, moe_layer_reserve(both.layer, p->tokens, MOE_TRAIN));
    cuda_copy_params(&both);
    both.n_in = p->tokens * desc.d_model;
    both.n_out = p->tokens * d_out;
    both.x = cuda_drawn(dtype, 1, both.n_in, 1);
    both.dy = cuda_drawn(dtype, 2, both.n_out, 1);
    both.x64 = cuda_widened(dtype, both.x, both.n_in);
    both.dy64 = cuda_widened(dtype, both.dy, both.n_out);
    both.d_x = cuda_upload(gpu, both.x, (size_t)both.n_in * real);
    both.d_dy = cuda_upload(gpu, both.dy, (size_t)both.n_out * real);
    void *poison = test_output(dtype, p->tokens, desc.d_model > d_out ? desc.d_model : d_out).data;
    both.d_y = cuda_upload(gpu, poison, (size_t)both.n_out * real);
    both.d_dx = cuda_upload(gpu, poison, (size_t)both.n_in * real);
    free(poison);
    both.mask = malloc((size_t)p->tokens + 1);
    assert_non_null(both.mask);
    for (int64_t t = 0; t < p->tokens; ++t) both.mask[t] = !p->none_real && t % 5 != 2;
    both.d_mask = cuda_upload(gpu, both.mask, (size_t)p->tokens);
    if (p->replayed) cuda_draw_choices(&both, p->tokens, desc.num_experts, desc.top_k);
    return both;
}

static inline void cuda_pair_close(cuda_pair *both) {
    void *device[] = {both->d_x,    both->d_y,      both->d_dy,    both->d_dx,
                      both->d_mask, both->d_choice, both->d_weight};
    for (size_t i = 0; i < sizeof device / sizeof *device; ++i) moe_memory_free(both->gpu, device[i], 1);
    moe_layer_destroy(both->layer);
    moe_layer_destroy(both->exact);
    moe_ctx_destroy(both->cpu);
    free(both->x), free(both->dy), free(both->x64), free(both->dy64), free(both->mask);
    free(both->choice), free(both->weight);
}

#endif
