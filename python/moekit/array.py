"""Arrays of others as the library sees them, and the library's as others see them: addresses, never copies.

What has __array_interface__ (numpy), __dlpack__ (torch, jax, cupy), __cuda_array_interface__ or a buffer (array.array)
is taken as it lies in memory. Array has the first three, so np.asarray and torch.from_dlpack take it as it is. numpy
has no bf16: there it is uint16, bit for bit.
"""
import ctypes
import math
import operator
import types

from . import _c

BYTES = {"f32": 4, "f64": 8, "bf16": 2, "u16": 2, "i32": 4, "i64": 8, "u8": 1}
DTYPES = {"f32": _c.MOE_F32, "f64": _c.MOE_F64, "bf16": _c.MOE_BF16}
NAMES = {number: name for name, number in DTYPES.items()}
SPELT = {"float32": "f32", "float64": "f64", "bfloat16": "bf16"}  # by torch, numpy, jax and ml_dtypes
CTYPES = {"f32": ctypes.c_float, "f64": ctypes.c_double, "bf16": ctypes.c_uint16, "i32": ctypes.c_int32,
          "i64": ctypes.c_int64}
HOST = types.SimpleNamespace(device="cpu", index=0)  # as a context says where it is
DEVICES = {"cpu": "the CPU", "cuda": "a GPU"}
TYPESTR = {"f32": "<f4", "f64": "<f8", "bf16": "<u2", "i32": "<i4", "i64": "<i8"}
FROM_TYPESTR = {text: name for name, text in TYPESTR.items()} | {"<u2": "u16", "<V2": "bf16", "|u1": "u8", "|b1": "u8"}
FROM_FORMAT = {"f": "f32", "d": "f64", "H": "u16", "i": "i32", "q": "i64", "l": "i64", "B": "u8", "?": "u8"}
DLPACK = {"f32": (2, 32), "f64": (2, 64), "bf16": (4, 16), "i32": (0, 32), "i64": (0, 64)}  # type code, bits
FROM_DLPACK = {pair: name for name, pair in DLPACK.items()} | {(1, 8): "u8", (6, 8): "u8", (1, 16): "u16"}
DLPACK_CPU, DLPACK_CUDA = 1, 2
SHOWN = 6  # numbers of a dimension that repr prints
FROM_DLPACK_DEVICE = {DLPACK_CPU: "cpu", DLPACK_CUDA: "cuda", 3: "cpu", 13: "any"}  # 3: pinned, 13: managed


def dtype_name(dtype):
    """The key of DTYPES: of itself, of 'bfloat16', torch.bfloat16, numpy.float32 or numpy.dtype('float32')."""
    text = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    name = text.removeprefix("torch.")
    name = SPELT.get(name, name)
    if name not in DTYPES:
        kind = ValueError if isinstance(dtype, str) else TypeError
        raise kind(f"dtype: {dtype!r}; it is one of {', '.join(DTYPES)}, or {', '.join(SPELT)} as torch and numpy have "
                   "them")
    return name


class View:
    """Somebody's array: address, shape, strides in elements, dtype by name, device ("cpu", "cuda", "any") and, where it
    says so, which GPU; keeps it alive."""
    __slots__ = ("address", "shape", "strides", "dtype", "device", "index", "readonly", "keep")

    def __init__(self, address, shape, strides, dtype, device, readonly, keep, index=None):
        self.address, self.shape, self.dtype, self.device, self.index = address, tuple(shape), dtype, device, index
        self.strides = tuple(strides) if strides is not None else contiguous(self.shape)
        self.readonly, self.keep = readonly, keep

    def is_contiguous(self):
        """Strides of dimensions of one element mean nothing."""
        return 0 in self.shape or all(size == 1 or have == want for size, have, want
                                      in zip(self.shape, self.strides, contiguous(self.shape)))


def contiguous(shape):
    return tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))


class DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("n_dim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64)]


class DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


# By address as well as by object: a capsule that is being destroyed must not be touched as an object.
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi))
_exported = {}  # address of a DLManagedTensor -> what it points to


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy_capsule(capsule, valid=_dying_is_valid, pointer=_dying_pointer, exported=_exported):
    if valid(capsule, b"dltensor"):  # nobody took it
        exported.pop(pointer(capsule, b"dltensor"), None)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # from any thread: takes the interpreter's lock
def _delete_tensor(address, exported=_exported):
    exported.pop(address, None)


for _callback in (_destroy_capsule, _delete_tensor):  # others may call them when this module is gone
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callback))


class Array:
    """Numbers of the library, or of its allocator: a view that keeps its owner alive and ends when that is closed."""

    def __init__(self, context, address, shape, dtype, owner, readonly=False):
        self.context, self.shape, self.dtype, self.owner = context, tuple(shape), dtype, owner
        self._address, self._readonly = address, readonly

    @classmethod
    def empty(cls, context, shape, dtype):
        """Of the context's device; freed with the last view of it, or when the context is closed."""
        memory = context.allocate(max(math.prod(shape) * BYTES[dtype], 1))
        return cls(context, memory.address, shape, dtype, memory)

    @property
    def address(self):
        if self.owner.closed:
            raise ValueError("this array is of a moekit object that is closed, or of memory that it has given back")
        return self._address

    def _interface(self):
        return {"shape": self.shape, "typestr": TYPESTR[self.dtype], "data": (self.address, self._readonly),
                "version": 3}

    @property
    def __array_interface__(self):
        if self.context.device != "cpu":
            raise AttributeError("an array on a GPU has no __array_interface__")
        return self._interface()

    @property
    def __cuda_array_interface__(self):
        if self.context.device == "cpu":
            raise AttributeError("an array on the CPU has no __cuda_array_interface__")
        return self._interface() | {"stream": self.context.stream}

    def __dlpack_device__(self):
        cuda = self.context.device == "cuda"
        return (DLPACK_CUDA if cuda else DLPACK_CPU), self.context.index

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a moekit.Array is given as it lies in memory; copy what you take")
        if self.context.device == "cuda" and stream != -1:
            self.context.wait()
        n = len(self.shape)
        shape, strides = (ctypes.c_int64 * n)(*self.shape), (ctypes.c_int64 * n)(*contiguous(self.shape))
        managed = DLManagedTensor(DLTensor(self.address, *self.__dlpack_device__(), n, *DLPACK[self.dtype], 1, shape,
                                           strides, 0), None, ctypes.cast(_delete_tensor, ctypes.c_void_p))
        address = ctypes.addressof(managed)
        _exported[address] = managed, shape, strides, self
        return _capsule_new(address, b"dltensor", ctypes.cast(_destroy_capsule, ctypes.c_void_p))

    def tolist(self):
        """Nested lists of Python's numbers, copied from the device."""
        n = math.prod(self.shape)
        host = (CTYPES[self.dtype] * n)()
        self.context.copy(ctypes.addressof(host), self.address, ctypes.sizeof(host))
        flat = list(host)
        if self.dtype == "bf16":
            wide = (ctypes.c_uint32 * n)(*(word << 16 for word in flat))
            flat = list((ctypes.c_float * n).from_buffer(wide))
        for size in self.shape[:0:-1]:
            flat = [flat[i:i + size] for i in range(0, len(flat), size)] if size else []
        return flat

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, at):
        """A view of a row, array[t], or of rows, array[2:5]; array[t, i] is a number, copied. np.asarray(array) has the
        other kinds of index."""
        first, *more = at if isinstance(at, tuple) else (at,)
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            if step != 1 or more:
                raise IndexError(f"{at}: a moekit.Array has numbers, and one range of step 1 after them; np.asarray() "
                                 "or torch.from_dlpack() of it has the rest")
            return self._rows(start, max(stop - start, 0))
        place = operator.index(first)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{place}: outside of {len(self)}")
        one = self._rows(place % len(self), 1)
        if len(self.shape) == 1:
            if more:
                raise IndexError(f"{at}: more than its dimensions")
            return one.tolist()[0]
        row = Array(self.context, one._address, self.shape[1:], self.dtype, self.owner, self._readonly)
        return row[tuple(more)] if more else row

    def _rows(self, start, count):
        address = self.address + start * math.prod(self.shape[1:]) * BYTES[self.dtype]
        return Array(self.context, address, [count, *self.shape[1:]], self.dtype, self.owner, self._readonly)

    def _text(self):
        """The first numbers of each dimension."""
        few, dots = self[:SHOWN], ["..."] if len(self) > SHOWN else []
        if len(self.shape) > 1:
            rows = [row._text() for row in few]
        else:
            rows = [str(n) if isinstance(n, int) else f"{n:.6g}" for n in few.tolist()]
        return f"[{', '.join(rows + dots)}]"

    def __repr__(self):
        """With numbers where they are at hand: those on a GPU would have to be waited for."""
        what = f"{list(self.shape)}, {self.dtype}, {self.context.device}"
        if self.owner.closed:
            return f"moekit.Array({what}, closed)"
        return f"moekit.Array({what}, {self._text()})" if self.context.device == "cpu" else f"moekit.Array({what})"


def _in_elements(strides, shape, size, name):
    """Of strides in bytes; those of dimensions of one element mean nothing."""
    if any(stride % size for stride, n in zip(strides, shape) if n > 1):
        raise ValueError(f"{name}: strides of {list(strides)} bytes; elements of {size} bytes must lie whole "
                         "numbers of them apart (make it contiguous)")
    return [stride // size for stride in strides]


def _by_interface(obj, interface, device, name):
    typestr, strides, shape = interface["typestr"], interface.get("strides"), interface["shape"]
    dtype = FROM_TYPESTR.get(typestr, typestr)
    if strides is not None and dtype in BYTES:
        strides = _in_elements(strides, shape, BYTES[dtype], name)
    address, readonly = interface["data"]
    return View(address, shape, strides, dtype, device, readonly, obj)


def _by_dlpack(obj, name):
    number, index = obj.__dlpack_device__()
    device = FROM_DLPACK_DEVICE.get(number)
    if device is None:
        raise ValueError(f"{name}: it lies on a device of DLPack's type {int(number)}; memory of the CPU and of CUDA "
                         f"is of types {', '.join(map(str, FROM_DLPACK_DEVICE))}")
    capsule = obj.__dlpack__() if device == "cpu" else obj.__dlpack__(stream=-1)
    tensor = ctypes.cast(_capsule_pointer(capsule, b"dltensor"), ctypes.POINTER(DLManagedTensor))[0].tensor
    n, pair = tensor.n_dim, (tensor.code, tensor.bits)
    strides = tensor.strides[:n] if tensor.strides else None
    return View((tensor.data or 0) + tensor.byte_offset, tensor.shape[:n], strides,
                FROM_DLPACK.get(pair, f"DLPack's {pair}"), device, False, (obj, capsule), index)


def view(obj, name="array"):
    """Where and what an array is. Its device's queue is the caller's business: nothing is waited for."""
    if isinstance(obj, Array):
        return View(obj.address, obj.shape, None, obj.dtype, obj.context.device, obj._readonly, obj, obj.context.index)
    interface = getattr(obj, "__array_interface__", None)
    if interface is not None:
        return _by_interface(obj, interface, "cpu", name)
    if hasattr(obj, "__dlpack__"):
        return _by_dlpack(obj, name)
    interface = getattr(obj, "__cuda_array_interface__", None)
    if interface is not None:
        return _by_interface(obj, interface, "cuda", name)
    if isinstance(obj, (list, tuple)):
        raise TypeError(f"{name}: a {type(obj).__name__}; arrays are taken as they lie in memory, so give "
                        f"np.asarray({name}, np.float32), or of the layer's dtype")
    try:
        buffer = memoryview(obj)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: a {type(obj).__name__} is no array that can be taken as it lies in memory: it needs "
                        "__dlpack__, __array_interface__, __cuda_array_interface__ or a writable buffer "
                        f"({error})") from None
    strides = _in_elements(buffer.strides, buffer.shape, buffer.itemsize, name)
    dtype = FROM_FORMAT.get(buffer.format, buffer.format)
    return View(address, buffer.shape, strides, dtype, "cpu", buffer.readonly, buffer)


def _check_place(found, name, context, written):
    if found.device not in (context.device, "any"):
        raise ValueError(f"{name}: it lies in memory of {DEVICES[found.device]}, and this context is of "
                         f"{DEVICES[context.device]}")
    if found.device == "cuda" and found.index not in (None, context.index):
        raise ValueError(f"{name}: it lies on cuda:{found.index}, and this context is of cuda:{context.index}")
    if found.address % BYTES.get(found.dtype, 1):
        raise ValueError(f"{name}: it begins within an element, at {found.address:#x} (make it contiguous)")
    if written and found.readonly:
        raise ValueError(f"{name}: it is read-only, and is to be written")


def matrix(obj, name, dtype, context, written=False):
    """moe_mat of an array [.., columns] whose rows are evenly spaced; what keeps it alive."""
    found = view(obj, name)
    _check_place(found, name, context, written)
    if found.dtype != dtype and (found.dtype, dtype) != ("u16", "bf16"):
        raise TypeError(f"{name}: dtype is {found.dtype}; this layer computes in {dtype}")
    if len(found.shape) < 2:
        raise ValueError(f"{name}: shape {list(found.shape)}; it needs [tokens, width]")
    *rows, columns = found.shape
    spacing = next((stride for size, stride in zip(rows[::-1], found.strides[-2::-1]) if size != 1), columns)
    outer = all(size == 1 or have == want * spacing for size, have, want in zip(rows, found.strides, contiguous(rows)))
    if (columns > 1 and found.strides[-1] != 1) or not outer or spacing < columns and math.prod(rows) > 1:
        raise ValueError(f"{name}: strides {list(found.strides)} of shape {list(found.shape)}; numbers of a row must "
                         "lie side by side, and rows evenly spaced (make it contiguous)")
    return _c.moe_mat(found.address, math.prod(rows), columns, spacing, DTYPES[dtype]), found


def flat(obj, name, dtype, count, context):
    """Address of an array of `count` elements, one after another; what keeps it alive."""
    found = view(obj, name)
    _check_place(found, name, context, False)
    if found.dtype != dtype or math.prod(found.shape) != count or not found.is_contiguous():
        raise ValueError(f"{name}: {found.dtype} {list(found.shape)}, strides {list(found.strides)}; it needs {count} "
                         f"elements of {dtype}, one after another")
    return found.address, found
