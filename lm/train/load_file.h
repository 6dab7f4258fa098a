/* load_file.h: load.bin, the rows per layer and expert over time (docs/run-directory.md).
 * Records are appended whole or not at all; opening cuts what a resumed run will write again.
 */
#ifndef MOELM_LOAD_FILE_H
#define MOELM_LOAD_FILE_H

#include "train/load.h"

typedef struct moelm_load_file moelm_load_file;
/* Opens or makes the file for layers of this shape. Records of steps after `step` are cut. */
moe_status moelm_load_file_open(const char *path, const moelm_load *shape, int64_t step,
                                moelm_load_file **file, moe_error *error);
/* One record: the rows since the last one, up to and with `step`. On failure the file is as before. */
moe_status moelm_load_file_append(moelm_load_file *file, int64_t step, const moelm_load *load,
                                  moe_error *error);
moe_status moelm_load_file_sync(moelm_load_file *file, moe_error *error);
void moelm_load_file_close(moelm_load_file *file);

#endif
