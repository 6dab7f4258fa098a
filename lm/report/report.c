/* report.c: one self-contained HTML page from a run directory.
 * Files of the run in, one file out, replaced in one step. The page has no script, no reference outside
 * itself and no time of its own: the same run gives the same bytes. Source: docs/run-directory.md.
 */
#include <moekit/lm.h>

#include "core/locale.h"
#include "core/status.h"
#include "format/file.h"
#include "report/page.h"

static void write_page(moelm_html *html, const moelm_run *run) {
    moelm_html_put(html, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n"
                         "<meta charset=\"utf-8\"/>\n"
                         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
                         "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>");
    moelm_html_text(html, run->name);
    moelm_html_put(html, " &#183; moekit report</title>\n");
    moelm_style_write(html);
    moelm_html_put(html, "</head>\n<body>\n");
    moelm_page_head(html, run);
    moelm_html_put(html, "<main>\n");
    moelm_page_curves(html, run);
    if (!moelm_run_is_dense(run)) {
        moelm_page_load(html, run);
        moelm_page_balance(html, run);
        moelm_page_layers(html, run);
        moelm_page_tokens(html, run);
    }
    moelm_page_sample(html, run);
    moelm_page_settings(html, run);
    moelm_page_environment(html, run);
    moelm_html_printf(html, "</main>\n<footer><p>Written by moekit %s.</p></footer>\n</body>\n</html>\n",
                      moe_version_string());
}

moe_status moe_lm_report(const char *run_dir, const char *html_path, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_report", "run_dir", run_dir));
    MOEI_TRY(moei_error_need(error, "moe_lm_report", "html_path", html_path));
    if (moelm_run_reads(run_dir, html_path))
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "%s: is a file that the report reads, which would be lost; name another file",
                              html_path);
    moelm_run run;
    moelm_html html = {0};
    moe_status status = moelm_run_read(run_dir, &run, error);
    if (status == MOE_OK) {
        locale_t before = moei_locale_enter(); /* a drawing's numbers have points */
        write_page(&html, &run);
        moei_locale_leave(before);
        status = html.failed
                     ? moei_error_set(error, MOE_ERR_MEMORY, "%s: no memory for the report", html_path)
                     : moelm_file_write(html_path, html.data, html.length, error);
    }
    moelm_html_free(&html);
    moelm_run_free(&run);
    return status;
}
