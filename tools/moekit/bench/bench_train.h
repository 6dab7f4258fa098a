/* bench_train.h: trainings that a bench compares: the same files and command line, a few settings apart, each
 * in a run directory of its own; one after another or several beside each other.
 */
#ifndef MOEKIT_BENCH_TRAIN_H
#define MOEKIT_BENCH_TRAIN_H

#include "cli.h"

typedef struct bench_setting {
    const char *key, *value;
} bench_setting;

enum { BENCH_SETTINGS = 8 };

typedef struct bench_training {
    const char *name;                      /* of the run directory and in messages */
    const char *preset;                    /* moe.preset under what the command line says; NULL: theirs */
    bench_setting setting[BENCH_SETTINGS]; /* over everything else; ends with a NULL key */
    bool dense;                            /* without routed experts */
    bool fleeting;                         /* its directory goes with the bench: no word of its files */
    /* Every step and event of the training, with its context. Beside each other, trainings are processes:
     * what `user` points to must come from bench_shared. */
    void (*on_progress)(void *user, moe_ctx *ctx, const moe_lm_progress *now);
    void *user;
} bench_training;

/* Operands of the command after the first are the files. Runs go to DIR/NAME: DIR as --run says, else `run`.
 * An --output that bench_check_output refuses, and settings that no training begins with, are told before
 * anything runs. Returns the exit code; a training that failed stops those not yet started. */
int bench_train(cli_args *args, const char *run, const bench_training *trainings, size_t n, int64_t jobs);

/* Refuses an output that could not be written, or that would replace a file that is read: a configuration, a
 * text of the settings in args->config, a part of a run. */
int bench_check_output(cli_args *args, const char *output);

/* Zeroed memory that the trainings' processes write and the bench reads; NULL: no room. */
void *bench_shared(size_t bytes);
void bench_shared_free(void *memory, size_t bytes);

/* A page in the making: print to `out`, then bench_page_write, which also frees. */
typedef struct bench_page {
    FILE *out;
    char *text;
    size_t length;
} bench_page;
int bench_page_open(cli_args *args, bench_page *page);
/* Writes to --output, whose name is printed, or prints the page; with --json it prints neither. */
int bench_page_write(cli_args *args, bench_page *page);
void bench_page_drop(bench_page *page);
/* The command line as a user would type it, settings and output included. */
void bench_page_command(FILE *out, const cli_args *args);

#endif
