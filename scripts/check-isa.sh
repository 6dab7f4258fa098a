#!/bin/bash
# check-isa.sh [REGEX]: the x86-64 build on processors that lack vector instructions, emulated by qemu-user, where
# an instruction that the processor does not have is an illegal one: Nehalem (SSE4, so the reference kernels) and
# Haswell (AVX2). The right kernels are chosen, asking for more than there is is refused in words, and the tests
# of kernels and layer pass. Needs qemu-x86_64 and an x86-64 machine; else 77, skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/release
if [ "$(uname -m)" != x86_64 ] || ! command -v qemu-x86_64 >/dev/null; then
    echo "no qemu-x86_64 (Debian: qemu-user), or no x86-64 machine"
    exit 77
fi
cmake --preset release --log-level=WARNING >/dev/null
cmake --build --preset release

failed=0 met=0
fail() {
    echo "FAIL $1"
    failed=$((failed + 1))
}

for row in Nehalem:ref:avx2 Haswell:avx2:avx512; do
    IFS=: read -r cpu isa above <<<"$row"
    emulate=(qemu-x86_64 -cpu "$cpu")
    chosen=$({ "${emulate[@]}" $build/moekit doctor 2>/dev/null || true; } | sed -n 's/^isa in use *//p')
    [ "$chosen" = "$isa" ] || fail "$cpu: kernels of '$chosen', not of '$isa'"
    rc=0
    MOEKIT_ISA=$above "${emulate[@]}" $build/moekit bench layer 'e4,t16,d32,n32,k2' >build/isa.log 2>&1 || rc=$?
    if [ $rc -eq 0 ] || [ $rc -gt 127 ] || ! grep -q "$above" build/isa.log; then
        fail "$cpu: MOEKIT_ISA=$above gave $rc: $(tail -n 1 build/isa.log)"
    fi
    for test in $build/tests/kernel.test_* $build/tests/unit.layer.test_layer{,_bf16,_zero,_reserve}; do
        [[ $(basename "$test") =~ ${1:-.} ]] || continue
        met=$((met + 1)) start=$SECONDS rc=0
        "${emulate[@]}" "$test" >build/isa.log 2>&1 || rc=$?
        if [ $rc -eq 0 ]; then
            echo "ok   $cpu $(basename "$test") ($((SECONDS - start)) s)"
        elif [ $rc -eq 77 ]; then
            echo "skip $cpu $(basename "$test"): $(tail -n 1 build/isa.log)"
        else
            tail -n 20 build/isa.log
            fail "$cpu $(basename "$test"): exit status $rc"
        fi
    done
done
[ $met -gt 0 ] || fail "no test's name matches '${1:-.}'"
[ $failed -eq 0 ]
