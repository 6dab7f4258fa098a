/* expert_mixed.c: unequal experts in one layer: neighbours of one kind form a part, parts run one by one.
 * Rows of part p are rows offset[first] .. offset[first + count] of the plan; each part sees them from 0 on.
 * Source: Wang et al., "HMoE: heterogeneous mixture of experts", 2024.
 */
#include "core/arena.h"
#include "core/memory.h"
#include "core/real.h"
#include "experts/experts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 56, OWN_NAME = NAME - (int)sizeof "65535" }; /* of a parameter; without its first expert */

typedef struct part {
    const moe_expert_ops *ops;
    void *self;
    int32_t first, count; /* experts */
    int32_t d_hidden;
} part;

typedef struct mixed {
    moe_ctx *ctx;
    moe_expert_desc desc;
    int32_t n_parts;
    part *part;           /* [n_experts] of which n_parts are used */
    int64_t *whole, *own; /* [n_experts + 1] of the call, of a part; where the host counts */
    int64_t *offset;      /* and of a part, where the kernels read it */
    char (*name)[NAME];   /* of parameters, by number */
    int32_t n_params;
} mixed;

bool moei_kind_next(const char **list, moei_kind *kind) {
    while (**list == ' ' || **list == ',') ++*list;
    const size_t length = strcspn(*list, ", ");
    if (length == 0 || length >= sizeof kind->name) return false;
    memcpy(kind->name, *list, length);
    kind->name[length] = '\0';
    *list += length;
    char *end;
    kind->count = 1;
    kind->width = strtoll(kind->name, &end, 10);
    if (*end == 'x' && kind->width >= 1 && kind->width <= MOEI_KIND_COUNT_MAX) {
        kind->count = (int32_t)kind->width;
        memmove(kind->name, end + 1, strlen(end));
        kind->width = strtoll(kind->name, &end, 10);
    }
    kind->is_width = *end == '\0' && end > kind->name;
    return true;
}

static moe_status find_kind(const mixed *m, const moei_kind *kind, part *found) {
    *found = (part){.count = kind->count, .d_hidden = m->desc.d_hidden};
    if (kind->is_width) {
        found->ops = &moei_expert_ffn;
        found->d_hidden = (int32_t)kind->width;
        return MOE_OK;
    }
    const char *word = kind->name;
    found->ops = moei_expert_find(m->ctx, word);
    if (!found->ops)
        return moe_ctx_fail(
            m->ctx, MOE_ERR_ARGUMENT,
            "expert_kinds: '%s' is neither a width nor a kind; built in are identity and zero", word);
    if (found->ops->contiguous)
        return moe_ctx_fail(m->ctx, MOE_ERR_UNSUPPORTED,
                            "expert_kinds: '%s' cannot stand beside others: it wants its rows gathered",
                            word);
    return MOE_OK;
}

/* As many entries as experts, of legal widths: the layer has checked its descriptor. */
static moe_status read_kinds(mixed *m) {
    const char *list = m->desc.kinds;
    moei_kind kind;
    for (int32_t e = 0; moei_kind_next(&list, &kind); e += kind.count) {
        part found;
        MOEI_TRY(find_kind(m, &kind, &found));
        part *last = m->n_parts > 0 ? &m->part[m->n_parts - 1] : NULL;
        if (last && last->ops == found.ops && last->d_hidden == found.d_hidden) {
            last->count += found.count;
            continue;
        }
        found.first = e;
        m->part[m->n_parts++] = found;
    }
    return MOE_OK;
}

/* sigma-MoE's width of all experts together is not a part's own. */
static void spread_sigma(const mixed *m, moe_expert_desc *told) {
    if (!told->init_scheme || strcmp(told->init_scheme, "sigma_moe") != 0) return;
    double total = 0;
    for (int32_t p = 0; p < m->n_parts; ++p)
        if (m->part[p].ops == &moei_expert_ffn) total += (double)m->part[p].count * m->part[p].d_hidden;
    told->init_scheme = "normal";
    told->init_std = (float)((double)told->init_std_scale / sqrt((double)told->d_in));
    told->init_std_down = (float)((double)told->init_std_scale / sqrt(total));
}

static moe_status create_part(mixed *m, part *p) {
    moe_expert_desc told = m->desc;
    told.n_experts = p->count;
    told.d_hidden = p->d_hidden;
    told.stream = 2 + (uint64_t)p->first; /* 0 and 1 are the routed and the shared experts of plain layers */
    told.kinds = "";
    spread_sigma(m, &told);
    MOEI_TRY(moei_expert_create(m->ctx, p->ops, &told, &p->self));
    m->n_params += p->ops->param_count(p->self);
    return MOE_OK;
}

static void mixed_destroy(void *self) {
    mixed *m = self;
    if (!m) return;
    const size_t E = (size_t)m->desc.n_experts;
    for (int32_t p = 0; p < m->n_parts; ++p)
        if (m->part[p].self) m->part[p].ops->destroy(m->part[p].self);
    moe_ctx_free(m->ctx, m->name, (size_t)m->n_params * sizeof *m->name);
    moe_ctx_free(m->ctx, m->whole, (E + 1) * sizeof *m->whole);
    moe_ctx_free(m->ctx, m->own, (E + 1) * sizeof *m->own);
    moei_memory_free(m->ctx, m->offset, (E + 1) * sizeof *m->offset);
    moe_ctx_free(m->ctx, m->part, E * sizeof *m->part);
    moe_ctx_free(m->ctx, m, sizeof *m);
}

/* The part and its own number of parameter `index`. */
static const part *owner_of(const mixed *m, int32_t *index) {
    const part *p = m->part;
    for (; *index >= p->ops->param_count(p->self); ++p) *index -= p->ops->param_count(p->self);
    return p;
}

static moe_status name_params(mixed *m) {
    if (m->n_params == 0) return MOE_OK;
    m->name = moe_ctx_alloc(m->ctx, (size_t)m->n_params * sizeof *m->name);
    if (!m->name) return moei_ctx_no_memory(m->ctx, "names of parameters");
    for (int32_t i = 0; i < m->n_params; ++i) {
        int32_t index = i;
        const part *p = owner_of(m, &index);
        moe_param param = {.size = sizeof param};
        MOEI_TRY(moei_expert_check_param(m->ctx, p->ops, p->self, index, OWN_NAME));
        MOEI_TRY(p->ops->param(p->self, index, &param));
        snprintf(m->name[i], sizeof *m->name, "%d.%s", p->first, param.name);
    }
    return MOE_OK;
}

static moe_status build(mixed *m) {
    const size_t E = (size_t)m->desc.n_experts;
    m->part = moe_ctx_alloc(m->ctx, E * sizeof *m->part);
    m->whole = moe_ctx_alloc(m->ctx, (E + 1) * sizeof *m->whole);
    m->own = moe_ctx_alloc(m->ctx, (E + 1) * sizeof *m->own);
    m->offset = moei_memory_alloc(m->ctx, (E + 1) * sizeof *m->offset);
    if (!m->part || !m->whole || !m->own || !m->offset)
        return moei_ctx_no_memory(m->ctx, "the experts of expert_kinds");
    MOEI_TRY(read_kinds(m));
    for (int32_t p = 0; p < m->n_parts; ++p) MOEI_TRY(create_part(m, &m->part[p]));
    return name_params(m);
}

static moe_status mixed_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    mixed *m = moe_ctx_alloc(ctx, sizeof *m);
    if (!m) return moei_ctx_no_memory(ctx, "experts");
    *m = (mixed){.ctx = ctx, .desc = *desc};
    const moe_status status = build(m);
    if (status != MOE_OK) {
        if (!m->name) m->n_params = 0;
        mixed_destroy(m);
        return status;
    }
    *self = m;
    return MOE_OK;
}

static int32_t mixed_param_count(const void *self) {
    return ((const mixed *)self)->n_params;
}

static moe_status mixed_param(const void *self, int32_t index, moe_param *param) {
    const mixed *m = self;
    const char *name = m->name[index];
    const part *p = owner_of(m, &index);
    MOEI_TRY(p->ops->param(p->self, index, param));
    param->name = name;
    return MOE_OK;
}

static void mixed_bind_grad(void *self, int32_t index, void *grad) {
    const part *p = owner_of(self, &index);
    p->ops->bind_grad(p->self, index, grad);
}

void moei_expert_mixed_bind_value(void *self, int32_t index, void *value) {
    const part *p = owner_of(self, &index);
    moei_expert_bind_value(p->ops, p->self, index, value);
}

/* The rows are divided among the parts. What our own kinds save is proportional to rows, so together they
 * need no more than the hungriest of them for all rows; of others nothing is known. */
static size_t mixed_saved_bytes(const void *self, int64_t max_rows) {
    const mixed *m = self;
    size_t most = 0, others = 0;
    for (int32_t i = 0; i < m->n_parts; ++i) {
        const size_t bytes = m->part[i].ops->saved_bytes(m->part[i].self, max_rows);
        if (m->part[i].ops != &moei_expert_ffn)
            others += bytes + MOEI_ALIGN_LARGE;
        else if (bytes > most)
            most = bytes;
    }
    return most + others + (size_t)m->n_parts * MOEI_ALIGN_LARGE;
}

/* Parts run one after another and share it. */
static size_t mixed_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    const mixed *m = self;
    size_t most = 0;
    for (int32_t i = 0; i < m->n_parts; ++i) {
        const size_t bytes = m->part[i].ops->scratch_bytes(m->part[i].self, max_rows, mode);
        if (bytes > most) most = bytes;
    }
    return most;
}

static moe_mat rows_from(moe_mat rows, int64_t first) {
    if (rows.data) rows.data = moei_real_at(rows.dtype, rows.data, first * rows.stride);
    return rows;
}

/* The part's share of a call. Inputs stay whole where rows are told by token, else they are cut too. */
static moe_expert_io io_of(const mixed *m, const part *p, const moe_expert_io *io, moei_arena *saved) {
    const int64_t begin = m->whole[p->first];
    moe_expert_io cut = *io;
    cut.n_experts = p->count;
    cut.n_rows = m->whole[p->first + p->count] - begin;
    cut.offset = m->offset;
    cut.overwrite_grad = io->overwrite_grad && p->ops->overwrites;
    cut.out = rows_from(io->out, begin);
    cut.din = rows_from(io->din, begin);
    if (io->row_token)
        cut.row_token += begin;
    else {
        cut.in = rows_from(io->in, begin);
        cut.dout = rows_from(io->dout, begin);
    }
    if (io->row_slot) cut.row_slot += begin;
    const moe_dtype weight_dtype = moei_wide(m->desc.dtype);
    if (io->row_weight)
        cut.row_weight = (const char *)io->row_weight + (size_t)begin * moe_dtype_bytes(weight_dtype);
    if (io->drow_weight) cut.drow_weight = moei_real_at(weight_dtype, io->drow_weight, begin);
    cut.saved = moei_arena_take(saved, p->ops->saved_bytes(p->self, cut.n_rows));
    return cut;
}

/* Runs every part; on a device the offsets come to the host first. */
static moe_status run_parts(const mixed *m, const moe_expert_io *io, bool forward) {
    moei_arena saved = {io->saved, 0};
    MOEI_TRY(
        moei_memory_copy(m->ctx, m->whole, io->offset, (size_t)(m->desc.n_experts + 1) * sizeof *m->whole));
    for (int32_t i = 0; i < m->n_parts; ++i) {
        const part *p = &m->part[i];
        const moe_expert_io cut = io_of(m, p, io, &saved);
        for (int32_t e = 0; e <= p->count; ++e) m->own[e] = m->whole[p->first + e] - m->whole[p->first];
        MOEI_TRY(moei_memory_copy(m->ctx, m->offset, m->own, (size_t)(p->count + 1) * sizeof *m->own));
        moei_expert_ask(m->ctx);
        MOEI_TRY(moei_expert_answer(m->ctx, p->ops, forward ? "forward" : "backward",
                                    (forward ? p->ops->forward : p->ops->backward)(p->self, &cut)));
    }
    return MOE_OK;
}

static moe_status mixed_forward(void *self, const moe_expert_io *io) {
    return run_parts(self, io, true);
}

static moe_status mixed_backward(void *self, const moe_expert_io *io) {
    return run_parts(self, io, false);
}

const char *moei_expert_mixed_forward_only(const void *self) {
    const mixed *m = self;
    for (int32_t i = 0; i < m->n_parts; ++i)
        if (!m->part[i].ops->backward) return m->part[i].ops->name;
    return NULL;
}

bool moei_expert_mixed_overwrites(const void *self, int32_t index) {
    return owner_of(self, &index)->ops->overwrites;
}

const moe_expert_ops moei_expert_mixed = {.size = sizeof(moe_expert_ops),
                                          .name = "mixed",
                                          .create = mixed_create,
                                          .destroy = mixed_destroy,
                                          .param_count = mixed_param_count,
                                          .param = mixed_param,
                                          .bind_grad = mixed_bind_grad,
                                          .saved_bytes = mixed_saved_bytes,
                                          .scratch_bytes = mixed_scratch_bytes,
                                          .forward = mixed_forward,
                                          .backward = mixed_backward,
                                          .on_device = true,
                                          .overwrites = true}; /* where its kinds do */
