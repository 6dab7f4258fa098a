/* golden.h: recorded runs of other systems, repeated through the public interface and compared.
 * A file: tensors "case/tensor", and in __metadata__ one JSON object a case. Everything that is recorded
 * must be an input, a compared output or a known option; what is left over fails the case by its name.
 * Numbers of a case are the host's; what a layer reads or writes is copied to and from its device's memory.
 */
#ifndef MOEKIT_TEST_GOLDEN_H
#define MOEKIT_TEST_GOLDEN_H

#include "format/json.h"
#include "format/safetensors.h"

#include <moekit/expert.h>
#include <moekit/moe.h>

enum { GOLDEN_LAYERS = 8, GOLDEN_TEXT = 1000 };

/* 1. Numbers of the file, as f64 whatever they are stored as. */
typedef struct golden_tensor {
    const moelm_st_tensor *recorded;
    double *value; /* NULL until somebody asks */
    int64_t count;
    bool used;
} golden_tensor;

/* How far a number may be from the recorded one. */
typedef enum golden_bound {
    GOLDEN_EXACT,   /* indices, maps, counts */
    GOLDEN_VALUE,   /* norm(difference) / norm(recorded) <= 1e-5 */
    GOLDEN_GRADIENT /* the same <= 1e-4 */
} golden_bound;

typedef struct golden_case {
    const char *name;
    moe_ctx *ctx;
    bool on_device;
    json_t *option; /* what the metadata said and nobody has asked for yet */
    golden_tensor *tensor;
    size_t n_tensors;
    moe_layer *layer[GOLDEN_LAYERS];
    int n_layers;
    void **block; /* freed with the case */
    size_t n_blocks;
    struct golden_sent {
        void *memory;
        size_t bytes;
    } * sent; /* the same of the device's memory */
    size_t n_sent;
    bool undefined_allowed; /* the reference made NaN where its own rule breaks: those are left out */
    int64_t n_undefined;
    double worst; /* largest error, and where */
    char worst_name[100];
    int n_compared;
    bool failed;
    char why[GOLDEN_TEXT], note[GOLDEN_TEXT];
    char absent[GOLDEN_TEXT]; /* what could be compared, but is not recorded */
} golden_case;

void golden_fail(golden_case *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Printed on the case's line: what a comparison leaves open, and why. */
void golden_note(golden_case *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void *golden_alloc(golden_case *c, size_t count,
                   size_t bytes); /* zeroed; ends the program when out of memory */

/* 2. Options. Each is asked for once; null and missing are `initial`. */
int64_t golden_int(golden_case *c, const char *key, int64_t initial);
double golden_real(golden_case *c, const char *key, double initial);
bool golden_bool(golden_case *c, const char *key, bool initial);
const char *golden_text(golden_case *c, const char *key, const char *initial);
int64_t golden_int_required(golden_case *c, const char *key);
/* A number, or a list of them; returns how many. */
int golden_ints(golden_case *c, const char *key, int64_t *value, int max);
/* The text must be one of `known` (NULL-terminated, pairs of recorded and our name); ours is returned. */
const char *golden_choice(golden_case *c, const char *key, const char *initial, const char *const *known);
/* For options that change nothing here. */
void golden_skip(golden_case *c, const char *key);
/* Fails the case where an option nobody asked for is left. */
bool golden_options_done(golden_case *c);

/* 3. Tensors. A found tensor counts as used. */
const golden_tensor *golden_find(golden_case *c, const char *name); /* NULL: not recorded */
/* dim: -1 fits any size. NULL, and the case has failed, where it is missing or of another shape. */
const golden_tensor *golden_need(golden_case *c, const char *name, int n_dim, const int64_t *dim);
int64_t golden_dim(const golden_tensor *tensor, int axis); /* axis < 0: from the end */
/* Says on the case's line that an output is not recorded. */
void golden_absent(golden_case *c, const char *name);
/* Compares with the recorded tensor, if there is one. */
void golden_compare(golden_case *c, const char *name, const double *got, int64_t count, golden_bound bound);
void golden_compare_one(golden_case *c, const char *name, double got, golden_bound bound);

/* 4. Memory of the device (of the host, for a context on the CPU). */
/* A copy there, and one on the host; both live as long as the case. NULL of NULL. */
void *golden_send(golden_case *c, const void *from, size_t bytes);
void *golden_fetch(golden_case *c, const void *from, size_t bytes);
void golden_copy(golden_case *c, void *to, const void *from, size_t bytes); /* a failure fails the case */

/* 5. The layer. */
moe_layer *golden_layer(golden_case *c, const moe_layer_desc *desc, int64_t n_tokens);

/* How a recorded tensor holds a layer's parameter [B, rows, width]. */
typedef enum golden_form {
    GOLDEN_AS_IS = 0,
    GOLDEN_TRANSPOSED = 1, /* [B, columns, rows] */
    GOLDEN_FIRST_HALF = 2, /* of the columns */
    GOLDEN_SECOND_HALF = 4
} golden_form;
typedef struct golden_param {
    const char *param, *recorded;
    int form; /* golden_form, or-ed */
} golden_param;
/* Sets the parameters that are recorded; one that stays unset fails the case at its first pass. */
bool golden_set_params(golden_case *c, moe_layer *layer, const golden_param *table, size_t count);
void golden_zero_param(golden_case *c, moe_layer *layer, const char *name);
/* Compares the gradients of all that table names with "d_<recorded>". */
void golden_compare_grads(golden_case *c, moe_layer *layer, const golden_param *table, size_t count);
/* gate.weight = identity: the tokens are the logits. */
bool golden_identity_gate(golden_case *c, moe_layer *layer);

/* One call forward, and backward where dy is not NULL. Rows of all are tokens; all of it is the host's. */
typedef struct golden_pass {
    int64_t n_tokens, d_in, d_out;
    const double *x, *dy; /* [T, d_in], [T, d_out] */
    double *y, *dx;       /* written; owned by the case */
    moe_stats stats;
    moe_routing_view view;
} golden_pass;
bool golden_forward(golden_case *c, moe_layer *layer, const moe_call *call, golden_pass *pass);
bool golden_backward(golden_case *c, moe_layer *layer, golden_pass *pass); /* adds to gradients */
/* The view's numbers as f64 and in the order of the layer: [T, K]. */
double *golden_view_weight(golden_case *c, const golden_pass *pass);
double *golden_view_expert(golden_case *c, const golden_pass *pass);
double *golden_counts(golden_case *c, const int64_t *count, int64_t n);
float *golden_floats(golden_case *c, const golden_tensor *tensor);
uint8_t *golden_bytes(golden_case *c, const golden_tensor *tensor);

/* 6. Experts of the recorded runs that moekit has not built in. */
/* Expert e of E = d_out answers with the unit vector e, so y is the dense matrix of weights. */
bool golden_register_unit(golden_case *c);
/* Keeps the rows it is given, in expert order. Answers zeros. */
typedef struct golden_rows {
    int64_t n_rows, width, n_experts;
    double *in;      /* [R, width] */
    int64_t *offset; /* [E + 1] */
} golden_rows;
bool golden_register_recorder(golden_case *c, golden_rows *rows);
/* Three matrices without biases, the activation after the first two. */
bool golden_register_three(golden_case *c);

/* 7. The systems. */
void golden_lucid(golden_case *c);
void golden_lucid_hierarchical(golden_case *c);
void golden_sigma(golden_case *c);
void golden_automodel(golden_case *c);
void golden_megatron_topk(golden_case *c);
void golden_megatron_losses(golden_case *c);
void golden_megatron_sinkhorn(golden_case *c);
void golden_megatron_dropping(golden_case *c);
void golden_megatron_permute(golden_case *c);

#endif
