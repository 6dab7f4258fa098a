/* bench_presets.c: trains one small model a preset and prints what came of it.
 * Figures are means over the steps of the last quarter; the loss is compared with that of the first step.
 * Source: the presets of moe_layer_presets, over the settings of the command line.
 */
#include "bench/bench_presets.h"

#include "bench/bench_train.h"

#include <math.h>
#include <string.h>

enum { MOST_PRESETS = 32 };

typedef struct outcome {
    const char *preset;
    double first_loss, bits_per_byte;
    double loss, cv, max, entropy, dropped; /* means over the last quarter; max: the largest */
    int32_t n_dead;                         /* most experts without a row in one step of it */
    int64_t n_steps;                        /* of the last quarter */
} outcome;

static void on_progress(void *user, moe_ctx *ctx, const moe_lm_progress *now) {
    (void)ctx;
    outcome *o = user;
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

/* 1. The page. */

/* NULL: no such option of the layer. */
static const char *layer_default(const char *key) {
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i)
        if (strcmp(row->key, key) == 0) return row->initial;
    return NULL;
}

/* What a preset sets, beside the layer's own defaults. */
static void put_settings(FILE *out, const moe_lm_config *config) {
    const char *separator = " ";
    for (size_t i = 0; i < moe_lm_config_count(config); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(config, i, &entry);
        const char *initial = layer_default(entry.option->key);
        if (!initial || strcmp(entry.origin, "default") == 0 || strcmp(initial, entry.value) == 0) continue;
        fprintf(out, "%s`%s` %s", separator, entry.option->key + 4, entry.value);
        separator = ", ";
    }
}

static moe_status put_preset(FILE *out, const char *preset) {
    moe_lm_config *config;
    moe_status status = moe_lm_config_create(&config, NULL);
    if (status != MOE_OK) return status;
    status = moe_lm_config_set(config, "moe.preset", preset, NULL, NULL);
    fprintf(out, "- %s:", preset);
    if (status == MOE_OK) put_settings(out, config);
    const char *foresight = moe_lm_config_foresight(config);
    if (foresight) fprintf(out, ". Its bits per byte look ahead: %s", foresight);
    fprintf(out, "\n");
    moe_lm_config_destroy(config);
    return status;
}

static void put_outcome(FILE *out, const outcome *o) {
    fprintf(out, "| %s | %.3f | %.3f | ", o->preset, o->first_loss, o->loss);
    if (isfinite(o->bits_per_byte))
        fprintf(out, "%.3f", o->bits_per_byte);
    else
        fprintf(out, "-");
    fprintf(out, " | %.3f | %.2f | %.3f | %.1f %% | %d |\n", o->cv, o->max, o->entropy, 100 * o->dropped,
            o->n_dead);
}

static moe_status put_page(FILE *out, const cli_args *args, const outcome *outcomes, size_t n) {
    fprintf(out, "# Presets compared\n\n"
                 "One language model was trained with each preset (`moe.preset`). Sizes, text, batches\n"
                 "and learning rate are the same; only the MoE layer differs. The numbers show how the\n"
                 "systems share out the work, not how good they are: none was tuned. Written by\n\n```sh\n");
    bench_page_command(out, args);
    fprintf(
        out,
        "\n```\n\n"
        "- first loss, last loss: nats per byte, at the first step and over the last quarter\n"
        "- bits per byte: of held-out text\n"
        "- load cv: coefficient of variation of the rows per expert, mean of layers and steps\n"
        "- busiest: rows of the busiest expert, times the mean; the worst layer and step\n"
        "- entropy: of the load, as a share of its maximum; mean of layers and steps\n"
        "- dropped: share of rows that were over capacity\n"
        "- idle: experts without a row, all layers together; the worst step\n"
        "\n"
        "Loads are those of the last quarter of the steps.\n\n"
        "| preset | first loss | last loss | bits per byte | load cv | busiest | entropy | dropped | idle |\n"
        "|---|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < n; ++i) put_outcome(out, &outcomes[i]);
    fprintf(out, "\n## What each sets\n\nA setting that is not named has the layer's own default.\n\n");
    moe_status status = MOE_OK;
    for (size_t i = 0; i < n && status == MOE_OK; ++i) status = put_preset(out, outcomes[i].preset);
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
    bench_page page;
    int code = bench_page_open(args, &page);
    if (code) return code;
    moe_status status = put_page(page.out, args, outcomes, n);
    if (status != MOE_OK) {
        bench_page_drop(&page);
        return cli_fail(args, status, "the page of presets: %s", moe_status_name(status));
    }
    code = bench_page_write(args, &page);
    if (code == 0 && args->json) print_json(outcomes, n);
    for (size_t i = 0; i < n && code == 0; ++i)
        if (!(outcomes[i].loss < outcomes[i].first_loss))
            code = cli_fail(args, MOE_ERR_NUMERIC, "preset %s: the loss did not fall: %.3f, then %.3f",
                            outcomes[i].preset, outcomes[i].first_loss, outcomes[i].loss);
    return code;
}

int bench_presets(cli_args *args, int64_t jobs) {
    bench_training trainings[MOST_PRESETS];
    for (int i = 0; i < args->n_set; ++i)
        if (strcmp(args->set[i].key, "moe.preset") == 0)
            return cli_fail(args, MOE_ERR_ARGUMENT, "moe.preset: presets are what is compared; leave it out");
    outcome *outcomes = bench_shared(MOST_PRESETS * sizeof *outcomes);
    if (!outcomes) return cli_fail(args, MOE_ERR_MEMORY, "no memory for the outcomes");
    size_t n = 0;
    for (const char *const *name = moe_layer_presets(); *name && n < MOST_PRESETS; ++name, ++n) {
        outcomes[n].preset = *name;
        /* nothing that makes presets differ in more than themselves, or costs time */
        trainings[n] = (bench_training){
            .name = *name,
            .preset = *name,
            .setting = {{"train.max_seconds", "0"}, {"train.eval_every", "0"}, {"train.save_every", "0"}},
            .on_progress = on_progress,
            .user = &outcomes[n]
        };
    }
    int code = bench_train(args, "runs/presets", trainings, n, jobs);
    if (code == 0) code = write_results(args, outcomes, n);
    bench_shared_free(outcomes, MOST_PRESETS * sizeof *outcomes);
    return code;
}
