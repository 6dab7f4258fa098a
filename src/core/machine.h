/* machine.h: what the system tells of the machine, beside the public moe_cpu_name. */
#ifndef MOEI_MACHINE_H
#define MOEI_MACHINE_H

#include <stdint.h>

/* Cores' worth of time that the control group mounted at `root` leaves its processes, rounded up: what
 * containers are limited by, as their affinity still names all cores. 0: no limit is told. */
int32_t moei_machine_quota(const char *root);
/* moe_machine_memory, of the control group mounted at `root`. */
double moei_machine_memory(const char *root);

#endif
