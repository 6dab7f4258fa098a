/* golden.c: golden [--device cuda] FILE...: repeats recorded runs of other systems and compares every number.
 * One line a case, with its largest error; closes with "N passed, N failed"; exits 1 if any failed, and 77
 * where there is no such device.
 * Source: files as golden_shared.safetensors beside this; golden.h says what is compared how.
 */
#include "golden.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct golden_system {
    const char *name;
    void (*run)(golden_case *c);
} golden_system;

static const golden_system systems[] = {
    {"lucidrains MoE",              golden_lucid             },
    {"lucidrains MoE hierarchical", golden_lucid_hierarchical},
    {"sigma-MoE",                   golden_sigma             },
    {"NeMo Automodel MoE",          golden_automodel         },
    {"Megatron-core topk routing",  golden_megatron_topk     },
    {"Megatron-core",               golden_megatron_losses   },
    {"Megatron-core sinkhorn",      golden_megatron_sinkhorn },
    {"Megatron-core dropping",      golden_megatron_dropping },
    {"Megatron-core permute",       golden_megatron_permute  },
};

/* Whether a tensor is called "name/...". */
static bool belongs(const moelm_st_tensor *tensor, const char *name) {
    size_t length = strlen(name);
    return strncmp(tensor->name, name, length) == 0 && tensor->name[length] == '/';
}

static void collect_tensors(golden_case *c, const moelm_safetensors *file) {
    c->tensor = golden_alloc(c, moelm_safetensors_count(file), sizeof *c->tensor);
    for (size_t i = 0; i < moelm_safetensors_count(file); ++i) {
        const moelm_st_tensor *tensor = moelm_safetensors_at(file, i);
        if (!belongs(tensor, c->name)) continue;
        int64_t count = 1;
        for (int32_t j = 0; j < tensor->n_dim; ++j) count *= tensor->dim[j];
        c->tensor[c->n_tensors++] = (golden_tensor){.recorded = tensor, .count = count};
    }
}

static void dispatch(golden_case *c) {
    const char *name = golden_text(c, "system", "");
    for (size_t i = 0; i < sizeof systems / sizeof *systems; ++i)
        if (strcmp(systems[i].name, name) == 0) {
            systems[i].run(c);
            return;
        }
    golden_fail(c, "system '%s' is not known", name);
}

static const golden_tensor *tensor_named(const golden_case *c, const char *name) {
    for (size_t i = 0; i < c->n_tensors; ++i)
        if (strcmp(strchr(c->tensor[i].recorded->name, '/') + 1, name) == 0) return &c->tensor[i];
    return NULL;
}

/* A gradient has the shape of what it is of: d_x of x, dout of out. */
static void check_shapes(golden_case *c) {
    for (size_t i = 0; !c->failed && i < c->n_tensors; ++i) {
        const moelm_st_tensor *grad = c->tensor[i].recorded;
        const char *name = strchr(grad->name, '/') + 1;
        const char *of = strncmp(name, "d_", 2) == 0 ? name + 2 : strcmp(name, "dout") == 0 ? "out" : "";
        const golden_tensor *value = tensor_named(c, of);
        if (!value) continue;
        bool same = grad->n_dim == value->recorded->n_dim;
        for (int32_t j = 0; same && j < grad->n_dim; ++j) same = grad->dim[j] == value->recorded->dim[j];
        if (!same) golden_fail(c, "'%s' has another shape than '%s'", name, of);
    }
}

/* Nothing recorded may go unseen. */
static void check_all_used(golden_case *c) {
    for (size_t i = 0; !c->failed && i < c->n_tensors; ++i)
        if (!c->tensor[i].used)
            golden_fail(c, "tensor '%s' is neither an input nor compared", c->tensor[i].recorded->name);
    if (!c->failed && c->n_compared == 0) golden_fail(c, "nothing is compared");
}

static void print_line(const golden_case *c) {
    if (c->failed)
        printf("FAIL %-34s %s", c->name, c->why);
    else if (c->worst_name[0])
        printf("ok   %-34s %2d compared, largest error %.1e in %s", c->name, c->n_compared, c->worst,
               c->worst_name);
    else
        printf("ok   %-34s %2d compared exactly", c->name, c->n_compared);
    if (c->note[0]) printf(" (%s)", c->note);
    if (c->absent[0]) printf(" (not recorded: %s)", c->absent);
    printf("\n");
}

static void close_case(golden_case *c) {
    for (int i = 0; i < c->n_layers; ++i) moe_layer_destroy(c->layer[i]);
    for (size_t i = 0; i < c->n_sent; ++i) moe_memory_free(c->ctx, c->sent[i].memory, c->sent[i].bytes);
    free(c->sent);
    moe_ctx_destroy(c->ctx);
    json_decref(c->option);
    for (size_t i = 0; i < c->n_blocks; ++i) free(c->block[i]);
    free(c->block);
}

/* Returns whether the case passed. */
static bool run_case(const moelm_safetensors *file, moe_device device, const char *name,
                     const char *options) {
    golden_case c = {.name = name, .on_device = device != MOE_CPU};
    moe_error error = {0};
    const moe_ctx_desc desc = {.size = sizeof desc, .device = device, .seed = 1};
    collect_tensors(&c, file);
    if (!options)
        golden_fail(&c, "no metadata for these tensors");
    else if (moelm_json_parse(name, options, strlen(options), &c.option, &error) != MOE_OK ||
             moe_ctx_create(&desc, &c.ctx, &error) != MOE_OK)
        golden_fail(&c, "%s", error.text);
    else if (!json_is_object(c.option))
        golden_fail(&c, "the metadata is not a JSON object");
    else
        dispatch(&c);
    check_shapes(&c);
    check_all_used(&c);
    print_line(&c);
    close_case(&c);
    return !c.failed;
}

/* Metadata that is no case: a word about the file that no tensor is named after. */
static bool is_remark(const moelm_safetensors *file, moelm_st_pair pair) {
    for (size_t i = 0; i < moelm_safetensors_count(file); ++i)
        if (belongs(moelm_safetensors_at(file, i), pair.key)) return false;
    return pair.value[0] != '{';
}

/* Tensors that no metadata speaks of, once for each name before their slash. */
static int count_orphans(const moelm_safetensors *file) {
    int n_failed = 0;
    char last[300] = "";
    for (size_t i = 0; i < moelm_safetensors_count(file); ++i) {
        const char *name = moelm_safetensors_at(file, i)->name;
        char head[300];
        snprintf(head, sizeof head, "%.*s", (int)strcspn(name, "/"), name);
        if (strcmp(head, last) == 0 || moelm_safetensors_metadata(file, head)) continue;
        memcpy(last, head, sizeof last);
        run_case(file, MOE_CPU, head, NULL);
        ++n_failed;
    }
    return n_failed;
}

typedef struct tally {
    int passed, failed;
} tally;

static void run_file(const char *path, moe_device device, tally *all) {
    const int before = all->passed + all->failed;
    moelm_safetensors *file = NULL;
    moe_error error = {0};
    if (moelm_safetensors_open(path, &file, &error) != MOE_OK) {
        printf("FAIL %s\n", error.text);
        ++all->failed;
        return;
    }
    for (size_t i = 0; i < moelm_safetensors_metadata_count(file); ++i) {
        const moelm_st_pair pair = moelm_safetensors_metadata_at(file, i);
        if (is_remark(file, pair))
            printf("     %s: no case: \"%s\"\n", pair.key, pair.value);
        else
            ++*(run_case(file, device, pair.key, pair.value) ? &all->passed : &all->failed);
    }
    all->failed += count_orphans(file);
    if (all->passed + all->failed == before) {
        printf("FAIL %s: no case in it\n", path);
        ++all->failed;
    }
    moelm_safetensors_close(file);
}

static int print_usage(bool asked) {
    fprintf(asked ? stdout : stderr,
            "usage: golden [--device cpu|cuda] FILE...\n"
            "Repeats the recorded runs in safetensors files and compares every number.\n");
    return asked ? 0 : MOE_ERR_ARGUMENT;
}

/* 0, or the exit code: 77, as of a skipped test, where this machine or build has no such device. */
static int try_device(moe_device device) {
    const moe_ctx_desc desc = {.size = sizeof desc, .device = device};
    moe_ctx *ctx = NULL;
    moe_error error = {0};
    const moe_status status = moe_ctx_create(&desc, &ctx, &error);
    moe_ctx_destroy(ctx);
    if (status == MOE_OK) return 0;
    fprintf(stderr, "not run here: %s\n", error.text);
    return status == MOE_ERR_UNSUPPORTED ? 77 : (int)status;
}

int main(int argc, char **argv) {
    moe_device device = MOE_CPU;
    int first = 1;
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) return print_usage(true);
    if (argc > 2 && strcmp(argv[1], "--device") == 0) {
        if (strcmp(argv[2], "cuda") == 0)
            device = MOE_CUDA;
        else if (strcmp(argv[2], "cpu") != 0)
            return print_usage(false);
        first = 3;
    }
    if (first == argc) return print_usage(false);
    const int code = try_device(device);
    if (code) return code;
    tally all = {0};
    for (int i = first; i < argc; ++i) run_file(argv[i], device, &all);
    printf("%d passed, %d failed\n", all.passed, all.failed);
    return all.failed > 0;
}
