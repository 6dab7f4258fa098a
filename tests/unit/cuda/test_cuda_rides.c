/* test_cuda_rides.c: when the router's part of dx[T,d] rides on the experts' rows in Hopper's backward (it
 * takes softmax over the chosen, no losses, no capacity), and when it is not prepared for that: kernels are
 * counted as the layer calls them. Source: docs/kernels-cuda-log.md, 127.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/ctx.h"
#include "kernel/kernel.h"

enum { T = 203, D = 40 };

static struct {
    moei_kernels table; /* what the context has in bf16, but for those below */
    moei_gemm_rows_plus_fn *gemm_rows_plus;
    moei_gate_grad_fn *gate_grad;
    moei_gate_grad_part_fn *gate_grad_sum;
    int rides, centred, sums_of_rows, sums;
} met;

static bool count_rows_plus(const moei_team *team, const moe_gemm_rows_args *args,
                            const moei_rows_plus *plus) {
    const bool taken = met.gemm_rows_plus(team, args, plus);
    met.rides += taken;
    return taken;
}

static void count_gate_grad(const moei_team *team, const moei_gate_grad_args *args,
                            moe_gemm_outer_args *product) {
    met.centred += args->vector != NULL;
    met.gate_grad(team, args, product);
}

static void count_sum(const moei_team *team, const moei_gate_grad_args *args) {
    met.sums_of_rows += args->in_rows;
    met.sums += 1;
    met.gate_grad_sum(team, args);
}

static void count_kernels_of(moe_ctx *ctx) {
    met.table = *ctx->kernels[MOE_BF16];
    met.gemm_rows_plus = met.table.gemm_rows_plus;
    met.gate_grad = met.table.gate_grad;
    met.gate_grad_sum = met.table.gate_grad_sum;
    met.table.gemm_rows_plus = count_rows_plus;
    met.table.gate_grad = count_gate_grad;
    met.table.gate_grad_sum = count_sum;
    ctx->kernels[MOE_BF16] = &met.table;
}

typedef struct variant {
    const char *name;
    moe_layer_desc desc;
    bool rides;
} variant;

static const variant variants[] = {
    {"plain",                {.top_k = 2},                          .rides = true },
    {"a shared expert",      {.top_k = 2, .num_shared_experts = 1}, .rides = true },
    {"losses",               {.top_k = 2, .aux_loss_coeff = 0.1F},  .rides = false},
    {"capacity",             {.top_k = 2, .capacity_factor = 1.1F}, .rides = false},
    {"latent experts",       {.top_k = 2, .latent_size = 24},       .rides = false},
    {"weights at the input", {.top_k = 1, .weight_apply = "input"}, .rides = false},
};

static void step(moe_ctx *ctx, const variant *v) {
    moe_layer *layer = NULL;
    moe_layer_desc desc = v->desc;
    moe_mat mat[4];
    desc.size = sizeof desc;
    desc.dtype = MOE_BF16;
    desc.d_model = D;
    desc.num_experts = 8;
    desc.expert_hidden_size = 24;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    for (uint32_t i = 0; i < 4; ++i) {
        mat[i] = i < 2 ? test_random(MOE_BF16, T, D, i) : test_output(MOE_BF16, T, D);
        mat[i].data = uploaded(ctx, mat[i]);
    }
    must(ctx, moe_layer_forward(layer, mat[0], mat[2], &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, mat[0], mat[1], mat[3]));
    must(ctx, moe_ctx_wait(ctx));
    for (int i = 0; i < 4; ++i) moe_memory_free(ctx, mat[i].data, test_bytes(mat[i]));
    moe_layer_destroy(layer);
}

static void the_router_s_part_rides_where_it_can(void **state) {
    (void)state;
    moe_ctx *ctx = cuda_ctx("sm90");
    if (!ctx) skip();
    count_kernels_of(ctx);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; ++i) {
        met.rides = met.centred = met.sums_of_rows = met.sums = 0;
        step(ctx, &variants[i]);
        const int rides = variants[i].rides;
        if (met.sums != 1 || met.rides != rides || met.centred != rides || met.sums_of_rows != rides)
            fail_msg("%s: %d sums, %d of rows that have the part, %d rides, the gate centred %d times",
                     variants[i].name, met.sums, met.sums_of_rows, met.rides, met.centred);
    }
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_router_s_part_rides_where_it_can)};
    if (!cuda_is_here()) return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
