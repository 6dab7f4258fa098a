/* test_machine.c: the memory of a machine, and what a container leaves of it.
 * Files as the kernel writes them below /sys/fs/cgroup. Source: the kernel's cgroup-v2 and memory (version 1)
 * documents.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "core/machine.h"

static void test_memory(void **state) {
    const double all = moei_machine_memory("/nonexistent");
    assert_true(all > 1 << 20);
    char *file = scratch_path(state, "memory.max");
    scratch_put(file, "max\n", 4);
    assert_true(moei_machine_memory(*state) == all);
    scratch_put(file, "1048576\n", 8);
    assert_true(moei_machine_memory(*state) == 1048576);
    scratch_put(file, "9223372036854771712\n", 20); /* how version 1 says that there is none */
    assert_true(moei_machine_memory(*state) == all);
    free(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_memory, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
