/* heat.c: heat maps: rows of cells coloured by their share of the mean, a legend with numbers.
 * value[n_rows, n_bins] in; one path a colour, whose strokes are the runs of equal cells of a row.
 * Source: run-length drawing keeps 250,000 cells below 3 MB, where a rectangle a cell would take 15.
 */
#include "report/svg.h"

#include <math.h>
#include <stdio.h>

enum { WIDTH = 360, LEFT = 28, RIGHT = 322, TOP = 4, BELOW = 22, MANY_ROWS = 20 };

/* Upper edges of the levels; finer around 1, where a balanced router is. The last has none. */
static const double edge[MOELM_HEAT_LEVELS - 1] = {0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3};
enum { NO_ROWS = -1, NO_VALUE = -2 };

static int level_of(double value) {
    if (!(value >= 0)) return NO_VALUE;
    if (value == 0) return NO_ROWS;
    int level = 0;
    while (level < MOELM_HEAT_LEVELS - 1 && value >= edge[level]) ++level;
    return level;
}

static int cell_level(const moelm_heat *heat, int row, int bin) {
    return level_of(heat->value[row * heat->row_stride + bin * heat->bin_stride]);
}

/* All cells of one level. A cell is one unit wide and high; the group around scales it. */
static void draw_level(moelm_html *html, const moelm_heat *heat, int level, const char *class_name) {
    bool open = false;
    for (int row = 0; row < heat->n_rows; ++row) {
        for (int bin = 0; bin < heat->n_bins;) {
            int end = bin + 1;
            if (cell_level(heat, row, bin) != level) {
                bin = end;
                continue;
            }
            while (end < heat->n_bins && cell_level(heat, row, end) == level) ++end;
            if (!open) moelm_html_printf(html, "<path class=\"%s\" d=\"", class_name);
            open = true;
            moelm_html_printf(html, "M%d %dh%d", bin, row, end - bin);
            bin = end;
        }
    }
    if (open) moelm_html_put(html, "\"/>\n");
}

/* Low maps get high rows; large ones shrink, but stay at least as high as a screen line a row. */
static double row_height(int n_rows) {
    double height = 192.0 / n_rows;
    return height > 18 ? 18 : height < 1.25 ? 1.25 : height;
}

static void draw_rows(moelm_html *html, const moelm_heat *heat, double height) {
    int stride = 1;
    while (heat->n_rows > stride * MANY_ROWS || stride * height < 9) stride *= 2;
    moelm_html_put(html, "<g class=\"axis\">");
    for (int row = 0; row < heat->n_rows; row += stride) {
        double y = TOP + (row + 0.5) * height + 3.5;
        moelm_html_printf(html, "<text x=\"%d\" y=\"%s\" class=\"end\">%d</text>", LEFT - 5, moelm_coord(y).s,
                          row);
        if (stride == 1) {
            moelm_html_printf(html, "<text x=\"%d\" y=\"%s\" class=\"end\">%s</text>", WIDTH - 2,
                              moelm_coord(y).s, moelm_fixed(heat->row_mean[row], 2).s);
        }
    }
    moelm_html_put(html, "</g>\n");
}

/* An invisible box over every row tells its numbers to who points at it. */
static void draw_hints(moelm_html *html, const moelm_heat *heat, double height) {
    for (int row = 0; row < heat->n_rows; ++row) {
        double low = INFINITY, high = -INFINITY;
        for (int bin = 0; bin < heat->n_bins; ++bin) {
            double value = heat->value[row * heat->row_stride + bin * heat->bin_stride];
            if (value < low) low = value;
            if (value > high) high = value;
        }
        moelm_html_printf(
            html,
            "<rect class=\"hint\" x=\"%d\" y=\"%s\" width=\"%d\" height=\"%s\"><title>%s %d: %s, "
            "from %s to %s</title></rect>",
            LEFT, moelm_coord(TOP + row * height).s, RIGHT - LEFT, moelm_coord(height).s, heat->row_name, row,
            moelm_fixed(heat->row_mean[row], 2).s, moelm_fixed(low, 2).s, moelm_fixed(high, 2).s);
    }
    moelm_html_put(html, "\n");
}

/* Where a step lies: bins end at their steps, so the place is found between two ends. */
static double place_step(const moelm_heat *heat, double step) {
    double before = 0;
    for (int bin = 0; bin < heat->n_bins; ++bin) {
        double end = (double)heat->step[bin];
        if (step <= end)
            return LEFT + (RIGHT - LEFT) * (bin + (step - before) / (end - before)) / heat->n_bins;
        before = end;
    }
    return RIGHT;
}

static void draw_steps(moelm_html *html, const moelm_heat *heat, double bottom) {
    moelm_axis axis =
        moelm_axis_linear(0, (double)heat->step[heat->n_bins - 1], MOELM_AXIS_TIGHT | MOELM_AXIS_WHOLE);
    moelm_html_put(html, "<g class=\"axis\">");
    for (int i = 0; i < axis.n_ticks; ++i) {
        double x = place_step(heat, axis.tick[i]);
        moelm_html_printf(
            html, "<path class=\"tick\" d=\"M%s %sv4\"/><text x=\"%s\" y=\"%s\" class=\"mid\">%s</text>",
            moelm_coord(x).s, moelm_coord(bottom).s, moelm_coord(x).s, moelm_coord(bottom + 16).s,
            moelm_tick(&axis, i).s);
    }
    moelm_html_put(html, "</g>\n");
}

static void draw_cells(moelm_html *html, const moelm_heat *heat, double height) {
    moelm_html_printf(html,
                      "<g class=\"cells\" transform=\"translate(%d %s) scale(%s %s) translate(0 .5)\">\n",
                      LEFT, moelm_coord(TOP + 0.0).s, moelm_fixed((double)(RIGHT - LEFT) / heat->n_bins, 4).s,
                      moelm_fixed(height, 4).s);
    draw_level(html, heat, NO_ROWS, "none");
    for (int level = 0; level < MOELM_HEAT_LEVELS; ++level) {
        char name[16];
        snprintf(name, sizeof name, "h%d", level);
        draw_level(html, heat, level, name);
    }
    moelm_html_put(html, "</g>\n");
}

void moelm_heat_draw(moelm_html *html, const moelm_heat *heat) {
    double height = row_height(heat->n_rows), bottom = TOP + height * heat->n_rows;
    moelm_html_printf(html, "<figure><figcaption><h3>%s</h3><p>%s</p></figcaption>\n", heat->title,
                      heat->about);
    moelm_html_printf(html,
                      "<svg viewBox=\"0 0 %d %s\" role=\"img\" aria-labelledby=\"%s-t %s-d\">"
                      "<title id=\"%s-t\">%s</title><desc id=\"%s-d\">%s</desc>\n",
                      WIDTH, moelm_coord(bottom + BELOW).s, heat->id, heat->id, heat->id, heat->title,
                      heat->id, heat->description);
    draw_cells(html, heat, height);
    moelm_html_printf(html, "<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%s\"/>\n", LEFT,
                      TOP, RIGHT - LEFT, moelm_coord(height * heat->n_rows).s);
    draw_hints(html, heat, height);
    draw_rows(html, heat, height);
    draw_steps(html, heat, bottom);
    moelm_html_put(html, "</svg></figure>\n");
}

void moelm_heat_legend(moelm_html *html) {
    static const char *const words[MOELM_HEAT_LEVELS] = {"below 0.25", "0.25", "0.5", "0.75",     "1",
                                                         "1.25",       "1.5",  "2",   "3 or more"};
    moelm_html_put(html, "<p class=\"legend\">Rows routed to an expert, as a multiple of the mean, from: "
                         "<span class=\"key\"><i class=\"none\"></i>none</span>");
    for (int level = 0; level < MOELM_HEAT_LEVELS; ++level) {
        moelm_html_printf(html, " <span class=\"key\"><i class=\"h%d\"></i>%s</span>", level, words[level]);
    }
    moelm_html_put(html, "</p>\n");
}
