/* load_file.c: load.bin.
 * Its bytes are told in format/load_bin.h.
 * Source: docs/run-directory.md.
 */
#include "train/load_file.h"

#include "core/status.h"
#include "format/file.h"
#include "format/load_bin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct moelm_load_file {
    int fd;
    char *path;
    off_t good; /* bytes of whole records and the header */
    size_t header_bytes, record_bytes;
    unsigned char *header, *record;
};

static moe_status failed(const moelm_load_file *file, const char *what, moe_error *error) {
    return moei_error_set(error, MOE_ERR_IO, "%s: cannot %s: %s", file->path, what, strerror(errno));
}

static moe_status make_buffers(moelm_load_file *file, const moelm_load *shape, moe_error *error) {
    size_t n_layers = (size_t)shape->n_layers;
    file->header_bytes = moelm_load_bin_header_bytes(n_layers);
    file->record_bytes = moelm_load_bin_record_bytes((size_t)shape->first[n_layers]);
    file->header = malloc(file->header_bytes);
    file->record = malloc(file->record_bytes);
    if (!file->header || !file->record)
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", file->path);
    memcpy(file->header, MOELM_LOAD_BIN_MAGIC, MOELM_LOAD_BIN_MAGIC_BYTES);
    unsigned char *at = moelm_put_little(file->header + MOELM_LOAD_BIN_MAGIC_BYTES, n_layers, 4);
    for (int32_t l = 0; l < shape->n_layers; ++l)
        at = moelm_put_little(at, (uint64_t)moelm_load_experts(shape, l), 4);
    return MOE_OK;
}

static moe_status write_all(moelm_load_file *file, const unsigned char *data, size_t bytes,
                            moe_error *error) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(file->fd, data + done, bytes - done, file->good + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            moe_status status = failed(file, "write", error);
            /* Were this to fail too, the next open would still cut the torn record. */
            bool cut = ftruncate(file->fd, file->good) == 0;
            return cut ? status : failed(file, "write, nor cut the begun record", error);
        }
        done += (size_t)n;
    }
    file->good += (off_t)bytes;
    return MOE_OK;
}

/* Bytes up to the last record that is whole and not after `step`. */
static size_t good_bytes(const moelm_load_file *file, const moelm_file_map *map, int64_t step) {
    size_t good = file->header_bytes;
    while (good + file->record_bytes <= map->bytes && moelm_get_little(map->data + good, 8) <= (uint64_t)step)
        good += file->record_bytes;
    return good;
}

static moe_status cut_or_begin(moelm_load_file *file, int64_t step, moe_error *error) {
    moelm_file_map map;
    MOEI_TRY(moelm_file_map_open(file->path, &map, error));
    bool whole_header = map.bytes >= file->header_bytes;
    bool same = whole_header && memcmp(map.data, file->header, file->header_bytes) == 0;
    size_t good = same ? good_bytes(file, &map, step) : 0;
    moelm_file_map_close(&map);
    if (whole_header && !same && step > 0)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: was not written by this model; move it away",
                              file->path);
    if (ftruncate(file->fd, (off_t)good) != 0) return failed(file, "cut the unfinished end", error);
    file->good = (off_t)good;
    return same ? MOE_OK : write_all(file, file->header, file->header_bytes, error);
}

moe_status moelm_load_file_open(const char *path, const moelm_load *shape, int64_t step,
                                moelm_load_file **file, moe_error *error) {
    moelm_load_file *made = calloc(1, sizeof *made);
    if (made) *made = (moelm_load_file){.fd = -1, .path = strdup(path)};
    if (!made || !made->path) {
        free(made);
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    }
    moe_status status = make_buffers(made, shape, error);
    if (status == MOE_OK) {
        made->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        status = made->fd < 0 ? failed(made, "open for writing", error) : cut_or_begin(made, step, error);
    }
    if (status != MOE_OK) {
        moelm_load_file_close(made);
        return status;
    }
    *file = made;
    return MOE_OK;
}

moe_status moelm_load_file_append(moelm_load_file *file, int64_t step, const moelm_load *load,
                                  moe_error *error) {
    unsigned char *at = moelm_put_little(file->record, (uint64_t)step, 8);
    for (int32_t l = 0; l < load->n_layers; ++l) {
        for (int64_t i = load->first[l]; i < load->first[l + 1]; ++i)
            at = moelm_put_little(at, load->kept[i], 8);
        for (int64_t i = load->first[l]; i < load->first[l + 1]; ++i)
            at = moelm_put_little(at, load->dropped[i], 8);
    }
    return write_all(file, file->record, file->record_bytes, error);
}

moe_status moelm_load_file_sync(moelm_load_file *file, moe_error *error) {
    return fdatasync(file->fd) == 0 ? MOE_OK : failed(file, "sync", error);
}

void moelm_load_file_close(moelm_load_file *file) {
    if (!file) return;
    if (file->fd >= 0) close(file->fd);
    free(file->record);
    free(file->header);
    free(file->path);
    free(file);
}
