/* fuzz_safetensors.c: any bytes are refused or read; what is read lies inside the bytes and can be found.
 * Input: a whole .safetensors file. Run by scripts/fuzz.sh.
 * Source: format/safetensors.h.
 */
#include "format/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_tensor(const moelm_safetensors *file, const moelm_st_tensor *tensor, const uint8_t *data,
                         size_t size) {
    const uint8_t *at = tensor->data;
    if (moelm_safetensors_find(file, tensor->name) != tensor) abort();
    if (at < data || tensor->bytes > size || (size_t)(at - data) > size - tensor->bytes) abort();
    const moelm_st_tensor *same = NULL;
    if (moelm_safetensors_get(file, tensor->name, tensor->n_dim, tensor->dim, &same, NULL) != MOE_OK) abort();
    if (same != tensor) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    moelm_safetensors *file = NULL;
    moe_error error = {.text = ""};
    if (moelm_safetensors_parse("fuzz", data, size, &file, &error) != MOE_OK) {
        if (file || error.text[0] == '\0') abort();
        return 0;
    }
    size_t covered = 0;
    for (size_t i = 0; i < moelm_safetensors_count(file); i++) {
        const moelm_st_tensor *tensor = moelm_safetensors_at(file, i);
        check_tensor(file, tensor, data, size);
        covered += tensor->bytes;
    }
    if (covered > size - 8) abort();
    for (size_t i = 0; i < moelm_safetensors_metadata_count(file); i++) {
        moelm_st_pair pair = moelm_safetensors_metadata_at(file, i);
        const char *value = moelm_safetensors_metadata(file, pair.key);
        if (!value || strcmp(value, pair.value) != 0) abort();
    }
    moelm_safetensors_close(file);
    return 0;
}
