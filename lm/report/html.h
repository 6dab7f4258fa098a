/* html.h: a growing text of HTML: escaping, numbers, bytes made visible, tables.
 * Markup is written so that it is also well-formed XML. A failed allocation is remembered and every later
 * call does nothing, so that writers need not check each line. Numbers never depend on the locale.
 */
#ifndef MOEI_HTML_H
#define MOEI_HTML_H

#include <moekit/moe.h>

typedef struct moei_html {
    char *data; /* NUL-terminated once anything was put */
    size_t length, room;
    bool failed;
} moei_html;
void moei_html_free(moei_html *html);

void moei_html_put(moei_html *html, const char *markup);
/* Markup with integers and with strings that are markup already; reals go through moei_text. */
void moei_html_printf(moei_html *html, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Escaped text. What is not UTF-8, and control bytes other than tab and newline, appear as \xNN. */
void moei_html_text(moei_html *html, const char *text);
void moei_html_bytes(moei_html *html, const char *bytes, size_t n_bytes);
/* A byte token with a shape: space U+2423, newline U+23CE, others that do not print \xNN; from 256 on #n. */
void moei_html_token(moei_html *html, int64_t token);

/* A short text by value, so that it can stand in an argument list. Holds no character to escape. */
typedef struct moei_text {
    char s[48];
} moei_text;
moei_text moei_fixed(double value, int decimals);   /* "1.50", "-" if not finite */
moei_text moei_coord(double value);                 /* "1.5", "2": short, for pictures */
moei_text moei_digits(double value, int digits);    /* three digits: "41,000", "0.0123", "1.2e-5" */
moei_text moei_short(double value);                 /* "1.64 M", "41.0 k", "312" */
moei_text moei_count(int64_t value);                /* "1,638,400" */
moei_text moei_percent(double share, int decimals); /* 0.125: "12.5 %" */
moei_text moei_duration(double seconds);            /* "1 min 58 s" */

/* A section of the page with its heading; ended by moei_section_end. */
void moei_section_begin(moei_html *html, const char *id, const char *heading);
void moei_section_end(moei_html *html);
/* A paragraph that says why something is not shown. */
void moei_html_missing(moei_html *html, const char *sentence);

/* A table that scrolls inside its own box. Headings are markup, NULL-terminated; the first column heads
 * its row. Cells are escaped. */
void moei_table_begin(moei_html *html, const char *class_name, const char *caption,
                      const char *const *headings);
void moei_table_row(moei_html *html, const char *head);
void moei_table_cell(moei_html *html, const char *text);
void moei_table_row_end(moei_html *html);
void moei_table_end(moei_html *html);

#endif
