"""ggml, the library under llama.cpp, on its CPU backend: the graph that llama.cpp builds for a sparse block.

Libraries: libggml-base.so and libggml-cpu.so in $GGML_FOLDER, else those of the Python package llama_cpp, through their
public C interface. Numbers are f32 between operations as in llama.cpp; products read weights of some type and round
their rows to bf16, or with packed weights to 8 bits, first. Sizes are in ggml's order: weights [in, out, E].
"""
import ctypes
import importlib.util
import os

import numpy as np

from cpu_numbers import Absent, to_f32

TYPES = {"f32": 0, "q4_0": 2, "q8_0": 8, "q4_K": 12, "i32": 26, "bf16": 30}
BLOCK = {"bf16": 1, "q8_0": 32, "q4_0": 32, "q4_K": 256}  # numbers of a row that are packed together
FORMATS = {"": "bf16", "int8": "q8_0", "int4": "q4_0"}  # a problem's weights -> ggml's type of as many bits
NODES = 64  # of a graph, without the sums over a token's experts

pointer, size, integer, long = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64
# name -> result, arguments
BASE = {
    "ggml_version": (ctypes.c_char_p, []),
    "ggml_commit": (ctypes.c_char_p, []),
    "ggml_tensor_overhead": (size, []),
    "ggml_graph_overhead_custom": (size, [size, ctypes.c_bool]),
    "ggml_free": (None, [pointer]),
    "ggml_nbytes": (size, [pointer]),
    "ggml_row_size": (size, [integer, long]),
    "ggml_quantize_chunk": (size, [integer, pointer, pointer, long, long, long, pointer]),
    "ggml_new_tensor_3d": (pointer, [pointer, integer, long, long, long]),
    "ggml_view_3d": (pointer, [pointer, pointer, long, long, long, size, size, size]),
    "ggml_reshape_3d": (pointer, [pointer, pointer, long, long, long]),
    "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
    "ggml_mul_mat_id": (pointer, [pointer, pointer, pointer, pointer]),
    "ggml_soft_max": (pointer, [pointer, pointer]),
    "ggml_swiglu_split": (pointer, [pointer, pointer, pointer]),
    "ggml_mul": (pointer, [pointer, pointer, pointer]),
    "ggml_add": (pointer, [pointer, pointer, pointer]),
    "ggml_set_output": (None, [pointer]),
    "ggml_new_graph_custom": (pointer, [pointer, size, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [pointer, pointer]),
    "ggml_gallocr_new": (pointer, [pointer]),
    "ggml_gallocr_alloc_graph": (ctypes.c_bool, [pointer, pointer]),
    "ggml_gallocr_free": (None, [pointer]),
    "ggml_backend_get_device": (pointer, [pointer]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [pointer, pointer]),
    "ggml_backend_reg_get_proc_address": (pointer, [pointer, ctypes.c_char_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
    "ggml_backend_cpu_buffer_type": (pointer, []),
    "ggml_backend_buffer_free": (None, [pointer]),
    "ggml_backend_tensor_set": (None, [pointer, pointer, size, size]),
    "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
    "ggml_backend_graph_compute": (integer, [pointer, pointer]),
    "ggml_backend_free": (None, [pointer]),
}
CPU = {
    "ggml_backend_cpu_init": (pointer, []),
    "ggml_backend_cpu_set_n_threads": (None, [pointer, integer]),
    "ggml_backend_cpu_reg": (pointer, []),
}


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", size), ("mem_buffer", pointer), ("no_alloc", ctypes.c_bool)]


def folder():
    """Where ggml's libraries lie."""
    if "GGML_FOLDER" in os.environ:
        return os.environ["GGML_FOLDER"]
    package = importlib.util.find_spec("llama_cpp")
    if not package:
        raise Absent("GGML_FOLDER does not name the folder of libggml-cpu.so, and there is no Python package llama_cpp")
    return os.path.join(package.submodule_search_locations[0], "lib")


class Library:
    """Functions of both libraries without the prefix ggml_."""

    def __init__(self):
        where = folder()
        for name, functions in (("base", BASE), ("cpu", CPU)):
            path = os.path.join(where, f"libggml-{name}.so")
            if not os.path.exists(path):
                raise Absent(f"no {path}")
            library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            for function, (result, arguments) in functions.items():
                call = getattr(library, function)
                call.restype, call.argtypes = result, arguments
                setattr(self, function.removeprefix("ggml_"), call)
            if name == "base":
                self.init = library.ggml_init
                self.init.restype, self.init.argtypes = pointer, [InitParams]

    def context(self, n_tensors, graph=0):
        """Room for tensors without their numbers, and for a graph of so many nodes."""
        room = n_tensors * self.tensor_overhead() + (self.graph_overhead_custom(graph, False) if graph else 0)
        return self.init(InitParams(room, None, True))

    def extra_buffer_types(self, device):
        """In which weights may be laid out for this processor, the first to be taken first."""
        find = self.backend_reg_get_proc_address(self.backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts")
        found = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(find)(device) if find else None
        i = 0
        while found and found[i]:
            yield found[i]
            i += 1


class Ggml:
    """Weights laid out as llama.cpp does it by default: by the first buffer type that can have them."""

    repack = True

    def __init__(self, problem, numbers, backward, tokens, threads):
        if backward or problem.dtype != "bf16":
            raise Absent("inference on x of bf16 alone")
        self.type = self.choose(problem)
        if problem.d % BLOCK[self.type] or problem.n % BLOCK[self.type]:
            raise Absent(f"{self.type} is of rows of a multiple of {BLOCK[self.type]} numbers")
        self.ggml, self.problem, self.tokens = Library(), problem, tokens
        self.backend, self.contexts, self.buffers = self.ggml.backend_cpu_init(), [], []
        self.ggml.backend_cpu_set_n_threads(self.backend, threads)
        d, n, E, K, T = problem.d, problem.n, problem.E, problem.K, problem.T
        w1, w2 = numbers["w1"], numbers["w2"]
        self.gate = self.weights(d, n, lambda e: w1[e][:, :n].T)
        self.up = self.weights(d, n, lambda e: w1[e][:, n:].T)
        self.down = self.weights(n, d, lambda e: w2[e].T)
        router = np.random.default_rng(1).standard_normal((E, d), np.float32)
        self.x, self.expert, self.weight, self.router = self.inputs(
            ("f32", (d, 1, T), to_f32(numbers["x"])), ("i32", (K, T, 1), numbers["expert"]),
            ("f32", (1, K, T), numbers["weight"]), ("f32", (d, E, 1), router))
        self.graphs = [self.graph(t) for t in range(0, T, tokens)]

    def choose(self, problem):
        return FORMATS[problem.weights]

    def inputs(self, *wanted):
        """Tensors (type, sizes, numbers), which follow one another as numpy has them."""
        context = self.ggml.context(len(wanted))
        tensors = [self.ggml.new_tensor_3d(context, TYPES[kind], *sizes) for kind, sizes, _ in wanted]
        self.place(context, self.ggml.backend_cpu_buffer_type())
        for tensor, (_, _, array) in zip(tensors, wanted):
            array = np.ascontiguousarray(array)
            self.ggml.backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
        return tensors

    def place(self, context, buffer_type):
        buffer = self.ggml.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError("ggml has no memory for a buffer")
        self.contexts.append(context)
        self.buffers.append(buffer)

    def weights(self, n_in, n_out, matrix):
        """[n_in, n_out, E] of matrix(e) [n_out, n_in] in bf16."""
        ggml, E, kind = self.ggml, self.problem.E, TYPES[self.type]
        each = ggml.row_size(kind, n_in) * n_out
        packed = np.empty((E, each), np.uint8)
        for e in range(E):
            if self.type == "bf16":
                packed[e] = np.ascontiguousarray(matrix(e)).view(np.uint8).ravel()
            else:
                wide = np.ascontiguousarray(to_f32(matrix(e)))
                ggml.quantize_chunk(kind, wide.ctypes.data, packed[e].ctypes.data, 0, n_out, n_in, None)
        device = ggml.backend_get_device(self.backend)
        laid_out = ggml.extra_buffer_types(device) if self.repack else ()
        for buffer_type in (*laid_out, ggml.backend_cpu_buffer_type()):
            context = ggml.context(4)
            tensor = ggml.new_tensor_3d(context, kind, n_in, n_out, E)
            self.place(context, buffer_type)
            rows = ggml.new_tensor_3d(context, TYPES["f32"], n_in, 1, 1)
            expert = ggml.new_tensor_3d(context, TYPES["i32"], 1, 1, 1)
            product = ggml.mul_mat_id(context, tensor, rows, expert)
            if ggml.backend_dev_supports_op(device, product):
                ggml.backend_tensor_set(tensor, packed.ctypes.data, 0, packed.nbytes)
                return tensor
        raise Absent(f"no product with experts of {self.type}")

    def graph(self, t):
        """(graph, y, memory) of a run's tokens from t on, as llama.cpp's build_moe_ffn has it, but for the choice: the
        router's scores are worked out, and the given routes taken."""
        ggml, d, K, tokens = self.ggml, self.problem.d, self.problem.K, self.tokens
        nodes = NODES + 2 * K
        context = ggml.context(nodes, nodes)
        self.contexts.append(context)
        graph = ggml.new_graph_custom(context, nodes, False)
        x = ggml.view_3d(context, self.x, d, 1, tokens, 4 * d, 4 * d, 4 * d * t)
        expert = ggml.view_3d(context, self.expert, K, tokens, 1, 4 * K, 4 * K * tokens, 4 * K * t)
        weight = ggml.view_3d(context, self.weight, 1, K, tokens, 4, 4 * K, 4 * K * t)
        logits = ggml.mul_mat(context, self.router, ggml.reshape_3d(context, x, d, tokens, 1))
        ggml.build_forward_expand(graph, ggml.soft_max(context, logits))
        up = ggml.mul_mat_id(context, self.up, x, expert)
        gate = ggml.mul_mat_id(context, self.gate, x, expert)
        rows = ggml.mul_mat_id(context, self.down, ggml.swiglu_split(context, gate, up), expert)
        rows = ggml.mul(context, rows, weight)
        each = [ggml.view_3d(context, rows, d, tokens, 1, 4 * d * K, 4 * d * K * tokens, 4 * d * k) for k in range(K)]
        y = each[0]
        for row in each[1:]:
            y = ggml.add(context, y, row)
        ggml.set_output(y)
        ggml.build_forward_expand(graph, y)
        place = ggml.gallocr_new(ggml.backend_cpu_buffer_type())
        if not ggml.gallocr_alloc_graph(place, graph):
            raise MemoryError("ggml has no memory for a graph")
        return graph, y, place

    def about(self):
        return f"ggml {self.ggml.version().decode()} ({self.ggml.commit().decode()})"

    def run(self, i):
        status = self.ggml.backend_graph_compute(self.backend, self.graphs[i][0])
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute: {status}")

    def outputs(self):
        out = np.empty((len(self.graphs), self.tokens, self.problem.d), np.float32)
        for part, (_, y, _) in zip(out, self.graphs):
            self.ggml.backend_tensor_get(y, part.ctypes.data, 0, part.nbytes)
        return {"y": out.reshape(-1, self.problem.d)}

    def close(self):
        for *_, place in self.graphs:
            self.ggml.gallocr_free(place)
        for buffer in self.buffers:
            self.ggml.backend_buffer_free(buffer)
        for context in self.contexts:
            self.ggml.free(context)
        self.ggml.backend_free(self.backend)


class KQuants(Ggml):
    """Four bits as most files have them: blocks of 256 with scales in 6 bits."""

    def choose(self, problem):
        if problem.weights != "int4":
            raise Absent("four bits alone")
        return "q4_K"


class KQuantsAsTheyCome(KQuants):
    """Laid out as files have them (llama.cpp's --no-repack), of which many rows are multiplied in tiles."""

    repack = False
