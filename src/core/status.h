/* status.h: how a failure is told. The function that recognises a fault writes the text; its callers
 * only pass the status up with MOEI_TRY.
 */
#ifndef MOEI_STATUS_H
#define MOEI_STATUS_H

#include <moekit/moe.h>

#include <stdarg.h>

#define MOEI_TRY(call)                                                                                       \
    do {                                                                                                     \
        moe_status moei_try_status = (call);                                                                 \
        if (moei_try_status != MOE_OK) return moei_try_status;                                               \
    } while (0)

/* Formats the text into `error` (NULL: dropped) and returns `status`. */
moe_status moei_error_set(moe_error *error, moe_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A pointer that the public function `call` needs: NULL is refused by its name. */
moe_status moei_error_need(moe_error *error, const char *call, const char *field, const void *ptr);
moe_status moei_error_setv(moe_error *error, moe_status status, const char *format, va_list args);

#endif
