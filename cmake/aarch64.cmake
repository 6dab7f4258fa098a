# Toolchain of scripts/check-arm.sh: 64-bit Arm by Debian's cross compiler, its programs run by qemu-user.
# MOEKIT_ARM_ROOT holds the libraries of that machine which Debian's cross packages do not bring (cmocka).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_C_FLAGS_INIT -fno-tree-vectorize) # GCC 12's vectoriser for this machine dies of a test; kernels need none
# What pkg-config says of this machine's libraries is of no use there.
set(ENV{PKG_CONFIG_LIBDIR} "${MOEKIT_ARM_ROOT}/usr/lib/aarch64-linux-gnu/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${MOEKIT_ARM_ROOT}")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MOEKIT_ARM_ROOT)
set(CMAKE_CROSSCOMPILING_EMULATOR
    "qemu-aarch64;-L;/usr/aarch64-linux-gnu;-E;LD_LIBRARY_PATH=${MOEKIT_ARM_ROOT}/usr/lib/aarch64-linux-gnu")
