/* test_cuda_calls.c: calls of a layer on a GPU that are told apart by what they ask: few tokens, inferred
 * without a plan until somebody asks for it; a bad logit or replay, told late; the same bits from run to run;
 * which kernels a context has. Skipped by name where there is no GPU, no CUDA or no Hopper. Source:
 * moekit/cuda.h.
 */
#include "unit/cuda/cuda_pair.h"

/* y of inference, and the view of its routing, whose plan few tokens do without until somebody asks: after
 * the call, when its mask may be gone. */
static void infer(moe_ctx *gpu, const cuda_problem *p, moe_dtype dtype) {
    cuda_pair both = cuda_pair_open(gpu, p, dtype);
    const int64_t T = p->tokens, d = both.d;
    moe_call call = {.size = sizeof call};
    moe_routing_view got = {.size = sizeof got}, wanted = {.size = sizeof wanted};
    double *y = malloc((size_t)both.n_out * sizeof *y);
    assert_non_null(y);
    const moe_mat x64 = {both.x64, T, d, 0, MOE_F64}, x = {both.d_x, T, d, 0, dtype};
    if (p->masked) call.token_mask = both.mask;
    must(both.cpu, moe_layer_forward(both.exact, x64, (moe_mat){y, T, d, 0, MOE_F64}, &call, NULL));
    if (p->masked) call.token_mask = both.d_mask;
    must(gpu, moe_layer_forward(both.layer, x, (moe_mat){both.d_y, T, d, 0, dtype}, &call, NULL));
    double *y_got = cuda_fetched(gpu, dtype, both.d_y, both.n_out);
    cuda_close_to("y", p, y_got, y, both.n_out, dtype == MOE_F32 ? 1e-5 : 1e-2);
    must(both.cpu, moe_layer_routing(both.exact, &wanted));
    moe_memory_free(gpu, both.d_mask, 1);
    both.d_mask = NULL;
    for (int asked = 0; asked < 2; ++asked) must(gpu, moe_layer_routing(both.layer, &got));
    const size_t slots = (size_t)(T * wanted.top_k), E = (size_t)wanted.n_experts;
    int32_t *row_of = malloc(slots * sizeof *row_of);
    int64_t *kept = malloc(E * sizeof *kept);
    assert_true(row_of && kept);
    must(gpu, moe_memory_copy(gpu, row_of, got.row_of, slots * sizeof *row_of));
    must(gpu, moe_memory_copy(gpu, kept, got.kept, E * sizeof *kept));
    assert_memory_equal(row_of, wanted.row_of, slots * sizeof *row_of);
    assert_memory_equal(kept, wanted.kept, E * sizeof *kept);
    free(y), free(y_got), free(row_of), free(kept);
    cuda_pair_close(&both);
}

static void few_tokens_are_inferred(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    static const char *const settings[] = {
        "d_model=320 num_experts=64 top_k=6 expert_hidden_size=72",
        "d_model=136 num_experts=11 top_k=4 expert_hidden_size=264 activation=gelu num_shared_experts=1",
        "d_model=64 num_experts=5 top_k=2 expert_hidden_size=48 output_bias=true activation=relu",
        "d_model=64 num_experts=9 top_k=2 expert_hidden_size=48 expert_bias=true",
        "d_model=64 num_experts=9 top_k=3 expert_hidden_size=48 score_function=sigmoid",
        "d_model=64 num_experts=5 top_k=2 expert_hidden_size=48 activation=swigluoai activation_limit=0.8",
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; ++i)
        for (int64_t tokens = 1; tokens < 40; tokens = tokens < 5 ? tokens + 1 : 2 * tokens + 3) {
            cuda_problem p = {
                .name = settings[i], .settings = settings[i], .tokens = tokens, .masked = tokens % 5 == 3};
            infer(gpu, &p, cuda_is_hopper(gpu) ? MOE_BF16 : MOE_F32);
            if (tokens > 2) continue;
            p.masked = p.none_real = true; /* no expert is chosen */
            infer(gpu, &p, cuda_is_hopper(gpu) ? MOE_BF16 : MOE_F32);
        }
    moe_ctx_destroy(gpu);
}

/* A forward of which the device reports something. The first call that sees it tells it, forward itself where
 * the device was quick: before the first token was there, perhaps, which the next call then tells. */
static void expect_told(const cuda_pair *both, moe_mat x, moe_mat y, const moe_call *call, moe_status wanted,
                        const char *text) {
    int named = 0;
    for (int i = 0; i < 2; ++i) {
        const moe_status status =
            i == 0 ? moe_layer_forward(both->layer, x, y, call, NULL) : moe_ctx_wait(both->gpu);
        if (status == MOE_OK) continue;
        assert_int_equal(status, wanted);
        named += strstr(moe_ctx_error(both->gpu), text) != NULL;
    }
    assert_int_equal(named, 1);
    must(both->gpu, moe_ctx_wait(both->gpu));
}

static void a_bad_logit_is_told(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    const moe_dtype dtype = cuda_is_hopper(gpu) ? MOE_BF16 : MOE_F32;
    const cuda_problem p = {
        .name = "a bad logit", .settings = "aux_loss_coeff=0.3 z_loss_coeff=0.2", .tokens = 37};
    cuda_pair both = cuda_pair_open(gpu, &p, dtype);
    for (int64_t t = 5; t < p.tokens; t += 4) moei_real_store(dtype, both.x, t * both.d + 3, (double)NAN);
    must(gpu, moe_memory_copy(gpu, both.d_x, both.x, (size_t)both.n_in * moe_dtype_bytes(dtype)));
    const moe_mat x = {both.d_x, p.tokens, both.d, 0, dtype}, y = {both.d_y, p.tokens, both.d, 0, dtype};
    expect_told(&both, x, y, &test_train_call, MOE_ERR_NUMERIC, "token 5 has");
    cuda_pair_close(&both);
    moe_ctx_destroy(gpu);
}

/* Token 5 names an expert that is not there, token 9 one twice: both are left out. */
static void a_wrong_replay_is_told(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    const moe_dtype dtype = cuda_is_hopper(gpu) ? MOE_BF16 : MOE_F32;
    const cuda_problem p = {
        .name = "a wrong replay", .settings = "num_experts=8 top_k=2", .tokens = 37, .replayed = true};
    cuda_pair both = cuda_pair_open(gpu, &p, dtype);
    const moe_mat x = {both.d_x, p.tokens, both.d, 0, dtype}, y = {both.d_y, p.tokens, both.d, 0, dtype};
    moe_call call = test_train_call;
    call.replay_expert = both.d_choice;
    both.choice[5 * 2] = 8;
    both.choice[9 * 2 + 1] = both.choice[9 * 2];
    must(gpu, moe_memory_copy(gpu, both.d_choice, both.choice, (size_t)p.tokens * 2 * sizeof *both.choice));
    expect_told(&both, x, y, &call, MOE_ERR_ARGUMENT, "token 5 names an expert that is not there");
    double *got = cuda_fetched(gpu, dtype, both.d_y, both.n_out);
    for (int64_t t = 0; t < p.tokens; ++t) {
        double most = 0;
        for (int64_t j = 0; j < both.d; ++j) most = fmax(most, fabs(got[t * both.d + j]));
        assert_int_equal(most > 0, t != 5 && t != 9);
    }
    free(got);
    cuda_pair_close(&both);
    moe_ctx_destroy(gpu);
}

/* y, dx and the gradients of W1 and the gate, as they lie in memory. */
static void *bytes_of_a_step(const cuda_pair *both, const cuda_problem *p, size_t *bytes) {
    static const char *const name[] = {"experts.up.weight", "gate.weight"};
    const moe_mat x = {both->d_x, p->tokens, both->d, 0, both->dtype},
                  y = {both->d_y, p->tokens, both->d, 0, both->dtype},
                  dy = {both->d_dy, p->tokens, both->d, 0, both->dtype},
                  dx = {both->d_dx, p->tokens, both->d, 0, both->dtype};
    moe_layer_zero_grad(both->layer);
    must(both->gpu, moe_layer_forward(both->layer, x, y, &test_train_call, NULL));
    must(both->gpu, moe_layer_backward(both->layer, x, dy, dx));
    const size_t matrix = (size_t)both->n_in * moe_dtype_bytes(both->dtype);
    char *now = malloc(2 * matrix);
    assert_non_null(now);
    must(both->gpu, moe_memory_copy(both->gpu, now, both->d_y, matrix));
    must(both->gpu, moe_memory_copy(both->gpu, now + matrix, both->d_dx, matrix));
    *bytes = 2 * matrix;
    for (size_t i = 0; i < sizeof name / sizeof *name; ++i) {
        moe_param param = {.size = sizeof param};
        must(both->gpu, moe_layer_param_by_name(both->layer, name[i], &param));
        const size_t grad = (size_t)cuda_numbers(&param) * sizeof(float);
        now = realloc(now, *bytes + grad);
        assert_non_null(now);
        must(both->gpu, moe_memory_copy(both->gpu, now + *bytes, param.grad, grad));
        *bytes += grad;
    }
    return now;
}

/* The same bits from run to run. */
static void step_repeats(moe_ctx *gpu, const cuda_problem *p, moe_dtype dtype) {
    cuda_pair both = cuda_pair_open(gpu, p, dtype);
    size_t bytes;
    void *first = bytes_of_a_step(&both, p, &bytes);
    for (int round = 1; round < 5; ++round) {
        void *now = bytes_of_a_step(&both, p, &bytes);
        assert_memory_equal(now, first, bytes);
        free(now);
    }
    free(first);
    cuda_pair_close(&both);
}

static void runs_repeat(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    static const cuda_problem repeated[] = {
        {.name = "repeat",       .tokens = 700, .settings = "capacity_factor=0.9 aux_loss_coeff=0.1"},
        {.name = "repeat, wide",
         .tokens = 700,
         .settings = "d_model=192 num_experts=12 top_k=3 expert_hidden_size=264 aux_loss_coeff=0.1" },
    };
    for (size_t i = 0; i < sizeof repeated / sizeof *repeated; ++i) {
        if (!cuda_is_hopper(gpu)) step_repeats(gpu, &repeated[i], MOE_F32);
        step_repeats(gpu, &repeated[i], MOE_BF16);
    }
    moe_ctx_destroy(gpu);
}

/* Which kernels a context has, by its isa; one that the GPU lacks is refused, one of the CPU lowers nothing.
 */
/* Kernels for few tokens add in another order, so in larger company a token may have other bits. */
static void company_has_a_say(void **state) {
    const moe_layer_desc desc = {
        .size = sizeof desc, .d_model = 16, .num_experts = 8, .top_k = 2, .expert_hidden_size = 12};
    moe_ctx *gpu = cuda_ctx(*state);
    moe_layer *layer = NULL;
    if (!gpu) skip();
    must(gpu, moe_layer_create(gpu, &desc, &layer));
    assert_non_null(strstr(moe_layer_company(layer), "another order"));
    moe_layer_destroy(layer);
    moe_ctx_destroy(gpu);
}

static void isa_names_the_kernels(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    assert_string_equal(moe_ctx_isa(gpu), *state);
    assert_string_equal(moe_ctx_kernel_of(gpu, "gemm_rows", MOE_BF16),
                        cuda_is_hopper(gpu) ? "gemm_rows__sm90" : "gemm_rows__cuda");
    assert_string_equal(moe_ctx_kernel(gpu, "gemm_rows"), "gemm_rows__cuda");
    assert_string_equal(moe_ctx_kernel_of(gpu, "plan", MOE_BF16), "plan__cuda");
    moe_ctx_destroy(gpu);
}

int main(void) {
    int failed = 0, groups = 0;
    if (!cuda_is_here()) return 77;
    for (int i = 0; i < CUDA_FAMILIES; ++i) {
        if (!cuda_family_is_wanted(cuda_families[i])) continue;
        const struct CMUnitTest tests[] = {
            cmocka_unit_test_prestate(isa_names_the_kernels, cuda_families[i]),
            cmocka_unit_test_prestate(few_tokens_are_inferred, cuda_families[i]),
            cmocka_unit_test_prestate(a_bad_logit_is_told, cuda_families[i]),
            cmocka_unit_test_prestate(a_wrong_replay_is_told, cuda_families[i]),
            cmocka_unit_test_prestate(runs_repeat, cuda_families[i]),
            cmocka_unit_test_prestate(company_has_a_say, cuda_families[i]),
        };
        failed += cmocka_run_group_tests_name(cuda_families[i], tests, NULL, NULL);
        ++groups;
    }
    return groups > 0 ? failed : 77;
}
