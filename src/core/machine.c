/* machine.c: what the system tells of the machine.
 * Nothing here decides anything: the kernels ask the processor itself.
 * Source: /proc/cpuinfo of Linux, "model name" of its first processor; the kernel's cgroup-v2 (cpu.max) and
 * scheduler/sched-bwc (version 1) documents.
 */
#include "core/machine.h"

#include <moekit/op.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void moe_cpu_name(char *text, size_t size) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[512];
    if (!text) size = 0;
    if (size > 0) text[0] = '\0';
    while (file && fgets(line, sizeof line, file)) {
        const char *value = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (!value) continue;
        value += strspn(value, ": \t");
        snprintf(text, size, "%.*s", (int)strcspn(value, "\n"), value);
        break;
    }
    if (file) fclose(file);
}

/* Whole numbers at the beginning of root/name; how many were read. */
static int numbers_in(const char *root, const char *name, long long number[2]) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    const int read = fscanf(file, "%lld %lld", &number[0], &number[1]);
    fclose(file);
    return read > 0 ? read : 0;
}

double moei_machine_memory(const char *root) {
    static const char *const files[] = {"memory.max", "memory/memory.limit_in_bytes"};
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    double bytes = pages > 0 && page > 0 ? (double)pages * (double)page : 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i) {
        long long limit[2] = {0, 0};
        if (numbers_in(root, files[i], limit) == 0 || limit[0] <= 0) continue; /* "max": no limit */
        if (bytes == 0 || (double)limit[0] < bytes) bytes = (double)limit[0];
    }
    return bytes;
}

double moe_machine_memory(void) {
    return moei_machine_memory("/sys/fs/cgroup");
}

int32_t moei_machine_quota(const char *root) {
    long long quota[2] = {0, 0}, period[2] = {0, 0}; /* microseconds of each period that may be used */
    if (numbers_in(root, "cpu.max", quota) == 2)     /* of "max 100000" none is read */
        period[0] = quota[1];
    else if (numbers_in(root, "cpu/cpu.cfs_quota_us", quota) == 0 || /* -1: no limit */
             numbers_in(root, "cpu/cpu.cfs_period_us", period) == 0)
        return 0;
    if (quota[0] <= 0 || period[0] <= 0 || quota[0] / period[0] >= INT32_MAX) return 0;
    return (int32_t)(quota[0] / period[0] + (quota[0] % period[0] != 0));
}
