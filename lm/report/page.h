/* page.h: the sections of the report in the order of the page. Each copes with what a run lacks.
 */
#ifndef MOELM_PAGE_H
#define MOELM_PAGE_H

#include "report/html.h"
#include "report/run.h"

void moelm_style_write(moelm_html *html); /* the style sheet */

void moelm_page_head(moelm_html *html, const moelm_run *run);
void moelm_page_curves(moelm_html *html, const moelm_run *run);
void moelm_page_load(moelm_html *html, const moelm_run *run);
void moelm_page_balance(moelm_html *html, const moelm_run *run);
void moelm_page_layers(moelm_html *html, const moelm_run *run);
void moelm_page_tokens(moelm_html *html, const moelm_run *run);
void moelm_page_sample(moelm_html *html, const moelm_run *run);
void moelm_page_settings(moelm_html *html, const moelm_run *run);
void moelm_page_environment(moelm_html *html, const moelm_run *run);

#endif
