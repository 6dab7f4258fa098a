/* lines.c: an append-only file of lines.
 * The length of the good part is kept, so a line that did not fit is cut off again at once.
 * Source: O_APPEND and ftruncate(2) of POSIX. */
#define _GNU_SOURCE
#include "format/lines.h"

#include "core/status.h"
#include "format/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct moelm_lines {
    int fd;
    char *path;
    off_t good; /* bytes of whole lines in the file */
};

static moe_status failed(const char *path, const char *what, moe_error *error) {
    return moei_error_set(error, MOE_ERR_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

static size_t good_bytes(const char *data, size_t bytes, moelm_lines_keep_fn keep, void *user) {
    size_t good = 0;
    const char *end;
    while (good < bytes && (end = memchr(data + good, '\n', bytes - good))) {
        size_t length = (size_t)(end - (data + good));
        if (keep && !keep(user, data + good, length)) break;
        good += length + 1;
    }
    return good;
}

static moe_status cut_bad_end(moelm_lines *lines, moelm_lines_keep_fn keep, void *user, moe_error *error) {
    moelm_file_map map;
    MOEI_TRY(moelm_file_map_open(lines->path, &map, error));
    size_t bytes = map.bytes;
    size_t good = good_bytes((const char *)map.data, bytes, keep, user);
    moelm_file_map_close(&map);
    lines->good = (off_t)good;
    if (good < bytes && (ftruncate(lines->fd, lines->good) != 0 || fsync(lines->fd) != 0))
        return failed(lines->path, "cut the unfinished end", error);
    return MOE_OK;
}

moe_status moelm_lines_open(const char *path, moelm_lines_keep_fn keep, void *user, moelm_lines **lines,
                            moe_error *error) {
    moelm_lines *made = malloc(sizeof *made);
    if (made) *made = (moelm_lines){.fd = -1, .path = strdup(path)};
    if (!made || !made->path) {
        free(made);
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    }
    made->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    moe_status status =
        made->fd < 0 ? failed(path, "open for appending", error) : cut_bad_end(made, keep, user, error);
    if (status != MOE_OK) {
        moelm_lines_close(made);
        return status;
    }
    *lines = made;
    return MOE_OK;
}

moe_status moelm_lines_append(moelm_lines *lines, const char *text, moe_error *error) {
    size_t length = strlen(text);
    if (memchr(text, '\n', length))
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: a line must not contain a newline", lines->path);
    struct iovec parts[2] = {
        {(void *)(uintptr_t)text,  length},
        {(void *)(uintptr_t) "\n", 1     }
    };
    size_t done = 0;
    while (done <= length) {
        ssize_t n = writev(lines->fd, parts, 2);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            moe_status status = failed(lines->path, "append a line", error);
            /* Were this to fail too, the next open would still cut the torn line. */
            bool cut = ftruncate(lines->fd, lines->good) == 0;
            return cut ? status : failed(lines->path, "append a line, nor cut the begun one", error);
        }
        done += (size_t)n;
        size_t of_text = done < length ? done : length;
        parts[0] = (struct iovec){(void *)(uintptr_t)(text + of_text), length - of_text};
    }
    lines->good += (off_t)length + 1;
    return MOE_OK;
}

moe_status moelm_lines_sync(moelm_lines *lines, moe_error *error) {
    return fdatasync(lines->fd) == 0 ? MOE_OK : failed(lines->path, "sync", error);
}

void moelm_lines_close(moelm_lines *lines) {
    if (!lines) return;
    if (lines->fd >= 0) close(lines->fd);
    free(lines->path);
    free(lines);
}
