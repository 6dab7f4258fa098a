/* status.c: status names and error texts.
 * The names are those of the enum without MOE_ERR_, in lower case.
 * Source: exit codes of the command, docs/architecture.md.
 */
#include "core/status.h"

#include <stdio.h>

moe_status moei_error_setv(moe_error *error, moe_status status, const char *format, va_list args) {
    if (error) {
        error->status = status;
        vsnprintf(error->text, sizeof error->text, format, args);
    }
    return status;
}

moe_status moei_error_need(moe_error *error, const char *call, const char *field, const void *ptr) {
    if (ptr) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: %s is NULL; this call needs it", call, field);
}

moe_status moei_error_set(moe_error *error, moe_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    moei_error_setv(error, status, format, args);
    va_end(args);
    return status;
}
