"""MoE: the layer as a torch.nn.Module. Its parameters are torch's own tensors, lent to libmoekit without a copy.

forward and backward are operators of torch.library, functions of their tensors alone, so autograd, torch.compile,
checkpointing, .to(), state_dict and optimizers do as with any module. What backward needs beside those tensors stays in
the C layer, which keeps its last training forward: where another came between, backward runs the forward once more.
"""
import contextlib
import functools
import itertools
import threading
import weakref
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from . import _c
from .array import DTYPES
from .layer import Context, Error, Layer, Status

NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
TYPES = {name: dtype for dtype, name in NAMES.items()}
ALIGN = 64  # bytes, of lent memory
LEGACY_STREAM = 1  # cudaStreamLegacy; torch calls its default stream 0, which moekit takes for its own
_modules = weakref.WeakValueDictionary()  # by the handle that operators get
_handles = itertools.count()
_contexts = {}  # by device; their seed draws nothing that training does not key anew (MoE.forward's step)
_lock = threading.RLock()  # a context belongs to one thread at a time


@contextlib.contextmanager
def _context(device):
    """The context of a device, on torch's current stream there."""
    with _lock, torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if device not in _contexts:
            on_gpu = device.type == "cuda"
            _contexts[device] = Context(f"cuda:{device.index}" if on_gpu else device.type, threads=torch.get_num_threads())
        if device.type == "cuda":
            _contexts[device].set_stream(torch.cuda.current_stream(device).cuda_stream or LEGACY_STREAM)
        yield _contexts[device]


def _mat(tensor):
    return _c.moe_mat(tensor.data_ptr(), tensor.shape[0], tensor.shape[1], tensor.stride(0), DTYPES[NAMES[tensor.dtype]])


def _rows(tensor):
    """[T, width], the numbers of a row side by side."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


class _Engine:
    """The C layer of a module on one device, in one dtype."""

    def __init__(self, module, context, dtype):
        self.layer = Layer(context, dtype=NAMES[dtype], unowned=True, preset=module.preset, **module.options)
        if dtype == torch.bfloat16:
            try:
                self.layer.set_grad_dtype("bf16")
            except Error as error:
                if error.status != Status.UNSUPPORTED:  # kinds of expert that have f32 gradients alone
                    raise
        self.grad_types = [TYPES[grad] for _, _, grad, _ in self.layer.param_shapes.values()]
        self.trained, self.output_size = module.trained, module.output_size
        self.ticket, self.call, self.mask = None, None, None

    def lend(self, params):
        """Until the next call of this engine. Of those that lie unevenly, copies: all are returned, to be held by then."""
        even = [p if p.is_contiguous() and p.data_ptr() % ALIGN == 0 else p.clone(memory_format=torch.contiguous_format)
                for p in params]
        for index, param in enumerate(even):
            self.layer.bind(index, param.data_ptr(), None)
        return even

    def forward(self, x, params, mask, step, train, stats, loss_scale, sequence_length):
        """y; where it trains, self.ticket is then this forward's."""
        self.ticket, even = None, self.lend(params)
        mask = None if mask is None else mask.to(torch.uint8).clone()
        y = x.new_empty([x.shape[0], self.output_size])
        fields = {"loss_scale": loss_scale, "overwrite_grad": True, "step": int(step)} if train else {}
        self.call = self.layer.call(_mat(x), _mat(y), train=train, stats=stats, sequence_length=sequence_length,
                                    token_mask=None if mask is None else mask.data_ptr(), **fields)
        self.call.forward()
        del even
        if train:
            self.ticket, self.mask = torch.zeros(1, dtype=torch.int64), mask  # which backward reads again
        return y

    def backward(self, dy, x, params):
        """dx and the gradients of what is trained, of the types of their values."""
        grads, even = [], self.lend(params)
        for index in self.trained:
            grads.append(torch.empty(params[index].shape, dtype=self.grad_types[index], device=x.device))
            self.layer.bind(index, None, grads[-1].data_ptr())
        dx, self.call.x, self.ticket = torch.empty_like(x, memory_format=torch.contiguous_format), _mat(x), None
        self.call.backward(_mat(dy), _mat(dx))
        del even
        self.mask = None
        return [dx, *(grad.to(params[index].dtype) for index, grad in zip(self.trained, grads))]


# y, and a ticket: by its address the layer knows in backward whether it still holds this forward. It keeps the ticket
# itself, so no other is there meanwhile.
@torch.library.custom_op("moekit::forward", mutates_args=())
def _forward(x: Tensor, params: Sequence[Tensor], mask: Optional[Tensor], step: Tensor, handle: int, train: bool,
             stats: bool, loss_scale: float, sequence_length: int) -> Tuple[Tensor, Tensor]:
    with _context(x.device) as context:
        engine = _modules[handle].engine(context, x.device, x.dtype)
        y = engine.forward(_rows(x), params, mask, step, train, stats, loss_scale, sequence_length)
        return y, engine.ticket if train else torch.zeros(1, dtype=torch.int64)


@_forward.register_fake
def _(x, params, mask, step, handle, train, stats, loss_scale, sequence_length):
    return x.new_empty([x.shape[0], _modules[handle].output_size]), torch.empty(1, dtype=torch.int64)


@torch.library.custom_op("moekit::backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, params: Sequence[Tensor], mask: Optional[Tensor], step: Tensor, ticket: Tensor,
              handle: int, train: bool, loss_scale: float, sequence_length: int) -> List[Tensor]:
    if not train:  # here and not before: a compiler asks for every backward
        raise RuntimeError("moekit.torch.MoE: backward of a forward in eval mode, which keeps nothing for it; call train()")
    with _context(x.device) as context:
        engine = _modules[handle].engine(context, x.device, x.dtype)
        x, dy = _rows(x), _rows(dy)
        if engine.ticket is None or engine.ticket.data_ptr() != ticket.data_ptr():
            engine.forward(x, params, mask, step, True, False, loss_scale, sequence_length)
        return engine.backward(dy, x, params)


@_backward.register_fake
def _(dy, x, params, mask, step, ticket, handle, train, loss_scale, sequence_length):
    return [x.new_empty(x.shape), *(params[i].new_empty(params[i].shape) for i in _modules[handle].trained)]


def _save(ctx, inputs, output):
    x, params, mask, step, handle, train, _, loss_scale, sequence_length = inputs
    ctx.said = handle, train, loss_scale, sequence_length
    ctx.module = _modules[handle]  # lives as long as the graph does
    ctx.n_params = len(params)
    ctx.save_for_backward(x, mask, step, output[1], *params)


def _differentiate(ctx, dy, _):
    x, mask, step, ticket, *params = ctx.saved_tensors
    dx, *found = torch.ops.moekit.backward(dy, x, params, mask, step, ticket, *ctx.said)
    grads = [None] * ctx.n_params
    for index, grad in zip(ctx.module.trained, found):
        grads[index] = grad
    return dx, grads, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)


class MoE(torch.nn.Module):
    """Keywords are those of moekit.Layer: MoE(d_model=64, num_experts=8, top_k=2, expert_hidden_size=128).

    x [.., d_model] -> y [.., output_size]; of [B, S, d_model] each of the B is a sequence. The gradients of the layer's
    own losses, times `loss_scale`, join in backward; last_stats has their values where `measure` is set. Parameters have
    the names and layouts of moekit/moe.h: "experts.up.weight" [E, d, 2n], gates first.
    """

    def __init__(self, *, preset=None, device=None, dtype=None, **options):
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        if dtype not in NAMES:
            raise TypeError(f"dtype: {dtype}; it is one of {', '.join(map(str, NAMES))}")
        self.preset, self.options, self.loss_scale, self.measure = preset, options, 1.0, False
        self._identify()
        with _context(torch.device("cpu")) as context, Layer(context, preset=preset, unowned=True, dtype=NAMES[dtype],
                                                             **options) as layer:
            self.output_size, said, shapes = layer.output_size, layer.options, layer.param_shapes
        self.names, self.trained = list(shapes), []
        for index, (name, (shape, kind, _, buffer)) in enumerate(shapes.items()):
            *path, leaf = name.split(".")
            place = functools.reduce(_child, path, self)
            tensor = torch.empty(shape, dtype=TYPES[kind], device=device)
            frozen = said["router_frozen"] and path == ["gate"]
            if buffer:
                place.register_buffer(leaf, tensor)
            else:
                place.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=not frozen))
            if not (buffer or frozen):
                self.trained.append(index)
        self.reset_parameters()

    def _identify(self):
        self._handle, self._engines = next(_handles), {}
        _modules[self._handle] = self

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in ("_handle", "_engines")}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._identify()

    def engine(self, context, device, dtype):
        if (device, dtype) not in self._engines:
            self._engines[device, dtype] = _Engine(self, context, dtype)
        return self._engines[device, dtype]

    def tensors(self):
        """Parameters and buffers in the order of the C layer."""
        return [functools.reduce(getattr, name.split("."), self) for name in self.names]

    @torch.no_grad()
    def reset_parameters(self):
        """Draws them as the layer's options say, by torch's generator."""
        tensors = self.tensors()
        if all(tensor.is_meta for tensor in tensors):
            return
        options = {"preset": self.preset, "dtype": NAMES[tensors[0].dtype]} | self.options
        with Context(seed=int(torch.randint(2**62, ())), threads=torch.get_num_threads()) as context:
            for tensor, drawn in zip(tensors, Layer(context, **options).params.values()):
                tensor.copy_(torch.from_dlpack(drawn))

    def forward(self, x, mask=None):
        """mask [T] or as x without its last dimension: False or 0 where a token is padding."""
        params = self.tensors()
        if x.dtype != params[0].dtype or x.device != params[0].device:
            raise TypeError(f"x: {x.dtype} on {x.device}; the parameters are {params[0].dtype} on {params[0].device}")
        step = torch.randint(2**62, ()) if self.training else torch.zeros((), dtype=torch.int64)
        y, _ = torch.ops.moekit.forward(x.reshape(-1, x.shape[-1]), params, None if mask is None else mask.reshape(-1), step,
                                        self._handle, self.training, self.measure, float(self.loss_scale),
                                        x.shape[1] if x.dim() == 3 else 0)
        return y.reshape(*x.shape[:-1], self.output_size)

    def _last(self):
        tensor = self.tensors()[0]
        return self._engines[tensor.device, tensor.dtype]

    @property
    def last_stats(self):
        """Losses and load of the last forward, where `measure` was set: moe_stats by name."""
        return self._last().call.told()

    @property
    def routing(self):
        """What the router did in the last forward, as moekit.Layer.routing."""
        return self._last().layer.routing

    @torch.no_grad()
    def end_step(self, counts=None):
        """Once an optimizer step, after the backward: moves the selection bias, as moekit.Layer.end_step."""
        params = self.tensors()
        with _context(params[0].device) as context:
            engine = self.engine(context, params[0].device, params[0].dtype)
            even = engine.lend(params)
            engine.layer.end_step(counts)
            for param, lent in zip(params, even):
                if param is not lent:
                    param.copy_(lent)

    @torch.no_grad()
    def quantize(self, format=None, *, group=0):
        """Packs the experts' weights as they are now, for eval(): moekit.Layer.quantize. None: reads them again."""
        params = self.tensors()
        with _context(params[0].device) as context:
            self._engines.clear()  # one that was reserved for training cannot
            if format:
                engine = self.engine(context, params[0].device, params[0].dtype)
                even = engine.lend(params)
                engine.layer.quantize(format, group=group)
                del even

    @classmethod
    def from_mixtral(cls, block, **options):
        """Takes over transformers' MixtralSparseMoeBlock or Qwen3MoeSparseMoeBlock (version 5): same numbers in and out.
        Weights are copied, transposed once."""
        return _from_mixtral(cls, block, options)

    def extra_repr(self):
        return ", ".join(f"{key}={value}" for key, value in ({"preset": self.preset} | self.options).items() if value is not None)


def _child(module, name):
    if name not in module._modules:
        module.add_module(name, torch.nn.Module())
    return module._modules[name]


ACTIVATIONS = {"SiLU": "swiglu", "SiLUActivation": "swiglu", "GELUActivation": "geglu_exact", "GELU": "geglu_exact",
               "GELUTanh": "geglu", "PytorchGELUTanh": "geglu", "ReLU": "reglu"}


@torch.no_grad()
def _from_mixtral(cls, block, options):
    gate, experts = block.gate, block.experts
    if not hasattr(experts, "gate_up_proj") or not hasattr(gate, "top_k"):
        raise TypeError(f"{type(block).__name__}: no gate with top_k and experts with gate_up_proj, as transformers 5 has them")
    activation = ACTIVATIONS.get(type(experts.act_fn).__name__)
    if activation is None:
        raise ValueError(f"activation {type(experts.act_fn).__name__}: there are {', '.join(ACTIVATIONS)}")
    if getattr(block, "jitter_noise", 0):
        raise ValueError("router_jitter_noise: transformers moves the experts' input too, moekit (input_jitter_eps) the "
                         "router's alone; set block.jitter_noise = 0 first")
    E, d, n = experts.down_proj.shape
    said = {"d_model": d, "num_experts": E, "top_k": gate.top_k, "expert_hidden_size": n, "activation": activation,
            "score_before_topk": True, "norm_topk_prob": getattr(gate, "norm_topk_prob", True)}
    made = cls(device="meta", dtype=gate.weight.dtype, **said | options).to_empty(device=gate.weight.device)
    for to, source in ((made.gate.weight, gate.weight), (made.experts.up.weight, experts.gate_up_proj.mT),
                       (made.experts.down.weight, experts.down_proj.mT)):
        to.copy_(source)
        to.requires_grad_(source.requires_grad)
    return made.train(block.training)
