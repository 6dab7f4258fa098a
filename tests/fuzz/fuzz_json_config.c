/* fuzz_json_config.c: any bytes are refused or read as a config.json, whose fields keep their limits.
 * Input: the text of the file. Run by scripts/fuzz.sh. */
#include "format/json.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_fields(const json_t *root) {
    static const char *const integers[] = {"hidden_size", "num_hidden_layers", "num_local_experts",
                                           "vocab_size"};
    static const char *const reals[] = {"rms_norm_eps", "rope_theta", "router_aux_loss_coef"};
    moe_error error = {.text = ""};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        int64_t value = 0;
        moe_status status = moei_json_get_int(root, "config.json", integers[i], 1, 1000, &value, &error);
        if (status == MOE_OK ? value < 1 || value > 1000 : error.text[0] == '\0') abort();
        moei_json_opt_int(root, "config.json", integers[i], 1, 1000, &value, &error);
        if (value < 0 || value > 1000) abort();
    }
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        double value = 0;
        moei_json_get_real(root, "config.json", reals[i], &value, &error);
        if (!isfinite(value)) abort();
    }
    bool flag = false;
    const char *string = "";
    json_t *object = NULL, *array = NULL;
    moei_json_get_bool(root, "config.json", "tie_word_embeddings", &flag, &error);
    moei_json_get_string(root, "config.json", "model_type", &string, &error);
    moei_json_opt_string(root, "config.json", "hidden_act", &string, &error);
    if (!string) abort();
    if (moei_json_get_array(root, "config.json", "architectures", &array, &error) == MOE_OK && !array)
        abort();
    if (moei_json_opt_object(root, "config.json", "rope_scaling", &object, &error) == MOE_OK && object)
        moei_json_get_string(object, "config.json: rope_scaling", "type", &string, &error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *root = NULL;
    moe_error error = {.text = ""};
    if (moei_json_parse("config.json", data, size, &root, &error) != MOE_OK) {
        if (root || error.text[0] == '\0') abort();
        return 0;
    }
    read_fields(root);
    json_decref(root);
    return 0;
}
