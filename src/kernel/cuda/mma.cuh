/* mma.cuh: the instructions of sm_80 and newer that kernels with tensor cores are made of, one function each.
 * Shared-memory addresses are 32-bit. The 32 lanes of a warp call what is `.aligned` together.
 * Source: PTX ISA 8.x, sections cp.async, ldmatrix, mma.
 */
#ifndef MOEI_MMA_CUH
#define MOEI_MMA_CUH

#include <cuda_bf16.h>
#include <stdint.h>

namespace moei {

__device__ __forceinline__ uint32_t smem_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* 16 bytes to shared memory while the thread goes on, or zeros; then nothing is read. */
__device__ __forceinline__ void cp_async16(uint32_t dst, const void *src, bool valid) {
    asm volatile("{\n .reg .pred zeros;\n"
                 " setp.eq.u32 zeros, %2, 0;\n"
                 " cp.async.cg.shared.global [%0], [%1], 16, zeros;\n}" ::"r"(dst),
                 "l"(src), "r"((uint32_t)valid)
                 : "memory");
}
/* Ends a group of this thread's copies; waits until all but its last PENDING groups have landed. */
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Words of shared memory. */
__device__ __forceinline__ void shared_load(uint32_t &v, uint32_t src) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(src) : "memory");
}
__device__ __forceinline__ void shared_load(uint2 &v, uint32_t src) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(src) : "memory");
}
__device__ __forceinline__ void shared_load(uint4 &v, uint32_t src) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(src)
                 : "memory");
}
__device__ __forceinline__ void shared_store(uint32_t dst, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(dst), "r"(v) : "memory");
}
__device__ __forceinline__ void shared_store8(uint32_t dst, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(dst), "f"(a), "f"(b) : "memory");
}
__device__ __forceinline__ void shared_store16(uint32_t dst, const uint32_t (&v)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]),
                 "r"(v[3])
                 : "memory");
}

/* 8x8 matrices from shared memory; lane l gives the address of row l%8 of matrix l/8 and gets of each matrix
 * row l/4, columns 2(l%4) and the next; transposed, rows 2(l%4) and the next of column l/4. */
__device__ __forceinline__ void ldmatrix(uint32_t (&v)[4], uint32_t src) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(src)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&v)[4], uint32_t src) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(src)
                 : "memory");
}

/* d += A B of a 16 x 16 and a 16 x 8 tile: lane l has rows l/4 (a0, a2) and l/4+8 (a1, a3) of the first at
 * steps 2(l%4), +1 (a0, a1) and +8, +9 (a2, a3), and column l/4 of the second there; of d rows l/4 and
 * l/4+8, columns 2(l%4) and the next. Volatile: products stay where a pipeline puts them between its loads.
 */
__device__ __forceinline__ void mma16816(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

} // namespace moei
#endif
