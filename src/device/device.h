/* device.h: the devices beside the CPU. CMake takes one of device_cuda.c and device_none.c. */
#ifndef MOEI_DEVICE_H
#define MOEI_DEVICE_H

#include "core/memory.h"

extern const moei_device moei_device_cuda;

/* Of device_cuda.c: the driver's cuTensorMapEncodeTiled, so that nothing links against the driver. */
void *moei_cuda_encode(void);

#endif
