/* cli_help.c: help and man pages, written from the rows of the verbs.
 * Man pages are scdoc text; docs/man holds them and a test compares.
 */
#include "cli.h"

#include <string.h>

static const struct {
    int code;
    const char *meaning;
} exit_codes[] = {
    {0,   "success"                                                 },
    {1,   "writing failed: disk full, no permission"                },
    {2,   "wrong usage or settings"                                 },
    {3,   "an input file is missing, unreadable or malformed"       },
    {4,   "does not fit into memory"                                },
    {5,   "NaN or infinity was met, or a verification failed"       },
    {7,   "a router alarm stopped the run, as asked"                },
    {8,   "legal, but not built in or not on this machine"          },
    {9,   "a library call at the wrong moment: a bug of the command"},
    {10,  "the GPU reported an error"                               },
    {11,  "a bug of moekit"                                         },
    {129, "ended by SIGHUP; train and generate save first"          },
    {130, "ended by SIGINT (Ctrl-C), likewise"                      },
    {141, "the reader of a pipe went away (SIGPIPE); train goes on" },
    {143, "ended by SIGTERM, likewise"                              }
};

static void print_indented(FILE *out, const char *text, const char *indent) {
    while (*text) {
        size_t n = strcspn(text, "\n");
        fprintf(out, "%s%.*s\n", n ? indent : "", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

static void print_options(FILE *out, const cli_option *option) {
    for (; option && option->name; ++option) {
        char names[64];
        int n = option->letter ? snprintf(names, sizeof names, "-%c, --%s", option->letter, option->name)
                               : snprintf(names, sizeof names, "    --%s", option->name);
        if (option->value && n > 0 && (size_t)n < sizeof names)
            snprintf(names + n, sizeof names - (size_t)n, " %s", option->value);
        fprintf(out, "  %-24s %s\n", names, option->help);
    }
}

static const char *keys_line(const cli_verb *verb) {
    if (verb->keys == CLI_KEYS_LAYER)
        return "Keys: moe.* of the layer, as --moe.top_k 2, moe.top_k=2 or --set moe.top_k=2";
    if (verb->keys == CLI_KEYS_LM && !*verb->key_prefixes)
        return "Keys: all of 'moekit config options', as --moe.top_k 2, moe.top_k=2 or --set moe.top_k=2";
    return NULL;
}

void cli_help_program(FILE *out) {
    fprintf(out, "usage: moekit VERB [OPTION]...\n\n"
                 "Mixture of Experts, end to end: train, measure and explain small MoE language models.\n\n");
    for (const cli_verb *const *verb = cli_verbs; *verb; ++verb)
        fprintf(out, "  %-10s %s\n", (*verb)->name, (*verb)->summary);
    fprintf(out, "\nEvery verb knows\n");
    print_options(out, cli_common_options);
    fprintf(out, "\nExit codes\n");
    for (size_t i = 0; i < sizeof exit_codes / sizeof *exit_codes; ++i)
        fprintf(out, "  %-10d %s\n", exit_codes[i].code, exit_codes[i].meaning);
    fprintf(out, "\n'moekit help VERB' tells more; 'moekit config options' lists every setting.\n"
                 "Results go to standard output, everything else to standard error.\n");
}

void cli_help_verb(FILE *out, const cli_verb *verb) {
    fprintf(out, "usage: moekit %s [OPTION]...%s%s\n\n%s\n\n", verb->name, *verb->operands ? " " : "",
            verb->operands, verb->summary);
    print_indented(out, verb->about, "");
    if (verb->options) {
        fprintf(out, "\nOptions\n");
        print_options(out, verb->options);
    }
    if (verb->makes_context) {
        fprintf(out, "\nMachine\n");
        print_options(out, cli_context_options);
    }
    fprintf(out, "\nEvery verb\n");
    print_options(out, cli_common_options);
    if (keys_line(verb)) fprintf(out, "\n%s\n", keys_line(verb));
    fprintf(out, "\nExamples\n");
    print_indented(out, verb->examples, "  ");
}

/* scdoc gives a meaning to these, to some at the start of a line only; a backslash takes it away. */
static void print_escaped(FILE *out, const char *text) {
    bool line_start = true;
    for (; *text; ++text) {
        if (strchr("_*\\<>#[]", *text) || (line_start && strchr("-.", *text))) fputc('\\', out);
        fputc(*text, out);
        line_start = *text == '\n';
    }
}

static void man_options(FILE *out, const cli_option *option) {
    for (; option && option->name; ++option) {
        if (option->letter) fprintf(out, "*-%c*, ", option->letter);
        fprintf(out, "*--%s*", option->name);
        if (option->value) fprintf(out, " _%s_", option->value);
        fprintf(out, "\n\t");
        print_escaped(out, option->help);
        fprintf(out, "\n\n");
    }
}

static void man_exit_codes(FILE *out) {
    fprintf(out, "# EXIT STATUS\n\n");
    for (size_t i = 0; i < sizeof exit_codes / sizeof *exit_codes; ++i)
        fprintf(out, "*%d*\n\t%s\n\n", exit_codes[i].code, exit_codes[i].meaning);
}

static void man_paragraphs(FILE *out, const char *text) {
    print_escaped(out, text);
    fprintf(out, "\n");
}

void cli_man_verb(FILE *out, const cli_verb *verb) {
    fprintf(out, "moekit-%s(1)\n\n# NAME\n\nmoekit-%s - ", verb->name, verb->name);
    print_escaped(out, verb->summary);
    fprintf(out, "\n\n# SYNOPSIS\n\n*moekit %s* [_OPTION_]...", verb->name);
    if (*verb->operands) fputc(' ', out);
    print_escaped(out, verb->operands);
    fprintf(out, "\n\n# DESCRIPTION\n\n");
    man_paragraphs(out, verb->about);
    if (keys_line(verb)) {
        print_escaped(out, keys_line(verb));
        fprintf(out, "\n\n");
    }
    fprintf(out, "# OPTIONS\n\n");
    man_options(out, verb->options);
    if (verb->makes_context) man_options(out, cli_context_options);
    man_options(out, cli_common_options);
    fprintf(out, "# EXAMPLES\n\n```\n%s```\n\n", verb->examples);
    man_exit_codes(out);
    fprintf(out, "# SEE ALSO\n\n*moekit*(1)\n");
}

void cli_man_program(FILE *out) {
    fprintf(out, "moekit(1)\n\n# NAME\n\nmoekit - Mixture of Experts, end to end\n\n"
                 "# SYNOPSIS\n\n*moekit* _VERB_ [_OPTION_]...\n\n"
                 "# DESCRIPTION\n\nTrains, measures and explains small Mixture-of-Experts language models on "
                 "the CPU.\n"
                 "Results go to standard output, everything else to standard error.\n\n# VERBS\n\n");
    for (const cli_verb *const *verb = cli_verbs; *verb; ++verb) {
        fprintf(out, "*moekit-%s*(1)\n\t", (*verb)->name);
        print_escaped(out, (*verb)->summary);
        fprintf(out, "\n\n");
    }
    fprintf(out, "# OPTIONS OF EVERY VERB\n\n");
    man_options(out, cli_common_options);
    fprintf(
        out,
        "# SETTINGS\n\nLater sources win: defaults, %s, _$XDG\\_CONFIG\\_HOME/moekit/config.yaml_, the "
        "files\n"
        "of the command line in their order, the environment (MOEKIT\\_TRAIN\\_STEPS for train.steps), the\n"
        "command line. *moekit config options* lists every key.\n\n"
        "# ENVIRONMENT\n\n"
        "*MOEKIT_NUM_THREADS*, *OMP_NUM_THREADS*\n\tthreads, where no setting says\n\n"
        "*MOEKIT_ISA*\n\tkernels: ref, avx2, avx512, avx512bf16, amx or neon, a GPU's cuda or sm90, where no "
        "setting says\n\n"
        "*NO_COLOR*\n\tno colours\n\n",
        cli_system_config_path);
    man_exit_codes(out);
}
