/* tokenizer_bpe.c: byte-pair encoding of one word: letters, of which the pair of lowest rank becomes one,
 * leftmost first, until no pair has a rank. A short word is merged in place; a long one by a heap of its
 * pairs, n log n. Words that come again are remembered for the length of a call. Source: Sennrich et al.
 * 2016; byte fallback: Kudo & Richardson 2018. */
#define _GNU_SOURCE
#include "format/tokenizer.h"

#include "core/status.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_WORD 48             /* letters */
#define MARK       "\xE2\x96\x81" /* U+2581 */

/* 1. Letters. */
static const moelm_vocab *vocab_of(const moelm_encoding *encoding) {
    return &encoding->tokenizer->vocab;
}

static int32_t find_char(const moelm_encoding *encoding, const char *at, size_t length) {
    const moelm_bpe *bpe = &encoding->tokenizer->bpe;
    if (length == 1) return bpe->letter[(unsigned char)*at];
    int32_t id = moelm_vocab_find(vocab_of(encoding), at, length);
    return id >= 0 && vocab_of(encoding)->tokens[id].in_model ? id : -1;
}

static bool falls_back(const moelm_bpe *bpe, const char *at, size_t length) {
    if (!bpe->byte_fallback) return false;
    for (size_t i = 0; i < length; ++i)
        if (bpe->fallback[(unsigned char)at[i]] < 0) return false;
    return true;
}

/* The letters of a word, at most one for each byte. What is unknown waits until it is known whether the next
 * is fused with it. */
static size_t letters_of(const moelm_encoding *encoding, const char *word, size_t bytes, int32_t *ids) {
    const moelm_bpe *bpe = &encoding->tokenizer->bpe;
    size_t count = 0;
    bool unknown = false;
    for (size_t at = 0, length; at < bytes; at += length) {
        uint32_t code;
        length = bpe->bytes ? 1 : moelm_utf8_decode(word + at, bytes - at, &code);
        if (length == 0) length = 1;
        int32_t id = find_char(encoding, word + at, length);
        if (id < 0 && falls_back(bpe, word + at, length)) {
            for (size_t i = 0; i < length; ++i) ids[count++] = bpe->fallback[(unsigned char)word[at + i]];
            continue;
        }
        if (id < 0 && bpe->unknown < 0) continue;
        if (unknown && (id >= 0 || !bpe->fuse_unknown)) ids[count++] = bpe->unknown;
        unknown = id < 0;
        if (id >= 0) ids[count++] = id;
    }
    if (unknown) ids[count++] = bpe->unknown;
    return count;
}

/* 2. A short word. */
static void merge_short(const moelm_vocab *vocab, int32_t *ids, size_t *count) {
    const moelm_merge *pairs[SHORT_WORD];
    size_t n = *count;
    for (size_t i = 0; i + 1 < n; ++i) pairs[i] = moelm_vocab_merge(vocab, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; ++i)
            if (pairs[i] && (best == n || pairs[i]->rank < pairs[best]->rank)) best = i;
        if (best == n) break;
        ids[best] = pairs[best]->id;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        --n;
        memmove(pairs + best, pairs + best + 1, (n - best) * sizeof *pairs);
        if (best > 0) pairs[best - 1] = moelm_vocab_merge(vocab, ids[best - 1], ids[best]);
        if (best + 1 < n) pairs[best] = moelm_vocab_merge(vocab, ids[best], ids[best + 1]);
    }
    *count = n;
}

/* 3. A long word. */
static bool goes_first(moelm_candidate a, moelm_candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.place < b.place;
}

static moe_status push(moelm_encoding *encoding, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return MOE_OK;
    const moelm_symbol *symbols = encoding->symbols;
    const moelm_merge *merge = moelm_vocab_merge(vocab_of(encoding), symbols[left].id, symbols[right].id);
    if (!merge) return MOE_OK;
    if (encoding->heap_count == encoding->n_heap) {
        size_t roomy = 2 * encoding->n_heap + 256;
        moelm_candidate *grown = realloc(encoding->heap, roomy * sizeof *grown);
        if (!grown) return moei_error_set(encoding->error, MOE_ERR_MEMORY, "a word's merges: out of memory");
        encoding->heap = grown;
        encoding->n_heap = roomy;
    }
    moelm_candidate made = {merge->rank, (uint32_t)left, merge->id}, *heap = encoding->heap;
    size_t at = encoding->heap_count++;
    for (size_t parent; at > 0 && goes_first(made, heap[parent = (at - 1) / 2]); at = parent)
        heap[at] = heap[parent];
    heap[at] = made;
    return MOE_OK;
}

static moelm_candidate pop(moelm_encoding *encoding) {
    moelm_candidate *heap = encoding->heap, top = heap[0], last = heap[--encoding->heap_count];
    size_t count = encoding->heap_count, at = 0;
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && goes_first(heap[child + 1], heap[child])) ++child;
        if (!goes_first(heap[child], last)) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

static moe_status merge_symbols(moelm_encoding *encoding, size_t count) {
    moelm_symbol *symbols = encoding->symbols;
    encoding->heap_count = 0;
    for (size_t i = 0; i + 1 < count; ++i) MOEI_TRY(push(encoding, (int32_t)i, (int32_t)i + 1));
    while (encoding->heap_count > 0) {
        moelm_candidate top = pop(encoding);
        moelm_symbol *left = &symbols[top.place];
        if (left->gone || left->next < 0) continue;
        moelm_symbol *right = &symbols[left->next];
        const moelm_merge *merge = moelm_vocab_merge(vocab_of(encoding), left->id, right->id);
        if (!merge || merge->id != top.id) continue; /* one of them is another by now */
        left->id = top.id;
        left->next = right->next;
        right->gone = true;
        if (left->next >= 0) symbols[left->next].previous = (int32_t)top.place;
        MOEI_TRY(push(encoding, left->previous, (int32_t)top.place));
        MOEI_TRY(push(encoding, (int32_t)top.place, left->next));
    }
    return MOE_OK;
}

/* The letters are written into the tokens' own memory, and merged from there. */
static moe_status merge_long(moelm_encoding *encoding, const char *word, size_t bytes) {
    moe_token_list *tokens = encoding->tokens;
    if (bytes > INT32_MAX)
        return moei_error_set(encoding->error, MOE_ERR_UNSUPPORTED,
                              "a word of %zu bytes, at most %d are accepted", bytes, INT32_MAX);
    MOEI_TRY(moelm_tokens_reserve(tokens, bytes, encoding->error));
    int32_t *ids = tokens->ids + tokens->count;
    size_t count = letters_of(encoding, word, bytes, ids);
    if (encoding->n_symbols < count) {
        free(encoding->symbols);
        encoding->n_symbols = 0;
        encoding->symbols = malloc(count * sizeof *encoding->symbols);
        if (!encoding->symbols)
            return moei_error_set(encoding->error, MOE_ERR_MEMORY, "a word of %zu bytes: out of memory",
                                  bytes);
        encoding->n_symbols = count;
    }
    for (size_t i = 0; i < count; ++i)
        encoding->symbols[i] =
            (moelm_symbol){ids[i], (int32_t)i - 1, i + 1 < count ? (int32_t)i + 1 : -1, false};
    MOEI_TRY(merge_symbols(encoding, count));
    for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = encoding->symbols[i].next)
        tokens->ids[tokens->count++] = encoding->symbols[i].id;
    return MOE_OK;
}

/* 4. Words that come again. */
#define CACHE_SIZE  8192
#define CACHED_WORD 30
#define CACHED_IDS  8
struct moelm_cached_word {
    uint8_t bytes, count; /* 0 bytes: empty */
    char word[CACHED_WORD];
    int32_t ids[CACHED_IDS];
};

moelm_cached_word *moelm_bpe_cache(void) {
    return calloc(CACHE_SIZE, sizeof(moelm_cached_word));
}

/* A token that is the whole word, whatever its merges; -1: there is none. */
static int32_t whole(const moelm_encoding *encoding, const char *word, size_t bytes) {
    const moelm_bpe *bpe = &encoding->tokenizer->bpe;
    if (!bpe->ignore_merges) return -1;
    if (!bpe->bytes) return find_char(encoding, word, bytes);
    size_t mask = bpe->n_by_bytes - 1;
    for (size_t at = moelm_hash(word, bytes) & mask; bpe->by_bytes[at] >= 0; at = (at + 1) & mask) {
        int32_t id = bpe->by_bytes[at];
        if (bpe->as_bytes_length[id] == bytes && memcmp(bpe->as_bytes[id], word, bytes) == 0) return id;
    }
    return -1;
}

static moe_status add_word(moelm_encoding *encoding, const char *word, size_t bytes) {
    int32_t ids[SHORT_WORD];
    int32_t id = whole(encoding, word, bytes);
    if (id >= 0) return moelm_tokens_add(encoding->tokens, id, encoding->error);
    if (bytes > SHORT_WORD) return merge_long(encoding, word, bytes);
    size_t count = letters_of(encoding, word, bytes, ids);
    merge_short(vocab_of(encoding), ids, &count);
    MOEI_TRY(moelm_tokens_reserve(encoding->tokens, count, encoding->error));
    for (size_t i = 0; i < count; ++i) encoding->tokens->ids[encoding->tokens->count++] = ids[i];
    return MOE_OK;
}

static moe_status add_cached(moelm_encoding *encoding, const char *word, size_t bytes) {
    if (!encoding->cache || bytes > CACHED_WORD) return add_word(encoding, word, bytes);
    moe_token_list *tokens = encoding->tokens;
    moelm_cached_word *entry = &encoding->cache[moelm_hash(word, bytes) % CACHE_SIZE];
    if (entry->bytes == bytes && memcmp(entry->word, word, bytes) == 0) {
        MOEI_TRY(moelm_tokens_reserve(tokens, CACHED_IDS, encoding->error));
        for (size_t i = 0; i < entry->count; ++i) tokens->ids[tokens->count++] = entry->ids[i];
        return MOE_OK;
    }
    size_t before = tokens->count;
    MOEI_TRY(add_word(encoding, word, bytes));
    size_t made = tokens->count - before;
    if (made > CACHED_IDS) return MOE_OK;
    entry->bytes = (uint8_t)bytes;
    entry->count = (uint8_t)made;
    memcpy(entry->word, word, bytes);
    for (size_t i = 0; i < made; ++i) entry->ids[i] = tokens->ids[before + i];
    return MOE_OK;
}

/* Where no token reaches over a mark, a text that is one word to the file is the words between its marks. */
moe_status moelm_bpe_word(moelm_encoding *encoding, const char *word, size_t bytes) {
    if (!encoding->tokenizer->bpe.parts_at_mark) return add_cached(encoding, word, bytes);
    size_t start = 0, mark = strlen(MARK);
    for (size_t at = 0; at < bytes; ++at) {
        const char *found = memmem(word + at, bytes - at, MARK, mark);
        if (!found) break;
        at = (size_t)(found - word);
        bool follows_mark = at >= mark && memcmp(found - mark, MARK, mark) == 0;
        if (at > start && !follows_mark) {
            MOEI_TRY(add_cached(encoding, word + start, at - start));
            start = at;
        }
        at += mark - 1;
    }
    return add_cached(encoding, word + start, bytes - start);
}
