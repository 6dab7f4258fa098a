/* sha256.h: the fingerprint of a file: of inputs for run.json and the check that a resumed run reads the same
 * text, of a checkpoint's tensors for the check that they are those written. text[65] gets 64 lower-case
 * hexadecimal digits.
 */
#ifndef MOELM_SHA256_H
#define MOELM_SHA256_H

#include <stddef.h>

enum { MOELM_SHA256_TEXT = 65 };

void moelm_sha256(const void *data, size_t bytes, char text[MOELM_SHA256_TEXT]);

#endif
