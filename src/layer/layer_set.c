/* layer_set.c: one setting of a descriptor by name, ours or another system's, and who said it.
 * What was said stays, whatever the value of another name implies before or after it, and a name said again
 * takes back what it said before: so the order of different names does not matter.
 * Source: docs/architecture.md.
 */
#include "layer/layer_desc.h"

#include "core/desc.h"

/* Who set a field, a byte in moe_layer_desc.said at the place of its row. */
enum {
    UNMARKED, /* nobody, or C: what is not the default was said */
    IMPLIED,  /* the value of another name, a preset, or moe_layer_desc_forget */
    SAID,     /* its own name, or several names */
    SAID_BY   /* + i: only the name of entry i of moe_layer_alias_at */
};

static uint8_t *mark_of(moe_layer_desc *desc, const moe_option *row) {
    return &desc->said[row - moei_layer_option_table().row];
}

static bool holds(const moe_layer_desc *desc, const moe_option *row, const char *value) {
    char text[64];
    moei_option_get(row, desc, text, sizeof text);
    return strcmp(text, value) == 0;
}

static bool is_said(moe_layer_desc *desc, const moe_option *row) {
    const uint8_t mark = *mark_of(desc, row);
    return mark != UNMARKED ? mark >= SAID : !holds(desc, row, row->initial);
}

/* A default stays unmarked, so that C may still say another. */
static void unsay(moe_layer_desc *desc, const moe_option *row) {
    *mark_of(desc, row) = holds(desc, row, row->initial) ? UNMARKED : IMPLIED;
}

moe_status moei_layer_desc_imply(moe_layer_desc *desc, const moe_option *row, const char *value,
                                 moe_error *error) {
    MOEI_TRY(moei_option_set(row, desc, value, error));
    unsay(desc, row);
    return MOE_OK;
}

moe_status moei_layer_desc_open(const moe_layer_desc *given, moe_layer_desc *ours, moe_error *error) {
    return moei_desc_read(ours, sizeof *ours, given, "moe_layer_desc", error);
}

/* 0 and the default, which is what a struct without the field means. */
static bool asks_nothing(const moe_layer_desc *desc, const moe_option *row) {
    return holds(desc, row, "0") || holds(desc, row, row->initial);
}

moe_status moei_layer_desc_close(moe_layer_desc *given, const moe_layer_desc *ours, moe_error *error) {
    const moei_option_table table = moei_layer_option_table();
    const size_t known = given->size < sizeof *ours ? given->size : sizeof *ours;
    for (size_t i = 0; i < table.count; ++i)
        if (table.row[i].offset >= known && !asks_nothing(ours, &table.row[i]))
            return moei_error_set(
                error, MOE_ERR_UNSUPPORTED,
                "%s: no field of a moe_layer_desc of %zu bytes; the header that the caller was "
                "built with is older than this library",
                table.row[i].key, given->size);
    memcpy((char *)given + sizeof given->size, (const char *)ours + sizeof ours->size,
           known - sizeof given->size);
    return MOE_OK;
}

void moe_layer_desc_forget(moe_layer_desc *desc) {
    const moei_option_table table = moei_layer_option_table();
    moe_layer_desc d;
    if (moei_layer_desc_open(desc, &d, NULL) != MOE_OK) return;
    for (size_t i = 0; i < table.count; ++i) unsay(&d, &table.row[i]);
    moei_layer_desc_close(desc, &d, NULL);
}

static unsigned mark_of_name(const moe_layer_alias *named) {
    unsigned i = 0;
    while (moe_layer_alias_at(i) != named) ++i;
    return SAID_BY + i;
}

static moe_status take_back(moe_layer_desc *desc, unsigned by, moe_error *error) {
    const moei_option_table table = moei_layer_option_table();
    for (size_t i = 0; i < table.count; ++i) {
        if (*mark_of(desc, &table.row[i]) == by)
            MOEI_TRY(moei_layer_desc_imply(desc, &table.row[i], table.row[i].initial, error));
    }
    return MOE_OK;
}

static moe_status imply(moe_layer_desc *desc, const moe_option *row, const moe_alias_setting *setting,
                        const char *value, moe_error *error) {
    const bool anything = strcmp(setting->where, "unset") == 0;
    if (is_said(desc, row) || !(anything || holds(desc, row, setting->where))) return MOE_OK;
    return moei_layer_desc_imply(desc, row, value, error);
}

/* What two names say the same, neither takes back alone. */
static moe_status say(moe_layer_desc *desc, const moe_option *row, const char *value, unsigned by,
                      moe_error *error) {
    char before[64];
    const bool said = is_said(desc, row);
    moei_option_get(row, desc, before, sizeof before);
    MOEI_TRY(moei_option_set(row, desc, value, error));
    *mark_of(desc, row) = (uint8_t)(said && holds(desc, row, before) ? SAID : by);
    return MOE_OK;
}

static moe_status say_all(moe_layer_desc *desc, const moe_layer_alias *alias, const char *given, unsigned by,
                          moe_error *error) {
    const moe_alias_setting *setting;
    for (size_t i = 0; (setting = moe_layer_alias_setting(alias, i)); ++i) {
        const moe_option *row = moe_layer_option_find(setting->key);
        const char *value = setting->value ? setting->value : given;
        if (strcmp(value, "-") == 0) value = given + strcspn(given, "-") + 1;
        MOEI_TRY(setting->where ? imply(desc, row, setting, value, error) : say(desc, row, value, by, error));
    }
    return MOE_OK;
}

static moe_status set_alias(moe_layer_desc *desc, const moe_layer_alias *alias, const char *value,
                            unsigned by, moe_error *error) {
    MOEI_TRY(take_back(desc, by, error));
    return say_all(desc, alias, value, by, error);
}

static moe_status set(moe_layer_desc *desc, const char *key, const char *value, moe_error *error) {
    const moe_option *row = moe_layer_option_find(key);
    const moe_layer_alias *alias, *named = moe_layer_alias_named(key);
    const unsigned by = named ? mark_of_name(named) : SAID;
    MOEI_TRY(moe_layer_alias_find(key, value, &alias, error));
    if (alias) return set_alias(desc, alias, value, by, error);
    if (!row)
        return moei_option_unknown(moei_layer_option_table(), "option", key, "moe_layer_option_at", error);
    MOEI_TRY(moei_option_set(row, desc, value, error));
    *mark_of(desc, row) = SAID;
    return named ? take_back(desc, by, error) : MOE_OK;
}

moe_status moe_layer_desc_set(moe_layer_desc *desc, const char *key, const char *value, moe_error *error) {
    moe_layer_desc d;
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_set", "desc", desc));
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_set", "key", key));
    MOEI_TRY(moei_error_need(error, "moe_layer_desc_set", "value", value));
    MOEI_TRY(moei_layer_desc_open(desc, &d, error));
    MOEI_TRY(set(&d, key, value, error));
    return moei_layer_desc_close(desc, &d, error);
}
