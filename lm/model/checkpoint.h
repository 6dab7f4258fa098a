/* checkpoint.h: a model's files inside a directory that the caller publishes.
 * Shapes as in families/family.h.
 * Source: Hugging Face's checkpoint layout. */
#ifndef MOELM_CHECKPOINT_H
#define MOELM_CHECKPOINT_H

#include <moekit/lm.h>

/* moe_lm_load_as without its warning. */
moe_status moelm_checkpoint_open(moe_ctx *ctx, const char *directory, const char *dtype, moe_lm **lm);
/* Writes config.json and model.safetensors into an existing directory. */
moe_status moelm_checkpoint_write(moe_lm *lm, const char *directory);
/* Every parameter of a model that is there from the directory's; other tensors than it has are told. On an
 * error some may have been read. */
moe_status moelm_checkpoint_read(moe_lm *lm, const char *directory);

#endif
