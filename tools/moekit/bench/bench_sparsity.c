/* bench_sparsity.c: trains the model of the files and two dense ones, each with several seeds, on the same
 * text for the same steps. Dense models differ from it in nothing but their FFN: as wide as the experts a
 * token meets, or as all of them.
 */
#include "bench/bench_sparsity.h"

#include "bench/bench_train.h"
#include "run_files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EVALUATIONS = 20, TEXT = 32, NAME = 64 };

sparsity_spread sparsity_at(const sparsity *s, int model, int64_t i) {
    sparsity_spread spread = {0, INFINITY, -INFINITY};
    for (int64_t seed = 0; seed < s->n_seeds; ++seed) {
        const double bits = s->curve[model][seed].bits[i];
        spread.mean += bits / (double)s->n_seeds;
        spread.low = fmin(spread.low, bits);
        spread.high = fmax(spread.high, bits);
    }
    return spread;
}

static void on_progress(void *user, moe_ctx *ctx, const moe_lm_progress *now) {
    (void)ctx;
    sparsity_curve *c = user;
    if (now->event) {
        if (strcmp(now->event, "eval") != 0 || c->n_points == SPARSITY_POINTS) return;
        c->step[c->n_points] = (double)now->step;
        c->bits[c->n_points++] = now->eval_bits_per_byte;
        return;
    }
    if (c->n_steps < SPARSITY_STEPS) c->seconds[c->n_steps++] = now->elapsed_s - c->elapsed;
    c->elapsed = now->elapsed_s;
}

static int read_integer(cli_args *args, const char *key, int64_t *value) {
    char text[1024];
    int code = cli_setting(args, args->config, key, text);
    if (code == 0) *value = strtoll(text, NULL, 10);
    return code;
}

/* Widths of all experts together, and how often to evaluate. */
typedef struct plan {
    char total_width[TEXT], eval_every[TEXT];
} plan;

static int make_plan(cli_args *args, plan *p) {
    int64_t experts = 0, hidden = 0, shared = 0, shared_hidden = 0, freq = 0, steps = 0, held_out = 0;
    char eval[1024];
    int code = cli_settings_load(args, args->operand + 1, args->n_operands - 1);
    if (code == 0) code = read_integer(args, "moe.num_experts", &experts);
    if (code == 0) code = read_integer(args, "moe.expert_hidden_size", &hidden);
    if (code == 0) code = read_integer(args, "moe.num_shared_experts", &shared);
    if (code == 0) code = read_integer(args, "moe.shared_expert_hidden_size", &shared_hidden);
    if (code == 0) code = read_integer(args, "model.moe_layer_freq", &freq);
    if (code == 0) code = read_integer(args, "train.steps", &steps);
    if (code == 0) code = cli_setting(args, args->config, "data.eval", eval);
    if (code) return code;
    held_out = (int64_t)strlen(eval);
    if (experts < 2 || freq == 0 || held_out == 0)
        return cli_fail(args, MOE_ERR_ARGUMENT, "sparsity needs a model with experts and a held-out text: %s",
                        experts < 2 ? "moe.num_experts is below 2"
                        : freq == 0 ? "model.moe_layer_freq is 0"
                                    : "data.eval is empty");
    snprintf(p->total_width, sizeof p->total_width, "%lld",
             (long long)(experts * hidden + shared * (shared_hidden ? shared_hidden : hidden)));
    snprintf(p->eval_every, sizeof p->eval_every, "%lld",
             (long long)(steps > EVALUATIONS ? steps / EVALUATIONS : 1));
    return 0;
}

static bench_training training_of(const plan *p, int model, const char *name, const char *seed,
                                  sparsity_curve *curve) {
    bench_training training = {
        .name = name,
        .setting = {{"train.seed", seed},
                    {"train.max_seconds", "0"},
                    {"train.save_every", "0"},
                    {"train.eval_every", p->eval_every}},
        .on_progress = on_progress,
        .user = curve
    };
    training.dense = model > 0;
    if (model > 1) training.setting[4] = (bench_setting){"model.ffn_hidden_size", p->total_width};
    return training;
}

/* Sizes of a model, read off its last checkpoint. */
static int read_sizes(cli_args *args, const char *base, const char *name, double *params, double *active) {
    char run[RUN_PATH], path[RUN_PATH];
    moe_ctx *ctx;
    moe_lm *lm = NULL;
    int code = run_files_path(args, base, name, run);
    if (code == 0) code = cli_context_create(args, NULL, 1, &ctx);
    if (code) return code;
    moe_error error = {.status = MOE_OK};
    moe_status status = moe_lm_newest_checkpoint(run, path, sizeof path, &error);
    if (status == MOE_OK) status = moe_lm_load(ctx, path, &lm);
    if (status == MOE_OK) {
        moe_lm_info info = {.size = sizeof info};
        moe_lm_get_info(lm, &info);
        *params = (double)info.params_total;
        *active = (double)info.params_active;
        moe_lm_destroy(lm);
    } else {
        code = cli_fail(args, status, "%s: %s", name, error.text[0] ? error.text : moe_ctx_error(ctx));
    }
    moe_ctx_destroy(ctx);
    return code;
}

static int train_all(cli_args *args, const plan *p, sparsity *s, sparsity_curve *curves, int64_t jobs) {
    static const char *const directory[SPARSITY_MODELS] = {"moe", "dense-active", "dense-total"};
    const char *base = cli_text(args, "run") ? cli_text(args, "run") : "runs/sparsity";
    bench_training trainings[SPARSITY_MODELS * SPARSITY_SEEDS];
    char name[SPARSITY_MODELS * SPARSITY_SEEDS][NAME], seeds[SPARSITY_SEEDS][TEXT];
    size_t n = 0;
    for (int64_t seed = 0; seed < s->n_seeds; ++seed) {
        snprintf(seeds[seed], TEXT, "%lld", (long long)seed + 1);
        for (int m = 0; m < SPARSITY_MODELS; ++m, ++n) {
            sparsity_curve *curve = &curves[m * SPARSITY_SEEDS + seed];
            snprintf(name[n], NAME, "%.16s-%.8s", directory[m], seeds[seed]);
            trainings[n] = training_of(p, m, name[n], seeds[seed], curve);
        }
    }
    int code = bench_train(args, base, trainings, n, jobs);
    for (int m = 0; m < SPARSITY_MODELS && code == 0; ++m) {
        s->curve[m] = &curves[m * SPARSITY_SEEDS];
        code = read_sizes(args, base, name[m], &s->params[m], &s->active[m]);
    }
    return code;
}

/* The picture stands beside the page under its name: sparsity.md, sparsity.svg. */
static int picture_path(cli_args *args, char path[RUN_PATH]) {
    const char *output = cli_text(args, "output");
    const char *dot = output ? strrchr(output, '.') : NULL;
    path[0] = '\0';
    if (!output) return 0;
    const size_t stem = dot && !strchr(dot, '/') ? (size_t)(dot - output) : strlen(output);
    if (stem + sizeof ".svg" > RUN_PATH)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--output: the path is too long");
    snprintf(path, RUN_PATH, "%.*s.svg", (int)stem, output);
    if (strcmp(path, output) == 0)
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "--output: %s is the name of the picture beside the page; name the page .md", path);
    return bench_check_output(args, path);
}

static int write_picture(cli_args *args, const sparsity *s, const char *path) {
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    if (!out) return cli_fail(args, MOE_ERR_MEMORY, "no memory for the picture");
    sparsity_picture(out, s);
    int code = fclose(out) == 0 ? cli_file_write(args, path, text, length)
                                : cli_fail(args, MOE_ERR_MEMORY, "no memory for the picture");
    free(text);
    return code;
}

static void print_json(const sparsity *s) {
    printf("[");
    for (int m = 0; m < SPARSITY_MODELS; ++m)
        for (int64_t seed = 0; seed < s->n_seeds; ++seed) {
            const sparsity_curve *c = &s->curve[m][seed];
            printf("%s{\"model\":\"%s\",\"seed\":%lld,\"params\":%.0f,\"active\":%.0f,\"curve\":[",
                   m || seed ? ",\n " : "", s->name[m], (long long)seed + 1, s->params[m], s->active[m]);
            for (int64_t i = 0; i < c->n_points; ++i)
                printf("%s[%.0f,%.6g]", i ? "," : "", c->step[i], c->bits[i]);
            printf("]}");
        }
    printf("]\n");
}

static int write_results(cli_args *args, const sparsity *s, const char *picture) {
    bench_page page;
    int code = *picture ? write_picture(args, s, picture) : 0;
    if (code == 0) code = bench_page_open(args, &page);
    if (code) return code;
    const char *name = strrchr(picture, '/');
    sparsity_page(page.out, args, s, name ? name + 1 : picture);
    code = bench_page_write(args, &page);
    if (code == 0 && args->json) print_json(s);
    return code;
}

int bench_sparsity(cli_args *args, int64_t seeds, int64_t jobs) {
    const size_t bytes = SPARSITY_MODELS * SPARSITY_SEEDS * sizeof(sparsity_curve);
    sparsity s = {
        .name = {"mixture", "dense, equal active size", "dense, equal total size"},
          .n_seeds = seeds
    };
    char picture[RUN_PATH];
    plan p;
    int code = make_plan(args, &p);
    if (code == 0) code = picture_path(args, picture);
    if (code) return code;
    sparsity_curve *curves = bench_shared(bytes);
    if (!curves) return cli_fail(args, MOE_ERR_MEMORY, "no memory for the curves");
    code = train_all(args, &p, &s, curves, jobs);
    if (code == 0) code = write_results(args, &s, picture);
    bench_shared_free(curves, bytes);
    return code;
}
