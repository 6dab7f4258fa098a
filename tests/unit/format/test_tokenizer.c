/* test_tokenizer.c: what a tokenizer.json may not say, each with the words of its refusal; begin and end of
 * texts as the files beside it tell; lists that grow; what NULL does; a word of a million letters. Source:
 * moekit/tokenizer.h. Ids and texts of whole tokenizers are test_tokenizer_golden.c's. */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/tokenizer.h"

/* A tokenizer of a few letters, into which a case puts its own model fields, parts and added tokens. */
#define LETTERS "\"a\": 0, \"b\": 1, \"ab\": 2, \"\\u0120\": 3, \"<unk>\": 4, \"<0x41>\": 5, \"\\u2581\": 6"
#define MODEL(fields)                                                                                        \
    "\"model\": {\"type\": \"BPE\", \"vocab\": {" LETTERS "}, \"merges\": [\"a b\"]" fields "}"
#define WITH(parts) "{" MODEL("") ", " parts "}"

static moe_status parse(const char *text, moe_tokenizer **tokenizer, moe_error *error) {
    return moelm_tokenizer_parse("t.json", text, strlen(text), tokenizer, error);
}

static moe_tokenizer *make(const char *text) {
    moe_tokenizer *tokenizer = NULL;
    moe_error error;
    assert_ok(parse(text, &tokenizer, &error), &error);
    return tokenizer;
}

#define ADDED(id, content)                                                                                   \
    "{\"id\": " #id ", \"content\": \"" content "\", \"single_word\": false, \"lstrip\": false, "            \
    "\"rstrip\": false, \"normalized\": false, \"special\": true}"

static const struct {
    const char *text;
    moe_status status;
    const char *words;
} refused[] = {
    {"[]",                                                                          MOE_ERR_INPUT,       "must be an object"                                                                                                   },
    {"{}",                                                                          MOE_ERR_INPUT,       "model is missing"                                                                                                    },
    {"{\"model\": {\"type\": \"BPE\"}}",                                            MOE_ERR_INPUT,       "vocab is missing"                                                                                                    },
    {"{\"model\": {\"vocab\": {}}}",                                                MOE_ERR_INPUT,       "merges is missing"                                                                                                   },
    {"{\"model\": {\"vocab\": {}, \"merges\": []}}",                                MOE_ERR_INPUT,       "empty"                                                                                                               },
    {"{\"model\": {\"vocab\": {\"a\": -1}, \"merges\": []}}",                       MOE_ERR_INPUT,       "the id of \"a\""                                                                                                     },
    {"{\"model\": {\"vocab\": {\"a\": 4194304}, \"merges\": []}}",                  MOE_ERR_INPUT,       "the id of \"a\""                                                                                                     },
    {"{\"model\": {\"vocab\": {\"a\": 1.5}, \"merges\": []}}",                      MOE_ERR_INPUT,       "the id of \"a\""                                                                                                     },
    {"{\"model\": {\"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}",              MOE_ERR_INPUT,       "the same id 0"                                                                                                       },
    {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]}}",                   MOE_ERR_INPUT,       "model.merges[0]"                                                                                                     },
    {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a a a\"]}}",               MOE_ERR_INPUT,       "model.merges[0]"                                                                                                     },
    {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", 1]]}}",              MOE_ERR_INPUT,       "model.merges[0]"                                                                                                     },
    {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]}}",                 MOE_ERR_INPUT,       "\"aa\" is not in"                                                                                                    },
    {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", \"c\"]]}}",          MOE_ERR_INPUT,       "\"c\" is not in"                                                                                                     },
    {"{\"model\": {\"type\": \"Unigram\", \"vocab\": {\"a\": 0}, \"merges\": []}}", MOE_ERR_UNSUPPORTED,
     "Unigram"                                                                                                                                                                                                                 },
    {"{" MODEL(", \"dropout\": 0.5") "}",                                           MOE_ERR_UNSUPPORTED, "dropout"                                                                                                             },
    {"{" MODEL(", \"end_of_word_suffix\": \"x\"") "}",                              MOE_ERR_UNSUPPORTED, "end_of_word_suffix"                                                                                                  },
    {"{" MODEL(", \"continuing_subword_prefix\": \"x\"") "}",                       MOE_ERR_UNSUPPORTED,
     "continuing_subword_prefix"                                                                                                                                                                                               },
    {"{" MODEL(", \"unk_token\": \"no\"") "}",                                      MOE_ERR_INPUT,       "unk_token \"no\""                                                                                                    },
    {WITH("\"added_tokens\": {}"),                                                  MOE_ERR_INPUT,       "added_tokens must be an array"                                                                                       },
    {WITH("\"added_tokens\": [1]"),                                                 MOE_ERR_INPUT,       "the id of"                                                                                                           },
    {WITH("\"added_tokens\": [{\"id\": 9, \"content\": \"x\"}]"),                   MOE_ERR_INPUT,
     "added_tokens[0]: single_word"                                                                                                                                                                                            },
    {WITH("\"added_tokens\": [" ADDED(9,                                            "a") "]"),           MOE_ERR_INPUT,                                                                                                          "has the id 9, and 0"},
    {WITH("\"added_tokens\": [" ADDED(1,                                                                             "x") "]"),                                                               MOE_ERR_INPUT,                                                                                                "\"x\" and \"b\""},
    {WITH("\"normalizer\": 3"),                                                            MOE_ERR_INPUT,                                                                               "normalizer must be an object"                                                                             },
    {WITH("\"normalizer\": {\"type\": \"Precompiled\"}"),                                               MOE_ERR_UNSUPPORTED,"normalizer: Precompiled"},
    {WITH("\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": "
          "\"Nmt\"}]}"),
     MOE_ERR_UNSUPPORTED,                                                                                    "normalizer.normalizers[1]: Nmt"                                                                                                                                                                                                         },
    {WITH("\"normalizer\": {\"type\": \"Replace\", \"content\": \"\", \"pattern\": {\"String\": \"\"}}"),
     MOE_ERR_UNSUPPORTED,"0 bytes"},
    {WITH("\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}"),                                                                    MOE_ERR_UNSUPPORTED,                                                                                                           "BertPreTokenizer"                                                                                                                                                                                                                                                                                                                                                                               },
    {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": "
          "\"Isolated\"}"),
     MOE_ERR_INPUT,"end pattern with unmatched parenthesis"},
    {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Odd\"}"),
     MOE_ERR_UNSUPPORTED,                                                                                     "behavior Odd"                                                                                                                                                                                                                                                                                                                                                                                                                  },
    {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {}}"),                                                               MOE_ERR_INPUT,"pattern must be"},
    {WITH("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": "
          "\"last\"}"),
     MOE_ERR_UNSUPPORTED,                                                                                  "prepend_scheme last"                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                 },
    {WITH("\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\", "
          "\"add_prefix_space\": false}, {\"type\": \"Digits\"}]}"),
     MOE_ERR_UNSUPPORTED,"Digits behind ByteLevel"},
    {WITH("\"post_processor\": {\"type\": \"BertProcessing\"}"),                                                    MOE_ERR_UNSUPPORTED,                                                                              "BertProcessing"                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                              },
    {WITH("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": []}"),                                                             MOE_ERR_UNSUPPORTED,
     "without Sequence A"},
    {WITH("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"Sequence\": {\"id\": "
          "\"B\"}}]}"),
     MOE_ERR_UNSUPPORTED,                                                                             "single[0]"                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                },
    {WITH("\"post_processor\": {\"type\": \"TemplateProcessing\", \"special_tokens\": {\"x\": {\"ids\": "
          "[99]}}, "
          "\"single\": [{\"SpecialToken\": {\"id\": \"x\"}}, {\"Sequence\": {\"id\": \"A\"}}]}"),
     MOE_ERR_INPUT,         "the ids of x"},
    {WITH("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}"),                                                               MOE_ERR_INPUT,
     "replacement must be one character"                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                    },
    {WITH("\"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}"),                                           MOE_ERR_INPUT,
     "replacement must be one character"},
    {WITH("\"decoder\": {\"type\": \"Strip\", \"content\": \"\", \"start\": 0, \"stop\": 0}"),                                           MOE_ERR_INPUT,
     "content must be one character"                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                   },
    {WITH("\"decoder\": {\"type\": \"WordPiece\"}"),                                               MOE_ERR_UNSUPPORTED,                                                                  "WordPiece"},
    {WITH("\"decoder\": {\"type\": \"Strip\", \"content\": \" \", \"start\": 0, \"stop\": 1}"),
     MOE_ERR_UNSUPPORTED,                    "stop 1"                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                                          },
    {WITH("\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": "
          "\"ByteFallback\"}]}"),
     MOE_ERR_UNSUPPORTED,                                                                     "ByteFallback behind"},
};

static void what_is_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; ++i) {
        moe_tokenizer *tokenizer = NULL;
        moe_error error;
        assert_fails(parse(refused[i].text, &tokenizer, &error), refused[i].status, &error, refused[i].words);
        assert_null(tokenizer);
    }
}

static void null_is_refused(void **state) {
    (void)state;
    moe_tokenizer *tokenizer = make(WITH("\"decoder\": null"));
    moe_token_list list = {0};
    moe_token_text text = {0};
    moe_token_stream *stream = NULL;
    const char *given;
    size_t bytes;
    assert_int_equal(moe_tokenizer_load(NULL, &tokenizer, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_load("x", NULL, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_encode(NULL, "a", 1, 0, &list, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_encode(tokenizer, NULL, 1, 0, &list, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_encode(tokenizer, "a", 1, 0, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_encode(tokenizer, NULL, 0, 0, &list, NULL), MOE_OK);
    assert_int_equal(moe_tokenizer_decode(NULL, list.ids, 0, 0, &text, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_decode(tokenizer, NULL, 1, 0, &text, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_decode(tokenizer, NULL, 0, 0, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_token_stream_create(NULL, 0, &stream, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_token_stream_create(tokenizer, 0, NULL, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_token_stream_put(NULL, 0, &given, &bytes, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_token_stream_end(NULL, &given, &bytes, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_tokenizer_vocab_size(NULL), 0);
    assert_int_equal(moe_tokenizer_id(NULL, "a"), -1);
    assert_int_equal(moe_tokenizer_id(tokenizer, NULL), -1);
    assert_null(moe_tokenizer_token(NULL, 0));
    assert_false(moe_tokenizer_is_special(NULL, 0));
    assert_int_equal(moe_tokenizer_bos(NULL), -1);
    assert_int_equal(moe_tokenizer_eos(NULL, NULL), 0);
    moe_token_list_free(NULL);
    moe_token_text_free(NULL);
    moe_token_stream_destroy(NULL);
    moe_tokenizer_destroy(NULL);
    moe_tokenizer_destroy(tokenizer);
}

/* Looked up as a whole, "a\0..." is not the token "a", however long it is. */
static void a_word_with_a_nul_is_no_shorter_word(void **state) {
    (void)state;
    static const char text[] = "{\"model\": {\"type\": \"BPE\", \"ignore_merges\": true, \"merges\": [], "
                               "\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"d\": 3, \"e\": 4, \"f\": 5, "
                               "\"g\": 6, \"h\": 7}}}";
    moe_tokenizer *tokenizer = NULL;
    moe_error error;
    assert_ok(parse(text, &tokenizer, &error), &error);
    for (int i = 0; i < 8 * 8 * 8; ++i) {
        const int letter[] = {0, i % 8, i / 8 % 8, i / 64};
        const char word[] = {'a', '\0', (char)('a' + letter[1]), (char)('a' + letter[2]),
                             (char)('a' + letter[3])};
        moe_token_list list = {0};
        assert_ok(moe_tokenizer_encode(tokenizer, word, sizeof word, 0, &list, &error), &error);
        assert_int_equal(list.count, 4);
        for (int k = 0; k < 4; ++k) assert_int_equal(list.ids[k], letter[k]);
        moe_token_list_free(&list);
    }
    moe_tokenizer_destroy(tokenizer);
}

static void lists_grow_behind_what_they_hold(void **state) {
    (void)state;
    moe_tokenizer *tokenizer = make(WITH("\"added_tokens\": [" ADDED(9, "<e>") "]"));
    moe_token_list list = {0};
    moe_token_text text = {0};
    assert_int_equal(moe_tokenizer_encode(tokenizer, "ab", 2, 0, &list, NULL), MOE_OK);
    assert_int_equal(moe_tokenizer_encode(tokenizer, "ba<e>", 5, 0, &list, NULL), MOE_OK);
    static const int32_t ids[] = {2, 1, 0, 9};
    assert_int_equal(list.count, 4);
    assert_memory_equal(list.ids, ids, sizeof ids);
    assert_int_equal(moe_tokenizer_decode(tokenizer, list.ids, 2, 0, &text, NULL), MOE_OK);
    assert_int_equal(moe_tokenizer_decode(tokenizer, list.ids + 2, 2, 0, &text, NULL), MOE_OK);
    assert_string_equal(text.bytes, "ab ba <e>");
    assert_int_equal(moe_tokenizer_vocab_size(tokenizer), 10);
    assert_int_equal(moe_tokenizer_id(tokenizer, "<e>"), 9);
    assert_int_equal(moe_tokenizer_id(tokenizer, "e"), -1);
    assert_string_equal(moe_tokenizer_token(tokenizer, 2), "ab");
    assert_null(moe_tokenizer_token(tokenizer, 8));
    assert_null(moe_tokenizer_token(tokenizer, 10));
    assert_true(moe_tokenizer_is_special(tokenizer, 9));
    assert_false(moe_tokenizer_is_special(tokenizer, 2));
    moe_token_list_free(&list);
    moe_token_text_free(&text);
    moe_tokenizer_destroy(tokenizer);
}

/* Pairs merge as 8 letters of 2^20, then nothing: in time n log n, which a square of n would not be. */
static void a_long_word_takes_no_square_of_time(void **state) {
    (void)state;
    moe_tokenizer *tokenizer =
        make("{\"model\": {\"vocab\": {\"a\": 0, \"aa\": 1, \"aaaa\": 2, \"aaaaaaaa\": 3}, "
             "\"merges\": [\"a a\", \"aa aa\", \"aaaa aaaa\"]}}");
    size_t bytes = (size_t)1 << 20;
    char *word = malloc(bytes);
    assert_non_null(word);
    memset(word, 'a', bytes);
    moe_token_list list = {0};
    assert_int_equal(moe_tokenizer_encode(tokenizer, word, bytes, 0, &list, NULL), MOE_OK);
    assert_int_equal(list.count, bytes / 8);
    for (size_t i = 0; i < list.count; ++i) assert_int_equal(list.ids[i], 3);
    free(word);
    moe_token_list_free(&list);
    moe_tokenizer_destroy(tokenizer);
}

/* A pattern that goes back over and over is given up, and nothing of the text is kept. */
static void a_costly_pattern_is_given_up(void **state) {
    (void)state;
    moe_tokenizer *tokenizer =
        make(WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"invert\": false, "
                  "\"pattern\": {\"Regex\": \"(a|aa|a+)+$x\"}}"));
    char word[101] = {0};
    memset(word, 'a', 100);
    moe_token_list list = {0};
    moe_error error;
    assert_int_equal(moe_tokenizer_encode(tokenizer, "a", 1, 0, &list, NULL), MOE_OK);
    assert_fails(moe_tokenizer_encode(tokenizer, word, 100, 0, &list, &error), MOE_ERR_INPUT, &error,
                 "retry-limit");
    assert_int_equal(list.count, 1);
    moe_token_list_free(&list);
    moe_tokenizer_destroy(tokenizer);
}

/* Behind a failed call, the text is as it was, as a string too. */
static void a_text_that_fails_leaves_no_trace(void **state) {
    (void)state;
    char json[1000], word[41] = {0};
    memset(word, 'a', 40);
    snprintf(json, sizeof json,
             "{\"decoder\": {\"type\": \"Replace\", \"content\": \"\", \"pattern\": {\"Regex\": "
             "\"(a|aa|a+)+$x\"}}, \"model\": {\"vocab\": {\"b\": 0, \"%s\": 1}, \"merges\": []}}",
             word);
    moe_tokenizer *tokenizer = make(json);
    moe_token_text text = {0};
    moe_error error;
    static const int32_t ids[] = {0, 0, 1};
    assert_ok(moe_tokenizer_decode(tokenizer, ids, 2, 0, &text, &error), &error);
    assert_fails(moe_tokenizer_decode(tokenizer, ids, 3, 0, &text, &error), MOE_ERR_INPUT, &error,
                 "the match from byte 0 of a piece of text of 40 bytes");
    assert_int_equal(text.count, 2);
    assert_string_equal(text.bytes, "bb");
    moe_token_text_free(&text);
    moe_tokenizer_destroy(tokenizer);
}

static void unknown_flags_are_refused(void **state) {
    (void)state;
    moe_tokenizer *tokenizer = make(WITH("\"decoder\": null"));
    moe_token_list list = {0};
    moe_token_text text = {0};
    moe_token_stream *stream = NULL;
    moe_error error;
    assert_fails(moe_tokenizer_encode(tokenizer, "a", 1, MOE_TOKENIZER_SKIP_SPECIAL, &list, &error),
                 MOE_ERR_ARGUMENT, &error, "flags 4");
    assert_fails(moe_tokenizer_encode(tokenizer, "a", 1, 16, &list, &error), MOE_ERR_ARGUMENT, &error,
                 "flags 16");
    assert_fails(moe_tokenizer_decode(tokenizer, NULL, 0, MOE_TOKENIZER_PLAIN, &text, &error),
                 MOE_ERR_ARGUMENT, &error, "flags 2");
    assert_fails(moe_token_stream_create(tokenizer, MOE_TOKENIZER_BEGIN, &stream, &error), MOE_ERR_ARGUMENT,
                 &error, "flags 8");
    assert_null(stream);
    moe_tokenizer_destroy(tokenizer);
}

#define LOWERED(id, content)                                                                                 \
    "{\"id\": " #id ", \"content\": \"" content "\", \"single_word\": false, \"lstrip\": false, "            \
    "\"rstrip\": false, \"normalized\": true, \"special\": true}"

/* 40 more tokens, so that a sort does not keep the order by being simple. */
static void of_one_pattern_the_first_is_found(void **state) {
    (void)state;
    char json[12000];
    size_t at = (size_t)snprintf(
        json, sizeof json,
        "{\"normalizer\": {\"type\": \"Lowercase\"}, " MODEL("") ", \"added_tokens\": [" LOWERED(70, "<A>"));
    for (int i = 0; i < 40; ++i)
        at += (size_t)snprintf(json + at, sizeof json - at,
                               ", {\"id\": %d, \"content\": \"<%02d>\", \"single_word\": false, \"lstrip\": "
                               "false, \"rstrip\": false, \"normalized\": true, \"special\": true}",
                               10 + i, 97 * i % 41);
    snprintf(json + at, sizeof json - at, ", %s]}", LOWERED(60, "<a>"));
    moe_tokenizer *tokenizer = make(json);
    moe_token_list list = {0};
    assert_int_equal(moe_tokenizer_encode(tokenizer, "<a><A>", 6, 0, &list, NULL), MOE_OK);
    assert_int_equal(list.count, 2);
    assert_int_equal(list.ids[0], 70);
    assert_int_equal(list.ids[1], 70);
    moe_token_list_free(&list);
    moe_tokenizer_destroy(tokenizer);
}

/* A token so long that it ends the memory it lies in: what a NUL follows in the text is not compared with
 * what is behind it, which a sanitizer would see. */
static void a_nul_behind_an_added_token_ends_it(void **state) {
    (void)state;
    enum { LENGTH = 70000 };
    char *json = malloc(LENGTH + 1000), *text = malloc(LENGTH + 3);
    assert_non_null(json);
    assert_non_null(text);
    memset(text, 'x', LENGTH);
    text[LENGTH] = '\0';
    snprintf(
        json, LENGTH + 1000,
        "{" MODEL("") ", \"added_tokens\": [{\"id\": 9, \"content\": \"%s\", \"single_word\": false, "
                      "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}]}",
        text);
    moe_tokenizer *tokenizer = make(json);
    moe_token_list list = {0};
    memcpy(text + LENGTH + 1, "ab", 2);
    assert_int_equal(moe_tokenizer_encode(tokenizer, text, LENGTH + 3, 0, &list, NULL), MOE_OK);
    assert_int_equal(list.count, 2);
    assert_int_equal(list.ids[0], 9);
    assert_int_equal(list.ids[1], 2);
    moe_token_list_free(&list);
    moe_tokenizer_destroy(tokenizer);
    free(json);
    free(text);
}

static void put_file(void **state, const char *name, const char *text) {
    char *path = scratch_path(state, name);
    scratch_put(path, text, strlen(text));
    free(path);
}

static void begin_and_end_are_told_beside_it(void **state) {
    moe_error error;
    moe_tokenizer *tokenizer = NULL;
    const int32_t *eos;
    put_file(state, "tokenizer.json", WITH("\"added_tokens\": [" ADDED(9, "<e>") ", " ADDED(10, "<b>") "]"));
    assert_ok(moe_tokenizer_load(*state, &tokenizer, &error), &error);
    assert_int_equal(moe_tokenizer_bos(tokenizer), -1);
    assert_int_equal(moe_tokenizer_eos(tokenizer, &eos), 0);
    moe_tokenizer_destroy(tokenizer);
    put_file(state, "tokenizer_config.json",
             "{\"bos_token\": {\"content\": \"<b>\"}, \"eos_token\": \"<e>\"}");
    assert_ok(moe_tokenizer_load(*state, &tokenizer, &error), &error);
    assert_int_equal(moe_tokenizer_bos(tokenizer), 10);
    assert_int_equal(moe_tokenizer_eos(tokenizer, &eos), 1);
    assert_int_equal(eos[0], 9);
    moe_tokenizer_destroy(tokenizer);
    put_file(state, "config.json", "{\"bos_token_id\": null, \"eos_token_id\": 2}");
    put_file(state, "generation_config.json", "{\"eos_token_id\": [9, 1]}");
    assert_ok(moe_tokenizer_load(*state, &tokenizer, &error), &error);
    assert_int_equal(moe_tokenizer_bos(tokenizer), 10);
    assert_int_equal(moe_tokenizer_eos(tokenizer, &eos), 2);
    assert_int_equal(eos[0], 9);
    assert_int_equal(eos[1], 1);
    moe_tokenizer_destroy(tokenizer);
    put_file(state, "generation_config.json", "{\"bos_token_id\": -1, \"eos_token_id\": -1}");
    assert_ok(moe_tokenizer_load(*state, &tokenizer, &error), &error);
    assert_int_equal(moe_tokenizer_bos(tokenizer), 10);
    assert_int_equal(moe_tokenizer_eos(tokenizer, &eos), 1);
    assert_int_equal(eos[0], 2); /* config.json's */
    moe_tokenizer_destroy(tokenizer);
    tokenizer = NULL;
    char many[400] = "{\"eos_token_id\": [0";
    for (int i = 0; i < 64; ++i) strcat(many, ", 1");
    put_file(state, "generation_config.json", strcat(many, "]}"));
    assert_fails(moe_tokenizer_load(*state, &tokenizer, &error), MOE_ERR_UNSUPPORTED, &error,
                 "more than 64 ids");
    put_file(state, "generation_config.json", "{\"eos_token_id\": -2}");
    assert_fails(moe_tokenizer_load(*state, &tokenizer, &error), MOE_ERR_INPUT, &error, "from 0 to 4194303");
    put_file(state, "generation_config.json", "{\"eos_token_id\": [\"x\"]}");
    tokenizer = NULL;
    assert_fails(moe_tokenizer_load(*state, &tokenizer, &error), MOE_ERR_INPUT, &error, "eos_token_id");
    assert_null(tokenizer);
    assert_fails(moe_tokenizer_load("absent", &tokenizer, &error), MOE_ERR_INPUT, &error, "absent");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(null_is_refused),
        cmocka_unit_test(a_word_with_a_nul_is_no_shorter_word),
        cmocka_unit_test(lists_grow_behind_what_they_hold),
        cmocka_unit_test(a_long_word_takes_no_square_of_time),
        cmocka_unit_test(a_costly_pattern_is_given_up),
        cmocka_unit_test(a_text_that_fails_leaves_no_trace),
        cmocka_unit_test(unknown_flags_are_refused),
        cmocka_unit_test(of_one_pattern_the_first_is_found),
        cmocka_unit_test(a_nul_behind_an_added_token_ends_it),
        cmocka_unit_test_setup_teardown(begin_and_end_are_told_beside_it, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
