/* file.h: whole files read, mapped and written so that a crash or a full disk never leaves half of one.
 * Sizes are bytes; a path in a message is the path the caller gave. Input faults are MOE_ERR_INPUT,
 * faults of writing MOE_ERR_IO, and both carry the system's own words. */
#ifndef MOEI_FILE_H
#define MOEI_FILE_H

#include <moekit/moe.h>

/* Reads a regular file. A NUL follows the last byte, so text may be used as a string. Files smaller than
 * min_bytes (1: empty ones) or larger than max_bytes are refused. Free *data with free(). */
moe_status moei_file_read(const char *path, size_t min_bytes, size_t max_bytes, char **data, size_t *bytes,
                          moe_error *error);

/* A file mapped for reading. An empty file maps to data "" and 0 bytes. The file must not be shortened while
 * it is mapped; files written by moei_file_* are replaced, never changed, so they never are. */
typedef struct moei_file_map {
    const unsigned char *data;
    size_t bytes;
} moei_file_map;
moe_status moei_file_map_open(const char *path, moei_file_map *map, moe_error *error);
void moei_file_map_close(moei_file_map *map);

/* Replaces a file in one step: readers see the old bytes or the new ones, also after a kill or power cut. */
moe_status moei_file_write(const char *path, const void *data, size_t bytes, moe_error *error);

/* The same as a stream. A device or pipe is written to directly; else the bytes go to `<path>.tmp-<pid>`,
 * which commit syncs and renames. expect_bytes is checked against the free space first and told when the disk
 * fills up; 0: unknown. commit and abort both free the writer, whatever they return. */
typedef struct moei_file_writer moei_file_writer;
moe_status moei_file_writer_open(const char *path, uint64_t expect_bytes, moei_file_writer **writer,
                                 moe_error *error);
moe_status moei_file_writer_put(moei_file_writer *writer, const void *data, size_t bytes, moe_error *error);
moe_status moei_file_writer_commit(moei_file_writer *writer, moe_error *error);
void moei_file_writer_abort(moei_file_writer *writer);

bool moei_file_exists(const char *path); /* whatever it is */
bool moei_dir_exists(const char *path);
/* MOE_ERR_IO when the file system that path lies (or will lie) on has fewer than `bytes` free. */
moe_status moei_file_check_space(const char *path, uint64_t bytes, moe_error *error);
/* Makes a directory and its missing parents; one that exists is fine. */
moe_status moei_dir_make(const char *path, moe_error *error);

/* Paths in new memory, NULL when there is none left; free with free(). */
char *moei_path_join(const char *dir, const char *name); /* "dir/name" */
char *moei_path_parent(const char *path);                /* "." and "/" where nothing is left */
/* "<path>.tmp-<pid>": where a writer works before it renames. */
char *moei_path_temp(const char *path);

/* Marks an open file or directory as being written. The mark goes with the process, so sweeping knows
 * leftovers from work in progress. False: somebody else holds it. */
bool moei_file_lock(int fd);
/* Makes renames and new names inside a directory durable. */
moe_status moei_dir_sync(const char *path, moe_error *error);

#endif
