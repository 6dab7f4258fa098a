/* both.cuh: the small C functions that kernels of the CPU and of the GPU share, compiled for both.
 * Their headers say `static inline`; here that also means __host__ __device__, by a macro that no other
 * header may meet: what those three include stands before it.
 */
#ifndef MOEI_BOTH_CUH
#define MOEI_BOTH_CUH

#include <math.h>
#include <string.h>

#include "kernel/stage.h"

#define inline __host__ __device__ __inline__
#include "core/philox.h"
#include "kernel/act.h"
#include "kernel/mxfp8.h"
#undef inline

#endif
