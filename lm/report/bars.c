/* bars.c: horizontal bars from zero with their names and values.
 * A handful of values in, one <svg> out; the first bar is ours, the others stand for comparison.
 */
#include "report/svg.h"

enum { WIDTH = 360, PITCH = 30, THICK = 20, LEFT = 84, RIGHT = 312 };

void moelm_bars_draw(moelm_html *html, const char *id, const char *title, const char *description,
                     const moelm_bar *bars, int n_bars) {
    double largest = 0;
    for (int i = 0; i < n_bars; ++i) largest = bars[i].value > largest ? bars[i].value : largest;
    moelm_html_printf(
        html,
        "<figure><figcaption><h3>%s</h3></figcaption>\n<svg viewBox=\"0 0 %d %d\" role=\"img\" "
        "aria-labelledby=\"%s-t %s-d\"><title id=\"%s-t\">%s</title><desc id=\"%s-d\">%s</desc>\n",
        title, WIDTH, n_bars * PITCH + 2, id, id, id, title, id, description);
    for (int i = 0; i < n_bars; ++i) {
        double width = largest > 0 ? (RIGHT - LEFT) * bars[i].value / largest : 0;
        moelm_html_printf(html, "<g class=\"%s\"><text x=\"0\" y=\"%d\">", i == 0 ? "ours" : "other",
                          i * PITCH + 16);
        moelm_html_text(html, bars[i].name);
        moelm_html_printf(html,
                          "</text><rect x=\"%d\" y=\"%d\" width=\"%s\" height=\"%d\" rx=\"2\"/>"
                          "<text x=\"%s\" y=\"%d\">%s</text></g>\n",
                          LEFT, i * PITCH + 1, moelm_coord(width).s, THICK, moelm_coord(LEFT + width + 7).s,
                          i * PITCH + 16, moelm_fixed(bars[i].value, 2).s);
    }
    moelm_html_printf(html, "<path class=\"base\" d=\"M%d 0v%d\"/></svg></figure>\n", LEFT,
                      n_bars * PITCH - 6);
}
