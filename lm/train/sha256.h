/* sha256.h: the fingerprint of an input file, for run.json and for the check that a resumed run reads the
 * same text. text[65] gets 64 lower-case hexadecimal digits.
 */
#ifndef MOELM_SHA256_H
#define MOELM_SHA256_H

#include <stddef.h>

enum { MOELM_SHA256_TEXT = 65 };

void moelm_sha256(const void *data, size_t bytes, char text[MOELM_SHA256_TEXT]);

#endif
