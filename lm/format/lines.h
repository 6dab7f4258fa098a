/* lines.h: an append-only file of lines (metrics.jsonl) that survives crashes.
 * A line is written with its newline in one call or not at all; a torn last line is cut when the file is
 * opened again, and so are the lines of steps that a resumed run will repeat. */
#ifndef MOELM_LINES_H
#define MOELM_LINES_H

#include <moekit/moe.h>

typedef struct moelm_lines moelm_lines;
/* Says whether a line [length bytes, no newline, not NUL-terminated] stays. */
typedef bool (*moelm_lines_keep_fn)(void *user, const char *line, size_t length);

/* Opens or makes the file. Lines are kept from the first up to the one that keep refuses, which is cut
 * together with all that follow. keep NULL: every complete line stays. */
moe_status moelm_lines_open(const char *path, moelm_lines_keep_fn keep, void *user, moelm_lines **lines,
                            moe_error *error);
/* text without newlines; one is added. On failure the file is as before. */
moe_status moelm_lines_append(moelm_lines *lines, const char *text, moe_error *error);
moe_status moelm_lines_sync(moelm_lines *lines, moe_error *error);
void moelm_lines_close(moelm_lines *lines);

#endif
