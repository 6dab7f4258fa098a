/* baselines.c: spawns each compressor with the text on its standard input and counts its output.
 */
#include "baselines.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Starts `name -9 -c` on the file; returns the end of the pipe it writes to, -1 where it cannot be started.
 */
static int start(const char *name, const char *path, pid_t *process) {
    char *argv[] = {(char *)(uintptr_t)name, (char[]){"-9"}, (char[]){"-c"}, NULL};
    int ends[2];
    posix_spawn_file_actions_t actions;
    if (pipe(ends) != 0) return -1;
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, path, O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    int failed = posix_spawnp(process, name, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (!failed) return ends[0];
    close(ends[0]);
    return -1;
}

/* Bytes the compressor writes; -1 where it is absent or fails. */
static int64_t compressed_bytes(const char *name, const char *path) {
    char block[65536];
    pid_t process;
    int status, end = start(name, path, &process);
    if (end < 0) return -1;
    int64_t bytes = 0;
    ssize_t n;
    while ((n = read(end, block, sizeof block)) != 0) {
        if (n > 0)
            bytes += n;
        else if (errno != EINTR)
            break;
    }
    close(end);
    while (waitpid(process, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return n == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? bytes : -1;
}

void baselines_measure(const char *path, int64_t n_bytes, baselines *result) {
    static const char *const compressor[BASELINES] = {"gzip", "bzip2", "xz"};
    *result = (baselines){.n_found = 0};
    for (int i = 0; i < BASELINES; ++i) {
        int64_t bytes = n_bytes > 0 ? compressed_bytes(compressor[i], path) : -1;
        if (bytes < 0)
            result->absent[result->n_absent++] = compressor[i];
        else
            result->found[result->n_found++] =
                (moe_lm_baseline){compressor[i], 8.0 * (double)bytes / (double)n_bytes};
    }
}
