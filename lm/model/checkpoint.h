/* checkpoint.h: a model's files inside a directory that the caller publishes.
 * Shapes as in families/family.h.
 * Source: Hugging Face's checkpoint layout. */
#ifndef MOELM_CHECKPOINT_H
#define MOELM_CHECKPOINT_H

#include <moekit/lm.h>

/* moe_lm_load_with without its warning. */
moe_status moelm_checkpoint_open(moe_ctx *ctx, const char *directory, const moe_lm_load_desc *desc,
                                 moe_lm **lm);
/* init_from.c: moe_lm_init_from, whose warnings go to told[size]; "": none. */
enum { MOELM_TOLD = 800 };
moe_status moelm_init_from(moe_lm *lm, const char *directory, char *told, size_t size);
/* Writes config.json and model.safetensors into an existing directory. */
moe_status moelm_checkpoint_write(moe_lm *lm, const char *directory);

#endif
