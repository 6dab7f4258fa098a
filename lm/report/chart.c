/* chart.c: line charts: frame, grid, ticks, bands, curves, marks.
 * Points of at most MOELM_POINTS buckets in, one <svg> of WIDTH x HEIGHT units out.
 * Source: SVG 1.1, paths of absolute coordinates with one decimal.
 */
#include "report/svg.h"

enum { WIDTH = 360, HEIGHT = 200, LEFT = 44, RIGHT = 350, TOP = 10, BOTTOM = 174 };

static double place_x(const moelm_chart *chart, double x) {
    return LEFT + (RIGHT - LEFT) * moelm_axis_place(&chart->x, x);
}

/* Values beyond the axis are drawn at its edge rather than over the letters. */
static double place_y(const moelm_chart *chart, double y) {
    double part = moelm_axis_place(&chart->y, y);
    return BOTTOM - (BOTTOM - TOP) * (part > 0 ? part < 1 ? part : 1 : 0);
}

static void draw_axes(moelm_html *html, const moelm_chart *chart) {
    moelm_html_put(html, "<g class=\"axis\">");
    for (int i = 0; i < chart->y.n_ticks; ++i) {
        double y = place_y(chart, chart->y.tick[i]);
        moelm_html_printf(
            html, "<path class=\"grid\" d=\"M%d %sH%d\"/><text x=\"%d\" y=\"%s\" class=\"end\">%s</text>",
            LEFT, moelm_coord(y).s, RIGHT, LEFT - 6, moelm_coord(y + 3.5).s, moelm_tick(&chart->y, i).s);
    }
    for (int i = 0; i < chart->x.n_ticks; ++i) {
        double x = place_x(chart, chart->x.tick[i]);
        const char *anchor = x > RIGHT - 14 ? "end" : "mid";
        moelm_html_printf(
            html, "<path class=\"tick\" d=\"M%s %dv4\"/><text x=\"%s\" y=\"%d\" class=\"%s\">%s</text>",
            moelm_coord(x).s, BOTTOM, moelm_coord(x > RIGHT - 14 ? x + 8 : x).s, BOTTOM + 17, anchor,
            moelm_tick(&chart->x, i).s);
    }
    moelm_html_printf(html, "<path class=\"base\" d=\"M%d %dH%d\"/></g>\n", LEFT, BOTTOM, RIGHT);
}

void moelm_chart_begin(moelm_html *html, const moelm_chart *chart) {
    moelm_html_printf(html, "<figure><figcaption><h3>%s</h3><p>%s</p></figcaption>\n", chart->title,
                      chart->about);
    moelm_html_printf(html,
                      "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"%s-t %s-d\">"
                      "<title id=\"%s-t\">%s</title><desc id=\"%s-d\">%s</desc>\n",
                      WIDTH, HEIGHT, chart->id, chart->id, chart->id, chart->title, chart->id,
                      chart->description);
    draw_axes(html, chart);
}

void moelm_chart_end(moelm_html *html) {
    moelm_html_put(html, "</svg></figure>\n");
}

static void put_point(moelm_html *html, char command, double x, double y) {
    moelm_html_printf(html, "%c%s %s", command, moelm_coord(x).s, moelm_coord(y).s);
}

void moelm_chart_band(moelm_html *html, const moelm_chart *chart, const double *x, const moelm_point *points,
                      int n_points) {
    char command = 'M';
    moelm_html_put(html, "<path class=\"band\" d=\"");
    for (int i = 0; i < n_points; ++i) {
        if (points[i].n == 0) continue;
        put_point(html, command, place_x(chart, x[i]), place_y(chart, points[i].high));
        command = 'L';
    }
    for (int i = n_points - 1; i >= 0 && command == 'L'; --i) {
        if (points[i].n > 0) put_point(html, 'L', place_x(chart, x[i]), place_y(chart, points[i].low));
    }
    moelm_html_put(html, "\"/>\n");
}

void moelm_chart_line(moelm_html *html, const moelm_chart *chart, const double *x, const moelm_point *points,
                      int n_points, const char *class_name, const char *title) {
    int n_drawn = 0;
    moelm_html_printf(html, "<path class=\"line %s\" d=\"", class_name);
    for (int i = 0; i < n_points; ++i) {
        if (points[i].n == 0) continue;
        put_point(html, n_drawn++ ? 'L' : 'M', place_x(chart, x[i]), place_y(chart, points[i].mean));
    }
    if (n_drawn == 1) moelm_html_put(html, "h-6"); /* a single step is a dash */
    moelm_html_printf(html, "\"><title>%s</title></path>\n", title);
}

void moelm_chart_marks(moelm_html *html, const moelm_chart *chart, const double *x, const moelm_point *points,
                       int n_points, const char *what) {
    moelm_html_put(html, "<g class=\"marks\">");
    for (int i = 0; i < n_points; ++i) {
        if (points[i].n == 0) continue;
        moelm_html_printf(html,
                          "<circle cx=\"%s\" cy=\"%s\" r=\"3.5\"><title>%s, step %s: %s</title></circle>",
                          moelm_coord(place_x(chart, x[i])).s, moelm_coord(place_y(chart, points[i].mean)).s,
                          what, moelm_count((int64_t)x[i]).s, moelm_digits(points[i].mean, 3).s);
    }
    moelm_html_put(html, "</g>\n");
}

void moelm_chart_rule(moelm_html *html, const moelm_chart *chart, double value, const char *name) {
    double part = moelm_axis_place(&chart->y, value);
    if (!(part >= 0 && part <= 1)) return;
    double y = place_y(chart, value);
    moelm_html_printf(
        html, "<g class=\"rule\"><path d=\"M%d %sH%d\"/><text x=\"%d\" y=\"%s\">%s</text></g>\n", LEFT,
        moelm_coord(y).s, RIGHT, LEFT + 4, moelm_coord(y - 4).s, name); /* curves begin far above it */
}

int moelm_depth(int index, int n) {
    return n > 1 ? (index * (MOELM_DEPTHS - 1) + (n - 1) / 2) / (n - 1) : MOELM_DEPTHS / 2;
}
