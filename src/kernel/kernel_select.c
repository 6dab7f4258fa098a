/* kernel_select.c: which kernel serves which operation, decided once per context.
 * Rows of kernel.def; tables of function pointers, one per dtype.
 * Source: reference first, then override by slot, after BLIS (config/, bli_cntx_init).
 */
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernel/kernel_list.h"

#define MOEI_KERNEL(op, type, function, isa, serves)                                                         \
    {#op, &#function[sizeof "moei_" - 1], isa, serves, offsetof(moei_kernels, op), (void (*)(void))function},
static const moei_kernel_row kernel_rows[] = {
#include "kernel/kernel.def"
};
#undef MOEI_KERNEL
enum { N_ROWS = sizeof kernel_rows / sizeof kernel_rows[0] };

const moei_kernel_row *moei_kernel_rows(size_t *count) {
    *count = N_ROWS;
    return kernel_rows;
}

const char *moei_isa_name(moei_isa isa) {
    static const char *const names[] = {
        [MOEI_ISA_REF] = "ref",       [MOEI_ISA_AVX2] = "avx2",
        [MOEI_ISA_AVX512] = "avx512", [MOEI_ISA_AVX512BF16] = "avx512bf16",
        [MOEI_ISA_AMX] = "amx",       [MOEI_ISA_NEON] = "neon",
        [MOEI_ISA_CUDA] = "cuda",     [MOEI_ISA_SM90] = "sm90",
    };
    return names[isa];
}

#if defined(__x86_64__)
/* AMX with bf16: the processor has it (leaf 7, EDX 22 and 24), the system saves tiles (XCR0 17 and 18) and
 * grants them to this process, which Linux wants to be asked for, once or more often. */
static bool has_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 5) != 5) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

/* The compiler's check includes the operating system's consent to save the wider registers. */
bool moei_isa_supported(moei_isa isa) {
    if (isa == MOEI_ISA_REF) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == MOEI_ISA_AVX2) return avx2;
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (isa == MOEI_ISA_AVX512) return avx512;
    bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (isa == MOEI_ISA_AVX512BF16) return bf16 && __builtin_cpu_supports("avx512vbmi");
    if (isa == MOEI_ISA_AMX) return bf16 && has_amx();
#elif defined(__aarch64__)
    if (isa == MOEI_ISA_NEON) return true; /* part of the base architecture */
#endif
    return false;
}

moei_isa moei_isa_best(void) {
    int best = MOEI_ISA_COUNT - 1;
    while (best > MOEI_ISA_REF && !moei_isa_supported((moei_isa)best)) --best;
#if defined(__x86_64__)
    /* Intel issues fewer than one bf16 dot product in two cycles: f32 is faster there. */
    if (best == MOEI_ISA_AVX512BF16 && __builtin_cpu_is("intel")) return MOEI_ISA_AVX512;
#endif
    return (moei_isa)best;
}

moei_isa moei_isa_best_cuda(int32_t capability) {
    return capability == 90 ? MOEI_ISA_SM90 : MOEI_ISA_CUDA;
}

static bool row_serves(const moei_kernel_row *row, moei_isa isa, moe_dtype dtype) {
    if (!(row->serves >> dtype & 1) || row->isa > isa) return false;
    if (moei_isa_is_cuda(isa)) return row->isa == MOEI_ISA_CUDA || row->isa == isa;
    if (moei_isa_is_cuda(row->isa)) return false;
    return moei_isa_supported(row->isa);
}

/* A slot holds a pointer to a function of the row's own type; all function pointers look alike in memory. */
static void fill(moei_kernels *table, moei_isa isa, moe_dtype dtype) {
    memset(table, 0, sizeof *table);
    for (int pass = MOEI_ISA_REF; pass <= (int)isa; ++pass) {
        for (size_t i = 0; i < N_ROWS; ++i) {
            const moei_kernel_row *row = &kernel_rows[i];
            if ((int)row->isa != pass || !row_serves(row, isa, dtype)) continue;
            memcpy((char *)table + row->slot, &row->fn, sizeof row->fn);
        }
    }
}

void moei_kernel_select(moei_isa isa, moei_kernels table[MOEI_DTYPES]) {
    for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype) fill(&table[dtype], isa, (moe_dtype)dtype);
}

bool moei_kernel_serves(moei_isa isa, const char *op, moe_dtype dtype) {
    for (size_t i = 0; i < N_ROWS; ++i) {
        const moei_kernel_row *row = &kernel_rows[i];
        if (row->isa == isa && row->serves >> dtype & 1 && strcmp(row->op, op) == 0) return true;
    }
    return false;
}

const char *moei_kernel_chosen(moei_isa isa, const char *op, moe_dtype dtype) {
    const moei_kernel_row *best = NULL;
    for (size_t i = 0; i < N_ROWS; ++i) {
        const moei_kernel_row *row = &kernel_rows[i];
        if (strcmp(row->op, op) != 0 || !row_serves(row, isa, dtype)) continue;
        if (!best || row->isa >= best->isa) best = row;
    }
    return best ? best->name : NULL;
}
