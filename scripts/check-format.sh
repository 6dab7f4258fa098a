#!/bin/bash
# check-format.sh [--fix]: every C and CUDA file is as clang-format 14 writes it (.clang-format).
# Other versions disagree with version 14 about a few lines, so they are not asked: exit code 77, skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=
for candidate in clang-format-14 clang-format; do
    if command -v $candidate >/dev/null && $candidate --version | grep -q 'version 14\.'; then
        tool=$candidate
        break
    fi
done
if [ -z "$tool" ]; then
    echo "clang-format 14 is not here"
    exit 77
fi
mode=(--dry-run --Werror)
if [ "${1:-}" = --fix ]; then mode=(-i); fi
find include src lm tools tests examples bench '(' -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' ')' \
    -print0 2>/dev/null | xargs -0 -r "$tool" "${mode[@]}"
