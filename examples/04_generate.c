/* 04_generate.c: continues a prompt with a language model of bytes.
 * 04_generate CHECKPOINT [PROMPT]; without a checkpoint a small random model shows the calls (and no sense).
 * cc 04_generate.c $(pkg-config --cflags --libs moekit-lm)
 */
#include <moekit/lm.h>

#include <stdio.h>

static bool print_byte(void *user, int32_t token) {
    int64_t *count = user;
    ++*count;
    putchar(token >= ' ' && token < 127 ? token : '.');
    return true;
}

static moe_status open_model(moe_ctx *ctx, const char *checkpoint, moe_lm **lm, moe_error *error) {
    static const char *const setting[][2] = {
        {"model.d_model",          "32"},
        {"model.n_layers",         "2" },
        {"moe.num_experts",        "4" },
        {"moe.expert_hidden_size", "32"}
    };
    moe_lm_config *config = NULL;
    if (checkpoint) return moe_lm_load(ctx, checkpoint, lm);
    moe_status status = moe_lm_config_create(&config, error);
    for (size_t i = 0; i < sizeof setting / sizeof *setting && status == MOE_OK; ++i)
        status = moe_lm_config_set(config, setting[i][0], setting[i][1], "example", error);
    if (status == MOE_OK) status = moe_lm_create(ctx, config, lm);
    moe_lm_config_destroy(config);
    return status;
}

int main(int argc, char **argv) {
    const char *prompt = argc > 2 ? argv[2] : "In the beginning";
    int32_t token[256];
    int64_t n_prompt = 0, n_drawn = 0;
    moe_error error = {MOE_OK, ""};
    moe_ctx *ctx = NULL;
    moe_lm *lm = NULL;
    if (moe_ctx_create(NULL, &ctx, &error) != MOE_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    for (const char *at = prompt; *at && n_prompt < 256; ++at) token[n_prompt++] = (unsigned char)*at;
    const moe_lm_sampler sampler = {.size = sizeof sampler, .temperature = 0.8f, .top_p = 0.95f, .seed = 1};
    moe_status status = open_model(ctx, argc > 1 ? argv[1] : NULL, &lm, &error);
    if (status == MOE_OK) {
        printf("%s", prompt);
        status = moe_lm_generate(lm, token, n_prompt, 64, &sampler, print_byte, &n_drawn);
        putchar('\n');
    }
    if (status != MOE_OK) fprintf(stderr, "%s%s\n", error.text, moe_ctx_error(ctx));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    return status == MOE_OK && n_drawn == 64 ? 0 : 1;
}
