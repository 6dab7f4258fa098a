/* checksum.h: whether the tensors of a training checkpoint are still those that were written.
 * "sha256" in trainer.json: {"model.safetensors": 64 hexadecimal digits, "optimizer.safetensors": ..}.
 * Source: docs/run-directory.md. */
#ifndef MOELM_CHECKSUM_H
#define MOELM_CHECKSUM_H

#include <jansson.h>
#include <moekit/moe.h>

/* Of model.safetensors and optimizer.safetensors in `directory`. Free *sums with json_decref. */
moe_status moelm_checksum_make(const char *directory, json_t **sums, moe_error *error);
/* MOE_ERR_INPUT: directory/name is not what trainer.json beside it records. Where there is no trainer.json,
 * or none that records this file, there is nothing to compare, and all is well. */
moe_status moelm_checksum_check(const char *directory, const char *name, moe_error *error);

#endif
