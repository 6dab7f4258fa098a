/* utf8.c: one character of UTF-8.
 * Bytes in, code point out.
 * Source: RFC 3629.
 */
#include "format/utf8.h"

size_t moelm_utf8_decode(const char *text, size_t left, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *at = (const unsigned char *)text;
    if (left == 0) return 0;
    size_t length = *at < 0x80 ? 1 : *at >> 5 == 6 ? 2 : *at >> 4 == 14 ? 3 : *at >> 3 == 30 ? 4 : 0;
    if (length == 0 || length > left) return 0;
    uint32_t value = length == 1 ? *at : *at & (0x7FU >> length);
    for (size_t i = 1; i < length; i++) {
        if (at[i] >> 6 != 2) return 0;
        value = value << 6 | (at[i] & 0x3FU);
    }
    if (value < least[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return 0;
    *code = value;
    return length;
}

size_t moelm_utf8_span(const char *text, size_t left, bool *broken, bool *begun) {
    const unsigned char *at = (const unsigned char *)text;
    size_t length = *at < 0x80                  ? 1
                    : *at >= 0xC2 && *at < 0xE0 ? 2
                    : *at >> 4 == 14            ? 3
                    : *at >= 0xF0 && *at < 0xF5 ? 4
                                                : 0;
    unsigned char low = *at == 0xE0 ? 0xA0 : *at == 0xF0 ? 0x90 : 0x80; /* no overlong forms */
    unsigned char high = *at == 0xED   ? 0x9F
                         : *at == 0xF4 ? 0x8F
                                       : 0xBF; /* no surrogates, none above U+10FFFF */
    size_t span = 1;
    for (; span < length && span < left && at[span] >= low && at[span] <= high; ++span) {
        low = 0x80;
        high = 0xBF;
    }
    *begun = span < length && span == left;
    *broken = span < length ? !*begun : length == 0;
    return span;
}
