/* locale.h: numbers with a decimal point, whatever locale the program has set. Files, settings and pages are
 * read by others, so they never follow it.
 */
#ifndef MOEI_LOCALE_H
#define MOEI_LOCALE_H

#include <locale.h>

/* Sets the calling thread's locale to "C"; leave gives back what enter returned. */
locale_t moei_locale_enter(void);
void moei_locale_leave(locale_t before);

/* strtod under "C". */
double moei_real_parse(const char *text, char **end);

#endif
