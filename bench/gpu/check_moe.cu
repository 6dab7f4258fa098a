/* check_moe.cu: every CUDA kernel of the layer against plain CUDA-core loops in f32 and host sums in f64.
 * Fresh random data (seed printed), poisoned outputs with guards, odd shapes, empty experts, uneven loads.
 * Run: make bench-gpu, or build/release/gpu/check_moe [SEED [CASES]]; few cases for compute-sanitizer.
 * ISA=cuda checks the grouped products of any GPU instead of Hopper's, and odd widths too.
 */
#include "check.cuh"

#include <string.h>
#include <time.h>

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    team = team_of(0);
    portable = getenv("ISA") && strcmp(getenv("ISA"), "cuda") == 0;
    printf("check_moe: seed %llu\n", (unsigned long long)seed);
    check_products(argc > 2 ? strtoull(argv[2], NULL, 0) : SIZE_MAX);
    check_tokens();
    printf("check_moe: %d checks, %d failed\n", n_checked, n_failed);
    return n_failed != 0;
}
