#!/bin/bash
# cuda_code.sh CUOBJDUMP OBJECT...: the portable CUDA kernels have code for Hopper, in which alone they start before
# the kernel ahead has ended (early.cuh), whatever GPU the machine that built them has. 77, skipped, without cuobjdump.
set -uo pipefail
cuobjdump=$1
shift
if [ ! -x "$cuobjdump" ]; then
    echo "no cuobjdump (CUDA toolkit)"
    exit 77
fi
failed=0
[ $# -gt 0 ] || failed=1
for object in "$@"; do
    if ! "$cuobjdump" --list-elf "$object" | grep -q '\.sm_90\.cubin'; then
        echo "$(basename "$object"): no code for sm_90"
        failed=1
    fi
done
exit $failed
