/* checksum.c: SHA-256 of a checkpoint's tensors, recorded and compared.
 * A flipped byte among numbers is a number still: no other check would notice it.
 * Source: docs/run-directory.md.
 */
#include "model/checksum.h"

#include "core/status.h"
#include "format/file.h"
#include "format/json.h"
#include "format/sha256.h"

#include <stdlib.h>
#include <string.h>

static moe_status no_memory(const char *directory, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", directory);
}

static moe_status sum_of(const char *path, char sum[MOELM_SHA256_TEXT], moe_error *error) {
    moelm_file_map map;
    MOEI_TRY(moelm_file_map_open(path, &map, error));
    moelm_sha256(map.data, map.bytes, sum);
    moelm_file_map_close(&map);
    return MOE_OK;
}

static moe_status add_sum(const char *directory, const char *name, json_t *sums, moe_error *error) {
    char sum[MOELM_SHA256_TEXT], *path = moelm_path_join(directory, name);
    moe_status status = path ? sum_of(path, sum, error) : no_memory(directory, error);
    free(path);
    MOEI_TRY(status);
    return json_object_set_new(sums, name, json_string(sum)) == 0 ? MOE_OK : no_memory(directory, error);
}

moe_status moelm_checksum_make(const char *directory, json_t **sums, moe_error *error) {
    json_t *made = json_object();
    moe_status status = made ? MOE_OK : no_memory(directory, error);
    if (status == MOE_OK) status = add_sum(directory, "model.safetensors", made, error);
    if (status == MOE_OK) status = add_sum(directory, "optimizer.safetensors", made, error);
    if (status == MOE_OK)
        *sums = made;
    else
        json_decref(made);
    return status;
}

static moe_status compare(const char *path, const char *recorded, moe_error *error) {
    char found[MOELM_SHA256_TEXT];
    MOEI_TRY(sum_of(path, found, error));
    if (strcmp(found, recorded) == 0) return MOE_OK;
    return moei_error_set(
        error, MOE_ERR_INPUT,
        "%s: damaged or changed since it was written: its sha256 is %.12s.., and trainer.json "
        "records %.12s..; use another checkpoint of the run",
        path, found, recorded);
}

/* `recorded` stays "" where the file has no sum. */
static moe_status check_recorded(const json_t *root, const char *json, const char *path, const char *name,
                                 moe_error *error) {
    json_t *sums = NULL;
    const char *recorded = "";
    MOEI_TRY(moelm_json_opt_object(root, json, "sha256", &sums, error));
    if (sums) MOEI_TRY(moelm_json_opt_string(sums, json, name, &recorded, error));
    return *recorded ? compare(path, recorded, error) : MOE_OK;
}

moe_status moelm_checksum_check(const char *directory, const char *name, moe_error *error) {
    char *path = moelm_path_join(directory, name), *json = moelm_path_join(directory, "trainer.json");
    json_t *root = NULL;
    moe_status status = path && json ? MOE_OK : no_memory(directory, error);
    if (status == MOE_OK && moelm_file_exists(json)) status = moelm_json_load(json, &root, error);
    if (status == MOE_OK && root) status = check_recorded(root, json, path, name, error);
    json_decref(root);
    free(path);
    free(json);
    return status;
}
