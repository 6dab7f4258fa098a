/* form.h: what Mixtral's, Qwen3-MoE's and OLMoE's checkpoints have in common, and a table of what differs.
 * All are decoders of Hugging Face's layout: one file of settings, tensors [out, in], an expert's gate, up
 * and down apart. Source: the configurations and models of the transformers library, one a family.
 */
#ifndef MOELM_FORM_H
#define MOELM_FORM_H

#include "model/families/family.h"

/* A setting that config.json has under a name of its own. */
typedef struct moelm_form_field {
    const char *theirs, *ours;
    const char *missing; /* what ours is where theirs is left out or null; NULL: it must be there */
} moelm_form_field;

typedef struct moelm_form {
    const char *architecture;
    const moelm_form_field *fields; /* until theirs is NULL */
    const char *num_experts_too;    /* a name by which the first field is read, too; NULL: none */
    const char *qk_norm;            /* model.qk_norm of all its models */
    double rope_base, aux_loss;     /* where config.json leaves them out */
    bool says_norm_topk_prob;       /* else weights are renormalised */
    bool has_dense;                 /* decoder_sparse_step and mlp_only_layers */
    bool narrow_heads;              /* heads and their width make d_model, so there is no head_dim to say */
    bool window_has_switch;         /* sliding_window counts only with use_sliding_window */
    const char *const *refused;     /* keys that must be false or null; until NULL */
    const char *ffn, *gate, *up, *down; /* model.layers.N.<ffn>.experts.E.<gate>.weight */
} moelm_form;

/* form_config.c and form_tensors.c: the functions of a family that has a form. */
bool moelm_form_fits(const moelm_family *family, const moe_lm_config *config);
moe_status moelm_form_read(const moelm_family *family, const json_t *root, moe_lm_config *config,
                           moe_error *error);
moe_status moelm_form_write(const moelm_family *family, const moe_lm_config *config, json_t *root,
                            moe_error *error);
moe_status moelm_form_visit(const moelm_family *family, const moe_lm *lm, int32_t part, moelm_slice_fn fn,
                            void *user);

#endif
