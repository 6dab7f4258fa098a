#!/bin/bash
# check-install.sh BUILD_DIR: installs into an empty place, moves it, and builds a program against it: by pkg-config,
# by find_package(moekit), each with the shared library and the static one, and as C++ where a C++ compiler is here.
set -euo pipefail
build=$(realpath "${1:?usage: check-install.sh BUILD_DIR}")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cmake --install "$build" --prefix "$place/first" >"$place/install.log" || { cat "$place/install.log"; exit 1; }
mv "$place/first" "$place/moved"
prefix=$place/moved
cd "$place"

cat >program.c <<'END'
#include <moekit/moe.h>
#include <stdio.h>

int main(void) {
    moe_ctx_desc ctx_desc = {sizeof ctx_desc};
    moe_layer_desc desc = {sizeof desc};
    moe_call call = {sizeof call};
    float x[3 * 8], y[3 * 8];
    moe_error error = {MOE_OK, ""};
    moe_ctx *ctx = NULL;
    moe_layer *layer = NULL;
    desc.d_model = 8, desc.num_experts = 4, desc.expert_hidden_size = 16;
    for (int i = 0; i < 3 * 8; ++i) x[i] = (float)(i % 7) - 3;
    moe_mat in = {x, 3, 8, 0, MOE_F32}, out = {y, 3, 8, 0, MOE_F32};
    if (moe_version() != MOE_VERSION_NUMBER || moe_ctx_create(&ctx_desc, &ctx, &error) ||
        moe_layer_create(ctx, &desc, &layer) || moe_layer_reserve(layer, 3, MOE_INFER) ||
        moe_layer_forward(layer, in, out, &call, NULL)) {
        fprintf(stderr, "failed: %s %s\n", error.text, ctx ? moe_ctx_error(ctx) : "");
        return 1;
    }
    printf("moekit %s: y[0] = %g\n", moe_version_string(), (double)y[0]);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return 0;
}
END
pc=$(find "$prefix" -name moekit.pc -printf '%h')
export PKG_CONFIG_PATH=$pc LD_LIBRARY_PATH=${pc%/pkgconfig}

read -ra flags <<<"$(pkg-config --cflags --libs moekit)"
gcc -std=c17 -Wall -Werror program.c -o with_pkg_config "${flags[@]}"
./with_pkg_config
read -ra static_flags <<<"$(pkg-config --cflags --libs --static moekit)"
gcc -std=c17 -Wall -Werror program.c -o static_by_pkg_config -static "${static_flags[@]}"
env -u LD_LIBRARY_PATH ./static_by_pkg_config
if command -v g++ >/dev/null; then
    g++ -x c++ -Wall -Werror program.c -o as_cxx "${flags[@]}"
    ./as_cxx
fi

cat >CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.22)
project(user C)
find_package(moekit 0.1 REQUIRED COMPONENTS moekit)
add_executable(with_cmake program.c)
target_link_libraries(with_cmake moekit::moekit)
add_executable(static_by_cmake program.c)
target_link_libraries(static_by_cmake moekit::moekit_static)
find_package(moekit QUIET COMPONENTS lm)
if(moekit_FOUND OR NOT moekit_NOT_FOUND_MESSAGE MATCHES "no component 'lm'.* moekit-lm")
    message(FATAL_ERROR "a component that is not there: '${moekit_NOT_FOUND_MESSAGE}'")
endif()
END
cmake -S . -B out -G Ninja -DCMAKE_PREFIX_PATH="$prefix"
cmake --build out
./out/with_cmake
env -u LD_LIBRARY_PATH ./out/static_by_cmake

if [ -e "$pc/moekit-lm.pc" ]; then
    read -ra flags <<<"$(pkg-config --cflags --libs moekit-lm)"
    printf '#include <moekit/lm.h>\nint main(void) { moe_lm_config_destroy(0); return 0; }\n' >models.c
    gcc -std=c17 -Wall -Werror models.c -o models "${flags[@]}"
    ./models
    env -u LD_LIBRARY_PATH "$prefix/bin/moekit" version
fi
