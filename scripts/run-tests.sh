#!/bin/bash
# run-tests.sh: everything `make check` stands for, cheap checks first. Each line is one check or one test;
# the last line of all is "N passed, N failed"; what was skipped is counted and named before it.
# What a step said is kept in build/check/<step>.log. FUZZ_SECONDS (5) is spent on each fuzz target.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
logs=build/check
mkdir -p "$logs"
passed=0 failed=0 skipped=0
skipped_names=()

# step NAME COMMAND...: one check. 77 means skipped, anything else but 0 failed.
step() {
    local name=$1 log=$logs/$1.log start=$SECONDS rc=0
    shift
    "$@" >"$log" 2>&1 || rc=$?
    case $rc in
        0) echo "ok   $name ($((SECONDS - start)) s)" && passed=$((passed + 1)) ;;
        77) skip "$name: $(tail -n 1 "$log")" ;;
        *)
            echo "FAIL $name ($((SECONDS - start)) s): see $log"
            tail -n 40 "$log"
            failed=$((failed + 1))
            ;;
    esac
    return $rc
}

skip() {
    echo "skip $1"
    skipped=$((skipped + 1))
    skipped_names+=("$1")
}

build() { # PRESET [CMAKE OPTION...]
    cmake --preset "$@" && cmake --build --preset "$1"
}

check_shell() {
    command -v shellcheck >/dev/null || { echo "no shellcheck"; return 77; }
    shellcheck --severity=warning .ci/run scripts/*.sh tests/cli/*.sh tests/scripts/*.sh
}

# libmoekit asks for a compiler and cmake, nothing else. Not optimized, as no other build is; there gcc 12 warns of its
# own macro of _mm512_roundscale_ps.
build_layer_alone() {
    cmake -S . -B build/alone -G Ninja -DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON -DCMAKE_BUILD_TYPE=Debug \
        -DCMAKE_C_FLAGS=-Wno-sign-conversion -DMOEKIT_WERROR=ON -DMOEKIT_LM=OFF -DMOEKIT_TESTS=OFF \
        -DMOEKIT_CUDA=OFF && cmake --build build/alone
}

# The CUDA kernels are compiled where nvcc is and run where a GPU is that they are for.
build_cuda() {
    if ! cmake --build --preset release --target help | grep '^check_moe:' >/dev/null; then
        echo "no nvcc (12.5 or newer)"
        return 77
    fi
    cmake --build --preset release --target cuda
}

check_moe() {
    if ! nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -x 9.0; then
        echo "not run, no GPU of compute capability 9.0"
        return 77
    fi
    build_cuda && build/release/gpu/check_moe
}

# Where the tests of a suite write: memory with room, if there is some. They sync files a thousand times, and what a
# disk that others use takes for that is no part of what they show.
scratch=${TMPDIR:-/tmp}
room=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && ((${room:-0} >= 1 << 20)); then scratch=/dev/shm; fi

# suite PRESET [COMMAND...]: its tests through CTest, run under a command if one is given; each is counted.
suite() {
    local preset=$1 log=$logs/ctest-$1.log start=$SECONDS counts
    shift
    TMPDIR=$scratch "$@" ctest --preset "$preset" --parallel "$(nproc)" >"$log" 2>&1
    counts=$(sed -n 's/.*tests passed, \([0-9]*\) tests\? failed out of \([0-9]*\)$/\1 \2/p' "$log")
    if [ -z "$counts" ]; then
        step "ctest-$preset-ran" sh -c "tail -n 5 $log; exit 1"
        return
    fi
    local bad=${counts% *} all=${counts#* } name absent=0
    while read -r name; do
        skip "$preset: $name"
        absent=$((absent + 1))
    done < <(sed -n 's/.*Test *#[0-9]*: \([^ ]*\) \.*\*\*\*Skipped.*/\1/p' "$log")
    passed=$((passed + all - bad - absent))
    failed=$((failed + bad))
    if ((bad > 0)); then
        echo "FAIL tests of $preset: $bad of $all ($((SECONDS - start)) s); see $log"
        grep -A 40 -E 'Test +#[0-9]+: .*\*\*\*(Failed|Timeout|Exception|Not Run)' "$log" | head -n 200
    else
        echo "ok   tests of $preset: $((all - absent)) ($((SECONDS - start)) s)"
    fi
}

# ThreadSanitizer of older compilers needs addresses where it expects them.
steady_addresses() {
    if setarch -R true 2>/dev/null; then setarch -R "$@"; else "$@"; fi
}

step dependencies scripts/install-deps.sh check
step format scripts/check-format.sh
step layers scripts/check-layers.sh
step shell check_shell
step build-gcc build release -DCMAKE_C_COMPILER=gcc -DMOEKIT_WERROR=ON && {
    step names scripts/check-names.sh build/release
    step install scripts/check-install.sh build/release
    suite release
    step build-cuda build_cuda
    step check_moe check_moe
}
step build-clang build clang -DMOEKIT_WERROR=ON
step build-layer-alone build_layer_alone
step build-asan build asan && suite asan
step build-tsan build tsan && suite tsan steady_addresses
step build-fuzz build fuzz && step fuzz scripts/fuzz.sh "${FUZZ_SECONDS:-5}"

echo
for name in ${skipped_names[@]+"${skipped_names[@]}"}; do echo "skipped: $name"; done
if ((skipped > 0)); then echo "$skipped skipped"; fi
echo "$passed passed, $failed failed"
exit $((failed > 0))
