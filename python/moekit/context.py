"""Context: a moe_ctx with Python's lifetime, what it refuses as an exception, and its turns among threads.

A context, its layers and its arrays belong to one thread at a time. Nothing of MoE is computed here.
"""
import ctypes
import enum
import threading
import weakref

from . import _c
from .array import DTYPES, dtype_name

Status = enum.IntEnum("Status", {name.removeprefix("MOE_").removeprefix("ERR_"): value
                                 for name, value in _c.ENUMS["moe_status"].items()})


class Error(RuntimeError):
    """What the library refused or met: `status` says which kind, the text what, where, and what would be right."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = Status(status)


class _Turns:
    """The library's functions as the threads of a context may call them: one at a time. Another that calls meanwhile is
    refused; what the collector destroys waits for its turn, in whatever thread that comes. What a call of `context`
    refuses is read in its turn: the next one may refuse too."""
    WAIT = ("moe_ctx_destroy", "moe_layer_destroy", "moe_memory_free")

    def __init__(self, library):
        self._library, self._turn, self._told, self._context = library, threading.RLock(), threading.local(), None

    def of(self, context):
        self._context = context

    def told(self):
        """What this thread's last call was refused for; of a call that was made elsewhere, what the context has."""
        text = self._told.__dict__.pop("text", None)
        return self.moe_ctx_error(self._context) if text is None else text

    def __getattr__(self, name):
        function, waits = getattr(self._library, name), name in self.WAIT
        take, give, told, error = self._turn.acquire, self._turn.release, self._told, self._library.moe_ctx_error
        says, no_memory = name in _c.STATUSES, name == "moe_memory_alloc"

        def call(*args):
            if not take(waits):
                raise Error(Status.STATE, f"{name}: another thread is in a call of this context; a context, its layers "
                                          "and arrays belong to one thread at a time (a context a thread, or a lock)")
            try:
                result = function(*args)
                if says and result or no_memory and not result:
                    told.text = error(self._context)
                return result
            finally:
                give()

        setattr(self, name, call)
        return call


def encoded(what, value):
    """A name, as C takes it."""
    if not isinstance(value, str):
        raise TypeError(f"{what}: {value!r}; it is a name, in a str")
    return value.encode()


def _destroy_context(library, handle, children):
    while children:
        children.popitem()[1]()  # the latest first
    library.moe_ctx_destroy(handle)


class Owned:
    """A C object of a context, destroyed with the Python object, by close(), or before its context."""

    def __init__(self, context, address, destroy, *args):
        self.context, self.address, children = context, address, context._children
        children[id(self)] = lambda: destroy(*args)
        self._finalizer = weakref.finalize(self, Owned._end, children, id(self))

    @staticmethod
    def _end(children, key):
        destroy = children.pop(key, None)
        if destroy:
            destroy()

    @property
    def closed(self):
        return not self._finalizer.alive or self.context.closed

    def close(self):
        self._finalizer()


class Context:
    """Device, threads, kernels and seed: a moe_ctx. log(level, text) hears what the library would say. On a GPU calls
    queue on a stream of the context's own, and wait for no other: set_stream to that on which arrays are made and read,
    or wait() for them."""

    def __init__(self, device="cpu", *, threads=0, isa=None, seed=0, log=None):
        name, _, index = encoded("device", device).decode().partition(":")
        if name not in ("cpu", "cuda") or (index and not index.isdecimal()):
            raise ValueError(f"device: '{device}'; it is 'cpu', 'cuda' or 'cuda:' and a number")
        for what, number in (("threads", threads), ("seed", seed)):
            if not hasattr(number, "__index__"):
                raise TypeError(f"{what}: {number!r}; it is a whole number")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed}; it is of 64 bits, 0 .. 2**64 - 1")
        self.device, self.index, self.seed, self._library = name, int(index or 0), seed, _Turns(_c.library())
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
        self._log = kind(lambda user, level, text: log(level, text.decode(errors="replace"))) if log else kind()
        desc = _c.sized(_c.moe_ctx_desc, device=_c.MOE_CUDA if name == "cuda" else _c.MOE_CPU, n_threads=threads,
                        isa=None if isa is None else encoded("isa", isa), seed=seed, device_index=self.index,
                        log=ctypes.cast(self._log, ctypes.c_void_p))
        handle, error = ctypes.c_void_p(), _c.moe_error()
        status = self._library.moe_ctx_create(ctypes.byref(desc), ctypes.byref(handle), ctypes.byref(error))
        if status:
            raise Error(status, error.text.decode(errors="replace"))
        self._handle, self._children = handle, {}
        self._library.of(handle)
        self._finalizer = weakref.finalize(self, _destroy_context, self._library, handle, self._children)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Destroys the layers and arrays made from it, then itself."""
        self._finalizer()

    @property
    def closed(self):
        return not self._finalizer.alive

    @property
    def handle(self):
        """The moe_ctx, for functions this package lacks: moekit.library()."""
        if self.closed:
            raise ValueError("this moekit context is closed")
        return self._handle

    def check(self, status):
        """Raises what a call on this context returned, unless it is MOE_OK."""
        if status:
            raise Error(status, self._library.told().decode(errors="replace"))

    @property
    def isa(self):
        return self._library.moe_ctx_isa(self.handle).decode()

    @property
    def threads(self):
        return self._library.moe_ctx_threads(self.handle)

    def kernel(self, op, dtype="f32"):
        """Name of the kernel that serves an operation of op.h; None: no such operation."""
        name = self._library.moe_ctx_kernel_of(self.handle, op.encode(), DTYPES[dtype_name(dtype)])
        return name and name.decode()

    def set_stream(self, stream):
        """The cudaStream_t, as a number, that later calls queue on; None: the context's own."""
        self.check(self._library.moe_cuda_set_stream(self.handle, stream))

    @property
    def stream(self):
        """The cudaStream_t in use, as a number; None on the CPU."""
        return self._library.moe_cuda_stream(self.handle)

    def wait(self):
        """Until the device has done all that was queued; raises what it found wrong."""
        self.check(self._library.moe_ctx_wait(self.handle))

    def copy(self, to, source, n_bytes):
        """Between addresses, of which either may be the host's."""
        self.check(self._library.moe_memory_copy(self.handle, to, source, n_bytes))

    def allocate(self, n_bytes):
        """Memory of the device."""
        address = self._library.moe_memory_alloc(self.handle, n_bytes)
        if not address:
            self.check(_c.MOE_ERR_MEMORY)
        return Owned(self, address, self._library.moe_memory_free, self._handle, address, n_bytes)
