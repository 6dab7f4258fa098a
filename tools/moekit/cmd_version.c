/* cmd_version.c: moekit version: of the library found at run time, its compiler, its instruction set.
 */
#include "cli.h"

static int run(cli_args *args) {
    moe_ctx *ctx;
    moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1};
    moe_error error;
    moe_status status = moe_ctx_create(&desc, &ctx, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    if (args->json) {
        printf("{\"version\":\"%s\",\"built_for\":\"%d.%d.%d\",\"compiler\":", moe_version_string(),
               MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH);
        cli_json_string(stdout, __VERSION__);
        printf(",\"isa\":\"%s\"}\n", moe_ctx_isa(ctx));
    } else {
        printf("moekit %s\n", moe_version_string());
        if (args->verbose) printf("compiler %s\nisa %s\n", __VERSION__, moe_ctx_isa(ctx));
    }
    moe_ctx_destroy(ctx);
    return 0;
}

const cli_verb cmd_version = {
    .name = "version",
    .operands = "",
    .summary = "the version; -v adds compiler and instruction set",
    .about = "Prints the version of the library found at run time.\n",
    .examples = "moekit version -v\n",
    .keys = CLI_KEYS_NONE,
    .key_prefixes = "",
    .max_operands = 0,
    .run = run,
};
