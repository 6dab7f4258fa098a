/* publish.c: a directory that appears whole or not at all.
 * Old and new are swapped by one system call; where the file system cannot, by two renames whose middle
 * sweep repairs. Source: renameat2(2) RENAME_EXCHANGE of Linux. */
#define _GNU_SOURCE
#include "format/publish.h"

#include "core/status.h"
#include "format/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct moelm_publish {
    char *dir, *temp;
    int lock; /* of temp, held until the handle is freed */
};

static moe_status no_memory(const char *path, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
}

static bool is_dots(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* 1. Trees. Both return 0, or -1 with errno; links are never followed. */

static DIR *open_dir_at(int at, const char *name) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir && fd >= 0) close(fd);
    return dir;
}

static void close_dir_keep_errno(DIR *dir) {
    int cause = errno;
    closedir(dir);
    errno = cause;
}

static int tree_remove(int at, const char *name) {
    if (unlinkat(at, name, 0) == 0) return 0;
    if (errno != EISDIR) return -1;
    DIR *dir = open_dir_at(at, name);
    if (!dir) return -1;
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir));)
        if (!is_dots(entry->d_name)) result = tree_remove(dirfd(dir), entry->d_name);
    close_dir_keep_errno(dir);
    return result == 0 ? unlinkat(at, name, AT_REMOVEDIR) : -1;
}

static int file_sync(int at, const char *name) {
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return errno == ELOOP ? 0 : -1;
    int result = fsync(fd) == 0 || errno == EINVAL ? 0 : -1;
    int cause = errno;
    close(fd);
    errno = cause;
    return result;
}

/* A directory after what it holds, so that its names never point at bytes that are not there. */
static int tree_sync(int at, const char *name) {
    DIR *dir = open_dir_at(at, name);
    if (!dir) return errno == ENOTDIR || errno == ELOOP ? file_sync(at, name) : -1;
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir));)
        if (!is_dots(entry->d_name)) result = tree_sync(dirfd(dir), entry->d_name);
    close_dir_keep_errno(dir);
    return result == 0 ? file_sync(at, name) : -1;
}

/* 2. Publishing. */

static void publish_free(moelm_publish *publish) {
    if (publish->lock >= 0) close(publish->lock);
    free(publish->dir);
    free(publish->temp);
    free(publish);
}

static int open_locked(const char *path) {
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || moelm_file_lock(fd)) return fd;
    close(fd);
    errno = EBUSY;
    return -1;
}

/* Makes the temporary directory and holds it. One in the way is a leftover of a killed process that had our
 * number, unless it is locked. */
static int claim_temp(const char *temp) {
    if (mkdir(temp, 0777) == 0) return open_locked(temp);
    if (errno != EEXIST) return -1;
    int old = open_locked(temp);
    if (old < 0) return -1;
    int removed = tree_remove(AT_FDCWD, temp);
    close(old);
    return removed == 0 && mkdir(temp, 0777) == 0 ? open_locked(temp) : -1;
}

static moe_status make_parent(const char *path, moe_error *error) {
    char *parent = moelm_path_parent(path);
    moe_status status = parent ? moelm_dir_make(parent, error) : no_memory(path, error);
    free(parent);
    return status;
}

moe_status moelm_publish_begin(const char *dir, moelm_publish **publish, moe_error *error) {
    struct stat info;
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') length--;
    if (length == 0 || strcmp(dir, "/") == 0)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "\"%s\" is no name for a directory to write", dir);
    if (stat(dir, &info) == 0 && !S_ISDIR(info.st_mode))
        return moei_error_set(error, MOE_ERR_IO, "%s: exists and is not a directory", dir);
    MOEI_TRY(make_parent(dir, error));

    moelm_publish *made = malloc(sizeof *made);
    if (!made) return no_memory(dir, error);
    *made = (moelm_publish){.dir = strndup(dir, length), .lock = -1};
    if (made->dir) made->temp = moelm_path_temp(made->dir);
    if (!made->temp) {
        publish_free(made);
        return no_memory(dir, error);
    }
    made->lock = claim_temp(made->temp);
    if (made->lock < 0) {
        moe_status status = moei_error_set(error, MOE_ERR_IO, "%s: cannot make the directory: %s", made->temp,
                                           strerror(errno));
        publish_free(made);
        return status;
    }
    *publish = made;
    return MOE_OK;
}

const char *moelm_publish_path(const moelm_publish *publish) {
    return publish->temp;
}

/* Between the two renames dir is missing; a process killed there leaves `<dir>.old-<pid>`, which sweep
 * renames back. */
static int replace_in_two_steps(const char *temp, const char *dir) {
    char *old = NULL;
    if (asprintf(&old, "%s.old-%ld", dir, (long)getpid()) < 0) {
        errno = ENOMEM;
        return -1;
    }
    int lock = open_locked(dir); /* against a sweep by another process in between */
    int result = rename(dir, old);
    if (result == 0) {
        result = rename(temp, dir);
        int cause = errno;
        if (result != 0) rename(old, dir);
        if (result == 0) tree_remove(AT_FDCWD, old);
        errno = cause;
    }
    if (lock >= 0) close(lock);
    free(old);
    return result;
}

static int replace_dir(const char *temp, const char *dir) {
    /* Succeeds where dir is missing or empty. */
    if (rename(temp, dir) == 0) return 0;
    if (errno != ENOTEMPTY && errno != EEXIST) return -1;
    if (renameat2(AT_FDCWD, temp, AT_FDCWD, dir, RENAME_EXCHANGE) == 0) {
        /* temp holds the old files now. dir is published whether or not they can be removed; sweep retries.
         */
        tree_remove(AT_FDCWD, temp);
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) return -1;
    return replace_in_two_steps(temp, dir);
}

moe_status moelm_publish_commit(moelm_publish *publish, moe_error *error) {
    moe_status status = MOE_OK;
    if (tree_sync(AT_FDCWD, publish->temp) != 0)
        status = moei_error_set(error, MOE_ERR_IO, "%s: cannot sync: %s", publish->temp, strerror(errno));
    else if (replace_dir(publish->temp, publish->dir) != 0)
        status = moei_error_set(error, MOE_ERR_IO, "%s: cannot put the new directory in place: %s",
                                publish->dir, strerror(errno));
    if (status != MOE_OK) {
        moelm_publish_abort(publish);
        return status;
    }
    char *parent = moelm_path_parent(publish->dir);
    status = parent ? moelm_dir_sync(parent, error) : no_memory(publish->dir, error);
    free(parent);
    publish_free(publish);
    return status;
}

void moelm_publish_abort(moelm_publish *publish) {
    if (!publish) return;
    tree_remove(AT_FDCWD, publish->temp);
    publish_free(publish);
}

/* 3. Sweeping. */

/* Where in name `mark` starts that only digits follow, or NULL. */
static const char *find_suffix(const char *name, const char *mark) {
    const char *found = NULL;
    for (const char *at = name; (at = strstr(at, mark)); at++) found = at;
    if (!found || found == name) return NULL;
    size_t digits = strspn(found + strlen(mark), "0123456789");
    return digits > 0 && found[strlen(mark) + digits] == '\0' ? found : NULL;
}

/* Gives `<dir>.old-<pid>` its name back. 1: done, 0: the name is taken, so the old files are not needed. */
static int restore_old(int parent, const char *name, const char *original) {
    struct stat info;
    if (fstatat(parent, original, &info, AT_SYMLINK_NOFOLLOW) == 0) return 0;
    return renameat(parent, name, parent, original) == 0 ? 1 : -1;
}

/* 1: removed, 0: still in use, -1: errno says why not. `original` is what the leftover was to become. */
static int sweep_leftover(int parent, const char *name, const char *original, bool old) {
    int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT || errno == ELOOP ? 0 : -1;
    int result = 0;
    if (moelm_file_lock(fd)) {
        int restored = old ? restore_old(parent, name, original) : 0;
        if (restored < 0 || (restored == 0 && tree_remove(parent, name) != 0)) result = -1;
        if (restored == 0 && result == 0) result = 1;
    }
    int cause = errno;
    close(fd);
    errno = cause;
    return result;
}

/* 0 for what is no leftover of ours, too. */
static int sweep_entry(int parent, const char *name, moelm_publish_name_fn ours) {
    const char *temp = find_suffix(name, ".tmp-");
    const char *suffix = temp ? temp : find_suffix(name, ".old-");
    if (!suffix) return 0;
    char *original = strndup(name, (size_t)(suffix - name));
    if (!original) return -1;
    int result = ours(original) ? sweep_leftover(parent, name, original, !temp) : 0;
    int cause = errno;
    free(original);
    errno = cause;
    return result;
}

moe_status moelm_publish_sweep(const char *parent, moelm_publish_name_fn ours, size_t *n_removed,
                               moe_error *error) {
    size_t removed = 0;
    DIR *dir = open_dir_at(AT_FDCWD, parent);
    if (!dir && errno != ENOENT)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: cannot read the directory: %s", parent,
                              strerror(errno));
    moe_status status = MOE_OK;
    for (struct dirent *entry; dir && status == MOE_OK && (entry = readdir(dir));) {
        int result = sweep_entry(dirfd(dir), entry->d_name, ours);
        if (result < 0)
            status = moei_error_set(error, MOE_ERR_IO, "%s/%s: cannot remove the leftover: %s", parent,
                                    entry->d_name, strerror(errno));
        if (result > 0) removed++;
    }
    if (dir) closedir(dir);
    if (status == MOE_OK && n_removed) *n_removed = removed;
    return status;
}
