/* html.h: a growing text of HTML: escaping, numbers, bytes made visible, tables.
 * Markup is written so that it is also well-formed XML. A failed allocation is remembered and every later
 * call does nothing, so that writers need not check each line. Numbers never depend on the locale.
 */
#ifndef MOELM_HTML_H
#define MOELM_HTML_H

#include <moekit/moe.h>

typedef struct moelm_html {
    char *data; /* NUL-terminated once anything was put */
    size_t length, room;
    bool failed;
} moelm_html;
void moelm_html_free(moelm_html *html);

void moelm_html_put(moelm_html *html, const char *markup);
/* Markup with integers and with strings that are markup already; reals go through moelm_report_text. */
void moelm_html_printf(moelm_html *html, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Escaped text. What is not UTF-8, and control bytes other than tab and newline, appear as \xNN. */
void moelm_html_text(moelm_html *html, const char *text);
void moelm_html_bytes(moelm_html *html, const char *bytes, size_t n_bytes);
/* The text of a token, with a shape: space U+2423, newline U+23CE, others that leave no ink \xNN; behind 24
 * characters U+2026 stands for the rest. */
void moelm_html_token(moelm_html *html, const char *bytes, size_t n_bytes);

/* A short text by value, so that it can stand in an argument list. Holds no character to escape. */
typedef struct moelm_report_text {
    char s[48];
} moelm_report_text;
moelm_report_text moelm_fixed(double value, int decimals);   /* "1.50", "-" if not finite */
moelm_report_text moelm_coord(double value);                 /* "1.5", "2": short, for pictures */
moelm_report_text moelm_digits(double value, int digits);    /* three digits: "41,000", "0.0123", "1.2e-5" */
moelm_report_text moelm_short(double value);                 /* "1.64 M", "41.0 k", "312" */
moelm_report_text moelm_count(int64_t value);                /* "1,638,400" */
moelm_report_text moelm_percent(double share, int decimals); /* 0.125: "12.5 %" */
moelm_report_text moelm_duration(double seconds);            /* "1 min 58 s" */

/* A section of the page with its heading; ended by moelm_section_end. */
void moelm_section_begin(moelm_html *html, const char *id, const char *heading);
void moelm_section_end(moelm_html *html);
/* A paragraph that says why something is not shown. */
void moelm_html_missing(moelm_html *html, const char *sentence);

/* A table that scrolls inside its own box. Headings are markup, NULL-terminated; the first column heads
 * its row. Cells are escaped. */
void moelm_table_begin(moelm_html *html, const char *class_name, const char *caption,
                       const char *const *headings);
void moelm_table_row(moelm_html *html, const char *head);
void moelm_table_cell(moelm_html *html, const char *text);
void moelm_table_row_end(moelm_html *html);
void moelm_table_end(moelm_html *html);

#endif
