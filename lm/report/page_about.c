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

/* One table a group, side by side where the page is wide. */
void moelm_page_settings(moelm_html *html, const moelm_run *run) {
    static const char *const heading[] = {"Setting", "Value", NULL};
    moelm_section_begin(html, "configuration", "Configuration");
    if (run->n_settings == 0) moelm_html_missing(html, "There is no <code>config.resolved.yaml</code>.");
    moelm_html_put(html, "<div class=\"columns\">\n");
    for (int64_t i = 0; i < run->n_settings;) {
        const char *key = run->setting[i].key;
        size_t length = group_length(key), skip = length > 0 ? length + 1 : 0;
        char caption[MAX_KEY] = "settings";
        /* Letters of keys are plain, but the file may be anybody's: other bytes never reach the markup. */
        if (length > 0 && length < MAX_KEY &&
            strspn(key, "abcdefghijklmnopqrstuvwxyz_0123456789") >= length) {
            snprintf(caption, sizeof caption, "%.*s", (int)length, key);
        }
        moelm_table_begin(html, "settings", caption, heading);
        for (; i < run->n_settings; ++i) {
            const char *name = run->setting[i].key;
            if (group_length(name) != length || strncmp(name, key, length) != 0) break;
            moelm_table_row(html, name + skip);
            moelm_table_cell(html, *run->setting[i].value ? run->setting[i].value : "\xe2\x80\x93");
            moelm_table_row_end(html);
        }
        moelm_table_end(html);
    }
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
