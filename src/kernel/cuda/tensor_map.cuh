/* tensor_map.cuh: descriptions of matrices for the copy engine, made on the host.
 * A 3-D map is [groups, rows, columns]; boxes are 64 columns (one 128-byte swizzle row) wide.
 * Source: CUDA driver API, cuTensorMapEncodeTiled.
 */
#ifndef MOEI_TENSOR_MAP_CUH
#define MOEI_TENSOR_MAP_CUH

#include "core/thread.h"

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace moei {

typedef CUresult EncodeTiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                             const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                             CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                             CUtensorMapFloatOOBfill);

/* What the driver cannot describe is not for the kernels that ask. */
static inline cudaError_t described(CUresult result) {
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorNotSupported;
}

inline cudaError_t make_map(const moei_team *team, CUtensorMap *map, const void *data, int64_t columns,
                            int64_t rows, int64_t groups, int64_t ld, uint32_t box_rows, bool three_d) {
    EncodeTiled *const encode = (EncodeTiled *)team->encode;
    if (!encode) return cudaErrorNotSupported;
    const cuuint64_t dim[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)groups};
    const cuuint64_t stride[2] = {(cuuint64_t)ld * 2, (cuuint64_t)(rows * ld) * 2};
    const cuuint32_t box[3] = {64, box_rows, 1}, step[3] = {1, 1, 1};
    return described(encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, three_d ? 3 : 2, (void *)data, dim, stride,
                            box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

/* Rows of ragged groups, [rows, halves, columns]: a box reaches to its group's end and no further. The rows
 * are bounded by RAGGED_ROWS, of which a box uses the last: coordinate RAGGED_ROWS - (row_end - row). Two
 * more dimensions of the same stride move it to where it stands, +row_end, and back, -RAGGED_ROWS rows: 2^30
 * times (2^34 - stride) is that modulo 2^64. Source: Triton's ragged descriptors. `halves` 0: no such
 * dimension. wide: of f32, boxes are 32 columns. */
inline cudaError_t make_ragged_map(const moei_team *team, CUtensorMap *map, const void *data, int64_t columns,
                                   int halves, int64_t ld, uint32_t box_rows, bool wide) {
    EncodeTiled *const encode = (EncodeTiled *)team->encode;
    if (!encode) return cudaErrorNotSupported;
    const cuuint64_t size = wide ? sizeof(float) : sizeof(uint16_t);
    const cuuint64_t rows = 1 << 30, any = 0x7fff0000, row_bytes = (cuuint64_t)ld * size;
    const cuuint64_t back = ((cuuint64_t)1 << 34) - row_bytes, half_bytes = (cuuint64_t)columns * size;
    const cuuint64_t dim4[4] = {(cuuint64_t)columns, rows, any, any};
    const cuuint64_t dim5[5] = {(cuuint64_t)columns, (cuuint64_t)halves, rows, any, any};
    const cuuint64_t stride4[3] = {row_bytes, row_bytes, back};
    const cuuint64_t stride5[4] = {half_bytes, row_bytes, row_bytes, back};
    const cuuint32_t line = (cuuint32_t)(128 / size);
    const cuuint32_t box4[4] = {line, box_rows, 1, 1}, box5[5] = {line, 1, box_rows, 1, 1},
                     step[5] = {1, 1, 1, 1, 1};
    return described(encode(map, wide ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                            halves ? 5 : 4, (void *)data, halves ? dim5 : dim4, halves ? stride5 : stride4,
                            halves ? box5 : box4, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

inline cudaError_t multiprocessors(int *count) {
    int device;
    cudaError_t error = cudaGetDevice(&device);
    return error ? error : cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

} // namespace moei
#endif
