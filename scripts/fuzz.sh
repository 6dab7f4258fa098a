#!/bin/bash
# fuzz.sh SECONDS [BUILD_DIR]: runs every fuzz target that long; inputs that crash go to BUILD_DIR/findings.
# New inputs are kept in BUILD_DIR/corpus, so that a longer run starts where the last one ended.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
seconds=${1:?usage: fuzz.sh SECONDS [BUILD_DIR]}
build=${2:-build/fuzz}
mkdir -p "$build/findings"
failed=0
ran=0
for program in "$build"/fuzz/fuzz_*; do
    [ -x "$program" ] || continue
    name=$(basename "$program")
    name=${name#fuzz_}
    corpus=("$build/corpus/$name")
    mkdir -p "${corpus[0]}"
    if [ -d "tests/fuzz/corpus/$name" ]; then corpus+=("tests/fuzz/corpus/$name"); fi
    ran=$((ran + 1))
    if "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$build/findings/$name-" "${corpus[@]}" >"$build/$name.log" 2>&1; then
        echo "ok   fuzz/$name ($(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$name.log") inputs in $seconds s)"
    else
        echo "FAIL fuzz/$name (see $build/$name.log)"
        tail -n 40 "$build/$name.log" >&2
        failed=$((failed + 1))
    fi
done
if ((ran == 0)); then
    echo "FAIL fuzz: no fuzz target in $build" >&2
    exit 1
fi
exit $((failed > 0))
