/* moe.h: the Mixture-of-Experts layer. Read downwards: the order is the order of the data.
 *
 * Symbols: T tokens, d model width, n expert hidden width, E experts, K experts per token,
 * R = T*K routed rows. All matrices are row-major; a view (moe_mat) never owns its numbers.
 *
 * Conventions of the whole library
 *   - Every call that can fail returns moe_status. The text of a failure is kept where it happened
 *     (moe_ctx_error, or the moe_error the caller passed) and says what, where and what would be right.
 *     The library never aborts, exits or prints.
 *   - Descriptors start with their own size, and a zero field means its default, so
 *     `moe_layer_desc desc = {.size = sizeof desc, .d_model = 64, ...}` is complete. If the default is
 *     another number and you want 0 itself, write MOE_ZERO.
 *   - Output structs start with their size too, and the caller sets it: `moe_stats stats = {.size =
 *     sizeof stats}`. No more than that many bytes are written, so a caller built with an older header
 *     keeps working. Fields that an older library does not know are set to zero.
 *   - Outputs are written only on success, unless a call says otherwise.
 *   - NULL is allowed only where a call says so. Elsewhere it is MOE_ERR_ARGUMENT, and the text names
 *     what is missing. With a NULL handle there is nowhere to keep a text, so only the status tells it; a
 *     call that returns no status then returns 0, false, NULL or "", or does nothing.
 *   - `reserved` fields are 0. A byte that is set belongs to a newer header and is refused.
 *   - `*_reserve` allocates; no call after it does.
 *   - A context, and everything made from it, belongs to one thread at a time. A forked child may use and
 *     destroy inherited CPU contexts, on one thread, if no call on them was running at the fork.
 */
#ifndef MOEKIT_MOE_H
#define MOEKIT_MOE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MOE_API __attribute__((visibility("default")))
#else
#define MOE_API
#endif

#define MOE_VERSION_MAJOR  0
#define MOE_VERSION_MINOR  1
#define MOE_VERSION_PATCH  0
#define MOE_VERSION_NUMBER (MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH)
MOE_API int moe_version(void);                /* of the library found at run time */
MOE_API const char *moe_version_string(void); /* "0.1.0" */
/* The processor's name as the system tells it; "" if unknown. */
MOE_API void moe_cpu_name(char *text, size_t size);

/* The number 0, for a field of a descriptor or call in which 0 stands for another number:
 * .second_threshold_eval = MOE_ZERO. Fields that take it say so; in text (YAML, command line) it is -1. */
#define MOE_ZERO (-1)

/* 1. Status. The numbers are also the exit codes of the `moekit` command. */
typedef enum moe_status {
    MOE_OK = 0,
    MOE_ERR_IO = 1,           /* writing failed: disk full, no permission, a lost device */
    MOE_ERR_ARGUMENT = 2,     /* a value the caller passed is wrong */
    MOE_ERR_INPUT = 3,        /* an input file is missing, unreadable or malformed */
    MOE_ERR_MEMORY = 4,       /* does not fit */
    MOE_ERR_NUMERIC = 5,      /* NaN or infinity met, or a verification failed */
    MOE_ERR_COMM = 6,         /* a collective failed or timed out */
    MOE_ERR_ALARM = 7,        /* a router alarm that was asked to stop the run */
    MOE_ERR_UNSUPPORTED = 8,  /* legal, but not built in or not on this machine */
    MOE_ERR_STATE = 9,        /* right call, wrong moment */
    MOE_ERR_DEVICE = 10,      /* the accelerator reported it */
    MOE_ERR_INTERNAL = 11,    /* a bug of ours */
    MOE_ERR_INTERRUPTED = 130 /* the caller asked to stop */
} moe_status;
MOE_API const char *moe_status_name(moe_status status);

/* Receives the text of a failure when there is no context yet. Pass NULL to ignore the text. */
typedef struct moe_error {
    moe_status status;
    char text[500];
} moe_error;

/* 2. Context: device, kernels, threads, memory, log. */
typedef struct moe_ctx moe_ctx;
typedef enum moe_device { MOE_CPU = 0, MOE_CUDA = 1 } moe_device;
typedef enum moe_log_level { MOE_LOG_ERROR = 0, MOE_LOG_WARN, MOE_LOG_INFO, MOE_LOG_DEBUG } moe_log_level;

typedef struct moe_allocator {
    void *(*alloc)(void *user, size_t bytes, size_t align); /* NULL when it does not fit */
    void (*free)(void *user, void *ptr, size_t bytes);
    void *user;
} moe_allocator;

typedef struct moe_ctx_desc {
    size_t size;
    moe_device device;
    int32_t n_threads;  /* 0: MOEKIT_NUM_THREADS, else OMP_NUM_THREADS, else one per core that the process may
                           use (by its affinity and, in a container, its CPU quota) */
    const char *isa;    /* NULL: MOEKIT_ISA, else the best found. "ref" "avx2" "avx512" "avx512bf16" "amx"
                           "neon"; for a GPU "cuda" "sm90", with the best CPU kernels beside it. On a CPU
                           context a GPU's name is refused here, and ignored in MOEKIT_ISA */
    uint64_t seed;      /* of initialisation and of every random draw of training, not of inference */
    moe_allocator host; /* all NULL: aligned_alloc and free */
    /* NULL: nothing is logged. Called on the calling thread; the text is valid during the call. */
    void (*log)(void *user, moe_log_level level, const char *text);
    void *log_user;
    int32_t device_index; /* which GPU, of MOE_CUDA (cuda.h); 0 on the CPU */
    uint8_t reserved[4];  /* 0: no padding, whose bytes a later field could not tell from its own */
} moe_ctx_desc;
/* Makes a context; desc NULL: all defaults. The caller destroys it, after everything made from it. */
MOE_API moe_status moe_ctx_create(const moe_ctx_desc *desc, moe_ctx **ctx, moe_error *error);
MOE_API void moe_ctx_destroy(moe_ctx *ctx);
/* Text of the last failure on this context; calls that succeed do not clear it. "" if there was none, "no
 * context" for NULL. Valid until the next call. */
MOE_API const char *moe_ctx_error(const moe_ctx *ctx);
MOE_API int32_t moe_ctx_threads(const moe_ctx *ctx);
MOE_API uint64_t moe_ctx_seed(const moe_ctx *ctx);
MOE_API const char *moe_ctx_isa(const moe_ctx *ctx); /* the instruction set in use */
/* Name of the kernel that serves an operation for f32, e.g. "gemm_rows__avx512"; NULL: no such op. */
MOE_API const char *moe_ctx_kernel(const moe_ctx *ctx, const char *op);

/* Memory of the context's device: a GPU's (cuda.h), or on the CPU the context's own. NULL, with a text
 * recorded, if it does not fit. Free it with the same number of bytes. */
MOE_API void *moe_memory_alloc(moe_ctx *ctx, size_t bytes);
MOE_API void moe_memory_free(moe_ctx *ctx, void *ptr, size_t bytes);
/* Queued after what was queued before. If one side is host memory, the copy is done on return. */
MOE_API moe_status moe_memory_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes);
/* Waits until the device has done everything queued, and reports what it found wrong. */
MOE_API moe_status moe_ctx_wait(moe_ctx *ctx);

/* 3. Views. */
typedef enum moe_dtype {
    MOE_F32 = 0,
    MOE_F64 = 1, /* reference kernels only: for gradient checks */
    MOE_BF16 = 2 /* uint16_t in memory; summed in f32, as are gradients of parameters */
} moe_dtype;
MOE_API size_t moe_dtype_bytes(moe_dtype dtype); /* of one number; 0 of what is no moe_dtype */
/* moe_ctx_kernel for any dtype. An "sm90" kernel passes what it is not made for on to the "cuda" one. */
MOE_API const char *moe_ctx_kernel_of(const moe_ctx *ctx, const char *op, moe_dtype dtype);

typedef struct moe_mat {
    void *data; /* in memory of the context's device, at a multiple of a number's bytes */
    int64_t rows, cols;
    int64_t stride; /* elements from one row to the next, at most 2^29; 0: cols */
    moe_dtype dtype;
} moe_mat;

/* 4. The layer, described. Names of choices are strings; option.h lists all with defaults, limits and a line
 * of help; docs/options.md explains them. A combination that would ignore a setting is refused. */
typedef struct moe_layer_desc {
    size_t size;
    moe_dtype dtype;

    /* shape */
    int32_t d_model;            /* d, required */
    int32_t output_size;        /* width of y; 0: d_model */
    int32_t num_experts;        /* E; 0: no routed experts, the layer is its shared expert (a dense FFN) */
    int32_t num_groups_outer;   /* hierarchical: outer experts Eo, E = Eo * Ei; 0: one level */
    int32_t top_k;              /* K; 0: 2, or E where E is smaller */
    int32_t top_k_min;          /* training: each token draws its K from top_k_min .. top_k; 0: off */
    int32_t expert_hidden_size; /* n, required where there are routed experts of one width */
    int32_t latent_size;        /* routed experts work in this width between two projections; 0: off */

    /* experts */
    const char *expert; /* NULL: "ffn"; "identity" "zero", or the name of a registered expert (expert.h) */
    const char *expert_kinds; /* NULL: all alike; else one entry an expert: "256,8x64,identity,zero" */
    const char *activation;   /* NULL: "swiglu"; src/experts/activation.c lists them */
    const char *glu_layout;   /* NULL: "auto", the activation's own; "halves" (gate first) or "interleaved"
                                 (gate, up, gate, ..), as the swigluoai of gpt-oss' checkpoints is */
    float activation_alpha;   /* of quick_geglu, quick_gelu, swigluoai; 0: 1.702; or MOE_ZERO */
    float activation_limit;   /* clamp of gate (above) and up (both sides); 0: the activation's own; MOE_ZERO:
                                 none */
    float glu_linear_offset;  /* added to up; 0: the activation's own; or MOE_ZERO */
    bool expert_bias;         /* biases on both projections of every expert */
    bool expert_up_bias;      /* biases on the up projection only */
    bool output_bias;         /* one bias [output_size] for all experts, not weighted (sigma-MoE) */
    float dropout;            /* of the experts' hidden activations, training */
    const char *weight_apply; /* NULL: "output"; "hidden" (the same numbers) or "input" (K = 1) */

    /* shared experts */
    int32_t num_shared_experts;           /* always-on experts, fused into one FFN */
    int32_t shared_expert_hidden_size;    /* width of each; 0: expert_hidden_size */
    const char *shared_expert_activation; /* NULL: activation */
    bool shared_expert_gate;              /* output times sigmoid(x . w) */

    /* router: logits */
    bool router_bias;
    bool router_frozen;       /* the gate gets no gradient */
    const char *router_dtype; /* NULL: "auto", f64 in f64 layers, else "f32"; "f64": logits, scores, weights
                                 and losses in f64 from the x and gate of any layer */
    float input_jitter_eps;   /* router input times U(1-eps, 1+eps), training only */
    const char *routing_unit; /* NULL: "token"; "sequence" (mean of its tokens) or "task" (moe_call.task) */
    int32_t num_tasks;        /* of routing_unit task */

    /* router: scores and weights */
    const char *score_function; /* NULL: "softmax"; "sigmoid" "sqrtsoftplus" */
    bool score_before_topk;     /* score all E, then select; else select by logits, then score the K selected.
                                   gshard_top2, expert_choice and megatron's sinkhorn always score first */
    bool norm_topk_prob; /* divide the K weights by their sum; ignored for K = 1, where it would be 1 */
    float routed_scaling_factor; /* multiplies the weights; 0: 1; or MOE_ZERO */

    /* router: selection */
    const char *router_type;         /* NULL: "top_k"; "gshard_top2" "noisy_top_k" "sinkhorn" "quantile"
                                        "expert_choice" "hash" "random" "balanced". The table of hash
                                        goes by layer_index alone */
    int32_t num_groups, group_top_k; /* keep group_top_k of num_groups groups; 0: off */
    const char *group_score;         /* NULL: "top2_sum"; "max" "topn_sum" (top K / group_top_k) */
    bool selection_bias; /* a bias [E] on the selection scores only (loss-free balancing). -inf: that expert
                            cannot be chosen; if fewer than K can, slots stay empty */
    float selection_bias_update_rate;
    bool selection_bias_recenter;   /* subtract its mean at each update */
    bool selection_bias_in_weights; /* weights from the biased scores, as one Automodel option */
    float expert_dropout;           /* training: chance that a (token, expert) pair cannot be selected */
    int32_t token_rounding; /* training: rounds an expert's rows to the nearest multiple of this (the tile of
                               a product, 128 on Hopper), halves downwards, by dropping its lowest scores or
                               adding the best tokens it lacks. A token may end with no expert or with up to
                               E, and later tokens have a say; slots are then E. MOE_INFER is plain top-k.
                               Only router_type top_k, dropless (SonicMoE, Guo et al. 2025, alg. 4). 0: off */
    const char *second_policy_train, *second_policy_eval; /* gshard_top2; NULL: "random" / "all";
                                                             "none" "threshold" "sample" */
    float second_threshold_train, second_threshold_eval;  /* 0: 0.2; or MOE_ZERO */
    float noise_epsilon;                                  /* noisy_top_k; 0: 0.01; or MOE_ZERO */
    const char *sinkhorn_variant;                         /* NULL: "standard"; "megatron" "sigma_moe" */
    int32_t sinkhorn_iters;                               /* 0: 3, or until sinkhorn_tol for megatron */
    float sinkhorn_tol;                                   /* 0: 1e-4; or MOE_ZERO */
    float quantile_ema;
    float fake_noise;        /* balanced: 0 exact round robin, else Automodel's noisy form */
    int32_t fake_skip_first; /* balanced: experts never used */
    float force_bias_std;    /* random: a bias drawn once an expert, by layer_index alone; 0: none */

    /* capacity */
    float capacity_factor;        /* 0: dropless */
    float capacity_factor_eval;   /* 0: capacity_factor; MOE_ZERO: dropless */
    float capacity_factor_inner;  /* hierarchical; 0: capacity_factor; MOE_ZERO: dropless */
    const char *capacity_formula; /* NULL: "megatron"; src/dispatch/capacity.c lists them */
    int32_t min_capacity;         /* least rows of an expert; 0: the formula's own, 1 or more in MOE_INFER; or
                                     MOE_ZERO */
    int32_t capacity_multiple;    /* rounded up to a multiple of this; 0: 1 */
    const char *capacity_group;   /* NULL: "batch" or "sequence" */
    const char *drop_policy; /* NULL: "probs"; "position" "rank_major" (all first choices, then all second) */
    bool pad_to_capacity;    /* every expert gets exactly its capacity of rows, the rest with weight 0 */

    /* losses: coefficient 0 leaves a loss out */
    float aux_loss_coeff;        /* Switch load balancing over the batch, Fedus et al. 2021, eq. 4 */
    const char *aux_loss_type;   /* NULL: "batch"; "sequence" "global": aux_loss_coeff is that of the loss
                                    below; "none": it counts for nothing (Megatron's load balancing types) */
    float seq_aux_loss_coeff;    /* the same by sequence, averaged */
    float global_aux_loss_coeff; /* the same with counts accumulated since moe_layer_end_step */
    float gshard_loss_coeff;     /* Lepikhin et al. 2020: first choices only, by sequence, times E^2; of two
                                    levels by capacity_group */
    /* tensor2tensor: the same of second choices, before a policy removes any */
    float second_place_loss_coeff;
    float importance_loss_coeff; /* CV^2 of summed weights, Shazeer et al. 2017 */
    float load_loss_coeff;       /* CV^2 of the smooth load, noisy_top_k */
    float entropy_loss_coeff;    /* negative entropy of mean usage, sigma-MoE */
    float z_loss_coeff;          /* router z-loss, Zoph et al. 2022, eq. 5; of two levels the outer gate's */
    const char *aux_scores;      /* NULL: "normalized" or "raw" (Automodel without norm_topk_prob) */
    const char *aux_map;         /* NULL: "actual" selection or "plain" top-k of the scores (Megatron) */

    /* initialisation, memory */
    const char *init_scheme; /* NULL: "normal"; "lucid_uniform" "sigma_moe" "megatron_scaled" */
    const char *router_init; /* NULL: "normal"; "normal_unit" "normal_fan_in_renorm" "zeros" */
    float init_std;          /* 0: 0.02; or MOE_ZERO; of all matrices but those with a rule of their own */
    float init_std_down;     /* of the down projections; 0: init_std; or MOE_ZERO */
    float init_std_scale;    /* of sigma_moe; 0: 1; or MOE_ZERO */
    const char *recompute;   /* NULL: "none" or "layer": backward runs the up projection again */
    const char *saved_dtype; /* NULL: "auto", the layer's; or "mxfp8": ffn experts keep the pre-activations
                                for backward as e4m3 codes with a power of two for 32 of them (OCP MX 1.0),
                                33/64 of the bytes of bf16. Outputs do not change. Gradients are those of
                                pre-activations off by at most 1/16 of each, or 1/2^18 of the largest of its
                                32 if that is more */
    int32_t layer_index;     /* keys the random draws, so layers differ */
    /* The library's record of who set each field. Leave it 0, and copy it with the rest. */
    uint8_t said[128];
    bool undrawn;        /* start from zeros, not draws, if you read parameters from a file anyway */
    bool unowned;        /* parameters and gradients lie in the caller's memory: moe_layer_bind_param */
    uint8_t reserved[2]; /* 0: no padding, as in moe_ctx_desc */
} moe_layer_desc;

/* Applies a preset ("mixtral" "deepseek_v3" "megatron" "automodel" "lucidrains" "t2t_top2" "t2t_noisy"
 * "sigma_moe"): sets the fields that make the layer that system's, and resets to defaults the others for
 * which moe_layer_preset_sets is true. t2t_top2 looks at num_groups_outer. Apply it before other settings:
 * these, and what they imply, override it. */
MOE_API moe_status moe_layer_desc_preset(moe_layer_desc *desc, const char *name, moe_error *error);
MOE_API const char *const *moe_layer_presets(void); /* NULL-terminated */
/* Whether presets touch a setting ("moe.top_k"); not sizes, kinds of experts, deviations and memory. */
MOE_API bool moe_layer_preset_sets(const char *key);
/* Sets one field from text. `key` is canonical or an alias, with or without "moe."; an unknown one is
 * MOE_ERR_ARGUMENT and names the nearest, or what it is a value of. A name of another system may set several
 * fields or imply them (option.h), and takes back what the same name said before. What is implied never
 * overrides what was said, by a key or in C by a field that is not at its default. So the order of different
 * keys does not matter, but where two say different things of one field: then the later wins. `value` of
 * "expert", "expert_kinds" and "shared_expert_activation" must outlive the descriptor. A refusal changes
 * nothing; MOE_ERR_UNSUPPORTED: the descriptor is of an older header, which lacks the field. */
MOE_API moe_status moe_layer_desc_set(moe_layer_desc *desc, const char *key, const char *value,
                                      moe_error *error);
/* Whether a layer could be made from it: limits, and settings that do not go together. The text names the
 * option. Names of registered experts belong to a context and are not looked up. */
MOE_API moe_status moe_layer_desc_check(const moe_layer_desc *desc, moe_error *error);

/* `desc` with every default filled in, as a layer made from it would hold it; a field that stays 0 has no use
 * there. Refuses what moe_layer_desc_check refuses, leaving `filled` (whose size must be set) as it is. */
MOE_API moe_status moe_layer_desc_fill(const moe_layer_desc *desc, moe_layer_desc *filled, moe_error *error);

/* 5. The layer. */
typedef struct moe_layer moe_layer;
typedef enum moe_mode { MOE_INFER = 0, MOE_TRAIN = 1 } moe_mode;

/* Makes a layer; the context's seed draws its parameters from N(0, init_std^2). Copies desc with its
 * strings. */
MOE_API moe_status moe_layer_create(moe_ctx *ctx, const moe_layer_desc *desc, moe_layer **layer);
MOE_API void moe_layer_destroy(moe_layer *layer);
/* The descriptor with every default filled in. Its strings live as long as the layer. */
MOE_API const moe_layer_desc *moe_layer_get_desc(const moe_layer *layer);

/* For a layer on a CUDA context: true if the GPU's kernels do the routing and the losses, so that forward and
 * backward neither wait nor copy: for router_type top_k with any score function, weights, groups, selection
 * bias, capacity by batch, aux and z losses. Else the CPU routes, which waits for two copies per call; the
 * numbers are the same. False on the CPU. */
MOE_API bool moe_layer_routes_on_device(const moe_layer *layer);
/* NULL if, in inference, a token gets the same bits whatever tokens are in the call with it. Else why not: a
 * capacity, a router that looks at all tokens, a GPU's sums for few tokens. Your own experts are taken to see
 * one row each. */
MOE_API const char *moe_layer_company(const moe_layer *layer);

/* Memory, in bytes, for batches of up to max_tokens. */
typedef struct moe_layer_bytes {
    size_t size;
    size_t params, grads; /* without weights that moe_layer_quantize gave back; 0 for an unowned layer */
    size_t saved;         /* kept from forward to backward: Z and routing (x stays the caller's) */
    size_t scratch;       /* free again when the call returns */
    size_t packed;        /* of moe_layer_quantize */
} moe_layer_bytes;
/* Limits the sequences of a call (moe_call.sequence_length). What a layer keeps by sequence, such as the rows
 * of capacity_group sequence with pad_to_capacity, then takes memory for no more, and a call with more is
 * MOE_ERR_STATE; layers that keep nothing by sequence serve it all the same. 0, the initial value: any
 * number, down to sequences of one token. Takes effect at the next measure and reserve. */
MOE_API moe_status moe_layer_limit_sequences(moe_layer *layer, int64_t max_sequences);
/* Tells the bytes that moe_layer_reserve would take. Refuses what it would refuse. */
MOE_API moe_status moe_layer_measure(const moe_layer *layer, int64_t max_tokens, moe_mode mode,
                                     moe_layer_bytes *bytes);
/* Allocates for batches of up to max_tokens. MOE_TRAIN also allocates zeroed gradients, except in unowned
 * layers. May be called again with a larger size: parameters and gradients keep their values. MOE_TRAIN is
 * MOE_ERR_STATE if the weights are packed (quant.h). */
MOE_API moe_status moe_layer_reserve(moe_layer *layer, int64_t max_tokens, moe_mode mode);
/* Layers of one model run one after another, so they may share one scratch block: `layer`, which is not
 * reserved yet, uses that of `owner`, another layer of the same context with a block of its own. Reserve the
 * owner first, for at least as many bytes of scratch, and destroy it last. */
MOE_API moe_status moe_layer_share_scratch(moe_layer *layer, moe_layer *owner);

/* Random numbers from the caller, to repeat another system's run exactly. NULL arrays are drawn as always. */
typedef struct moe_draws {
    size_t size;
    const float *second_policy; /* [T] U(0,1) of gshard_top2's second choice */
    /* [Eo, groups, places] of the inner gates: groups of capacity, places an outer expert has in the group of
     * most (its real tokens where dropless). */
    const float *second_policy_inner;
    const float *expert_dropout; /* [T,E] U(0,1), training: dropped where below the rate */
    const float *noise;          /* [T,E] N(0,1) of noisy_top_k */
    const uint8_t *dropout_keep; /* [T,K,n] 1: kept */
} moe_draws;

/* Options of a call; NULL means all defaults. Keep the arrays it points to until the backward of this
 * forward, which reads them again. Padding tokens of x and dy must be finite: they are multiplied by zero. */
typedef struct moe_call {
    size_t size;
    /* MOE_INFER saves nothing, and computes losses only if stats are asked for. It makes only those random
     * draws that are part of routing itself: second_policy_eval random and sample, router_type random and
     * balanced. These draws, and in both modes the table of hash and the bias of random, do not depend on the
     * context's seed, so a model answers alike in every context. */
    moe_mode mode;
    /* Keys random draws. The same step repeats them, so vary it from call to call if there are any.
     * router_type balanced with fake_noise draws in both modes, keyed by its input instead of the step. */
    uint64_t step;
    /* [T], 1 = real token, 0 = padding: not routed, not counted, no output bias. What serves every token sees
     * padding too, as in NeMo Automodel: shared experts and the biases of latent projections give it a y, and
     * its dy reaches their gradients. Draws, and the round robin of router_type balanced, go by a token's
     * place in the batch, so masking a token is not the same as leaving it out. NULL: all real. */
    const uint8_t *token_mask;
    float loss_scale;        /* multiplies the gradient of the layer's own losses; 0: 1; or MOE_ZERO */
    int64_t sequence_length; /* tokens of one sequence, dividing T; 0: the batch is one sequence */
    const int32_t *task;     /* [sequences] of routing_unit task */
    const int32_t *token_id; /* [T] what router_type hash hashes, by token; NULL: the unit's number */
    /* [T, slots of moe_routing_view] the `expert` array of a recorded view, or your own choice: each expert
     * at most once per token, -1 for a slot that is not routed. With expert_choice, slot e holds only e or
     * -1. With the same x and parameters a replay repeats the recording to the bit. NULL: select */
    const int32_t *replay_expert;
    /* [T, slots] of moe_routing_view.dtype, with replay_expert: the `weight` array of a recorded view, used
     * to the bit, or your own finite weights. They get no gradient. NULL: weights from the live scores */
    const void *replay_weight;
    const moe_draws *draws;
    /* MOE_TRAIN: the backward of this forward stores the gradients of parameters instead of adding to them.
     * Set it in the first forward of a step, in place of moe_layer_zero_grad: the numbers are the same, with
     * less memory to move. It belongs to the call, not to the layer, so a captured graph repeats it. */
    bool overwrite_grad;
    uint8_t reserved[7]; /* 0: no padding, as in moe_ctx_desc */
} moe_call;

typedef struct moe_stats {
    size_t size;
    int64_t n_tokens;                    /* tokens not masked */
    int64_t n_routed, n_kept, n_dropped; /* rows; kept + dropped = routed, which is K * n_tokens without what
                                            policies and random K leave out, or what token_rounding makes
                                            it */
    int32_t n_dead;                      /* experts without a single row */
    int32_t reserved;                    /* 0: no padding, so every byte written is told */
    double loss;                         /* sum of coeff * loss, what training adds to the main loss */
    double aux_loss, z_loss;             /* without their coefficients; 1.0 is perfect balance for aux */
    double seq_aux_loss, global_aux_loss, gshard_loss; /* likewise, but 0 where their coefficient is 0;
                                                          global: of the batch alone in MOE_INFER */
    double second_place_loss, importance_loss, load_loss, entropy_loss;
    double load_cv;        /* standard deviation / mean of the rows per expert (population) */
    double load_max;       /* largest rows per expert / mean */
    double load_entropy;   /* H(rows per expert) / ln E, in [0, 1] */
    double router_entropy; /* mean over tokens of H(softmax(logits)), nats */
} moe_stats;

/* y[T,d] = sum_k weight[t,k] * expert(x)[t] + shared(x). x: [T, d_model] and y: [T, output_size], of the
 * layer's dtype, must not overlap; T is at most what is reserved. stats NULL: not wanted. A NaN or infinite
 * router logit is MOE_ERR_NUMERIC, and the text names the token. After this and every refusal y is untouched.
 * Only if one of your own experts fails may y be partly written. */
MOE_API moe_status moe_layer_forward(moe_layer *layer, moe_mat x, moe_mat y, const moe_call *call,
                                     moe_stats *stats);
/* Gradients of sum(y * dy) + loss_scale * stats.loss for the last MOE_TRAIN forward. x must hold what it held
 * there. Adds to the parameters' gradients (moe_call.overwrite_grad: stores them) and overwrites dx[T,d]
 * (data NULL: not wanted). dx must be neither x nor dy (MOE_ERR_ARGUMENT), nor overlap them (not checked).
 * Uses up what forward saved: one backward per forward. */
MOE_API moe_status moe_layer_backward(moe_layer *layer, moe_mat x, moe_mat dy, moe_mat dx);
MOE_API void moe_layer_zero_grad(moe_layer *layer);
/* Keeps the gradients of the experts' matrices, routed and shared, in MOE_BF16, as frameworks do for bf16
 * weights: half the memory to write, and each backward rounds once. For bf16 layers of ffn experts, before
 * the first reserve for training; MOE_F32 is the initial state. Gradients of all other parameters stay f32.
 * moe_adamw and moe_sum_squares (op.h) read either, as moe_param.grad_dtype tells. */
MOE_API moe_status moe_layer_set_grad_dtype(moe_layer *layer, moe_dtype dtype);

/* 6. Parameters: names "gate.weight" [E,d], "experts.up.weight" [E,d,n or 2n: by glu_layout],
 * "experts.down.weight" [E,n,d], "experts.up.bias" [E,n or 2n], "experts.down.bias" [E,d],
 * "shared.up.weight" [1,d,..], "shared_gate.weight" [1,d], "latent.in.weight" [d,l], "latent.out.weight"
 * [l,d_out], "output.bias" [d_out]. Unequal experts have the number of the first of each run of equals:
 * "experts.3.up.weight". A custom expert names its own. */
typedef struct moe_param {
    size_t size;
    const char *name;
    moe_dtype dtype;
    int32_t n_dim;
    int64_t dim[3]; /* row-major, the last contiguous; 1 beyond n_dim */
    void *value;    /* NULL after moe_layer_quantize gave it back (quant.h), or if unowned and not lent */
    void *grad;     /* NULL until reserved for training or lent; always, if a buffer or frozen by then */
    bool buffer, frozen;  /* not to be trained or stepped: a selection bias; frozen (moe_layer_freeze) */
    uint8_t reserved[2];  /* 0: no padding, as in moe_stats */
    moe_dtype grad_dtype; /* f32 for bf16, unless moe_layer_set_grad_dtype; else dtype */
} moe_param;
MOE_API int32_t moe_layer_param_count(const moe_layer *layer);
/* By index, 0 .. count - 1, or by name. Names and numbers belong to the layer. */
MOE_API moe_status moe_layer_param(const moe_layer *layer, int32_t index, moe_param *param);
MOE_API moe_status moe_layer_param_by_name(const moe_layer *layer, const char *name, moe_param *param);
/* Lends an unowned layer memory on its context's device for a parameter and for its gradient, with the shape
 * and types that moe_param tells, 64-byte aligned. NULL leaves one as it was. Nothing is copied or cleared.
 * Layers that are lent the same values still each keep a forward of their own. A call that misses a parameter
 * is MOE_ERR_STATE. Only for built-in kinds. */
MOE_API moe_status moe_layer_bind_param(moe_layer *layer, int32_t index, void *value, void *grad);

/* Call once per optimizer step, after its backward (with selection_bias_in_weights a later backward would see
 * the new bias). Updates the selection bias from the rows counted since the last call (bias += rate *
 * sign(mean - rows), DeepSeek-V3) and the bias of quantile balancing, and restarts the counts of the global
 * balance loss with the next training forward. `counts` [E] replaces the layer's own counts (say, summed over
 * ranks) and is only for layers whose selection bias is updated; NULL: the layer's own. */
MOE_API moe_status moe_layer_end_step(moe_layer *layer, const int64_t *counts);

/* 7. What the router did in the last forward. Pointers belong to the layer, until the next forward. On a GPU,
 * after inference of few tokens, this queues kernels that find row_of and counts: ask once per forward. */
typedef struct moe_routing_view {
    size_t size;
    int64_t n_tokens;
    int32_t n_experts;
    /* K, the slots of a token: desc.top_k; E for expert_choice (slot e: expert e); 4 for two levels; E in
     * training with token_rounding (the choices that stay, then experts that the token was added to). */
    int32_t top_k;
    moe_dtype dtype;  /* of the router: desc.router_dtype */
    int32_t reserved; /* 0: no padding, as in moe_stats */
    /* [T,K] descending by selection score. Negative where not routed: -1 (masked, fewer than K); -2 - e if
     * expert e was chosen and the second policy removed it; with two levels -2 - E - e if e was full. A
     * replay needs these. An outer expert whose inner ones were not asked is named by its first inner one. */
    const int32_t *expert;
    /* [T,E] what was ranked, if that is not the score: logits - bias for quantile; for sinkhorn in training
     * the plan (megatron) or its logarithm. NULL for others; without meaning in a replay. */
    const void *selection;
    int64_t capacity;      /* rows an expert (with two levels: an inner one) may take of a capacity group;
                              more than its tokens if min_capacity, capacity_multiple or a formula says so.
                              -1: dropless */
    const void *weight;    /* [T,K] of dtype */
    const int32_t *row_of; /* [T,K] row in expert order; -1: masked or dropped */
    const int64_t *routed; /* [E] rows per expert before capacity (with two levels, which fill their
                              capacities while they route: after) */
    const int64_t *kept;   /* [E] and after */
    int64_t n_groups;      /* of capacity: the sequences of capacity_group sequence, else 1 */
    const int64_t *group_capacity; /* [n_groups], of which `capacity` is the largest */
} moe_routing_view;
MOE_API moe_status moe_layer_routing(const moe_layer *layer, moe_routing_view *view);

#ifdef __cplusplus
}
#endif
#endif
