/* identity_fixture.h: the layer that identities of the whole layer are held on.
 * d 37, 7 experts, 3 a token: nothing divides a vector.
 * Source: moekit/moe.h.
 */
#ifndef IDENTITY_FIXTURE_H
#define IDENTITY_FIXTURE_H

#include "support/layer_fixture.h"

static inline moe_layer_desc base_desc(void) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .d_model = 37,
                            .num_experts = 7,
                            .top_k = 3,
                            .expert_hidden_size = 19,
                            .expert_bias = true,
                            .aux_loss_coeff = 0.01f,
                            .z_loss_coeff = 0.001f};
}

#endif
