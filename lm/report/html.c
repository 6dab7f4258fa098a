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

void moelm_html_free(moelm_html *html) {
    free(html->data);
    *html = (moelm_html){0};
}

static bool reserve(moelm_html *html, size_t extra) {
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

static void append(moelm_html *html, const char *bytes, size_t n_bytes) {
    if (!reserve(html, n_bytes)) return;
    memcpy(html->data + html->length, bytes, n_bytes);
    html->length += n_bytes;
    html->data[html->length] = '\0';
}

void moelm_html_put(moelm_html *html, const char *markup) {
    append(html, markup, strlen(markup));
}

void moelm_html_printf(moelm_html *html, const char *format, ...) {
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
    size_t length = moelm_utf8_decode(s, left, &code);
    bool control = (code < 0x20 && code != '\t' && code != '\n') || (code >= 0x7f && code < 0xa0);
    return length == 0 || control || code == 0xfffe || code == 0xffff ? 0 : length;
}

void moelm_html_bytes(moelm_html *html, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes;) {
        size_t length = character(bytes + i, n_bytes - i);
        if (length == 0) {
            moelm_html_printf(html, "\\x%02x", (unsigned)(unsigned char)bytes[i]);
            ++i;
            continue;
        }
        switch (bytes[i]) {
        case '&':
            moelm_html_put(html, "&amp;");
            break;
        case '<':
            moelm_html_put(html, "&lt;");
            break;
        case '>':
            moelm_html_put(html, "&gt;");
            break;
        case '"':
            moelm_html_put(html, "&quot;");
            break;
        case '\'':
            moelm_html_put(html, "&#39;");
            break;
        default:
            append(html, bytes + i, length);
        }
        i += length;
    }
}

void moelm_html_text(moelm_html *html, const char *text) {
    moelm_html_bytes(html, text, strlen(text));
}

/* Spaces, marks of direction and others that leave no ink. */
static bool is_blank(uint32_t code) {
    return code == '\t' || code == 0xa0 || code == 0xad || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200f) || (code >= 0x2028 && code <= 0x202f) ||
           (code >= 0x205f && code <= 0x206f) || code == 0x3000 || code == 0xfeff;
}

void moelm_html_token(moelm_html *html, const char *bytes, size_t n_bytes) {
    enum { MOST = 24 };
    for (size_t i = 0, shown = 0; i < n_bytes; ++shown) {
        uint32_t code = 0;
        size_t length = moelm_utf8_decode(bytes + i, n_bytes - i, &code);
        if (length == 0) length = 1;
        if (shown == MOST) {
            moelm_html_put(html, "\xe2\x80\xa6");
            return;
        }
        if (bytes[i] == ' ') {
            moelm_html_put(html, "\xe2\x90\xa3");
        } else if (bytes[i] == '\n') {
            moelm_html_put(html, "\xe2\x8f\x8e");
        } else if (is_blank(code)) {
            for (size_t b = 0; b < length; ++b)
                moelm_html_printf(html, "\\x%02x", (unsigned)(unsigned char)bytes[i + b]);
        } else {
            moelm_html_bytes(html, bytes + i, length);
        }
        i += length;
    }
}

void moelm_section_begin(moelm_html *html, const char *id, const char *heading) {
    moelm_html_printf(html, "<section id=\"%s\" aria-labelledby=\"%s-h\">\n<h2 id=\"%s-h\">%s</h2>\n", id, id,
                      id, heading);
}

void moelm_section_end(moelm_html *html) {
    moelm_html_put(html, "</section>\n");
}

void moelm_html_missing(moelm_html *html, const char *sentence) {
    moelm_html_printf(html, "<p class=\"missing\">%s</p>\n", sentence);
}

/* The box can be scrolled with the keyboard, hence the tabindex and the region's name. */
void moelm_table_begin(moelm_html *html, const char *class_name, const char *caption,
                       const char *const *headings) {
    moelm_html_printf(html,
                      "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"%s\">"
                      "<table class=\"%s\"><caption>%s</caption>\n<thead><tr>",
                      caption, class_name, caption);
    for (; *headings; ++headings) moelm_html_printf(html, "<th scope=\"col\">%s</th>", *headings);
    moelm_html_put(html, "</tr></thead>\n<tbody>\n");
}

void moelm_table_row(moelm_html *html, const char *head) {
    moelm_html_put(html, "<tr><th scope=\"row\">");
    moelm_html_text(html, head);
    moelm_html_put(html, "</th>");
}

void moelm_table_cell(moelm_html *html, const char *text) {
    moelm_html_put(html, "<td>");
    moelm_html_text(html, text);
    moelm_html_put(html, "</td>");
}

void moelm_table_row_end(moelm_html *html) {
    moelm_html_put(html, "</tr>\n");
}

void moelm_table_end(moelm_html *html) {
    moelm_html_put(html, "</tbody></table></div>\n");
}
