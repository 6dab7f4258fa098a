/* publish.h: a directory of files that appears whole or not at all (a checkpoint).
 * Files are written below `<dir>.tmp-<pid>`; commit syncs them all and swaps the directory into place, so a
 * process killed at any moment leaves the old directory as it was, and a leftover that sweep removes. */
#ifndef MOELM_PUBLISH_H
#define MOELM_PUBLISH_H

#include <moekit/moe.h>

typedef struct moelm_publish moelm_publish;
/* Missing parents of dir are made. A leftover of a dead process in the way is removed. */
moe_status moelm_publish_begin(const char *dir, moelm_publish **publish, moe_error *error);
/* The directory to write into until commit. */
const char *moelm_publish_path(const moelm_publish *publish);
/* Both free the handle, whatever they return; a failed commit has removed what was written. An existing dir
 * is replaced by commit. */
moe_status moelm_publish_commit(moelm_publish *publish, moe_error *error);
void moelm_publish_abort(moelm_publish *publish);

/* Whether a file or directory of this name is written by the caller. */
typedef bool (*moelm_publish_name_fn)(const char *name);
/* Removes what killed writers left directly inside parent: `<name>.tmp-<pid>` of files and directories whose
 * writer is gone. Puts back a directory whose replacement was cut short. Names that are not `ours` are left
 * alone. */
moe_status moelm_publish_sweep(const char *parent, moelm_publish_name_fn ours, size_t *n_removed,
                               moe_error *error);

#endif
