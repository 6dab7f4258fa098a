/* fuzz_layer.c: any settings and any calls in any order are done or refused with a text, and touch no memory
 * but their own. Input: bytes that choose settings, then calls. Run by scripts/fuzz.sh. Source: moekit/moe.h,
 * which calls go after which.
 */
#include "fuzz/choose.h"

#include <moekit/expert.h>
#include <moekit/op.h>
#include <moekit/quant.h>

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_TOKENS = 12, MOST_WIDTH = 40, MOST_CALLS = 24, MOST_SETTINGS = 12 };

typedef struct bench {
    moe_ctx *ctx;
    moe_layer *layer;
    bytes from;
    moe_mat x, y, dy, dx;
    uint8_t mask[MOST_TOKENS];
    int32_t token_id[MOST_TOKENS], task[MOST_TOKENS], expert[MOST_TOKENS * 64];
} bench;

static bool done(const bench *b, moe_status status) {
    return done_or_told(b->ctx, status);
}

/* 1. Settings. */

/* Of "expert_kinds" alone any text is a value; those that name kinds are the interesting ones. */
static const char *kinds_of(bytes *from) {
    static const char *const kinds[] = {"", "8x4", "5,identity,zero,9", "2x3,2x7", "identity", "zero"};
    return kinds[choose(from, 6)];
}

typedef char setting_text[64]; /* some outlive their setting: the descriptor points at them */

static bool draw_settings(bytes *from, moe_layer_desc *desc, setting_text value[MOST_SETTINGS]) {
    int rows = 0;
    while (moe_layer_option_at((size_t)rows)) ++rows;
    for (int n = choose(from, MOST_SETTINGS + 1); n-- > 0;) {
        const moe_option *row = moe_layer_option_at((size_t)choose(from, rows));
        moe_error error = {.text = ""};
        if (strcmp(row->key, "moe.d_model") == 0 || strcmp(row->key, "moe.expert") == 0) continue;
        choose_value(from, row, value[n], sizeof value[n]);
        const char *text = strcmp(row->key, "moe.expert_kinds") == 0 ? kinds_of(from) : value[n];
        if (moe_layer_desc_set(desc, row->key, text, &error) != MOE_OK && error.text[0] == '\0') abort();
    }
    return desc->d_model <= MOST_WIDTH && desc->output_size <= MOST_WIDTH && desc->num_experts <= 16;
}

/* 2. Calls. */

static moe_mat matrix(moe_dtype dtype, int64_t rows, int64_t cols) {
    /* of its size exactly, so that the address sanitizer sees both ends */
    return (moe_mat){malloc((size_t)(rows * cols) * moe_dtype_bytes(dtype)), rows, cols, cols, dtype};
}

static void free_matrices(bench *b) {
    free(b->x.data), free(b->y.data), free(b->dy.data), free(b->dx.data);
    b->x.data = b->y.data = b->dy.data = b->dx.data = NULL;
}

static void new_matrices(bench *b, int64_t rows) {
    const moe_layer_desc *d = moe_layer_get_desc(b->layer);
    free_matrices(b);
    b->x = matrix(d->dtype, rows, d->d_model);
    b->y = matrix(d->dtype, rows, d->output_size);
    b->dy = matrix(d->dtype, rows, d->output_size);
    b->dx = matrix(d->dtype, rows, d->d_model);
    moe_random_normal(1, MOE_DRAW_TEST, 0, 0, d->dtype, b->x.data, rows * d->d_model, 1);
    moe_random_normal(1, MOE_DRAW_TEST, 1, 0, d->dtype, b->dy.data, rows * d->output_size, 1);
}

static void fill_call(bench *b, moe_call *call, int64_t rows) {
    const moe_layer_desc *d = moe_layer_get_desc(b->layer);
    const int said = choose(&b->from, 256);
    for (int t = 0; t < MOST_TOKENS; ++t) {
        b->mask[t] = (uint8_t)(choose(&b->from, 4) > 0);
        b->token_id[t] = choose(&b->from, 16);
        b->task[t] = choose(&b->from, 5);
    }
    if (said & 1) call->token_mask = b->mask;
    if (said & 2) call->token_id = b->token_id;
    if (said & 4) call->task = b->task;
    if (said & 8) call->overwrite_grad = true;
    if (said & 16) call->sequence_length = 1 + choose(&b->from, 4);
    if (said & 32) call->loss_scale = (float)choose(&b->from, 3) - 1;
    if (!(said & 64)) return;
    for (int64_t i = 0; i < rows * 64 && i < MOST_TOKENS * 64; ++i)
        b->expert[i] = choose(&b->from, d->num_experts + 4) - 3;
    call->replay_expert = b->expert;
}

static void forward(bench *b) {
    const int64_t rows = choose(&b->from, MOST_TOKENS + 1);
    moe_call call = {.size = sizeof call, .mode = choose(&b->from, 2) ? MOE_TRAIN : MOE_INFER, .step = 3};
    moe_stats stats = {.size = sizeof stats};
    new_matrices(b, rows);
    fill_call(b, &call, rows);
    done(b, moe_layer_forward(b->layer, b->x, b->y, &call, choose(&b->from, 2) ? &stats : NULL));
}

static void backward(bench *b) {
    if (!b->x.data) new_matrices(b, choose(&b->from, MOST_TOKENS + 1));
    const moe_mat none = {0};
    done(b, moe_layer_backward(b->layer, b->x, b->dy, choose(&b->from, 3) ? b->dx : none));
}

/* Every number of the view is there to be read. */
static void look(bench *b) {
    moe_routing_view view = {.size = sizeof view};
    int64_t sum = 0;
    if (!done(b, moe_layer_routing(b->layer, &view))) return;
    for (int64_t i = 0; i < view.n_tokens * view.top_k; ++i) sum += view.expert[i] + view.row_of[i];
    for (int32_t e = 0; e < view.n_experts; ++e) sum += view.routed[e] + view.kept[e];
    for (int64_t g = 0; g < view.n_groups; ++g) sum += view.group_capacity[g];
    if (sum == INT64_MAX) abort();
}

static void quantize(bench *b) {
    const char *const *format = moe_packed_formats();
    moe_quant_desc desc = {.size = sizeof desc, .drop_weights = choose(&b->from, 4) == 0};
    int count = 0;
    while (format[count]) ++count;
    desc.format = format[choose(&b->from, count)];
    done(b, moe_layer_quantize(b->layer, choose(&b->from, 3) ? &desc : NULL));
}

static void call_once(bench *b) {
    moe_layer_bytes measured = {.size = sizeof measured};
    const moe_mode mode = choose(&b->from, 2) ? MOE_TRAIN : MOE_INFER;
    switch (choose(&b->from, 12)) {
    case 0:
    case 1:
        done(b, moe_layer_reserve(b->layer, choose(&b->from, MOST_TOKENS + 1), mode));
        break;
    case 2:
    case 3:
    case 4:
        forward(b);
        break;
    case 5:
        backward(b);
        break;
    case 6:
        look(b);
        break;
    case 7:
        quantize(b);
        break;
    case 8:
        done(b, moe_layer_freeze(b->layer, choose(&b->from, 6), choose(&b->from, 2) != 0));
        break;
    case 9:
        done(b, moe_layer_set_grad_dtype(b->layer, choose(&b->from, 2) ? MOE_BF16 : MOE_F32));
        break;
    case 10:
        done(b, moe_layer_limit_sequences(b->layer, choose(&b->from, 5)));
        done(b, moe_layer_measure(b->layer, choose(&b->from, MOST_TOKENS + 1), mode, &measured));
        break;
    default:
        moe_layer_zero_grad(b->layer);
        done(b, moe_layer_end_step(b->layer, NULL));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const isas[] = {"ref", NULL};
    static moe_ctx *contexts[2];
    bench b = {
        .from = {data, data + size}
    };
    const int isa = choose(&b.from, 2);
    const moe_ctx_desc with = {.size = sizeof with, .isa = isas[isa], .n_threads = 1, .seed = 5};
    if (!contexts[isa] && moe_ctx_create(&with, &contexts[isa], NULL) != MOE_OK) abort();
    b.ctx = contexts[isa];
    moe_layer_desc desc = {.size = sizeof desc,
                           .dtype = (moe_dtype)choose(&b.from, 3),
                           .d_model = 1 + choose(&b.from, MOST_WIDTH),
                           .num_experts = choose(&b.from, 9),
                           .expert_hidden_size = 1 + choose(&b.from, 20)};
    setting_text value[MOST_SETTINGS];
    if (!draw_settings(&b.from, &desc, value)) return 0;
    if (!done(&b, moe_layer_create(b.ctx, &desc, &b.layer))) return 0;
    for (int i = 0; i < MOST_CALLS && b.from.at < b.from.end; ++i) call_once(&b);
    free_matrices(&b);
    moe_layer_destroy(b.layer);
    return 0;
}
