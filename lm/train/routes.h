/* routes.h: where every token of a text was sent: recorded, kept in a safetensors file, used again.
 * layer.N.expert [rows, slots], layer.N.weight [rows, slots]; rows are those of all windows of score.h in
 * their order. docs/routes.md describes the file.
 */
#ifndef MOELM_ROUTES_H
#define MOELM_ROUTES_H

#include "train/data.h"
#include "train/score.h"

typedef struct moelm_routes {
    int32_t n_layers;
    int64_t rows;
    moelm_route *layer; /* [n_layers] expert and weight are our own */
    void *block;        /* their memory */
} moelm_routes;

/* What routes belong to. */
typedef struct moelm_routes_text {
    const char *sha256; /* of the whole file */
    int64_t bytes;      /* read of it */
    int64_t length, n_windows;
} moelm_routes_text;

/* Empty routes of a text. */
moe_status moelm_routes_create(moe_lm *lm, const moelm_routes_text *text, moelm_routes *routes,
                               moe_error *error);
void moelm_routes_destroy(moelm_routes *routes);

/* A moelm_score_fn; `user` is the routes. */
moe_status moelm_routes_add(void *user, moe_lm *lm, const moelm_windows *windows);

moe_status moelm_routes_save(const moelm_routes *routes, const char *path, const moelm_routes_text *text,
                             moe_error *error);
/* Routes of another text, model shape or windows are MOE_ERR_INPUT. */
moe_status moelm_routes_load(const char *path, moe_lm *lm, const moelm_routes_text *text,
                             moelm_routes *routes, moe_error *error);

#endif
