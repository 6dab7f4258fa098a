/* cli.h: what the verbs of the command share: how one is described, its arguments, its voice.
 * A verb is one cmd_<verb>.c with one cli_verb row; the parser, --help and the man pages read that row.
 * Habits: stdout carries results only, all else is stderr; exit codes are the numbers of moe_status.
 */
#ifndef MOEKIT_CLI_H
#define MOEKIT_CLI_H

#include <moekit/lm.h>

#include <stdio.h>

typedef struct cli_option {
    const char *name;  /* "run" is --run */
    char letter;       /* 'r' is -r; 0: none */
    const char *value; /* what stands after it, "DIR"; NULL: a flag */
    const char *help;  /* one line */
} cli_option;

/* Which configuration keys a verb takes as --key value, key=value and --set key=value. */
typedef enum cli_keys {
    CLI_KEYS_NONE,
    CLI_KEYS_LM,   /* those of moe_lm_config whose name begins with one of key_prefixes */
    CLI_KEYS_LAYER /* those of moe_layer_option_at, and moe.preset */
} cli_keys;

typedef struct cli_args cli_args;
typedef struct cli_verb {
    const char *name;
    const char *operands;      /* as the synopsis shows them: "CONFIG.yaml..." */
    const char *summary;       /* one line */
    const char *about;         /* paragraphs, lines of at most 90 columns */
    const char *examples;      /* one command a line */
    const cli_option *options; /* ends with a NULL name */
    bool makes_context;        /* takes --threads and --isa too */
    cli_keys keys;
    const char *key_prefixes; /* space-separated; "": every key */
    int max_operands;
    /* Of word=... behind the operands so far: that it is no setting; NULL: all are settings. */
    bool (*is_operand)(const cli_args *args, const char *text);
    int (*run)(cli_args *args); /* returns the exit code */
} cli_verb;

struct cli_args {
    const cli_verb *verb;
    struct cli_given {
        const cli_option *option;
        const char *value;
    } * given; /* options in their order; the last of a name wins */
    struct cli_assignment {
        const char *key; /* ours, or another system's name whose values are its own */
        const char *value;
    } * set; /* in their order */
    const char **operand;
    int n_given, n_set, n_operands;

    moe_lm_config *config;  /* the settings being resolved; defaults until cli_settings_load */
    const moe_option **key; /* rows the verb takes: those of the layer or of `config` */
    size_t n_keys;
    const char *command; /* the whole line, for run.json */

    bool json, quiet;
    int verbose;
    bool color_out, color_err;
    bool line_open; /* stderr holds an unfinished progress line */
};

/* 1. The verbs, in the order of the help. */
extern const cli_verb cmd_train, cmd_eval, cmd_generate, cmd_report, cmd_bench, cmd_verify, cmd_doctor,
    cmd_config, cmd_version, cmd_help;
extern const cli_verb *const cli_verbs[]; /* ends with NULL */
const cli_verb *cli_verb_find(const char *name);
const char *cli_verb_nearest(const char *name); /* NULL: nothing is near */

/* 2. Arguments. argv holds what stands after the verb. Returns 0, or the exit code after telling why. */
int cli_args_parse(cli_args *args, const cli_verb *verb, int argc, char **argv);
void cli_args_free(cli_args *args);
extern const cli_option cli_common_options[], cli_context_options[];
const cli_option *cli_option_find(const cli_option *table, const char *name, size_t length);
const char *cli_text(const cli_args *args, const char *option); /* NULL: not given */
bool cli_flag(const cli_args *args, const char *option);
/* `*number` keeps its value where the option was not given. */
int cli_integer(cli_args *args, const char *option, int64_t min, int64_t max, int64_t *number);
int cli_real(cli_args *args, const char *option, double min, double max, double *number);
/* The nearest of names met so far to one that is misspelt. */
typedef struct cli_guess {
    const char *name; /* NULL: none was near */
    size_t distance;
} cli_guess;
void cli_guess_row(cli_guess *guess, const moe_option *row, const char *name);
void cli_guess_word(cli_guess *guess, const char *word, const char *name);

/* 3. Help, from the rows. */
void cli_help_program(FILE *out);
void cli_help_verb(FILE *out, const cli_verb *verb);
void cli_man_program(FILE *out);
void cli_man_verb(FILE *out, const cli_verb *verb);

/* 4. Settings: defaults < system file < user file < files < environment < command line. */
int cli_settings_load(cli_args *args, const char *const *files, int n_files);
/* The value of a key in `config`; text must hold 1024 bytes. */
int cli_setting(cli_args *args, const moe_lm_config *config, const char *key, char *text);
bool cli_user_config_path(char *path, size_t size);
extern const char *const cli_system_config_path;
/* A context as --threads, --isa, --device (of verbs that have it) and run.* say. isa NULL and threads 0:
 * those. */
int cli_context_create(cli_args *args, const char *isa, int32_t threads, moe_ctx **ctx);

/* 5. Voice. Each prints "moekit VERB: ..." on stderr; cli_fail returns `status` as the exit code. */
int cli_fail(cli_args *args, moe_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void cli_warn(cli_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cli_say(cli_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Draws a living line over the last one, cut at the terminal's width; where stderr is none, or --quiet,
 * nothing. */
void cli_draw_line(cli_args *args, const char *text);
/* Ends an unfinished progress line, or takes it back. */
void cli_close_line(cli_args *args);
void cli_erase_line(cli_args *args);

typedef enum cli_color { CLI_RED = 31, CLI_GREEN = 32, CLI_YELLOW = 33, CLI_BOLD = 1 } cli_color;
/* The escape that starts a colour, "" where colour is off; cli_plain ends it. */
const char *cli_paint(bool on, cli_color color, char buffer[8]);
const char *cli_plain(bool on);

/* 6. JSON. Bytes that are not UTF-8 become U+FFFD; numbers that are not finite become null. */
void cli_json_text(FILE *out, const char *text, size_t length);
void cli_json_string(FILE *out, const char *text);
void cli_json_number(FILE *out, double number);

/* 7. Files. Reading fails with a text; writing goes to a temporary name beside the file, then renames. */
int cli_file_read(cli_args *args, const char *path, char **text, size_t *length);
int cli_file_write(cli_args *args, const char *path, const char *text, size_t length);
bool cli_file_exists(const char *path);
bool cli_is_directory(const char *path);
/* Before the work whose outcome goes there. Refuses what is there and is no plain file, since a rename would
 * replace a device or a directory, and a directory that is missing or takes no files. */
int cli_output_check(cli_args *args, const char *path);
bool cli_program_find(const char *name, char *path, size_t size); /* along PATH */

/* 8. Time and signals. */
double cli_seconds(void); /* monotonic */
/* SIGINT, SIGTERM, SIGHUP, where they are not ignored: the first is noted and answered with a remark (NULL:
 * none), the second ends the process. */
void cli_signals_catch(const char *remark);
int cli_signal_caught(void); /* its number; 0: none */

#endif
