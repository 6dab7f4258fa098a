/* cmd_doctor.c: moekit doctor: the machine as moekit sees it, what is off, and the remedy.
 */
#include "cli.h"

#include <moekit/op.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct doctor {
    cli_args *args;
    bool first_key; /* of the JSON object */
    int n_findings;
    char finding[8][768];
} doctor;

static void tell(doctor *self, const char *key, const char *value) {
    if (self->args->json) {
        printf("%s\"%s\":", self->first_key ? "{" : ",", key);
        cli_json_string(stdout, value);
    } else {
        printf("%-25s %s\n", key, value);
    }
    self->first_key = false;
}

static void find(doctor *self, const char *what, const char *subject, const char *remedy) {
    if (self->n_findings == (int)(sizeof self->finding / sizeof *self->finding)) return;
    snprintf(self->finding[self->n_findings++], sizeof *self->finding, "%s%s: %s", what, subject, remedy);
}

static void examine_memory(doctor *self) {
    char text[64];
    const double gib = 1024.0 * 1024.0 * 1024.0;
    const double total = moe_machine_memory();
    double available = (double)sysconf(_SC_PAGESIZE) * (double)sysconf(_SC_AVPHYS_PAGES);
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "MemAvailable:", 13) == 0) available = 1024.0 * strtod(line + 13, NULL);
    if (file) fclose(file);
    if (total > 0 && available > total) available = total; /* a container's */
    snprintf(text, sizeof text, "%.1f GiB, of which %.1f GiB available", total / gib, available / gib);
    tell(self, "memory", text);
    if (available < 0.5 * gib)
        find(self, "little memory: ", text, "the demo needs about 0.5 GiB; end other programs");
}

/* Every level the machine runs, worst first. */
static void examine_isa(doctor *self) {
    static const char *const levels[] = {"ref", "avx2", "avx512", "avx512bf16", "amx", "neon"};
    char text[64] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; ++i) {
        moe_ctx *ctx;
        const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1, .isa = levels[i]};
        if (moe_ctx_create(&desc, &ctx, NULL) != MOE_OK) continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", used ? " " : "", levels[i]);
        moe_ctx_destroy(ctx);
    }
    tell(self, "instruction sets", text);
    if (strcmp(text, "ref") == 0)
        find(self, "no vector kernels", "", "this processor has no AVX2; training will be very slow");
}

/* Rows of kernel.def. */
static const char *const operations[] = {"gemm_rows",
                                         "gemm_packed",
                                         "gemm_outer",
                                         "gather_sum",
                                         "colsum",
                                         "act_pass",
                                         "act_pass_grad",
                                         "mx_save",
                                         "mx_restore",
                                         "topk",
                                         "topk_grad",
                                         "rmsnorm",
                                         "rmsnorm_backward",
                                         "rope",
                                         "attention",
                                         "attention_backward",
                                         "cross_entropy",
                                         "adamw",
                                         "sum_squares",
                                         "peak",
                                         "add_bias",
                                         "balance_grad",
                                         "bias_grad",
                                         "convert",
                                         "copy_rows",
                                         "plan",
                                         "plan_index",
                                         "few",
                                         "gemm_outers",
                                         "order_rows",
                                         "gemm_rows_plus",
                                         "gate_grad",
                                         "gate_grad_end",
                                         "route",
                                         "router",
                                         "router_grad",
                                         "row_dot",
                                         "sigmoid_gate",
                                         "sigmoid_gate_grad",
                                         "gate_grad_sum"};

static void examine_context(doctor *self) {
    char text[64], key[64];
    moe_ctx *ctx;
    moe_error error;
    const moe_ctx_desc desc = {.size = sizeof desc};
    if (moe_ctx_create(&desc, &ctx, &error) != MOE_OK) {
        find(self, "no context: ", error.text, "correct MOEKIT_ISA, MOEKIT_NUM_THREADS or OMP_NUM_THREADS");
        return;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    snprintf(text, sizeof text, "%d on %ld cores", moe_ctx_threads(ctx), cores);
    tell(self, "threads", text);
    if (moe_ctx_threads(ctx) > cores)
        find(self, "more threads than cores: ", text,
             "unset MOEKIT_NUM_THREADS and OMP_NUM_THREADS, or lower them");
    tell(self, "isa in use", moe_ctx_isa(ctx));
    const bool all = self->args->json || self->args->verbose > 0;
    for (size_t i = 0; all && i < sizeof operations / sizeof *operations; ++i) {
        const char *kernel = moe_ctx_kernel(ctx, operations[i]);
        snprintf(key, sizeof key, "kernel %s", operations[i]);
        tell(self, key, kernel ? kernel : "on GPUs only");
    }
    moe_ctx_destroy(ctx);
}

/* A machine without one is well: the language model is the CPU's, layers run on either. */
static void examine_gpu(doctor *self) {
    moe_ctx *ctx;
    moe_error error;
    char text[sizeof error.text + 16];
    const moe_ctx_desc desc = {.size = sizeof desc, .device = MOE_CUDA, .n_threads = 1};
    if (moe_ctx_create(&desc, &ctx, &error) == MOE_OK) {
        snprintf(text, sizeof text, "layers run on it, kernels %s", moe_ctx_isa(ctx));
        moe_ctx_destroy(ctx);
    } else {
        snprintf(text, sizeof text, "unused: %s", error.text);
    }
    tell(self, "GPU", text);
}

static void examine_tools(doctor *self) {
    static const struct {
        const char *name, *use;
    } tools[] = {
        {"bible",    "absent: 'make demo' exports its text with it; apt install bible-kjv"},
        {"gzip",     "absent: eval leaves its figure out; apt install gzip"               },
        {"bzip2",    "absent: eval leaves its figure out; apt install bzip2"              },
        {"xz",       "absent: eval leaves its figure out; apt install xz-utils"           },
        {"chromium", "absent: tests of the report skip its pictures; apt install chromium"},
        {"scdoc",    "absent: no man pages are built; apt install scdoc"                  }
    };
    char path[1024];
    for (size_t i = 0; i < sizeof tools / sizeof *tools; ++i)
        tell(self, tools[i].name, cli_program_find(tools[i].name, path, sizeof path) ? path : tools[i].use);
}

static void examine_environment(doctor *self) {
    static const char *const variables[] = {"MOEKIT_NUM_THREADS", "MOEKIT_ISA", "OMP_NUM_THREADS"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; ++i) {
        const char *value = getenv(variables[i]);
        if (value) tell(self, variables[i], value);
    }
}

static void examine_settings(doctor *self) {
    char path[4096];
    const char *files[2] = {cli_system_config_path, NULL};
    if (cli_user_config_path(path, sizeof path)) files[1] = path;
    for (int i = 0; i < 2 && files[i]; ++i) {
        moe_error error;
        if (!cli_file_exists(files[i])) continue;
        tell(self, i == 0 ? "system settings" : "user settings", files[i]);
        if (moe_lm_config_load(self->args->config, files[i], &error) != MOE_OK)
            find(self, "settings: ", error.text, "correct the file or move it away");
    }
    moe_error error;
    if (moe_lm_config_environment(self->args->config, &error) != MOE_OK)
        find(self, "settings: ", error.text, "correct or unset the variable");
}

static void conclude(const doctor *self) {
    char paint[8];
    bool color = self->args->color_out;
    if (self->args->json) {
        printf(",\"findings\":[");
        for (int i = 0; i < self->n_findings; ++i) {
            printf("%s", i ? "," : "");
            cli_json_string(stdout, self->finding[i]);
        }
        printf("]}\n");
        return;
    }
    for (int i = 0; i < self->n_findings; ++i)
        printf("%soff:%s %s\n", cli_paint(color, CLI_RED, paint), cli_plain(color), self->finding[i]);
    if (self->n_findings == 0)
        printf("%sall is well%s\n", cli_paint(color, CLI_GREEN, paint), cli_plain(color));
}

static int run(cli_args *args) {
    doctor self = {.args = args, .first_key = true};
    char text[256];
    tell(&self, "version", moe_version_string());
    if (moe_version() != MOE_VERSION_NUMBER)
        find(&self, "another library than built for: ", moe_version_string(), "check LD_LIBRARY_PATH");
    moe_cpu_name(text, sizeof text);
    tell(&self, "processor", *text ? text : "unknown");
    examine_isa(&self);
    examine_context(&self);
    examine_gpu(&self);
    examine_memory(&self);
    examine_tools(&self);
    examine_environment(&self);
    examine_settings(&self);
    conclude(&self);
    return self.n_findings ? 1 : 0;
}

const cli_verb cmd_doctor = {
    .name = "doctor",
    .operands = "",
    .summary = "the machine as moekit sees it, what is off, and the remedy",
    .about = "Lists version, processor, instruction sets, threads, whether layers run on a GPU, memory,\n"
             "the programs found, and the variables and files that change how moekit behaves. -v and\n"
             "--json add the kernel chosen for each operation.\n"
             "\n"
             "Exits with 0 if all is well and with 1 if something is off. A missing optional program is\n"
             "mentioned, but counts as well.\n",
    .examples = "moekit doctor\n"
                "moekit doctor --json\n",
    .keys = CLI_KEYS_NONE,
    .key_prefixes = "",
    .max_operands = 0,
    .run = run,
};
