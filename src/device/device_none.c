/* device_none.c: stands for CUDA in a build without nvcc: a context for it cannot be made.
 * Source: the rule that what is legal but not built in is MOE_ERR_UNSUPPORTED and says what would be right.
 */
#include "core/ctx.h"
#include "device/device.h"

#include <moekit/cuda.h>

static const char without[] =
    "this libmoekit was built without CUDA; build it where nvcc 12.5 or newer is (-DMOEKIT_CUDA=ON)";

static moe_status none_open(moe_ctx *ctx) {
    return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED, "device cuda: %s", without);
}

const moei_device moei_device_cuda = {.name = "cuda", .open = none_open};

moe_status moe_cuda_set_stream(moe_ctx *ctx, void *stream) {
    if (!ctx) return MOE_ERR_ARGUMENT;
    (void)stream;
    return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED, "moe_cuda_set_stream: %s", without);
}

void *moe_cuda_stream(const moe_ctx *ctx) {
    (void)ctx;
    return NULL;
}
