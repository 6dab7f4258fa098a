/* cmd_verify.c: moekit verify: proofs about a layer with the options of the command line.
 */
#include "determinism.h"
#include "grad_check.h"

#include "cli.h"

#include <stdlib.h>
#include <string.h>

static const cli_option options[] = {
    {"tokens",    'T', "N",    "tokens in the batch (grad: 13, determinism: 67)"                    },
    {"limit",     0,   "X",    "grad: largest relative error that passes (1e-6)"                    },
    {"seed",      's', "N",    "of parameters and inputs (1)"                                       },
    {"sequences", 0,   "N",    "sequences the tokens belong to, which must divide them (1)"         },
    {"preset",    0,   "NAME", "the layer of another system: mixtral, deepseek_v3, ..., before keys"},
    {"dtype",     0,   "TYPE", "determinism: what the layer stores, f32 or bf16 (f32)"              },
    {"isa",       0,   "NAME", "determinism: kernels to check, as in MOEKIT_ISA; else the best"     },
    {NULL,        0,   NULL,   NULL                                                                 }
};

static bool is_preset(const char *key) {
    return strcmp(key, "moe.preset") == 0;
}

/* As a key or as --preset; the key goes over the option. NULL: none. */
static const char *preset_of(const cli_args *args) {
    const char *preset = cli_text(args, "preset");
    for (int i = 0; i < args->n_set; ++i)
        if (is_preset(args->set[i].key)) preset = args->set[i].value;
    return preset && *preset ? preset : NULL;
}

static moe_status set_keys(const cli_args *args, moe_layer_desc *desc, moe_error *error) {
    moe_status status = MOE_OK;
    for (int i = 0; i < args->n_set && status == MOE_OK; ++i)
        if (!is_preset(args->set[i].key))
            status = moe_layer_desc_set(desc, args->set[i].key, args->set[i].value, error);
    return status;
}

/* Small, odd widths and both losses on; the command line changes what it names. */
static int describe_layer(cli_args *args, bool wide, moe_layer_desc *desc) {
    static const char *const small[][2] = {
        {"moe.d_model",            "7"   },
        {"moe.num_experts",        "5"   },
        {"moe.expert_hidden_size", "6"   },
        {"moe.aux_loss_coeff",     "0.1" },
        {"moe.z_loss_coeff",       "0.01"}
    };
    moe_error error;
    moe_status status = MOE_OK;
    *desc = (moe_layer_desc){.size = sizeof *desc};
    for (size_t i = 0; i < sizeof small / sizeof *small && status == MOE_OK; ++i)
        status = moe_layer_desc_set(desc, small[i][0], small[i][1], &error);
    if (status == MOE_OK && wide) status = moe_layer_desc_set(desc, "moe.d_model", "61", &error);
    if (status == MOE_OK && wide) status = moe_layer_desc_set(desc, "moe.expert_hidden_size", "83", &error);
    const char *preset = preset_of(args);
    /* a preset looks at sizes, and the keys go over it */
    if (status == MOE_OK && preset) status = set_keys(args, desc, &error);
    if (status == MOE_OK && preset) status = moe_layer_desc_preset(desc, preset, &error);
    if (status == MOE_OK) status = set_keys(args, desc, &error);
    if (status == MOE_OK && (status = moe_layer_desc_check(desc, &error)) != MOE_OK)
        return cli_fail(args, status, "%s%s", strncmp(error.text, "moe.", 4) == 0 ? "" : "moe.", error.text);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

/* What forwards are told beyond their tokens: a step for draws, sequences, and a task for each of them. */
typedef struct told_call {
    moe_call call;
    int32_t *task;
} told_call;

static int tell(cli_args *args, const moe_layer_desc *desc, int64_t n_tokens, told_call *t) {
    int64_t n = 1;
    *t = (told_call){
        .call = {.size = sizeof t->call, .mode = MOE_TRAIN, .step = 3}
    };
    int code = cli_integer(args, "sequences", 1, n_tokens, &n);
    if (code == 0 && n_tokens % n != 0)
        code = cli_fail(args, MOE_ERR_ARGUMENT, "--sequences: %lld do not divide the %lld tokens",
                        (long long)n, (long long)n_tokens);
    if (code) return code;
    t->call.sequence_length = n_tokens / n;
    t->task = calloc((size_t)n, sizeof *t->task);
    if (!t->task) return cli_fail(args, MOE_ERR_MEMORY, "out of memory");
    for (int64_t i = 0; i < n && desc->num_tasks > 0; ++i) t->task[i] = (int32_t)(i % desc->num_tasks);
    if (desc->num_tasks > 0) t->call.task = t->task;
    return 0;
}

static const char *verdict(const cli_args *args, bool good, char buffer[32]) {
    char paint[8];
    snprintf(buffer, 32, "%s%s%s", cli_paint(args->color_out, good ? CLI_GREEN : CLI_RED, paint),
             good ? "ok" : "FAILED", cli_plain(args->color_out));
    return buffer;
}

static void print_grad_json(const grad_check_result *result, bool passed) {
    printf("{\"passed\":%s,\"worst\":", passed ? "true" : "false");
    cli_json_number(stdout, result->worst);
    printf(",\"tensors\":[");
    for (int32_t i = 0; i < result->n_tensors; ++i) {
        const grad_check_tensor *t = &result->tensor[i];
        printf("%s{\"name\":", i ? "," : "");
        cli_json_string(stdout, t->name);
        printf(",\"checked\":%lld,\"skipped\":%lld,\"largest\":", (long long)t->checked,
               (long long)t->skipped);
        cli_json_number(stdout, t->largest);
        printf(",\"error\":");
        cli_json_number(stdout, t->error);
        printf("}");
    }
    printf("]}\n");
}

/* A tensor of which nothing could be compared is no proof. */
static bool tensor_passes(const grad_check_tensor *tensor, double limit) {
    return tensor->error <= limit && tensor->checked > 0;
}

static void print_grad(const cli_args *args, const grad_check_result *result, double limit) {
    char word[32];
    printf("%-24s %8s %8s %12s %12s\n", "tensor", "checked", "skipped", "largest", "rel. error");
    for (int32_t i = 0; i < result->n_tensors; ++i) {
        const grad_check_tensor *t = &result->tensor[i];
        printf("%-24s %8lld %8lld %12.3e %12.2e %s\n", t->name, (long long)t->checked, (long long)t->skipped,
               t->largest, t->error, verdict(args, tensor_passes(t, limit), word));
    }
}

static int verify_grad(cli_args *args, int64_t seed) {
    grad_check_options check = {.n_tokens = 13, .seed = (uint64_t)seed};
    grad_check_result result;
    moe_error error = {MOE_OK, ""};
    double limit = 1e-6;
    int code = cli_integer(args, "tokens", 1, 1 << 20, &check.n_tokens);
    if (code == 0) code = cli_real(args, "limit", 0, 1, &limit);
    if (code == 0) code = describe_layer(args, false, &check.desc);
    if (code == 0 && check.desc.router_type && strcmp(check.desc.router_type, "random") == 0)
        code = cli_fail(args, MOE_ERR_UNSUPPORTED,
                        "router_type random hands the router a gradient as if its draws were its own logits, "
                        "which no difference can confirm");
    told_call told;
    if (code == 0) code = tell(args, &check.desc, check.n_tokens, &told);
    if (code) return code;
    check.call = &told.call;
    moe_status status = grad_check(&check, &result, &error);
    free(told.task);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    bool passed = true;
    for (int32_t i = 0; i < result.n_tensors; ++i) passed = passed && tensor_passes(&result.tensor[i], limit);
    if (args->json)
        print_grad_json(&result, passed);
    else
        print_grad(args, &result, limit);
    if (passed) return 0;
    const char *saved = check.desc.saved_dtype;
    return cli_fail(args, MOE_ERR_NUMERIC,
                    "a gradient is not that of the differences: %.2e; the limit is %.0e (seed %lld)%s",
                    result.worst, limit, (long long)seed,
                    saved && strcmp(saved, "mxfp8") == 0
                        ? "; with saved_dtype mxfp8 some percent are its rounding: --limit 0.1 is right"
                        : "");
}

static void print_determinism(const cli_args *args, const determinism_result *result) {
    char word[32];
    for (int32_t i = 0; i < result->n_rows && !args->json; ++i)
        printf("%-36s %s%s%s\n", result->row[i].what, verdict(args, result->row[i].equal, word),
               result->row[i].equal ? "" : "  ", result->row[i].where);
    if (!args->json) return;
    printf("{\"passed\":%s,\"rows\":[", result->equal ? "true" : "false");
    for (int32_t i = 0; i < result->n_rows; ++i) {
        printf("%s{\"what\":", i ? "," : "");
        cli_json_string(stdout, result->row[i].what);
        printf(",\"equal\":%s}", result->row[i].equal ? "true" : "false");
    }
    printf("]}\n");
}

static int verify_determinism(cli_args *args, int64_t seed) {
    determinism_options check = {.n_tokens = 67, .isa = cli_text(args, "isa"), .seed = (uint64_t)seed};
    determinism_result result;
    moe_layer_desc desc;
    moe_error error = {MOE_OK, ""};
    const char *dtype = cli_text(args, "dtype");
    if (dtype && strcmp(dtype, "bf16") == 0)
        check.dtype = MOE_BF16;
    else if (dtype && strcmp(dtype, "f32") != 0)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--dtype: '%s' is neither f32 nor bf16", dtype);
    int code = cli_integer(args, "tokens", 1, 1 << 20, &check.n_tokens);
    if (code == 0) code = describe_layer(args, true, &desc);
    told_call told;
    if (code == 0) code = tell(args, &desc, check.n_tokens, &told);
    if (code) return code;
    check.call = &told.call;
    moe_status status = determinism_check_layer(&desc, &check, &result, &error);
    free(told.task);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    print_determinism(args, &result);
    if (!args->json && result.not_alone)
        cli_say(args, "not compared: a token alone and in the batch; %s", result.not_alone);
    if (result.equal) return 0;
    return cli_fail(args, MOE_ERR_NUMERIC, "results differ in bits (seed %lld)", (long long)seed);
}

static int run(cli_args *args) {
    int64_t seed = 1;
    int code = cli_integer(args, "seed", 0, INT64_MAX, &seed);
    if (code) return code;
    const char *subject = args->n_operands ? args->operand[0] : "";
    if (strcmp(subject, "grad") == 0) return verify_grad(args, seed);
    if (strcmp(subject, "determinism") == 0) return verify_determinism(args, seed);
    return cli_fail(args, MOE_ERR_ARGUMENT,
                    "%s%s%ssay what to verify: 'moekit verify grad' or 'moekit verify determinism'",
                    *subject ? "'" : "", subject, *subject ? "' is no proof; " : "");
}

const cli_verb cmd_verify = {
    .name = "verify",
    .operands = "grad|determinism [KEY=VALUE]...",
    .summary = "check a layer's gradients, or that its bits are always the same",
    .about = "grad compares the gradient of every parameter and input of a layer with fourth-order central\n"
             "differences in f64. The objective is sum(y * r) + losses. Entries beside a kink (another\n"
             "routing, a ReLU at 0) are skipped and counted. The error is relative to the largest\n"
             "difference of the tensor; above the limit the exit code is 5.\n"
             "\n"
             "determinism compares bits: forward and backward with 1, 2 and 4 threads, a second run, and\n"
             "(where tokens do not depend on their neighbours) each token alone with the same token in the\n"
             "batch. If a bit differs the exit code is 5.\n"
             "\n"
             "The layer is small (d_model 7, 5 experts of width 6; determinism: 61 and 83) and has both\n"
             "losses on. Every moe.* key changes it. moe.saved_dtype=mxfp8 rounds what gradients are\n"
             "computed from, so they are off by some percent there; use --limit 0.1.\n",
    .examples = "moekit verify grad --moe.num_experts 8 --moe.top_k 2 --moe.activation gelu\n"
                "moekit verify grad moe.capacity_factor=1 moe.drop_policy=position\n"
                "moekit verify grad --preset deepseek_v3 moe.num_experts=16\n"
                "moekit verify determinism --moe.d_model 256 --isa avx2\n",
    .options = options,
    .keys = CLI_KEYS_LAYER,
    .key_prefixes = "",
    .max_operands = 1,
    .run = run,
};
