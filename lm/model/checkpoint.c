/* checkpoint.c: a model read from and written to a directory: config.json and safetensors.
 * The family names tensors and says where their numbers stand, slice.c moves them; here files are checked.
 * Source: Hugging Face's checkpoint layout.
 */
#include "model/checkpoint.h"

#include "core/ctx.h"
#include "core/locale.h"
#include "core/real.h"
#include "format/file.h"
#include "format/publish.h"
#include "format/safetensors.h"
#include "model/checksum.h"
#include "model/families/family.h"

#include <moekit/quant.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* 1. Reading. */

typedef struct reader {
    moe_ctx *ctx;
    const char *directory;
    const moelm_safetensors *file;
    size_t n_met;
} reader;

/* The tensor of a slice, which is there, has its shape and can be read. */
static moe_status find_tensor(const reader *r, const moelm_slice *slice, const moelm_st_tensor **tensor) {
    moe_error error;
    if (moelm_safetensors_get(r->file, slice->name, slice->n_dim, slice->dim, tensor, &error) != MOE_OK)
        return moelm_fail(r->ctx, &error);
    const moelm_st_dtype dtype = (*tensor)->dtype;
    if (dtype == MOELM_ST_F32 || dtype == MOELM_ST_BF16 || dtype == MOELM_ST_F16) return MOE_OK;
    return moe_ctx_fail(r->ctx, MOE_ERR_INPUT, "%s: tensor '%s' is %s; F32, BF16 and F16 can be read",
                        r->directory, slice->name, moelm_st_dtype_name(dtype));
}

static moe_status meet_tensor(void *user, const moelm_slice *slice) {
    reader *r = user;
    const moelm_st_tensor *tensor;
    MOEI_TRY(find_tensor(r, slice, &tensor));
    ++r->n_met;
    return MOE_OK;
}

/* Tensors are read in the order of their files, each once: what comes next is asked for while one is moved,
 * and what was moved need not stay. */
static void move_tensor(const reader *r, const moelm_slice *slice, const moelm_st_tensor *tensor) {
    enum { AHEAD = 64 << 20 }; /* a disk that gives 1 GB/s is asked 64 ms before */
    const moelm_file_map *map = moelm_safetensors_map(r->file, tensor);
    const size_t first = map ? (size_t)((const unsigned char *)tensor->data - map->data) : 0;
    if (map) moelm_file_map_ahead(map, first + AHEAD, tensor->bytes);
    moelm_slice_read(r->ctx, slice, tensor);
    if (map) moelm_file_map_done(map, first, tensor->bytes);
}

static moe_status read_tensor(void *user, const moelm_slice *slice) {
    const reader *r = user;
    const moelm_st_tensor *tensor;
    MOEI_TRY(find_tensor(r, slice, &tensor));
    move_tensor(r, slice, tensor);
    return MOE_OK;
}

/* MOE_ERR_STATE ends the walk at the name that is looked for. */
static moe_status find_name(void *user, const moelm_slice *slice) {
    return strcmp(user, slice->name) == 0 ? MOE_ERR_STATE : MOE_OK;
}

static moe_status check_extra(const moe_lm *lm, const moelm_family *family, const reader *r) {
    size_t count = moelm_safetensors_count(r->file);
    for (size_t i = 0; r->n_met < count && i < count; ++i) {
        char *name = strdup(moelm_safetensors_at(r->file, i)->name);
        if (!name) return moe_ctx_fail(r->ctx, MOE_ERR_MEMORY, "no memory for a name");
        moe_status known = moelm_family_visit(family, lm, find_name, name);
        free(name);
        if (known == MOE_OK)
            return moe_ctx_fail(r->ctx, MOE_ERR_INPUT,
                                "%s: tensor '%s' has no place in the %s model that config.json describes",
                                r->directory, moelm_safetensors_at(r->file, i)->name, family->model_type);
    }
    return MOE_OK;
}

/* Summed hidden widths of a layer's routed experts; of kinds that are no width, nothing. */
static double routed_width(const moe_layer_desc *desc) {
    const char *kinds = desc->expert_kinds;
    double sum = 0;
    if (desc->expert && strcmp(desc->expert, "ffn") != 0) return 0;
    if (!kinds || !*kinds) return (double)desc->num_experts * desc->expert_hidden_size;
    for (; *kinds; kinds += strcspn(kinds, ","), kinds += *kinds == ',') {
        char *end;
        const double number = moei_real_parse(kinds, &end);
        sum += fmax(0, *end == 'x' ? number * moei_real_parse(end + 1, NULL) : number);
    }
    return isfinite(sum) ? sum : 0;
}

/* Less than what the model needs. */
static double least_numbers(const moe_lm_config *config) {
    const moelm_model_config *m = &config->model;
    double d = m->d_model, head = m->head_dim ? m->head_dim : d / m->n_heads,
           numbers = (double)m->vocab_size * d;
    for (int32_t i = 0; i < m->n_layers; ++i) {
        moe_layer_desc desc;
        moelm_config_layer(config, i, &desc);
        double shared = (double)desc.num_shared_experts * desc.shared_expert_hidden_size;
        double width = desc.latent_size > 0 ? desc.latent_size : d;
        numbers += 2.0 * d * (m->n_heads * head + shared) + 2.0 * width * routed_width(&desc);
        if (desc.num_groups_outer == 0) numbers += d * desc.num_experts;
    }
    return numbers;
}

/* Whether shapes of the model take no memory; registered kinds of experts, and mixed ones, may. */
static bool has_plain_experts(const moe_lm_config *config) {
    moe_layer_desc desc;
    moelm_config_layer(config, config->model.n_layers - 1, &desc);
    return (!desc.expert || strcmp(desc.expert, "ffn") == 0) && (!desc.expert_kinds || !*desc.expert_kinds);
}

/* A damaged config.json cannot ask for memory without end: where shapes take some, they are worth it. */
static moe_status check_size(const moe_lm_config *config, const moelm_safetensors *file, moe_error *error) {
    enum { SLACK = 1 << 20 }; /* small models are left to the messages that name a tensor */
    if (has_plain_experts(config)) return MOE_OK;
    double need = least_numbers(config), held = 0;
    for (size_t i = 0; i < moelm_safetensors_count(file); ++i) {
        const moelm_st_tensor *tensor = moelm_safetensors_at(file, i);
        held += (double)(tensor->bytes / moelm_st_dtype_bytes(tensor->dtype));
    }
    if (need <= 2 * held + SLACK) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INPUT,
                          "config.json: describes a model of %.3g numbers or more, but the tensors hold %.3g",
                          need, held);
}

/* Tells where the config.json is that a text is of, whether it names it or a setting. */
static moe_status found_in(const char *directory, moe_status status, moe_error *error) {
    if (status == MOE_OK || !error) return status;
    const moe_error found = *error;
    const bool named = strncmp(found.text, "config.json", strlen("config.json")) == 0;
    return moei_error_set(error, status, "%s/%s%s", directory, named ? "" : "config.json: ", found.text);
}

static moe_status read_config(const char *directory, const moelm_family **family, moe_lm_config *config,
                              moe_error *error) {
    char *path = moelm_path_join(directory, "config.json");
    if (!path) return moei_error_set(error, MOE_ERR_MEMORY, "no memory for a path");
    json_t *root = NULL;
    moe_status status = moelm_json_load(path, &root, error);
    free(path);
    MOEI_TRY(status);
    status = moelm_family_read(root, family, config, error);
    json_decref(root);
    return found_in(directory, status, error);
}

/* A checkpoint, open: what it says of its model, and the file of tensors. */
typedef struct opened {
    const char *directory;
    const moelm_family *family;
    moe_lm_config *config;
    moelm_safetensors *file;
} opened;

static moe_status open_files(const char *directory, const char *dtype, opened *s, moe_error *error) {
    *s = (opened){.directory = directory};
    MOEI_TRY(moe_lm_config_create(&s->config, error));
    MOEI_TRY(read_config(directory, &s->family, s->config, error));
    if (dtype) MOEI_TRY(moe_lm_config_set(s->config, "model.dtype", dtype, "load", error));
    MOEI_TRY(moelm_safetensors_open(directory, &s->file, error));
    MOEI_TRY(moelm_checksum_check(directory, "model.safetensors", error));
    return found_in(directory, check_size(s->config, s->file, error), error);
}

static void close_files(opened *s) {
    moelm_safetensors_close(s->file);
    moe_lm_config_destroy(s->config);
}

/* Every tensor by name, shape and type, before there is memory for one. */
static moe_status check_tensors(const moe_lm *shapes, const opened *s) {
    reader r = {.ctx = shapes->ctx, .directory = s->directory, .file = s->file};
    MOEI_TRY(moelm_family_visit(s->family, shapes, meet_tensor, &r));
    return check_extra(shapes, s->family, &r);
}

/* Block by block, so that what is packed is never there unpacked but for one layer. */
static moe_status read_tensors(moe_lm *lm, const opened *s, const moe_quant_desc *experts) {
    reader r = {.ctx = lm->ctx, .directory = s->directory, .file = s->file};
    MOEI_TRY(moelm_fill_tensors(lm));
    for (int32_t part = 0; part <= lm->n_layers + 1; ++part) {
        const int32_t index = part - 1;
        const bool is_block = index >= 0 && index < lm->n_layers;
        if (is_block) MOEI_TRY(moelm_fill_layer(lm, index));
        MOEI_TRY(s->family->visit(s->family, lm, part, read_tensor, &r));
        if (is_block && experts) MOEI_TRY(moe_layer_quantize(lm->blocks[index].ffn, experts));
    }
    return MOE_OK;
}

static moe_status load(moe_ctx *ctx, const opened *s, const moe_quant_desc *experts, moe_lm **lm) {
    moe_lm *made;
    MOEI_TRY(moelm_create_shapes(ctx, s->config, &made));
    moe_status status = check_tensors(made, s);
    if (status == MOE_OK) status = read_tensors(made, s, experts);
    if (status == MOE_OK)
        *lm = made;
    else
        moe_lm_destroy(made);
    return status;
}

moe_status moe_lm_load(moe_ctx *ctx, const char *directory, moe_lm **lm) {
    return moe_lm_load_as(ctx, directory, NULL, lm);
}

moe_status moe_lm_load_as(moe_ctx *ctx, const char *directory, const char *dtype, moe_lm **lm) {
    const moe_lm_load_desc desc = {.size = sizeof desc, .dtype = dtype};
    return moe_lm_load_with(ctx, directory, &desc, lm);
}

moe_status moe_lm_load_with(moe_ctx *ctx, const char *directory, const moe_lm_load_desc *desc, moe_lm **lm) {
    moe_lm_load_desc ours;
    MOEI_TRY(moei_ctx_need(ctx, "moe_lm_load", "lm", lm));
    MOEI_TRY(moei_ctx_desc_read(ctx, &ours, sizeof ours, desc, "moe_lm_load_desc"));
    MOEI_TRY(moelm_checkpoint_open(ctx, directory, &ours, lm));
    moelm_warn_of_foresight(*lm);
    return MOE_OK;
}

moe_status moelm_checkpoint_open(moe_ctx *ctx, const char *directory, const moe_lm_load_desc *desc,
                                 moe_lm **lm) {
    MOEI_TRY(moei_ctx_need(ctx, "moe_lm_load", "directory", directory));
    const moe_quant_desc experts = {
        .size = sizeof experts, .format = desc->experts, .group = desc->experts_group, .drop_weights = true};
    moe_error error = {0};
    opened s;
    moe_status status = open_files(directory, desc->dtype, &s, &error);
    status = status == MOE_OK ? load(ctx, &s, desc->experts ? &experts : NULL, lm) : moelm_fail(ctx, &error);
    close_files(&s);
    return status;
}

static bool is_of_model(const char *key) {
    return strncmp(key, "model.", 6) == 0 || strncmp(key, "moe.", 4) == 0;
}

/* Every model.* and moe.* entry of `from`. Those with their default are nobody's word, so that they yield to
 * what another system's name implies; the preset is what its settings are. */
static moe_status take_model(moe_lm_config *config, const moe_lm_config *from, const moe_lm_config *fresh,
                             moe_error *error) {
    config->model = fresh->model;
    config->preset = fresh->preset;
    config->moe = fresh->moe;
    for (size_t i = 0; i < config->count; ++i)
        if (is_of_model(config->row[i].key)) memcpy(config->origin[i], fresh->origin[i], MOELM_ORIGIN);
    for (size_t i = 0; i < config->count; ++i) {
        moe_lm_config_entry there, initial;
        const char *key = config->row[i].key;
        moe_lm_config_entry_get(from, i, &there);
        moe_lm_config_entry_get(fresh, i, &initial);
        if (!is_of_model(key) || moelm_config_is_preset(from, key) || strcmp(there.value, initial.value) == 0)
            continue;
        MOEI_TRY(moe_lm_config_set(config, key, there.value, "config.json", error));
    }
    return MOE_OK;
}

static moe_status load_config(moe_lm_config *config, const moe_lm_config *from, moe_error *error) {
    moe_lm_config *fresh;
    moelm_config_copy copy;
    MOEI_TRY(moe_lm_config_create(&fresh, error));
    moe_status status = moelm_config_keep(config, &copy, error);
    if (status == MOE_OK) {
        status = take_model(config, from, fresh, error);
        moelm_config_settle(config, &copy, status);
    }
    moe_lm_config_destroy(fresh);
    return status;
}

moe_status moe_lm_config_load_checkpoint(moe_lm_config *config, const char *directory, moe_error *error) {
    const moelm_family *family;
    moe_lm_config *from;
    MOEI_TRY(moei_error_need(error, "moe_lm_config_load_checkpoint", "config", config));
    MOEI_TRY(moei_error_need(error, "moe_lm_config_load_checkpoint", "directory", directory));
    MOEI_TRY(moe_lm_config_create(&from, error));
    moe_status status = read_config(directory, &family, from, error);
    if (status == MOE_OK) status = load_config(config, from, error);
    moe_lm_config_destroy(from);
    return status;
}

/* 2. Writing. */

typedef struct writer {
    moe_ctx *ctx;
    moelm_st_tensor *tensor; /* NULL: counting */
    moelm_slice *slice;      /* [count] owns the names */
    size_t count,
        largest; /* bytes of the largest tensor that stands otherwise in the model than in the file */
    void *block; /* [largest] one of them as the file has it */
} writer;

static moe_status add_tensor(void *user, const moelm_slice *slice) {
    writer *w = user;
    const moelm_st_dtype dtype = moelm_slice_type(slice);
    const size_t bytes = (size_t)moelm_slice_numbers(slice) * moelm_st_dtype_bytes(dtype);
    if (!moelm_slice_is_plain(slice) && bytes > w->largest) w->largest = bytes;
    if (w->tensor) {
        w->slice[w->count] = *slice;
        w->tensor[w->count] =
            (moelm_st_tensor){.name = w->slice[w->count].name, .dtype = dtype, .n_dim = slice->n_dim};
        memcpy(w->tensor[w->count].dim, slice->dim, sizeof slice->dim);
    }
    ++w->count;
    return MOE_OK;
}

static const void *data_of(void *user, size_t index) {
    const writer *w = user;
    if (moelm_slice_is_plain(&w->slice[index])) return w->slice[index].value;
    moelm_slice_write(w->ctx, &w->slice[index], w->block);
    return w->block;
}

static moe_status write_file(moe_lm *lm, const moelm_family *family, writer *w, const char *path) {
    moe_error error;
    const moelm_st_pair format = {"format", "pt"}; /* transformers asks for it */
    const moelm_st_source source = {data_of, w};
    w->count = 0;
    MOEI_TRY(moelm_family_visit(family, lm, add_tensor, w));
    if (moelm_safetensors_write_from(path, w->tensor, w->count, &format, 1, &source, &error) == MOE_OK)
        return MOE_OK;
    return moelm_fail(lm->ctx, &error);
}

static moe_status write_tensors(moe_lm *lm, const moelm_family *family, const char *path) {
    writer w = {.ctx = lm->ctx};
    MOEI_TRY(moelm_family_visit(family, lm, add_tensor, &w));
    const size_t count = w.count, bytes = w.largest;
    w.block = moe_ctx_alloc(lm->ctx, bytes);
    if (!w.block) return moei_ctx_no_memory(lm->ctx, "a tensor in the order of its file");
    w.tensor = calloc(count, sizeof *w.tensor);
    w.slice = calloc(count, sizeof *w.slice);
    moe_status status = w.tensor && w.slice
                            ? write_file(lm, family, &w, path)
                            : moe_ctx_fail(lm->ctx, MOE_ERR_MEMORY, "no memory for %zu names", count);
    moe_ctx_free(lm->ctx, w.block, bytes);
    free(w.tensor);
    free(w.slice);
    return status;
}

static moe_status write_config(const moe_lm *lm, const moelm_family *family, const char *path) {
    moe_error error;
    json_t *root = json_pack("{s:s}", "model_type", family->model_type);
    moe_status status = root ? family->write(family, lm->config, root, &error)
                             : moei_error_set(&error, MOE_ERR_MEMORY, "no memory for config.json");
    if (status == MOE_OK) status = moelm_json_save(path, root, &error);
    json_decref(root);
    return status == MOE_OK ? MOE_OK : moelm_fail(lm->ctx, &error);
}

/* A layer may have given its weights back (moe_layer_quantize); what is left is not a checkpoint. */
static moe_status check_values(const moe_lm *lm) {
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        MOEI_TRY(moe_lm_param(lm, i, &param));
        if (!param.value)
            return moe_ctx_fail(
                lm->ctx, MOE_ERR_STATE,
                "moe_lm_save: moe_layer_quantize has given %s back (drop_weights); save before "
                "it, or keep the weights",
                param.name);
    }
    return MOE_OK;
}

moe_status moelm_checkpoint_write(moe_lm *lm, const char *directory) {
    const moelm_family *family = moelm_family_of(lm->config);
    char *config = moelm_path_join(directory, "config.json");
    char *tensors = moelm_path_join(directory, "model.safetensors");
    moe_status status = config && tensors ? write_config(lm, family, config)
                                          : moe_ctx_fail(lm->ctx, MOE_ERR_MEMORY, "no memory for a path");
    if (status == MOE_OK) status = write_tensors(lm, family, tensors);
    free(config);
    free(tensors);
    return status;
}

moe_status moe_lm_save(moe_lm *lm, const char *directory) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_save", "directory", directory));
    moe_error error = {0};
    moelm_publish *publish;
    if (moelm_file_exists(directory))
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "%s exists already; name a new directory", directory);
    MOEI_TRY(check_values(lm));
    if (moelm_publish_begin(directory, &publish, &error) != MOE_OK) return moelm_fail(lm->ctx, &error);
    moe_status status = moelm_checkpoint_write(lm, moelm_publish_path(publish));
    if (status != MOE_OK) {
        moelm_publish_abort(publish);
        return status;
    }
    return moelm_publish_commit(publish, &error) == MOE_OK ? MOE_OK : moelm_fail(lm->ctx, &error);
}
