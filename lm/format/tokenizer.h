/* tokenizer.h: what the parts of a tokenizer share. The data flows one way:
 *   text -> added tokens -> normalizers -> splitters -> BPE -> ids,   ids -> decoders -> text.
 * Each part is a table made of the file by its own reader, and never changed afterwards.
 * Source: tokenizer.json as Hugging Face's tokenizers 0.23 reads it; its results are what ours are held
 * against. */
#ifndef MOELM_TOKENIZER_H
#define MOELM_TOKENIZER_H

#include "format/json.h"
#include "format/tokenizer_regex.h"

#include <moekit/tokenizer.h>

#define MOELM_TOKENIZER_MAX_IDS   ((int64_t)1 << 22)
#define MOELM_TOKENIZER_MAX_STEPS 32 /* of one kind: normalizers, splitters, decoders */
#define MOELM_TOKENIZER_MAX_EOS   64

/* 1. Growing text: MOE_ERR_MEMORY, or done. A NUL follows the last byte. */
moe_status moelm_text_reserve(moe_token_text *text, size_t more, moe_error *error);
moe_status moelm_text_add(moe_token_text *text, const char *data, size_t bytes, moe_error *error);
moe_status moelm_tokens_reserve(moe_token_list *list, size_t more, moe_error *error);
moe_status moelm_tokens_add(moe_token_list *list, int32_t id, moe_error *error);

/* 2. Vocabulary: ids to texts and back. */
typedef struct moelm_token {
    const char *text;   /* as the file has it; NULL: no token has this id */
    const char *spoken; /* what decoders get: of a normalized added token the normalized text, else text */
    bool in_model;      /* BPE makes it */
    bool special;       /* added, and left out on request */
} moelm_token;
typedef struct moelm_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: an empty place */
    uint32_t rank; /* the lower goes first */
    int32_t id;    /* what the two become */
} moelm_merge;
typedef struct moelm_vocab {
    moelm_token *tokens; /* [n_ids] */
    int32_t n_ids;
    moe_token_text *blocks; /* the texts' memory */
    size_t n_blocks;
    int32_t *by_text; /* hash table of ids, -1: empty; n_by_text is a power of two */
    size_t n_by_text;
    moelm_merge *merges; /* hash table by pair */
    size_t n_merges;
} moelm_vocab;
uint64_t moelm_hash(const char *data, size_t bytes);
moe_status moelm_vocab_read(const json_t *root, const char *name, moelm_vocab *vocab, moe_error *error);
int32_t moelm_vocab_find(const moelm_vocab *vocab, const char *text, size_t bytes);          /* -1: none */
const moelm_merge *moelm_vocab_merge(const moelm_vocab *vocab, int32_t left, int32_t right); /* NULL: none */
/* A copy that lives as long as the vocabulary; NULL: no memory. */
const char *moelm_vocab_keep(moelm_vocab *vocab, const char *text, size_t bytes);
void moelm_vocab_free(moelm_vocab *vocab);

/* 3. BPE of one word. With `bytes` (a ByteLevel splitter) its letters are bytes, else characters. */
typedef struct moelm_bpe {
    bool bytes, byte_fallback, fuse_unknown, ignore_merges;
    bool parts_at_mark;    /* no token has U+2581 behind another character: words may be cut before it */
    int32_t unknown;       /* -1: what is unknown is left out */
    int32_t letter[256];   /* ids of bytes, or of characters below 128; -1: none */
    int32_t fallback[256]; /* <0x00> .. <0xFF>; -1: none */
    int32_t *by_bytes;     /* ignore_merges with bytes: hash table of ids by their bytes */
    size_t n_by_bytes;
    const char **as_bytes; /* [n_ids] and their lengths: tokens as bytes; NULL: not made of such */
    uint32_t *as_bytes_length;
} moelm_bpe;

/* 4. Tokens that are found in the text before anything else. */
typedef struct moelm_added {
    const char *pattern; /* of a normalized one the normalized text */
    size_t bytes, order; /* order: place in the file */
    int32_t id;
    bool special, single_word, strip_left, strip_right;
} moelm_added;
typedef struct moelm_added_set {
    moelm_added *tokens; /* sorted by pattern */
    size_t count;
    bool begins[256];
} moelm_added_set;

/* 5. Patterns, and what is done about a match. */
typedef struct moelm_pattern {
    moelm_regex *regex;        /* else */
    bool (*is)(uint32_t code); /* else */
    char *literal;             /* all NULL: nothing matches */
    size_t literal_bytes;
} moelm_pattern;
typedef enum moelm_behavior {
    MOELM_SPLIT_ISOLATED,
    MOELM_SPLIT_REMOVED,
    MOELM_SPLIT_WITH_PREVIOUS,
    MOELM_SPLIT_WITH_NEXT,
    MOELM_SPLIT_CONTIGUOUS
} moelm_behavior;

typedef enum moelm_normalizer_kind {
    MOELM_NORMAL_FORM,
    MOELM_NORMAL_PREPEND,
    MOELM_NORMAL_REPLACE,
    MOELM_NORMAL_LOWERCASE,
    MOELM_NORMAL_STRIP
} moelm_normalizer_kind;
typedef struct moelm_normalizer {
    moelm_normalizer_kind kind;
    bool compose, compatible;     /* FORM: NFC and NFKC; NFKC and NFKD */
    bool strip_left, strip_right; /* STRIP */
    moelm_pattern pattern;        /* REPLACE */
    char *text;                   /* PREPEND, REPLACE */
} moelm_normalizer;

/* A splitter changes its piece of text first, then cuts it. */
typedef enum moelm_prefix {
    MOELM_PREFIX_NONE,
    MOELM_PREFIX_SPACE, /* ByteLevel: a space ahead, where there is none */
    MOELM_PREFIX_NEVER, /* Metaspace: spaces become its mark; NEVER: and that is all */
    MOELM_PREFIX_FIRST, /* and a mark ahead of what begins the text */
    MOELM_PREFIX_ALWAYS /* and a mark ahead */
} moelm_prefix;
typedef struct moelm_splitter {
    moelm_prefix prefix;
    char mark[5];
    bool cuts; /* by */
    moelm_pattern pattern;
    moelm_behavior behavior;
    bool invert;
} moelm_splitter;

/* 6. Decoders. */
typedef enum moelm_decoder_kind {
    MOELM_DECODE_JOIN, /* no decoder: a space between tokens */
    MOELM_DECODE_BYTE_LEVEL,
    MOELM_DECODE_REPLACE,
    MOELM_DECODE_BYTE_FALLBACK,
    MOELM_DECODE_FUSE,
    MOELM_DECODE_STRIP,
    MOELM_DECODE_METASPACE
} moelm_decoder_kind;
typedef struct moelm_decoder {
    moelm_decoder_kind kind;
    bool fused;            /* what comes are pieces of one token */
    moelm_pattern pattern; /* REPLACE */
    char *text;            /* what REPLACE puts, STRIP takes, METASPACE makes a space */
    int64_t start;         /* STRIP: at most so many */
    bool drops_first;      /* METASPACE: in the first token the mark stands for nothing */
} moelm_decoder;

struct moe_tokenizer {
    moelm_vocab vocab;
    moelm_bpe bpe;
    moelm_added_set raw, normalized; /* looked for ahead of the normalizers, and behind them */
    moelm_normalizer normalizers[MOELM_TOKENIZER_MAX_STEPS];
    size_t n_normalizers;
    moelm_splitter splitters[MOELM_TOKENIZER_MAX_STEPS];
    size_t n_splitters;
    moelm_decoder decoders[MOELM_TOKENIZER_MAX_STEPS];
    size_t n_decoders;
    bool has_template;            /* read already */
    bool fused;                   /* the last decoder makes one token of all */
    moe_token_list before, after; /* the template */
    int32_t bos;
    int32_t eos[MOELM_TOKENIZER_MAX_EOS];
    size_t n_eos;
};

/* Readers of the parts, in this order: each takes the whole file's root. */
moe_status moelm_normalizers_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                                  moe_error *error);
moe_status moelm_splitters_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                                moe_error *error);
moe_status moelm_bpe_read(const json_t *root, const char *name, moe_tokenizer *tokenizer, moe_error *error);
moe_status moelm_added_read(const json_t *root, const char *name, moe_tokenizer *tokenizer, moe_error *error);
moe_status moelm_template_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                               moe_error *error);
moe_status moelm_decoders_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                               moe_error *error);
/* What a file beside tokenizer.json tells of bos and eos. */
moe_status moelm_ends_read(const char *directory, moe_tokenizer *tokenizer, moe_error *error);
/* A part of the file and the parts inside it, if it is a "Sequence" with them under `key`: `take` is called
 * for each with its type. Nothing for null or a missing one. */
typedef moe_status (*moelm_part_fn)(const json_t *part, const char *where, const char *type,
                                    moe_tokenizer *tokenizer, moe_error *error);
moe_status moelm_parts_read(const json_t *root, const char *name, const char *field, const char *key,
                            moelm_part_fn take, moe_tokenizer *tokenizer, moe_error *error);
/* The text under `key`, which is one character. */
moe_status moelm_char_read(const json_t *part, const char *where, const char *key, const char **text,
                           moe_error *error);
/* {"String": text} or {"Regex": text} under "pattern". */
moe_status moelm_pattern_read(const json_t *part, const char *where, moelm_pattern *pattern,
                              moe_error *error);
void moelm_pattern_free(moelm_pattern *pattern);
void moelm_bpe_free(moelm_bpe *bpe);
/* A tokenizer of a file in memory; name stands for it in messages. */
moe_status moelm_tokenizer_parse(const char *name, const void *data, size_t bytes, moe_tokenizer **tokenizer,
                                 moe_error *error);

/* Bytes as the characters of ByteLevel (GPT-2, Radford et al. 2019): every byte has one that is printed. */
int moelm_byte_of_char(uint32_t code); /* -1: none */

/* 7. A call of encode: what it needs of its own. */
typedef struct moelm_symbol {
    int32_t id, previous, next; /* -1: none */
    bool gone;
} moelm_symbol;
typedef struct moelm_candidate {
    uint32_t rank, place;
    int32_t id;
} moelm_candidate;
typedef struct moelm_cached_word moelm_cached_word;
typedef struct moelm_encoding {
    const moe_tokenizer *tokenizer;
    unsigned flags;
    moe_token_list *tokens;
    moelm_regex_run run;
    moe_token_text swap[2];                            /* of the normalizers */
    moe_token_text changed[MOELM_TOKENIZER_MAX_STEPS]; /* of each splitter */
    int32_t *codes;                                    /* of normal forms, twice n_codes */
    size_t n_codes;
    moelm_symbol *symbols;
    size_t n_symbols;
    moelm_candidate *heap;
    size_t n_heap, heap_count;
    moelm_cached_word *cache; /* NULL: short texts go without */
    moe_error *error;
} moelm_encoding;
/* MOE_ERR_ARGUMENT for a flag that `call` does not know: it would be one of a later library. */
moe_status moelm_flags_check(const char *call, unsigned flags, unsigned known, moe_error *error);
void moelm_encoding_free(moelm_encoding *encoding);
/* *text and *bytes become those of the normalized text, the encoding's own until the next call. */
moe_status moelm_normalize(moelm_encoding *encoding, const char **text, size_t *bytes);
/* Cuts a piece by the splitters from `step` on, and the words go to BPE. first: it begins the text. */
moe_status moelm_split(moelm_encoding *encoding, size_t step, const char *text, size_t bytes, bool first);
moelm_cached_word *moelm_bpe_cache(void); /* free(); NULL: no memory */
moe_status moelm_bpe_word(moelm_encoding *encoding, const char *word, size_t bytes);
/* The leftmost longest added token in text[from ..]; false: there is none. */
typedef struct moelm_found {
    int32_t id;
    size_t start, end;
} moelm_found;
bool moelm_added_find(const moelm_added_set *set, const moelm_encoding *encoding, const char *text,
                      size_t bytes, size_t from, moelm_found *found);
/* The next match from *at on, which moves past it. done: there is none. */
typedef struct moelm_scan {
    const char *text;
    size_t bytes, at;
    size_t last_end; /* of the match before; SIZE_MAX: none */
    size_t start, end;
    bool found;
} moelm_scan;
moe_status moelm_pattern_next(const moelm_pattern *pattern, moelm_regex_run *run, moelm_scan *scan,
                              moe_error *error);

#endif
