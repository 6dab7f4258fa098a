/* cover.h: layers in which every two values of options that go together meet at least once.
 * A problem is a descriptor and what a call tells it; each option of moe_layer_option_at is a factor of it.
 * Source: Cohen, Dalal, Fredman, Patton, "The AETG system", 1997, for the greedy choice of pairs.
 */
#ifndef MOEKIT_TEST_COVER_H
#define MOEKIT_TEST_COVER_H

#include "support/layer_fixture.h"

enum { COVER_TOKENS = 12, COVER_TEXT = 2048 };

typedef struct cover_problem {
    moe_layer_desc desc; /* its names live as long as the program */
    int32_t n_tokens, n_sequences;
    bool masked, replayed;
} cover_problem;

typedef struct cover_set {
    int n_problems;
    cover_problem *problem;
    int64_t n_values, n_covered, n_feasible, n_refused; /* the last three: pairs of values */
    void *inside;
} cover_set;

/* The values tried of a number or a free name, NULL-terminated; NULL: there are none, which fails the test.
 * Choices, switches and MOE_ZERO bring their own. */
const char *const *cover_values(const char *key);

/* Makes the set; a fault of the table of options fails the test by name. The same seed, the same set. */
cover_set cover_make(uint64_t seed);
void cover_free(cover_set *set);

/* One line for each reason of a refusal, with the number of pairs it parts; returns how many reasons. */
int cover_print_refused(const cover_set *set);

/* How many pairs of values the problems with good[i] hold. */
int64_t cover_pairs(const cover_set *set, const bool *good);

/* Prints and counts the values that none of the problems with good[i] holds, but for the excused. */
int cover_missing(const cover_set *set, const bool *good,
                  bool (*excused)(const char *key, const char *value));

/* A problem of many settings that go together, drawn at random: another way than the set's to legal ones.
 * Returns the pairs in it that the set holds for refused, the last of them told in `text`. */
int cover_draw(const cover_set *set, uint64_t number, cover_problem *problem, char text[COVER_TEXT]);

/* Settings drawn without a look at what goes together. */
void cover_draw_any(const cover_set *set, uint64_t number, cover_problem *problem);

/* The problem's descriptor for another dtype. A router_dtype that is f32 in name is so in an f32 layer only.
 */
moe_layer_desc cover_desc(const cover_problem *problem, moe_dtype dtype);

/* The settings that differ from those of the first problem of all, "key value ...". */
void cover_describe(const cover_problem *problem, char text[COVER_TEXT]);

/* What a training call of the problem tells; points into the struct. */
typedef struct cover_call {
    moe_call call;
    uint8_t mask[COVER_TOKENS];
    int32_t task[COVER_TOKENS];
} cover_call;
void cover_begin_call(const cover_problem *problem, cover_call *call);

#endif
