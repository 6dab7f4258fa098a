#!/bin/bash
# check-arm.sh: cross-compiles libmoekit for 64-bit Arm and runs the tests of kernels and layer under qemu-user.
# Needs aarch64-linux-gnu-gcc, qemu-aarch64 and, for cmocka of that machine, Debian's apt-get; else 77, skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/arm-root
for tool in aarch64-linux-gnu-gcc qemu-aarch64 cmake ninja pkg-config; do
    if ! command -v $tool >/dev/null; then
        echo "no $tool (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        exit 77
    fi
done

# The package lists of the other machine stay in build/, those of this one as they are.
if ! compgen -G "$root/usr/lib/aarch64-linux-gnu/libcmocka.so*" >/dev/null; then
    mkdir -p "$root/lists/partial" "$root/debs"
    apt_arm=(apt-get -qq "-oAPT::Architectures::=$(dpkg --print-architecture)" -oAPT::Architectures::=arm64
        "-oDir::State::Lists=$root/lists")
    if ! "${apt_arm[@]}" update || ! (cd "$root/debs" && "${apt_arm[@]}" download libcmocka0:arm64 libcmocka-dev:arm64); then
        echo "no cmocka for arm64"
        exit 77
    fi
    for package in "$root"/debs/*.deb; do dpkg -x "$package" "$root"; done
fi

cmake -S . -B build/arm -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake "-DMOEKIT_ARM_ROOT=$root" \
    -DCMAKE_BUILD_TYPE=Release -DMOEKIT_WERROR=ON -DMOEKIT_LM=OFF -DMOEKIT_CUDA=OFF
cmake --build build/arm
ctest --test-dir build/arm --output-on-failure --parallel "$(nproc)" \
    -R "${1:-^(kernel|unit/(core|kernel|route|dispatch|experts|combine|loss|layer))/}"
