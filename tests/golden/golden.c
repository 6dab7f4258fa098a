/* golden.c: golden FILE...: repeats recorded runs of other systems and compares every number.
 * One line a case, with its largest error; closes with "N passed, N failed"; exits 1 if any failed.
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
    printf(c->note[0] ? " (%s)\n" : "%s\n", c->note);
}

static void close_case(golden_case *c) {
    for (int i = 0; i < c->n_layers; ++i) moe_layer_destroy(c->layer[i]);
    moe_ctx_destroy(c->ctx);
    json_decref(c->option);
    for (size_t i = 0; i < c->n_blocks; ++i) free(c->block[i]);
    free(c->block);
}

/* Returns whether the case passed. */
static bool run_case(const moelm_safetensors *file, const char *name, const char *options) {
    golden_case c = {.name = name};
    moe_error error = {0};
    const moe_ctx_desc desc = {.size = sizeof desc, .seed = 1};
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
        run_case(file, head, NULL);
        ++n_failed;
    }
    return n_failed;
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0;
    const bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (argc < 2 || help) {
        fprintf(help ? stdout : stderr,
                "usage: golden FILE...\n"
                "Repeats the recorded runs in safetensors files and compares every number.\n");
        return help ? 0 : MOE_ERR_ARGUMENT;
    }
    for (int f = 1; f < argc; ++f) {
        moelm_safetensors *file = NULL;
        moe_error error = {0};
        const int before = passed + failed;
        if (moelm_safetensors_open(argv[f], &file, &error) != MOE_OK) {
            printf("FAIL %s\n", error.text);
            ++failed;
            continue;
        }
        for (size_t i = 0; i < moelm_safetensors_metadata_count(file); ++i) {
            const moelm_st_pair pair = moelm_safetensors_metadata_at(file, i);
            if (is_remark(file, pair))
                printf("     %s: no case: \"%s\"\n", pair.key, pair.value);
            else
                ++*(run_case(file, pair.key, pair.value) ? &passed : &failed);
        }
        failed += count_orphans(file);
        if (passed + failed == before) {
            printf("FAIL %s: no case in it\n", argv[f]);
            ++failed;
        }
        moelm_safetensors_close(file);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
