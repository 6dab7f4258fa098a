/* few_halves.cuh: how many rows of an expert are of the first tokens and how many of the others, in one word.
 * Few tokens are sorted by expert in every block alike, by counting in shared memory, where who counts first
 * is anybody's guess. What is shared out between blocks is therefore told by the tokens: those below a limit,
 * and those from it on, of which an expert has at most as many, as a token chooses an expert once.
 */
#ifndef MOEI_FEW_HALVES_CUH
#define MOEI_FEW_HALVES_CUH

namespace moei {

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
