/* few_halves.cuh: how many rows of an expert belong to the first tokens and how many to the others, in one
 * word. Every block sorts the few tokens by expert for itself, by counting in shared memory, where the order
 * of counting is left to chance. Blocks that share an expert therefore divide its rows by token: those below
 * a limit and those from it on. As a token chooses an expert once, each part has at most as many rows as
 * tokens.
 */
#ifndef MOEI_FEW_HALVES_CUH
#define MOEI_FEW_HALVES_CUH

#include "kernel/cuda/portable.cuh"

#include <stdint.h>

namespace moei {

/* Rows of an expert that are done together: its choices from `first` on. */
struct Listed {
    int16_t expert, first, rows;
};

/* Up to 32 choices by expert, a lane each (expert -1: none), no expert listed twice: `choice` and its token
 * by place. One warp; how many experts are listed. */
__device__ __forceinline__ int sort_by_warp(int expert, int token, Listed *listed, int16_t *choice,
                                            int16_t *of_token) {
    const int lane = threadIdx.x & 31;
    const uint32_t before = (1u << lane) - 1, same = __match_any_sync(~0u, expert);
    const int leader = __ffs((int)same) - 1;
    const bool leads = lane == leader && expert >= 0;
    const uint32_t leaders = __ballot_sync(~0u, leads);
    const int rows = leads ? __popc(same) : 0, own_first = warp_prefix(rows) - rows;
    if (leads) listed[__popc(leaders & before)] = {(int16_t)expert, (int16_t)own_first, (int16_t)rows};
    const int at = __shfl_sync(~0u, own_first, leader) + __popc(same & before);
    if (expert >= 0) choice[at] = (int16_t)lane, of_token[at] = (int16_t)token;
    return __popc(leaders);
}

struct Halves {
    bool second; /* which half a choice is of */

    enum { SECOND_AT = 16, MASK = (1 << SECOND_AT) - 1 };
    /* One more choice; how many of its half were counted before. */
    __device__ __forceinline__ int count(int *counted) const {
        const int before = atomicAdd(counted, second ? 1 << SECOND_AT : 1);
        return second ? before >> SECOND_AT : before & MASK;
    }
    static __device__ __forceinline__ int first(int counted) { return counted & MASK; }
    static __device__ __forceinline__ int both(int counted) {
        return (counted & MASK) + (counted >> SECOND_AT);
    }
    /* Parts of an expert: one where its rows are `most` at most, else one a half. */
    static __device__ __forceinline__ int parts(int counted, int most) {
        return (both(counted) > 0) + (both(counted) > most);
    }
    /* Writes them to `to`, the expert's choices beginning at `at`. */
    static __device__ __forceinline__ void list(Listed *to, int expert, int at, int counted, int most) {
        const int rows = both(counted), earlier = rows > most ? first(counted) : rows;
        if (rows > 0) to[0] = {(int16_t)expert, (int16_t)at, (int16_t)earlier};
        if (rows > most) to[1] = {(int16_t)expert, (int16_t)(at + earlier), (int16_t)(rows - earlier)};
    }
    /* Where an expert's choices begin, and above it where those of its second half do, seen from there. */
    static __device__ __forceinline__ int begin(int at, int counted) {
        return at | first(counted) << SECOND_AT;
    }
    __device__ __forceinline__ int place(int begun, int rank) const {
        return (begun & MASK) + (second ? begun >> SECOND_AT : 0) + rank;
    }
};

} // namespace moei
#endif
