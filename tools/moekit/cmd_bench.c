/* cmd_bench.c: moekit bench: which bench is asked, and of what.
 */
#include "bench/bench.h"
#include "bench/bench_presets.h"
#include "bench/bench_sparsity.h"
#include "bench/bench_step.h"

#include <moekit/cuda.h>
#include <moekit/op.h>

#include <string.h>

/* clang-format off */
static const cli_option options[] = {
    {"repeat", 'r', "N", "layer, gemm: timed runs, of which the median counts (7); step: timed steps (20)"},
    {"inference", 0, NULL, "layer, gemm: no training, so no gradients in memory"},
    {"device", 0, "NAME", "layer: cpu or cuda, a GPU that the layer runs on (cpu)"},
    {"graph", 0, NULL, "layer, on cuda: what is timed is captured once and replayed as a CUDA graph"},
    {"gradients", 0, "HOW",
     "layer: backward's of weights: add, store, or bf16 (stored, in bf16 layers) (add)"},
    {"seeds", 0, "N", "sparsity: trainings of each model (3)"},
    {"jobs", 'j', "N", "presets, sparsity: trainings beside each other, each with --threads threads (1)"},
    {"run", 0, "DIR",
     "where trainings go, DIR/NAME each (runs/presets, runs/sparsity; step: a temporary one)"},
    {"output", 'o', "FILE", "presets, sparsity: where the page goes; else standard output"},
    {"move-old", 0, NULL, "an existing run directory is first renamed DIR.1, DIR.2, ..."},
    {NULL, 0, NULL, NULL},
};
/* clang-format on */

/* What a problem takes: weights with their gradients, and what there is of its tokens. */
typedef struct memory_need {
    double weights, tokens; /* bytes */
} memory_need;

/* A layer that owns no parameters measures what its tokens take, and takes nothing itself. */
static moe_status measure_layer(const bench *b, moe_layer_bytes *bytes) {
    moe_layer_desc desc = bench_problem_layer(&b->problem);
    moe_layer *layer;
    desc.unowned = true;
    moe_status status = moe_layer_create(b->ctx, &desc, &layer);
    if (status != MOE_OK) return status;
    status = moe_layer_measure(layer, b->problem.n_tokens, b->inference ? MOE_INFER : MOE_TRAIN, bytes);
    moe_layer_destroy(layer);
    return status;
}

static moe_status measure_problem(const bench *b, bool products, memory_need *need) {
    const bench_problem *p = &b->problem;
    const double number = (double)moe_dtype_bytes(p->dtype), matrices = (double)bench_problem_weights(p);
    const double T = (double)p->n_tokens, rows = T * p->top_k;
    moe_layer_bytes layer = {.size = sizeof layer};
    const moe_status status = measure_layer(b, &layer);
    if (status != MOE_OK) return status;
    const double gradient = b->inference ? 0 : (double)bench_gradient_bytes(b);
    need->weights = matrices * (p->n_experts + p->n_shared) * (number + gradient);
    need->tokens =
        (double)layer.saved + (double)layer.scratch + 4 * number * T * p->d_model; /* x, y, dy, dx */
    if (!products) return MOE_OK;
    need->weights += matrices * p->n_experts * number;
    need->tokens += number * rows * (matrices / p->d_model + p->d_model); /* Z, H and rows */
    return MOE_OK;
}

/* Told before the machine begins to swap, or its system to kill. */
static int check_memory(const bench *b, bool products) {
    const bench_problem *p = &b->problem;
    const double have = moe_machine_memory();
    memory_need need;
    if (moe_cuda_stream(b->ctx)) return 0; /* a GPU's memory tells for itself */
    const moe_status status = measure_problem(b, products, &need);
    if (status != MOE_OK) return cli_fail(b->args, status, "%s", moe_ctx_error(b->ctx));
    if (have == 0 || need.weights + need.tokens <= have) return 0;
    if (need.weights <= have / 2)
        return cli_fail(
            b->args, MOE_ERR_MEMORY,
            "what this problem has of %lld tokens takes %.1f GiB beside %.1f of weights, and this "
            "machine has %.1f; fewer tokens would fit",
            (long long)p->n_tokens, need.tokens * 0x1p-30, need.weights * 0x1p-30, have * 0x1p-30);
    return cli_fail(b->args, MOE_ERR_MEMORY,
                    "the weights%s of this layer take %.1f GiB, what its tokens need %.1f, and this machine "
                    "has %.1f; fewer experts (say, e%d, those of one of 8 ranks)%s would fit sooner",
                    b->inference ? "" : " and their gradients", need.weights * 0x1p-30, need.tokens * 0x1p-30,
                    have * 0x1p-30, p->n_experts >= 8 * p->top_k ? p->n_experts / 8 : p->top_k,
                    b->inference ? "" : " or --inference");
}

/* Packed experts are not trained, and have no products of their own. */
static int check_problem(bench *b, bool products) {
    const char *format = b->problem.format;
    b->inference = format || cli_flag(b->args, "inference");
    if (format && products)
        return cli_fail(b->args, MOE_ERR_ARGUMENT,
                        "problem: '%s' packs the experts of a layer; 'moekit bench layer' times them",
                        format);
    if (b->problem.saved_mxfp8 && (b->inference || products))
        return cli_fail(
            b->args, MOE_ERR_ARGUMENT,
            "problem: saved=mxfp8 is of what training keeps; 'moekit bench layer' times it, without "
            "--inference and with experts that are not packed");
    if (format && cli_text(b->args, "gradients"))
        return cli_fail(b->args, MOE_ERR_ARGUMENT,
                        "--gradients: '%s' packs the experts, which are then not trained", format);
    if (b->narrow && b->problem.dtype != MOE_BF16)
        return cli_fail(b->args, MOE_ERR_ARGUMENT,
                        "--gradients bf16 is of bf16 layers; add bf16 to the problem (e8,t4096,...,bf16)");
    return check_memory(b, products);
}

static moe_status bench_one(bench *b, bool layer, bool products) {
    char text[96];
    snprintf(text, sizeof text, "drawing %.2f G weights",
             1e-9 * (double)bench_problem_weights(&b->problem) *
                 (b->problem.n_experts + b->problem.n_shared));
    cli_draw_line(b->args, text);
    moe_status status = bench_make_layer(b);
    if (status == MOE_OK && layer) status = bench_layer(b);
    if (status == MOE_OK && products) status = bench_products(b);
    bench_free(b);
    return status;
}

static int run_problems(cli_args *args, bench *b, bool layer, bool products) {
    int code = cli_settings_load(args, NULL, 0);
    if (code == 0) code = cli_context_create(args, NULL, 0, &b->ctx);
    if (code) return code;
    for (int i = 1; code == 0 && (i == 1 || i < args->n_operands); ++i) {
        moe_error error;
        moe_status status =
            bench_problem_parse(i < args->n_operands ? args->operand[i] : "", &b->problem, &error);
        if (status != MOE_OK)
            code = cli_fail(args, status, "%s", error.text);
        else
            code = check_problem(b, products);
        if (code == 0 && (status = bench_one(b, layer, products)) != MOE_OK)
            code = cli_fail(args, status, "%s", moe_ctx_error(b->ctx));
    }
    moe_ctx_destroy(b->ctx);
    return code;
}

/* A GPU runs layers; its products, alone, are bench/gpu's. */
static int check_device(cli_args *args, const char *subject) {
    const char *device = cli_text(args, "device");
    const bool cuda = device && strcmp(device, "cuda") == 0;
    if (cuda && strcmp(subject, "layer") != 0)
        return cli_fail(
            args, MOE_ERR_ARGUMENT,
            "--device cuda is for 'layer' (moekit bench layer [PROBLEM]... --device cuda); all else "
            "runs on the CPU");
    if (cli_flag(args, "graph") && !cuda)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--graph replays CUDA graphs: it goes with --device cuda");
    return 0;
}

static int read_gradients(cli_args *args, const char *subject, bench *b) {
    const char *how = cli_text(args, "gradients");
    b->gradients = how ? how : "add";
    b->narrow = strcmp(b->gradients, "bf16") == 0;
    b->stores = b->narrow || strcmp(b->gradients, "store") == 0;
    if (!b->stores && strcmp(b->gradients, "add") != 0)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--gradients: '%s' is not add, store or bf16", how);
    if (how && (strcmp(subject, "layer") != 0 || cli_flag(args, "inference")))
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "--gradients is of the backward of 'layer' (moekit bench layer [PROBLEM]... "
                        "--gradients %s), without --inference",
                        how);
    return 0;
}

static int run(cli_args *args) {
    bench b = {.args = args, .repeats = 7, .graph = cli_flag(args, "graph")};
    const char *subject = args->n_operands > 0 ? args->operand[0] : "";
    int64_t jobs = 1, seeds = 3, steps = 20;
    int code = cli_integer(args, "jobs", 1, 1024, &jobs);
    if (code == 0) code = cli_integer(args, "seeds", 1, SPARSITY_SEEDS, &seeds);
    if (code == 0) code = cli_integer(args, "repeat", 1, BENCH_REPEATS, &b.repeats);
    if (code == 0) code = cli_integer(args, "repeat", 1, BENCH_REPEATS, &steps);
    if (code == 0) code = read_gradients(args, subject, &b);
    if (code == 0) code = check_device(args, subject);
    if (code) return code;
    if (strcmp(subject, "presets") == 0) return bench_presets(args, jobs);
    if (strcmp(subject, "step") == 0) return bench_step(args, steps);
    if (strcmp(subject, "sparsity") == 0) return bench_sparsity(args, seeds, jobs);
    bool layer = strcmp(subject, "gemm") != 0, products = strcmp(subject, "layer") != 0;
    if (*subject && layer && products)
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "'%s' is no bench; say 'layer' or 'gemm', then problems, or 'step', 'presets' or "
                        "'sparsity', then files",
                        subject);
    if (args->n_set > 0)
        return cli_fail(args, MOE_ERR_ARGUMENT, "'%s' takes problems, and no keys or files",
                        *subject ? subject : "bench");
    return run_problems(args, &b, layer, products);
}

/* Behind the benches of files, skew=... is a setting, and none that there is. */
static bool is_problem(const cli_args *args, const char *text) {
    static const char *const of_files[] = {"presets", "step", "sparsity"};
    for (size_t i = 0; args->n_operands > 0 && i < sizeof of_files / sizeof *of_files; ++i)
        if (strcmp(args->operand[0], of_files[i]) == 0) return false;
    return bench_problem_begins(text);
}

const cli_verb cmd_bench = {
    .name = "bench",
    .operands = "[layer|gemm] [PROBLEM]... | step|presets|sparsity [CONFIG.yaml]... [KEY=VALUE]...",
    .summary =
        "time a layer, its products or a training step; compare presets, and experts with dense models",
    .about = "layer times forward, backward and the decoding of single tokens, and tells what the router\n"
             "costs and what training keeps. gemm times the grouped products alone. step trains a few\n"
             "steps of a model and prints where their time goes.\n"
             "\n"
             "presets trains a model once with every preset (moe.preset) and prints a page: loss, bits per\n"
             "byte, balance, dropped rows and idle experts of each, and what each preset sets. If a loss\n"
             "does not fall the exit code is 5.\n"
             "\n"
             "sparsity trains a model, a dense one of equal active size and one of equal total size, with\n"
             "several seeds each. It writes a page and a picture: held-out bits per byte, and the steps\n"
             "and seconds to reach the dense model's figure.\n"
             "\n"
             "For layer and gemm, a PROBLEM is one string. In e8,t4096,d256,n256,k2 there are 8 experts,\n"
             "4096 tokens, model width 256, expert width 256 and 2 experts per token; what is left out is\n"
             "as in this example. More words may follow:\n"
             "\n"
             "shared1, act=gelu, bias, bf16 and f64 describe the layer. skew=even deals experts round\n"
             "robin: exactly balanced, but neighbouring experts share tokens. skew=zipf0 draws them, all\n"
             "equally likely; skew=zipf1.0 draws expert e with probability ~ 1/(e+1). int8, int4g128, nf4,\n"
             "mxfp4 and bf16x2 make layer infer with packed experts (g128: a scale for each 128).\n"
             "saved=mxfp8 makes layer keep 8 bits of the experts' activations in training.\n"
             "\n"
             "The name of a model stands for its layer, and later words change it: mixtral, olmoe,\n"
             "qwen3-30b, deepseek-v3, gpt-oss, fine-7b (e128,d1536,n256,k8).\n"
             "\n"
             "Runs take turns and medians count. Shares are of two ceilings, measured between the runs:\n"
             "multiply-adds in registers, by the unit that the products use (the best of all), and reading\n"
             "256 MiB straight before and after each run. So a run finds nothing in the caches but what it\n"
             "read itself; 'in caches' marks single tokens that were served faster than memory is. With\n"
             "--device cuda, times are from the stream's events, and the ceilings are a dense product of\n"
             "8192 (cuBLAS's if found, else our own) and a copy.\n",
    .examples = "moekit bench layer e8,t4096,d256,n256,k2\n"
                "moekit bench layer olmoe,t512,skew=even olmoe,t512,skew=zipf1.0\n"
                "moekit bench layer fine-7b,t24576,bf16 qwen3-30b,t8,bf16 --device cuda --graph\n"
                "moekit bench gemm e64,t8192,d512,n256,k4,skew=zipf1.0 --threads 1 --isa avx2\n"
                "moekit bench step configs/demo.yaml\n"
                "moekit bench presets configs/demo.yaml train.steps=400 -o docs/presets.md\n"
                "moekit bench sparsity configs/demo.yaml --jobs 3 --threads 4 -o docs/sparsity.md\n",
    .options = options,
    .makes_context = true,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "",
    .max_operands = 64,
    .is_operand = is_problem,
    .run = run,
};
