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

/* Where these last bytes begin, of the structs that callers fill. */
static const struct {
    const char *name;
    size_t begin;
} reserved_of[] = {
    {"moe_ctx_desc",    offsetof(moe_ctx_desc,    reserved)},
    {"moe_layer_desc",  offsetof(moe_layer_desc,  reserved)},
    {"moe_call",        offsetof(moe_call,        reserved)},
    {"moe_expert_ops",  offsetof(moe_expert_ops,  reserved)},
    {"moe_quant_desc",  offsetof(moe_quant_desc,  reserved)},
    {"moe_packed_desc", offsetof(moe_packed_desc, reserved)}
};

/* A newer caller's field would stand there, and nothing here would heed it. */
static moe_status check_reserved(const unsigned char *ours, size_t our_size, const char *name,
                                 moe_error *error) {
    size_t begin = our_size;
    for (size_t i = 0; i < sizeof reserved_of / sizeof *reserved_of; ++i)
        if (strcmp(name, reserved_of[i].name) == 0) begin = reserved_of[i].begin;
    for (size_t i = begin; i < our_size; ++i)
        if (ours[i] != 0)
            return moei_error_set(
                error, MOE_ERR_UNSUPPORTED,
                "%s.reserved[%zu] is %d; it must be 0: this library knows no field there, so "
                "the struct was not cleared, or the caller's header is newer",
                name, i - begin, ours[i]);
    return MOE_OK;
}

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
    return check_reserved(ours, our_size, name, error);
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
