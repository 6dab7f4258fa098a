/* utf8.h: characters of UTF-8 (RFC 3629): no overlong forms, no surrogates, none above U+10FFFF.
 */
#ifndef MOELM_UTF8_H
#define MOELM_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the character that text[0 .. left-1] starts with, *code its number; 0: it starts with none. */
size_t moelm_utf8_decode(const char *text, size_t left, uint32_t *code);

#endif
