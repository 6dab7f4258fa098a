/* cmd_generate.c: moekit generate: continues prompts, token by token: one as it is drawn, several at once.
 */
#include "drawn_text.h"
#include "run_files.h"

#include <moekit/expert.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_option options[] = {
    {"run",       0,   "DIR",    "a run: its newest checkpoint; receives sample.txt"                 },
    {"model",     'm', "DIR",    "a checkpoint directory"                                            },
    {"dtype",     0,   "TYPE",   "compute in f32 or bf16; else as the checkpoint is stored"          },
    {"prompt",    'p', "TEXT",   "the text to continue; repeat it for more; without it: a line break"},
    {"file",      'f', "FILE",   "the text to continue, from a file; -: standard input"              },
    {"prompts",   0,   "FILE",   "texts to continue, one per line; -: standard input"                },
    {"samples",   0,   "N",      "continuations of each prompt, with seeds SEED, SEED + 1, ... (1)"  },
    {"batch",     0,   "N",      "how many texts are drawn together (16)"                            },
    {"experts",   0,   "FORMAT", "pack experts as they are read: int8, int4, nf4, mxfp4 or bf16x2"   },
    {"n-predict", 'n', "N",      "tokens to draw; a model of bytes draws bytes (256)"                },
    {"temp",      0,   "X",      "temperature; 0 takes the likeliest token (0.8)"                    },
    {"top-k",     0,   "N",      "draw from the N likeliest tokens; 0: all (0)"                      },
    {"top-p",     0,   "X",      "draw from the likeliest tokens that hold share X; 1: all (0.95)"   },
    {"seed",      's', "N",      "of the draws (1)"                                                  },
    {"no-save",   0,   NULL,     "with --run: write no sample.txt"                                   },
    {"dry-run",   0,   NULL,     "the same as --no-save"                                             },
    {NULL,        0,   NULL,     NULL                                                                }
};

typedef struct job job;
typedef struct prompt {
    const char *bytes;
    size_t n;
    moe_token_list tokens;
} prompt;

/* A continuation of a prompt. */
typedef struct sample {
    const job *job;
    const prompt *of;
    int64_t number; /* of the prompt's samples, from 0 */
    drawn_text drawn;
    bool over;
    moe_lm_sampler sampler;
} sample;

struct job {
    run_files files;
    char output[RUN_PATH]; /* where the samples go; "": nowhere */
    char *text;            /* the file that prompts lie in; NULL: they are arguments */
    prompt *prompts;
    sample *samples; /* [n_prompts * n_each] */
    int64_t n_prompts, n_each, n_new, batch;
    int64_t n_begun, n_shown;
    bool many; /* several were asked for, if only one came */
    bool stream, terminal;
    double seconds;
    moe_lm_sampler sampler;
};

/* 1. Prompts. */

static int fail_empty(cli_args *args, const char *file, const char *where) {
    return cli_fail(args, file ? MOE_ERR_INPUT : MOE_ERR_ARGUMENT,
                    "%s: empty; a prompt needs at least one byte%s", where,
                    file ? "" : ", or leave it out for a line break");
}

/* Of the command line, in their order. */
static int take_arguments(cli_args *args, job *self) {
    for (int i = 0; i < args->n_given; ++i) {
        const char *text = args->given[i].value;
        if (strcmp(args->given[i].option->name, "prompt") != 0) continue;
        if (!*text) return fail_empty(args, NULL, "--prompt");
        self->prompts[self->n_prompts++] = (prompt){.bytes = text, .n = strlen(text)};
    }
    if (self->n_prompts == 0)
        self->prompts[self->n_prompts++] = (prompt){.bytes = "\n", .n = 1}; /* to continue something */
    return 0;
}

static int take_lines(cli_args *args, job *self, const char *file, const char *end) {
    for (const char *at = self->text, *next; at < end; at = next) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        next = stop ? stop + 1 : end;
        char where[RUN_PATH];
        snprintf(where, sizeof where, "%s: line %lld", file, (long long)self->n_prompts + 1);
        if (stop == at) return fail_empty(args, file, where);
        self->prompts[self->n_prompts++] = (prompt){.bytes = at, .n = (size_t)((stop ? stop : end) - at)};
    }
    return 0;
}

/* At most so many prompts: options on the line, or lines of the text. */
static size_t most_prompts(const cli_args *args, const char *text, size_t length) {
    size_t n = (size_t)args->n_given + 1;
    for (size_t i = 0; i < length; ++i) n += text[i] == '\n';
    return n;
}

static int read_prompts(cli_args *args, job *self) {
    const char *option = cli_text(args, "prompt"), *file = cli_text(args, "file");
    const char *lines = cli_text(args, "prompts");
    size_t length = 0;
    if ((option != NULL) + (file != NULL) + (lines != NULL) > 1)
        return cli_fail(args, MOE_ERR_ARGUMENT, "give only one of --prompt, --file and --prompts");
    if (lines) file = lines;
    if (file && strcmp(file, "-") == 0) file = "/dev/stdin";
    if (file) {
        const int code = cli_file_read(args, file, &self->text, &length);
        if (code) return code;
        if (length == 0) return fail_empty(args, file, file);
    }
    self->prompts = calloc(most_prompts(args, self->text, length), sizeof *self->prompts);
    if (!self->prompts) return cli_fail(args, MOE_ERR_MEMORY, "no memory for the prompts");
    int code = 0;
    if (lines)
        code = take_lines(args, self, file, self->text + length);
    else if (file)
        self->prompts[self->n_prompts++] = (prompt){.bytes = self->text, .n = length};
    else
        code = take_arguments(args, self);
    self->many = lines || cli_text(args, "samples") || self->n_prompts > 1;
    return code;
}

static int read_options(cli_args *args, job *self) {
    double temperature = 0.8, top_p = 0.95;
    int64_t top_k = 0, seed = 1;
    self->n_new = 256;
    self->n_each = 1;
    self->batch = 16;
    int code = cli_integer(args, "n-predict", 1, 1 << 30, &self->n_new);
    if (code == 0) code = cli_integer(args, "samples", 1, 1 << 20, &self->n_each);
    if (code == 0) code = cli_integer(args, "batch", 1, 1 << 16, &self->batch);
    if (code == 0) code = cli_real(args, "temp", 0, 1000, &temperature);
    if (code == 0) code = cli_integer(args, "top-k", 0, INT32_MAX, &top_k);
    if (code == 0) code = cli_real(args, "top-p", 0, 1, &top_p);
    if (code == 0 && top_p == 0)
        code = cli_fail(args, MOE_ERR_ARGUMENT,
                        "--top-p: 0 leaves no token to draw; 1 draws from all, --temp 0 takes the likeliest");
    if (code == 0) code = cli_integer(args, "seed", 0, INT64_MAX, &seed);
    if (code == 0) code = run_files_find(args, &self->files);
    if (code == 0 && self->n_each > 1 && temperature == 0)
        cli_warn(args, "--temp 0 draws nothing: the samples of a prompt will be the same");
    self->sampler = (moe_lm_sampler){.size = sizeof self->sampler,
                                     .temperature = (float)temperature,
                                     .top_k = (int32_t)top_k,
                                     .top_p = (float)top_p,
                                     .seed = (uint64_t)seed};
    return code;
}

static int64_t n_samples(const job *self) {
    return self->n_prompts * self->n_each;
}

static int make_samples(cli_args *args, job *self) {
    self->samples = calloc((size_t)n_samples(self), sizeof *self->samples);
    if (!self->samples)
        return cli_fail(args, MOE_ERR_MEMORY, "no memory for %lld samples", (long long)n_samples(self));
    self->stream = !self->many && !args->json;
    self->terminal = isatty(STDOUT_FILENO);
    for (int64_t i = 0; i < n_samples(self); ++i) {
        sample *s = &self->samples[i];
        *s = (sample){.job = self,
                      .of = &self->prompts[i / self->n_each],
                      .number = i % self->n_each,
                      .sampler = self->sampler};
        s->sampler.seed += (uint64_t)s->number;
    }
    return 0;
}

/* 2. Output. */

/* A model that draws an escape sequence must not command the terminal: there control characters, those of
 * UTF-8's second block too, appear as \xNN. `last` is the byte before. */
static void put_byte(FILE *out, bool terminal, unsigned char last, unsigned char byte) {
    const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f ||
                         (byte >= 0x80 && byte < 0xa0 && last == 0xc2);
    if (terminal && control)
        fprintf(out, "\\x%02x", byte);
    else
        fputc(byte, out);
}

/* bytes[first .. n-1]. */
static void put_bytes(FILE *out, bool terminal, const char *bytes, size_t first, size_t n) {
    for (size_t i = first; i < n; ++i)
        put_byte(out, terminal, i ? (unsigned char)bytes[i - 1] : '\0', (unsigned char)bytes[i]);
}

/* One of many, with the prompt it continues. */
static void put_sample(FILE *out, bool terminal, const job *self, const sample *s) {
    if (s != self->samples) fputc('\n', out);
    fprintf(out, "==> prompt %lld of %lld", (long long)(s->of - self->prompts) + 1,
            (long long)self->n_prompts);
    if (self->n_each > 1)
        fprintf(out, ", sample %lld of %lld", (long long)s->number + 1, (long long)self->n_each);
    fprintf(out, ", seed %llu <==\n", (unsigned long long)s->sampler.seed);
    put_bytes(out, terminal, s->of->bytes, 0, s->of->n);
    put_bytes(out, terminal, s->drawn.bytes, 0, s->drawn.n_bytes);
    fputc('\n', out);
}

static void stream(const sample *s, size_t first) {
    if (!s->job->stream) return;
    put_bytes(stdout, s->job->terminal, s->drawn.bytes, first, s->drawn.n_bytes);
    fflush(stdout);
}

static bool on_token(void *user, int32_t token) {
    sample *s = user;
    const size_t before = s->drawn.n_bytes;
    s->over = !drawn_text_put(&s->drawn, token) || s->drawn.n == s->job->n_new || cli_signal_caught() != 0;
    if (s->over) drawn_text_end(&s->drawn);
    stream(s, before);
    s->over = s->over || ferror(stdout);
    return !s->over;
}

/* Of many those that are over, in their order. */
static void show(cli_args *args, job *self) {
    for (; self->n_shown < self->n_begun && self->samples[self->n_shown].over; ++self->n_shown)
        if (self->many && !args->json)
            put_sample(stdout, self->terminal, self, &self->samples[self->n_shown]);
    if (self->many) fflush(stdout);
}

/* 3. Drawing. */

static int read_tokens(cli_args *args, job *self) {
    moe_error error;
    for (int64_t i = 0; i < self->n_prompts; ++i) {
        prompt *p = &self->prompts[i];
        if (drawn_text_prompt(self->files.tokenizer, p->bytes, p->n, &p->tokens, &error) != MOE_OK)
            return cli_fail(args, error.status, "%s", error.text);
    }
    return 0;
}

static size_t longest_prompt(const job *self) {
    size_t most = 0;
    for (int64_t i = 0; i < self->n_prompts; ++i)
        if (self->prompts[i].tokens.count > most) most = self->prompts[i].tokens.count;
    return most;
}

/* The next sample joins. */
static moe_status begin(moe_ctx *ctx, job *self, moe_lm_batch *batch) {
    sample *s = &self->samples[self->n_begun];
    moe_status status = drawn_text_begin(&s->drawn, self->files.tokenizer, &s->of->tokens, self->n_new);
    if (status != MOE_OK) return moe_ctx_fail(ctx, status, "%s", s->drawn.error.text);
    const moe_lm_text text = {.size = sizeof text,
                              .prompt = s->of->tokens.ids,
                              .n_prompt = (int64_t)s->of->tokens.count,
                              .n_new = self->n_new,
                              .sampler = &s->sampler,
                              .on_token = on_token,
                              .user = s};
    status = moe_lm_batch_add(batch, &text);
    if (status == MOE_OK) ++self->n_begun;
    return status;
}

/* What went wrong with a text that is over. */
static moe_status check_drawn(moe_ctx *ctx, const job *self) {
    for (int64_t i = 0; i < self->n_begun; ++i) {
        const moe_error *error = &self->samples[i].drawn.error;
        if (error->status != MOE_OK) return moe_ctx_fail(ctx, error->status, "%s", error->text);
    }
    return MOE_OK;
}

static moe_status draw(cli_args *args, moe_ctx *ctx, job *self, moe_lm_batch *batch) {
    moe_status status = MOE_OK;
    while (status == MOE_OK) {
        while (status == MOE_OK && self->n_begun < n_samples(self) && cli_signal_caught() == 0 &&
               moe_lm_batch_live(batch) < self->batch)
            status = begin(ctx, self, batch);
        if (status != MOE_OK || moe_lm_batch_live(batch) == 0) break;
        status = moe_lm_batch_step(batch);
        if (status == MOE_OK) status = check_drawn(ctx, self);
        show(args, self);
        if (ferror(stdout)) break;
    }
    return status;
}

static int draw_all(cli_args *args, job *self, moe_ctx *ctx, moe_lm *lm) {
    const size_t longest = longest_prompt(self);
    if (self->batch > n_samples(self)) self->batch = n_samples(self);
    const moe_lm_batch_desc desc = {
        .size = sizeof desc, .max_texts = self->batch, .max_length = (int64_t)longest + self->n_new};
    moe_lm_batch *batch = NULL;
    moe_status status = moe_lm_batch_create(lm, &desc, &batch);
    const char *advice = status == MOE_OK ? "" : "; lower --batch or --n-predict";
    if (status == MOE_OK) {
        const double start = cli_seconds();
        cli_signals_catch(NULL);
        status = draw(args, ctx, self, batch);
        self->seconds = cli_seconds() - start;
        if (self->stream) putchar('\n');
    }
    moe_lm_batch_destroy(batch);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s%s", moe_ctx_error(ctx), advice);
}

static int generate(cli_args *args, job *self) {
    moe_ctx *ctx;
    moe_lm *lm;
    int code = run_files_load(args, &self->files, &ctx, &lm);
    if (code) return code;
    code = read_tokens(args, self);
    if (code == 0) code = draw_all(args, self, ctx, lm);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    return code;
}

/* 4. What is left when it is over. */

/* Samples to tell of: one that was asked for alone in any case. */
static int64_t n_told(const job *self) {
    return self->many ? self->n_begun : 1;
}

static int64_t n_bytes(const job *self) {
    int64_t n = 0;
    for (int64_t i = 0; i < self->n_begun; ++i) n += (int64_t)self->samples[i].drawn.n_bytes;
    return n;
}

static int64_t n_tokens(const job *self) {
    int64_t n = 0;
    for (int64_t i = 0; i < self->n_begun; ++i) n += self->samples[i].drawn.n;
    return n;
}

static void print_tokens_json(const drawn_text *drawn) {
    printf(",\"tokens\":[");
    for (int64_t i = 0; i < drawn->n; ++i) printf(i ? ",%d" : "%d", drawn->ids[i]);
    printf("],\"ended\":%s", drawn->ended ? "true" : "false");
}

static void print_sample_json(const sample *s, bool many) {
    printf("\"prompt\":");
    cli_json_text(stdout, s->of->bytes, s->of->n);
    if (many) printf(",\"sample\":%lld", (long long)s->number + 1);
    printf(",\"text\":");
    cli_json_text(stdout, s->drawn.bytes, s->drawn.n_bytes);
    printf(",\"bytes\":%lld", (long long)s->drawn.n_bytes);
    if (s->drawn.tokenizer) print_tokens_json(&s->drawn);
    printf(",\"seed\":%llu", (unsigned long long)s->sampler.seed);
}

static void print_json(const job *self) {
    printf("{\"checkpoint\":");
    cli_json_string(stdout, self->files.checkpoint);
    printf(self->many ? ",\"texts\":[" : ",");
    for (int64_t i = 0; i < n_told(self); ++i) {
        if (self->many) printf(i ? ",\n{" : "\n{");
        print_sample_json(&self->samples[i], self->many);
        if (self->many) putchar('}');
    }
    if (self->many) printf("],\n\"bytes\":%lld", (long long)n_bytes(self));
    printf(",\"seconds\":");
    cli_json_number(stdout, self->seconds);
    printf("}\n");
}

/* Where the samples go; that it can be written is asked before anything is drawn. */
static int find_output(cli_args *args, job *self) {
    const bool save = self->files.run && !cli_flag(args, "no-save") && !cli_flag(args, "dry-run");
    self->output[0] = '\0';
    if (!save) return 0;
    if (!run_files_is_newest(&self->files)) {
        cli_say(args, "%s/sample.txt is left alone: this is another checkpoint than the run's newest",
                self->files.run);
        return 0;
    }
    int code = run_files_path(args, self->files.run, "sample.txt", self->output);
    if (code) return code;
    code = cli_output_check(args, self->output);
    if (code) cli_say(args, "with --no-save nothing is written");
    return code;
}

static int save(cli_args *args, const job *self) {
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    for (int64_t i = 0; out && i < n_told(self); ++i) {
        const sample *s = &self->samples[i];
        if (self->many) {
            put_sample(out, false, self, s);
        } else {
            fwrite(s->of->bytes, 1, s->of->n, out);
            fwrite(s->drawn.bytes, 1, s->drawn.n_bytes, out);
        }
    }
    const bool fits = out && !ferror(out);
    const bool closed = out && fclose(out) == 0;
    const int code = fits && closed ? cli_file_write(args, self->output, text, length)
                                    : cli_fail(args, MOE_ERR_MEMORY, "%s: no memory for it", self->output);
    free(text);
    return code;
}

static int finish(cli_args *args, const job *self) {
    const int code = *self->output ? save(args, self) : 0;
    if (code) return code;
    if (args->json) print_json(self);
    if (!self->many && self->samples->drawn.ended)
        cli_say(args, "the text has ended, with token %lld of %lld", (long long)n_tokens(self),
                (long long)self->n_new);
    const char *what = self->files.tokenizer ? "tokens" : "bytes";
    if (args->verbose && self->many)
        cli_say(args, "%lld texts, %lld %s in %.2f s, %.0f a second", (long long)self->n_begun,
                (long long)n_tokens(self), what, self->seconds, (double)n_tokens(self) / self->seconds);
    else if (args->verbose)
        cli_say(args, "%lld %s in %.2f s; seed %llu", (long long)n_tokens(self), what, self->seconds,
                (unsigned long long)self->sampler.seed);
    return cli_signal_caught() ? 128 + cli_signal_caught() : 0;
}

static void release(job *self) {
    for (int64_t i = 0; self->samples && i < n_samples(self); ++i) drawn_text_free(&self->samples[i].drawn);
    for (int64_t i = 0; i < self->n_prompts; ++i) moe_token_list_free(&self->prompts[i].tokens);
    moe_tokenizer_destroy(self->files.tokenizer);
    free(self->samples);
    free(self->prompts);
    free(self->text);
}

static int run(cli_args *args) {
    job self = {.text = NULL};
    int code = read_options(args, &self);
    if (code == 0) code = read_prompts(args, &self);
    if (code == 0) code = make_samples(args, &self);
    if (code == 0) code = find_output(args, &self);
    if (code == 0) code = generate(args, &self);
    if (code == 0) code = finish(args, &self);
    release(&self);
    return code;
}

const cli_verb cmd_generate = {
    .name = "generate",
    .operands = "",
    .summary = "continue a prompt, or several at once",
    .about = "Streams the continuation to standard output. The same seed draws the same text for any\n"
             "number of threads, and whether it is drawn alone or together with others.\n"
             "\n"
             "Several prompts (repeat --prompt, or use --prompts FILE) and several samples of each are\n"
             "drawn together, which takes less time than one after the other. Sample I of a prompt is the\n"
             "text that seed SEED + I - 1 draws alone. The texts are printed in order, each with its\n"
             "prompt, under a line that says which it is; --json prints {\"texts\": [...]}.\n"
             "\n"
             "With a checkpoint that has a tokenizer.json, prompts and texts are in its tokens, and a text\n"
             "stops at the token that ends one. For any other model tokens are bytes. --experts int4 holds\n"
             "the experts in a quarter of bf16's memory, which changes the text a little (int4,64: 64\n"
             "numbers share a scale). bf16x2 takes as much as bf16: no bit of bf16 weights is lost, and it\n"
             "is faster where the ISA is avx512bf16 or amx (moekit doctor names it).\n"
             "\n"
             "With --run, prompts and continuations are also written to sample.txt of the run, where\n"
             "'moekit report' finds them. With --no-save, or with another checkpoint than the run's\n"
             "newest, that file is left alone.\n",
    .examples = "moekit generate --run runs/demo -p 'In the beginning' -n 400\n"
                "moekit generate -m OLMoE-1B-7B -p 'The capital of France is' -n 40 --experts int8\n"
                "moekit generate -m checkpoint/ -f prompt.txt --temp 0 --json\n"
                "moekit generate --run runs/demo --prompts prompts.txt --samples 4 --json\n",
    .options = options,
    .makes_context = true,
    .keys = CLI_KEYS_LM,
    .key_prefixes = "run.threads run.isa",
    .max_operands = 0,
    .run = run,
};
