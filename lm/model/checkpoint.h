/* checkpoint.h: a model's files inside a directory that the caller publishes.
 * Shapes as in families/family.h.
 * Source: Hugging Face's checkpoint layout. */
#ifndef MOELM_CHECKPOINT_H
#define MOELM_CHECKPOINT_H

#include <moekit/lm.h>

/* Writes config.json and model.safetensors into an existing directory. */
moe_status moelm_checkpoint_write(moe_lm *lm, const char *directory);

#endif
