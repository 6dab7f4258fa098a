/* test_machine.c: the memory of a machine, and what a container leaves of it and of its cores.
 * Files as the kernel writes them below /sys/fs/cgroup. Source: the kernel's cgroup-v2, memory and sched-bwc
 * (version 1) documents.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "core/machine.h"

#include <moekit/op.h>

static void test_memory(void **state) {
    const double all = moei_machine_memory("/nonexistent");
    assert_true(all > 1 << 20);
    assert_true(moe_machine_memory() > 1 << 20 && moe_machine_memory() <= all);
    char *file = scratch_path(state, "memory.max");
    scratch_put(file, "max\n", 4);
    assert_true(moei_machine_memory(*state) == all);
    scratch_put(file, "1048576\n", 8);
    assert_true(moei_machine_memory(*state) == 1048576);
    scratch_put(file, "9223372036854771712\n", 20); /* how version 1 says that there is none */
    assert_true(moei_machine_memory(*state) == all);
    free(file);
}

static void test_quota(void **state) {
    static const struct {
        const char *text;
        int32_t cores;
    } cases[] = {
        {"200000 100000\n",                   2      },
        {"50000 100000\n",                    1      },
        {"250000 100000",                     3      },
        {"max 100000\n",                      0      },
        {"0 100000\n",                        0      },
        {"100000 0",                          0      },
        {"9223372036854775807 1",             0      },
        {"9223372036854775807 1099511627776", 8388608},
        {"",                                  0      },
    };
    char *cpu = scratch_path(state, "cpu"), *quota = scratch_path(state, "cpu/cpu.cfs_quota_us"),
         *period = scratch_path(state, "cpu/cpu.cfs_period_us"), *both = scratch_path(state, "cpu.max");
    assert_int_equal(mkdir(cpu, 0700), 0);
    assert_int_equal(moei_machine_quota(*state), 0);
    scratch_put(quota, "150000\n", 7);
    assert_int_equal(moei_machine_quota(*state), 0); /* of what? */
    scratch_put(period, "100000\n", 7);
    assert_int_equal(moei_machine_quota(*state), 2); /* rounded up */
    scratch_put(quota, "-1\n", 3);
    assert_int_equal(moei_machine_quota(*state), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        scratch_put(both, cases[i].text, strlen(cases[i].text));
        assert_int_equal(moei_machine_quota(*state), cases[i].cores);
    }
    free(cpu), free(quota), free(period), free(both);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_memory, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_quota, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
