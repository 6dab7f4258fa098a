"""Peers behind peer.h: this project's layer, and layers made of a C library's products."""
import ctypes
import os

import numpy as np

from cpu_numbers import Absent, to_f32


class ProblemStruct(ctypes.Structure):
    _fields_ = [("n_experts", ctypes.c_int32), ("top_k", ctypes.c_int32), ("d_model", ctypes.c_int32),
                ("hidden", ctypes.c_int32), ("n_tokens", ctypes.c_int64), ("bf16", ctypes.c_int32),
                ("training", ctypes.c_int32), ("n_threads", ctypes.c_int32), ("w1", ctypes.c_void_p),
                ("w2", ctypes.c_void_p), ("format", ctypes.c_char_p)]


class BatchStruct(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int64), ("expert", ctypes.c_void_p), ("weight", ctypes.c_void_p),
                ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("dy", ctypes.c_void_p), ("dx", ctypes.c_void_p)]


def at(array, row):
    return array.ctypes.data + row * array.strides[0]


class CPeer:
    """peer_<name>.so on the numbers of a problem, `tokens` of them a run."""

    def __init__(self, name, problem, numbers, backward, tokens, threads):
        path = os.path.join(os.environ["PEERS_FOLDER"], f"peer_{name}.so")
        if not os.path.exists(path):
            raise Absent("not built: its library was not found, or the target 'peers' not made")
        self.library = library = ctypes.CDLL(path)
        library.peer_create.restype = ctypes.c_void_p
        library.peer_error.restype = ctypes.c_char_p
        self.problem, self.numbers, self.backward = problem, numbers, backward
        struct = ProblemStruct(problem.E, problem.K, problem.d, problem.n, tokens, problem.dtype == "bf16", backward,
                               threads, at(numbers["w1"], 0), at(numbers["w2"], 0), problem.weights.encode())
        self.peer = ctypes.c_void_p(library.peer_create(ctypes.byref(struct)))
        if not self.peer:
            raise Absent(library.peer_error(None).decode())
        nan = 0x7FFF if problem.dtype == "bf16" else np.nan  # what is not written shows
        self.y, self.dx = np.full_like(numbers["x"], nan), np.full_like(numbers["x"], nan)
        self.batches = [
            BatchStruct(tokens, at(numbers["expert"], t), at(numbers["weight"], t), at(numbers["x"], t), at(self.y, t),
                        at(numbers["dy"], t), at(self.dx, t)) for t in range(0, problem.T, tokens)]
        self.call = library.peer_step if backward else library.peer_forward

    def about(self):
        text = ctypes.create_string_buffer(200)
        self.library.peer_about(text, ctypes.c_size_t(len(text)))
        return text.value.decode()

    def run(self, i):
        if self.call(self.peer, ctypes.byref(self.batches[i])):
            raise RuntimeError(self.library.peer_error(self.peer).decode())

    def outputs(self):
        out = {"y": to_f32(self.y)}
        if self.backward:
            number = ctypes.c_uint16 if self.problem.dtype == "bf16" else ctypes.c_float
            places = [ctypes.POINTER(number)() for _ in range(2)]
            self.library.peer_gradients(self.peer, *(ctypes.byref(place) for place in places))
            out["dx"] = to_f32(self.dx)
            for name, place in zip(("dw1", "dw2"), places):
                out[name] = to_f32(np.ctypeslib.as_array(place, self.numbers[name[1:]].shape))
        return out

    def close(self):
        self.library.peer_destroy(self.peer)
