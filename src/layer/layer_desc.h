/* layer_desc.h: from what the caller wrote to a complete, checked descriptor. */
#ifndef MOEI_LAYER_DESC_H
#define MOEI_LAYER_DESC_H

#include "core/ctx.h"

moe_status moei_layer_desc_fill(moe_ctx *ctx, const moe_layer_desc *given, moe_layer_desc *filled);

#endif
