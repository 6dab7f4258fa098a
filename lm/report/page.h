/* page.h: the sections of the report in the order of the page. Each copes with what a run lacks.
 */
#ifndef MOEI_PAGE_H
#define MOEI_PAGE_H

#include "report/html.h"
#include "report/run.h"

void moei_style_write(moei_html *html); /* the style sheet */

void moei_page_head(moei_html *html, const moei_run *run);
void moei_page_curves(moei_html *html, const moei_run *run);
void moei_page_load(moei_html *html, const moei_run *run);
void moei_page_balance(moei_html *html, const moei_run *run);
void moei_page_layers(moei_html *html, const moei_run *run);
void moei_page_tokens(moei_html *html, const moei_run *run);
void moei_page_sample(moei_html *html, const moei_run *run);
void moei_page_settings(moei_html *html, const moei_run *run);
void moei_page_environment(moei_html *html, const moei_run *run);

#endif
