"""This project's layer through its C interface: libmoekit.so, with the device pointers of torch's tensors.

Structs are the beginnings of moekit/moe.h's: each says its size, and the library takes what is left out as its default.
"""
import ctypes as c
import os

import torch

CPU, CUDA, BF16, TRAIN = 0, 1, 2, 1
I32, TEXT = c.c_int32, c.c_char_p


class CtxDesc(c.Structure):
    _fields_ = [("size", c.c_size_t), ("device", c.c_int), ("n_threads", I32), ("isa", TEXT), ("seed", c.c_uint64)]


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("text", c.c_char * 500)]


class LayerDesc(c.Structure):
    _fields_ = [("size", c.c_size_t), ("dtype", c.c_int), ("d_model", I32), ("output_size", I32), ("num_experts", I32),
                ("num_groups_outer", I32), ("top_k", I32), ("top_k_min", I32), ("expert_hidden_size", I32),
                ("latent_size", I32), ("expert", TEXT), ("expert_kinds", TEXT), ("activation", TEXT),
                ("glu_layout", TEXT), ("activation_alpha", c.c_float), ("activation_limit", c.c_float),
                ("glu_linear_offset", c.c_float), ("expert_bias", c.c_bool), ("expert_up_bias", c.c_bool),
                ("output_bias", c.c_bool), ("dropout", c.c_float), ("weight_apply", TEXT), ("num_shared_experts", I32),
                ("shared_expert_hidden_size", I32), ("shared_expert_activation", TEXT), ("shared_expert_gate", c.c_bool),
                ("router_bias", c.c_bool), ("router_frozen", c.c_bool), ("router_dtype", TEXT),
                ("input_jitter_eps", c.c_float), ("routing_unit", TEXT), ("num_tasks", I32), ("score_function", TEXT)]


class Mat(c.Structure):
    _fields_ = [("data", c.c_void_p), ("rows", c.c_int64), ("cols", c.c_int64), ("stride", c.c_int64), ("dtype", c.c_int)]


class Call(c.Structure):
    _fields_ = [("size", c.c_size_t), ("mode", c.c_int), ("step", c.c_uint64), ("token_mask", c.c_void_p),
                ("loss_scale", c.c_float), ("sequence_length", c.c_int64), ("task", c.c_void_p),
                ("token_id", c.c_void_p), ("replay_expert", c.c_void_p), ("replay_weight", c.c_void_p),
                ("draws", c.c_void_p), ("overwrite_grad", c.c_bool)]


class Param(c.Structure):
    _fields_ = [("size", c.c_size_t), ("name", TEXT), ("dtype", c.c_int), ("n_dim", I32), ("dim", c.c_int64 * 3),
                ("value", c.c_void_p), ("grad", c.c_void_p)]


def sized(struct, **fields):
    return struct(size=c.sizeof(struct), **fields)


def library_path():
    """$MOEKIT_LIBRARY, else where `make build` puts it."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.environ.get("MOEKIT_LIBRARY", os.path.join(top, "build", "release", "libmoekit.so"))


def open_library():
    library = c.CDLL(library_path())
    for name in ("moe_ctx_error", "moe_version_string", "moe_ctx_kernel_of"):
        getattr(library, name).restype = c.c_char_p
    return library


class Moekit:
    """The layer on the device of `numbers`, on torch's current stream there; new gradients, of experts in bf16: as the
    others'."""
    ADDS = False
    PARAMS = {"gate": b"gate.weight", "w1": b"experts.up.weight", "w2": b"experts.down.weight"}

    def __init__(self, problem, numbers):
        self.library, self.numbers = open_library(), numbers
        self.ctx, self.layer, error = c.c_void_p(), c.c_void_p(), Error()
        on_gpu = numbers["x"].is_cuda
        desc = sized(CtxDesc, device=CUDA if on_gpu else CPU, seed=1)
        if self.library.moe_ctx_create(c.byref(desc), c.byref(self.ctx), c.byref(error)):
            raise RuntimeError(error.text.decode())
        if on_gpu:
            stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
            self.told(self.library.moe_cuda_set_stream(self.ctx, stream))
        desc = sized(LayerDesc, dtype=BF16, d_model=problem.d, num_experts=problem.E, top_k=problem.K,
                     expert_hidden_size=problem.n, activation=problem.act.encode(),
                     score_function=b"softmax" if problem.act == "swiglu" else b"sigmoid")
        self.told(self.library.moe_layer_create(self.ctx, c.byref(desc), c.byref(self.layer)))
        if not self.ADDS:
            self.told(self.library.moe_layer_set_grad_dtype(self.layer, BF16))
        self.told(self.library.moe_layer_reserve(self.layer, c.c_int64(problem.T), TRAIN))
        for key, name in self.PARAMS.items():
            self.copy(self.param(name).value, numbers[key].data_ptr(), numbers[key])
        self.y, self.dx = (torch.full_like(numbers["x"], torch.nan) for _ in range(2))
        self.mats = [Mat(t.data_ptr(), problem.T, problem.d, problem.d, BF16)
                     for t in (numbers["x"], self.y, numbers["dy"], self.dx)]
        self.call = sized(Call, mode=TRAIN, overwrite_grad=not self.ADDS)

    def about(self):
        kernel = self.library.moe_ctx_kernel_of(self.ctx, b"gemm_rows", BF16).decode()
        return f"moekit {self.library.moe_version_string().decode()}, {kernel}"

    def told(self, status):
        if status:
            raise RuntimeError(self.library.moe_ctx_error(self.ctx).decode())

    def param(self, name):
        param = sized(Param)
        self.told(self.library.moe_layer_param_by_name(self.layer, name, c.byref(param)))
        return param

    def copy(self, to, source, like):
        size = c.c_size_t(like.numel() * like.element_size())
        self.told(self.library.moe_memory_copy(self.ctx, c.c_void_p(to), c.c_void_p(source), size))

    def forward(self):
        x, y, _, _ = self.mats
        self.told(self.library.moe_layer_forward(self.layer, x, y, c.byref(self.call), None))

    def step(self):
        self.forward()
        x, _, dy, dx = self.mats
        self.told(self.library.moe_layer_backward(self.layer, x, dy, dx))

    def outputs(self):
        """Of one step, gradients from zero."""
        if self.ADDS:
            self.library.moe_layer_zero_grad(self.layer)
        self.step()
        self.told(self.library.moe_ctx_wait(self.ctx))
        out = {"y": self.y, "dx": self.dx}
        for key, name in self.PARAMS.items():
            dtype = torch.float32 if self.ADDS or key == "gate" else torch.bfloat16
            out["d" + key] = torch.empty(self.numbers[key].shape, device=self.y.device, dtype=dtype)
            self.copy(out["d" + key].data_ptr(), self.param(name).grad, out["d" + key])
        return out

    def close(self):
        self.library.moe_layer_destroy(self.layer)
        self.library.moe_ctx_destroy(self.ctx)


class MoekitAdds(Moekit):
    """The same where gradients add up, in f32."""
    ADDS = True
