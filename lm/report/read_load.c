/* read_load.c: load.bin into at most MOELM_BINS columns of rows per expert.
 * Records of u64 counts in, sums over whole records out; a torn last record is left out and told.
 * Source: docs/run-directory.md, section load.bin.
 */
#include "config/config.h"
#include "core/status.h"
#include "format/file.h"
#include "format/load_bin.h"
#include "report/run.h"

#include <string.h>

enum { MIN_BINS = 16 };

/* Reads the layers and leaves *at behind the header. */
static moe_status read_header(const char *path, const moelm_file_map *map, moelm_pool *pool,
                              moelm_report_load *load, size_t *at, moe_error *error) {
    if (map->bytes < MOELM_LOAD_BIN_FIXED_BYTES ||
        memcmp(map->data, MOELM_LOAD_BIN_MAGIC, MOELM_LOAD_BIN_MAGIC_BYTES) != 0) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s: does not start with MOELOAD1", path);
    }
    uint64_t n_layers = moelm_get_little(map->data + MOELM_LOAD_BIN_MAGIC_BYTES, 4);
    *at = moelm_load_bin_header_bytes((size_t)n_layers);
    if (n_layers == 0 || n_layers > MOELM_MAX_LAYERS || map->bytes < *at) {
        return moei_error_set(error, MOE_ERR_INPUT, "%s: byte 8: %llu layers in a file of %zu bytes", path,
                              (unsigned long long)n_layers, map->bytes);
    }
    load->n_layers = (int32_t)n_layers;
    load->experts = moelm_pool_take(pool, n_layers, sizeof *load->experts);
    load->first = moelm_pool_take(pool, n_layers + 1, sizeof *load->first);
    load->dropped = moelm_pool_take(pool, n_layers, sizeof *load->dropped);
    load->routed_in = moelm_pool_take(pool, n_layers, sizeof *load->routed_in);
    if (!load->experts || !load->first || !load->dropped || !load->routed_in) {
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for its layers", path);
    }
    for (size_t l = 0; l < n_layers; ++l) {
        uint64_t experts = moelm_get_little(map->data + moelm_load_bin_header_bytes(l), 4);
        if (experts > MOELM_MAX_EXPERTS) {
            return moei_error_set(error, MOE_ERR_INPUT, "%s: byte %zu: %llu experts; at most %d are read",
                                  path, moelm_load_bin_header_bytes(l), (unsigned long long)experts,
                                  MOELM_MAX_EXPERTS);
        }
        load->experts[l] = (int32_t)experts;
        load->first[l + 1] = load->first[l] + (int64_t)experts;
    }
    return MOE_OK;
}

/* As many columns as the page can carry for this many experts. */
static int32_t choose_bins(const moelm_report_load *load) {
    int64_t total = load->first[load->n_layers], bins = total > 0 ? MOELM_HEAT_CELLS / total : 0;
    if (bins > MOELM_BINS) bins = MOELM_BINS;
    if (bins < MIN_BINS) bins = MIN_BINS;
    return (int32_t)(bins < load->n_records ? bins : load->n_records);
}

/* The last quarter, and at least the last record. */
static bool is_late(const moelm_report_load *load, int64_t record) {
    return 4 * (record + 1) > 3 * load->n_records;
}

static void add_record(const unsigned char *counts, int64_t bin, bool late, moelm_report_load *load) {
    double *routed = load->routed + bin * load->first[load->n_layers];
    for (int32_t l = 0; l < load->n_layers; ++l) {
        for (int32_t i = 0; i < 2 * load->experts[l]; ++i, counts += 8) { /* kept, then dropped */
            const int64_t e = load->first[l] + i % load->experts[l];
            const double rows = (double)moelm_get_little(counts, 8);
            routed[e] += rows;
            load->routed_in[l] += rows;
            if (late) load->late[e] += rows;
            if (i >= load->experts[l]) load->dropped[l] += rows;
        }
    }
}

static moe_status read_records(const char *path, const unsigned char *data, size_t bytes, moelm_pool *pool,
                               moelm_report_load *load, moe_error *error) {
    size_t total = (size_t)load->first[load->n_layers], record = moelm_load_bin_record_bytes(total);
    load->n_records = (int64_t)(bytes / record);
    load->torn = bytes % record != 0;
    load->n_bins = choose_bins(load);
    load->found = load->n_records > 0 && total > 0;
    load->step = moelm_pool_take(pool, (size_t)load->n_bins, sizeof *load->step);
    load->routed = moelm_pool_take(pool, (size_t)load->n_bins * total, sizeof *load->routed);
    load->late = moelm_pool_take(pool, total, sizeof *load->late);
    if (!load->step || !load->routed || !load->late) {
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for %zu experts", path, total);
    }
    for (int64_t i = 0; i < load->n_records; ++i) {
        const unsigned char *from = data + (size_t)i * record;
        int64_t bin = i * load->n_bins / load->n_records;
        load->step[bin] = moelm_get_little(from, 8);
        add_record(from + 8, bin, is_late(load, i), load);
    }
    return MOE_OK;
}

moe_status moelm_report_load_read(const char *path, moelm_pool *pool, moelm_report_load *load,
                                  moe_error *error) {
    moelm_file_map map;
    size_t at = 0;
    MOEI_TRY(moelm_file_map_open(path, &map, error));
    moe_status status = read_header(path, &map, pool, load, &at, error);
    if (status == MOE_OK) status = read_records(path, map.data + at, map.bytes - at, pool, load, error);
    moelm_file_map_close(&map);
    return status;
}
