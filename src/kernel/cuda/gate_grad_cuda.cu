/* gate_grad_cuda.cu: the way back through the gate by the grouped products of tensor cores, bf16 with f32
 * sums: dgate[E,d] += dlogits^T x, dx[T,d] (+)= dlogits gate. Each of dlogits[T,E] stands as the sum of two
 * bf16 numbers, so that 16 of its 24 bits count, and a product over both is one over 2E experts. The sum over
 * tokens is done in chunks side by side, whose parts are added in their order. The products are the
 * context's.
 */
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { THREADS = 256 };

struct GateParts {
    bf16 *pairs;     /* [T, 2E]: high parts, low parts of dlogits */
    bf16 *gate;      /* [2E, d]: the gate twice */
    float *part;     /* [chunks, 2E, d] */
    int64_t *offset; /* [chunks + 1] tokens of a chunk */
    int64_t chunks;
};

static GateParts parts_of(const moei_gate_grad_args *a) {
    const moei_gate_grad_scratch at = moei_gate_grad_carve(a->n_tokens, a->n_experts, a->d);
    char *base = (char *)a->scratch;
    return {(bf16 *)base, (bf16 *)(base + at.gate), (float *)(base + at.part), (int64_t *)(base + at.offset),
            at.chunks};
}

/* The gate twice, 16 bytes a thread, and where the chunks begin. */
static __global__ void __launch_bounds__(THREADS)
    prepare_kernel(const moei_gate_grad_args p, const GateParts to) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, pieces = p.n_experts * p.d / 8;
    const int64_t chunk = ceil_div(p.n_tokens, to.chunks);
    if (i <= to.chunks) to.offset[i] = i * chunk < p.n_tokens ? i * chunk : p.n_tokens;
    if (i >= pieces) return;
    uint4 *gate = (uint4 *)to.gate;
    gate[i] = gate[pieces + i] = ((const uint4 *)p.gate)[i];
}

/* dgate += parts, first chunk to last, high then low; four columns of an expert a thread. */
static __global__ void __launch_bounds__(THREADS)
    sum_chunks_kernel(const moei_gate_grad_args p, const float *part, int64_t chunks) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4, size = p.n_experts * p.d;
    if (i >= size) return;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int64_t c = 0; c < 2 * chunks; ++c) {
        const float4 own = *(const float4 *)(part + c * size + i);
        sum.x += own.x, sum.y += own.y, sum.z += own.z, sum.w += own.w;
    }
    float4 *out = (float4 *)(p.dgate + i), before = *out;
    *out = make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w);
}

static moe_gemm_rows_args input_product(const moei_gate_grad_args *args, const GateParts &parts) {
    moe_gemm_rows_args a = {};
    a.dtype = MOE_BF16, a.n_groups = 1, a.n_rows = args->n_tokens, a.n = a.ldb = args->d;
    a.k = a.lda = 2 * args->n_experts, a.a = parts.pairs, a.b = parts.gate;
    a.c = args->dx, a.ldc = args->ld_dx, a.accumulate = args->accumulate;
    return a;
}

static moe_gemm_outer_args gate_product(const moei_gate_grad_args *args, const GateParts &parts) {
    moe_gemm_outer_args a = {};
    a.dtype = MOE_BF16, a.n_groups = (int32_t)parts.chunks, a.offset = parts.offset;
    a.n_rows = args->n_tokens;
    a.m = a.lda = 2 * args->n_experts, a.n = a.ldc = args->d, a.c_group = a.m * a.n;
    a.a = parts.pairs, a.b = args->x, a.ldb = args->ldx, a.c = parts.part, a.c_wide = true;
    return a;
}

} // namespace moei

extern "C" void moei_gate_grad__cuda(const moei_team *team, const moei_gate_grad_args *args,
                                     moei_gate_products *products) {
    using namespace moei;
    const GateParts parts = parts_of(args);
    const int64_t pieces = args->n_experts * args->d / 8, most = parts.chunks + 1;
    const unsigned blocks = (unsigned)ceil_div(pieces > most ? pieces : most, THREADS);
    prepare_kernel<<<blocks, THREADS, 0, stream_of(team)>>>(*args, parts);
    *products = {input_product(args, parts), gate_product(args, parts)};
}

extern "C" void moei_gate_grad_end__cuda(const moei_team *team, const moei_gate_grad_args *args) {
    using namespace moei;
    const GateParts parts = parts_of(args);
    const unsigned blocks = (unsigned)ceil_div(args->n_experts * args->d, 4 * THREADS);
    cudaLaunchAttribute priority;
    const cudaLaunchConfig_t config = urgent_launch(team, dim3(blocks), THREADS, 0, &priority);
    cudaLaunchKernelEx(&config, sum_chunks_kernel, *args, (const float *)parts.part, parts.chunks);
}
