/* locale.c: the "C" locale for one thread and a while.
 * "C" is always there and takes no memory, so nothing here can fail.
 * Source: uselocale(3) of POSIX 2008; setlocale would change other threads too.
 */
#include "core/locale.h"

#include <stdlib.h>

locale_t moei_locale_enter(void) {
    return uselocale(newlocale(LC_ALL_MASK, "C", (locale_t)0));
}

void moei_locale_leave(locale_t before) {
    freelocale(uselocale(before));
}

double moei_real_parse(const char *text, char **end) {
    locale_t before = moei_locale_enter();
    double number = strtod(text, end);
    moei_locale_leave(before);
    return number;
}
