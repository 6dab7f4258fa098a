/* test_safetensors.c: tensors come back as written; every damaged file is refused with its place.
 * Damaged files are made by hand: a header text, then so many bytes of data.
 * Source: the format's description by Hugging Face.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/file.h"
#include "format/safetensors.h"

#include <inttypes.h>

typedef struct image {
    unsigned char *bytes;
    size_t size;
} image;

/* Length, header and n_data random bytes, in a block of exactly that size so that sanitizers see its end. */
static image make_image(const char *header, size_t n_data) {
    size_t length = strlen(header);
    image made = {.bytes = malloc(8 + length + n_data), .size = 8 + length + n_data};
    assert_non_null(made.bytes);
    for (int i = 0; i < 8; i++) made.bytes[i] = (unsigned char)(length >> 8 * i);
    memcpy(made.bytes + 8, header, length);
    scratch_fill(made.bytes + 8 + length, n_data, 11);
    return made;
}

static const char two_tensors[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                                  "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[6,30]},"
                                  "\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]}}  ";

static void test_reads(void **state) {
    (void)state;
    image good = make_image(two_tensors, 30);
    const unsigned char *data = good.bytes + good.size - 30;
    moelm_safetensors *file;
    moe_error error;
    assert_ok(moelm_safetensors_parse("m", good.bytes, good.size, &file, &error), &error);
    assert_int_equal(moelm_safetensors_count(file), 2);
    const moelm_st_tensor *a = moelm_safetensors_at(file, 0), *b = moelm_safetensors_at(file, 1);
    assert_string_equal(a->name, "a");
    assert_string_equal(b->name, "b");
    assert_ptr_equal(moelm_safetensors_find(file, "a"), a);
    assert_ptr_equal(moelm_safetensors_find(file, "b"), b);
    assert_null(moelm_safetensors_find(file, "c"));
    assert_int_equal(a->dtype, MOELM_ST_BF16);
    assert_int_equal(b->n_dim, 2);
    assert_int_equal(b->dim[0], 2);
    assert_int_equal(b->dim[1], 3);
    assert_int_equal(b->bytes, 24);
    assert_ptr_equal(a->data, data);
    assert_ptr_equal(b->data, data + 6);
    assert_int_equal(moelm_safetensors_metadata_count(file), 1);
    assert_string_equal(moelm_safetensors_metadata_at(file, 0).key, "format");
    assert_string_equal(moelm_safetensors_metadata(file, "format"), "pt");
    assert_null(moelm_safetensors_metadata(file, "x"));
    moelm_safetensors_close(file);
    moelm_safetensors_close(NULL);
    free(good.bytes);
}

static void test_get(void **state) {
    (void)state;
    image good = make_image(two_tensors, 30);
    const moelm_st_tensor *tensor = NULL;
    moelm_safetensors *file;
    moe_error error;
    assert_ok(moelm_safetensors_parse("m", good.bytes, good.size, &file, &error), &error);
    assert_ok(moelm_safetensors_get(file, "b", 2, (const int64_t[]){2, 3}, &tensor, &error), &error);
    assert_string_equal(tensor->name, "b");
    assert_fails(moelm_safetensors_get(file, "b", 2, (const int64_t[]){3, 2}, &tensor, &error), MOE_ERR_INPUT,
                 &error, "m: tensor b has the shape [2, 3], [3, 2] is needed");
    assert_fails(moelm_safetensors_get(file, "b", 0, NULL, &tensor, &error), MOE_ERR_INPUT, &error,
                 "[] is needed");
    assert_fails(moelm_safetensors_get(file, "c", 0, NULL, &tensor, &error), MOE_ERR_INPUT, &error,
                 "m: has no tensor c");
    moelm_safetensors_close(file);
    free(good.bytes);
}

#define TENSOR(name, dtype, shape, offsets)                                                                  \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

/* clang-format off */
static const struct {
    const char *header;
    size_t n_data;
    const char *words;
} refusals[] = {
    {"", 0, "must start with '{'"},
    {" {}", 0, "must start with '{'"},
    {"[]", 0, "must start with '{'"},
    {"{", 0, "header at offset 9"},
    {"{} x", 0, "header at offset"},
    {"{\"a\":\xff}", 0, "unable to decode byte 0xff"},
    {"{\"a\":1}", 0, "tensor a: must be an object"},
    {"{\"a\":{}}", 0, "tensor a: dtype must be a string"},
    {"{\"a\":{\"dtype\":4,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "tensor a: dtype must be a string"},
    {"{" TENSOR("a", "F31", "[1]", "[0,4]") "}", 4, "tensor a: unknown dtype \"F31\""},
    {"{" TENSOR("a", "F32", "1", "[0,4]") "}", 4, "tensor a: shape must be an array"},
    {"{" TENSOR("a", "F32", "[-1]", "[0,4]") "}", 4, "shape must hold integers of 0 or more"},
    {"{" TENSOR("a", "F32", "[1.0]", "[0,4]") "}", 4, "shape must hold integers of 0 or more"},
    {"{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "more than 8 dimensions"},
    {"{" TENSOR("a", "F32", "[4611686018427387904,4]", "[0,4]") "}", 4, "product of its shape overflows"},
    {"{" TENSOR("a", "F64", "[2305843009213693952]", "[0,0]") "}", 0, "product of its shape overflows"},
    {"{" TENSOR("a", "F32", "[99999999999999999999]", "[0,4]") "}", 4, "too big integer"},
    {"{" TENSOR("a", "F32", "[1]", "[0]") "}", 4, "data_offsets must be two integers"},
    {"{" TENSOR("a", "F32", "[1]", "[0,4,8]") "}", 4, "data_offsets must be two integers"},
    {"{" TENSOR("a", "F32", "[1]", "[0,\"4\"]") "}", 4, "data_offsets must be two integers"},
    {"{" TENSOR("a", "F32", "[1]", "{}") "}", 4, "data_offsets must be two integers"},
    {"{" TENSOR("a", "F32", "[1]", "[4,0]") "}", 4,
     "data_offsets [4, 0] do not lie in the 4 bytes of data"},
    {"{" TENSOR("a", "F32", "[1]", "[-4,0]") "}", 4, "data_offsets [-4, 0] do not lie"},
    {"{" TENSOR("a", "F32", "[2]", "[0,8]") "}", 4, "data_offsets [0, 8] do not lie in the 4 bytes"},
    {"{" TENSOR("a", "F32", "[1]", "[0,9223372036854775807]") "}", 4, "do not lie in the 4 bytes"},
    {"{" TENSOR("a", "F32", "[2]", "[0,4]") "}", 4, "4 bytes, its shape of F32 needs 8"},
    {"{" TENSOR("a", "F32", "[0,2]", "[0,4]") "}", 4, "4 bytes, its shape of F32 needs 0"},
    {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[3]", "[1,4]") "}", 4,
     "tensor b starts at offset 114 and overlaps the tensor before it"},
    {"{" TENSOR("a", "U8", "[4]", "[0,4]") "," TENSOR("b", "U8", "[4]", "[0,4]") "}", 4, "overlaps"},
    {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("b", "U8", "[2]", "[2,4]") "}", 4,
     "tensor b starts at offset 115 and leaves bytes before it to no tensor"},
    {"{" TENSOR("a", "U8", "[3]", "[1,4]") "}", 4, "leaves bytes before it"},
    {"{" TENSOR("a", "U8", "[3]", "[0,3]") "}", 4, "tensors end at offset 64, the file at 65"},
    {"{}", 1, "tensors end at offset 10, the file at 11"},
    {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("a", "U8", "[1]", "[1,2]") "}", 2,
     "duplicate object key"},
    {"{\"__metadata__\":3}", 0, "__metadata__ must be an object of strings"},
    {"{\"__metadata__\":{\"k\":3}}", 0, "__metadata__ k must be a string"},
    {"{\"__metadata__\":{\"k\":\"a\",\"k\":\"b\"}}", 0, "duplicate object key"},
};
/* clang-format on */

static void test_refuses(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        image bad = make_image(refusals[i].header, refusals[i].n_data);
        moelm_safetensors *file = NULL;
        moe_error error;
        assert_fails(moelm_safetensors_parse("model.st", bad.bytes, bad.size, &file, &error), MOE_ERR_INPUT,
                     &error, refusals[i].words);
        assert_non_null(strstr(error.text, "model.st"));
        assert_null(file);
        free(bad.bytes);
    }
}

static void test_header_length(void **state) {
    (void)state;
    image bad = make_image("{}", 0);
    moelm_safetensors *file;
    moe_error error;
    bad.bytes[0] = 3;
    assert_fails(moelm_safetensors_parse("m", bad.bytes, bad.size, &file, &error), MOE_ERR_INPUT, &error,
                 "the header of 3 bytes at offset 8 runs past the end of the file at 10");
    memset(bad.bytes, 0xff, 8);
    assert_fails(moelm_safetensors_parse("m", bad.bytes, bad.size, &file, &error), MOE_ERR_INPUT, &error,
                 "header length 18446744073709551615 at offset 0 is above the limit of 100000000");
    free(bad.bytes);
}

static void test_truncated_everywhere(void **state) {
    (void)state;
    image good = make_image(two_tensors, 30);
    for (size_t size = 0; size < good.size; size++) {
        unsigned char *part = malloc(size + (size == 0));
        assert_non_null(part);
        memcpy(part, good.bytes, size);
        moelm_safetensors *file = NULL;
        moe_error error;
        assert_fails(moelm_safetensors_parse("m", part, size, &file, &error), MOE_ERR_INPUT, &error, "m: ");
        free(part);
    }
    free(good.bytes);
}

/* Any byte of length or header changed to any value: refused or read, never out of bounds. */
static void test_every_byte_changed(void **state) {
    (void)state;
    image good = make_image(two_tensors, 30);
    int n_read = 0, n_refused = 0;
    for (size_t at = 0; at < good.size - 30; at++) {
        unsigned char kept = good.bytes[at];
        for (int value = 0; value < 256; value++) {
            moelm_safetensors *file = NULL;
            good.bytes[at] = (unsigned char)value;
            moe_status status = moelm_safetensors_parse("m", good.bytes, good.size, &file, NULL);
            assert_true(status == MOE_OK || status == MOE_ERR_INPUT);
            n_refused += status != MOE_OK;
            n_read += status == MOE_OK;
            for (size_t i = 0; file && i < moelm_safetensors_count(file); i++) {
                const moelm_st_tensor *tensor = moelm_safetensors_at(file, i);
                const unsigned char *data = tensor->data;
                assert_true(data >= good.bytes && data + tensor->bytes <= good.bytes + good.size);
            }
            moelm_safetensors_close(file);
        }
        good.bytes[at] = kept;
    }
    assert_true(n_read > 0 && n_refused > n_read);
    free(good.bytes);
}

static void test_all_types_round_trip(void **state) {
    char *path = scratch_path(state, "m.safetensors"), names[MOELM_ST_F8_E5M2 + 1][40];
    unsigned char data[MOELM_ST_F8_E5M2 + 1][2 * 3 * 5 * 8];
    moelm_st_tensor tensors[MOELM_ST_F8_E5M2 + 3];
    size_t n = 0;
    scratch_fill(data, sizeof data, 3);
    for (int dtype = 0; dtype <= MOELM_ST_F8_E5M2; dtype++) {
        snprintf(names[dtype], sizeof names[dtype], "layer.%d \"\xC3\xA9\"", dtype);
        tensors[n++] = (moelm_st_tensor){
            .name = names[dtype],
            .dtype = (moelm_st_dtype)dtype,
            .n_dim = 3,
            .dim = {2, 3, 5},
            .data = data[dtype]
        };
    }
    tensors[n++] = (moelm_st_tensor){.name = "scalar", .dtype = MOELM_ST_F64, .data = data[1]};
    tensors[n++] = (moelm_st_tensor){
        .name = "empty", .dtype = MOELM_ST_F64, .n_dim = 2, .dim = {7, 0}
    };
    const moelm_st_pair metadata[] = {
        {"format", "pt"        },
        {"z",      ""          },
        {"a",      "two\nlines"}
    };
    moelm_safetensors *file;
    moe_error error;
    assert_ok(moelm_safetensors_write(path, tensors, n, metadata, 3, &error), &error);
    assert_ok(moelm_safetensors_open(path, &file, &error), &error);
    assert_int_equal(moelm_safetensors_count(file), n);
    for (size_t i = 0; i < n; i++) {
        const moelm_st_tensor *wrote = &tensors[i], *read;
        assert_ok(moelm_safetensors_get(file, wrote->name, wrote->n_dim, wrote->dim, &read, &error), &error);
        assert_int_equal(read->dtype, wrote->dtype);
        assert_true(read->bytes == 0 || memcmp(read->data, wrote->data, read->bytes) == 0);
        /* Sizes of one element fall, so every tensor is aligned for its type. */
        if (i == 0) assert_int_equal((uintptr_t)read->data % 8, 0);
    }
    assert_int_equal(moelm_safetensors_metadata_count(file), 3);
    assert_string_equal(moelm_safetensors_metadata(file, "a"), "two\nlines");
    moelm_safetensors_close(file);
    assert_ok(moelm_safetensors_write(path, NULL, 0, NULL, 0, &error), &error);
    assert_ok(moelm_safetensors_open(path, &file, &error), &error);
    assert_int_equal(moelm_safetensors_count(file), 0);
    moelm_safetensors_close(file);
    free(path);
}

static void test_write_refuses(void **state) {
    char *path = scratch_path(state, "m.safetensors");
    const float data[4] = {1, 2, 3, 4};
    const moelm_st_tensor good = {.name = "a", .n_dim = 1, .dim = {4}, .dtype = MOELM_ST_F32, .data = data};
    const moelm_st_pair twice[] =
        {
            {"k", "1"},
            {"k", "2"}
    },
                        bad_text[] = {{"k", "\xff"}};
    moelm_st_tensor pair[2] = {good, good};
    moe_error error;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "tensor a: was given twice");
    pair[1].name = "__metadata__";
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "cannot have this name");
    pair[1].name = NULL;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "cannot have this name");
    pair[1].name = "\xff";
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "not UTF-8");
    pair[1] = good, pair[1].name = "b", pair[1].dim[0] = -1;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "tensor b: its shape is negative");
    pair[1].dim[0] = INT64_MAX;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "overflows");
    pair[1].n_dim = 9;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "0 to 8 dimensions");
    pair[1] = good, pair[1].name = "b", pair[1].data = NULL;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "has no data");
    pair[1].dtype = (moelm_st_dtype)99;
    assert_fails(moelm_safetensors_write(path, pair, 2, NULL, 0, &error), MOE_ERR_ARGUMENT, &error,
                 "unknown dtype");
    assert_fails(moelm_safetensors_write(path, &good, 1, twice, 2, &error), MOE_ERR_ARGUMENT, &error,
                 "each key different");
    assert_fails(moelm_safetensors_write(path, &good, 1, bad_text, 1, &error), MOE_ERR_ARGUMENT, &error,
                 "UTF-8");
    assert_int_equal(scratch_count(*state), 0);
    free(path);
}

static void test_disk_full(void **state) {
    char *path = scratch_path(state, "m.safetensors");
    static float data[10000];
    const moelm_st_tensor tensor = {
        .name = "a", .n_dim = 1, .dim = {10000}, .dtype = MOELM_ST_F32, .data = data};
    moe_error error;
    scratch_fill(data, sizeof data, 9);
    scratch_put(path, "old", 3);
    for (rlim_t room = 0; room < 400; room += 40) { /* from inside the length to inside the data */
        scratch_disk_full(room * 3);
        moe_status status = moelm_safetensors_write(path, &tensor, 1, NULL, 0, &error);
        scratch_disk_normal();
        assert_int_equal(status, MOE_ERR_IO);
        assert_non_null(strstr(error.text, path));
        assert_non_null(strstr(error.text, "File too large; 40072 bytes are needed"));
        assert_file_holds(path, "old", 3);
        assert_int_equal(scratch_count(*state), 1);
    }
    free(path);
}

/* 2. Shards. */

static void write_shard(void **state, const char *shard, const char *const *names, size_t count) {
    char *path = scratch_path(state, shard);
    const float data[2] = {1.5F, -2.5F};
    moelm_st_tensor tensors[4];
    moe_error error;
    for (size_t i = 0; i < count; i++)
        tensors[i] =
            (moelm_st_tensor){.name = names[i], .dtype = MOELM_ST_F32, .n_dim = 1, .dim = {2}, .data = data};
    assert_ok(moelm_safetensors_write(path, tensors, count, NULL, 0, &error), &error);
    free(path);
}

static void test_shards(void **state) {
    char *index = scratch_path(state, "model.safetensors.index.json");
    static const char map[] = "{\"metadata\":{\"total_size\":24},\"weight_map\":{"
                              "\"c\":\"s2.safetensors\",\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}}";
    moelm_safetensors *file;
    moe_error error;
    write_shard(state, "s1.safetensors", (const char *const[]){"a"}, 1);
    write_shard(state, "s2.safetensors", (const char *const[]){"c", "b"}, 2);
    scratch_put(index, map, strlen(map));
    for (int by_directory = 0; by_directory < 2; by_directory++) {
        assert_ok(moelm_safetensors_open(by_directory ? *state : index, &file, &error), &error);
        assert_int_equal(moelm_safetensors_count(file), 3);
        assert_string_equal(moelm_safetensors_at(file, 0)->name, "a");
        assert_string_equal(moelm_safetensors_at(file, 1)->name, "c");
        const moelm_st_tensor *b = moelm_safetensors_find(file, "b");
        float values[2];
        assert_int_equal(b->bytes, sizeof values);
        memcpy(values, b->data, sizeof values);
        assert_true(values[0] == 1.5F && values[1] == -2.5F);
        moelm_safetensors_close(file);
    }
    free(index);
}

static void test_bad_indexes(void **state) {
    /* clang-format off */
    static const struct {
        const char *map, *words;
    } rows[] = {
        {"{}", "weight_map is missing"},
        {"{\"weight_map\":[]}", "weight_map must be an object"},
        {"{\"weight_map\":{\"a\":1}}", "a must name a file of the same directory"},
        {"{\"weight_map\":{\"a\":\"\"}}", "a must name a file"},
        {"{\"weight_map\":{\"a\":\"../s1.safetensors\"}}", "a must name a file"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "a must name a file"},
        {"{\"weight_map\":{\"a\":\"none.safetensors\"}}", "none.safetensors: cannot open: No such file"},
        {"{\"weight_map\":{\"a\":\"index.json\"}}", "index.json: header length"},
        {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"x\":\"s1.safetensors\"}}",
         "tensor x is not in s1.safetensors"},
        {"{\"weight_map\":{\"b\":\"s2.safetensors\"}}", "does not name tensor c of s2.safetensors"},
        {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}}",
         "says tensor b is in s1.safetensors, it is in s2.safetensors"},
        {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\",\"c\":\"s2.safetensors\","
         "\"d\":\"s3.safetensors\"}}",
         "says tensor a is in s1.safetensors, it is in s3.safetensors"},
        {"{\"weight_map\":{", "index.json:1:"},
    };
    /* clang-format on */
    char *index = scratch_path(state, "index.json");
    write_shard(state, "s1.safetensors", (const char *const[]){"a"}, 1);
    write_shard(state, "s2.safetensors", (const char *const[]){"c", "b"}, 2);
    write_shard(state, "s3.safetensors", (const char *const[]){"a", "d"}, 2);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        moelm_safetensors *file = NULL;
        moe_error error;
        scratch_put(index, rows[i].map, strlen(rows[i].map));
        assert_fails(moelm_safetensors_open(index, &file, &error), MOE_ERR_INPUT, &error, rows[i].words);
        assert_null(file);
    }
    free(index);
}

static void test_open_refuses(void **state) {
    char *path = scratch_path(state, "m.safetensors");
    moelm_safetensors *file;
    moe_error error;
    assert_fails(moelm_safetensors_open(path, &file, &error), MOE_ERR_INPUT, &error, "No such file");
    assert_fails(moelm_safetensors_open(*state, &file, &error), MOE_ERR_INPUT, &error,
                 "holds neither model.safetensors nor model.safetensors.index.json");
    scratch_put(path, "", 0);
    assert_fails(moelm_safetensors_open(path, &file, &error), MOE_ERR_INPUT, &error,
                 "0 bytes, too short for the header length");
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_get),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_truncated_everywhere),
        cmocka_unit_test(test_every_byte_changed),
        cmocka_unit_test_setup_teardown(test_all_types_round_trip, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_write_refuses, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_disk_full, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_shards, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_bad_indexes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_open_refuses, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
