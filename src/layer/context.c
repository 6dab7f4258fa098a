/* context.c: makes and destroys a context: instruction set, kernels, threads, memory.
 * The choice is made once and logged; descriptor first, then environment, then what the machine has.
 * Source: FFTW's and BLIS's rule that set-up chooses and the run only computes.
 */
#include "core/ctx.h"
#include "core/desc.h"
#include "core/memory.h"
#include "device/device.h"
#include "kernel/kernel.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Large blocks ask for huge pages: a matrix product touches hundreds of small ones at once, and looking each
 * up costs more than reading what is in it. The system may refuse. */
static void *host_alloc(void *user, size_t bytes, size_t align) {
    enum { HUGE = 2 << 20 };
    (void)user;
    if (bytes >= HUGE && align < HUGE) align = HUGE;
    if (bytes > SIZE_MAX - align) return NULL;
    const size_t whole = (bytes + align - 1) / align * align;
    void *ptr = aligned_alloc(align, whole);
    if (ptr && align == HUGE) madvise(ptr, whole, MADV_HUGEPAGE);
    return ptr;
}

static void host_free(void *user, void *ptr, size_t bytes) {
    (void)user;
    (void)bytes;
    free(ptr);
}

/* A name lowers the CPU's kernels or the GPU's; the other's are the best it has. MOEI_ISA_END: the GPU's
 * best, which is known once it is opened. */
typedef struct isa_choice {
    moei_isa cpu, gpu;
} isa_choice;

/* As moei_isa_supported asks for it; a name does not tell all of it. */
static const char *const isa_needs[MOEI_ISA_COUNT] = {
    [MOEI_ISA_REF] = "nothing",
    [MOEI_ISA_AVX2] = "AVX2 and FMA",
    [MOEI_ISA_AVX512] = "AVX-512 F, BW, DQ and VL",
    [MOEI_ISA_AVX512BF16] = "AVX-512 BF16 and VBMI",
    [MOEI_ISA_AMX] = "AMX BF16 and AVX-512 BF16",
    [MOEI_ISA_NEON] = "64-bit Arm",
};

static moe_status choose_isa(const moe_ctx_desc *desc, isa_choice *choice, moe_error *error) {
    const bool said = desc->isa && *desc->isa;
    const char *name = said ? desc->isa : getenv("MOEKIT_ISA");
    *choice = (isa_choice){moei_isa_best(), MOEI_ISA_END};
    if (!name || !*name) return MOE_OK;
    for (moei_isa isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa)
        if (strcmp(name, moei_isa_name(isa)) == 0) {
            choice->cpu = isa;
            if (moei_isa_supported(isa)) return MOE_OK;
            return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                                  "isa: this machine cannot run '%s', which needs %s; '%s' is its best", name,
                                  isa_needs[isa], moei_isa_name(moei_isa_best()));
        }
    for (moei_isa isa = MOEI_ISA_CUDA; isa < MOEI_ISA_END; ++isa)
        if (strcmp(name, moei_isa_name(isa)) == 0) {
            choice->gpu = isa;
            if (desc->device == MOE_CUDA || !said) return MOE_OK; /* the environment is for all contexts */
            return moei_error_set(error, MOE_ERR_ARGUMENT,
                                  "isa: '%s' is for a GPU, but this context is on the CPU", name);
        }
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "isa: '%s' is not one of: ref, avx2, avx512, avx512bf16, amx, neon; on a GPU: "
                          "cuda, sm90",
                          name);
}

static moe_status choose_threads(int32_t wanted, int32_t *n_threads, moe_error *error) {
    static const char *const variable[] = {"MOEKIT_NUM_THREADS", "OMP_NUM_THREADS"};
    if (wanted < 0 || wanted > 1024)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "n_threads: %d is outside 0 .. 1024", wanted);
    for (size_t i = 0; wanted == 0 && i < sizeof variable / sizeof *variable; ++i) {
        const char *text = getenv(variable[i]);
        if (!text || !*text) continue;
        char *end;
        long value = strtol(text, &end, 10); /* OMP_NUM_THREADS may be a list: its first number counts */
        if (end == text || (*end && *end != ',') || value < 1 || value > 1024)
            return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: '%s' is not a number of threads (1 .. 1024)",
                                  variable[i], text);
        wanted = (int32_t)value;
    }
    *n_threads = wanted ? wanted : moei_thread_cores();
    return MOE_OK;
}

/* The kernel tables, one a dtype, stand behind the context in one allocation of their own. */
static moe_status attach_kernels(moe_ctx *ctx) {
    moei_kernels *table = moe_ctx_alloc(ctx, MOEI_DTYPES * sizeof *table);
    if (!table) return moei_ctx_no_memory(ctx, "tables of kernels");
    moei_kernel_select((moei_isa)ctx->isa, table);
    for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype) ctx->kernels[dtype] = &table[dtype];
    return MOE_OK;
}

static moe_status take_scratch(moe_ctx *ctx) {
    ctx->team.scratch = moe_ctx_alloc(ctx, (size_t)ctx->team.n_threads * MOEI_THREAD_SCRATCH);
    return ctx->team.scratch ? MOE_OK : moei_ctx_no_memory(ctx, "scratch of %d threads", ctx->team.n_threads);
}

static moe_status start_threads(moe_ctx *ctx) {
    const int32_t wanted = ctx->team.n_threads;
    if (wanted == 1) return MOE_OK;
    moei_pool *pool = moe_ctx_alloc(ctx, moei_pool_bytes(wanted));
    if (!pool) return moei_ctx_no_memory(ctx, "%d threads", wanted);
    ctx->team.pool = pool;
    int32_t started = moei_pool_start(pool, wanted, ctx->team.scratch);
    ctx->desc.n_threads = started;
    if (started < wanted) moei_log(ctx, MOE_LOG_WARN, "the system gave %d of %d threads", started, wanted);
    return MOE_OK;
}

static const char *kernel_name(int isa, const char *op, moe_dtype dtype) {
    return moei_kernel_chosen((moei_isa)isa, op, dtype);
}

/* On a device the CPU's threads and kernels are those of a context inside, for what the device cannot do. */
static moe_status open_device(moe_ctx *ctx, isa_choice isa, int32_t n_threads) {
    if (ctx->device == &moei_device_cpu) return MOE_OK;
    MOEI_TRY(ctx->device->open(ctx));
    const moei_isa best = moei_isa_best_cuda(ctx->device->capability(ctx));
    if (isa.gpu != MOEI_ISA_END && isa.gpu != MOEI_ISA_CUDA && isa.gpu != best)
        return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED, "isa: this GPU cannot run '%s'; '%s' is its best",
                            moei_isa_name(isa.gpu), moei_isa_name(best));
    ctx->isa = (int)(isa.gpu == MOEI_ISA_END ? best : isa.gpu);
    moe_ctx_desc desc = ctx->desc;
    moe_error error;
    ctx->desc.isa = moei_isa_name((moei_isa)ctx->isa);
    desc.device = MOE_CPU;
    desc.device_index = 0;
    desc.isa = moei_isa_name(isa.cpu);
    desc.n_threads = n_threads;
    if (moe_ctx_create(&desc, &ctx->host, &error) != MOE_OK)
        return moe_ctx_fail(ctx, error.status, "%s", error.text);
    ctx->desc.n_threads = ctx->host->desc.n_threads;
    return MOE_OK;
}

static moe_status read_desc(const moe_ctx_desc *desc, moe_ctx_desc *filled, isa_choice *isa,
                            moe_error *error) {
    *filled = (moe_ctx_desc){.size = sizeof *filled};
    if (desc) MOEI_TRY(moei_desc_read(filled, sizeof *filled, desc, "moe_ctx_desc", error));
    if (filled->device != MOE_CPU && filled->device != MOE_CUDA)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "device: %d is neither MOE_CPU nor MOE_CUDA",
                              (int)filled->device);
    if (filled->device == MOE_CPU && filled->device_index != 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "device_index: %d names a GPU, but this context is on the CPU; it must be 0",
                              filled->device_index);
    if (!filled->host.alloc != !filled->host.free)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "host allocator: give both alloc and free, or neither");
    if (!filled->host.alloc) filled->host = (moe_allocator){host_alloc, host_free, NULL};
    MOEI_TRY(choose_isa(filled, isa, error));
    return choose_threads(filled->n_threads, &filled->n_threads, error);
}

moe_status moe_ctx_create(const moe_ctx_desc *desc, moe_ctx **out, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_ctx_create", "ctx", out));
    moe_ctx_desc filled;
    isa_choice isa;
    MOEI_TRY(read_desc(desc, &filled, &isa, error));
    const bool on_cpu = filled.device == MOE_CPU;
    filled.isa = moei_isa_name(isa.cpu); /* until a GPU is opened */

    moe_ctx *ctx = filled.host.alloc(filled.host.user, sizeof *ctx, 64);
    if (!ctx)
        return moei_error_set(error, MOE_ERR_MEMORY, "a context: cannot allocate %zu bytes", sizeof *ctx);
    *ctx = (moe_ctx){.desc = filled, .isa = (int)isa.cpu, .kernel_name = kernel_name};
    ctx->device = on_cpu ? &moei_device_cpu : &moei_device_cuda;
    ctx->team.n_threads = on_cpu ? filled.n_threads : 1;
    if (take_scratch(ctx) != MOE_OK || open_device(ctx, isa, filled.n_threads) != MOE_OK ||
        attach_kernels(ctx) != MOE_OK || start_threads(ctx) != MOE_OK) {
        const moe_status status = moei_error_set(error, ctx->error.status, "%s", ctx->error.text);
        moe_ctx_destroy(ctx);
        return status;
    }
    moei_log(ctx, MOE_LOG_INFO, "context: device %s, isa %s, %d threads, %s", ctx->device->name,
             ctx->desc.isa, ctx->desc.n_threads, moe_ctx_kernel(ctx, "gemm_rows"));
    *out = ctx;
    return MOE_OK;
}

void moe_ctx_destroy(moe_ctx *ctx) {
    if (!ctx) return;
    moe_time_stop(ctx);
    moe_ctx_destroy(ctx->host);
    if (ctx->device_state) ctx->device->close(ctx);
    for (moei_expert_entry *entry = ctx->experts; entry;) {
        moei_expert_entry *next = entry->next;
        moe_ctx_free(ctx, entry, sizeof *entry + strlen(entry->name) + 1);
        entry = next;
    }
    moe_ctx_free(ctx, (void *)(uintptr_t)ctx->kernels[MOE_F32], MOEI_DTYPES * sizeof(moei_kernels));
    if (ctx->team.pool) {
        moei_pool_stop(ctx->team.pool);
        moe_ctx_free(ctx, ctx->team.pool, moei_pool_bytes(ctx->team.n_threads));
    }
    moe_ctx_free(ctx, ctx->team.scratch, (size_t)ctx->team.n_threads * MOEI_THREAD_SCRATCH);
    moe_allocator host = ctx->desc.host;
    host.free(host.user, ctx, sizeof *ctx);
}
