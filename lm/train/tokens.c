/* tokens.c: the tokenizer of a run and the files it came with.
 * A tokenizer.json alone gets a tokenizer_config.json that says no more than which class of transformers
 * reads it; where only a config.json names the end of a text, a generation_config.json does from here on.
 * Source: transformers' AutoTokenizer. */
#include "train/tokens.h"

#include "core/status.h"
#include "format/file.h"
#include "format/json.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[MOELM_TOKENIZER_FILES] = {"tokenizer.json", "tokenizer_config.json",
                                                         "special_tokens_map.json", "generation_config.json",
                                                         "chat_template.jinja"};
enum { CLASS = 1, GENERATION = 3 };
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
    if (!moelm_dir_exists(path)) /* a file of another name */
        return moelm_file_read(path, 1, MOELM_JSON_MAX_BYTES, &tokens->file[0].data, &tokens->file[0].bytes,
                               error);
    for (size_t i = 0; i < MOELM_TOKENIZER_FILES; ++i) {
        char *file = moelm_path_join(path, names[i]);
        moe_status status = file ? MOE_OK : no_memory(path, error);
        if (file && (i == 0 || moelm_file_exists(file)))
            status = moelm_file_read(file, i == 0, MOELM_JSON_MAX_BYTES, &tokens->file[i].data,
                                     &tokens->file[i].bytes, error);
        free(file);
        MOEI_TRY(status);
    }
    return MOE_OK;
}

static moe_status keep_text(size_t at, char *text, const char *path, moelm_tokens *tokens, moe_error *error) {
    if (!text) return no_memory(path, error);
    tokens->file[at].data = text;
    tokens->file[at].bytes = strlen(text);
    return MOE_OK;
}

/* Which tokens end a text, where no file that is kept may say so. */
static moe_status keep_ends(const char *path, moelm_tokens *tokens, moe_error *error) {
    const int32_t *ids;
    const size_t count = moe_tokenizer_eos(tokens->tokenizer, &ids);
    if (count == 0 || tokens->file[GENERATION].data) return MOE_OK;
    json_t *list = json_array();
    for (size_t i = 0; i < count; ++i) json_array_append_new(list, json_integer(ids[i]));
    json_t *root = json_pack("{s:o}", "eos_token_id", list);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    return keep_text(GENERATION, text, path, tokens, error);
}

static moe_status open_at(const char *path, moelm_tokens *tokens, moe_error *error) {
    MOEI_TRY(read_files(path, tokens, error));
    MOEI_TRY(moe_tokenizer_load(path, &tokens->tokenizer, error));
    if (!tokens->file[CLASS].data) MOEI_TRY(keep_text(CLASS, strdup(generic), path, tokens, error));
    return keep_ends(path, tokens, error);
}

/* The directory of a tokenizer.json, as the files beside it belong to it; another path stays as it is. */
static char *place_of(const char *path) {
    const char *slash = strrchr(path, '/');
    const bool named =
        strcmp(slash ? slash + 1 : path, names[0]) == 0 && moelm_file_exists(path) && !moelm_dir_exists(path);
    return named ? moelm_path_parent(path) : strdup(path);
}

moe_status moelm_tokens_open(const char *path, const char *key, moelm_tokens *tokens, moe_error *error) {
    moe_error inner = {.text = ""};
    *tokens = (moelm_tokens){0};
    char *place = place_of(path);
    tokens->path = strdup(path);
    moe_status status = place && tokens->path ? open_at(place, tokens, &inner) : no_memory(path, &inner);
    free(place);
    if (status != MOE_OK) {
        moelm_tokens_close(tokens);
        return moei_error_set(error, status, "%s: %s", key, inner.text);
    }
    moelm_sha256(tokens->file[0].data, tokens->file[0].bytes, tokens->sha256);
    return MOE_OK;
}

void moelm_tokens_close(moelm_tokens *tokens) {
    moe_tokenizer_destroy(tokens->tokenizer);
    free(tokens->path);
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
