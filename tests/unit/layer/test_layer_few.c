/* test_layer_few.c: which calls of a layer do without a plan where the context has kernels for few tokens,
 * which here is only told of them: each limit from both sides, and every part of a layer that they do not
 * have. A layer that promises what its kernels refuse has its rows counted twice. Source: moei_few_takes.
 */
#include "support/layer_fixture.h"

#include "kernel/kernel.h"
#include "layer/layer.h"

/* Beyond d_model 64, num_experts 8, top_k 4, expert_hidden_size 40, dtype bf16. */
typedef struct few_call {
    int64_t tokens;
    bool taken;
    moe_layer_desc desc;
    const char *format; /* of packed weights; NULL: plain ones */
    moe_mode mode;
    int64_t shift, pad; /* numbers, of where x begins and of its stride */
} few_call;

/* clang-format off */
static const few_call calls[] = {
    {.tokens = 1,   .taken = true},
    {.tokens = 0,   .taken = false},
    {.tokens = 96,  .taken = true}, /* 48 rows of an expert on average */
    {.tokens = 97,  .taken = false},
    {.tokens = 64,  .taken = true,  .desc = {.top_k = 8}},
    {.tokens = 65,  .taken = false, .desc = {.top_k = 8}},
    {.tokens = 128, .taken = true,  .desc = {.num_experts = 16}},
    {.tokens = 129, .taken = false, .desc = {.num_experts = 16, .top_k = 1}},
    {.tokens = 64,  .taken = true,  .desc = {.num_experts = 64, .top_k = 32}},
    {.tokens = 65,  .taken = false, .desc = {.num_experts = 64, .top_k = 32}},
    {.tokens = 3,   .taken = true,  .desc = {.num_experts = 1024, .d_model = 8, .expert_hidden_size = 8}},
    {.tokens = 3,   .taken = false, .desc = {.num_experts = 1025, .d_model = 8, .expert_hidden_size = 8}},
    {.tokens = 16,  .taken = true,  .format = "int4"},
    {.tokens = 17,  .taken = false, .format = "int4"},
    {.tokens = 8,   .taken = true,  .format = "int8", .desc = {.num_experts = 64, .top_k = 32}},
    {.tokens = 9,   .taken = false, .format = "int8", .desc = {.num_experts = 64, .top_k = 32}},
    {.tokens = 5,   .taken = true,  .desc = {.d_model = 72}},
    {.tokens = 5,   .taken = false, .desc = {.d_model = 68}},
    {.tokens = 5,   .taken = true,  .desc = {.expert_hidden_size = 48}},
    {.tokens = 5,   .taken = false, .desc = {.expert_hidden_size = 36}},
    {.tokens = 5,   .taken = true,  .pad = 8},
    {.tokens = 5,   .taken = false, .pad = 4},
    {.tokens = 5,   .taken = true,  .pad = 8, .shift = 8},
    {.tokens = 5,   .taken = false, .pad = 8, .shift = 1},
    {.tokens = 5,   .taken = true,  .desc = {.num_shared_experts = 1}},
    {.tokens = 5,   .taken = false, .desc = {.expert_bias = true}},
    {.tokens = 5,   .taken = false, .desc = {.latent_size = 16}},
    {.tokens = 5,   .taken = false, .desc = {.output_size = 24}},
    {.tokens = 5,   .taken = false, .desc = {.capacity_factor = 1}},
    {.tokens = 5,   .taken = true,  .desc = {.capacity_factor = 1, .capacity_factor_eval = MOE_ZERO}},
    {.tokens = 5,   .taken = false, .desc = {.expert_kinds = "8xidentity"}},
    {.tokens = 5,   .taken = true,  .desc = {.top_k = 1}},
    {.tokens = 5,   .taken = false, .desc = {.top_k = 1, .weight_apply = "input"}},
    {.tokens = 5,   .taken = false, .mode = MOE_TRAIN},
};
/* clang-format on */

static bool never(const moei_team *team, const moei_few_args *args) {
    (void)team, (void)args;
    return false;
}

static moe_layer *make(moe_ctx *ctx, const few_call *c) {
    const moe_quant_desc packed = {.size = sizeof packed, .format = c->format};
    moe_layer_desc desc = c->desc;
    moe_layer *layer = NULL;
    desc.size = sizeof desc;
    desc.dtype = MOE_BF16;
    if (!desc.d_model) desc.d_model = 64;
    if (!desc.num_experts) desc.num_experts = 8;
    if (!desc.top_k) desc.top_k = 4;
    if (!desc.expert_hidden_size) desc.expert_hidden_size = 40;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, c->tokens, c->mode));
    if (c->format) must(ctx, moe_layer_quantize(layer, &packed));
    return layer;
}

static bool is_taken(moe_ctx *ctx, const few_call *c) {
    moe_layer *layer = make(ctx, c);
    const moe_layer_desc *d = moe_layer_get_desc(layer);
    const moe_call call = {.size = sizeof call, .mode = c->mode};
    const moe_mat drawn = test_random(d->dtype, c->tokens + 1, d->d_model + c->pad, 1);
    const moe_mat y = test_output(d->dtype, c->tokens, d->output_size ? d->output_size : d->d_model);
    moe_mat x = {drawn.data, c->tokens, d->d_model, drawn.stride, d->dtype};
    x.data = (char *)x.data + (size_t)c->shift * moe_dtype_bytes(d->dtype);
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL)); /* from which the layer has its batch */
    const moei_scratch s = moei_layer_scratch(layer);
    const bool taken = moei_layer_takes_few(layer, &s);
    moe_layer_destroy(layer);
    free(drawn.data), free(y.data);
    return taken;
}

static void test_limits(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    const moei_kernels *const own = ctx->kernels[MOE_BF16];
    moei_kernels told = *own;
    told.few = never;
    ctx->kernels[MOE_BF16] = &told;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; ++i)
        if (is_taken(ctx, &calls[i]) != calls[i].taken)
            fail_msg("call %zu, of %lld tokens: not %s", i, (long long)calls[i].tokens,
                     calls[i].taken ? "taken" : "left to the others");
    ctx->kernels[MOE_BF16] = own;
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
