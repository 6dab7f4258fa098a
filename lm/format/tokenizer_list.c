/* tokenizer_list.c: lists of ids and of bytes that grow by half.
 * Sizes in elements and bytes; what is in a list stays where growing fails. */
#include "format/tokenizer.h"

#include "core/status.h"

#include <stdlib.h>
#include <string.h>

static moe_status grow(void **data, size_t *capacity, size_t count, size_t more, size_t element,
                       moe_error *error) {
    size_t largest = PTRDIFF_MAX / element;
    if (more > largest - count)
        return moei_error_set(error, MOE_ERR_MEMORY, "a tokenizer's list of %zu elements does not fit",
                              count);
    size_t wanted = count + more, roomy = *capacity < largest / 2 ? *capacity + *capacity / 2 + 64 : largest;
    if (roomy < wanted) roomy = wanted;
    void *grown = realloc(*data, roomy * element);
    if (!grown)
        return moei_error_set(error, MOE_ERR_MEMORY, "a tokenizer's list of %zu bytes does not fit",
                              roomy * element);
    *data = grown;
    *capacity = roomy;
    return MOE_OK;
}

moe_status moelm_text_reserve(moe_token_text *text, size_t more, moe_error *error) {
    if (text->capacity - text->count > more) return MOE_OK;
    void *data = text->bytes;
    MOEI_TRY(grow(&data, &text->capacity, text->count, more + 1, 1, error));
    text->bytes = data;
    return MOE_OK;
}

moe_status moelm_text_add(moe_token_text *text, const char *data, size_t bytes, moe_error *error) {
    MOEI_TRY(moelm_text_reserve(text, bytes, error));
    if (bytes > 0) memcpy(text->bytes + text->count, data, bytes);
    text->count += bytes;
    text->bytes[text->count] = '\0';
    return MOE_OK;
}

moe_status moelm_tokens_reserve(moe_token_list *list, size_t more, moe_error *error) {
    if (list->capacity - list->count >= more) return MOE_OK;
    void *data = list->ids;
    MOEI_TRY(grow(&data, &list->capacity, list->count, more, sizeof *list->ids, error));
    list->ids = data;
    return MOE_OK;
}

moe_status moelm_tokens_add(moe_token_list *list, int32_t id, moe_error *error) {
    if (list->count == list->capacity) MOEI_TRY(moelm_tokens_reserve(list, 1, error));
    list->ids[list->count++] = id;
    return MOE_OK;
}

void moe_token_list_free(moe_token_list *list) {
    if (!list) return;
    free(list->ids);
    *list = (moe_token_list){0};
}

void moe_token_text_free(moe_token_text *text) {
    if (!text) return;
    free(text->bytes);
    *text = (moe_token_text){0};
}
