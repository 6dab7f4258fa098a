/* file.c: whole files, read and replaced.
 * A write goes to a temporary name beside the target, is synced, and takes the target's name by rename.
 * Source: rename(2) and fsync(2) of POSIX; the order write, fsync, rename, fsync of the directory. */
#define _GNU_SOURCE
#include "format/file.h"

#include "core/status.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct moelm_file_writer {
    int fd;
    char *path, *temp; /* temp NULL: path is a device, written to directly */
    uint64_t expect, written;
};

static moe_status no_memory(const char *path, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
}

/* 1. Paths. */

char *moelm_path_join(const char *dir, const char *name) {
    size_t length = strlen(dir);
    const char *slash = length > 0 && dir[length - 1] != '/' ? "/" : "";
    char *path = NULL;
    return asprintf(&path, "%s%s%s", dir, slash, name) < 0 ? NULL : path;
}

char *moelm_path_parent(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    while (length > 0 && path[length - 1] != '/') length--;
    while (length > 1 && path[length - 1] == '/') length--;
    return length > 0 ? strndup(path, length) : strdup(".");
}

char *moelm_path_temp(const char *path) {
    char *temp = NULL;
    return asprintf(&temp, "%s.tmp-%ld", path, (long)getpid()) < 0 ? NULL : temp;
}

bool moelm_file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

bool moelm_dir_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static bool same_parent(const char *a, const char *b) {
    char *of_a = moelm_path_parent(a), *of_b = moelm_path_parent(b);
    const bool same = of_a && of_b && moelm_dir_exists(of_a) && moelm_path_same(of_a, of_b);
    free(of_a);
    free(of_b);
    return same;
}

bool moelm_path_same(const char *a, const char *b) {
    struct stat one, other;
    const bool there = stat(a, &one) == 0, also = stat(b, &other) == 0;
    if (there && also)
        return one.st_dev == other.st_dev && one.st_ino == other.st_ino &&
               (S_ISREG(one.st_mode) || S_ISDIR(one.st_mode));
    if (there || also) return false;
    const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
    return strcmp(slash_a ? slash_a + 1 : a, slash_b ? slash_b + 1 : b) == 0 && same_parent(a, b);
}

/* 2. Reading. */

/* Opens without blocking on pipes, which are refused with everything else that is no regular file. */
static moe_status open_input(const char *path, int *fd, uint64_t *bytes, moe_error *error) {
    int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (opened < 0) return moei_error_set(error, MOE_ERR_INPUT, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    moe_status status = MOE_OK;
    if (fstat(opened, &info) != 0)
        status = moei_error_set(error, MOE_ERR_INPUT, "%s: cannot read: %s", path, strerror(errno));
    else if (S_ISDIR(info.st_mode))
        status = moei_error_set(error, MOE_ERR_INPUT, "%s: is a directory, a file is needed", path);
    else if (!S_ISREG(info.st_mode))
        status = moei_error_set(error, MOE_ERR_INPUT, "%s: is a device or pipe, a file is needed", path);
    if (status != MOE_OK) {
        close(opened);
        return status;
    }
    *fd = opened;
    *bytes = (uint64_t)info.st_size;
    return MOE_OK;
}

static moe_status read_all(int fd, const char *path, char *data, size_t bytes, moe_error *error) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = read(fd, data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: cannot read at byte %zu: %s", path, done,
                                  strerror(errno));
        if (n == 0) return moei_error_set(error, MOE_ERR_INPUT, "%s: became shorter while it was read", path);
        done += (size_t)n;
    }
    return MOE_OK;
}

moe_status moelm_file_read(const char *path, size_t min_bytes, size_t max_bytes, char **data, size_t *bytes,
                           moe_error *error) {
    int fd = -1;
    uint64_t size = 0;
    MOEI_TRY(open_input(path, &fd, &size, error));
    moe_status status = MOE_OK;
    char *text = NULL;
    if (size == 0 && min_bytes > 0)
        status = moei_error_set(error, MOE_ERR_INPUT, "%s: is empty", path);
    else if (size < min_bytes)
        status = moei_error_set(error, MOE_ERR_INPUT, "%s: %" PRIu64 " bytes, at least %zu are needed", path,
                                size, min_bytes);
    else if (size > max_bytes)
        status = moei_error_set(error, MOE_ERR_INPUT, "%s: %" PRIu64 " bytes, at most %zu are accepted", path,
                                size, max_bytes);
    else if (!(text = malloc((size_t)size + 1)))
        status = no_memory(path, error);
    else
        status = read_all(fd, path, text, (size_t)size, error);
    close(fd);
    if (status != MOE_OK) {
        free(text);
        return status;
    }
    text[size] = '\0';
    *data = text;
    *bytes = (size_t)size;
    return MOE_OK;
}

moe_status moelm_file_map_open(const char *path, moelm_file_map *map, moe_error *error) {
    int fd = -1;
    uint64_t size = 0;
    MOEI_TRY(open_input(path, &fd, &size, error));
    const void *data = "";
    if (size > 0) data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
    int cause = errno;
    close(fd);
    if (data == MAP_FAILED)
        return moei_error_set(error, MOE_ERR_MEMORY, "%s: cannot map %" PRIu64 " bytes: %s", path, size,
                              strerror(cause));
    *map = (moelm_file_map){.data = data, .bytes = (size_t)size};
    return MOE_OK;
}

void moelm_file_map_close(moelm_file_map *map) {
    if (map->bytes > 0) munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (moelm_file_map){0};
}

/* Pages begin at multiples of their size; those wholly inside, or all that are touched. */
static void advise(const moelm_file_map *map, size_t first, size_t bytes, bool inside, int advice) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t end = first < map->bytes && bytes < map->bytes - first ? first + bytes : map->bytes;
    if (inside) {
        first = (first + page - 1) / page * page;
        end = end / page * page;
    } else {
        first = first / page * page;
    }
    if (first < end) madvise((void *)(uintptr_t)(map->data + first), end - first, advice);
}

void moelm_file_map_ahead(const moelm_file_map *map, size_t first, size_t bytes) {
    advise(map, first, bytes, false, MADV_WILLNEED);
}

void moelm_file_map_done(const moelm_file_map *map, size_t first, size_t bytes) {
    advise(map, first, bytes, true, MADV_DONTNEED);
}

/* 3. Writing. */

bool moelm_file_lock(int fd) {
    /* A file system without locks answers with another error: then nobody can be told apart, go on. */
    return flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

moe_status moelm_dir_sync(const char *path, moe_error *error) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* EINVAL: the file system cannot sync directories and has nothing to sync. */
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    int cause = errno;
    if (fd >= 0) close(fd);
    if (ok) return MOE_OK;
    return moei_error_set(error, MOE_ERR_IO, "%s: cannot sync the directory: %s", path, strerror(cause));
}

static void writer_free(moelm_file_writer *writer) {
    if (writer->fd >= 0) close(writer->fd);
    free(writer->path);
    free(writer->temp);
    free(writer);
}

/* Makes the temporary file. One in the way is a leftover of a killed process that had our number, unless it
 * is locked. */
static int open_temp(const char *temp) {
    int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EEXIST) {
        int old = open(temp, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (old < 0) return -1;
        bool free_to_take = moelm_file_lock(old) && unlink(temp) == 0;
        close(old);
        if (!free_to_take) {
            errno = EBUSY;
            return -1;
        }
        fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    if (fd >= 0) moelm_file_lock(fd);
    return fd;
}

moe_status moelm_file_writer_open(const char *path, uint64_t expect_bytes, moelm_file_writer **writer,
                                  moe_error *error) {
    struct stat info;
    bool exists = stat(path, &info) == 0;
    if (exists && S_ISDIR(info.st_mode))
        return moei_error_set(error, MOE_ERR_IO, "%s: is a directory, cannot write a file there", path);
    bool device = exists && !S_ISREG(info.st_mode);
    if (!device) MOEI_TRY(moelm_file_check_space(path, expect_bytes, error));

    moelm_file_writer *made = malloc(sizeof *made);
    if (!made) return no_memory(path, error);
    *made = (moelm_file_writer){.fd = -1, .path = strdup(path), .expect = expect_bytes};
    if (!device) made->temp = moelm_path_temp(path);
    if (!made->path || (!device && !made->temp)) {
        writer_free(made);
        return no_memory(path, error);
    }
    made->fd = device ? open(path, O_WRONLY | O_CLOEXEC) : open_temp(made->temp);
    if (made->fd < 0) {
        int cause = errno;
        writer_free(made);
        return moei_error_set(error, MOE_ERR_IO, "%s: cannot write there: %s", path, strerror(cause));
    }
    *writer = made;
    return MOE_OK;
}

static moe_status write_failed(const moelm_file_writer *writer, int cause, moe_error *error) {
    uint64_t total = writer->expect > writer->written ? writer->expect : writer->written;
    return moei_error_set(error, MOE_ERR_IO,
                          "%s: writing failed after %" PRIu64 " bytes: %s; %" PRIu64 " bytes are needed",
                          writer->path, writer->written, strerror(cause), total);
}

moe_status moelm_file_writer_put(moelm_file_writer *writer, const void *data, size_t bytes,
                                 moe_error *error) {
    const char *from = data;
    while (bytes > 0) {
        ssize_t n = write(writer->fd, from, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return write_failed(writer, errno, error);
        from += n;
        bytes -= (size_t)n;
        writer->written += (uint64_t)n;
    }
    return MOE_OK;
}

moe_status moelm_file_writer_commit(moelm_file_writer *writer, moe_error *error) {
    moe_status status = MOE_OK;
    /* close() too may report a failed write (NFS), so it is part of the check. */
    bool synced = !writer->temp || fsync(writer->fd) == 0;
    int cause = errno;
    bool closed = close(writer->fd) == 0;
    if (synced && !closed) cause = errno;
    writer->fd = -1;
    if (!synced || !closed)
        status = write_failed(writer, cause, error);
    else if (writer->temp && rename(writer->temp, writer->path) != 0)
        status = moei_error_set(error, MOE_ERR_IO, "%s: cannot replace the file: %s", writer->path,
                                strerror(errno));
    if (status != MOE_OK || !writer->temp) {
        moelm_file_writer_abort(writer);
        return status;
    }
    char *parent = moelm_path_parent(writer->path);
    status = parent ? moelm_dir_sync(parent, error) : no_memory(writer->path, error);
    free(parent);
    writer_free(writer);
    return status;
}

void moelm_file_writer_abort(moelm_file_writer *writer) {
    if (!writer) return;
    if (writer->temp) unlink(writer->temp);
    writer_free(writer);
}

moe_status moelm_file_write(const char *path, const void *data, size_t bytes, moe_error *error) {
    moelm_file_writer *writer;
    MOEI_TRY(moelm_file_writer_open(path, bytes, &writer, error));
    moe_status status = moelm_file_writer_put(writer, data, bytes, error);
    if (status == MOE_OK) return moelm_file_writer_commit(writer, error);
    moelm_file_writer_abort(writer);
    return status;
}

/* 4. Directories and space. */

moe_status moelm_file_check_space(const char *path, uint64_t bytes, moe_error *error) {
    char *place = strdup(path);
    struct statvfs info;
    int failed = -1;
    /* The nearest parent that exists is on the file system the path will be on. */
    while (place && (failed = statvfs(place, &info)) != 0 && errno == ENOENT) {
        char *parent = moelm_path_parent(place);
        free(place);
        place = parent;
    }
    if (!place) return no_memory(path, error);
    free(place);
    /* Where the system does not say, the write itself will tell. */
    if (failed != 0 || info.f_blocks == 0) return MOE_OK;
    uint64_t available = (uint64_t)info.f_bavail * info.f_frsize;
    if (bytes <= available) return MOE_OK;
    return moei_error_set(error, MOE_ERR_IO,
                          "%s: %" PRIu64 " bytes are needed, its file system has %" PRIu64 " free", path,
                          bytes, available);
}

moe_status moelm_dir_make(const char *path, moe_error *error) {
    char *prefix = strdup(path);
    if (!prefix) return no_memory(path, error);
    moe_status status = MOE_OK;
    size_t length = strlen(prefix);
    for (size_t i = 1; i <= length && status == MOE_OK; i++) {
        if ((prefix[i] != '/' && prefix[i] != '\0') || prefix[i - 1] == '/') continue;
        char kept = prefix[i];
        prefix[i] = '\0';
        struct stat info;
        int cause = mkdir(prefix, 0777) == 0 ? 0 : errno;
        if (cause == EEXIST && stat(prefix, &info) == 0) cause = S_ISDIR(info.st_mode) ? 0 : ENOTDIR;
        if (cause != 0)
            status = moei_error_set(error, MOE_ERR_IO, "%s: cannot make the directory %s: %s", path, prefix,
                                    strerror(cause));
        prefix[i] = kept;
    }
    free(prefix);
    return status;
}
