/* tokenizer_split.c: pre-tokenizers: a text is cut into the words that BPE sees one by one.
 * Each splitter changes its piece (a mark or a space ahead), finds its pattern in it, and hands every part to
 * the next splitter, depth first, so that no list of parts is kept.
 * Source: ByteLevel (Radford et al. 2019), Metaspace (Kudo & Richardson 2018), Split and others of
 * tokenizer.json.
 */
#include "format/tokenizer.h"

#include "core/status.h"

#include <stdio.h>
#include <string.h>

/* What GPT-2 cuts by, and what stands in words or between spaces. */
#define GPT2_WORDS  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define PLAIN_WORDS "[\\w\\x{200C}\\x{200D}]+|[^\\w\\x{200C}\\x{200D}\\s]+"

/* 1. Reading. */
static moe_status read_behavior(const json_t *part, const char *where, moelm_behavior *behavior,
                                moe_error *error) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                        "Contiguous"};
    const char *name = "Isolated";
    MOEI_TRY(moelm_json_opt_string(part, where, "behavior", &name, error));
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i)
        if (strcmp(name, names[i]) == 0) {
            *behavior = (moelm_behavior)i;
            return MOE_OK;
        }
    return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                          "%s: behavior %.80s; Isolated, Removed, MergedWithPrevious, "
                          "MergedWithNext and Contiguous are known",
                          where, name);
}

static moe_status read_split(const json_t *part, const char *where, moelm_splitter *splitter,
                             moe_error *error) {
    splitter->cuts = true;
    MOEI_TRY(moelm_pattern_read(part, where, &splitter->pattern, error));
    MOEI_TRY(moelm_json_opt_bool(part, where, "invert", &splitter->invert, error));
    return read_behavior(part, where, &splitter->behavior, error);
}

static moe_status read_byte_level(const json_t *part, const char *where, moelm_splitter *splitter,
                                  moe_error *error) {
    bool space = false;
    splitter->cuts = true;
    MOEI_TRY(moelm_json_get_bool(part, where, "add_prefix_space", &space, error));
    MOEI_TRY(moelm_json_opt_bool(part, where, "use_regex", &splitter->cuts, error));
    splitter->prefix = space ? MOELM_PREFIX_SPACE : MOELM_PREFIX_NONE;
    return splitter->cuts ? moelm_regex_create(where, GPT2_WORDS, &splitter->pattern.regex, error) : MOE_OK;
}

static moe_status read_metaspace(const json_t *part, const char *where, moelm_splitter *splitter,
                                 moe_error *error) {
    const char *mark = NULL, *scheme = "always";
    bool prefix = true;
    splitter->cuts = true;
    MOEI_TRY(moelm_char_read(part, where, "replacement", &mark, error));
    MOEI_TRY(moelm_json_opt_string(part, where, "prepend_scheme", &scheme, error));
    MOEI_TRY(moelm_json_opt_bool(part, where, "add_prefix_space", &prefix, error));
    MOEI_TRY(moelm_json_opt_bool(part, where, "split", &splitter->cuts, error));
    static const char *const names[] = {"never", "first", "always"};
    size_t at = 0;
    while (at < 3 && strcmp(scheme, names[at]) != 0) ++at;
    if (at == 3)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                              "%s: prepend_scheme %.80s; always, first and never are known", where, scheme);
    splitter->prefix = prefix ? (moelm_prefix)(MOELM_PREFIX_NEVER + at) : MOELM_PREFIX_NEVER;
    strcpy(splitter->mark, mark);
    splitter->behavior = MOELM_SPLIT_WITH_NEXT;
    splitter->pattern.literal_bytes = strlen(mark);
    splitter->pattern.literal = splitter->cuts ? strdup(mark) : NULL;
    if (splitter->cuts && !splitter->pattern.literal)
        return moei_error_set(error, MOE_ERR_MEMORY, "out of memory");
    return MOE_OK;
}

static moe_status read_class(const json_t *part, const char *where, const char *type,
                             moelm_splitter *splitter, moe_error *error) {
    splitter->cuts = true;
    if (strcmp(type, "Punctuation") == 0) {
        splitter->pattern.is = moelm_is_punctuation;
        return read_behavior(part, where, &splitter->behavior, error);
    }
    if (strcmp(type, "Digits") == 0) {
        bool alone = false;
        MOEI_TRY(moelm_json_opt_bool(part, where, "individual_digits", &alone, error));
        splitter->pattern.is = moelm_is_number;
        splitter->behavior = alone ? MOELM_SPLIT_ISOLATED : MOELM_SPLIT_CONTIGUOUS;
        return MOE_OK;
    }
    splitter->behavior = MOELM_SPLIT_REMOVED;
    splitter->invert = strcmp(type, "Whitespace") == 0;
    if (splitter->invert) return moelm_regex_create(where, PLAIN_WORDS, &splitter->pattern.regex, error);
    splitter->pattern.is = moelm_is_space; /* WhitespaceSplit */
    return MOE_OK;
}

static moe_status take_splitter(const json_t *part, const char *where, const char *type,
                                moe_tokenizer *tokenizer, moe_error *error) {
    if (tokenizer->n_splitters == MOELM_TOKENIZER_MAX_STEPS || tokenizer->bpe.bytes)
        return moei_error_set(error, MOE_ERR_UNSUPPORTED, "%s: %s behind %s", where, type,
                              tokenizer->bpe.bytes ? "ByteLevel" : "32 others");
    moelm_splitter *splitter = &tokenizer->splitters[tokenizer->n_splitters++];
    if (strcmp(type, "Split") == 0) return read_split(part, where, splitter, error);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(part, where, splitter, error);
    if (strcmp(type, "ByteLevel") == 0) {
        tokenizer->bpe.bytes = true;
        return read_byte_level(part, where, splitter, error);
    }
    static const char *const classes[] = {"Punctuation", "Digits", "Whitespace", "WhitespaceSplit"};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; ++i)
        if (strcmp(type, classes[i]) == 0) return read_class(part, where, type, splitter, error);
    return moei_error_set(error, MOE_ERR_UNSUPPORTED,
                          "%s: %.80s is not known; Sequence, Split, ByteLevel, Metaspace, "
                          "Digits, Punctuation, Whitespace and WhitespaceSplit are",
                          where, type);
}

moe_status moelm_splitters_read(const json_t *root, const char *name, moe_tokenizer *tokenizer,
                                moe_error *error) {
    return moelm_parts_read(root, name, "pre_tokenizer", "pretokenizers", take_splitter, tokenizer, error);
}

/* 2. Cutting. */
/* Writes the piece as the splitter wants it: spaces as marks, and a mark or a space ahead. */
static moe_status change(moelm_encoding *encoding, size_t step, bool first, const char **text,
                         size_t *bytes) {
    const moelm_splitter *splitter = &encoding->tokenizer->splitters[step];
    moe_token_text *changed = &encoding->changed[step];
    bool marks = splitter->prefix != MOELM_PREFIX_SPACE;
    const char *mark = marks ? splitter->mark : " ";
    size_t mark_bytes = strlen(mark);
    bool ahead = splitter->prefix == MOELM_PREFIX_SPACE || splitter->prefix == MOELM_PREFIX_ALWAYS ||
                 (splitter->prefix == MOELM_PREFIX_FIRST && first);
    if ((*bytes >= mark_bytes && memcmp(*text, mark, mark_bytes) == 0) || (*text)[0] == ' ') ahead = false;
    if (!marks && !ahead) return MOE_OK;
    changed->count = 0;
    if (ahead) MOEI_TRY(moelm_text_add(changed, mark, mark_bytes, encoding->error));
    const char *at = *text, *end = at + *bytes;
    while (marks && at < end) {
        const char *space = memchr(at, ' ', (size_t)(end - at));
        if (!space) break;
        MOEI_TRY(moelm_text_add(changed, at, (size_t)(space - at), encoding->error));
        MOEI_TRY(moelm_text_add(changed, mark, mark_bytes, encoding->error));
        at = space + 1;
    }
    MOEI_TRY(moelm_text_add(changed, at, (size_t)(end - at), encoding->error));
    *text = changed->bytes;
    *bytes = changed->count;
    return MOE_OK;
}

/* The part that is not handed on yet, as the next one may join it. */
typedef struct parts {
    moelm_encoding *encoding;
    size_t step; /* of who gets the parts */
    const char *text;
    bool first;
    moelm_behavior behavior;
    bool held, held_match;
    size_t start, end;
} parts;

static moe_status hand_on(const parts *to, size_t start, size_t end) {
    return moelm_split(to->encoding, to->step, to->text + start, end - start, to->first && start == 0);
}

static moe_status add_part(parts *to, size_t start, size_t end, bool match) {
    if (to->behavior == MOELM_SPLIT_ISOLATED || (to->behavior == MOELM_SPLIT_REMOVED && !match))
        return hand_on(to, start, end);
    if (to->behavior == MOELM_SPLIT_REMOVED) return MOE_OK;
    bool joins = to->held && (to->behavior == MOELM_SPLIT_CONTIGUOUS      ? match == to->held_match
                              : to->behavior == MOELM_SPLIT_WITH_PREVIOUS ? match && !to->held_match
                                                                          : !match && to->held_match);
    if (to->held && !joins) MOEI_TRY(hand_on(to, to->start, to->end));
    if (!joins) to->start = start;
    to->end = end;
    to->held = true;
    to->held_match = match;
    return MOE_OK;
}

static moe_status cut(moelm_encoding *encoding, size_t step, const char *text, size_t bytes, bool first) {
    const moelm_splitter *splitter = &encoding->tokenizer->splitters[step];
    parts to = {
        .encoding = encoding, .step = step + 1, .text = text, .first = first, .behavior = splitter->behavior};
    moelm_scan scan = {.text = text, .bytes = bytes, .last_end = SIZE_MAX};
    size_t done = 0;
    while (true) {
        MOEI_TRY(moelm_pattern_next(&splitter->pattern, &encoding->run, &scan, encoding->error));
        if (!scan.found) break;
        if (scan.start > done) MOEI_TRY(add_part(&to, done, scan.start, splitter->invert));
        MOEI_TRY(add_part(&to, scan.start, scan.end, !splitter->invert));
        done = scan.end;
    }
    if (done < bytes) MOEI_TRY(add_part(&to, done, bytes, splitter->invert));
    return to.held ? hand_on(&to, to.start, to.end) : MOE_OK;
}

moe_status moelm_split(moelm_encoding *encoding, size_t step, const char *text, size_t bytes, bool first) {
    if (bytes == 0) return MOE_OK;
    if (step == encoding->tokenizer->n_splitters) return moelm_bpe_word(encoding, text, bytes);
    const moelm_splitter *splitter = &encoding->tokenizer->splitters[step];
    if (splitter->prefix != MOELM_PREFIX_NONE) MOEI_TRY(change(encoding, step, first, &text, &bytes));
    if (!splitter->cuts) return moelm_split(encoding, step + 1, text, bytes, first);
    return cut(encoding, step, text, bytes, first);
}
