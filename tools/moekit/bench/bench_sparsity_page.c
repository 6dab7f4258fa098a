/* bench_sparsity_page.c: the page and the picture of moekit bench sparsity.
 * A crossing is interpolated between two evaluations; a model that does not get there has none (NaN).
 */
#include "bench/bench_sparsity.h"
#include "bench/bench_train.h"

#include <math.h>
#include <stdlib.h>

/* 1. Figures. */

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median over the steps of all seeds; those that follow an evaluation are the longest. */
static double step_seconds(const sparsity *s, int model) {
    double sum = 0;
    for (int64_t seed = 0; seed < s->n_seeds; ++seed) {
        sparsity_curve *c = &s->curve[model][seed];
        qsort(c->seconds, (size_t)c->n_steps, sizeof *c->seconds, compare);
        sum += c->seconds[c->n_steps / 2];
    }
    return sum / (double)s->n_seeds;
}

static int64_t n_points(const sparsity *s) {
    return s->curve[0][0].n_points;
}

/* The step at which the model's mean curve goes below `bits`. */
static double crossing(const sparsity *s, int model, double bits) {
    const double *step = s->curve[model][0].step;
    double before = NAN;
    for (int64_t i = 0; i < n_points(s); ++i) {
        const double now = sparsity_at(s, model, i).mean;
        if (now <= bits) {
            if (i == 0) return step[0];
            return step[i - 1] + (step[i] - step[i - 1]) * (before - bits) / (before - now);
        }
        before = now;
    }
    return NAN;
}

/* 2. The page. */

static void put_row(FILE *out, const sparsity *s, int model, const sparsity_spread *goal) {
    const sparsity_spread last = sparsity_at(s, model, n_points(s) - 1);
    const double reached = crossing(s, model, goal->mean), seconds = step_seconds(s, model);
    fprintf(out, "| %s | %.2f | %.2f | %.3f (%.3f - %.3f) | %.1f | ", s->name[model], s->params[model] * 1e-6,
            s->active[model] * 1e-6, last.mean, last.low, last.high, 1e3 * seconds);
    if (isnan(reached))
        fprintf(out, "not reached | - |\n");
    else
        fprintf(out, "%.0f | %.1f |\n", reached, reached * seconds);
}

static void put_answer(FILE *out, const sparsity *s, int dense, const char *which) {
    const double steps = s->curve[0][0].step[n_points(s) - 1];
    const sparsity_spread goal = sparsity_at(s, dense, n_points(s) - 1);
    const double reached = crossing(s, 0, goal.mean);
    const double time = step_seconds(s, dense) * steps / (reached * step_seconds(s, 0));
    if (isnan(reached))
        fprintf(out, "- The mixture does not reach the %s model's final figure of %.3f in %.0f steps.\n",
                which, goal.mean, steps);
    else
        fprintf(
            out,
            "- The mixture reaches the %s model's final figure of %.3f after %.0f of %.0f steps: %.2f times "
            "fewer\n  steps, and %.2f times %s seconds.\n",
            which, goal.mean, reached, steps, steps / reached, time >= 1 ? time : 1 / time,
            time >= 1 ? "fewer" : "more");
}

void sparsity_page(FILE *out, const cli_args *args, const sparsity *s, const char *picture) {
    const sparsity_spread goal = sparsity_at(s, 1, n_points(s) - 1);
    fprintf(out,
            "# Do experts pay?\n\n"
            "A mixture of experts beside two dense models. They differ from it in their FFN alone:\n"
            "one is as wide as the experts that a token meets, the other as wide as all experts\n"
            "together. Text, batches, steps and learning rate are the same, with %lld seed%s. Written "
            "by\n\n```sh\n",
            (long long)s->n_seeds, s->n_seeds == 1 ? "" : "s");
    bench_page_command(out, args);
    fprintf(out, "\n```\n\n");
    if (*picture) fprintf(out, "![held-out bits per byte by step](%s)\n\n", picture);
    fprintf(out,
            "Parameters are in millions. Bits per byte are of held-out text at the last step: mean\n"
            "and range over the seeds. The last two columns tell when the mean curve reaches %.3f,\n"
            "the final figure of the dense model of equal active size.\n\n"
            "| model | parameters | active | bits per byte | ms a step | steps to %.3f | seconds |\n"
            "|---|---|---|---|---|---|---|\n",
            goal.mean, goal.mean);
    for (int m = 0; m < SPARSITY_MODELS; ++m) put_row(out, s, m, &goal);
    fprintf(out, "\n");
    put_answer(out, s, 1, "equally active");
    put_answer(out, s, 2, "equally large");
    const char *foresight = moe_lm_config_foresight(args->config);
    if (foresight) fprintf(out, "- The mixture's figures look ahead and do not compare: %s.\n", foresight);
    fprintf(out, "\nThe learning rate falls until the last step, and most of what that brings comes at the\n"
                 "end. A model that reaches a figure earlier reaches it with the rate still high, so\n"
                 "these counts of steps are cautious. A step's time is the median of its run; with\n"
                 "`--jobs`, runs went on beside each other.\n");
}

/* 3. The picture: mean curves over bands from the lowest to the highest seed. */

enum { WIDTH = 720, HEIGHT = 400, LEFT = 60, RIGHT = 20, TOP = 20, BOTTOM = 45 };

typedef struct scale {
    double steps, low, high;
} scale;

static double x_of(const scale *a, double step) {
    return LEFT + (WIDTH - LEFT - RIGHT) * step / a->steps;
}

static double y_of(const scale *a, double bits) {
    return TOP + (HEIGHT - TOP - BOTTOM) * (a->high - bits) / (a->high - a->low);
}

/* The first evaluations of all are far above the rest; the axis begins where curves can be told apart. */
static scale scale_of(const sparsity *s) {
    scale a = {s->curve[0][0].step[n_points(s) - 1], INFINITY, 0};
    const int64_t first = n_points(s) / 10;
    for (int m = 0; m < SPARSITY_MODELS; ++m) {
        a.high = fmax(a.high, sparsity_at(s, m, first).high);
        for (int64_t i = 0; i < n_points(s); ++i) a.low = fmin(a.low, sparsity_at(s, m, i).low);
    }
    a.low = floor(a.low * 10) / 10;
    a.high = fmax(ceil(a.high * 10) / 10, a.low + 0.1);
    return a;
}

static void put_axes(FILE *out, const scale *a) {
    const double tick = a->high - a->low > 1 ? 0.2 : 0.1;
    const int ticks = (int)lround((a->high - a->low) / tick);
    for (int i = 0; i <= ticks; ++i) {
        const double bits = a->low + i * tick, y = y_of(a, bits);
        fprintf(out,
                "<path d='M%d %.1fH%d' stroke='#ddd'/><text x='%d' y='%.1f' text-anchor='end'>%.1f</text>\n",
                LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, bits);
    }
    for (int i = 0; i <= 4; ++i)
        fprintf(out, "<text x='%.1f' y='%d' text-anchor='middle'>%.0f</text>\n", x_of(a, a->steps * i / 4),
                HEIGHT - BOTTOM + 18, a->steps * i / 4);
    fprintf(out, "<text x='%d' y='%d' text-anchor='middle'>steps</text>\n", (LEFT + WIDTH - RIGHT) / 2,
            HEIGHT - 8);
    fprintf(
        out,
        "<text transform='translate(16 %d) rotate(-90)' text-anchor='middle'>held-out bits per byte</text>\n",
        (TOP + HEIGHT - BOTTOM) / 2);
}

static void put_curve(FILE *out, const sparsity *s, const scale *a, int model, const char *color) {
    const double *step = s->curve[model][0].step;
    int64_t first = 0;
    while (first + 1 < n_points(s) && sparsity_at(s, model, first).high > a->high) ++first;
    fprintf(out, "<polygon fill='%s' fill-opacity='0.2' points='", color);
    for (int64_t i = first; i < n_points(s); ++i)
        fprintf(out, "%.1f,%.1f ", x_of(a, step[i]), y_of(a, sparsity_at(s, model, i).high));
    for (int64_t i = n_points(s); i-- > first;)
        fprintf(out, "%.1f,%.1f ", x_of(a, step[i]), y_of(a, sparsity_at(s, model, i).low));
    fprintf(out, "'/>\n<polyline fill='none' stroke='%s' stroke-width='2' points='", color);
    for (int64_t i = first; i < n_points(s); ++i)
        fprintf(out, "%.1f,%.1f ", x_of(a, step[i]), y_of(a, sparsity_at(s, model, i).mean));
    fprintf(out, "'/>\n<rect x='%d' y='%d' width='14' height='4' fill='%s'/><text x='%d' y='%d'>%s</text>\n",
            WIDTH - 230, TOP + 12 + 20 * model, color, WIDTH - 210, TOP + 18 + 20 * model, s->name[model]);
}

void sparsity_picture(FILE *out, const sparsity *s) {
    static const char *const color[SPARSITY_MODELS] = {"#0072b2", "#d55e00", "#555555"};
    const scale a = scale_of(s);
    fprintf(out,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' font-family='sans-serif' "
            "font-size='12'>\n<rect width='%d' height='%d' fill='white'/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_axes(out, &a);
    for (int m = 0; m < SPARSITY_MODELS; ++m) put_curve(out, s, &a, m, color[m]);
    fprintf(out, "</svg>\n");
}
