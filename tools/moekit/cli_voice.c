/* cli_voice.c: how the command speaks: failures and remarks on stderr, colours, JSON, whole files.
 * A message is "moekit VERB: what, where, what would be right".
 */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

const char *cli_paint(bool on, cli_color color, char buffer[8]) {
    if (!on) return "";
    snprintf(buffer, 8, "\033[%dm", (int)color);
    return buffer;
}

const char *cli_plain(bool on) {
    return on ? "\033[0m" : "";
}

/* A line longer than the terminal would wrap and leave its pieces behind. */
void cli_draw_line(cli_args *args, const char *text) {
    struct winsize window;
    int most = (int)strlen(text);
    if (args->quiet || !isatty(STDERR_FILENO)) return;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1 && most >= window.ws_col)
        most = window.ws_col - 1;
    fprintf(stderr, "\r\033[K%.*s", most, text);
    fflush(stderr);
    args->line_open = true;
}

void cli_close_line(cli_args *args) {
    if (args->line_open) fputc('\n', stderr);
    args->line_open = false;
}

void cli_erase_line(cli_args *args) {
    if (args->line_open) fputs("\r\033[K", stderr);
    args->line_open = false;
}

static void speak(cli_args *args, cli_color color, const char *format, va_list list) {
    char paint[8];
    cli_close_line(args);
    fprintf(stderr, "%smoekit%s%s:%s ", cli_paint(args->color_err, color, paint), args->verb ? " " : "",
            args->verb ? args->verb->name : "", cli_plain(args->color_err));
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
}

int cli_fail(cli_args *args, moe_status status, const char *format, ...) {
    va_list list;
    va_start(list, format);
    speak(args, CLI_RED, format, list);
    va_end(list);
    return (int)status;
}

void cli_warn(cli_args *args, const char *format, ...) {
    if (args->quiet) return;
    va_list list;
    va_start(list, format);
    speak(args, CLI_YELLOW, format, list);
    va_end(list);
}

void cli_say(cli_args *args, const char *format, ...) {
    if (args->quiet) return;
    va_list list;
    va_start(list, format);
    cli_close_line(args);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
}

/* Length of the UTF-8 character at `text`, 0 where there is none (RFC 3629: no surrogates, none above
 * 10FFFF). */
static size_t utf8_length(const unsigned char *text, size_t left) {
    unsigned char first = text[0];
    size_t n = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : 4;
    if (first >= 0x80 && (first < 0xc2 || first > 0xf4)) return 0;
    if (n > left) return 0;
    for (size_t i = 1; i < n; ++i)
        if ((text[i] & 0xc0) != 0x80) return 0;
    if ((first == 0xe0 && text[1] < 0xa0) || (first == 0xed && text[1] > 0x9f)) return 0;
    if ((first == 0xf0 && text[1] < 0x90) || (first == 0xf4 && text[1] > 0x8f)) return 0;
    return n;
}

void cli_json_text(FILE *out, const char *text, size_t length) {
    const unsigned char *at = (const unsigned char *)text;
    fputc('"', out);
    for (size_t i = 0, n; i < length; i += n) {
        n = utf8_length(at + i, length - i);
        if (n == 0) {
            fputs("\\ufffd", out);
            n = 1;
        } else if (at[i] == '"' || at[i] == '\\') {
            fprintf(out, "\\%c", at[i]);
        } else if (at[i] == '\n') {
            fputs("\\n", out);
        } else if (at[i] < 0x20 || at[i] == 0x7f) {
            fprintf(out, "\\u%04x", at[i]);
        } else {
            fwrite(at + i, 1, n, out);
        }
    }
    fputc('"', out);
}

void cli_json_string(FILE *out, const char *text) {
    cli_json_text(out, text, strlen(text));
}

void cli_json_number(FILE *out, double number) {
    if (isfinite(number))
        fprintf(out, "%.10g", number);
    else
        fputs("null", out);
}

int cli_file_read(cli_args *args, const char *path, char **text, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) return cli_fail(args, MOE_ERR_INPUT, "%s: %s", path, strerror(errno));
    char *data = NULL;
    size_t used = 0, room = 0;
    bool fits = true;
    do {
        if (room - used < 65536) {
            char *larger = realloc(data, room = room * 2 + 131072);
            fits = larger != NULL;
            if (!fits) break;
            data = larger;
        }
        used += fread(data + used, 1, room - used - 1, file);
    } while (!feof(file) && !ferror(file));
    int code = 0;
    if (!fits)
        code = cli_fail(args, MOE_ERR_MEMORY, "%s: does not fit into memory", path);
    else if (ferror(file))
        code = cli_fail(args, MOE_ERR_INPUT, "%s: %s", path, strerror(errno));
    fclose(file);
    if (code) {
        free(data);
        return code;
    }
    data[used] = '\0';
    *text = data;
    *length = used;
    return 0;
}

/* Where a file of this path stands. */
static bool directory_of(const char *path, char *directory, size_t size) {
    const char *slash = strrchr(path, '/');
    const int n = slash ? snprintf(directory, size, "%.*s", (int)(slash - path) + 1, path)
                        : snprintf(directory, size, ".");
    return n > 0 && (size_t)n < size;
}

/* Of a full disk how much is missing, as the library's writers say it. */
static int fail_to_write(cli_args *args, const char *path, size_t length, int why) {
    char room[96] = "", directory[4096];
    struct statvfs info;
    if ((why == ENOSPC || why == EDQUOT) && directory_of(path, directory, sizeof directory) &&
        statvfs(directory, &info) == 0)
        snprintf(room, sizeof room, "; %zu bytes are needed, its file system has %llu free", length,
                 (unsigned long long)info.f_bavail * info.f_frsize);
    return cli_fail(args, MOE_ERR_IO, "%s: %s%s", path, strerror(why), room);
}

int cli_file_write(cli_args *args, const char *path, const char *text, size_t length) {
    char part[4096];
    if (snprintf(part, sizeof part, "%s.part", path) >= (int)sizeof part)
        return cli_fail(args, MOE_ERR_ARGUMENT, "%s: the path is too long", path);
    FILE *file = fopen(part, "wb");
    if (!file) return fail_to_write(args, path, length, errno);
    bool written = fwrite(text, 1, length, file) == length && fflush(file) == 0 && fsync(fileno(file)) == 0;
    int why = errno;
    bool closed = fclose(file) == 0;
    if (written && !closed) why = errno;
    if (written && closed && rename(part, path) == 0) return 0;
    if (written && closed) why = errno;
    remove(part);
    return fail_to_write(args, path, length, why);
}

bool cli_file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

bool cli_is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

int cli_output_check(cli_args *args, const char *path) {
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return cli_fail(args, MOE_ERR_ARGUMENT, "%s: is there and is no plain file; name another", path);
    char directory[4096];
    if (!directory_of(path, directory, sizeof directory))
        return cli_fail(args, MOE_ERR_ARGUMENT, "%s: the path is too long", path);
    if (access(directory, W_OK | X_OK) == 0) return 0;
    return cli_fail(args, MOE_ERR_IO, "%s: cannot write there: %s", path, strerror(errno));
}

bool cli_program_find(const char *name, char *path, size_t size) {
    const char *list = getenv("PATH");
    for (const char *at = list ? list : ""; *at;) {
        size_t n = strcspn(at, ":");
        int written = snprintf(path, size, "%.*s/%s", (int)n, at, name);
        if (written > 0 && (size_t)written < size && access(path, X_OK) == 0) return true;
        at += n + (at[n] == ':');
    }
    return false;
}

double cli_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
