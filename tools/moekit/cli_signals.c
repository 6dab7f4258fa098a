/* cli_signals.c: SIGINT and SIGTERM ask a long run to finish its step and save; asked twice, it stops at
 * once.
 */
#include "cli.h"

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t caught;

static void on_signal(int number) {
    if (caught) _exit(128 + number);
    caught = number;
}

void cli_signals_catch(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int cli_signal_caught(void) {
    return caught;
}
