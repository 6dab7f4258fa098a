/* option.h: settings as text: what there are, and what other systems call them. For whoever reads settings
 * from files or a command line, or writes about them; to make a layer, moe.h is enough. Rows, entries and
 * strings are the library's and stay.
 */
#ifndef MOEKIT_OPTION_H
#define MOEKIT_OPTION_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1. Our settings. */

/* One row of an option table; shared by descriptors, YAML, command line, environment and docs. */
typedef enum moe_option_type {
    MOE_OPT_BOOL,   /* bool */
    MOE_OPT_INT,    /* int32_t */
    MOE_OPT_INT64,  /* int64_t */
    MOE_OPT_FLOAT,  /* float */
    MOE_OPT_DOUBLE, /* double */
    MOE_OPT_CHOICE, /* const char *: one of `choices`, or the caller's own string where there are none */
    MOE_OPT_TEXT    /* char[max]: copied */
} moe_option_type;
typedef struct moe_option {
    const char *key;     /* canonical name, e.g. "moe.num_experts" */
    const char *aliases; /* space-separated names of other systems; "" if none */
    moe_option_type type;
    size_t offset;              /* of the field in the descriptor */
    const char *initial;        /* default, as text. A descriptor's field left at 0 means the same, but for
                                   num_experts (0: none) and expert_hidden_size (0: none given) */
    double min, max;            /* inclusive limits of numbers */
    const char *const *choices; /* NULL-terminated; NULL: free */
    const char *help;           /* one line */
} moe_option;
/* The layer's rows in their order, one by one, so that rows may grow; NULL past the last. */
MOE_API const moe_option *moe_layer_option_at(size_t index);
/* The row of a key, of its last part ("top_k" of "moe.top_k") or of an alias, which may stand below "moe.";
 * NULL: none. Keys win over last parts, these over aliases. */
MOE_API const moe_option *moe_layer_option_find(const char *key);
/* How far `key` is from the nearest of a row's names, its key and its aliases: letters to insert, delete or
 * replace, case aside. A key without a dot is compared with the last part of the row's. Of NULL: SIZE_MAX. */
MOE_API size_t moe_option_distance(const moe_option *row, const char *key);
/* Whether a name so far from `key` may have been meant by it: a third of its letters wrong, rounded up, and
 * no more. Of NULL: no. */
MOE_API bool moe_option_is_near(const char *key, size_t distance);

/* 2. Settings of other systems. */

/* Those whose names or values differ from ours, with what they say here. Those that only have another name
 * stand in moe_option.aliases. */
typedef struct moe_layer_alias {
    const char *system; /* "NeMo" */
    const char *name;   /* "moe_router_load_balancing_type" */
    const char *value;  /* "sinkhorn", case aside; "negative": a number below 0; "list": several values,
                           with commas; "": null or an empty list; NULL: any other value */
    const char *advice; /* NULL, or why it cannot be set here and what to do instead */
} moe_layer_alias;
/* One of our settings that it sets. */
typedef struct moe_alias_setting {
    const char *key;   /* "router_type" */
    const char *value; /* "sinkhorn"; NULL: the one given; "-": the one given without its minus sign */
    const char *where; /* NULL: it says so. Else it only implies it, and what was said stays: "unset": where
                          nobody said another; "noisy_top_k": likewise, and only in place of this value */
} moe_alias_setting;
/* The entries in their order, and what an entry sets; NULL past the last. One that sets nothing tells what is
 * so here anyway, or takes back what another value of its name said. */
MOE_API const moe_layer_alias *moe_layer_alias_at(size_t index);
MOE_API const moe_alias_setting *moe_layer_alias_setting(const moe_layer_alias *alias, size_t index);
/* From here on nobody has said what the fields hold: as defaults and presets do, they yield to what names
 * imply. For a caller with defaults of its own. */
MOE_API void moe_layer_desc_forget(moe_layer_desc *desc);
/* The first entry of a name (bare, or below "moe." or "model."), whatever the value; NULL: none. */
MOE_API const moe_layer_alias *moe_layer_alias_named(const char *name);
/* The entry for a name (likewise) and a value; *alias NULL: no such name. A value that cannot be had is
 * MOE_ERR_ARGUMENT, and the text says what can. */
MOE_API moe_status moe_layer_alias_find(const char *name, const char *value, const moe_layer_alias **alias,
                                        moe_error *error);

#ifdef __cplusplus
}
#endif
#endif
