/* tokens.c: the tokenizer of a run and the files it came with.
 * A tokenizer.json alone gets a tokenizer_config.json that says no more than which class of transformers
 * reads it. Source: transformers' AutoTokenizer. */
#include "train/tokens.h"

#include "core/status.h"
#include "format/file.h"
#include "format/json.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[MOELM_TOKENIZER_FILES] = {"tokenizer.json", "tokenizer_config.json",
                                                         "special_tokens_map.json", "generation_config.json",
                                                         "chat_template.jinja"};
static const char generic[] = "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n";

static moe_status no_memory(const char *path, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
}

bool moelm_tokens_there(const char *directory) {
    char *path = moelm_path_join(directory, names[0]);
    const bool there = path && moelm_file_exists(path);
    free(path);
    return there;
}

static moe_status read_files(const char *path, moelm_tokens *tokens, moe_error *error) {
    if (!moelm_dir_exists(path)) {
        MOEI_TRY(moelm_file_read(path, 1, MOELM_JSON_MAX_BYTES, &tokens->file[0].data, &tokens->file[0].bytes,
                                 error));
        tokens->file[1].data = strdup(generic);
        tokens->file[1].bytes = strlen(generic);
        return tokens->file[1].data ? MOE_OK : no_memory(path, error);
    }
    for (size_t i = 0; i < MOELM_TOKENIZER_FILES; ++i) {
        char *file = moelm_path_join(path, names[i]);
        moe_status status = file ? MOE_OK : no_memory(path, error);
        if (file && (i == 0 || moelm_file_exists(file)))
            status = moelm_file_read(file, 1, MOELM_JSON_MAX_BYTES, &tokens->file[i].data,
                                     &tokens->file[i].bytes, error);
        free(file);
        MOEI_TRY(status);
    }
    return MOE_OK;
}

moe_status moelm_tokens_open(const char *path, const char *key, moelm_tokens *tokens, moe_error *error) {
    moe_error inner = {.text = ""};
    *tokens = (moelm_tokens){0};
    moe_status status = read_files(path, tokens, &inner);
    if (status == MOE_OK) status = moe_tokenizer_load(path, &tokens->tokenizer, &inner);
    if (status != MOE_OK) {
        moelm_tokens_close(tokens);
        return moei_error_set(error, status, "%s: %s", key, inner.text);
    }
    moelm_sha256(tokens->file[0].data, tokens->file[0].bytes, tokens->sha256);
    return MOE_OK;
}

void moelm_tokens_close(moelm_tokens *tokens) {
    moe_tokenizer_destroy(tokens->tokenizer);
    for (size_t i = 0; i < MOELM_TOKENIZER_FILES; ++i) free(tokens->file[i].data);
    *tokens = (moelm_tokens){0};
}

moe_status moelm_tokens_write(const moelm_tokens *tokens, const char *directory, moe_error *error) {
    moe_status status = MOE_OK;
    for (size_t i = 0; i < MOELM_TOKENIZER_FILES && status == MOE_OK; ++i) {
        if (!tokens->file[i].data) continue;
        char *path = moelm_path_join(directory, names[i]);
        status = path ? moelm_file_write(path, tokens->file[i].data, tokens->file[i].bytes, error)
                      : no_memory(directory, error);
        free(path);
    }
    return status;
}
