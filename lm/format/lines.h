/* lines.h: an append-only file of lines (metrics.jsonl) that survives crashes.
 * A line is written with its newline in one call or not at all; a torn last line is cut when the file is
 * opened again, and so are the lines of steps that a resumed run will repeat. */
#ifndef MOEI_LINES_H
#define MOEI_LINES_H

#include <moekit/moe.h>

typedef struct moei_lines moei_lines;
/* Says whether a line [length bytes, no newline, not NUL-terminated] stays. */
typedef bool (*moei_lines_keep_fn)(void *user, const char *line, size_t length);

/* Opens or makes the file. Lines are kept from the first up to the one that keep refuses, which is cut
 * together with all that follow. keep NULL: every complete line stays. */
moe_status moei_lines_open(const char *path, moei_lines_keep_fn keep, void *user, moei_lines **lines,
                           moe_error *error);
/* text without newlines; one is added. On failure the file is as before. */
moe_status moei_lines_append(moei_lines *lines, const char *text, moe_error *error);
moe_status moei_lines_sync(moei_lines *lines, moe_error *error);
void moei_lines_close(moei_lines *lines);

#endif
