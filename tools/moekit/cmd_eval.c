/* cmd_eval.c: moekit eval: bits per byte of a text, beside what compressors make of it.
 */
#include "baselines.h"
#include "run_files.h"

#include <stdlib.h>
#include <sys/stat.h>

static const cli_option options[] = {
    {"run",           0,   "DIR",    "a run: its newest checkpoint, its data.eval; receives eval.json"            },
    {"model",         'm', "DIR",    "a checkpoint directory: our own, or a Mixtral's, Qwen3-MoE's or OLMoE's"    },
    {"dtype",         0,   "TYPE",   "compute in f32 or bf16; else as the checkpoint is stored"                   },
    {"experts",       0,   "FORMAT", "pack experts as they are read: int8, int4, nf4, mxfp4 or bf16x2"            },
    {"text",          0,   "FILE",   "the text to predict, instead of the run's data.eval"                        },
    {"bytes",         'n', "N",      "only the first N bytes of it, at least 2; 0: all of it"                     },
    {"window",        0,   "N",      "tokens that are read at once; 0: the context, with a tokenizer at most 4096"},
    {"output",        'o', "FILE",   "where the analysis goes, instead of eval.json of the run"                   },
    {"dry-run",       0,   NULL,     "evaluate, but write no analysis"                                            },
    {"record-routes", 0,   "FILE",   "write which experts every token went to, and with which weights"            },
    {"replay-routes", 0,   "FILE",
     "send every token where such a file says instead of where the routers would"                                 },
    {NULL,            0,   NULL,     NULL                                                                         }
};

typedef struct evaluation {
    run_files files;
    char text[RUN_PATH]; /* path of the text */
    char json[RUN_PATH]; /* path of the analysis; "": none */
    const char *replay;  /* path of the routes to go along; NULL: none */
    int64_t max_bytes, window;
    int64_t n_bytes; /* of the text as far as it is read */
    baselines baselines;
    moe_lm_eval_result result;
} evaluation;

static int check_text(cli_args *args, evaluation *eval) {
    struct stat info;
    if (stat(eval->text, &info) != 0)
        return cli_fail(args, MOE_ERR_INPUT, "%s: no such text file", eval->text);
    if (!S_ISREG(info.st_mode))
        return cli_fail(args, MOE_ERR_INPUT, "%s: is no plain file; name a text", eval->text);
    if (info.st_size < 2)
        return cli_fail(args, MOE_ERR_INPUT,
                        info.st_size == 0 ? "%s is empty" : "%s has 1 byte; it takes 2 to predict one",
                        eval->text);
    eval->n_bytes = info.st_size;
    return 0;
}

static bool is_cut(const evaluation *eval) {
    return eval->max_bytes && eval->max_bytes < eval->n_bytes;
}

/* eval.json is what the run's newest checkpoint makes of the run's own text; the report calls it that. */
static int find_own_analysis(cli_args *args, evaluation *eval) {
    const char *run = eval->files.run;
    char own[RUN_PATH];
    int code = run_files_setting(args, run, "data.eval", own);
    if (code) return code;
    const char *other = NULL;
    if (!run_files_is_newest(&eval->files)) other = "another checkpoint than the run's";
    if (is_cut(eval)) other = "a part of the text";
    if (!run_files_same(eval->text, own)) other = "another text than the run's";
    if (eval->replay) other = "a replay and not the run's own routing";
    if (!other) return run_files_path(args, run, "eval.json", eval->json);
    cli_say(args, "%s/eval.json is left alone: this is %s; -o FILE writes an analysis", run, other);
    return 0;
}

static int check_output(cli_args *args, const char *run, const char *own, const char *output) {
    const int code = run_files_check_output(args, run, own, output);
    return code ? code : run_files_check_run_texts(args, run, output);
}

static int find_files(cli_args *args, evaluation *eval) {
    const char *text = cli_text(args, "text"), *output = cli_text(args, "output");
    eval->replay = cli_text(args, "replay-routes");
    int code = run_files_find(args, &eval->files);
    if (code) return code;
    const char *run = eval->files.run;
    if (text)
        snprintf(eval->text, sizeof eval->text, "%s", text);
    else if (run)
        code = run_files_setting(args, run, "data.eval", eval->text);
    if (code) return code;
    if (!*eval->text)
        return cli_fail(args, MOE_ERR_ARGUMENT, "name the text: --text FILE%s",
                        run ? " (the run's data.eval is empty)" : "");
    code = check_text(args, eval);
    if (code) return code;
    if (output)
        snprintf(eval->json, sizeof eval->json, "%s", output);
    else if (run)
        code = find_own_analysis(args, eval);
    if (cli_flag(args, "dry-run")) eval->json[0] = '\0';
    const char *routes = cli_text(args, "record-routes");
    if (code == 0 && routes) code = check_output(args, run, "", routes);
    if (code || !*eval->json) return code;
    code = check_output(args, run, "eval.json", eval->json);
    if (code && !output) cli_say(args, "-o FILE writes elsewhere, and with --dry-run nothing is written");
    return code;
}

/* The compressors get the very bytes the model gets. With --bytes these are a part of the file. */
static int measure_baselines(cli_args *args, evaluation *eval) {
    if (is_cut(eval)) {
        eval->n_bytes = eval->max_bytes;
        cli_say(args, "compressors are left out: they would see the whole text");
        return 0;
    }
    baselines_measure(eval->text, eval->n_bytes, &eval->baselines);
    return 0;
}

/* What a terminal shows meanwhile, at most 10 times a second. */
typedef struct eval_line {
    cli_args *args;
    double began, shown_at;
} eval_line;

static void show(void *user, int64_t done, int64_t bytes) {
    eval_line *line = user;
    char text[96];
    const double now = cli_seconds(), left = (now - line->began) * (double)(bytes - done) / (double)done;
    if (now - line->shown_at < 0.1) return;
    snprintf(text, sizeof text, "%lld of %lld bytes, eta %.0f s", (long long)done, (long long)bytes, left);
    cli_draw_line(line->args, text);
    line->shown_at = now;
}

static int evaluate(cli_args *args, evaluation *eval) {
    moe_ctx *ctx;
    moe_lm *lm;
    int code = run_files_load(args, &eval->files, &ctx, &lm);
    if (code) return code;
    eval_line line = {args, cli_seconds(), 0};
    moe_lm_eval_options eval_options = {.size = sizeof eval_options,
                                        .max_bytes = eval->max_bytes,
                                        .window = eval->window,
                                        .tokenizer = eval->files.tokenizer,
                                        .json_path = *eval->json ? eval->json : NULL,
                                        .checkpoint = eval->files.checkpoint,
                                        .baselines = eval->baselines.found,
                                        .n_baselines = eval->baselines.n_found,
                                        .record_routes = cli_text(args, "record-routes"),
                                        .replay_routes = eval->replay,
                                        .on_progress = show,
                                        .user = &line};
    eval->result.size = sizeof eval->result;
    moe_status status = moe_lm_eval(lm, eval->text, &eval_options, &eval->result);
    cli_erase_line(args);
    if (status != MOE_OK) code = cli_fail(args, status, "%s", moe_ctx_error(ctx));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    return code;
}

static void print_json(const evaluation *eval) {
    printf("{\"checkpoint\":");
    cli_json_string(stdout, eval->files.checkpoint);
    printf(",\"text\":");
    cli_json_string(stdout, eval->text);
    printf(",\"replayed_routes\":");
    if (eval->replay)
        cli_json_string(stdout, eval->replay);
    else
        printf("null");
    printf(",\"bytes\":%lld,\"bits_per_byte\":", (long long)eval->result.n_bytes);
    cli_json_number(stdout, eval->result.bits_per_byte);
    if (eval->files.tokenizer) {
        printf(",\"tokens\":%lld,\"perplexity\":", (long long)eval->result.n_tokens);
        cli_json_number(stdout, eval->result.perplexity);
    }
    printf(",\"seconds\":");
    cli_json_number(stdout, eval->result.seconds);
    printf(",\"baselines\":{");
    for (size_t i = 0; i < eval->baselines.n_found; ++i) {
        printf("%s\"%s\":", i ? "," : "", eval->baselines.found[i].name);
        cli_json_number(stdout, eval->baselines.found[i].bits_per_byte);
    }
    printf("},\"analysis\":");
    if (*eval->json)
        cli_json_string(stdout, eval->json);
    else
        printf("null");
    printf("}\n");
}

static void print_text(const cli_args *args, const evaluation *eval) {
    char paint[8];
    printf("checkpoint  %s\n", eval->files.checkpoint);
    printf("text        %s, %lld bytes in %.1f s\n", eval->text, (long long)eval->result.n_bytes,
           eval->result.seconds);
    printf("%sbits/byte   %.3f  moekit%s\n", cli_paint(args->color_out, CLI_BOLD, paint),
           eval->result.bits_per_byte, cli_plain(args->color_out));
    for (size_t i = 0; i < eval->baselines.n_found; ++i)
        printf("            %.3f  %s -9\n", eval->baselines.found[i].bits_per_byte,
               eval->baselines.found[i].name);
    for (size_t i = 0; i < eval->baselines.n_absent; ++i)
        printf("                -  %s is not on this machine\n", eval->baselines.absent[i]);
    if (eval->files.tokenizer)
        printf("perplexity  %.3f  a token, %lld tokens\n", eval->result.perplexity,
               (long long)eval->result.n_tokens);
    if (*eval->json) printf("analysis    %s\n", eval->json);
}

static int run(cli_args *args) {
    evaluation eval = {.max_bytes = 0};
    int code = cli_integer(args, "bytes", 0, INT64_MAX, &eval.max_bytes);
    if (code == 0) code = cli_integer(args, "window", 0, INT32_MAX, &eval.window);
    if (code == 0 && eval.max_bytes == 1)
        code =
            cli_fail(args, MOE_ERR_ARGUMENT, "--bytes: 1; it takes 2 or more to predict one, or 0 for all");
    if (code == 0) code = find_files(args, &eval);
    if (code == 0) code = measure_baselines(args, &eval);
    if (code == 0) code = evaluate(args, &eval);
    if (code == 0 && args->json)
        print_json(&eval);
    else if (code == 0)
        print_text(args, &eval);
    moe_tokenizer_destroy(eval.files.tokenizer);
    return code;
}

const cli_verb cmd_eval = {
    .name = "eval",
    .operands = "",
    .summary = "bits per byte of a text, beside gzip, bzip2 and xz",
    .about =
        "Predicts every token of the text once and prints how many bits a byte costs on average. For\n"
        "comparison it compresses the same text with gzip -9, bzip2 -9 and xz -9, and names those\n"
        "that are not installed.\n"
        "\n"
        "With a checkpoint that has a tokenizer.json, the tokens are those of the tokenizer. Their bits\n"
        "are summed and divided by the bytes of the text, and the perplexity per token is printed,\n"
        "too. Otherwise tokens are bytes.\n"
        "\n"
        "--record-routes writes a route trace, a safetensors file that docs/routes.md describes.\n"
        "--replay-routes evaluates the same text along such a trace, with the recorded weights.\n"
        "\n"
        "With --run, an analysis of what the experts did (load, mutual information, typical tokens)\n"
        "is written to eval.json of the run, where 'moekit report' finds it. For another text, a part\n"
        "of the text, replayed routes, or another checkpoint than the run's newest, the analysis is\n"
        "written only if -o says where.\n",
    .examples = "moekit eval --run runs/demo\n"
                "moekit eval -m runs/demo/checkpoints/step-00001400 --text other.txt --json\n"
                "moekit eval --run runs/demo --bytes 20000 --record-routes routes.safetensors\n",
    .options = options,
    .makes_context = true,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "run.threads run.isa",
    .max_operands = 0,
    .run = run,
};
