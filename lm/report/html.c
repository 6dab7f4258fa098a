/* html.c: the text buffer, escaping and tables of the report.
 * Bytes in, UTF-8 out; every character allowed in XML 1.0, so strict parsers accept the page.
 * Source: HTML living standard (void and raw text elements), RFC 3629 (UTF-8).
 */
#include "report/html.h"
#include "format/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void moei_html_free(moei_html *html) {
    free(html->data);
    *html = (moei_html){0};
}

static bool reserve(moei_html *html, size_t extra) {
    if (html->failed) return false;
    if (html->room - html->length > extra) return true;
    size_t room = html->room ? html->room : 1 << 16;
    while (room - html->length <= extra) room *= 2;
    char *data = realloc(html->data, room);
    if (!data) {
        html->failed = true;
        return false;
    }
    html->data = data;
    html->room = room;
    return true;
}

static void append(moei_html *html, const char *bytes, size_t n_bytes) {
    if (!reserve(html, n_bytes)) return;
    memcpy(html->data + html->length, bytes, n_bytes);
    html->length += n_bytes;
    html->data[html->length] = '\0';
}

void moei_html_put(moei_html *html, const char *markup) {
    append(html, markup, strlen(markup));
}

void moei_html_printf(moei_html *html, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    if (length >= 0 && reserve(html, (size_t)length)) {
        vsnprintf(html->data + html->length, (size_t)length + 1, format, again);
        html->length += (size_t)length;
    }
    va_end(again);
    va_end(args);
}

/* Length of the UTF-8 character at `s` that XML may hold and that can be seen, 0 if there is none. */
static size_t character(const char *s, size_t left) {
    uint32_t code = 0;
    size_t length = moei_utf8_decode(s, left, &code);
    bool control = (code < 0x20 && code != '\t' && code != '\n') || (code >= 0x7f && code < 0xa0);
    return length == 0 || control || code == 0xfffe || code == 0xffff ? 0 : length;
}

void moei_html_bytes(moei_html *html, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes;) {
        size_t length = character(bytes + i, n_bytes - i);
        if (length == 0) {
            moei_html_printf(html, "\\x%02x", (unsigned)(unsigned char)bytes[i]);
            ++i;
            continue;
        }
        switch (bytes[i]) {
        case '&':
            moei_html_put(html, "&amp;");
            break;
        case '<':
            moei_html_put(html, "&lt;");
            break;
        case '>':
            moei_html_put(html, "&gt;");
            break;
        case '"':
            moei_html_put(html, "&quot;");
            break;
        case '\'':
            moei_html_put(html, "&#39;");
            break;
        default:
            append(html, bytes + i, length);
        }
        i += length;
    }
}

void moei_html_text(moei_html *html, const char *text) {
    moei_html_bytes(html, text, strlen(text));
}

void moei_html_token(moei_html *html, int64_t token) {
    if (token < 0 || token > 255) {
        moei_html_printf(html, "#%lld", (long long)token);
    } else if (token == ' ') {
        moei_html_put(html, "\xe2\x90\xa3");
    } else if (token == '\n') {
        moei_html_put(html, "\xe2\x8f\x8e");
    } else if (token < 0x20 || token > 0x7e) {
        moei_html_printf(html, "\\x%02x", (unsigned)token);
    } else {
        char byte = (char)token;
        moei_html_bytes(html, &byte, 1);
    }
}

void moei_section_begin(moei_html *html, const char *id, const char *heading) {
    moei_html_printf(html, "<section id=\"%s\" aria-labelledby=\"%s-h\">\n<h2 id=\"%s-h\">%s</h2>\n", id, id,
                     id, heading);
}

void moei_section_end(moei_html *html) {
    moei_html_put(html, "</section>\n");
}

void moei_html_missing(moei_html *html, const char *sentence) {
    moei_html_printf(html, "<p class=\"missing\">%s</p>\n", sentence);
}

/* The box can be scrolled with the keyboard, hence the tabindex and the region's name. */
void moei_table_begin(moei_html *html, const char *class_name, const char *caption,
                      const char *const *headings) {
    moei_html_printf(html,
                     "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"%s\">"
                     "<table class=\"%s\"><caption>%s</caption>\n<thead><tr>",
                     caption, class_name, caption);
    for (; *headings; ++headings) moei_html_printf(html, "<th scope=\"col\">%s</th>", *headings);
    moei_html_put(html, "</tr></thead>\n<tbody>\n");
}

void moei_table_row(moei_html *html, const char *head) {
    moei_html_put(html, "<tr><th scope=\"row\">");
    moei_html_text(html, head);
    moei_html_put(html, "</th>");
}

void moei_table_cell(moei_html *html, const char *text) {
    moei_html_put(html, "<td>");
    moei_html_text(html, text);
    moei_html_put(html, "</td>");
}

void moei_table_row_end(moei_html *html) {
    moei_html_put(html, "</tr>\n");
}

void moei_table_end(moei_html *html) {
    moei_html_put(html, "</tbody></table></div>\n");
}
