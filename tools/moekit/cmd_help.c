/* cmd_help.c: moekit help [VERB], as text or as the source of the man page.
 */
#include "cli.h"

static const cli_option options[] = {
    {"man", 0, NULL, "as a man page in scdoc's language"},
    {NULL,  0, NULL, NULL                               }
};

static void print_verbs_json(void) {
    for (const cli_verb *const *verb = cli_verbs; *verb; ++verb) {
        printf("%s{\"name\":\"%s\",\"summary\":", verb == cli_verbs ? "[" : ",\n ", (*verb)->name);
        cli_json_string(stdout, (*verb)->summary);
        printf("}");
    }
    printf("]\n");
}

static void print_options_json(const cli_option *option, bool *first) {
    for (; option && option->name; ++option, *first = false) {
        printf("%s{\"name\":\"%s\",\"letter\":\"%.*s\",\"value\":", *first ? "" : ",\n ", option->name,
               option->letter ? 1 : 0, &option->letter);
        cli_json_string(stdout, option->value ? option->value : "");
        printf(",\"help\":");
        cli_json_string(stdout, option->help);
        printf("}");
    }
}

static void print_verb_json(const cli_verb *verb) {
    bool first = true;
    printf("{\"name\":\"%s\",\"summary\":", verb->name);
    cli_json_string(stdout, verb->summary);
    printf(",\"operands\":");
    cli_json_string(stdout, verb->operands);
    printf(",\"about\":");
    cli_json_string(stdout, verb->about);
    printf(",\"examples\":");
    cli_json_string(stdout, verb->examples);
    printf(",\n\"options\":[");
    print_options_json(verb->options, &first);
    if (verb->makes_context) print_options_json(cli_context_options, &first);
    print_options_json(cli_common_options, &first);
    printf("]}\n");
}

static int run(cli_args *args) {
    bool man = cli_flag(args, "man");
    if (args->n_operands == 0 && args->json) {
        print_verbs_json();
        return 0;
    }
    if (args->n_operands == 0) {
        man ? cli_man_program(stdout) : cli_help_program(stdout);
        return 0;
    }
    const cli_verb *verb = cli_verb_find(args->operand[0]);
    const char *nearest = cli_verb_nearest(args->operand[0]);
    if (!verb && nearest)
        return cli_fail(args, MOE_ERR_ARGUMENT, "unknown verb '%s'; did you mean '%s'?", args->operand[0],
                        nearest);
    if (!verb)
        return cli_fail(args, MOE_ERR_ARGUMENT, "unknown verb '%s'; 'moekit help' lists them",
                        args->operand[0]);
    if (args->json)
        print_verb_json(verb);
    else
        man ? cli_man_verb(stdout, verb) : cli_help_verb(stdout, verb);
    return 0;
}

const cli_verb cmd_help = {
    .name = "help",
    .operands = "[VERB]",
    .summary = "what there is, or what a verb does",
    .about = "Without a verb: all of them. The man page moekit-VERB(1) says the same.\n",
    .examples = "moekit help train\n",
    .options = options,
    .keys = CLI_KEYS_NONE,
    .key_prefixes = "",
    .max_operands = 1,
    .run = run,
};
