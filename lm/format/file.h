/* file.h: whole files read, mapped and written so that a crash or a full disk never leaves half of one.
 * Sizes are bytes; a path in a message is the path the caller gave. Input faults are MOE_ERR_INPUT,
 * faults of writing MOE_ERR_IO, and both carry the system's own words. */
#ifndef MOELM_FILE_H
#define MOELM_FILE_H

#include <moekit/moe.h>

/* Reads a regular file. A NUL follows the last byte, so text may be used as a string. Files smaller than
 * min_bytes (1: empty ones) or larger than max_bytes are refused. Free *data with free(). */
moe_status moelm_file_read(const char *path, size_t min_bytes, size_t max_bytes, char **data, size_t *bytes,
                           moe_error *error);

/* A file mapped for reading. An empty file maps to data "" and 0 bytes. The file must not be shortened while
 * it is mapped; files written by moelm_file_* are replaced, never changed, so they never are. */
typedef struct moelm_file_map {
    const unsigned char *data;
    size_t bytes;
} moelm_file_map;
moe_status moelm_file_map_open(const char *path, moelm_file_map *map, moe_error *error);
void moelm_file_map_close(moelm_file_map *map);
/* Bytes [first, first + bytes), as far as they are in the map: soon to be read, and read for now, so that the
 * whole pages among them need not stay. What is asked for is a hint. */
void moelm_file_map_ahead(const moelm_file_map *map, size_t first, size_t bytes);
void moelm_file_map_done(const moelm_file_map *map, size_t first, size_t bytes);

/* Replaces a file in one step: readers see the old bytes or the new ones, also after a kill or power cut. */
moe_status moelm_file_write(const char *path, const void *data, size_t bytes, moe_error *error);

/* The same as a stream. A device or pipe is written to directly; else the bytes go to `<path>.tmp-<pid>`,
 * which commit syncs and renames. expect_bytes is checked against the free space first and told when the disk
 * fills up; 0: unknown. commit and abort both free the writer, whatever they return. */
typedef struct moelm_file_writer moelm_file_writer;
moe_status moelm_file_writer_open(const char *path, uint64_t expect_bytes, moelm_file_writer **writer,
                                  moe_error *error);
moe_status moelm_file_writer_put(moelm_file_writer *writer, const void *data, size_t bytes, moe_error *error);
moe_status moelm_file_writer_commit(moelm_file_writer *writer, moe_error *error);
void moelm_file_writer_abort(moelm_file_writer *writer);

bool moelm_file_exists(const char *path); /* whatever it is */
bool moelm_dir_exists(const char *path);
/* Whether two paths are one directory, one regular file, or one place where nothing is yet. */
bool moelm_path_same(const char *a, const char *b);
/* MOE_ERR_IO when the file system that path lies (or will lie) on has fewer than `bytes` free. */
moe_status moelm_file_check_space(const char *path, uint64_t bytes, moe_error *error);
/* Makes a directory and its missing parents; one that exists is fine. */
moe_status moelm_dir_make(const char *path, moe_error *error);

/* Paths in new memory, NULL when there is none left; free with free(). */
char *moelm_path_join(const char *dir, const char *name); /* "dir/name" */
char *moelm_path_parent(const char *path);                /* "." and "/" where nothing is left */
/* "<path>.tmp-<pid>": where a writer works before it renames. */
char *moelm_path_temp(const char *path);

/* Marks an open file or directory as being written. The mark goes with the process, so sweeping knows
 * leftovers from work in progress. False: somebody else holds it. */
bool moelm_file_lock(int fd);
/* Makes renames and new names inside a directory durable. */
moe_status moelm_dir_sync(const char *path, moe_error *error);

#endif
