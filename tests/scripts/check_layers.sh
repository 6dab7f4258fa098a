#!/bin/bash
# Each law of scripts/check-layers.sh is broken once, in a small tree of its own, and must be named.
set -uo pipefail
check=$PWD/scripts/check-layers.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failed=0

plant() { # FILE, its text on stdin
    mkdir -p "$tree/$(dirname "$1")" && cat >"$tree/$1"
}

# breaks EXPECTED FILE, the text on stdin: the file must be named together with the law.
breaks() {
    local expected=$1 file=$2 said
    plant "$file"
    if said=$("$check" "$tree"); then
        echo "passed, but must not: $file ($expected)"
        failed=1
    elif ! grep -q "^$file:[0-9]*: .*$expected" <<<"$said"; then
        printf 'wrong complaint about %s: expected "%s", got\n%s\n' "$file" "$expected" "$said"
        failed=1
    fi
    rm "$tree/$file"
}

lines() { seq "$1" | sed 's,.*,    x += 1;,'; }

plant include/moekit/moe.h <<<'#ifndef MOEKIT_MOE_H
#define MOEKIT_MOE_H
#ifdef __cplusplus
#endif
#endif'
plant src/core/log.h <<<'#ifndef MOEI_LOG_H'
plant src/route/gate.c <<<'#include <moekit/moe.h>
#include "core/log.h"
#include "flow.h"
#include "kernel/kernel.h"'
plant src/layer/layer.c <<<'#include "route/gate.h"'
plant src/kernel/gemm/gemm_avx2.c <<<'#include <immintrin.h>
#ifdef __AVX2__'
plant src/kernel/cuda/gemm.cu <<<'#include <cuda_bf16.h>
#include "kernel/cuda/tile.cuh"
#if __CUDA_ARCH__ >= 900'
plant lm/model/model.c <<<'#include "core/log.h"
#include "format/json.h"'
plant tools/moekit/main.c <<<'#include "cmd.h"'
plant tests/unit/test_gate.c <<<'#include "route/gate.h"
#include <jansson.h>'
{ echo 'int longest_allowed(int x) {' && lines 58 && echo '}'; } | plant src/loss/longest.c
lines 500 | plant src/loss/long_file.c
lines 800 | plant src/kernel/long_kernel.c
if ! "$check" "$tree"; then
    echo "the lawful tree must pass"
    failed=1
fi

breaks 'does not see' src/route/peek.c <<<'#include "dispatch/plan.h"'
breaks 'does not see' src/loss/peek.c <<<'#include "layer/layer.h"'
breaks 'does not see' src/combine/peek.c <<<'#include "kernel/cpuid.h"'
breaks 'does not see' src/core/peek.c <<<'#include "flow.h"'
breaks 'does not see' src/kernel/peek.c <<<'#include "route/gate.h"'
breaks 'does not see' src/kernel/cuda/peek.cu <<<'#include "flow.h"'
breaks 'does not see' src/experts/peek.c <<<'#include "kernel/cuda/cuda_kernel.h"'
breaks 'does not see' src/layer/peek.c <<<'#include "model/model.h"'
breaks 'does not see' lm/model/peek.c <<<'#include "layer/layer.h"'
breaks 'does not see' lm/format/peek.c <<<'#include "model/model.h"'
breaks 'does not see' tools/moekit/peek.c <<<'#include "core/log.h"'
breaks 'does not see' examples/peek.c <<<'#include "core/log.h"'
breaks 'belongs to' src/experts/fast.c <<<'#include <immintrin.h>'
breaks 'belongs to' src/experts/fast.cu <<<'#include <cuda_runtime.h>'
breaks 'belongs to' lm/model/reads.c <<<'#include <yaml.h>'
breaks 'conditional compilation' src/route/fork.c <<<'#ifdef __x86_64__'
breaks 'conditional compilation' include/moekit/fork.h <<<'#if defined(_WIN32)'
breaks 'pasted' src/route/paste.h <<<'#define NAME(x) \
    moei_##x'
breaks 'a second gate.c' src/route/more/gate.c <<<'int x;'
breaks 'a second gemm.cu' src/kernel/gemm.cu <<<'int x;'
breaks 'no folder of the table' src/misc/stray.c <<<'int x;'
breaks 'a file of 501 lines' src/loss/too_long.c < <(lines 501)
breaks 'a file of 801 lines' src/kernel/too_long_kernel.c < <(lines 801)
breaks 'a file of 801 lines' src/kernel/cuda/too_long.cuh < <(lines 801)
breaks 'a file of 501 lines' tests/unit/test_too_long.c < <(lines 501)
breaks 'belongs to' tests/unit/test_reads.c <<<'#include <yaml.h>'
breaks 'a function of 61 lines' src/loss/too_far.c < <(echo 'int f(int x) {' && lines 59 && echo '}')
breaks 'a function of 151 lines' src/kernel/too_far_kernel.c < <(echo 'int f(int x,' && lines 149 && echo '}')
exit $failed
