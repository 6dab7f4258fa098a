/* bench_presets.c: trains one small model a preset and prints what came of it.
 * Figures are means over the steps of the last quarter; the loss is compared with that of the first step.
 * Source: the presets of moe_layer_presets, over the settings of the command line.
 */
#include "bench_presets.h"

#include "run_files.h"
#include "train_line.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_PRESETS = 32, PAGE_BYTES = 1 << 16 };

typedef struct outcome {
    const char *preset;
    double first_loss, bits_per_byte;
    double loss, cv, max, entropy, dropped; /* means over the last quarter; max: the largest */
    int32_t n_dead;                         /* most experts without a row in one step of it */
    int64_t n_steps;                        /* of the last quarter */
} outcome;

typedef struct watch {
    train_line line;
    outcome *outcome;
} watch;

static void on_progress(void *user, const moe_lm_progress *now) {
    watch *w = user;
    outcome *o = w->outcome;
    train_line_show(&w->line, now);
    o->bits_per_byte = now->eval_bits_per_byte;
    if (now->event) return;
    if (now->step == 1) o->first_loss = now->loss;
    if (4 * now->step <= 3 * now->steps) return;
    const double share = 1.0 / (double)++o->n_steps;
    o->loss += (now->loss - o->loss) * share;
    o->cv += (now->load_cv - o->cv) * share;
    o->entropy += (now->load_entropy - o->entropy) * share;
    o->dropped += (now->dropped - o->dropped) * share;
    if (now->load_max > o->max) o->max = now->load_max;
    if (now->n_dead > o->n_dead) o->n_dead = now->n_dead;
}

static bool should_stop(void *user) {
    (void)user;
    return cli_signal_caught() != 0;
}

/* Settings that would make presets differ in more than themselves, or cost time. */
static int set_alike(cli_args *args) {
    static const char *const alike[][2] = {
        {"train.max_seconds", "0"},
        {"train.eval_every",  "0"},
        {"train.save_every",  "0"}
    };
    moe_error error;
    for (size_t i = 0; i < sizeof alike / sizeof *alike; ++i) {
        moe_status status =
            moe_lm_config_set(args->config, alike[i][0], alike[i][1], "bench presets", &error);
        if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    }
    return 0;
}

static int train(cli_args *args, const char *run_dir, outcome *o) {
    char log_every[1024];
    moe_ctx *ctx;
    int code = cli_setting(args, args->config, "train.log_every", log_every);
    if (code == 0) code = cli_context_create(args, NULL, 0, &ctx);
    if (code) return code;
    watch w = {
        .line = {.args = args, .terminal = isatty(STDERR_FILENO), .log_every = strtoll(log_every, NULL, 10)},
        .outcome = o
    };
    const moe_lm_train_options train_options = {.size = sizeof train_options,
                                                .run_dir = run_dir,
                                                .move_old = cli_flag(args, "move-old"),
                                                .on_progress = on_progress,
                                                .should_stop = should_stop,
                                                .user = &w,
                                                .command = args->command};
    moe_status status = moe_lm_train(ctx, args->config, &train_options);
    cli_close_line(args);
    if (status != MOE_OK) code = cli_fail(args, status, "preset %s: %s", o->preset, moe_ctx_error(ctx));
    moe_ctx_destroy(ctx);
    return code;
}

/* One preset in settings of its own: the files, the preset, the command line. */
static int run_preset(cli_args *args, const char *base, outcome *o) {
    char run_dir[RUN_PATH];
    moe_error error;
    int code = run_files_path(args, base, o->preset, run_dir);
    if (code) return code;
    moe_lm_config *outer = args->config;
    moe_lm_config_entry preset;
    moe_status status = moe_lm_config_create(&args->config, &error);
    if (status != MOE_OK) {
        args->config = outer;
        return cli_fail(args, status, "%s", error.text);
    }
    moe_lm_config_find(outer, "moe.preset", &preset, NULL);
    args->set[args->n_set++] = (struct cli_assignment){preset.option, o->preset};
    code = cli_settings_load(args, args->operand + 1, args->n_operands - 1);
    --args->n_set;
    if (code == 0) code = set_alike(args);
    if (code == 0) cli_say(args, "preset %s", o->preset);
    if (code == 0) code = train(args, run_dir, o);
    moe_lm_config_destroy(args->config);
    args->config = outer;
    return code;
}

/* 1. The page. */

typedef struct page {
    char text[PAGE_BYTES];
    size_t used;
} page;

__attribute__((format(printf, 2, 3))) static void put(page *p, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int n = vsnprintf(p->text + p->used, sizeof p->text - p->used, format, list);
    va_end(list);
    if (n > 0) p->used += (size_t)n < sizeof p->text - p->used ? (size_t)n : sizeof p->text - p->used - 1;
}

static void put_command(page *p, const cli_args *args) {
    put(p, "moekit bench presets");
    for (int i = 1; i < args->n_operands; ++i) put(p, " %s", args->operand[i]);
    for (int i = 0; i < args->n_set; ++i) put(p, " %s=%s", args->set[i].key->key, args->set[i].value);
    if (cli_text(args, "output")) put(p, " -o %s", cli_text(args, "output"));
}

/* NULL: no such option of the layer. */
static const char *layer_default(const char *key) {
    size_t count;
    const moe_option *row = moe_layer_options(&count);
    for (size_t i = 0; i < count; ++i)
        if (strcmp(row[i].key, key) == 0) return row[i].initial;
    return NULL;
}

/* What a preset sets, beside the layer's own defaults. */
static void put_settings(page *p, const moe_lm_config *config) {
    const char *separator = " ";
    for (size_t i = 0; i < moe_lm_config_count(config); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(config, i, &entry);
        const char *initial = layer_default(entry.option->key);
        if (!initial || strcmp(entry.origin, "default") == 0 || strcmp(initial, entry.value) == 0) continue;
        put(p, "%s`%s` %s", separator, entry.option->key + 4, entry.value);
        separator = ", ";
    }
}

static moe_status put_preset(page *p, const char *preset) {
    moe_lm_config *config;
    moe_status status = moe_lm_config_create(&config, NULL);
    if (status != MOE_OK) return status;
    status = moe_lm_config_set(config, "moe.preset", preset, NULL, NULL);
    put(p, "- %s:", preset);
    if (status == MOE_OK) put_settings(p, config);
    put(p, "\n");
    moe_lm_config_destroy(config);
    return status;
}

static void put_outcome(page *p, const outcome *o) {
    put(p, "| %s | %.3f | %.3f | ", o->preset, o->first_loss, o->loss);
    if (isfinite(o->bits_per_byte))
        put(p, "%.3f", o->bits_per_byte);
    else
        put(p, "-");
    put(p, " | %.3f | %.2f | %.3f | %.1f %% | %d |\n", o->cv, o->max, o->entropy, 100 * o->dropped,
        o->n_dead);
}

static moe_status put_page(page *p, const cli_args *args, const outcome *outcomes, size_t n) {
    put(p,
        "# Presets compared\n\n"
        "One language model a preset (`moe.preset`), each with the same sizes, text, batches and learning\n"
        "rate; only the layer differs. The numbers compare how the systems share out the work, not how good\n"
        "they are: none was tuned. Written by\n\n```sh\n");
    put_command(p, args);
    put(p,
        "\n```\n\n"
        "Load is counted over the last quarter of the steps: the coefficient of variation of rows per "
        "expert\n"
        "and the entropy of the load over its maximum are means over layers and steps, the busiest expert "
        "is\n"
        "the largest share of the mean in any layer and step, dropped rows are those over capacity, and "
        "idle\n"
        "is the most experts, of all layers together, that had no row in one step. Loss is in nats a byte,\n"
        "at the first step and over the last quarter; bits per byte are of held-out text.\n\n"
        "| preset | first loss | last loss | bits per byte | load cv | busiest | entropy | dropped | idle |\n"
        "|---|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < n; ++i) put_outcome(p, &outcomes[i]);
    put(p, "\n## What each sets\n\nWhat is not named has the layer's own default.\n\n");
    moe_status status = MOE_OK;
    for (size_t i = 0; i < n && status == MOE_OK; ++i) status = put_preset(p, outcomes[i].preset);
    return status;
}

static void print_json(const outcome *outcomes, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        const outcome *o = &outcomes[i];
        const struct {
            const char *key;
            double value;
        } figures[] = {
            {"first_loss",    o->first_loss   },
            {"loss",          o->loss         },
            {"bits_per_byte", o->bits_per_byte},
            {"load_cv",       o->cv           },
            {"load_max",      o->max          },
            {"load_entropy",  o->entropy      },
            {"dropped",       o->dropped      }
        };
        printf("%s{\"preset\":", i ? ",\n " : "[");
        cli_json_string(stdout, o->preset);
        for (size_t f = 0; f < sizeof figures / sizeof *figures; ++f) {
            printf(",\"%s\":", figures[f].key);
            cli_json_number(stdout, figures[f].value);
        }
        printf(",\"idle\":%d}", o->n_dead);
    }
    printf("]\n");
}

static int write_results(cli_args *args, const outcome *outcomes, size_t n) {
    const char *output = cli_text(args, "output");
    page *p = calloc(1, sizeof *p);
    if (!p) return cli_fail(args, MOE_ERR_MEMORY, "out of memory");
    moe_status status = put_page(p, args, outcomes, n);
    int code = status != MOE_OK ? cli_fail(args, status, "the page of presets: %s", moe_status_name(status))
               : output         ? cli_file_write(args, output, p->text, p->used)
                                : 0;
    if (code == 0 && args->json)
        print_json(outcomes, n);
    else if (code == 0)
        printf(output ? "%s\n" : "%s", output ? output : p->text);
    free(p);
    for (size_t i = 0; i < n && code == 0; ++i)
        if (!(outcomes[i].loss < outcomes[i].first_loss))
            code = cli_fail(args, MOE_ERR_NUMERIC, "preset %s: the loss did not fall: %.3f, then %.3f",
                            outcomes[i].preset, outcomes[i].first_loss, outcomes[i].loss);
    return code;
}

int bench_presets(cli_args *args) {
    const char *run = cli_text(args, "run"), *output = cli_text(args, "output");
    outcome outcomes[MOST_PRESETS] = {{0}};
    size_t n = 0;
    int code = output ? cli_output_check(args, output) : 0;
    cli_signals_catch(NULL);
    for (const char *const *name = moe_layer_presets(); code == 0 && *name && n < MOST_PRESETS; ++name) {
        outcomes[n].preset = *name;
        code = run_preset(args, run ? run : "runs/presets", &outcomes[n]);
        ++n;
    }
    return code ? code : write_results(args, outcomes, n);
}
