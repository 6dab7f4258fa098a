/* report.c: one self-contained HTML page from a run directory.
 * Files of the run in, one file out, replaced in one step. The page has no script, no reference outside
 * itself and no time of its own: the same run gives the same bytes. Source: docs/run-directory.md.
 */
#include <moekit/lm.h>

#include "core/locale.h"
#include "core/status.h"
#include "format/file.h"
#include "report/page.h"

static void write_page(moei_html *html, const moei_run *run) {
    moei_html_put(html, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n"
                        "<meta charset=\"utf-8\"/>\n"
                        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
                        "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>");
    moei_html_text(html, run->name);
    moei_html_put(html, " &#183; moekit report</title>\n");
    moei_style_write(html);
    moei_html_put(html, "</head>\n<body>\n");
    moei_page_head(html, run);
    moei_html_put(html, "<main>\n");
    moei_page_curves(html, run);
    moei_page_load(html, run);
    moei_page_balance(html, run);
    moei_page_layers(html, run);
    moei_page_tokens(html, run);
    moei_page_sample(html, run);
    moei_page_settings(html, run);
    moei_page_environment(html, run);
    moei_html_printf(html, "</main>\n<footer><p>Written by moekit %s.</p></footer>\n</body>\n</html>\n",
                     moe_version_string());
}

moe_status moe_lm_report(const char *run_dir, const char *html_path, moe_error *error) {
    if (!run_dir || !html_path) {
        return moei_error_set(error, MOE_ERR_ARGUMENT, "moe_lm_report: run_dir and html_path must be given");
    }
    moei_run run;
    moei_html html = {0};
    moe_status status = moei_run_read(run_dir, &run, error);
    if (status == MOE_OK) {
        locale_t before = moei_locale_enter(); /* a drawing's numbers have points */
        write_page(&html, &run);
        moei_locale_leave(before);
        status = html.failed
                     ? moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for the report", html_path)
                     : moei_file_write(html_path, html.data, html.length, error);
    }
    moei_html_free(&html);
    moei_run_free(&run);
    return status;
}
