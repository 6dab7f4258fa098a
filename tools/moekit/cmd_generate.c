/* cmd_generate.c: moekit generate: continues a prompt, byte by byte, as it is drawn.
 */
#include "run_files.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_option options[] = {
    {"run",       0,   "DIR",  "a run: its newest checkpoint; receives sample.txt"             },
    {"model",     'm', "DIR",  "a checkpoint directory"                                        },
    {"dtype",     0,   "TYPE", "compute in f32 or bf16; else as the checkpoint is stored"      },
    {"prompt",    'p', "TEXT", "the text to continue; left out: a line break"                  },
    {"file",      'f', "FILE", "the text to continue, from a file; -: standard input"          },
    {"n-predict", 'n', "N",    "bytes to draw (256)"                                           },
    {"temp",      0,   "X",    "temperature; 0 takes the likeliest byte (0.8)"                 },
    {"top-k",     0,   "N",    "draw from the N likeliest bytes; 0: all (0)"                   },
    {"top-p",     0,   "X",    "draw from the likeliest bytes that hold share X; 1: all (0.95)"},
    {"seed",      's', "N",    "of the draws (1)"                                              },
    {"no-save",   0,   NULL,   "with --run: write no sample.txt"                               },
    {"dry-run",   0,   NULL,   "the same as --no-save"                                         },
    {NULL,        0,   NULL,   NULL                                                            }
};

typedef struct sample {
    run_files files;
    char output[RUN_PATH]; /* where the sample goes; "": nowhere */
    char *text;            /* prompt, then what was drawn */
    size_t n_prompt, n_text, room;
    bool stream, terminal;
    unsigned char last; /* byte drawn */
    double seconds;
    moe_lm_sampler sampler;
    int64_t n_new;
} sample;

static int read_prompt(cli_args *args, sample *self) {
    const char *prompt = cli_text(args, "prompt"), *file = cli_text(args, "file");
    char *text = NULL;
    if (prompt && file) return cli_fail(args, MOE_ERR_ARGUMENT, "give --prompt or --file, not both");
    if (file && strcmp(file, "-") == 0) file = "/dev/stdin";
    if (file) {
        int code = cli_file_read(args, file, &text, &self->n_prompt);
        if (code) return code;
    } else {
        if (!prompt) prompt = "\n"; /* a model needs something to continue */
        self->n_prompt = strlen(prompt);
    }
    if (self->n_prompt == 0) {
        free(text);
        return cli_fail(args, file ? MOE_ERR_INPUT : MOE_ERR_ARGUMENT,
                        "%s: empty; a prompt needs at least one byte, or leave it out for a line break",
                        file ? file : "--prompt");
    }
    self->room = self->n_prompt + (size_t)self->n_new;
    self->text = malloc(self->room);
    if (self->text) memcpy(self->text, text ? text : prompt, self->n_prompt);
    free(text);
    self->n_text = self->n_prompt;
    return self->text ? 0
                      : cli_fail(args, MOE_ERR_MEMORY, "--n-predict: no memory for %zu bytes", self->room);
}

static int read_options(cli_args *args, sample *self) {
    double temperature = 0.8, top_p = 0.95;
    int64_t top_k = 0, seed = 1;
    self->n_new = 256;
    int code = cli_integer(args, "n-predict", 1, 1 << 30, &self->n_new);
    if (code == 0) code = cli_real(args, "temp", 0, 1000, &temperature);
    if (code == 0) code = cli_integer(args, "top-k", 0, INT32_MAX, &top_k);
    if (code == 0) code = cli_real(args, "top-p", 0, 1, &top_p);
    if (code == 0 && top_p == 0)
        code = cli_fail(args, MOE_ERR_ARGUMENT,
                        "--top-p: 0 leaves no byte to draw; 1 draws from all, --temp 0 takes the likeliest");
    if (code == 0) code = cli_integer(args, "seed", 0, INT64_MAX, &seed);
    if (code == 0) code = run_files_find(args, &self->files);
    self->stream = !args->json;
    self->terminal = isatty(STDOUT_FILENO);
    self->sampler = (moe_lm_sampler){.size = sizeof self->sampler,
                                     .temperature = (float)temperature,
                                     .top_k = (int32_t)top_k,
                                     .top_p = (float)top_p,
                                     .seed = (uint64_t)seed};
    return code;
}

/* A model that draws an escape sequence must not command the terminal: there control characters, those of
 * UTF-8's second block too, appear as \xNN. */
static void put_byte(sample *self, unsigned char byte) {
    const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f ||
                         (byte >= 0x80 && byte < 0xa0 && self->last == 0xc2);
    if (self->terminal && control)
        printf("\\x%02x", byte);
    else
        putchar(byte);
    self->last = byte;
}

static bool on_token(void *user, int32_t token) {
    sample *self = user;
    char byte = (char)token;
    if (self->n_text < self->room) self->text[self->n_text++] = byte;
    if (self->stream) {
        put_byte(self, (unsigned char)byte);
        fflush(stdout);
    }
    return cli_signal_caught() == 0 && !ferror(stdout);
}

/* Text is bytes to us; a checkpoint with another vocabulary would be fed nonsense. */
static int check_vocabulary(cli_args *args, const sample *self, const moe_lm *lm) {
    moe_lm_info info = {.size = sizeof info};
    moe_lm_get_info(lm, &info);
    if (info.vocab_size == 256) return 0;
    return cli_fail(args, MOE_ERR_UNSUPPORTED,
                    "%s: has %lld tokens; text can be generated for models of bytes, which have 256",
                    self->files.checkpoint, (long long)info.vocab_size);
}

static int generate(cli_args *args, sample *self) {
    moe_ctx *ctx;
    moe_lm *lm;
    int code = run_files_load(args, &self->files, &ctx, &lm);
    if (code) return code;
    int32_t *prompt = malloc(self->n_prompt * sizeof *prompt);
    code =
        prompt ? check_vocabulary(args, self, lm) : cli_fail(args, MOE_ERR_MEMORY, "the prompt does not fit");
    if (code == 0) {
        for (size_t i = 0; i < self->n_prompt; ++i) prompt[i] = (unsigned char)self->text[i];
        double start = cli_seconds();
        cli_signals_catch(NULL);
        moe_status status =
            moe_lm_generate(lm, prompt, (int64_t)self->n_prompt, self->n_new, &self->sampler, on_token, self);
        self->seconds = cli_seconds() - start;
        if (self->stream) putchar('\n');
        if (status != MOE_OK && status != MOE_ERR_INTERRUPTED)
            code = cli_fail(args, status, "%s", moe_ctx_error(ctx));
    }
    free(prompt);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    return code;
}

static void print_json(const sample *self) {
    int64_t drawn = (int64_t)(self->n_text - self->n_prompt);
    printf("{\"checkpoint\":");
    cli_json_string(stdout, self->files.checkpoint);
    printf(",\"prompt\":");
    cli_json_text(stdout, self->text, self->n_prompt);
    printf(",\"text\":");
    cli_json_text(stdout, self->text + self->n_prompt, (size_t)drawn);
    printf(",\"bytes\":%lld,\"seed\":%llu,\"seconds\":", (long long)drawn,
           (unsigned long long)self->sampler.seed);
    cli_json_number(stdout, self->seconds);
    printf("}\n");
}

/* Where the sample goes; that it can be written is asked before anything is drawn. */
static int find_output(cli_args *args, sample *self) {
    const bool save = self->files.run && !cli_flag(args, "no-save") && !cli_flag(args, "dry-run");
    self->output[0] = '\0';
    if (!save) return 0;
    if (!run_files_is_newest(&self->files)) {
        cli_say(args, "%s/sample.txt is left alone: this is another checkpoint than the run's newest",
                self->files.run);
        return 0;
    }
    const int code = run_files_path(args, self->files.run, "sample.txt", self->output);
    return code ? code : cli_output_check(args, self->output);
}

static int finish(cli_args *args, const sample *self) {
    const int code = *self->output ? cli_file_write(args, self->output, self->text, self->n_text) : 0;
    if (code) return code;
    if (args->json) print_json(self);
    if (args->verbose)
        cli_say(args, "%zu bytes in %.2f s; seed %llu", self->n_text - self->n_prompt, self->seconds,
                (unsigned long long)self->sampler.seed);
    return cli_signal_caught() ? 128 + cli_signal_caught() : 0;
}

static int run(cli_args *args) {
    sample self = {.text = NULL};
    int code = read_options(args, &self);
    if (code == 0) code = read_prompt(args, &self);
    if (code == 0) code = find_output(args, &self);
    if (code == 0) code = generate(args, &self);
    if (code == 0) code = finish(args, &self);
    free(self.text);
    return code;
}

const cli_verb cmd_generate = {
    .name = "generate",
    .operands = "",
    .summary = "continue a prompt",
    .about = "Streams the continuation to standard output. The same seed draws the same text on any\n"
             "number of threads. With --run, prompt and continuation are also written to sample.txt of\n"
             "the run, where 'moekit report' finds them; --no-save leaves that file alone,\n"
             "and so does -m with another checkpoint than the newest of the run.\n",
    .examples = "moekit generate --run runs/demo -p 'In the beginning' -n 400\n"
                "moekit generate -m checkpoint/ -f prompt.txt --temp 0 --json\n",
    .options = options,
    .makes_context = true,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "run.threads run.isa",
    .max_operands = 0,
    .run = run,
};
