/* cli_signals.c: SIGINT, SIGTERM and SIGHUP ask a long run to finish its step and save; asked twice, it stops
 * at once. What was ignored from the start stays ignored: SIGHUP below nohup, SIGINT in the background of a
 * script, whose Ctrl-C is meant for what is in front.
 */
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t caught;
static const char *remark;

static void on_signal(int number) {
    if (caught) _exit(128 + number);
    caught = number;
    const int kept = errno;
    /* a terminal has drawn ^C or a living line where this would go */
    if (remark && isatty(STDERR_FILENO) && write(STDERR_FILENO, "\n", 1) < 0) remark = NULL;
    if (remark && write(STDERR_FILENO, remark, strlen(remark)) < 0) remark = NULL;
    errno = kept;
}

void cli_signals_catch(const char *said) {
    remark = said;
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction before, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; ++i)
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
}

int cli_signal_caught(void) {
    return caught;
}
