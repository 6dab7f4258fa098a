/* test_utf8.c: characters at the edges of what RFC 3629 allows, and what it does not.
 * Each with its length and its code.
 * Source: RFC 3629, section 4.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "format/utf8.h"

static void test_characters(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t length;
        uint32_t code;
    } good[] = {
        {"a",                1, 'a'     },
        {"\x7f",             1, 0x7f    },
        {"\xc2\x80",         2, 0x80    },
        {"\xdf\xbf",         2, 0x7ff   },
        {"\xe0\xa0\x80",     3, 0x800   },
        {"\xed\x9f\xbf",     3, 0xd7ff  },
        {"\xf0\x90\x80\x80", 4, 0x10000 },
        {"\xf4\x8f\xbf\xbf", 4, 0x10ffff},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; ++i) {
        uint32_t code = 0;
        assert_int_equal(moelm_utf8_decode(good[i].bytes, strlen(good[i].bytes), &code), good[i].length);
        assert_int_equal(code, good[i].code);
        assert_int_equal(moelm_utf8_decode(good[i].bytes, good[i].length - 1, &code), 0); /* cut */
    }
    static const char *const bad[] = {"\x80",
                                      "\xbf",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf8\x88\x80\x80",
                                      "\xff",
                                      "\xc3(",
                                      "\xe2\x82("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        uint32_t code;
        if (moelm_utf8_decode(bad[i], strlen(bad[i]), &code) != 0) fail_msg("case %zu is taken for UTF-8", i);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
