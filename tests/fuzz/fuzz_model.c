/* fuzz_model.c: a small language model of any settings, and its calls in any order, are done or refused with
 * a text; texts that are written at once get the tokens that each gets alone. Input: bytes that choose
 * settings, then calls. Run by scripts/fuzz.sh. Source: moekit/lm.h, which calls go after which.
 */
#include "fuzz/choose.h"

#include <moekit/lm.h>

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 11, CONTEXT = 8, MOST_ROWS = 2 * CONTEXT, MOST_CALLS = 16, MOST_SETTINGS = 8, MOST_NEW = 12 };

/* A text that is being written, or has been. */
typedef struct text {
    struct bench *bench;
    moe_lm_sampler sampler;
    int32_t prompt[MOST_ROWS], got[MOST_NEW];
    int64_t n_prompt, n_new, n;
    int64_t stop; /* says that it is enough after so many; 0: never */
} text;

typedef struct bench {
    moe_ctx *ctx;
    moe_lm *lm;
    moe_lm_batch *batch;
    bytes from;
    text text[MOST_CALLS]; /* of the batch */
    int n_texts;
    int32_t token[MOST_ROWS], target[MOST_ROWS];
} bench;

static bool done(const bench *b, moe_status status) {
    return done_or_told(b->ctx, status);
}

/* 1. Settings. */

static bool is_drawn(const char *key) {
    static const char *const fixed[] = {"moe.expert", "moe.expert_kinds", "model.vocab_size", "model.context",
                                        "model.d_model"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; ++i)
        if (strcmp(key, fixed[i]) == 0) return false;
    return strncmp(key, "moe.", 4) == 0 || strncmp(key, "model.", 6) == 0;
}

static moe_lm_config *draw_config(bytes *from) {
    static const char *const tiny[][2] = {
        {"model.vocab_size",       "11" },
        {"model.context",          "8"  },
        {"model.d_model",          "8"  },
        {"model.n_layers",         "2"  },
        {"model.n_heads",          "2"  },
        {"model.init_std",         "0.3"},
        {"moe.num_experts",        "4"  },
        {"moe.expert_hidden_size", "6"  }
    };
    moe_lm_config *config;
    moe_error error = {.text = ""};
    if (moe_lm_config_create(&config, NULL) != MOE_OK) abort();
    for (size_t i = 0; i < sizeof tiny / sizeof *tiny; ++i)
        if (moe_lm_config_set(config, tiny[i][0], tiny[i][1], "fuzz", NULL) != MOE_OK) abort();
    for (int n = choose(from, MOST_SETTINGS + 1); n-- > 0;) {
        moe_lm_config_entry entry;
        char value[64];
        moe_lm_config_entry_get(config, (size_t)choose(from, 255) % moe_lm_config_count(config), &entry);
        if (!is_drawn(entry.option->key)) continue;
        choose_value(from, entry.option, value, sizeof value);
        if (moe_lm_config_set(config, entry.option->key, value, "fuzz", &error) != MOE_OK && !error.text[0])
            abort();
    }
    return config;
}

/* 2. Calls. */

static void choose_tokens(bench *b) {
    for (int i = 0; i < MOST_ROWS; ++i) {
        b->token[i] = choose(&b->from, VOCAB + 1); /* the last is none */
        b->target[i] = choose(&b->from, VOCAB + 2) - 1;
    }
}

static void logits(bench *b) {
    const int64_t n_seq = choose(&b->from, 3), length = choose(&b->from, CONTEXT + 2);
    float *out = malloc((size_t)(n_seq * length) * VOCAB * sizeof *out); /* of its size exactly */
    int32_t *token = malloc((size_t)(n_seq * length) * sizeof *token);
    choose_tokens(b);
    if (!out || !token) abort();
    for (int64_t i = 0; i < n_seq * length; ++i) token[i] = b->token[i % MOST_ROWS];
    done(b, moe_lm_logits(b->lm, token, n_seq, length, out));
    free(token);
    free(out);
}

static void loss(bench *b) {
    const int64_t n_seq = choose(&b->from, 3), length = choose(&b->from, CONTEXT + 2);
    double value, aux;
    choose_tokens(b);
    if (n_seq * length > MOST_ROWS) return;
    done(b,
         moe_lm_loss(b->lm, b->token, b->target, n_seq, length, 3, (float)choose(&b->from, 2), &value, &aux));
}

static bool take(void *user, int32_t token) {
    text *t = user;
    if (token < 0 || token >= VOCAB || t->n >= t->n_new) abort();
    t->got[t->n++] = token;
    /* it may use the model, but not what writes it */
    if (t->n == 2 && t->bench) logits(t->bench);
    return t->n != t->stop;
}

static void choose_text(bench *b, text *t) {
    *t = (text){.sampler = {.size = sizeof t->sampler}};
    t->n_prompt = choose(&b->from, CONTEXT + 4);
    t->n_new = choose(&b->from, MOST_NEW + 1);
    t->stop = choose(&b->from, 8);
    t->sampler.temperature = (float)choose(&b->from, 3);
    t->sampler.top_k = choose(&b->from, 4);
    t->sampler.top_p = (float)choose(&b->from, 4) / 4;
    t->sampler.seed = (uint64_t)choose(&b->from, 4);
    for (int64_t i = 0; i < t->n_prompt; ++i) t->prompt[i] = choose(&b->from, VOCAB);
    if (choose(&b->from, 4) == 0) t->bench = b;
}

static bool write_alone(bench *b, text *t) {
    return done(b, moe_lm_generate(b->lm, t->prompt, t->n_prompt, t->n_new, &t->sampler, take, t));
}

static void generate(bench *b) {
    text t;
    choose_text(b, &t);
    write_alone(b, &t);
}

static void make_batch(bench *b) {
    const moe_lm_batch_desc desc = {
        .size = sizeof desc, .max_texts = choose(&b->from, 5), .max_length = choose(&b->from, 24)};
    moe_lm_batch_destroy(b->batch);
    b->batch = NULL;
    b->n_texts = 0;
    done(b, moe_lm_batch_create(b->lm, &desc, &b->batch));
}

static void add_text(bench *b) {
    if (!b->batch || b->n_texts == MOST_CALLS) return;
    text *t = &b->text[b->n_texts];
    choose_text(b, t);
    const moe_lm_text said = {sizeof said, t->prompt, t->n_prompt, t->n_new, &t->sampler, take, t};
    if (done(b, moe_lm_batch_add(b->batch, &said))) ++b->n_texts;
}

/* To the end, and then each alone. */
static void finish_batch(bench *b) {
    if (!b->batch) return;
    for (int i = 0; i < 4 * MOST_NEW && moe_lm_batch_live(b->batch) > 0; ++i)
        if (!done(b, moe_lm_batch_step(b->batch))) return;
    if (moe_lm_batch_live(b->batch) > 0) abort();
    for (int i = 0; i < b->n_texts; ++i) {
        text alone = b->text[i];
        alone.n = 0;
        alone.bench = NULL;
        if (!write_alone(b, &alone)) continue;
        if (alone.n != b->text[i].n ||
            memcmp(alone.got, b->text[i].got, (size_t)alone.n * sizeof(int32_t)) != 0)
            abort();
    }
    b->n_texts = 0;
}

static void call_once(bench *b) {
    const moe_mode mode = choose(&b->from, 2) ? MOE_TRAIN : MOE_INFER;
    size_t measured;
    switch (choose(&b->from, 10)) {
    case 0:
    case 1:
        done(b, moe_lm_reserve(b->lm, choose(&b->from, 4), choose(&b->from, CONTEXT + 2), mode));
        break;
    case 2:
        logits(b);
        break;
    case 3:
        loss(b);
        break;
    case 4:
        generate(b);
        break;
    case 5:
        make_batch(b);
        break;
    case 6:
        add_text(b);
        break;
    case 7:
        if (b->batch) done(b, moe_lm_batch_step(b->batch));
        break;
    case 8:
        finish_batch(b);
        break;
    default:
        moe_lm_zero_grad(b->lm);
        done(b, moe_lm_measure(b->lm, choose(&b->from, 4), choose(&b->from, CONTEXT + 2), mode, &measured));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static moe_ctx *ctx;
    bench *b = calloc(1, sizeof *b);
    const moe_ctx_desc with = {.size = sizeof with, .n_threads = 1, .seed = 5};
    if (!b || (!ctx && moe_ctx_create(&with, &ctx, NULL) != MOE_OK)) abort();
    b->ctx = ctx;
    b->from = (bytes){data, data + size};
    moe_lm_config *config = draw_config(&b->from);
    if (done(b, moe_lm_create(ctx, config, &b->lm)))
        for (int i = 0; i < MOST_CALLS && b->from.at < b->from.end; ++i) call_once(b);
    moe_lm_batch_destroy(b->batch);
    moe_lm_destroy(b->lm);
    moe_lm_config_destroy(config);
    free(b);
    return 0;
}
