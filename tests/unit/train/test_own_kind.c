/* test_own_kind.c: models trained with a kind of expert of the caller's own (scale_kind.h).
 * What the optimizer keeps is wide whatever a kind says of its gradients.
 */
#include "unit/train/train_fixture.h"

#include "support/scale_kind.h"

#include <math.h>

#define LAST "checkpoints/step-00000012"

/* Gradients rounded to bf16 train as f32 ones do, but for the rounding, and to the bit on resuming. */
static void test_bf16_gradients(void **state) {
    static const char *const pairs[] = {"model.dtype", "bf16", "moe.expert", "scale", NULL};
    scale_habit wide = {.name = "scale", .grad_dtype = MOE_F32},
                narrow = {.name = "scale", .grad_dtype = MOE_BF16};
    const moe_expert_ops plain = scale_kind(&wide), halved = scale_kind(&narrow);
    train_result of_wide = train_run(state, &(train_setup){.dir = "wide", .pairs = pairs, .kind = &plain});
    train_must(&of_wide);
    train_result whole = train_run(state, &(train_setup){.dir = "whole", .pairs = pairs, .kind = &halved});
    train_must(&whole);
    assert_true(whole.last.loss < whole.first_loss);
    assert_true(whole.first_loss == of_wide.first_loss);
    assert_true(whole.last.loss != of_wide.last.loss);
    if (!(fabs(whole.last.loss - of_wide.last.loss) < 0.01))
        fail_msg("loss %g, with f32 gradients %g", whole.last.loss, of_wide.last.loss);
    train_result part =
        train_run(state, &(train_setup){.dir = "parts", .stop_after = 6, .pairs = pairs, .kind = &halved});
    train_must_fail(&part, MOE_ERR_INTERRUPTED, "stopped after step");
    part = train_run(state, &(train_setup){.dir = "parts", .resume = true, .pairs = pairs, .kind = &halved});
    train_must(&part);
    assert_true(part.last.loss == whole.last.loss);
    train_same_file(state, "whole", "parts", LAST "/model.safetensors");
    train_same_file(state, "whole", "parts", LAST "/optimizer.safetensors");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bf16_gradients, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
