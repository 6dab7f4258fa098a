/* test_tokenizer_golden.c: ids and texts are those that Hugging Face's tokenizers made of the same files and
 * texts: tests/golden/tokenizer, recorded by its make.py. Encoded plain, in a template and without special
 * tokens; decoded at once and token by token, where nothing but whole UTF-8 is given out; and inside a text
 * long enough that words are remembered. */
#include "format/file.h"
#include "format/json.h"
#include "format/utf8.h"

#include <moekit/tokenizer.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/tokenizer/"

static json_t *load(const char *name, const char *ending) {
    char path[200];
    json_t *root = NULL;
    moe_error error = {.text = ""};
    snprintf(path, sizeof path, GOLDEN "%s%s", name, ending);
    if (moelm_json_load(path, &root, &error) != MOE_OK) fail_msg("%s", error.text);
    return root;
}

/* A recorded text: a string, or bytes in hex. */
static moe_token_text text_of(const json_t *value) {
    moe_token_text text = {0};
    const char *hex = json_string_value(json_object_get(value, "hex"));
    const char *plain = hex ? hex : json_string_value(value);
    assert_non_null(plain);
    text.count = hex ? strlen(hex) / 2 : strlen(plain);
    text.bytes = calloc(text.count + 1, 1);
    if (!hex) memcpy(text.bytes, plain, text.count);
    for (size_t i = 0; hex && i < text.count; ++i) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        text.bytes[i] = (char)byte;
    }
    return text;
}

static void check_text(const char *name, size_t index, const char *what, const char *text, size_t bytes,
                       const json_t *expected) {
    moe_token_text wanted = text_of(expected);
    if (wanted.count != bytes || memcmp(wanted.bytes, text, bytes) != 0)
        fail_msg("%s, text %zu, %s: '%.*s', expected '%.*s'", name, index, what, (int)bytes, text,
                 (int)wanted.count, wanted.bytes);
    moe_token_text_free(&wanted);
}

static void check_ids(const char *name, size_t index, const char *what, const moe_token_list *list,
                      size_t from, const json_t *expected) {
    size_t at;
    json_t *id;
    json_array_foreach(expected, at, id) {
        if (from + at >= list->count || list->ids[from + at] != json_integer_value(id))
            fail_msg("%s, text %zu, %s: id %zu is %d of %zu, expected %lld of %zu", name, index, what, at,
                     from + at < list->count ? list->ids[from + at] : -1, list->count - from,
                     (long long)json_integer_value(id), json_array_size(expected));
    }
    if (list->count - from != json_array_size(expected))
        fail_msg("%s, text %zu, %s: %zu ids, expected %zu", name, index, what, list->count - from,
                 json_array_size(expected));
}

static bool is_whole(const char *text, size_t bytes) {
    for (size_t at = 0, length; at < bytes; at += length) {
        uint32_t code;
        length = moelm_utf8_decode(text + at, bytes - at, &code);
        if (length == 0) return false;
    }
    return true;
}

static void check_stream(const moe_tokenizer *tokenizer, const char *name, size_t index,
                         const moe_token_list *ids, const json_t *expected) {
    moe_token_stream *stream;
    char *all = calloc(1, 65536);
    size_t count = 0;
    assert_int_equal(moe_token_stream_create(tokenizer, 0, &stream, NULL), MOE_OK);
    for (size_t i = 0; i <= ids->count; ++i) {
        const char *text;
        size_t bytes;
        moe_status status = i < ids->count ? moe_token_stream_put(stream, ids->ids[i], &text, &bytes, NULL)
                                           : moe_token_stream_end(stream, &text, &bytes, NULL);
        assert_int_equal(status, MOE_OK);
        assert_true(is_whole(text, bytes));
        assert_true(count + bytes < 65536);
        memcpy(all + count, text, bytes);
        count += bytes;
    }
    check_text(name, index, "streamed", all, count, expected);
    moe_token_stream_destroy(stream);
    free(all);
}

/* Its begin is that of the template, and the text ends it. */
static void check_begin(const moe_tokenizer *tokenizer, const moe_token_text *text) {
    moe_token_list plain = {0}, begin = {0}, around = {0};
    moe_error error;
    assert_int_equal(moe_tokenizer_encode(tokenizer, text->bytes, text->count, 0, &plain, &error), MOE_OK);
    assert_int_equal(
        moe_tokenizer_encode(tokenizer, text->bytes, text->count, MOE_TOKENIZER_BEGIN, &begin, &error),
        MOE_OK);
    assert_int_equal(
        moe_tokenizer_encode(tokenizer, text->bytes, text->count, MOE_TOKENIZER_TEMPLATE, &around, &error),
        MOE_OK);
    assert_in_range(begin.count, plain.count, around.count);
    for (size_t i = 0; i < begin.count; ++i) assert_int_equal(begin.ids[i], around.ids[i]);
    for (size_t i = 1; i <= plain.count; ++i)
        assert_int_equal(begin.ids[begin.count - i], plain.ids[plain.count - i]);
    moe_token_list_free(&plain);
    moe_token_list_free(&begin);
    moe_token_list_free(&around);
}

static void check_row(const moe_tokenizer *tokenizer, const char *name, size_t index, const json_t *value,
                      const json_t *row) {
    static const struct {
        const char *key;
        unsigned flags;
    } ways[] = {
        {"ids",    0                     },
        {"plain",  MOE_TOKENIZER_PLAIN   },
        {"around", MOE_TOKENIZER_TEMPLATE}
    };
    moe_token_text text = text_of(value), decoded = {0};
    moe_token_list ids = {0};
    moe_error error = {.text = ""};
    for (size_t i = 0; i < 3; ++i) {
        ids.count = 0;
        if (moe_tokenizer_encode(tokenizer, text.bytes, text.count, ways[i].flags, &ids, &error) != MOE_OK)
            fail_msg("%s, text %zu: %s", name, index, error.text);
        check_ids(name, index, ways[i].key, &ids, 0, json_object_get(row, ways[i].key));
    }
    check_begin(tokenizer, &text);
    assert_int_equal(moe_tokenizer_decode(tokenizer, ids.ids, ids.count, 0, &decoded, &error), MOE_OK);
    check_text(name, index, "text", decoded.bytes, decoded.count, json_object_get(row, "text"));
    size_t before = decoded.count;
    assert_int_equal(
        moe_tokenizer_decode(tokenizer, ids.ids, ids.count, MOE_TOKENIZER_SKIP_SPECIAL, &decoded, &error),
        MOE_OK);
    check_text(name, index, "skipped", decoded.bytes + before, decoded.count - before,
               json_object_get(row, "skipped"));
    check_stream(tokenizer, name, index, &ids, json_object_get(row, "text"));
    moe_token_text_free(&text);
    moe_token_text_free(&decoded);
    moe_token_list_free(&ids);
}

static void check_tokenizer(const char *name) {
    char path[200];
    moe_tokenizer *tokenizer = NULL;
    moe_error error = {.text = ""};
    snprintf(path, sizeof path, GOLDEN "%s.json", name);
    if (moe_tokenizer_load(path, &tokenizer, &error) != MOE_OK) fail_msg("%s", error.text);
    json_t *texts = load("texts", ".json"), *rows = load(name, ".expected.json"), *text;
    size_t index;
    assert_int_equal(json_array_size(texts), json_array_size(rows));
    json_array_foreach(texts, index, text)
        check_row(tokenizer, name, index, text, json_array_get(rows, index));
    json_decref(texts);
    json_decref(rows);
    moe_tokenizer_destroy(tokenizer);
}

#define CASE(name)                                                                                           \
    static void name(void **state) {                                                                         \
        (void)state;                                                                                         \
        check_tokenizer(#name);                                                                              \
    }
CASE(neox)
CASE(qwen)
CASE(deepseek)
CASE(o200k)
CASE(llama_prepend)
CASE(llama_metaspace)
CASE(metaspace_split)
CASE(words)
CASE(digits)

/* A text of many lines has the ids of its lines, as lines end words: also those that are remembered. */
static void words_are_remembered_right(void **state) {
    (void)state;
    moe_tokenizer *tokenizer = NULL;
    assert_int_equal(moe_tokenizer_load(GOLDEN "qwen.json", &tokenizer, NULL), MOE_OK);
    static const char line[] = "and the earth brought forth grass, 1234 herbs yielding seed after his kind\n";
    moe_token_list one = {0}, all = {0};
    moe_token_text text = {.bytes = calloc(400, sizeof line)};
    for (int i = 0; i < 400; ++i) text.count += (size_t)sprintf(text.bytes + text.count, "%s", line);
    assert_int_equal(moe_tokenizer_encode(tokenizer, line, strlen(line), 0, &one, NULL), MOE_OK);
    assert_int_equal(moe_tokenizer_encode(tokenizer, text.bytes, text.count, 0, &all, NULL), MOE_OK);
    assert_int_equal(all.count, 400 * one.count);
    for (size_t i = 0; i < all.count; ++i) assert_int_equal(all.ids[i], one.ids[i % one.count]);
    moe_token_list_free(&one);
    moe_token_list_free(&all);
    moe_token_text_free(&text);
    moe_tokenizer_destroy(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neox),
        cmocka_unit_test(qwen),
        cmocka_unit_test(deepseek),
        cmocka_unit_test(o200k),
        cmocka_unit_test(llama_prepend),
        cmocka_unit_test(llama_metaspace),
        cmocka_unit_test(metaspace_split),
        cmocka_unit_test(words),
        cmocka_unit_test(digits),
        cmocka_unit_test(words_are_remembered_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
