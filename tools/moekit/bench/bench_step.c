/* bench_step.c: trains a few steps and reads the context's times (moe_time_rows) off the steps in the middle:
 * the first ones warm up, and the last evaluates and saves.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "bench/bench_step.h"

#include "bench/bench_train.h"

#include <moekit/op.h>

#include <errno.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>

enum { WARM_UP = 3, MOST_ROWS = 32, SHARES = 8 };

typedef struct step_times {
    moe_status status;
    int64_t from, to; /* steps after which the clock starts and stops */
    double seconds;   /* of all steps between */
    double began;
    int64_t tokens;
    moe_time row[MOST_ROWS];
    size_t n_rows;
    char isa[32];
    int32_t threads;
} step_times;

/* What a reader wants to know, from rows of moe_time. */
typedef struct share {
    const char *what, *rows; /* names between spaces */
} share;
static const share shares[] = {
    {"matrix products",       " gemm_rows gemm_outer "},
    {"attention, rotary",     " attention rope "      },
    {"activations alone",     " act_pass "            },
    {"norms",                 " rmsnorm "             },
    {"cross-entropy",         " cross_entropy "       },
    {"optimizer",             " adamw sum_squares "   },
    {"router, plan, losses",  " route "               },
    {"gather, combine, sums", " gather_sum colsum "   },
};

static void on_progress(void *user, moe_ctx *ctx, const moe_lm_progress *now) {
    step_times *t = user;
    if (now->event || t->status != MOE_OK) return;
    if (now->step == t->from) {
        t->status = moe_time_start(ctx);
        t->tokens = now->tokens;
        t->began = cli_seconds();
    }
    if (now->step != t->to) return;
    t->seconds = cli_seconds() - t->began;
    t->tokens = now->tokens - t->tokens;
    size_t count;
    const moe_time *row = moe_time_rows(ctx, &count);
    for (; t->n_rows < count && t->n_rows < MOST_ROWS; ++t->n_rows) t->row[t->n_rows] = row[t->n_rows];
    snprintf(t->isa, sizeof t->isa, "%s", moe_ctx_isa(ctx));
    t->threads = moe_ctx_threads(ctx);
    moe_time_stop(ctx);
}

static double seconds_of(const step_times *t, const share *s) {
    double seconds = 0;
    for (size_t i = 0; i < t->n_rows; ++i) {
        char name[40];
        snprintf(name, sizeof name, " %s ", t->row[i].name);
        if (strstr(s->rows, name)) seconds += t->row[i].seconds;
    }
    return seconds;
}

static void print_share(const cli_args *args, const step_times *t, const char *what, double seconds) {
    const double steps = (double)(t->to - t->from), part = seconds / t->seconds;
    if (args->json)
        printf(",{\"what\":\"%s\",\"ms\":%.6g,\"share\":%.4g}", what, seconds / steps * 1e3, part);
    else
        printf("%-22s %9.3f ms  %5.1f %%\n", what, seconds / steps * 1e3, 100 * part);
}

static void print_step(const cli_args *args, const step_times *t) {
    const double steps = (double)(t->to - t->from);
    double rest = t->seconds;
    if (args->json)
        printf("{\"bench\":\"step\",\"isa\":\"%s\",\"threads\":%d,\"steps\":%lld,\"tokens_per_second\":%.6g,"
               "\"results\":[{\"what\":\"step\",\"ms\":%.6g,\"share\":1}",
               t->isa, t->threads, (long long)(t->to - t->from), (double)t->tokens / t->seconds,
               t->seconds / steps * 1e3);
    else
        printf("step of %lld tokens, mean of %lld; %s, %d threads, %.0f tokens/s\n",
               (long long)(t->tokens / (t->to - t->from)), (long long)(t->to - t->from), t->isa, t->threads,
               (double)t->tokens / t->seconds);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; ++i) {
        const double seconds = seconds_of(t, &shares[i]);
        print_share(args, t, shares[i].what, seconds);
        rest -= seconds;
    }
    print_share(args, t, "rest", rest);
    if (args->json)
        printf("]}\n");
    else
        print_share(args, t, "step", t->seconds);
}

static int remove_entry(const char *path, const struct stat *stat, int kind, struct FTW *place) {
    (void)stat;
    (void)kind;
    (void)place;
    return remove(path);
}

int bench_step(cli_args *args, int64_t steps) {
    step_times times = {.from = WARM_UP, .to = WARM_UP + steps};
    char n_steps[32], run[] = "/tmp/moekit-step-XXXXXX";
    const bool fleeting = !cli_text(args, "run");
    snprintf(n_steps, sizeof n_steps, "%lld", (long long)(times.to + 1));
    const bench_training training = {
        .name = "step",
        .setting = {{"train.steps", n_steps},
                    {"train.max_seconds", "0"},
                    {"train.eval_every", "0"},
                    {"train.save_every", "0"},
                    {"train.log_every", "0"},
                    {"data.eval", ""}},
        .fleeting = fleeting,
        .on_progress = on_progress,
        .user = &times
    };
    if (fleeting && !mkdtemp(run))
        return cli_fail(args, MOE_ERR_IO, "no temporary directory %s: %s", run, strerror(errno));
    int code = bench_train(args, run, &training, 1, 1);
    if (fleeting) nftw(run, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (code) return code;
    if (times.status != MOE_OK) return cli_fail(args, times.status, "this context tells no times");
    print_step(args, &times);
    return 0;
}
