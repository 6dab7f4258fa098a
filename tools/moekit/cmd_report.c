/* cmd_report.c: moekit report: one self-contained HTML file about a run.
 */
#include "run_files.h"

static const cli_option options[] = {
    {"run",     0,   "DIR",  "the run directory (required)"             },
    {"output",  'o', "FILE", "where the page goes; else DIR/report.html"},
    {"dry-run", 0,   NULL,   "say where it would go and write nothing"  },
    {NULL,      0,   NULL,   NULL                                       }
};

static int run(cli_args *args) {
    const char *run_dir = cli_text(args, "run"), *output = cli_text(args, "output");
    char path[RUN_PATH];
    moe_error error;
    if (!run_dir) return cli_fail(args, MOE_ERR_ARGUMENT, "name the run: --run DIR");
    if (!cli_file_exists(run_dir)) return cli_fail(args, MOE_ERR_INPUT, "%s: no such run directory", run_dir);
    int code = output ? 0 : run_files_path(args, run_dir, "report.html", path);
    if (code) return code;
    if (!output) output = path;
    code = run_files_check_output(args, run_dir, "report.html", output);
    if (code == 0) code = run_files_check_run_texts(args, run_dir, output);
    if (code) return code;
    if (!cli_flag(args, "dry-run")) {
        moe_status status = moe_lm_report(run_dir, output, &error);
        if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    }
    if (args->json) {
        printf("{\"report\":");
        cli_json_string(stdout, output);
        printf("}\n");
    } else {
        printf("%s\n", output);
    }
    return 0;
}

const cli_verb cmd_report = {
    .name = "report",
    .operands = "",
    .summary = "one self-contained HTML page about a run; prints its path",
    .about = "Draws losses, the load of every expert over time, dropped rows, entropy, dead experts, the\n"
             "tokens typical of each expert, and the settings and machine of the run. The page needs no\n"
             "script and no network. Run 'moekit eval --run DIR' first to have the experts explained.\n",
    .examples = "moekit report --run runs/demo\n"
                "moekit report --run runs/demo -o demo.html\n",
    .options = options,
    .keys = CLI_KEYS_NONE,
    .key_prefixes = "",
    .max_operands = 0,
    .run = run,
};
