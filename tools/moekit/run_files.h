/* run_files.h: which checkpoint, text and run directory --run DIR and -m CHECKPOINT mean.
 */
#ifndef MOEKIT_RUN_FILES_H
#define MOEKIT_RUN_FILES_H

#include "cli.h"

enum { RUN_PATH = 4096 };

typedef struct run_files {
    const char *run;           /* --run, NULL: not given */
    char checkpoint[RUN_PATH]; /* --model, else the newest of the run when it was looked for */
    bool named;                /* by --model */
    moe_tokenizer *tokenizer;  /* the checkpoint's; NULL: its tokens are bytes */
} run_files;

int run_files_find(cli_args *args, run_files *files);
/* A path inside the run. */
int run_files_path(cli_args *args, const char *run, const char *name, char path[RUN_PATH]);
/* The value of a key in the configuration the run was started with. */
int run_files_setting(cli_args *args, const char *run, const char *key, char text[1024]);
/* cli_output_check of an `output` that also replaces no file of any run or checkpoint but `own` of `run`
 * (NULL: there is none). */
int run_files_check_output(cli_args *args, const char *run, const char *own, const char *output);
/* Refuses an output that is a text of the settings, or of those of a run (NULL: there is none). */
int run_files_check_texts(cli_args *args, const moe_lm_config *config, const char *output);
int run_files_check_run_texts(cli_args *args, const char *run, const char *output);
/* Whether two paths name one file or directory. */
bool run_files_same(const char *a, const char *b);
/* Whether files->checkpoint is the newest of files->run, or was when nobody named another. */
bool run_files_is_newest(const run_files *files);
/* Opens files->checkpoint in a new context, with the tokenizer that lies in it; the caller destroys all
 * three. A run that goes on removes its older checkpoints: where that was the one looked for, the newest is
 * looked for again. */
int run_files_load(cli_args *args, run_files *files, moe_ctx **ctx, moe_lm **lm);

#endif
