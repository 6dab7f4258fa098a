/* cli_args.c: the command line of a verb: its options, the configuration keys it takes, its operands.
 * --name value, --name=value, -x value, key.path=value, --set key=value; `--` ends the options.
 * An unknown name is answered with the nearest known one.
 */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const cli_option cli_common_options[] = {
    {"json",    0,   NULL,   "results as JSON"                                            },
    {"quiet",   'q', NULL,   "no progress and no remarks on stderr"                       },
    {"verbose", 'v', NULL,   "more on stderr; twice: still more"                          },
    {"color",   0,   "WHEN", "auto, always or never; auto heeds NO_COLOR and the terminal"},
    {"help",    'h', NULL,   "this text"                                                  },
    {NULL,      0,   NULL,   NULL                                                         }
};

const cli_option cli_context_options[] = {
    {"threads", 't', "N",    "threads; 0: MOEKIT_NUM_THREADS, OMP_NUM_THREADS, else one per core"        },
    {"isa",     0,   "NAME",
     "kernels: ref, avx2, avx512, avx512bf16, amx, neon, a GPU's cuda, sm90; else MOEKIT_ISA or the best"},
    {NULL,      0,   NULL,   NULL                                                                        }
};

static const cli_option set_option = {"set", 0, "KEY=VALUE", "sets a configuration key; same as KEY=VALUE"};

enum { LONGEST = 96 };

const cli_option *cli_option_find(const cli_option *table, const char *name, size_t length) {
    for (; table && table->name; ++table)
        if (strlen(table->name) == length && memcmp(table->name, name, length) == 0) return table;
    return NULL;
}

/* The tables a verb's options may stand in, nearest first. */
static int tables_of(const cli_verb *verb, const cli_option *tables[3]) {
    int n = 0;
    if (verb->options) tables[n++] = verb->options;
    if (verb->makes_context) tables[n++] = cli_context_options;
    tables[n++] = cli_common_options;
    return n;
}

static const cli_option *find_long(const cli_args *args, const char *name, size_t length) {
    const cli_option *tables[3], *found = NULL;
    int n = tables_of(args->verb, tables);
    for (int i = 0; i < n && !found; ++i) found = cli_option_find(tables[i], name, length);
    bool is_set = args->n_keys > 0 && length == 3 && memcmp(name, set_option.name, 3) == 0;
    return !found && is_set ? &set_option : found;
}

static const cli_option *find_letter(const cli_verb *verb, char letter) {
    const cli_option *tables[3];
    int n = tables_of(verb, tables);
    for (int i = 0; i < n; ++i)
        for (const cli_option *option = tables[i]; option->name; ++option)
            if (option->letter == letter) return option;
    return NULL;
}

/* True where `key` begins with one of the verb's prefixes. */
static bool key_wanted(const cli_verb *verb, const char *key) {
    if (!*verb->key_prefixes) return true;
    for (const char *word = verb->key_prefixes; *word;) {
        size_t n = strcspn(word, " ");
        if (strncmp(key, word, n) == 0) return true;
        word += n + (word[n] == ' ');
    }
    return false;
}

/* The row of a key the verb takes, by any of its names. */
static const moe_option *find_row(const cli_args *args, const char *key) {
    if (args->verb->keys == CLI_KEYS_LAYER) {
        const moe_option *row = moe_layer_option_find(key);
        if (row) return row;
    }
    moe_lm_config_entry entry;
    if (moe_lm_config_find(args->config, key, &entry, NULL) != MOE_OK) return NULL;
    if (args->verb->keys == CLI_KEYS_LAYER)
        return strcmp(entry.option->key, "moe.preset") == 0 ? entry.option : NULL;
    return key_wanted(args->verb, entry.option->key) ? entry.option : NULL;
}

/* A key the verb takes, by a name with dashes or underscores: our name of it, or another system's where that
 * has values of its own. NULL: none; *is_switch: true or false is all it can be. */
static const char *find_key(const cli_args *args, const char *name, size_t length, bool *is_switch) {
    char key[LONGEST + 1];
    *is_switch = false;
    if (length == 0 || length > LONGEST || args->n_keys == 0) return NULL;
    for (size_t i = 0; i < length; ++i) key[i] = name[i] == '-' ? '_' : name[i];
    key[length] = '\0';
    const moe_layer_alias *alias = moe_layer_alias_named(key);
    if (alias) return key_wanted(args->verb, "moe.") ? alias->name : NULL;
    const moe_option *row = find_row(args, key);
    *is_switch = row && row->type == MOE_OPT_BOOL;
    return row ? row->key : NULL;
}

void cli_guess_row(cli_guess *guess, const moe_option *row, const char *name) {
    const size_t distance = moe_option_distance(row, name);
    if (!moe_option_is_near(name, distance) || (guess->name && distance >= guess->distance)) return;
    *guess = (cli_guess){row->key, distance};
}

void cli_guess_word(cli_guess *guess, const char *word, const char *name) {
    cli_guess_row(guess, &(moe_option){.key = word, .aliases = ""}, name);
}

/* What was probably meant by an unknown name: an option, or else a key; NULL: nothing is near. */
static const char *nearest_name(const cli_args *args, const char *name) {
    const cli_option *tables[3];
    cli_guess guess = {0};
    int n = tables_of(args->verb, tables);
    for (int i = 0; i < n; ++i)
        for (const cli_option *option = tables[i]; option->name; ++option)
            cli_guess_word(&guess, option->name, name);
    for (size_t i = 0; i < args->n_keys; ++i) cli_guess_row(&guess, args->key[i], name);
    return guess.name;
}

static int unknown_name(cli_args *args, const char *dashes, const char *name, size_t length) {
    char bare[LONGEST + 1], hint[LONGEST + 32] = "";
    if (length > LONGEST) length = LONGEST;
    memcpy(bare, name, length);
    bare[length] = '\0';
    const char *nearest = nearest_name(args, bare);
    if (nearest) snprintf(hint, sizeof hint, "; did you mean '%s%s'?", dashes, nearest);
    return cli_fail(args, MOE_ERR_ARGUMENT, "unknown option '%s%s'%s 'moekit help %s' lists %s", dashes, bare,
                    nearest ? hint : ";", args->verb->name,
                    args->n_keys > 0 ? "the options, 'moekit config options' the keys" : "them all");
}

static void assign(cli_args *args, const char *key, const char *value) {
    args->set[args->n_set++] = (struct cli_assignment){key, value};
}

/* KEY=VALUE, as an operand or after --set. */
static int parse_assignment(cli_args *args, const char *text) {
    size_t length = strcspn(text, "=");
    if (text[length] != '=') return cli_fail(args, MOE_ERR_ARGUMENT, "'%s' is not KEY=VALUE", text);
    bool is_switch;
    const char *key = find_key(args, text, length, &is_switch);
    if (!key) return unknown_name(args, "", text, length);
    assign(args, key, text + length + 1);
    return 0;
}

/* Option `i` of argv; advances it past the value. A flag stands alone, and so may a true-or-false key. */
static int parse_long(cli_args *args, int argc, char **argv, int *i) {
    const char *name = argv[*i] + 2;
    size_t length = strcspn(name, "=");
    const char *value = name[length] ? name + length + 1 : NULL;
    const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
    const cli_option *option = find_long(args, name, length);
    bool is_switch = false;
    const char *key = option ? NULL : find_key(args, name, length, &is_switch);
    if (!option && !key) return unknown_name(args, "--", name, length);
    if (option && !option->value && value)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--%s takes no value", option->name);
    bool needs_value = option ? option->value != NULL : true;
    if (is_switch && !value && (!next || next[0] == '-')) value = "true";
    if (needs_value && !value) {
        if (!next) return cli_fail(args, MOE_ERR_ARGUMENT, "--%.*s needs a value", (int)length, name);
        value = next;
        ++*i;
    }
    if (option == &set_option) return parse_assignment(args, value);
    if (key)
        assign(args, key, value);
    else
        args->given[args->n_given++] = (struct cli_given){option, value};
    return 0;
}

/* -x, -x VALUE, -xVALUE, and several flags in one: -qv. */
static int parse_letters(cli_args *args, int argc, char **argv, int *i) {
    for (const char *letter = argv[*i] + 1; *letter; ++letter) {
        const cli_option *option = find_letter(args->verb, *letter);
        if (!option) return unknown_name(args, "-", letter, 1);
        const char *value = NULL;
        if (option->value) {
            value = letter[1] ? letter + 1 : *i + 1 < argc ? argv[++*i] : NULL;
            if (!value) return cli_fail(args, MOE_ERR_ARGUMENT, "-%c needs a value", *letter);
        }
        args->given[args->n_given++] = (struct cli_given){option, value};
        if (value) break;
    }
    return 0;
}

/* An operand of the form word=value is an assignment; ./word=value is a file. */
static bool looks_like_assignment(const cli_args *args, const char *text) {
    if (args->verb->is_operand && args->verb->is_operand(args, text)) return false;
    size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");
    return args->n_keys > 0 && length > 0 && text[0] != '.' && text[length] == '=';
}

static int parse_operand(cli_args *args, const char *text) {
    if (looks_like_assignment(args, text)) return parse_assignment(args, text);
    if (args->n_operands == args->verb->max_operands)
        return cli_fail(args, MOE_ERR_ARGUMENT, "unexpected argument '%s'; usage: moekit %s [OPTION]... %s",
                        text, args->verb->name, args->verb->operands);
    args->operand[args->n_operands++] = text;
    return 0;
}

static int collect_keys(cli_args *args) {
    size_t n_layer = 0;
    const size_t n_config = moe_lm_config_count(args->config);
    while (moe_layer_option_at(n_layer)) ++n_layer;
    args->key = calloc(n_layer + n_config + 1, sizeof *args->key);
    if (!args->key) return cli_fail(args, MOE_ERR_MEMORY, "out of memory");
    if (args->verb->keys == CLI_KEYS_LAYER) {
        moe_lm_config_entry preset;
        for (size_t i = 0; i < n_layer; ++i) args->key[args->n_keys++] = moe_layer_option_at(i);
        if (moe_lm_config_find(args->config, "moe.preset", &preset, NULL) == MOE_OK)
            args->key[args->n_keys++] = preset.option;
    }
    if (args->verb->keys == CLI_KEYS_LM)
        for (size_t i = 0; i < n_config; ++i) {
            moe_lm_config_entry entry;
            moe_lm_config_entry_get(args->config, i, &entry);
            if (key_wanted(args->verb, entry.option->key)) args->key[args->n_keys++] = entry.option;
        }
    return 0;
}

static void set_colors(cli_args *args, bool always, bool automatic) {
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    bool plain = (no_color && *no_color) || (terminal && strcmp(terminal, "dumb") == 0);
    args->color_out = always || (automatic && !plain && isatty(STDOUT_FILENO));
    args->color_err = always || (automatic && !plain && isatty(STDERR_FILENO));
}

static int apply_common(cli_args *args) {
    const char *when = cli_text(args, "color");
    if (!when) when = "auto";
    bool always = strcmp(when, "always") == 0, automatic = strcmp(when, "auto") == 0;
    if (!always && !automatic && strcmp(when, "never") != 0)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--color: '%s' is not one of: auto, always, never", when);
    set_colors(args, always, automatic);
    args->json = cli_flag(args, "json");
    args->quiet = cli_flag(args, "quiet");
    for (int i = 0; i < args->n_given; ++i)
        args->verbose += strcmp(args->given[i].option->name, "verbose") == 0;
    return 0;
}

int cli_args_parse(cli_args *args, const cli_verb *verb, int argc, char **argv) {
    moe_error error;
    size_t letters = 1; /* -qv is one argument and two options */
    args->verb = verb;
    set_colors(args, false, true); /* of what is said before --color is known */
    for (int i = 0; i < argc; ++i) letters += strlen(argv[i]) + 1;
    args->given = calloc(letters, sizeof *args->given);
    args->set = calloc((size_t)argc + 1, sizeof *args->set);
    args->operand = calloc((size_t)argc + 1, sizeof *args->operand);
    if (!args->given || !args->set || !args->operand) return cli_fail(args, MOE_ERR_MEMORY, "out of memory");
    moe_status status = moe_lm_config_create(&args->config, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    int code = collect_keys(args);
    bool options_over = false;
    for (int i = 0; i < argc && code == 0; ++i) {
        const char *text = argv[i];
        if (options_over || text[0] != '-' || !text[1])
            code = parse_operand(args, text);
        else if (strcmp(text, "--") == 0)
            options_over = true;
        else if (text[1] == '-')
            code = parse_long(args, argc, argv, &i);
        else
            code = parse_letters(args, argc, argv, &i);
    }
    return code ? code : apply_common(args);
}

void cli_args_free(cli_args *args) {
    moe_lm_config_destroy(args->config);
    free(args->given);
    free(args->set);
    free(args->operand);
    free(args->key);
}

const char *cli_text(const cli_args *args, const char *option) {
    for (int i = args->n_given; i-- > 0;)
        if (strcmp(args->given[i].option->name, option) == 0) return args->given[i].value;
    return NULL;
}

bool cli_flag(const cli_args *args, const char *option) {
    for (int i = 0; i < args->n_given; ++i)
        if (strcmp(args->given[i].option->name, option) == 0) return true;
    return false;
}

int cli_integer(cli_args *args, const char *option, int64_t min, int64_t max, int64_t *number) {
    const char *text = cli_text(args, option);
    if (!text) return 0;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < min || value > max)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--%s: '%s' is not a whole number from %lld to %lld", option,
                        text, (long long)min, (long long)max);
    *number = value;
    return 0;
}

int cli_real(cli_args *args, const char *option, double min, double max, double *number) {
    const char *text = cli_text(args, option);
    if (!text) return 0;
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || strpbrk(text, "xX") || !(value >= min && value <= max))
        return cli_fail(args, MOE_ERR_ARGUMENT, "--%s: '%s' is not a number from %g to %g", option, text, min,
                        max);
    *number = value;
    return 0;
}
