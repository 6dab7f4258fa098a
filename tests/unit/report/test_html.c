/* test_html.c: no byte of a user's file becomes markup, and every byte leads to valid UTF-8.
 * Known texts, then random bytes.
 * Source: report/html.h; the escapes of HTML, RFC 3629.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "report/html.h"

static void assert_written(const char *bytes, size_t n_bytes, const char *expected) {
    moelm_html html = {0};
    moelm_html_put(&html, "");
    moelm_html_bytes(&html, bytes, n_bytes);
    assert_string_equal(html.data, expected);
    moelm_html_free(&html);
}

static void test_escapes(void **state) {
    (void)state;
    assert_written("<a href=\"x\">'&'", 15, "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;");
    assert_written("tab\tline\n", 9, "tab\tline\n");
    assert_written("\0\r\x1b\x7f", 4, "\\x00\\x0d\\x1b\\x7f");
}

static void test_utf8(void **state) {
    (void)state;
    assert_written("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    assert_written("\xc3", 1, "\\xc3");                            /* cut short */
    assert_written("\xc0\xaf", 2, "\\xc0\\xaf");                   /* overlong slash */
    assert_written("\xe0\x80\xaf", 3, "\\xe0\\x80\\xaf");          /* overlong in three */
    assert_written("\xed\xa0\x80", 3, "\\xed\\xa0\\x80");          /* a surrogate */
    assert_written("\xef\xbf\xbf", 3, "\\xef\\xbf\\xbf");          /* not a character */
    assert_written("\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80"); /* beyond Unicode */
    assert_written("\xc2\x85", 2, "\\xc2\\x85");                   /* a control */
}

static void test_random_bytes_stay_text(void **state) {
    (void)state;
    char bytes[512];
    for (uint64_t seed = 1; seed <= 500; ++seed) {
        moelm_html html = {0};
        scratch_fill(bytes, sizeof bytes, seed);
        moelm_html_bytes(&html, bytes, sizeof bytes);
        for (size_t i = 0; i < html.length; ++i) {
            unsigned char c = (unsigned char)html.data[i];
            if (c == '<' || c == '>' || c == '"' || (c < 0x20 && c != '\t' && c != '\n'))
                fail_msg("seed %d", (int)seed);
        }
        moelm_html again = {0};
        for (size_t i = 0; i < html.length; ++i) html.data[i] = html.data[i] == '&' ? '+' : html.data[i];
        moelm_html_bytes(&again, html.data,
                         html.length); /* '&#39;' became '+#39;': nothing is left to escape */
        assert_int_equal(again.length, html.length);
        moelm_html_free(&again);
        moelm_html_free(&html);
    }
}

static void test_tokens(void **state) {
    (void)state;
    const struct {
        const char *token;
        size_t bytes;
        const char *text;
    } row[] = {
        {" ",                         1,  "\xe2\x90\xa3"                    },
        {"\n",                        1,  "\xe2\x8f\x8e"                    },
        {"a",                         1,  "a"                               },
        {"<",                         1,  "&lt;"                            },
        {"\0",                        1,  "\\x00"                           },
        {"\t",                        1,  "\\x09"                           },
        {"\x7f",                      1,  "\\x7f"                           },
        {"\xff",                      1,  "\\xff"                           },
        {" \xc3\xa9\n",               4,  "\xe2\x90\xa3\xc3\xa9\xe2\x8f\x8e"},
        {"\xe3\x80\x80",              3,  "\\xe3\\x80\\x80"                 }, /* an ideographic space */
        {"<b>&\xe2\x80\xae",          7,  "&lt;b&gt;&amp;\\xe2\\x80\\xae"   }, /* from right to left */
        {"0123456789 123456789 123",  24,
         "0123456789\xe2\x90\xa3"
         "123456789\xe2\x90\xa3"
         "123"                                                              },
        {"0123456789 123456789 123 ", 25,
         "0123456789\xe2\x90\xa3"
         "123456789\xe2\x90\xa3"
         "123\xe2\x80\xa6"                                                  }
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; ++i) {
        moelm_html html = {0};
        moelm_html_token(&html, row[i].token, row[i].bytes);
        assert_string_equal(html.data, row[i].text);
        moelm_html_free(&html);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_random_bytes_stay_text),
        cmocka_unit_test(test_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
