/* version.c: the version of the library found at run time, and the names of status and dtypes.
 * The header's MOE_VERSION_NUMBER is the only place a version is written.
 * Source: zstd's pair of compile-time and run-time version.
 */
#include <moekit/moe.h>

#define MOEI_TEXT(number)    #number
#define MOEI_TEXT_OF(number) MOEI_TEXT(number)

int moe_version(void) {
    return MOE_VERSION_NUMBER;
}

const char *moe_version_string(void) {
    return MOEI_TEXT_OF(MOE_VERSION_MAJOR) "." MOEI_TEXT_OF(MOE_VERSION_MINOR) "." MOEI_TEXT_OF(
        MOE_VERSION_PATCH);
}

size_t moe_dtype_bytes(moe_dtype dtype) {
    switch (dtype) {
    case MOE_F64:
        return sizeof(double);
    case MOE_BF16:
        return sizeof(uint16_t);
    case MOE_F32:
        return sizeof(float);
    }
    return 0;
}

const char *moe_status_name(moe_status status) {
    switch (status) {
    case MOE_OK:
        return "ok";
    case MOE_ERR_IO:
        return "io";
    case MOE_ERR_ARGUMENT:
        return "argument";
    case MOE_ERR_INPUT:
        return "input";
    case MOE_ERR_MEMORY:
        return "memory";
    case MOE_ERR_NUMERIC:
        return "numeric";
    case MOE_ERR_COMM:
        return "comm";
    case MOE_ERR_ALARM:
        return "alarm";
    case MOE_ERR_UNSUPPORTED:
        return "unsupported";
    case MOE_ERR_STATE:
        return "state";
    case MOE_ERR_DEVICE:
        return "device";
    case MOE_ERR_INTERNAL:
        return "internal";
    case MOE_ERR_INTERRUPTED:
        return "interrupted";
    }
    return "unknown";
}
