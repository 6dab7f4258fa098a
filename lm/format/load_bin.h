/* load_bin.h: the bytes of load.bin, for who writes them and who reads them (docs/run-directory.md).
 * Header: magic, u32 L, L times u32 E. Record: u64 step, then a layer's E u64 kept and E u64 dropped.
 */
#ifndef MOELM_LOAD_BIN_H
#define MOELM_LOAD_BIN_H

#include <stddef.h>
#include <stdint.h>

#define MOELM_LOAD_BIN_MAGIC "MOELOAD1"
enum { MOELM_LOAD_BIN_MAGIC_BYTES = 8, MOELM_LOAD_BIN_FIXED_BYTES = 12 /* magic and L */ };

static inline size_t moelm_load_bin_header_bytes(size_t n_layers) {
    return MOELM_LOAD_BIN_FIXED_BYTES + 4 * n_layers;
}
/* n_experts: of all layers together */
static inline size_t moelm_load_bin_record_bytes(size_t n_experts) {
    return 8 + 16 * n_experts;
}

/* Little-endian whatever the machine; put returns the byte behind. */
static inline unsigned char *moelm_put_little(unsigned char *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) *at++ = (unsigned char)(value >> 8 * i);
    return at;
}
static inline uint64_t moelm_get_little(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) value = value << 8 | at[i];
    return value;
}

#endif
