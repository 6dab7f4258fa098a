"""The C interface, as far as this package uses it: its declarations, word for word, and the library they are of.

DECLARATIONS is C out of include/moekit, without the comments, which are there to be read; a test holds every line of it
against the headers and the sizes it gives against a C compiler. At import it becomes ctypes: structs by their names, in
this module, and the types of the functions, which library() gives to the library it finds.
"""
import ctypes
import functools
import os
import re

VERSION = "0.1.0"
MOE_ZERO = -1

DECLARATIONS = """
typedef enum moe_device { MOE_CPU = 0, MOE_CUDA = 1 } moe_device;
typedef enum moe_dtype { MOE_F32 = 0, MOE_F64 = 1, MOE_BF16 = 2 } moe_dtype;
typedef enum moe_mode { MOE_INFER = 0, MOE_TRAIN = 1 } moe_mode;
typedef enum moe_log_level { MOE_LOG_ERROR = 0, MOE_LOG_WARN, MOE_LOG_INFO, MOE_LOG_DEBUG } moe_log_level;
typedef enum moe_status {
    MOE_OK = 0, MOE_ERR_IO = 1, MOE_ERR_ARGUMENT = 2, MOE_ERR_INPUT = 3, MOE_ERR_MEMORY = 4, MOE_ERR_NUMERIC = 5,
    MOE_ERR_COMM = 6, MOE_ERR_ALARM = 7, MOE_ERR_UNSUPPORTED = 8, MOE_ERR_STATE = 9, MOE_ERR_DEVICE = 10,
    MOE_ERR_INTERNAL = 11, MOE_ERR_INTERRUPTED = 130
} moe_status;
typedef enum moe_option_type {
    MOE_OPT_BOOL, MOE_OPT_INT, MOE_OPT_INT64, MOE_OPT_FLOAT, MOE_OPT_DOUBLE, MOE_OPT_CHOICE, MOE_OPT_TEXT
} moe_option_type;

typedef struct moe_error { moe_status status; char text[500]; } moe_error;
typedef struct moe_allocator {
    void *(*alloc)(void *user, size_t bytes, size_t align);
    void (*free)(void *user, void *ptr, size_t bytes);
    void *user;
} moe_allocator;
typedef struct moe_ctx_desc {
    size_t size; moe_device device; int32_t n_threads; const char *isa; uint64_t seed; moe_allocator host;
    void (*log)(void *user, moe_log_level level, const char *text);
    void *log_user; int32_t device_index; uint8_t reserved[4];
} moe_ctx_desc;
typedef struct moe_mat { void *data; int64_t rows, cols; int64_t stride; moe_dtype dtype; } moe_mat;
typedef struct moe_layer_desc {
    size_t size; moe_dtype dtype;
    int32_t d_model; int32_t output_size; int32_t num_experts; int32_t num_groups_outer; int32_t top_k;
    int32_t top_k_min; int32_t expert_hidden_size; int32_t latent_size;
    const char *expert; const char *expert_kinds; const char *activation; const char *glu_layout;
    float activation_alpha; float activation_limit; float glu_linear_offset;
    bool expert_bias; bool expert_up_bias; bool output_bias; float dropout; const char *weight_apply;
    int32_t num_shared_experts; int32_t shared_expert_hidden_size; const char *shared_expert_activation;
    bool shared_expert_gate;
    bool router_bias; bool router_frozen; const char *router_dtype; float input_jitter_eps;
    const char *routing_unit; int32_t num_tasks;
    const char *score_function; bool score_before_topk; bool norm_topk_prob; float routed_scaling_factor;
    const char *router_type; int32_t num_groups, group_top_k; const char *group_score; bool selection_bias;
    float selection_bias_update_rate; bool selection_bias_recenter; bool selection_bias_in_weights;
    float expert_dropout; int32_t token_rounding;
    const char *second_policy_train, *second_policy_eval; float second_threshold_train, second_threshold_eval;
    float noise_epsilon; const char *sinkhorn_variant; int32_t sinkhorn_iters; float sinkhorn_tol;
    float quantile_ema; float fake_noise; int32_t fake_skip_first; float force_bias_std;
    float capacity_factor; float capacity_factor_eval; float capacity_factor_inner; const char *capacity_formula;
    int32_t min_capacity; int32_t capacity_multiple; const char *capacity_group; const char *drop_policy;
    bool pad_to_capacity;
    float aux_loss_coeff; const char *aux_loss_type; float seq_aux_loss_coeff; float global_aux_loss_coeff;
    float gshard_loss_coeff; float second_place_loss_coeff; float importance_loss_coeff; float load_loss_coeff;
    float entropy_loss_coeff; float z_loss_coeff; const char *aux_scores; const char *aux_map;
    const char *init_scheme; const char *router_init; float init_std; float init_std_down; float init_std_scale;
    const char *recompute; const char *saved_dtype; int32_t layer_index;
    uint8_t said[128]; bool undrawn; bool unowned; uint8_t reserved[2];
} moe_layer_desc;
typedef struct moe_option {
    const char *key; const char *aliases; moe_option_type type; size_t offset; const char *initial; double min, max;
    const char *const *choices; const char *help;
} moe_option;
typedef struct moe_layer_bytes {
    size_t size; size_t params, grads; size_t saved; size_t scratch; size_t packed;
} moe_layer_bytes;
typedef struct moe_call {
    size_t size; moe_mode mode; uint64_t step; const uint8_t *token_mask; float loss_scale; int64_t sequence_length;
    const int32_t *task; const int32_t *token_id; const int32_t *replay_expert; const void *replay_weight;
    const moe_draws *draws; bool overwrite_grad; uint8_t reserved[7];
} moe_call;
typedef struct moe_stats {
    size_t size; int64_t n_tokens; int64_t n_routed, n_kept, n_dropped; int32_t n_dead; int32_t reserved;
    double loss; double aux_loss, z_loss; double seq_aux_loss, global_aux_loss, gshard_loss;
    double second_place_loss, importance_loss, load_loss, entropy_loss;
    double load_cv; double load_max; double load_entropy; double router_entropy;
} moe_stats;
typedef struct moe_param {
    size_t size; const char *name; moe_dtype dtype; int32_t n_dim; int64_t dim[3]; void *value; void *grad;
    bool buffer, frozen; uint8_t reserved[2]; moe_dtype grad_dtype;
} moe_param;
typedef struct moe_routing_view {
    size_t size; int64_t n_tokens; int32_t n_experts; int32_t top_k; moe_dtype dtype; int32_t reserved;
    const int32_t *expert; const void *selection; int64_t capacity; const void *weight; const int32_t *row_of;
    const int64_t *routed; const int64_t *kept; int64_t n_groups; const int64_t *group_capacity;
} moe_routing_view;
typedef struct moe_quant_desc {
    size_t size; const char *format; int32_t group; bool drop_weights; uint8_t reserved[3];
} moe_quant_desc;

int moe_version(void);
const char *moe_version_string(void);
const char *moe_status_name(moe_status status);
moe_status moe_ctx_create(const moe_ctx_desc *desc, moe_ctx **ctx, moe_error *error);
void moe_ctx_destroy(moe_ctx *ctx);
const char *moe_ctx_error(const moe_ctx *ctx);
int32_t moe_ctx_threads(const moe_ctx *ctx);
const char *moe_ctx_isa(const moe_ctx *ctx);
const char *moe_ctx_kernel_of(const moe_ctx *ctx, const char *op, moe_dtype dtype);
void *moe_memory_alloc(moe_ctx *ctx, size_t bytes);
void moe_memory_free(moe_ctx *ctx, void *ptr, size_t bytes);
moe_status moe_memory_copy(moe_ctx *ctx, void *to, const void *from, size_t bytes);
moe_status moe_ctx_wait(moe_ctx *ctx);
moe_status moe_cuda_set_stream(moe_ctx *ctx, void *stream);
void *moe_cuda_stream(const moe_ctx *ctx);
moe_status moe_layer_desc_preset(moe_layer_desc *desc, const char *name, moe_error *error);
const char *const *moe_layer_presets(void);
moe_status moe_layer_desc_set(moe_layer_desc *desc, const char *key, const char *value, moe_error *error);
const moe_option *moe_layer_option_at(size_t index);
const moe_option *moe_layer_option_find(const char *key);
moe_status moe_layer_create(moe_ctx *ctx, const moe_layer_desc *desc, moe_layer **layer);
void moe_layer_destroy(moe_layer *layer);
const moe_layer_desc *moe_layer_get_desc(const moe_layer *layer);
bool moe_layer_routes_on_device(const moe_layer *layer);
moe_status moe_layer_measure(const moe_layer *layer, int64_t max_tokens, moe_mode mode, moe_layer_bytes *bytes);
moe_status moe_layer_reserve(moe_layer *layer, int64_t max_tokens, moe_mode mode);
moe_status moe_layer_forward(moe_layer *layer, moe_mat x, moe_mat y, const moe_call *call, moe_stats *stats);
moe_status moe_layer_backward(moe_layer *layer, moe_mat x, moe_mat dy, moe_mat dx);
void moe_layer_zero_grad(moe_layer *layer);
moe_status moe_layer_set_grad_dtype(moe_layer *layer, moe_dtype dtype);
int32_t moe_layer_param_count(const moe_layer *layer);
moe_status moe_layer_param(const moe_layer *layer, int32_t index, moe_param *param);
moe_status moe_layer_bind_param(moe_layer *layer, int32_t index, void *value, void *grad);
moe_status moe_layer_freeze(moe_layer *layer, int32_t index, bool frozen);
moe_status moe_layer_end_step(moe_layer *layer, const int64_t *counts);
moe_status moe_layer_routing(const moe_layer *layer, moe_routing_view *view);
moe_status moe_layer_quantize(moe_layer *layer, const moe_quant_desc *desc);
const char *const *moe_packed_formats(void);
"""

# C type, as declared -> ctypes; enums and structs join as they are read. Other pointers are addresses.
TYPES = {"void": None, "bool": ctypes.c_bool, "int": ctypes.c_int, "float": ctypes.c_float, "double": ctypes.c_double,
         "size_t": ctypes.c_size_t, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint8_t": ctypes.c_uint8,
         "uint64_t": ctypes.c_uint64, "char": ctypes.c_char, "const char *": ctypes.c_char_p,
         "const char *const *": ctypes.POINTER(ctypes.c_char_p)}
ENUMS, STRUCTS, FUNCTIONS = {}, {}, {}
STATUSES = set()  # functions that leave a text on their context where they refuse


def _type(text):
    """Of a type without a name: 'const moe_mat *'."""
    text = re.sub(r"\s*\*", " *", text.strip()).replace("* *", "**")
    if text in TYPES:
        return TYPES[text]
    base = re.sub(r"\b(const)\b|\*", "", text).strip()
    if text.count("*") == 1 and base in STRUCTS:
        return ctypes.POINTER(STRUCTS[base])
    return ctypes.POINTER(ctypes.c_void_p) if text.count("*") == 2 else ctypes.c_void_p


def _split(declarator):
    """'const char *name[3]' -> its type, its name, its length or None."""
    kind, name, length = re.fullmatch(r"(.*?)(\w+)(?:\[(\d+)\])?", declarator.strip(), re.S).groups()
    return kind, name, length and int(length)


def _fields(body):
    for line in filter(str.strip, body.split(";")):
        if "(*" in line:
            yield re.search(r"\(\*(\w+)\)", line)[1], ctypes.c_void_p
            continue
        first, *more = line.split(",")
        kind, name, length = _split(first)
        for name in [name, *(word.strip(" *") for word in more)]:
            yield name, _type(kind) * length if length else _type(kind)


def _declare():
    for body, name in re.findall(r"typedef enum \w+ \{(.*?)\} (\w+);", DECLARATIONS, re.S):
        value, ENUMS[name], TYPES[name] = -1, {}, ctypes.c_int
        for word in body.split(","):
            key, _, number = word.partition("=")
            value = int(number) if number else value + 1
            ENUMS[name][key.strip()] = value
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", DECLARATIONS, re.S):
        TYPES[name] = STRUCTS[name] = type(name, (ctypes.Structure,), {"_fields_": list(_fields(body))})
    for kind, name, args in re.findall(r"^(?!typedef)(\w[\w *]*?)(moe_\w+)\(([^()]*)\);", DECLARATIONS, re.M):
        types = [] if args == "void" else [_type(_split(arg)[0]) for arg in args.split(",")]
        FUNCTIONS[name] = _type(kind), types
        if kind.strip() == "moe_status" and "moe_error" not in args:
            STATUSES.add(name)


_declare()
globals().update(STRUCTS)
for _values in ENUMS.values():
    globals().update(_values)


def sized(struct, **fields):
    """A struct that says its size."""
    return struct(size=ctypes.sizeof(struct), **fields)


def _open():
    """The first that is there: $MOEKIT_LIBRARY and no other, else next to this file, else where the system looks."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libmoekit.so")
    told = os.environ.get("MOEKIT_LIBRARY")
    tried = []
    for path in [told] if told else [beside, "libmoekit.so.0", "libmoekit.so"]:
        try:
            return path, ctypes.CDLL(path)
        except OSError as error:
            tried.append(str(error))
    raise OSError(f"libmoekit is not to be had; tried: {'; '.join(tried)}. Install it (cmake --install), or let "
                  "MOEKIT_LIBRARY be the path of libmoekit.so")


class _Symbol(ctypes.Structure):
    """Dl_info of dlfcn.h."""
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p),
                ("address", ctypes.c_void_p)]


def library_path():
    """The file that library() was loaded from."""
    found = _Symbol()
    ctypes.CDLL(None).dladdr(library().moe_version, ctypes.byref(found))
    return os.path.realpath(os.fsdecode(found.file))


@functools.cache
def library():
    """libmoekit, of this package's major and minor version, its functions typed."""
    path, found = _open()
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(found, name, None)
        if function is None:
            raise OSError(f"{path} has no {name}: it is no libmoekit, or one older than this package, {VERSION}")
        function.restype, function.argtypes = result, arguments
    version = found.moe_version_string().decode()
    if version.split(".")[:2] != VERSION.split(".")[:2]:
        raise OSError(f"{path} is version {version}, and this package is for {VERSION}; install the same of both")
    return found
