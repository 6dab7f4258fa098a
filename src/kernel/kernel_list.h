/* kernel_list.h: declares the function of every row of kernel.def. A kernel file includes it, so that the
 * compiler holds its definition against the type in kernel.h.
 */
#ifndef MOEI_KERNEL_LIST_H
#define MOEI_KERNEL_LIST_H

#include "kernel/kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MOEI_KERNEL(op, type, function, isa, serves) type function;
#include "kernel/kernel.def"
#undef MOEI_KERNEL

#ifdef __cplusplus
}
#endif

#endif
