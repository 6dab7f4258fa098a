/* option.h: settings as text: which there are, and what other systems call them. For programs that read
 * settings from files or a command line, or document them; to make a layer, moe.h is enough. Rows, entries
 * and strings belong to the library and stay valid. */
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
    const char *initial;        /* default, as text. A descriptor's field left at 0 means the same, except
                                   num_experts (0: none) and expert_hidden_size (0: not given) */
    double min, max;            /* inclusive limits of numbers */
    const char *const *choices; /* NULL-terminated; NULL: free */
    const char *help;           /* one line */
} moe_option;
/* The layer's row number `index`; NULL past the last. One at a time, so that rows may grow. */
MOE_API const moe_option *moe_layer_option_at(size_t index);
/* Finds a row by key, by a key's last part ("top_k" for "moe.top_k") or by an alias, also written below
 * "moe.". NULL: none. Keys win over last parts, these over aliases. */
MOE_API const moe_option *moe_layer_option_find(const char *key);
/* The edit distance from `key` to the nearest of a row's names (its key and its aliases): letters to insert,
 * delete or replace, ignoring case. A key without a dot is compared with the last part of the row's key.
 * NULL: SIZE_MAX. */
MOE_API size_t moe_option_distance(const moe_option *row, const char *key);
/* Whether a name at this distance may have been meant by `key`: at most a third of its letters wrong, rounded
 * up. NULL: no. */
MOE_API bool moe_option_is_near(const char *key, size_t distance);

/* 2. Settings of other systems. */

/* Settings of other systems whose values differ from ours, and what they mean here. Those that only have
 * another name are in moe_option.aliases. */
typedef struct moe_layer_alias {
    const char *system; /* "NeMo" */
    const char *name;   /* "moe_router_load_balancing_type" */
    const char *value;  /* "sinkhorn", ignoring case; "negative": a number below 0; "list": several values,
                           with commas; "": null or an empty list; NULL: any other value */
    const char *advice; /* NULL, or why it cannot be set here and what to do instead */
} moe_layer_alias;
/* One of our settings that it sets. */
typedef struct moe_alias_setting {
    const char *key;   /* "router_type" */
    const char *value; /* "sinkhorn"; NULL: the one given; "-": the one given without its minus sign */
    const char *where; /* NULL: the entry says so. Else it only implies it, and does not override what was
                          said: "unset": only if nobody said another; "noisy_top_k": likewise, and only in
                          place of this value */
} moe_alias_setting;
/* The entries in order, and what an entry sets; NULL past the last. An entry that sets nothing names what
 * moekit does anyway, or takes back what another value of its name said. */
MOE_API const moe_layer_alias *moe_layer_alias_at(size_t index);
MOE_API const moe_alias_setting *moe_layer_alias_setting(const moe_layer_alias *alias, size_t index);
/* Forgets who set the fields, so that what later names imply may override them, like defaults and presets.
 * For callers with defaults of their own. */
MOE_API void moe_layer_desc_forget(moe_layer_desc *desc);
/* The first entry of a name (bare, or below "moe." or "model."), whatever its value; NULL: none. */
MOE_API const moe_layer_alias *moe_layer_alias_named(const char *name);
/* The entry for a name (likewise) and a value; *alias NULL: no such name. A value without an equivalent is
 * MOE_ERR_ARGUMENT, and the text says what to do instead. */
MOE_API moe_status moe_layer_alias_find(const char *name, const char *value, const moe_layer_alias **alias,
                                        moe_error *error);

#ifdef __cplusplus
}
#endif
#endif
