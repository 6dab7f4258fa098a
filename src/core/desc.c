/* desc.c: the one rule by which structs that begin with their size may grow.
 * given[given size] -> ours[our size], zero-filled or checked for zeros; and back, never past its end.
 * Source: NCCL's and Linux's (copy_struct_from_user) versioned structs.
 */
#include "core/desc.h"

#include <moekit/expert.h>
#include <moekit/quant.h>
#include <stddef.h>
#include <string.h>

/* A field that grew into padding would read what an older caller left there: a struct says its last bytes. */
#define ENDS_WITH_RESERVED(type)                                                                             \
    _Static_assert(offsetof(type, reserved) + sizeof((type *)0)->reserved == sizeof(type), #type)
ENDS_WITH_RESERVED(moe_ctx_desc);
ENDS_WITH_RESERVED(moe_layer_desc);
ENDS_WITH_RESERVED(moe_call);
ENDS_WITH_RESERVED(moe_expert_io);
ENDS_WITH_RESERVED(moe_expert_ops);
ENDS_WITH_RESERVED(moe_quant_desc);
ENDS_WITH_RESERVED(moe_packed_desc);

static moe_status read_size(const void *given, size_t our_size, const char *name, size_t *size,
                            moe_error *error) {
    *size = 0;
    if (!given) return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: the pointer is NULL", name);
    memcpy(size, given, sizeof *size);
    if (*size > sizeof *size && *size <= 16 * our_size) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s.size is %zu; set it to sizeof(%s) = %zu", name, *size,
                          name, our_size);
}

moe_status moei_desc_read(void *ours, size_t our_size, const void *given, const char *name,
                          moe_error *error) {
    size_t size;
    MOEI_TRY(read_size(given, our_size, name, &size, error));
    for (size_t i = our_size; i < size; ++i)
        if (((const unsigned char *)given)[i] != 0)
            return moei_error_set(
                error, MOE_ERR_UNSUPPORTED,
                "%s: byte %zu is set, but this library knows %zu bytes; it is older than the "
                "header the caller was built with",
                name, i, our_size);
    memset(ours, 0, our_size);
    memcpy(ours, given, size < our_size ? size : our_size);
    memcpy(ours, &our_size, sizeof our_size);
    return MOE_OK;
}

moe_status moei_desc_check_out(const void *out, size_t our_size, const char *name, moe_error *error) {
    size_t size;
    return read_size(out, our_size, name, &size, error);
}

moe_status moei_desc_write(void *out, const void *ours, size_t our_size, const char *name, moe_error *error) {
    size_t size;
    MOEI_TRY(read_size(out, our_size, name, &size, error));
    memcpy(out, ours, size < our_size ? size : our_size);
    memcpy(out, &size, sizeof size);
    if (size > our_size) memset((char *)out + our_size, 0, size - our_size);
    return MOE_OK;
}
