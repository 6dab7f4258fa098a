/* 01_layer.c: a Mixture-of-Experts layer of 8 experts, 2 a token, run once on random tokens. */
#include <moekit/moe.h>
#include <moekit/op.h>
#include <stdio.h>

int main(void) {
    enum { T = 100, D = 64 };
    static float x[T * D], y[T * D];
    moe_error error;
    moe_ctx *ctx = NULL;
    if (moe_ctx_create(NULL, &ctx, &error) != MOE_OK) return fprintf(stderr, "%s\n", error.text), 1;

    moe_layer_desc desc = {
        .size = sizeof desc, .d_model = D, .num_experts = 8, .top_k = 2, .expert_hidden_size = 128};
    moe_layer *layer = NULL;
    moe_stats stats = {.size = sizeof stats};
    moe_random_normal(1, MOE_DRAW_TEST, 0, 0, MOE_F32, x, T * D, 1.0);
    moe_mat in = {.data = x, .rows = T, .cols = D}, out = {.data = y, .rows = T, .cols = D};
    if (moe_layer_create(ctx, &desc, &layer) != MOE_OK || moe_layer_reserve(layer, T, MOE_INFER) != MOE_OK ||
        moe_layer_forward(layer, in, out, NULL, &stats) != MOE_OK)
        return fprintf(stderr, "%s\n", moe_ctx_error(ctx)), 1;
    printf("%lld tokens in %lld rows; busiest expert %.2f x mean\n", (long long)stats.n_tokens,
           (long long)stats.n_kept, stats.load_max);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}
