/* main.c: moekit VERB [OPTION]...: finds the verb, parses, runs, and answers with its exit code.
 * Options every verb knows may stand before the verb as well.
 */
#include "cli.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const cli_verb *const cli_verbs[] = {&cmd_train,   &cmd_eval,   &cmd_generate, &cmd_report,
                                     &cmd_bench,   &cmd_verify, &cmd_doctor,   &cmd_config,
                                     &cmd_version, &cmd_help,   NULL};

const cli_verb *cli_verb_find(const char *name) {
    for (const cli_verb *const *verb = cli_verbs; *verb; ++verb)
        if (strcmp((*verb)->name, name) == 0) return *verb;
    return NULL;
}

const char *cli_verb_nearest(const char *name) {
    cli_guess guess = {0};
    for (const cli_verb *const *verb = cli_verbs; *verb; ++verb) cli_guess_word(&guess, (*verb)->name, name);
    return guess.name;
}

/* Arguments before the verb that belong to it: options every verb knows. */
static int leading_options(int argc, char **argv) {
    int i = 1;
    while (i < argc && argv[i][0] == '-') i += strcmp(argv[i], "--color") == 0 ? 2 : 1;
    return (i < argc ? i : argc) - 1;
}

/* The line as one string, for the record of a run. */
static char *join(int argc, char **argv) {
    size_t length = 1;
    for (int i = 0; i < argc; ++i) length += strlen(argv[i]) + 1;
    char *line = calloc(length, 1), *at = line;
    for (int i = 0; line && i < argc; ++i) at += sprintf(at, "%s%s", i ? " " : "", argv[i]);
    return line;
}

static int run_verb(const cli_verb *verb, int argc, char **argv, const char *command) {
    cli_args args = {.command = command};
    int code = cli_args_parse(&args, verb, argc, argv);
    if (code == 0 && cli_flag(&args, "help"))
        cli_help_verb(stdout, verb);
    else if (code == 0)
        code = verb->run(&args);
    cli_close_line(&args);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
        code = cli_fail(&args, MOE_ERR_IO, "cannot write the results to standard output");
    cli_args_free(&args);
    return code;
}

/* Without a verb: the overview where it was asked for, else an error that shows the way. */
static int run_no_verb(int argc, char **argv) {
    cli_args args = {0};
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_help_program(stdout);
            return fflush(stdout) == 0 ? 0 : MOE_ERR_IO;
        }
        if (strcmp(argv[i], "--version") == 0) return run_verb(&cmd_version, 0, NULL, "");
    }
    return cli_fail(&args, MOE_ERR_ARGUMENT,
                    "name a verb: moekit VERB [OPTION]...; 'moekit help' lists them");
}

/* A closed standard descriptor's number would go to the next file that is opened, and what is said would
 * land in a run's files. Standard output is opened for reading: results that have nowhere to go stay an
 * error. */
static bool open_closed_descriptors(void) {
    static const int modes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
    for (int fd = 0; fd <= STDERR_FILENO; ++fd)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", modes[fd]) != fd) return false;
    return true;
}

int main(int argc, char **argv) {
    if (!open_closed_descriptors()) return MOE_ERR_IO;
    signal(SIGXFSZ, SIG_IGN); /* a file over the size limit is an error of writing, not the end */
    int n_leading = leading_options(argc, argv);
    if (1 + n_leading >= argc) return run_no_verb(argc, argv);
    const char *name = argv[1 + n_leading];
    const cli_verb *verb = cli_verb_find(name);
    if (!verb) {
        cli_args args = {0};
        const char *nearest = cli_verb_nearest(name);
        if (nearest)
            return cli_fail(&args, MOE_ERR_ARGUMENT, "unknown verb '%s'; did you mean '%s'?", name, nearest);
        return cli_fail(&args, MOE_ERR_ARGUMENT, "unknown verb '%s'; 'moekit help' lists them", name);
    }
    char *command = join(argc, argv);
    if (!command) return MOE_ERR_MEMORY;
    memmove(argv + 2, argv + 1, (size_t)n_leading * sizeof *argv); /* the verb's place is free */
    int code = run_verb(verb, argc - 2, argv + 2, command);
    free(command);
    return code;
}
