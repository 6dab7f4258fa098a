/* cmd_config.c: moekit config: what the settings are, where they come from, what they mean.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static const cli_option options[] = {
    {"origin",   0, NULL, "show: where each value comes from"   },
    {"changed",  0, NULL, "show: only what is not the default"  },
    {"markdown", 0, NULL, "options: as the page docs/options.md"},
    {NULL,       0, NULL, NULL                                  }
};

static const char *type_name(moe_option_type type) {
    static const char *const names[] = {
        [MOE_OPT_BOOL] = "true or false", [MOE_OPT_INT] = "integer",   [MOE_OPT_INT64] = "integer",
        [MOE_OPT_FLOAT] = "number",       [MOE_OPT_DOUBLE] = "number", [MOE_OPT_CHOICE] = "word",
        [MOE_OPT_TEXT] = "text"};
    return names[type];
}

/* "1 .. 65536", or the words to choose from; "" where anything goes. */
static void describe_range(const moe_option *row, char *text, size_t size) {
    *text = '\0';
    if (row->type == MOE_OPT_CHOICE && row->choices) {
        for (size_t i = 0, used = 0; row->choices[i] && used < size; ++i)
            used += (size_t)snprintf(text + used, size - used, "%s%s", i ? ", " : "", row->choices[i]);
    } else if (row->type == MOE_OPT_INT || row->type == MOE_OPT_INT64) {
        snprintf(text, size, "%.0f .. %.0f", row->min, row->max); /* in full, as they can be written */
    } else if (row->type == MOE_OPT_FLOAT || row->type == MOE_OPT_DOUBLE) {
        snprintf(text, size, "%.10g .. %.10g", row->min, row->max);
    }
}

static void environment_name(const moe_option *row, char *text, size_t size) {
    size_t used = (size_t)snprintf(text, size, "MOEKIT_%s", row->key);
    for (size_t i = 0; i < used && i < size; ++i) {
        if (text[i] == '.') text[i] = '_';
        if (text[i] >= 'a' && text[i] <= 'z') text[i] = (char)(text[i] - 'a' + 'A');
    }
}

static void print_entry_json(const moe_lm_config_entry *entry, bool first) {
    moe_option_type type = entry->option->type;
    bool bare = type != MOE_OPT_CHOICE && type != MOE_OPT_TEXT;
    printf("%s\n  \"%s\": {\"value\": ", first ? "" : ",", entry->option->key);
    if (bare)
        printf("%s", entry->value);
    else
        cli_json_string(stdout, entry->value);
    printf(", \"origin\": ");
    cli_json_string(stdout, entry->origin);
    printf("}");
}

/* KEY=VALUE lines, which a command line takes back. */
static int show(cli_args *args) {
    moe_lm_config *fresh;
    moe_error error;
    int code = cli_settings_load(args, args->operand + 1, args->n_operands - 1);
    if (code) return code;
    if (moe_lm_config_create(&fresh, &error) != MOE_OK) return cli_fail(args, error.status, "%s", error.text);
    bool first = true, changed = cli_flag(args, "changed"), origin = cli_flag(args, "origin");
    if (args->json) printf("{");
    for (size_t i = 0; i < moe_lm_config_count(args->config); ++i) {
        moe_lm_config_entry entry, initial;
        moe_lm_config_entry_get(args->config, i, &entry);
        moe_lm_config_entry_get(fresh, i, &initial);
        if (changed && strcmp(entry.value, initial.value) == 0) continue;
        if (args->json)
            print_entry_json(&entry, first);
        else if (origin)
            printf("%-28s %s=%s\n", entry.origin, entry.option->key, entry.value);
        else
            printf("%s=%s\n", entry.option->key, entry.value);
        first = false;
    }
    if (args->json) printf("\n}\n");
    moe_lm_config_destroy(fresh);
    return 0;
}

static void print_option_json(const moe_option *row) {
    char range[256], variable[128];
    describe_range(row, range, sizeof range);
    environment_name(row, variable, sizeof variable);
    printf("{\"key\":\"%s\",\"type\":\"%s\",\"range\":", row->key, type_name(row->type));
    cli_json_string(stdout, range);
    printf(",\"default\":");
    cli_json_string(stdout, row->initial);
    printf(",\"help\":");
    cli_json_string(stdout, row->help);
    printf(",\"aliases\":\"%s\",\"environment\":\"%s\"}", row->aliases, variable);
}

static void print_explanation(const moe_option *row) {
    char range[256], variable[128];
    describe_range(row, range, sizeof range);
    environment_name(row, variable, sizeof variable);
    printf("%s\n    %s\n    %s%s%s; default %s\n    environment %s\n", row->key, row->help,
           type_name(row->type), *range ? ": " : "", range, *row->initial ? row->initial : "empty", variable);
    if (*row->aliases) printf("    also known as %s\n", row->aliases);
}

/* What another system's setting does here, as text: "moe.router_type sinkhorn, ...". */
static void describe_alias(const moe_layer_alias *alias, char *text, size_t size) {
    size_t used = 0;
    snprintf(text, size, "%s", alias->advice ? alias->advice : "nothing: moekit does so anyway");
    const moe_alias_setting *setting;
    for (size_t i = 0; (setting = moe_layer_alias_setting(alias, i)) && used < size; ++i) {
        const char *value = setting->value ? setting->value : "the same";
        if (strcmp(value, "-") == 0) value = "the same without its sign";
        used +=
            (size_t)snprintf(text + used, size - used, "%smoe.%s %s%s%s", i ? ", " : "", setting->key, value,
                             setting->where ? " where " : "", setting->where ? setting->where : "");
    }
}

static const char *alias_value(const moe_layer_alias *alias) {
    if (!alias->value) return "any other";
    return *alias->value ? alias->value : "null";
}

/* A name of another system with values of its own: what each of them sets. */
static void print_alias(const cli_args *args, const moe_layer_alias *named) {
    const moe_layer_alias *alias;
    bool first = true;
    printf(args->json ? "{\"key\":\"%s\",\"system\":\"%s\",\"values\":[" : "%s\n    of %s\n", named->name,
           named->system);
    for (size_t i = 0; (alias = moe_layer_alias_at(i)); ++i) {
        char text[512];
        if (strcmp(alias->name, named->name) != 0) continue;
        describe_alias(alias, text, sizeof text);
        if (args->json) {
            printf("%s{\"value\":\"%s\",\"sets\":", first ? "" : ",", alias_value(alias));
            cli_json_string(stdout, text);
            printf("}");
        } else {
            printf("    %s: %s\n", alias_value(alias), text);
        }
        first = false;
    }
    if (args->json) printf("]}");
}

static int explain(cli_args *args) {
    moe_lm_config_entry entry;
    moe_error error;
    if (args->n_operands < 2)
        return cli_fail(args, MOE_ERR_ARGUMENT, "name the keys: moekit config explain KEY...");
    for (int i = 1; i < args->n_operands; ++i) {
        const moe_layer_alias *alias = moe_layer_alias_named(args->operand[i]);
        moe_status status = moe_lm_config_find(args->config, args->operand[i], &entry, &error);
        if (status != MOE_OK && !alias) return cli_fail(args, status, "%s", error.text);
        if (i > 1) printf(args->json ? ",\n " : "\n");
        if (args->json && i == 1) printf("[");
        if (status == MOE_OK && args->json)
            print_option_json(entry.option);
        else if (status == MOE_OK)
            print_explanation(entry.option);
        if (status == MOE_OK && alias) printf(args->json ? ",\n " : "\n");
        if (alias) print_alias(args, alias);
    }
    if (args->json) printf("]\n");
    return 0;
}

/* Whether the kinds of expert are there: a context knows, so a small layer of them is made. */
static int check_kinds(cli_args *args) {
    char expert[1024], kinds[1024], number[1024], freq[1024];
    moe_ctx *ctx;
    moe_layer *layer = NULL;
    int code = cli_setting(args, args->config, "moe.expert", expert);
    if (code == 0) code = cli_setting(args, args->config, "moe.expert_kinds", kinds);
    if (code == 0) code = cli_setting(args, args->config, "moe.num_experts", number);
    if (code == 0) code = cli_setting(args, args->config, "model.moe_layer_freq", freq);
    if (code || strcmp(number, "0") == 0 || strcmp(freq, "0") == 0) return code;
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .d_model = 1,
                                 .num_experts = (int32_t)strtol(number, NULL, 10),
                                 .top_k = 1,
                                 .expert_hidden_size = 1,
                                 .expert = expert,
                                 .expert_kinds = kinds};
    code = cli_context_create(args, NULL, 1, &ctx);
    if (code) return code;
    moe_status status = moe_layer_create(ctx, &desc, &layer);
    if (status != MOE_OK) code = cli_fail(args, status, "moe.%s", moe_ctx_error(ctx));
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return code;
}

static int check(cli_args *args) {
    moe_error error;
    if (args->n_operands < 2)
        return cli_fail(args, MOE_ERR_ARGUMENT, "name the files: moekit config check FILE...");
    int code = cli_settings_load(args, args->operand + 1, args->n_operands - 1);
    if (code) return code;
    moe_status status = moe_lm_config_check(args->config, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    code = check_kinds(args);
    if (code) return code;
    for (int i = 1; i < args->n_operands && !args->json; ++i) printf("%s: good\n", args->operand[i]);
    if (args->json) printf("{\"good\":true}\n");
    return 0;
}

static void print_alias_table(void) {
    const moe_layer_alias *alias;
    printf("\n## Settings of other systems with values of their own\n\n"
           "| setting | of | value | sets |\n|---|---|---|---|\n");
    for (size_t i = 0; (alias = moe_layer_alias_at(i)); ++i) {
        char text[512];
        describe_alias(alias, text, sizeof text);
        printf("| `%s` | %s | %s | %s |\n", alias->name, alias->system, alias_value(alias), text);
    }
}

static void print_markdown(const moe_lm_config *config) {
    char section[32] = "", range[256];
    printf(
        "# Settings\n\n"
        "Every key of a configuration file, of the command line (`--moe.top_k 2`, `moe.top_k=2`) and of the\n"
        "environment (`MOEKIT_MOE_TOP_K`). Later sources win: defaults, `%s`,\n"
        "`$XDG_CONFIG_HOME/moekit/config.yaml`, configuration files in their order, environment, command "
        "line.\n"
        "Names of other systems are accepted where they mean the same. This page is written by\n"
        "`moekit config options --markdown`.\n",
        cli_system_config_path);
    for (size_t i = 0; i < moe_lm_config_count(config); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(config, i, &entry);
        const moe_option *row = entry.option;
        size_t n = strcspn(row->key, ".");
        if (strncmp(section, row->key, n) != 0 || section[n]) {
            snprintf(section, sizeof section, "%.*s", (int)n, row->key);
            printf("\n## %s\n\n| key | default | takes | meaning | other names |\n|---|---|---|---|---|\n",
                   section);
        }
        describe_range(row, range, sizeof range);
        const char *tick = *row->initial ? "`" : "";
        printf("| `%s` | %s%s%s | %s | %s | %s |\n", row->key, tick, row->initial, tick,
               *range ? range : type_name(row->type), row->help, row->aliases);
    }
    print_alias_table();
}

static int list_options(cli_args *args) {
    if (cli_flag(args, "markdown")) {
        print_markdown(args->config);
        return 0;
    }
    for (size_t i = 0; i < moe_lm_config_count(args->config); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(args->config, i, &entry);
        if (args->json) printf(i ? ",\n " : "[");
        if (args->json)
            print_option_json(entry.option);
        else
            printf("%-30s %-10s %s\n", entry.option->key, entry.option->initial, entry.option->help);
    }
    if (args->json) printf("]\n");
    return 0;
}

static int run(cli_args *args) {
    static const struct {
        const char *name;
        int (*run)(cli_args *args);
    } actions[] = {
        {"show",    show        },
        {"explain", explain     },
        {"check",   check       },
        {"options", list_options}
    };
    const char *name = args->n_operands ? args->operand[0] : "";
    for (size_t i = 0; i < sizeof actions / sizeof *actions; ++i)
        if (strcmp(actions[i].name, name) == 0) return actions[i].run(args);
    return cli_fail(args, MOE_ERR_ARGUMENT, "say what to do: moekit config show, explain, check or options");
}

const cli_verb cmd_config = {
    .name = "config",
    .operands = "show|explain|check|options [FILE|KEY]... [KEY=VALUE]...",
    .summary = "show, explain and check settings",
    .about = "show [FILE]...: every setting as a run would have it; --origin says where each comes from.\n"
             "\n"
             "explain KEY...: what a setting means, its limits, its default, its other names.\n"
             "\n"
             "check FILE...: whether a run would accept the files.\n"
             "\n"
             "options: every key with its default.\n"
             "\n"
             "A FILE may be a directory: a run stands for its settings, a checkpoint for its model.\n"
             "\n"
             "Later sources win, in this order: defaults, /etc/moekit/config.yaml,\n"
             "$XDG_CONFIG_HOME/moekit/config.yaml, files, environment, command line.\n",
    .examples = "moekit config show --origin configs/demo.yaml moe.top_k=1\n"
                "moekit config show --changed runs/demo\n"
                "moekit config explain num_moe_experts\n",
    .options = options,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "",
    .max_operands = 64,
    .run = run,
};
