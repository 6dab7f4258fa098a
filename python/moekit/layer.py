"""Layer: a moe_layer with Python's lifetime and keywords, and Call, one forward and its backward prepared.

x [T, d_model] -> y [T, output_size]; tokens may have several dimensions. Nothing of MoE is computed here.
"""
import ctypes
import types

from . import _c
from .array import DTYPES, HOST, NAMES, Array, dtype_name, flat, matrix, view
from .context import Context, Error, Owned, encoded
from .settings import as_text, option_rows, refuse_twins


class Missing(AttributeError, ValueError):
    """What no forward has left, or not since: to hasattr() it is not there."""


class _Handle(Owned):
    """A moe_layer, and what stays of its last forward; no layer, whose views and calls hold this one."""
    last = None

    @property
    def layer(self):
        if self.closed:
            raise ValueError("this moekit layer is closed")
        return self.address


class _Lease:
    """What views are of whose memory the layer may give back before it is closed."""

    def __init__(self, owned):
        self.owned, self.ended = owned, False

    @property
    def closed(self):
        return self.ended or self.owned.closed


CALL_FIELDS = ("step", "token_mask", "loss_scale", "sequence_length", "task", "token_id", "overwrite_grad")


class _Params(dict):
    def __missing__(self, name):
        raise KeyError(f"no parameter '{name}'; there are {', '.join(self) or 'none until reserve(.., train=True)'}")


class _Forward:
    """What a forward leaves for who asks after it: x, which backward reads again, and moe_stats or None."""
    __slots__ = ("x", "stats", "keep")

    def __init__(self, x, stats, keep):
        self.x, self.stats, self.keep = x, _c.sized(_c.moe_stats) if stats else None, keep

    def told(self):
        """moe_stats, by name."""
        if self.stats is None:
            raise Missing("the last forward was not asked for statistics: stats=True of moekit.Layer, measure = True "
                          "of moekit.torch.MoE")
        return types.SimpleNamespace(**{name: getattr(self.stats, name) for name, _ in self.stats._fields_[1:]
                                        if name != "reserved"})


class Call:
    """One forward and its backward with everything prepared: what is said once is not said again each step."""
    __slots__ = ("y", "_owned", "_mine", "_struct", "_forward", "_backward", "_check")

    def __init__(self, layer, x, y, train, stats, keep, fields):
        self.y, self._owned, self._mine, self._check = y, layer._owned, _Forward(x, stats, keep), layer.context.check
        self._struct = _c.sized(_c.moe_call, mode=_c.MOE_TRAIN if train else _c.MOE_INFER, **fields)
        self._forward, self._backward = layer._library.moe_layer_forward, layer._library.moe_layer_backward

    def forward(self):
        owned, mine = self._owned, self._mine
        owned.last = mine
        if status := self._forward(owned.layer, mine.x, self.y, self._struct, mine.stats):
            owned.last = None
            self._check(status)

    def told(self):
        """The moe_stats of this forward, by name."""
        return self._mine.told()

    def backward(self, dy, dx, x=None):
        """dy, dx: moe_mat, as Layer.matrix makes them; so is x, where it lies elsewhere by now."""
        owned, mine = self._owned, self._mine
        if owned.last is not mine:
            raise ValueError("backward of a forward that is not the layer's last")
        if status := self._backward(owned.layer, x or mine.x, dy, dx):
            self._check(status)


class Layer:
    """A MoE layer: a moe_layer. Keywords are the names of docs/options.md, or what NeMo, Hugging Face and others call
    them, and values are what YAML has: Layer(d_model=64, num_experts=8, top_k=2, expert_hidden_size=128).
    `layer_index` tells a model's layers apart: those of one index and seed begin with the same weights."""

    def __init__(self, context=None, *, preset=None, dtype="f32", layer_index=0, undrawn=False, unowned=False,
                 **options):
        if not isinstance(context, (Context, type(None))):
            raise TypeError(f"context: {context!r}; it is a moekit.Context")
        self.context = context = context or Context()
        self._library, self.dtype = context._library, dtype_name(dtype)
        refuse_twins(options)
        desc = _c.sized(_c.moe_layer_desc, dtype=DTYPES[self.dtype], layer_index=layer_index, undrawn=undrawn,
                        unowned=unowned)
        error = _c.moe_error()
        words = [(name.encode(), as_text(value).encode(), value is None) for name, value in options.items()]
        statuses = (self._set(desc, *word, error) for word in words)  # to whose text desc points
        status = 0 if preset is None else self._library.moe_layer_desc_preset(desc, encoded("preset", preset), error)
        status = status or next(filter(None, statuses), 0)
        if status:
            raise Error(status, error.text.decode(errors="replace"))
        handle = ctypes.c_void_p()
        context.check(self._library.moe_layer_create(context.handle, desc, ctypes.byref(handle)))
        self._owned = _Handle(context, handle, self._library.moe_layer_destroy, handle)
        self._weights, self._work, self._reserved = _Lease(self._owned), _Lease(self._owned), (-1, False)

    def _set(self, desc, name, text, is_none, error):
        """None is what it means to the system whose name this is, else what NULL is in C: not said."""
        status = self._library.moe_layer_desc_set(desc, name, text, error)
        return 0 if is_none and self._library.moe_layer_option_find(name) else status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __reduce__(self):
        raise TypeError("moekit.Layer: memory of the library, which neither copies nor pickles; save what layer.params "
                        "has")

    def close(self):
        """Gives its memory back; views of its parameters end."""
        self._owned.close()

    @property
    def closed(self):
        return self._owned.closed

    @property
    def handle(self):
        """The moe_layer, for functions this package lacks."""
        return self._owned.layer

    @property
    def options(self):
        """Every setting with its defaults filled in."""
        address = ctypes.cast(self._library.moe_layer_get_desc(self.handle), ctypes.c_void_p).value
        kinds = {_c.MOE_OPT_BOOL: ctypes.c_bool, _c.MOE_OPT_INT: ctypes.c_int32, _c.MOE_OPT_INT64: ctypes.c_int64,
                 _c.MOE_OPT_FLOAT: ctypes.c_float, _c.MOE_OPT_DOUBLE: ctypes.c_double,
                 _c.MOE_OPT_CHOICE: ctypes.c_char_p}
        found = {row.key.decode().removeprefix("moe."): kinds[row.type].from_address(address + row.offset).value
                 for row in option_rows()}
        return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}

    def _params(self):
        for index in range(self._library.moe_layer_param_count(self.handle)):
            param = _c.sized(_c.moe_param)
            self.context.check(self._library.moe_layer_param(self.handle, index, param))
            yield index, param

    def _views(self, address, dtype):
        return _Params({p.name.decode(): Array(self.context, getattr(p, address), p.dim[:p.n_dim],
                                               NAMES[getattr(p, dtype)], self._weights)
                        for _, p in self._params() if getattr(p, address)})

    @property
    def params(self):
        """Name -> a view of the values: write into it what a checkpoint holds."""
        return self._views("value", "dtype")

    @property
    def grads(self):
        """Name -> a view of the gradient, once reserved for training."""
        return self._views("grad", "grad_dtype")

    @property
    def param_shapes(self):
        """Name -> its shape, dtype, grad_dtype, and whether it is a buffer (saved, not trained) or frozen."""
        return _Params({p.name.decode(): types.SimpleNamespace(
            shape=tuple(p.dim[:p.n_dim]), dtype=NAMES[p.dtype], grad_dtype=NAMES[p.grad_dtype], buffer=p.buffer,
            frozen=p.frozen) for _, p in self._params()})

    def bind(self, index, value, grad):
        """Of an unowned layer: addresses of the memory of a parameter, by its place, and of its gradient."""
        self.context.check(self._library.moe_layer_bind_param(self.handle, index, value, grad))

    def freeze(self, *names, frozen=True):
        """Backward leaves out the gradients of these parameters of ffn experts, until they are said to be
        frozen=False; before the first reserve for training they take no memory for them, for good."""
        places = {param.name.decode(): index for index, param in self._params()}
        for name in names:
            if name not in places:
                raise KeyError(f"no parameter '{name}'; there are {', '.join(places)}")
            self.context.check(self._library.moe_layer_freeze(self.handle, places[name], frozen))

    def set_grad_dtype(self, dtype):
        """'bf16': gradients of the experts' matrices, before the first reserve for training."""
        self.context.check(self._library.moe_layer_set_grad_dtype(self.handle, DTYPES[dtype_name(dtype)]))

    def memory(self, max_tokens, train=False):
        """Bytes that a reserve of so many tokens takes: params, grads, saved, scratch, packed."""
        found = _c.sized(_c.moe_layer_bytes)
        self.context.check(self._library.moe_layer_measure(self.handle, max_tokens, int(train), found))
        return {name: getattr(found, name) for name, _ in found._fields_[1:]}

    def reserve(self, max_tokens, train=False):
        """Allocates for calls of up to so many tokens; calls that need more reserve by themselves. Ends the last
        forward, and views of its routing."""
        self._owned.last, self._work.ended, self._work = None, True, _Lease(self._owned)
        self.context.check(self._library.moe_layer_reserve(self.handle, max_tokens, int(train)))
        self._reserved = max_tokens, train

    def matrix(self, array, name, written=False):
        """moe_mat of somebody's array, and what keeps it alive."""
        return matrix(array, name, self.dtype, self.context, written)

    def prepare(self, x, y, *, train=False, stats=False, **fields):
        """A Call on these arrays, which it keeps; `fields` are those of moe_call: step, token_mask, loss_scale,
        sequence_length, task, token_id, overwrite_grad."""
        if unknown := fields.keys() - CALL_FIELDS:
            raise TypeError(f"{', '.join(sorted(unknown))}: no field of a call; there are {', '.join(CALL_FIELDS)}")
        (x_mat, *keep), (y_mat, y_keep) = self.matrix(x, "x"), self.matrix(y, "y", written=True)
        tokens, length = x_mat.rows, fields.get("sequence_length") or max(x_mat.rows, 1)
        for name, dtype, count in (("token_mask", "u8", tokens), ("task", "i32", tokens // length),
                                   ("token_id", "i32", tokens)):
            if fields.get(name) is not None:
                fields[name], held = flat(fields[name], name, dtype, count, self.context)
                keep.append(held)
        return self.call(x_mat, y_mat, train=train, stats=stats, keep=[*keep, y_keep], **fields)

    def call(self, x, y, *, train=False, stats=False, keep=None, **fields):
        """prepare for who has moe_mat and addresses already, and keeps them alive."""
        tokens, train = x.rows, bool(train)
        if not 0 <= fields.get("step", 0) < 2**64:
            raise ValueError(f"step: {fields['step']}; it is of 64 bits, 0 .. 2**64 - 1")
        if (scale := fields.get("loss_scale")) is not None and not scale > 0:
            if scale != 0:  # C's sentinel for 0 is -1
                raise ValueError(f"loss_scale: {scale}; it is at least 0")
            fields["loss_scale"] = _c.MOE_ZERO
        if tokens > self._reserved[0] or train > self._reserved[1]:
            self.reserve(max(tokens, self._reserved[0]), train or self._reserved[1])
        return Call(self, x, y, train, stats, keep, fields)

    def forward(self, x, y=None, *, train=False, stats=False, **fields):
        """y of x, into `y` where there is one; `fields` as in prepare. Training keeps what backward needs, in the layer
        and in x, which must stay as it is until then."""
        if y is None:
            shape = view(x, "x").shape[:-1]
            y = Array.empty(self.context, [*shape, self.output_size], self.dtype)
        self.prepare(x, y, train=train, stats=stats, **fields).forward()
        return y

    __call__ = forward

    def backward(self, dy, dx=None):
        """dx of the last training forward, into `dx` where there is one; False: not wanted, and None comes back. Adds
        to grads, or with overwrite_grad=True in that forward stores them."""
        x = self._last().x
        if dx is None:
            dx = Array.empty(self.context, [*view(dy, "dy").shape[:-1], x.cols], self.dtype)
        dx_mat = _c.moe_mat() if dx is False else self.matrix(dx, "dx", written=True)[0]
        self.context.check(self._library.moe_layer_backward(self.handle, x, self.matrix(dy, "dy")[0], dx_mat))
        return None if dx is False else dx

    def _last(self):
        if self._owned.last is None:
            raise Missing("no forward of this layer comes last: there was none, it failed, or a reserve came after")
        return self._owned.last

    @property
    def output_size(self):
        return self._library.moe_layer_get_desc(self.handle)[0].output_size

    @property
    def stats(self):
        """Losses and load of the last forward that was asked for them: moe_stats."""
        return self._last().told()

    @property
    def routing(self):
        """What the router did in the last forward: expert, weight, row_of [T, K], routed, kept [E] as views until the
        next one, to be read only, as DLPack cannot say; capacity. -1: not routed, dropped, dropless."""
        found = _c.sized(_c.moe_routing_view)
        self.context.check(self._library.moe_layer_routing(self.handle, found))
        slots, experts = (found.n_tokens, found.top_k), (found.n_experts,)
        arrays = {"expert": (slots, "i32"), "weight": (slots, NAMES[found.dtype]), "row_of": (slots, "i32"),
                  "routed": (experts, "i64"), "kept": (experts, "i64")}
        return types.SimpleNamespace(capacity=found.capacity, **{
            name: Array(self.context, getattr(found, name), shape, dtype, self._work, readonly=True)
            for name, (shape, dtype) in arrays.items()})

    def zero_grad(self):
        self._library.moe_layer_zero_grad(self.handle)

    def end_step(self, counts=None):
        """Once an optimizer step: moves the selection bias by the rows counted, or by `counts` [E] of int64."""
        address, held = None, None
        if counts is not None:
            address, held = flat(counts, "counts", "i64", self.options["num_experts"], HOST)
        self.context.check(self._library.moe_layer_end_step(self.handle, address))
        del held

    def quantize(self, format=None, *, group=0, drop_weights=False):
        """Packs the experts' weights, as they are now, for inference: one of formats(). None: their own again.
        drop_weights gives their own back for good: views of parameters end, and what numpy or torch have made of such
        views reads freed memory."""
        desc = None
        if format is None:
            if group or drop_weights:
                raise ValueError("group, drop_weights: they are of a format, and there is none")
        else:
            desc = _c.sized(_c.moe_quant_desc, format=encoded("format", format), group=group, drop_weights=drop_weights)
        self.context.check(self._library.moe_layer_quantize(self.handle, desc))
        if drop_weights:
            self._weights.ended, self._weights = True, _Lease(self._owned)
        return self

    def __repr__(self):
        if self.closed:
            return "moekit.Layer(closed)"
        return f"moekit.Layer({', '.join(f'{name} {list(p.shape)}' for name, p in self.param_shapes.items())})"
