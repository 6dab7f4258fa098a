/* machine.c: what the system tells of the machine.
 * Nothing here decides anything: the kernels ask the processor itself.
 * Source: /proc/cpuinfo of Linux, "model name" of its first processor.
 */
#include <moekit/moe.h>

#include <stdio.h>
#include <string.h>

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
