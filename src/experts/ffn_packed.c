/* ffn_packed.c: FFN experts whose weights are packed in few bits, for inference.
 * up[E,d,n or 2n] and down[E,n,d_out] are packed; biases stay. Formats: moekit/quant.h.
 */
#include "experts/ffn.h"

/* A fused gated activation reads gate and up columns as two runs; one that is a pass of its own reads Z. */
static int32_t up_runs(const moei_ffn *f) {
    return f->fused && f->rule.gated ? 2 : 1;
}

moe_status moei_ffn_pack(const void *self, const moe_quant_desc *desc, moe_packed *made[MOEI_FFN_MATRICES]) {
    const moei_ffn *f = self;
    for (int i = 0; i < MOEI_FFN_MATRICES; ++i) {
        const bool up = i == MOEI_FFN_UP;
        const moe_packed_desc packed = {.size = sizeof packed,
                                        .format = desc->format,
                                        .group = desc->group,
                                        .dtype = f->desc.dtype,
                                        .n_groups = f->desc.n_experts,
                                        .k = up ? f->desc.d_in : f->desc.d_hidden,
                                        .n = up ? f->d_z : f->desc.d_out,
                                        .n_runs = up ? up_runs(f) : 1};
        const moe_status status = moe_packed_create(f->ctx, &packed, f->value[i], &made[i]);
        if (status == MOE_OK) continue;
        while (i > 0) moe_packed_destroy(made[--i]);
        return status;
    }
    return MOE_OK;
}

void moei_ffn_use_packed(void *self, moe_packed *const packed[MOEI_FFN_MATRICES], bool drop) {
    moei_ffn *f = self;
    for (int i = 0; i < MOEI_FFN_MATRICES; ++i) {
        moe_packed_destroy(f->packed[i]);
        f->packed[i] = packed[i];
        if (drop) moei_ffn_drop(f, i);
    }
}
