/* train_line.c: draws the line; what it says is the library's.
 */
#include "train_line.h"

void train_line_show(void *user, const moe_lm_progress *now) {
    train_line *self = user;
    char text[4608]; /* an event names a path */
    self->latest = *now;
    self->latest.event = NULL;
    if (self->args->quiet) return;
    moe_lm_progress_text(now, text, sizeof text);
    bool last = now->step == now->steps;
    bool logged = last || (self->log_every > 0 && now->step % self->log_every == 0);
    if (self->terminal && !now->event && !last) {
        if (cli_seconds() - self->shown_at < 0.1) return;
        cli_draw_line(self->args, text);
        self->shown_at = cli_seconds();
    } else if (now->event || logged) {
        cli_erase_line(self->args);
        cli_say(self->args, "%s", text);
    }
}
