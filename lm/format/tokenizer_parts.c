/* tokenizer_parts.c: what several parts of tokenizer.json are read by: sequences of parts, the template
 * around a text, and the begin and end of texts as the files beside it tell them. Source: tokenizer.json, and
 * transformers' tokenizer_config.json, config.json, generation_config.json. */
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/file.h"
#include "format/utf8.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 1. Parts. */
#define MAX_DEPTH 8

typedef struct reader {
    const char *key;
    moelm_part_fn take;
    moe_tokenizer *tokenizer;
    moe_error *error;
} reader;

static moe_status read_part(const reader *by, const json_t *part, const char *where, int depth) {
    const char *type = "";
    MOEI_TRY(moelm_json_get_string(part, where, "type", &type, by->error));
    if (strcmp(type, "Sequence") != 0) return by->take(part, where, type, by->tokenizer, by->error);
    if (depth == MAX_DEPTH)
        return moei_error_set(by->error, MOE_ERR_UNSUPPORTED, "%s: sequences in sequences, more than %d",
                              where, MAX_DEPTH);
    json_t *parts, *value;
    size_t index;
    MOEI_TRY(moelm_json_get_array(part, where, by->key, &parts, by->error));
    json_array_foreach(parts, index, value) {
        char inside[200];
        snprintf(inside, sizeof inside, "%.150s.%s[%zu]", where, by->key, index);
        MOEI_TRY(read_part(by, value, inside, depth + 1));
    }
    return MOE_OK;
}

moe_status moelm_parts_read(const json_t *root, const char *name, const char *field, const char *key,
                            moelm_part_fn take, moe_tokenizer *tokenizer, moe_error *error) {
    json_t *part = NULL;
    MOEI_TRY(moelm_json_opt_object(root, name, field, &part, error));
    char where[200];
    snprintf(where, sizeof where, "%s: %s", name, field);
    return part ? read_part(&(reader){key, take, tokenizer, error}, part, where, 0) : MOE_OK;
}

moe_status moelm_char_read(const json_t *part, const char *where, const char *key, const char **text,
                           moe_error *error) {
    uint32_t code;
    MOEI_TRY(moelm_json_get_string(part, where, key, text, error));
    const size_t bytes = strlen(*text);
    if (bytes > 0 && moelm_utf8_decode(*text, bytes, &code) == bytes) return MOE_OK;
    return moei_error_set(error, MOE_ERR_INPUT, "%s: %s must be one character", where, key);
}

/* 2. The template. */
static moe_status add_special(const json_t *special, const json_t *part, const char *where,
                              moe_tokenizer *tokenizer, moe_token_list *to, moe_error *error) {
    const char *name = "";
    json_t *known, *ids, *id;
    size_t index;
    MOEI_TRY(moelm_json_get_string(special, where, "id", &name, error));
    MOEI_TRY(moelm_json_get_object(part, where, "special_tokens", &known, error));
    MOEI_TRY(moelm_json_get_object(known, where, name, &known, error));
    MOEI_TRY(moelm_json_get_array(known, where, "ids", &ids, error));
    json_array_foreach(ids, index, id) {
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= tokenizer->vocab.n_ids ||
            !tokenizer->vocab.tokens[value].text)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: the ids of %.80s are not in the vocabulary",
                                  where, name);
        MOEI_TRY(moelm_tokens_add(to, (int32_t)value, error));
    }
    return MOE_OK;
}

static moe_status take_processor(const json_t *part, const char *where, const char *type,
                                 moe_tokenizer *tokenizer, moe_error *error) {
    if (strcmp(type, "ByteLevel") == 0) return MOE_OK; /* offsets only */
    if (strcmp(type, "TemplateProcessing") != 0)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                              "%s: %.80s is not known; Sequence, ByteLevel and "
                              "TemplateProcessing are",
                              where, type);
    if (tokenizer->has_template)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: a second TemplateProcessing", where);
    tokenizer->has_template = true;
    json_t *single, *piece;
    size_t index;
    bool behind = false;
    MOEI_TRY(moelm_json_get_array(part, where, "single", &single, error));
    json_array_foreach(single, index, piece) {
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *text = json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        if (!special && (!text || strcmp(text, "A") != 0 || behind))
            return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                                  "%s: single[%zu] must be a SpecialToken, or the only "
                                  "Sequence, A",
                                  where, index);
        if (special)
            MOEI_TRY(add_special(special, part, where, tokenizer,
                                 behind ? &tokenizer->after : &tokenizer->before, error));
        else
            behind = true;
    }
    return behind ? MOE_OK
                  : moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: single without Sequence A", where);
}

moe_status moelm_template_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                               moe_error *error) {
    return moelm_parts_read(root, name, "post_processor", "processors", take_processor, tokenizer, error);
}

/* 3. Begin and end. */
static moe_status add_end(const json_t *value, const char *where, moe_tokenizer *tokenizer,
                          moe_error *error) {
    const json_int_t id = json_integer_value(value);
    if (!json_is_integer(value) || id < -1 || id >= MOELM_TOKENIZER_MAX_IDS)
        return moei_error_set(error, MOE_ERR_INPUT,
                              "%s: eos_token_id must be an id from 0 to %" PRId64
                              ", a list of them, or -1 or null for none",
                              where, MOELM_TOKENIZER_MAX_IDS - 1);
    if (id < 0) return MOE_OK;
    if (tokenizer->n_eos == MOELM_TOKENIZER_MAX_EOS)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: eos_token_id has more than %d ids", where,
                              MOELM_TOKENIZER_MAX_EOS);
    tokenizer->eos[tokenizer->n_eos++] = (int32_t)id;
    return MOE_OK;
}

/* generation_config.json and config.json have numbers; -1, as some have it, is none. */
static moe_status ends_by_number(const json_t *root, const char *where, moe_tokenizer *tokenizer,
                                 moe_error *error) {
    const json_t *eos = json_object_get(root, "eos_token_id"), *value;
    size_t index;
    int64_t bos = -1;
    if (tokenizer->n_eos == 0 && json_is_array(eos)) {
        json_array_foreach(eos, index, value) MOEI_TRY(add_end(value, where, tokenizer, error));
    } else if (tokenizer->n_eos == 0 && eos && !json_is_null(eos)) {
        MOEI_TRY(add_end(eos, where, tokenizer, error));
    }
    MOEI_TRY(moelm_json_opt_int(root, where, "bos_token_id", -1, MOELM_TOKENIZER_MAX_IDS - 1, &bos, error));
    if (tokenizer->bos < 0) tokenizer->bos = (int32_t)bos;
    return MOE_OK;
}

/* tokenizer_config.json has texts, or objects with one. */
static int32_t id_of(const json_t *root, const char *key, const moe_tokenizer *tokenizer) {
    const json_t *value = json_object_get(root, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_is_string(value) ? moe_tokenizer_id(tokenizer, json_string_value(value)) : -1;
}

static moe_status ends_by_text(const json_t *root, const char *where, moe_tokenizer *tokenizer,
                               moe_error *error) {
    (void)where;
    (void)error;
    int32_t eos = id_of(root, "eos_token", tokenizer);
    if (tokenizer->n_eos == 0 && eos >= 0) tokenizer->eos[tokenizer->n_eos++] = eos;
    if (tokenizer->bos < 0) tokenizer->bos = id_of(root, "bos_token", tokenizer);
    return MOE_OK;
}

/* Which end a text has is told best by what is made for generation. */
moe_status moelm_ends_read(const char *directory, moe_tokenizer *tokenizer, moe_error *error) {
    static const struct {
        const char *file;
        moe_status (*read)(const json_t *, const char *, moe_tokenizer *, moe_error *);
    } sources[] = {
        {"generation_config.json", ends_by_number},
        {"config.json",            ends_by_number},
        {"tokenizer_config.json",  ends_by_text  }
    };
    moe_status status = MOE_OK;
    for (size_t i = 0; i < sizeof sources / sizeof *sources && status == MOE_OK; ++i) {
        char *path = moelm_path_join(directory, sources[i].file);
        if (!path) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", directory);
        json_t *root = NULL;
        if (moelm_file_exists(path)) {
            status = moelm_json_load(path, &root, error);
            if (status == MOE_OK) status = sources[i].read(root, path, tokenizer, error);
            json_decref(root);
        }
        free(path);
    }
    return status;
}
