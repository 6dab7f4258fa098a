/* packed.c: packs weights, and reads them back.
 * b[g]: [k, n] -> panels of blocks (packed.h). Symmetric, to nearest, ties to even codes; the scale of a
 * group is its largest magnitude over the largest code. One task a panel: the same bytes for any threads.
 * Source: OCP MX specification 1.0, section 6.3, for the scales of mxfp4.
 */
#include "kernel/packed.h"

#include "core/ctx.h"
#include "core/memory.h"
#include "core/option.h"
#include "core/real.h"
#include "kernel/kernel.h"

#include <math.h>

/* nf4: quantiles of N(0, 1), scaled to [-1, 1] with an exact zero. e2m1: sign, two bits of exponent, one of
 * mantissa. */
/* clang-format off */
static const moei_packed_format formats[] = {
    {.name = "int8", .bits = 8, .most = 127, .groups = {32, 64, 128}},
    {.name = "int4", .bits = 4, .most = 7, .groups = {32, 64, 128},
     .value = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}},
    {.name = "nf4", .bits = 4, .most = 1, .groups = {64},
     .value = {-1.0F, -0.6961928009986877F, -0.5250730514526367F, -0.39491748809814453F,
               -0.28444138169288635F, -0.18477343022823334F, -0.09105003625154495F, 0.0F,
               0.07958029955625534F, 0.16093020141124725F, 0.24611230194568634F, 0.33791524171829224F,
               0.44070982933044434F, 0.5626170039176941F, 0.7229568362236023F, 1.0F}},
    {.name = "mxfp4", .bits = 4, .exponents = true, .groups = {32},
     .value = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F,
               -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F}},
    {.name = "bf16x2", .bits = 16, .groups = {MOEI_PAIRS_GROUP}},
};
/* clang-format on */
enum { N_FORMATS = sizeof formats / sizeof *formats };

const char *const *moe_packed_formats(void) {
    static const char *const names[] = {"int8", "int4", "nf4", "mxfp4", "bf16x2", NULL};
    return names;
}

/* To nearest, ties to even; the largest where it is larger. x >= 0. */
static uint16_t f16_round(double x) {
    enum { LARGEST = 0x7bff, BIAS = 15, ONE = 1 << 10 };
    if (x >= 65504) return LARGEST;
    if (x < 0x1p-14) return (uint16_t)nearbyint(x * 0x1p24); /* subnormal; 1024 of them are the next number */
    int exponent;
    const double significand = frexp(x, &exponent); /* in [1/2, 1) */
    return (uint16_t)((exponent - 1 + BIAS) * ONE + (int)nearbyint(significand * 2 * ONE) - ONE);
}

/* Writes a group's scale, if it has one. Exponents 1 .. 254 are normal numbers of f32; f64 has numbers beyond
 * both ends. */
static void put_scale(const moei_packed_format *format, double largest, unsigned char *block,
                      int64_t column) {
    if (moei_packed_scale_bytes(format) == 0) return;
    if (format->exponents) {
        const int exponent = largest > 0 ? ilogb(largest) - 2 + 127 : 127;
        block[column] = (unsigned char)(exponent < 1 ? 1 : exponent > 254 ? 254 : exponent);
        return;
    }
    const uint16_t half = f16_round(largest / format->most);
    memcpy(block + 2 * column, &half, sizeof half);
}

/* The values of a format of 4 bits in ascending order, each once, and their codes; infinity fills up. */
typedef struct ladder {
    double value[MOEI_CODES + 1];
    uint8_t code[MOEI_CODES + 1];
} ladder;

static ladder ladder_of(const moei_packed_format *format) {
    ladder l;
    int n = 0;
    for (int i = 0; i <= MOEI_CODES; ++i) l.value[i] = INFINITY;
    for (uint8_t code = 0; format->bits == 4 && code < MOEI_CODES; ++code) {
        const double value = (double)format->value[code];
        int at = n;
        while (at > 0 && l.value[at - 1] > value) --at;
        if (at > 0 && l.value[at - 1] == value) continue; /* minus zero: the lower code is zero's */
        for (int i = n++; i > at; --i) l.value[i] = l.value[i - 1], l.code[i] = l.code[i - 1];
        l.value[at] = value;
        l.code[at] = code;
    }
    return l;
}

/* The code whose value is nearest to x, of two the even one: of the largest value that is not above x, found
 * without a branch, and the next. */
static uint32_t code_of(const ladder *l, double x) {
    int at = (x >= l->value[8]) << 3;
    at += (x >= l->value[at + 4]) << 2;
    at += (x >= l->value[at + 2]) << 1;
    at += x >= l->value[at + 1];
    const double below = fabs(x - l->value[at]), above = l->value[at + 1] - x;
    const int up = (above < below) | ((above == below) & l->code[at]);
    return l->code[at + (up & 1)];
}

/* The same of 8 bits: to nearest, ties to even, by a sum that has no bits below one. */
static uint32_t byte_of(double x) {
    static const double ONES = 0x1.8p52;
    x = x > 127 ? 127 : x < -127 ? -127 : x;
    return (uint32_t)(int32_t)(x + ONES - ONES) & 0xff;
}

typedef struct pack_job {
    const moe_packed *p;
    ladder ladder;
    const char *b;
    unsigned char *out;
    bool *bad; /* [n_groups, panels] holds what is not finite */
} pack_job;

/* A column of tile[rows, 64] into a block, zeros after them. False where a number is not finite. */
static bool pack_column(const pack_job *job, const void *tile, int64_t rows, unsigned char *block,
                        int64_t column) {
    const moe_packed *p = job->p;
    const moei_packed_format *format = p->format;
    const int64_t per = moei_packed_per(format);
    double x[MOEI_GROUP_MAX] = {0}, largest = 0;
    for (int64_t i = 0; i < rows; ++i) {
        const double number = moei_real_load(p->dtype, tile, i * MOEI_PANEL + column), size = fabs(number);
        if (!isfinite(number)) return false;
        x[i] = number;
        largest = size > largest ? size : largest;
    }
    put_scale(format, largest, block, column);
    const double scale = moei_packed_scale(format, block, column);
    unsigned char *codes = block + moei_packed_scale_bytes(format);
    for (int64_t i = 0; i < p->group; i += per) {
        uint32_t word = 0;
        for (int64_t r = 0; r < per; ++r) {
            const double times = scale > 0 ? x[i + r] / scale : 0;
            const uint32_t code = format->bits == 8 ? byte_of(times) : code_of(&job->ladder, times);
            word |= code << (r * format->bits);
        }
        for (int byte = 0; byte < 4; ++byte)
            codes[(i / per * MOEI_PANEL + column) * 4 + byte] = (unsigned char)(word >> 8 * byte);
    }
    return true;
}

/* The same of 16 bits, which have no scale. */
static bool pack_halves(const pack_job *job, const void *tile, int64_t rows, unsigned char *block,
                        int64_t column) {
    static const double MOST = 0x1.fep127;
    const moe_packed *p = job->p;
    const bool halves = p->dtype == MOE_BF16;
    for (int64_t i = 0; i < rows; ++i) {
        uint16_t half;
        if (halves) {
            half = ((const uint16_t *)tile)[i * MOEI_PANEL + column];
            if ((half & 0x7f80) == 0x7f80) return false;
        } else {
            double x = moei_real_load(p->dtype, tile, i * MOEI_PANEL + column);
            if (!isfinite(x)) return false;
            x = x > MOST ? MOST : x < -MOST ? -MOST : x;
            half = moei_bf16_round((float)x);
        }
        unsigned char *at =
            block + i / 2 * moei_packed_row_bytes(16) + moei_packed_column_at(16, column) + i % 2 * 2;
        at[0] = (unsigned char)half;
        at[1] = (unsigned char)(half >> 8);
    }
    return true;
}

static int64_t group_panels(const moe_packed *p) {
    return p->n_runs * p->run_panels;
}

/* A panel, block by block: its rows are moved together first, as rows a power of two apart drive each other
 * out of L1. */
static void pack_task(void *arg, int64_t number, void *scratch) {
    const pack_job *job = arg;
    const moe_packed *p = job->p;
    const int64_t g = number / group_panels(p), panel = number % group_panels(p), width = p->n / p->n_runs;
    const int64_t in_run = panel % p->run_panels * MOEI_PANEL, first = panel / p->run_panels * width + in_run;
    const int64_t columns = width - in_run < MOEI_PANEL ? width - in_run : MOEI_PANEL;
    const size_t bytes = moe_dtype_bytes(p->dtype);
    const char *b = job->b + (size_t)(g * p->k * p->n + first) * bytes;
    unsigned char *block = job->out + moei_packed_at(p, g, panel);
    bool (*pack_any)(const pack_job *, const void *, int64_t, unsigned char *, int64_t) =
        p->format->bits == 16 ? pack_halves : pack_column;
    double tile[MOEI_GROUP_MAX * MOEI_PANEL]; /* room for the widest type */
    (void)scratch;
    job->bad[number] = false;
    for (int64_t row = 0; row < p->k; row += p->group, block += p->block_bytes) {
        const int64_t rows = row + p->group < p->k ? p->group : p->k - row;
        for (int64_t i = 0; i < rows; ++i)
            memcpy((char *)tile + (size_t)(i * MOEI_PANEL) * bytes, b + (size_t)((row + i) * p->n) * bytes,
                   (size_t)columns * bytes);
        for (int64_t j = 0; j < columns; ++j)
            if (!pack_any(job, tile, rows, block, j)) job->bad[number] = true;
    }
}

/* Threads for work in the host's memory. */
static const moei_team *host_team(const moe_ctx *ctx) {
    return ctx->host ? &ctx->host->team : &ctx->team;
}

static moe_status pack_host(moe_packed *p, const void *b, unsigned char *out) {
    const int64_t panels = p->n_groups * group_panels(p);
    bool *bad = moe_ctx_alloc(p->ctx, (size_t)panels);
    if (!bad) return moei_ctx_no_memory(p->ctx, "notes of packing");
    memset(out, 0, p->bytes); /* columns past the last of a run: scale 0 */
    pack_job job = {p, ladder_of(p->format), b, out, bad};
    moei_parallel(host_team(p->ctx), panels, pack_task, &job);
    int64_t panel = 0;
    while (panel < panels && !bad[panel]) ++panel;
    moe_ctx_free(p->ctx, bad, (size_t)panels);
    if (panel == panels) return MOE_OK;
    return moe_ctx_fail(p->ctx, MOE_ERR_NUMERIC, "%s: weights of expert %d hold a NaN or an infinity",
                        p->format->name, (int)(panel / group_panels(p)));
}

/* b comes to the host, and what is packed goes to the device, where these are not the same. */
static moe_status pack(moe_packed *p, const void *b) {
    moe_ctx *ctx = p->ctx;
    const size_t b_bytes = (size_t)p->n_groups * (size_t)(p->k * p->n) * moe_dtype_bytes(p->dtype);
    p->data = moei_memory_alloc(ctx, p->bytes);
    if (!p->data) return moei_ctx_no_memory(ctx, "packed weights");
    if (!ctx->host) return pack_host(p, b, p->data);
    void *here = moe_ctx_alloc(ctx, b_bytes), *view = moei_memory_open(ctx, p->data, p->bytes);
    moe_status status = here && view ? moei_memory_copy(ctx, here, b, b_bytes)
                                     : moei_ctx_no_memory(ctx, "weights to be packed, on the host");
    if (status == MOE_OK) status = pack_host(p, here, view);
    moe_ctx_free(ctx, here, b_bytes);
    if (status == MOE_OK) return moei_memory_close(ctx, p->data, view, p->bytes);
    moe_ctx_free(ctx, view, p->bytes);
    return status;
}

static moe_status find_format(moe_ctx *ctx, const moe_packed_desc *desc, moe_packed *p) {
    const char *name = desc->format ? desc->format : "";
    for (const moei_packed_format *f = formats; f < formats + N_FORMATS; ++f)
        if (strcmp(f->name, name) == 0) p->format = f;
    if (!p->format) {
        char list[64] = "";
        for (size_t i = 0; i < N_FORMATS; ++i) moei_list_add(list, sizeof list, formats[i].name);
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "format: '%s' is not one of: %s", name, list);
    }
    const int32_t *groups = p->format->groups;
    if (desc->group != 0 && moei_packed_scale_bytes(p->format) == 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "group: %s has no scales, so no groups of %d; it must be 0", name, desc->group);
    for (const int32_t *g = groups; *g; ++g)
        if (p->group == 0 && (*g == desc->group || desc->group == 0)) p->group = *g;
    if (p->group > 0) return MOE_OK;
    if (groups[1] == 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "group: %s has no groups of %d; it has %d", name,
                            desc->group, groups[0]);
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "group: %s has no groups of %d; it has %d, %d and %d", name,
                        desc->group, groups[0], groups[1], groups[2]);
}

/* What no product of the context's device multiplies is not packed either. */
static moe_status check_device(moe_ctx *ctx, const moe_packed *p) {
    const moe_dtype dtype = p->dtype;
    const bool cuda = moei_isa_is_cuda((moei_isa)ctx->isa);
    if (dtype != MOE_F32 && dtype != MOE_F64 && dtype != MOE_BF16)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_packed_desc: dtype is %d; it must be MOE_F32, MOE_F64 or "
                            "MOE_BF16",
                            (int)dtype);
    if (cuda && p->format->bits == 16)
        return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED,
                            "format: %s is the order that CPUs multiply in; on CUDA weights are not packed "
                            "for that, and read as fast",
                            p->format->name);
    if (!cuda || moei_kernel_serves(MOEI_ISA_CUDA, "gemm_packed", dtype)) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED,
                        "moe_packed_desc: products of dtype %d with packed weights are not built for CUDA; "
                        "a CPU context has them",
                        (int)dtype);
}

/* More numbers than MOST would not have their bytes counted in 64 bits: a number takes up to 8, and a column
 * alone is padded to a panel, a row alone to a group. */
static moe_status check_shape(moe_ctx *ctx, const moe_packed_desc *d) {
    static const int64_t MOST = (int64_t)1 << 48;
    if (d->n_groups < 1 || d->k < 1 || d->n < 1)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_packed_desc: %d matrices of [%lld, %lld]; all must be at least 1",
                            d->n_groups, (long long)d->k, (long long)d->n);
    if (d->k > MOST / d->n || d->n_groups > MOST / (d->k * d->n))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_packed_desc: %d matrices of [%lld, %lld] are more than 2^48 numbers",
                            d->n_groups, (long long)d->k, (long long)d->n);
    if (d->n_runs < 0 || d->n_runs > 2 || (d->n_runs == 2 && d->n % 2 != 0))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "moe_packed_desc: %lld columns in %d runs; one run, or two of equal width",
                            (long long)d->n, d->n_runs);
    return MOE_OK;
}

static void lay_out(moe_packed *p) {
    const moei_packed_format *f = p->format;
    const int64_t width = p->n / p->n_runs, blocks = (p->k + p->group - 1) / p->group;
    p->run_panels = (width + MOEI_PANEL - 1) / MOEI_PANEL;
    p->block_bytes = moei_packed_scale_bytes(f) + (int64_t)MOEI_PANEL * p->group * f->bits / 8;
    p->panel_bytes = blocks * p->block_bytes;
    p->group_bytes = p->n_runs * p->run_panels * p->panel_bytes;
    p->bytes = (size_t)(p->n_groups * p->group_bytes);
}

moe_status moe_packed_create(moe_ctx *ctx, const moe_packed_desc *given, const void *b, moe_packed **packed) {
    MOEI_TRY(moei_ctx_need(ctx, "moe_packed_create", "packed", packed));
    moe_packed_desc desc;
    MOEI_TRY(moei_ctx_desc_read(ctx, &desc, sizeof desc, given, "moe_packed_desc"));
    moe_packed made = {.ctx = ctx,
                       .dtype = desc.dtype,
                       .n_groups = desc.n_groups,
                       .n_runs = desc.n_runs > 0 ? desc.n_runs : 1,
                       .k = desc.k,
                       .n = desc.n};
    MOEI_TRY(find_format(ctx, &desc, &made));
    MOEI_TRY(check_device(ctx, &made));
    MOEI_TRY(check_shape(ctx, &desc));
    MOEI_TRY(moei_ctx_need(ctx, "moe_packed_create", "b", b));
    MOEI_TRY(moei_ctx_whole(ctx, "moe_packed_create", "b", b, moe_dtype_bytes(desc.dtype)));
    lay_out(&made);
    moe_packed *p = moe_ctx_alloc(ctx, sizeof *p);
    if (!p) return moei_ctx_no_memory(ctx, "packed weights");
    *p = made;
    const moe_status status = pack(p, b);
    if (status != MOE_OK) {
        moe_packed_destroy(p);
        return status;
    }
    *packed = p;
    return MOE_OK;
}

void moe_packed_destroy(moe_packed *packed) {
    if (!packed) return;
    moei_memory_free(packed->ctx, packed->data, packed->bytes);
    moe_ctx_free(packed->ctx, packed, sizeof *packed);
}

size_t moe_packed_bytes(const moe_packed *packed) {
    return packed ? packed->bytes : 0;
}

typedef struct read_job {
    const moe_packed *p;
    void *out;
} read_job;

static void read_task(void *arg, int64_t row, void *scratch) {
    const read_job *job = arg;
    const moe_packed *p = job->p;
    (void)scratch;
    for (int64_t j = 0; j < p->n; ++j)
        moei_real_store(p->dtype, job->out, row * p->n + j, moei_packed_value(p, row / p->k, row % p->k, j));
}

moe_status moe_packed_read(const moe_packed *packed, void *b) {
    if (!packed) return MOE_ERR_ARGUMENT;
    moe_ctx *ctx = packed->ctx;
    moe_packed here = *packed;
    const int64_t rows = packed->n_groups * packed->k;
    const size_t b_bytes = (size_t)(rows * packed->n) * moe_dtype_bytes(packed->dtype);
    MOEI_TRY(moei_ctx_need(ctx, "moe_packed_read", "b", b));
    MOEI_TRY(moei_ctx_whole(ctx, "moe_packed_read", "b", b, moe_dtype_bytes(packed->dtype)));
    if (ctx->host) here.data = moe_ctx_alloc(ctx, packed->bytes);
    void *view = moei_memory_open(ctx, b, b_bytes);
    moe_status status =
        here.data && view ? MOE_OK : moei_ctx_no_memory(ctx, "packed weights to be read, on the host");
    if (status == MOE_OK && ctx->host) status = moei_memory_copy(ctx, here.data, packed->data, packed->bytes);
    if (status == MOE_OK) {
        read_job job = {&here, view};
        moei_parallel(host_team(ctx), rows, read_task, &job);
    }
    if (ctx->host) moe_ctx_free(ctx, here.data, packed->bytes);
    if (status == MOE_OK) return moei_memory_close(ctx, b, view, b_bytes);
    if (view != b) moe_ctx_free(ctx, view, b_bytes);
    return status;
}
