/* page_about.c: the last sections: what the model writes, how it was set, where it ran.
 * sample.txt, config.resolved.yaml and run.json as they are, every text escaped.
 */
#include "report/page.h"

#include <stdio.h>
#include <string.h>

enum { MAX_KEY = 200, MAX_DEPTH = 6 };

void moelm_page_sample(moelm_html *html, const moelm_run *run) {
    moelm_section_begin(html, "sample", "What it writes");
    if (run->sample_bytes == 0) {
        moelm_html_missing(
            html, "There is no <code>sample.txt</code>: <code>moekit generate --run</code> writes one.");
    } else {
        size_t shown = run->sample_bytes < MOELM_SAMPLE_BYTES ? run->sample_bytes : MOELM_SAMPLE_BYTES;
        moelm_html_put(html, "<pre class=\"sample\">");
        moelm_html_bytes(html, run->sample, shown);
        moelm_html_put(html, "</pre>\n");
        if (shown < run->sample_bytes) {
            moelm_html_printf(html, "<p class=\"note\">The first %s of %s bytes.</p>\n",
                              moelm_count((int64_t)shown).s, moelm_count((int64_t)run->sample_bytes).s);
        }
    }
    moelm_section_end(html);
}

/* "moe" of "moe.top_k"; "" where there is no dot. */
static size_t group_length(const char *key) {
    const char *dot = strchr(key, '.');
    return dot ? (size_t)(dot - key) : 0;
}

/* Rows of the group that setting `first` belongs to, changed or not; returns how many. html NULL: counts. */
static int64_t write_rows(moelm_html *html, const moelm_run *run, int64_t first, bool changed) {
    const char *key = run->setting[first].key;
    const size_t length = group_length(key), skip = length > 0 ? length + 1 : 0;
    int64_t n = 0;
    for (int64_t i = first; i < run->n_settings; ++i) {
        const moelm_setting *setting = &run->setting[i];
        if (group_length(setting->key) != length || strncmp(setting->key, key, length) != 0) break;
        if (setting->changed != changed) continue;
        ++n;
        if (!html) continue;
        moelm_table_row(html, setting->key + skip);
        moelm_table_cell(html, *setting->value ? setting->value : "\xe2\x80\x93");
        moelm_table_row_end(html);
    }
    return n;
}

static void write_table(moelm_html *html, const moelm_run *run, int64_t first, bool changed,
                        const char *caption) {
    static const char *const heading[] = {"Setting", "Value", NULL};
    moelm_table_begin(html, "settings", caption, heading);
    write_rows(html, run, first, changed);
    moelm_table_end(html);
}

/* A group: what was set, then, folded, what is at its default. Returns its number of settings. */
static int64_t write_group(moelm_html *html, const moelm_run *run, int64_t first) {
    const char *key = run->setting[first].key;
    const size_t length = group_length(key);
    const int64_t set = write_rows(NULL, run, first, true), rest = write_rows(NULL, run, first, false);
    char caption[MAX_KEY] = "settings";
    /* Letters of keys are plain, but the file may be anybody's: other bytes never reach the markup. */
    if (length > 0 && length < MAX_KEY && strspn(key, "abcdefghijklmnopqrstuvwxyz_0123456789") >= length)
        snprintf(caption, sizeof caption, "%.*s", (int)length, key);
    moelm_html_put(html, "<div class=\"group\">\n");
    if (set > 0) write_table(html, run, first, true, caption);
    if (rest > 0) {
        moelm_html_printf(html, "<details><summary>%s: %s %s</summary>\n", caption, moelm_count(rest).s,
                          rest == 1 ? "default" : "defaults");
        write_table(html, run, first, false, "at their defaults");
        moelm_html_put(html, "</details>\n");
    }
    moelm_html_put(html, "</div>\n");
    return set + rest;
}

void moelm_page_settings(moelm_html *html, const moelm_run *run) {
    moelm_section_begin(html, "configuration", "Configuration");
    if (run->n_settings == 0) moelm_html_missing(html, "There is no <code>config.resolved.yaml</code>.");
    moelm_html_put(html, "<div class=\"columns\">\n");
    for (int64_t i = 0; i < run->n_settings;) i += write_group(html, run, i);
    moelm_html_put(html, "</div>\n");
    moelm_section_end(html);
}

static void write_scalar(moelm_html *html, const char *key, const json_t *value) {
    moelm_table_row(html, key);
    if (json_is_string(value)) {
        moelm_table_cell(html, json_string_value(value));
    } else if (json_is_integer(value)) {
        moelm_html_printf(html, "<td>%" JSON_INTEGER_FORMAT "</td>", json_integer_value(value));
    } else if (json_is_real(value)) {
        moelm_table_cell(html, moelm_digits(json_real_value(value), 6).s);
    } else {
        moelm_table_cell(html, json_is_null(value) ? "\xe2\x80\x93" : json_is_true(value) ? "yes" : "no");
    }
    moelm_table_row_end(html);
}

static void write_json(moelm_html *html, const char *prefix, json_t *value, int depth);

static void write_entry(moelm_html *html, const char *prefix, const char *name, json_t *value, int depth) {
    char key[MAX_KEY];
    snprintf(key, sizeof key, "%s%s%s", prefix, *prefix ? "." : "", name);
    write_json(html, key, value, depth + 1);
}

/* Objects and lists become rows with dotted names; deeper ones than anybody writes are left out. */
static void write_json(moelm_html *html, const char *prefix, json_t *value, int depth) {
    if (depth > MAX_DEPTH) return;
    if (json_is_object(value)) {
        const char *name;
        json_t *entry;
        json_object_foreach(value, name, entry) write_entry(html, prefix, name, entry, depth);
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); ++i) {
            char name[24];
            snprintf(name, sizeof name, "%zu", i + 1);
            write_entry(html, prefix, name, json_array_get(value, i), depth);
        }
    } else {
        write_scalar(html, prefix, value);
    }
}

void moelm_page_environment(moelm_html *html, const moelm_run *run) {
    static const char *const heading[] = {"What", "Value", NULL};
    moelm_section_begin(html, "environment", "Environment");
    if (run->about) {
        moelm_table_begin(html, "settings", "run.json", heading);
        write_json(html, "", run->about, 0);
        moelm_table_end(html);
    } else {
        moelm_html_missing(html, "There is no <code>run.json</code>.");
    }
    moelm_section_end(html);
}
