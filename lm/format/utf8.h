/* utf8.h: characters of UTF-8 (RFC 3629): no overlong forms, no surrogates, none above U+10FFFF.
 */
#ifndef MOELM_UTF8_H
#define MOELM_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character that text[0 .. left-1] starts with, *code its number; 0: it starts with none. */
size_t moelm_utf8_decode(const char *text, size_t left, uint32_t *code);
/* Bytes of text[0 .. left-1], left > 0, that are one character, or, broken, stand for one U+FFFD: the longest
 * begin of a character, or one byte that begins none (Unicode 3.9, maximal subparts). begun: all of text is
 * such a begin, and more bytes may make it whole. */
size_t moelm_utf8_span(const char *text, size_t left, bool *broken, bool *begun);

#endif
