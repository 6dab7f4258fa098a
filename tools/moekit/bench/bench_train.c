/* bench_train.c: runs the trainings of a bench, in this process or in several.
 * A process is forked before it has a context, so no thread is lost; figures come back through shared memory.
 */
#include "bench/bench_train.h"

#include "run_files.h"
#include "train_line.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct watch {
    train_line line;
    const bench_training *training;
    moe_ctx *ctx;
} watch;

static void on_progress(void *user, const moe_lm_progress *now) {
    watch *w = user;
    if (!w->training->fleeting || !now->event) train_line_show(&w->line, now);
    w->training->on_progress(w->training->user, w->ctx, now);
}

static bool should_stop(void *user) {
    (void)user;
    return cli_signal_caught() != 0;
}

int bench_check_output(cli_args *args, const char *output) {
    int code = run_files_check_output(args, NULL, "", output);
    for (int i = 1; i < args->n_operands && code == 0; ++i)
        if (run_files_same(output, args->operand[i]))
            code = cli_fail(args, MOE_ERR_ARGUMENT,
                            "%s: is a configuration that is read, which would be lost; name another file",
                            output);
    return code ? code : run_files_check_texts(args, args->config, output);
}

/* What would stop a training before it begins, told before the first has taken its time. */
static int check(cli_args *args, const char *run_dir, const bench_training *training) {
    const char *output = cli_text(args, "output");
    moe_error error;
    const int code = output ? bench_check_output(args, output) : 0;
    if (code) return code;
    if (cli_file_exists(run_dir) && !cli_flag(args, "move-old"))
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "%s exists already, and a run is never overwritten; name another --run, or rename "
                        "it with --move-old",
                        run_dir);
    moe_status status = moe_lm_config_check(args->config, &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s: %s", training->name, error.text);
}

static int train(cli_args *args, const char *run_dir, const bench_training *training) {
    char log_every[1024];
    moe_ctx *ctx;
    cli_say(args, "%s", training->name);
    int code = cli_setting(args, args->config, "train.log_every", log_every);
    if (code == 0) code = cli_context_create(args, NULL, 0, &ctx);
    if (code) return code;
    watch w = {
        .line = {.args = args, .terminal = isatty(STDERR_FILENO), .log_every = strtoll(log_every, NULL, 10)},
        .training = training,
        .ctx = ctx
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
    if (status == MOE_ERR_INTERRUPTED) {
        cli_fail(args, status, "%s: stopped; a bench compares whole trainings and begins them anew",
                 training->name);
        code = 128 + cli_signal_caught();
    } else if (status != MOE_OK)
        code = cli_fail(args, status, "%s: %s", training->name, moe_ctx_error(ctx));
    moe_ctx_destroy(ctx);
    return code;
}

static int load_settings(cli_args *args, const bench_training *training) {
    moe_error error;
    if (training->preset) args->set[args->n_set++] = (struct cli_assignment){"moe.preset", training->preset};
    int code = cli_settings_load(args, args->operand + 1, args->n_operands - 1);
    if (training->preset) --args->n_set;
    for (const bench_setting *set = training->setting; code == 0 && set->key; ++set) {
        moe_status status = moe_lm_config_set(args->config, set->key, set->value, "bench", &error);
        if (status != MOE_OK) code = cli_fail(args, status, "%s: %s", training->name, error.text);
    }
    if (code == 0 && training->dense) {
        moe_status status = moe_lm_config_make_dense(args->config, "bench", &error);
        if (status != MOE_OK) code = cli_fail(args, status, "%s: %s", training->name, error.text);
    }
    return code;
}

/* Does `work` in the settings of one training: the files, the preset, the command line, what the bench sets.
 */
static int with_settings(cli_args *args, const char *base, const bench_training *training,
                         int (*work)(cli_args *args, const char *run_dir, const bench_training *training)) {
    char run_dir[RUN_PATH];
    moe_error error;
    int code = run_files_path(args, base, training->name, run_dir);
    if (code) return code;
    moe_lm_config *outer = args->config;
    moe_status status = moe_lm_config_create(&args->config, &error);
    if (status != MOE_OK) {
        args->config = outer;
        return cli_fail(args, status, "%s", error.text);
    }
    code = load_settings(args, training);
    if (code == 0) code = work(args, run_dir, training);
    moe_lm_config_destroy(args->config);
    args->config = outer;
    return code;
}

/* Processes that train beside each other. */
typedef struct team {
    pid_t *process; /* [count], 0 once it has ended */
    size_t count, running;
    bool told; /* of a signal */
    int code;  /* of the first that failed, then the bench's */
} team;

static void pass_on(const team *t, int number) {
    for (size_t i = 0; i < t->count; ++i)
        if (t->process[i]) kill(t->process[i], number);
}

/* Waits for one to end. A signal may have met this process alone: it is passed on, so that none is left over.
 */
static void wait_for_one(team *t) {
    const struct timespec nap = {.tv_nsec = 20000000};
    int status;
    pid_t ended;
    for (; (ended = waitpid(-1, &status, WNOHANG)) == 0; nanosleep(&nap, NULL)) {
        if (t->told || !cli_signal_caught()) continue;
        pass_on(t, cli_signal_caught());
        t->told = true; /* a second one would cut them short */
    }
    --t->running;
    for (size_t i = 0; i < t->count; ++i)
        if (t->process[i] == ended) t->process[i] = 0;
    const int its = ended < 0           ? MOE_ERR_INTERNAL
                    : WIFEXITED(status) ? WEXITSTATUS(status)
                                        : 128 + WTERMSIG(status);
    if (t->code == 0) t->code = its;
}

static int train_beside(cli_args *args, const char *base, const bench_training *trainings, size_t n,
                        int64_t jobs) {
    team t = {.process = calloc(n, sizeof *t.process)};
    if (!t.process) return cli_fail(args, MOE_ERR_MEMORY, "no memory for %zu processes", n);
    while (t.count < n && t.code == 0) {
        fflush(NULL); /* or the child prints it again */
        const pid_t process = fork();
        if (process < 0) {
            t.code = cli_fail(args, MOE_ERR_MEMORY, "no process for %s: %s", trainings[t.count].name,
                              strerror(errno));
            break;
        }
        if (process == 0) _exit(with_settings(args, base, &trainings[t.count], train));
        t.process[t.count++] = process;
        if (++t.running == (size_t)jobs) wait_for_one(&t);
    }
    while (t.running > 0) wait_for_one(&t);
    free(t.process);
    return t.code;
}

int bench_train(cli_args *args, const char *run, const bench_training *trainings, size_t n, int64_t jobs) {
    const char *base = cli_text(args, "run") ? cli_text(args, "run") : run;
    int code = 0;
    for (size_t i = 0; i < n && code == 0; ++i) code = with_settings(args, base, &trainings[i], check);
    if (code) return code;
    cli_signals_catch(NULL);
    if (jobs > 1) return train_beside(args, base, trainings, n, jobs);
    for (size_t i = 0; i < n && code == 0; ++i) code = with_settings(args, base, &trainings[i], train);
    return code;
}

void *bench_shared(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void bench_shared_free(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes);
}

/* Pages. */

int bench_page_open(cli_args *args, bench_page *page) {
    page->out = open_memstream(&page->text, &page->length);
    return page->out ? 0 : cli_fail(args, MOE_ERR_MEMORY, "no memory for the page");
}

int bench_page_write(cli_args *args, bench_page *page) {
    const char *output = cli_text(args, "output");
    const bool whole = fclose(page->out) == 0;
    int code = !whole   ? cli_fail(args, MOE_ERR_MEMORY, "no memory for the page")
               : output ? cli_file_write(args, output, page->text, page->length)
                        : 0;
    if (code == 0 && !args->json) printf(output ? "%s\n" : "%s", output ? output : page->text);
    free(page->text);
    return code;
}

void bench_page_drop(bench_page *page) {
    fclose(page->out);
    free(page->text);
}

/* Options that say where runs go and what is shown of them, not what is found. */
static bool is_of_the_place(const char *option) {
    static const char *const names[] = {"run", "move-old", "quiet", "verbose", "color", "json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i)
        if (strcmp(option, names[i]) == 0) return true;
    return false;
}

void bench_page_command(FILE *out, const cli_args *args) {
    fprintf(out, "moekit bench");
    for (int i = 0; i < args->n_operands; ++i) fprintf(out, " %s", args->operand[i]);
    for (int i = 0; i < args->n_set; ++i) fprintf(out, " %s=%s", args->set[i].key, args->set[i].value);
    for (int i = 0; i < args->n_given; ++i) {
        const cli_option *option = args->given[i].option;
        if (is_of_the_place(option->name)) continue;
        fprintf(out, " --%s", option->name);
        if (option->value) fprintf(out, " %s", args->given[i].value);
    }
}
