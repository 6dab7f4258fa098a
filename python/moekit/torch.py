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
from torch.autograd.forward_ad import unpack_dual

from . import _c
from .array import DTYPES, dtype_name
from .context import Context, Error, Status
from .layer import Layer, Missing
from .settings import setting

NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
TYPES = {name: dtype for dtype, name in NAMES.items()}
ALIGN = 64  # bytes, of lent memory
LEGACY_STREAM = 1  # cudaStreamLegacy; torch calls its default stream 0, which moekit takes for its own
_layers = weakref.WeakValueDictionary()  # by the number in the tensor that operators get
_numbers = itertools.count()
_contexts = {}  # by device; their seed draws nothing that training does not key anew (MoE.forward's step)
_streams = {}  # by device: the one that the last call queued on
_dead = []  # engines that nobody asks again
_lock = threading.RLock()  # a context belongs to one thread at a time


def _follow_stream(context, device):
    """Queues on torch's current stream, after what another has of ours: the layers' memory is one for all streams."""
    stream = torch.cuda.current_stream(device)
    if stream != _streams.get(device, stream) and not torch.cuda.is_current_stream_capturing():
        stream.wait_stream(_streams[device])
    _streams[device] = stream
    context.set_stream(stream.cuda_stream or LEGACY_STREAM)


@contextlib.contextmanager
def _context(device):
    """The context of a device, on torch's current stream there."""
    on_gpu = device.type == "cuda"
    with _lock, torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        _dead.clear()
        if device not in _contexts:
            _contexts[device] = Context(f"cuda:{device.index}" if on_gpu else device.type,
                                        threads=torch.get_num_threads())
        if on_gpu:
            _follow_stream(_contexts[device], device)
        yield _contexts[device]


def _bury(engines):
    """From any thread, whenever the collector comes: they end under the lock, here or with whose turn it is."""
    _dead.append(engines)
    if _lock.acquire(blocking=False):
        _dead.clear()
        _lock.release()


def _mat(tensor):
    return _c.moe_mat(tensor.data_ptr(), tensor.shape[0], tensor.shape[1], tensor.stride(0),
                      DTYPES[NAMES[tensor.dtype]])


def _rows(tensor):
    """[T, width], the numbers of a row side by side."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


def _cast(x, param):
    """x in the parameters' dtype where autocast says that dtypes are torch's business: what
    torch.amp.custom_fwd(cast_inputs=...) does, f64 left alone."""
    if x.device != param.device:
        raise TypeError(f"x: on {x.device}; the parameters are on {param.device}: move one of them by .to()")
    if x.dtype == param.dtype:
        return x
    if x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return x.to(param.dtype)
    raise TypeError(f"x: {x.dtype}; the parameters are {param.dtype}: give x.to({param.dtype}), or have the layer in "
                    "x's dtype by .to(); under torch.autocast the layer casts x itself, but not from f64")


class _Engine:
    """The C layer of a module on one device, in one dtype."""

    def __init__(self, context, device, dtype, said):
        self.layer, self.device = Layer(context, dtype=dtype, unowned=True, **said), device
        if dtype == torch.bfloat16:
            try:
                self.layer.set_grad_dtype("bf16")
            except Error as error:
                if error.status != Status.UNSUPPORTED:  # kinds of expert that have f32 gradients alone
                    raise
        shapes = self.layer.param_shapes
        self.params = [(name, torch.Size(param.shape), TYPES[param.dtype]) for name, param in shapes.items()]
        self.grad_types = [TYPES[param.grad_dtype] for param in shapes.values()]
        self.buffers = [index for index, param in enumerate(shapes.values()) if param.buffer]
        self.frozen = {name: False for name, param in shapes.items() if not param.frozen and self._freezes(name)}
        self.needed = [index for index, (name, param) in enumerate(shapes.items())
                       if not (param.buffer or param.frozen or name in self.frozen)]
        self.ticket, self.call, self.last, self.mask = None, None, None, None

    def _freezes(self, name):
        try:
            self.layer.freeze(name)
        except Error as error:
            if error.status != Status.UNSUPPORTED:
                raise
            return False
        self.layer.freeze(name, frozen=False)
        return True

    def freeze(self, trained):
        """Of experts all that is not among `trained`, by their places; of the rest gradients are computed anyhow."""
        for index, (name, *_) in enumerate(self.params):
            if self.frozen.get(name, index not in trained) != (index not in trained):
                self.layer.freeze(name, frozen=index not in trained)
                self.frozen[name] = index not in trained

    def lend(self, params):
        """Until the next call of this engine. Of those that lie unevenly, copies: all are returned, to be held by
        then."""
        even = []
        for index, (param, (name, shape, dtype)) in enumerate(zip(params, self.params)):
            if param.shape != shape or param.dtype != dtype or param.device != self.device:
                raise TypeError(f"{name}: {param.dtype} {list(param.shape)} on {param.device}; this layer has it in "
                                f"{dtype} {list(shape)} on {self.device}")
            if not (param.is_contiguous() and param.data_ptr() % ALIGN == 0):
                param = param.clone(memory_format=torch.contiguous_format)
            address = param.data_ptr()
            if not address:
                raise ValueError(f"{name}: it has no memory (a shard that was not gathered?)")
            self.layer.bind(index, address, None)
            even.append(param)
        return even

    def forward(self, x, params, mask, step, output_size, train, stats, loss_scale, sequence_length):
        """y; where it trains, self.ticket is then this forward's."""
        self.ticket, even = None, self.lend(params)
        mask = None if mask is None else mask.ne(0).view(torch.uint8)
        y = x.new_empty([x.shape[0], output_size])
        fields = {"loss_scale": loss_scale, "overwrite_grad": True, "step": int(step)} if train else {}
        self.call = self.layer.call(_mat(x), _mat(y), train=train, stats=stats, sequence_length=sequence_length,
                                    token_mask=None if mask is None else mask.data_ptr(), **fields)
        self.call.forward()
        del even
        if train:
            self.ticket, self.mask = torch.zeros(1, dtype=torch.int64), mask  # which backward reads again
        return y

    def backward(self, dy, x, params, trained):
        """dx and the gradients of what is trained, of the types of their values."""
        even = self.lend(params)
        self.freeze(trained)
        grads = {index: torch.empty(params[index].shape, dtype=self.grad_types[index], device=x.device)
                 for index in {*trained, *self.needed}}
        for index, grad in grads.items():
            self.layer.bind(index, None, grad.data_ptr())
        dx, self.ticket = torch.empty_like(x, memory_format=torch.contiguous_format), None
        self.call.backward(_mat(dy), _mat(dx), _mat(x))
        del even
        self.mask = None
        return [dx, *(grads[index].to(params[index].dtype) for index in trained)]


class _Layers:
    """The C layers of a module, by device and dtype, made when first asked for. `said` is what Layer is told; packed:
    format and group of quantize, or None."""

    def __init__(self, said, packed):
        self.said, self.packed, self.engines = said, packed, {}
        weakref.finalize(self, _bury, self.engines).atexit = False

    def engine(self, context, device, dtype, params):
        if (device, dtype) not in self.engines:
            engine = _Engine(context, device, dtype, self.said)
            if self.packed:
                even = engine.lend(params)
                engine.layer.quantize(self.packed[0], group=self.packed[1])
                del even
            self.engines[device, dtype] = engine
        return self.engines[device, dtype]


# y, and a ticket: by its address the layer knows in backward whether it still holds this forward. It keeps the ticket
# itself, so no other is there meanwhile. `handle` has the number of the module's _Layers, which live as long as it
# does: a tensor, as a compiler takes numbers for constants and would compile each module anew.
@torch.library.custom_op("moekit::forward", mutates_args=())
def _forward(x: Tensor, params: Sequence[Tensor], mask: Optional[Tensor], step: Tensor, handle: Tensor,
             output_size: int, trained: Sequence[int], train: bool, stats: bool, loss_scale: float,
             sequence_length: int) -> Tuple[Tensor, Tensor]:
    with _context(x.device) as context:
        engine = _layers[int(handle)].engine(context, x.device, x.dtype, params)
        y = engine.forward(_rows(x), params, mask, step, output_size, train, stats, loss_scale, sequence_length)
        engine.last = engine.call
        return y, engine.ticket if train else torch.zeros(1, dtype=torch.int64)


@_forward.register_fake
def _(x, params, mask, step, handle, output_size, trained, train, stats, loss_scale, sequence_length):
    elsewhere = {str(param.device) for param in params if param.device != x.device}
    if elsewhere:  # one on meta, and torch asks here even for real ones
        raise TypeError(f"parameters on {', '.join(elsewhere)}, and x on {x.device}")
    return x.new_empty([x.shape[0], output_size]), torch.empty(1, dtype=torch.int64)


@torch.library.custom_op("moekit::backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, params: Sequence[Tensor], mask: Optional[Tensor], step: Tensor, handle: Tensor,
              ticket: Tensor, output_size: int, trained: Sequence[int], train: bool, loss_scale: float,
              sequence_length: int) -> List[Tensor]:
    if not train:  # here and not before: a compiler asks for every backward
        raise RuntimeError("moekit.torch.MoE: backward of a forward in eval mode, which keeps nothing for it; call "
                           "train()")
    with _context(x.device) as context:
        engine = _layers[int(handle)].engine(context, x.device, x.dtype, params)
        x, dy = _rows(x), _rows(dy)
        if engine.ticket is None or engine.ticket.data_ptr() != ticket.data_ptr():
            engine.forward(x, params, mask, step, output_size, True, False, loss_scale, sequence_length)
        return engine.backward(dy, x, params, trained)


@_backward.register_fake
def _(dy, x, params, mask, step, handle, ticket, output_size, trained, train, loss_scale, sequence_length):
    return [x.new_empty(x.shape), *(params[i].new_empty(params[i].shape) for i in trained)]


def _save(ctx, inputs, output):
    x, params, mask, step, handle, output_size, trained, train, _, loss_scale, sequence_length = inputs
    ctx.said = output_size, trained, train, loss_scale, sequence_length
    ctx.n_params, ctx.trained = len(params), trained
    ctx.save_for_backward(x, mask, step, handle, output[1], *params)


def _differentiate(ctx, dy, _):
    x, mask, step, handle, ticket, *params = ctx.saved_tensors
    dx, *found = torch.ops.moekit.backward(dy, x, params, mask, step, handle, ticket, *ctx.said)
    grads = [None] * ctx.n_params
    for index, grad in zip(ctx.trained, found):
        grads[index] = grad
    return dx, grads, *[None] * 4, None if ctx.trained else [], *[None] * 4  # an empty list is its own shape to torch


_forward.register_autograd(_differentiate, setup_context=_save)


def _refuse_second(*_):
    raise NotImplementedError("moekit.torch.MoE: a derivative of a derivative (create_graph=True, torch.func.hessian): "
                              "this module has those of one backward alone")


_backward.register_autograd(_refuse_second)


class MoE(torch.nn.Module):
    """Keywords are those of moekit.Layer: MoE(d_model=64, num_experts=8, top_k=2, expert_hidden_size=128).

    x [.., d_model] -> y [.., output_size]; of [B, S, d_model] each of the B is a sequence. The gradients of the layer's
    own losses, times `loss_scale`, join in backward; last_stats has their values where `measure` is set. Parameters
    have the names and layouts of moekit/moe.h: "experts.up.weight" [E, d, 2n], gates first.
    """
    __jit_ignored_attributes__ = __jit_unused_properties__ = ["last_stats", "routing"]  # torch.jit asks for all else

    def __init__(self, *, preset=None, device=None, dtype=None, **options):
        super().__init__()
        kind = dtype_name(dtype or torch.get_default_dtype())
        self.preset, self.options, self.loss_scale, self.measure, self.packed = preset, options, 1.0, False, None
        with _context(torch.device("cpu")) as context:
            layer = Layer(context, unowned=True, dtype=kind, **self._said())
            if layer.options["routing_unit"] == "task":
                raise ValueError("routing_unit task: this module is not told the tasks; moekit.Layer is, in forward")
            self.output_size, shapes = layer.output_size, layer.param_shapes
            layer.close()
        self.names = list(shapes)
        self.trained = [i for i, param in enumerate(shapes.values()) if not (param.buffer or param.frozen)]
        for name, param in shapes.items():
            *path, leaf = name.split(".")
            place = functools.reduce(_child, path, self)
            tensor = torch.empty(param.shape, dtype=TYPES[param.dtype], device=device)
            if param.buffer:
                place.register_buffer(leaf, tensor)
            else:
                place.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=not param.frozen))
        self.register_load_state_dict_post_hook(_pack_again)
        self._identify()
        self.reset_parameters()

    def _said(self):
        return {"preset": self.preset} | self.options

    def _identify(self, layers=None):
        """C layers of its own, new ones where none are given; those of graphs that are still there stay theirs."""
        with torch.inference_mode(False):  # one that is saved for backward
            self._handle = torch.tensor(next(_numbers), device="cpu")
        self._handle.layers = _layers[int(self._handle)] = layers or _Layers(self._said(), self.packed)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_handle"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._identify()

    def _apply(self, fn, recurse=True):
        """Buffers stay as wide as sums are, so that in a bf16 layer the selection bias is f32 as the C layer has it. C
        layers of another place, and the rows that they counted, are left behind."""
        place, buffers = self._place(), {id(buffer) for buffer in self.buffers()}

        def moved(tensor):
            to = fn(tensor)
            dtype_name(to.dtype)  # float16 is refused here, and nothing has moved yet
            narrow = id(tensor) in buffers and to.dtype.itemsize < torch.float32.itemsize
            return tensor.to(to.device, torch.float32) if narrow else to

        super()._apply(moved, recurse)
        if self._place() != place:
            self._identify()
        return self

    def _place(self):
        tensor = self.tensors()[0]
        return tensor.device, tensor.dtype

    def tensors(self):
        """Parameters and buffers in the order of the C layer."""
        return [functools.reduce(getattr, name.split("."), self) for name in self.names]

    @torch.no_grad()
    def reset_parameters(self):
        """Draws them as the layer's options say, by torch's generator."""
        tensors = self.tensors()
        if all(tensor.is_meta for tensor in tensors):
            return
        seed = int(torch.randint(2**62, (), device="cpu"))
        with Context(seed=seed, threads=torch.get_num_threads()) as context:
            drawn = Layer(context, dtype=tensors[0].dtype, **self._said()).params
            for tensor, values in zip(tensors, drawn.values()):
                tensor.copy_(torch.from_dlpack(values))

    def forward(self, x, mask=None):
        """mask [T] or as x without its last dimension: False or 0 where a token is padding."""
        if not isinstance(x, Tensor) or not x.dim():
            raise TypeError(f"x: {'a number' if isinstance(x, Tensor) else type(x).__name__}; it is a torch.Tensor "
                            "[.., d_model]")
        if self.training and self.packed:
            raise Error(Status.STATE, "quantize() has packed the weights of this module's experts, for eval(): call "
                                      "eval(), or quantize(None) to train")
        params, rows = self.tensors(), x.reshape(-1, x.shape[-1])
        if any(unpack_dual(tensor).tangent is not None for tensor in (x, *params)):
            raise NotImplementedError("forward-mode derivatives (jvp): this module has those of backward alone")
        rows = _cast(rows, params[0])
        if mask is not None:
            if mask.numel() != rows.shape[0] or mask.device != x.device:
                raise ValueError(f"mask: {list(mask.shape)} on {mask.device}; it needs one of each of {rows.shape[0]} "
                                 f"tokens, on {x.device}")
            mask = mask.reshape(-1)
        trained = [index for index in self.trained if params[index].requires_grad]
        step = torch.zeros((), dtype=torch.int64, device="cpu")
        if self.training:
            step = torch.randint(2**62, (), device="cpu")
        y, _ = torch.ops.moekit.forward(rows, params, mask, step, self._handle, self.output_size, trained,
                                        self.training, self.measure, float(self.loss_scale),
                                        x.shape[1] if x.dim() == 3 else 0)
        return y.reshape(*x.shape[:-1], self.output_size)

    def __getattr__(self, name):
        """Torch would say that there is no such attribute; the property says why it has nothing."""
        return getattr(MoE, name).fget(self) if name in ("last_stats", "routing") else super().__getattr__(name)

    def _last(self):
        """The engine of the last forward."""
        engine = self._handle.layers.engines.get(self._place())
        if engine is None or engine.last is None:
            raise Missing("no forward of this module comes last: there was none since it was made, moved or packed")
        return engine

    @property
    def last_stats(self):
        """Losses and load of the last forward, where `measure` was set: moe_stats by name."""
        return self._last().last.told()

    @property
    def routing(self):
        """What the router did in the last forward, as moekit.Layer.routing."""
        engine = self._last()
        if engine.call is not engine.last:
            raise Missing("routing: a backward has run its forward again since the last one; ask before it")
        with _context(engine.device):
            return engine.layer.routing

    @torch.no_grad()
    def end_step(self, counts=None):
        """Once an optimizer step, after the backward: moves the selection bias, as moekit.Layer.end_step."""
        params = self.tensors()
        with _context(params[0].device) as context:
            engine = self._handle.layers.engine(context, params[0].device, params[0].dtype, params)
            even = engine.lend(params)
            engine.layer.end_step(counts)
        for index in engine.buffers:
            if params[index] is not even[index]:
                params[index].copy_(even[index])
            elif not params[index].is_inference():  # which have no version
                torch.autograd.graph.increment_version(params[index])

    @torch.no_grad()
    def quantize(self, format=None, *, group=0):
        """Packs the experts' weights as they are now, for eval(): moekit.Layer.quantize. None: reads them again.
        Copies, and the module moved elsewhere, pack theirs at their first call; a state_dict has the weights alone."""
        packed, params = None if format is None else (format, group), self.tensors()
        layers = _Layers(self._said(), packed)  # new ones: a layer that was reserved for training cannot
        if packed:
            with _context(params[0].device) as context:
                layers.engine(context, params[0].device, params[0].dtype, params)
        self.packed = packed
        self._identify(layers)
        return self

    @classmethod
    def from_mixtral(cls, block, **options):
        """Takes over a block of transformers (version 5) whose type is one of BLOCKS: same numbers in and out. Weights
        are copied, transposed once."""
        return _from_mixtral(cls, block, options)

    def extra_repr(self):
        return ", ".join(f"{key}={value}" for key, value in self._said().items() if value is not None)


def _pack_again(module, _incompatible):
    """Packed weights are of the parameters that were there before."""
    if module.packed:
        module._identify()


def _child(module, name):
    if name not in module._modules:
        module.add_module(name, torch.nn.Module())
    return module._modules[name]


ACTIVATIONS = {"SiLU": "swiglu", "SiLUActivation": "swiglu", "GELUActivation": "geglu_exact", "GELU": "geglu_exact",
               "GELUTanh": "geglu", "PytorchGELUTanh": "geglu", "ReLU": "reglu"}
BLOCKS = ("MixtralSparseMoeBlock", "Qwen3MoeSparseMoeBlock", "OlmoeSparseMoeBlock")
COPIED = {"gate.weight", "experts.gate_up_proj", "experts.down_proj"}


@torch.no_grad()
def _from_mixtral(cls, block, options):
    kind = type(block).__name__
    if kind not in BLOCKS:
        raise TypeError(f"{kind}: this takes over {', '.join(BLOCKS)} of transformers alone; what else stands in such "
                        "a model's place, a dense layer, stays as it is")
    if said := {"preset", "dtype", "device"} & options.keys():
        raise TypeError(f"{', '.join(sorted(said))}: that is the block's; .to() moves the module once it is made")
    names = {name for name, _ in block.named_parameters()}
    if names != COPIED:
        raise TypeError(f"{kind}: it has parameters {', '.join(sorted(names))}; it needs {', '.join(sorted(COPIED))}, "
                        "as transformers 5 has them")
    gate, experts = block.gate, block.experts
    activation = ACTIVATIONS.get(type(experts.act_fn).__name__)
    if activation is None:
        raise ValueError(f"activation {type(experts.act_fn).__name__}: there are {', '.join(ACTIVATIONS)}")
    if getattr(block, "jitter_noise", 0):
        raise ValueError("router_jitter_noise: transformers moves the experts' input too, moekit (input_jitter_eps) "
                         "the router's alone; set block.jitter_noise = 0 first")
    E, d, n = experts.down_proj.shape
    said = {"d_model": d, "num_experts": E, "top_k": gate.top_k, "expert_hidden_size": n, "activation": activation,
            "score_before_topk": True, "norm_topk_prob": getattr(gate, "norm_topk_prob", True)}
    others = set(map(setting, options))
    said = {key: value for key, value in said.items() if setting(key) not in others}
    made = cls(device="meta", dtype=gate.weight.dtype, **said, **options).to_empty(device=gate.weight.device)
    if len(made.names) > len(COPIED):  # `options` bring others, which the block has no numbers for
        made.reset_parameters()
    for name, source in (("gate.weight", gate.weight), ("experts.up.weight", experts.gate_up_proj.mT),
                         ("experts.down.weight", experts.down_proj.mT)):
        to = made.get_parameter(name)
        if to.shape != source.shape:
            raise ValueError(f"{name}: {list(source.shape)} in the block, and {list(to.shape)} with these options; "
                             "sizes are the block's")
        to.copy_(source)
        to.requires_grad_(source.requires_grad)
    return made.train(block.training)
