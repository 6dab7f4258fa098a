/* order_rows_sm90.cu: whether rows by index are put in order before products read them: rows[R, d] by a copy.
 * Products load rows by index with cp.async, whose writes to shared memory each take a clock from the tensor
 * cores, and contiguous ones by the copy engine, whose writes take none.
 */
#include "kernel/kernel_list.h"

/* What that saves grows with the experts' width, once their rows fill tiles; a copy of a row costs the same
 * for any. */
enum { WIDE_HIDDEN = 4096, FULL_GROUP = 1024 };

extern "C" bool moei_order_rows__sm90(const moei_team *team, const moei_copy_rows_args *args,
                                      int64_t n_groups, int64_t hidden) {
    if (hidden < WIDE_HIDDEN || args->rows < n_groups * FULL_GROUP) return false;
    moei_copy_rows__cuda(team, args);
    return true;
}
