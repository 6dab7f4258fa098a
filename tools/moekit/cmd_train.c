/* cmd_train.c: moekit train: from configuration files to a run directory with checkpoints.
 */
#include "train_line.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_option options[] = {
    {"run",      0,   "DIR", "the run directory to make; same as --run.dir"                                },
    {"from",     0,   "DIR", "begin with the parameters of this checkpoint, or of a run's newest"          },
    {"resume",   'r', NULL,  "go on from the newest checkpoint of the run directory"                       },
    {"move-old", 0,   NULL,  "an existing run directory is first renamed DIR.1, DIR.2, ..."                },
    {"dry-run",  0,   NULL,  "check settings, texts, directory and memory, count parameters, write nothing"},
    {NULL,       0,   NULL,  NULL                                                                          }
};

static bool should_stop(void *user) {
    (void)user;
    return cli_signal_caught() != 0;
}

/* An option counts as its key, spoken last. The directory of the command line, NULL: not there. */
static const char *named(const cli_args *args, const char *option, const char *key) {
    const char *directory = cli_text(args, option);
    for (int i = args->n_set; i-- > 0 && !directory;)
        if (strcmp(args->set[i].key, key) == 0) directory = args->set[i].value;
    return directory;
}

/* A run is resumed from anywhere, so it records where its texts are. */
static int make_absolute(cli_args *args, const char *key) {
    char here[4096], path[8192], origin[256];
    moe_lm_config_entry entry;
    moe_error error;
    moe_status status = moe_lm_config_find(args->config, key, &entry, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    if (*entry.value == '\0' || *entry.value == '/') return 0;
    if (!getcwd(here, sizeof here))
        return cli_fail(args, MOE_ERR_INPUT, "%s: the working directory has no name: %s", key,
                        strerror(errno));
    snprintf(path, sizeof path, "%s/%s", strcmp(here, "/") == 0 ? "" : here, entry.value);
    snprintf(origin, sizeof origin, "%s", entry.origin);
    status = moe_lm_config_set(args->config, key, path, origin, &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

static int set_key(cli_args *args, const char *key, const char *value) {
    moe_error error;
    moe_status status = moe_lm_config_set(args->config, key, value, "command line", &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

/* The checkpoint that a directory is, or the newest of the run that it is. */
static moe_status find_checkpoint(const char *directory, char *path, size_t size, moe_error *error) {
    int n = snprintf(path, size, "%s/config.json", directory);
    const bool fits = n > 0 && (size_t)n < size;
    if (!fits || !cli_file_exists(path)) return moe_lm_newest_checkpoint(directory, path, size, error);
    path[strlen(directory)] = '\0';
    return MOE_OK;
}

/* Where training begins is recorded as the checkpoint it was. A run that goes on needs it no more. */
static int settle_from(cli_args *args, const char *from) {
    char text[1024], path[1024];
    moe_error error;
    int code = from ? set_key(args, "train.from", from) : 0;
    if (code == 0) code = cli_setting(args, args->config, "train.from", text);
    if (code || *text == '\0') return code;
    moe_status status = find_checkpoint(text, path, sizeof path, &error);
    if (status != MOE_OK)
        return cli_flag(args, "resume") ? 0 : cli_fail(args, status, "train.from: %s", error.text);
    code = set_key(args, "train.from", path);
    return code ? code : make_absolute(args, "train.from");
}

/* The checkpoint that a run once began with, where it is still there. */
static bool find_recorded(const char *settings, char *path, size_t size) {
    moe_lm_config *config;
    moe_lm_config_entry from;
    if (moe_lm_config_create(&config, NULL) != MOE_OK) return false;
    const bool found = moe_lm_config_load(config, settings, NULL) == MOE_OK &&
                       moe_lm_config_find(config, "train.from", &from, NULL) == MOE_OK && *from.value &&
                       find_checkpoint(from.value, path, size, NULL) == MOE_OK;
    moe_lm_config_destroy(config);
    return found;
}

/* The files of the command line, behind the checkpoint that the run begins or began with, whose model is then
 * the default. A run that is resumed without a file goes on with the settings it was started with. */
static int load_files(cli_args *args, const char *run, const char *from) {
    const char *file[65]; /* cmd_train.max_operands and one */
    char settings[4096], first[4096];
    moe_error error;
    int n = 0;
    if (cli_flag(args, "resume") && run) {
        if (args->n_operands == 0 && !cli_file_exists(run))
            return cli_fail(args, MOE_ERR_INPUT, "%s: no such run directory", run);
        if (snprintf(settings, sizeof settings, "%s/config.resolved.yaml", run) >= (int)sizeof settings)
            return cli_fail(args, MOE_ERR_ARGUMENT, "--run: the path is too long");
        if (args->n_operands == 0)
            file[n++] = settings;
        else if (find_recorded(settings, first, sizeof first))
            file[n++] = first;
    } else if (from) {
        moe_status status = find_checkpoint(from, first, sizeof first, &error);
        if (status != MOE_OK) return cli_fail(args, status, "--from: %s", error.text);
        file[n++] = first;
    }
    for (int i = 0; i < args->n_operands; ++i) file[n++] = args->operand[i];
    return cli_settings_load(args, file, n);
}

static int load_settings(cli_args *args, char *run_dir) {
    const char *run = named(args, "run", "run.dir"), *from = named(args, "from", "train.from");
    moe_error error;
    int code = load_files(args, run, from);
    if (code == 0 && run) code = set_key(args, "run.dir", run);
    if (code == 0) code = settle_from(args, from);
    if (code == 0) code = make_absolute(args, "data.train");
    if (code == 0) code = make_absolute(args, "data.eval");
    if (code == 0) code = make_absolute(args, "data.tokenizer");
    if (code == 0) code = cli_setting(args, args->config, "run.dir", run_dir);
    if (code) return code;
    moe_status status = moe_lm_config_check(args->config, &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

static int dry_run(cli_args *args, moe_ctx *ctx, const char *run_dir) {
    const moe_lm_train_options train_options = {.size = sizeof train_options,
                                                .run_dir = run_dir,
                                                .resume = cli_flag(args, "resume"),
                                                .move_old = cli_flag(args, "move-old")};
    moe_lm_info info = {.size = sizeof info};
    const moe_status status = moe_lm_train_check(ctx, args->config, &train_options, &info);
    if (status != MOE_OK) return cli_fail(args, status, "%s", moe_ctx_error(ctx));
    char text[1024];
    const int code = cli_setting(args, args->config, "data.train", text);
    if (code) return code;
    if (*text == '\0') cli_say(args, "data.train is not set: no text was checked, and training needs one");
    if (args->json) {
        printf("{\"run\":");
        cli_json_string(stdout, run_dir);
        printf(",\"params_total\":%lld,\"params_active\":%lld}\n", (long long)info.params_total,
               (long long)info.params_active);
        return 0;
    }
    if (*run_dir) printf("run            %s (not made: dry run)\n", run_dir);
    printf("parameters     %lld, of which a token meets %lld\n", (long long)info.params_total,
           (long long)info.params_active);
    return 0;
}

static void print_results(cli_args *args, const char *run_dir, const moe_lm_progress *last) {
    char checkpoint[4096] = "";
    moe_lm_newest_checkpoint(run_dir, checkpoint, sizeof checkpoint, NULL);
    if (args->json) {
        printf("{\"run\":");
        cli_json_string(stdout, run_dir);
        printf(",\"checkpoint\":");
        cli_json_string(stdout, checkpoint);
        printf(",\"step\":%lld,\"loss\":", (long long)last->step);
        cli_json_number(stdout, last->loss);
        printf(",\"eval_bits_per_byte\":");
        cli_json_number(stdout, last->eval_bits_per_byte);
        printf(",\"eval_step\":");
        cli_json_number(stdout, last->eval_step > 0 ? (double)last->eval_step : (double)NAN);
        printf(",\"interrupted\":%s}\n", cli_signal_caught() ? "true" : "false");
        return;
    }
    printf("run         %s\n", run_dir);
    printf("checkpoint  %s\n", *checkpoint ? checkpoint : "none: no step was finished");
    printf("metrics     %s/metrics.jsonl\n", run_dir);
    if (!isfinite(last->eval_bits_per_byte)) return;
    printf("held-out    %.3f bits per byte", last->eval_bits_per_byte);
    if (last->eval_step != last->step) printf(" (of step %lld)", (long long)last->eval_step);
    printf("\n");
}

static void say_goes_on(cli_args *args, const char *run_dir) {
    cli_say(args, "'moekit train --resume --run %s' goes on", run_dir);
}

static int train(cli_args *args, moe_ctx *ctx, const char *run_dir) {
    char log_every[1024];
    int code = cli_setting(args, args->config, "train.log_every", log_every);
    if (code) return code;
    train_line line = {.args = args,
                       .terminal = isatty(STDERR_FILENO),
                       .log_every = strtoll(log_every, NULL, 10),
                       .latest.loss = (double)NAN,
                       .latest.eval_bits_per_byte = (double)NAN};
    moe_lm_train_options train_options = {.size = sizeof train_options,
                                          .run_dir = run_dir,
                                          .resume = cli_flag(args, "resume"),
                                          .move_old = cli_flag(args, "move-old"),
                                          .on_progress = train_line_show,
                                          .should_stop = should_stop,
                                          .user = &line,
                                          .command = args->command};
    signal(SIGPIPE, SIG_IGN); /* who read along may leave; main.log has it all */
    cli_signals_catch(args->quiet ? NULL : "stopping and saving; once more stops at once\n");
    moe_status status = moe_lm_train(ctx, args->config, &train_options);
    cli_close_line(args);
    if (status != MOE_OK && status != MOE_ERR_INTERRUPTED) {
        code = cli_fail(args, status, "%s", moe_ctx_error(ctx));
        if (line.latest.step > 0 && (status == MOE_ERR_IO || status == MOE_ERR_ALARM))
            say_goes_on(args, run_dir);
        return code;
    }
    print_results(args, run_dir, &line.latest);
    if (status == MOE_ERR_INTERRUPTED) {
        cli_say(args, "stopped after step %lld", (long long)line.latest.step);
        say_goes_on(args, run_dir);
        return 128 + cli_signal_caught();
    }
    /* over before its last step, or before this sitting: who wants more of it needs another run */
    if (line.latest.step < line.latest.steps || isnan(line.latest.loss))
        cli_say(args, "'moekit train --from %s --run ANOTHER' goes on in another run", run_dir);
    return 0;
}

static int run(cli_args *args) {
    char run_dir[1024];
    moe_ctx *ctx;
    int code = load_settings(args, run_dir);
    if (code) return code;
    if (!*run_dir && !cli_flag(args, "dry-run"))
        return cli_fail(args, MOE_ERR_ARGUMENT, "name the directory to make: --run DIR (the key run.dir)");
    if (cli_flag(args, "resume") && cli_flag(args, "move-old"))
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "--resume goes on in the directory that --move-old would move");
    if (cli_flag(args, "resume") && named(args, "from", "train.from"))
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "--resume goes on from the run's own checkpoint, --from begins another run");
    code = cli_context_create(args, NULL, 0, &ctx);
    if (code) return code;
    code = cli_flag(args, "dry-run") ? dry_run(args, ctx, run_dir) : train(args, ctx, run_dir);
    moe_ctx_destroy(ctx);
    return code;
}

const cli_verb cmd_train = {
    .name = "train",
    .operands = "[CONFIG.yaml]... [KEY=VALUE]...",
    .summary = "train a language model into a new run directory",
    .about = "Reads the configuration files in their order, then the environment (MOEKIT_TRAIN_STEPS for\n"
             "train.steps), then the command line; later ones win. 'moekit config options' lists every\n"
             "key. A file may also be a directory: a run stands for its settings, a checkpoint for its\n"
             "model.\n"
             "\n"
             "The run directory must not exist, as nothing is overwritten; --move-old renames an existing\n"
             "one first.\n"
             "\n"
             "--resume continues an existing run from its newest complete checkpoint, to the same bits as\n"
             "if it had not stopped. Without a file it uses the settings the run began with; with one, a\n"
             "run that is not there yet is begun, which it says. A run that has reached its last step or\n"
             "train.max_seconds can only be continued as a new run, with --from.\n"
             "\n"
             "--from begins a new run with the parameters of a checkpoint, or of another run's newest one.\n"
             "Checkpoints of transformers work too. The model's settings and its tokenizer come from the\n"
             "checkpoint, so no file need give them. Optimizer, schedule and texts are the new run's own.\n"
             "\n"
             "Tokens are bytes, unless the checkpoint has a tokenizer.json or data.tokenizer names one.\n"
             "\n"
             "On SIGINT, SIGTERM or SIGHUP the run finishes the forward at hand, saves a checkpoint and\n"
             "exits with 130, 143 or 129; a second signal stops it at once. If an alarm (train.alarm_*)\n"
             "stops the run, it saves too and exits with 7. docs/run-directory.md describes what a run\n"
             "leaves behind.\n",
    .examples = "moekit train configs/demo.yaml --run runs/demo\n"
                "moekit train configs/demo.yaml --run runs/top1 moe.top_k=1 --train.steps 500\n"
                "moekit train --resume --run runs/demo\n"
                "moekit train --from runs/demo --run runs/tuned --data.train mine.txt --train.lr 1e-4\n",
    .options = options,
    .makes_context = true,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "",
    .max_operands = 64,
    .run = run,
};
