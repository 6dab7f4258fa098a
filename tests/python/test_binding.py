#!/usr/bin/env python3
"""The Python binding with the standard library alone: its declarations are the headers', arrays, errors.

Numbers are held by identities: gradients against finite differences in f64, experts that do nothing, the same bits twice.
"""
import array
import copy
import ctypes
import os
import pickle
import random
import re
import subprocess
import sys
import tempfile
import types
import unittest

from binding import D, LIBRARY, SEED, SIZES, T, TOP, matrix

import moekit
from moekit import _c


def headers():
    text = ""
    for name in ("moe.h", "expert.h", "option.h", "quant.h", "cuda.h"):
        with open(os.path.join(TOP, "include", "moekit", name), encoding="utf-8") as file:
            text += file.read()
    return re.sub(r"/\*.*?\*/|MOE_API", "", text, flags=re.S)


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"\s*([{}(),;*=])\s*", r"\1", text)).strip()


class Declarations(unittest.TestCase):
    def test_they_stand_in_the_headers(self):
        where = plain(headers())
        for words in re.split(r"(?<=;)\n+(?=\w)", _c.DECLARATIONS.strip()):
            self.assertTrue(plain(words) in where, f"_c.DECLARATIONS: '{words}' is not what the headers say")

    def test_the_version_is_the_headers(self):
        parts = re.findall(r"#define MOE_VERSION_(?:MAJOR|MINOR|PATCH)\s+(\d+)", headers())
        self.assertEqual(_c.VERSION, ".".join(parts))
        self.assertIn(f"#define MOE_ZERO ({_c.MOE_ZERO})", headers())
        with open(os.path.join(TOP, "python", "pyproject.toml"), encoding="utf-8") as file:
            self.assertIn(f'version = "{_c.VERSION}"', file.read())

    def test_structs_lie_as_the_compiler_lays_them(self):
        wanted, lines = [], ["#include <moekit/option.h>", "#include <moekit/quant.h>", "#include <stdio.h>",
                             "int main(void) {"]
        for name, struct in _c.STRUCTS.items():
            wanted.append(ctypes.sizeof(struct))
            lines.append(f'printf("%zu ", sizeof({name}));')
            for field, _ in struct._fields_:
                found = getattr(struct, field)
                wanted += [found.offset, found.size]
                lines.append(f'printf("%zu %zu ", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));')
        with tempfile.TemporaryDirectory() as place:
            source, program = os.path.join(place, "sizes.c"), os.path.join(place, "sizes")
            with open(source, "w", encoding="utf-8") as file:
                file.write("\n".join([*lines, "return 0; }"]))
            subprocess.run([os.environ.get("CC", "cc"), "-I", os.path.join(TOP, "include"), source, "-o", program], check=True)
            printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
        self.assertGreater(len(wanted), 380)
        self.assertEqual([int(word) for word in printed], wanted)


class Library(unittest.TestCase):
    def fails(self, path):
        program = "import moekit; moekit.presets()"
        environment = dict(os.environ, MOEKIT_LIBRARY=path, PYTHONPATH=os.path.join(TOP, "python"))
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
        self.assertEqual(ran.returncode, 1)
        return ran.stderr

    def test_what_was_tried_is_named(self):
        self.assertIn("tried: /nowhere/libmoekit.so", self.fails("/nowhere/libmoekit.so"))
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            self.assertIn(file.name, self.fails(file.name))

    def test_a_foreign_library_is_refused(self):
        self.assertIn("libc.so.6 has no moe_version: it is no libmoekit", self.fails("libc.so.6"))

    def test_the_file_that_was_loaded(self):
        self.assertEqual(moekit.library_path(), os.path.realpath(LIBRARY))

    def test_names(self):
        self.assertIn("mixtral", moekit.presets())
        self.assertIn("nf4", moekit.formats())
        self.assertEqual(moekit.options()["top_k"].default, "0")
        self.assertIn("moe_router_topk", moekit.options()["top_k"].aliases)


class Layers(unittest.TestCase):
    def setUp(self):
        self.context = moekit.Context(threads=2, seed=SEED)
        self.addCleanup(self.context.close)

    def layer(self, **options):
        return moekit.Layer(self.context, **SIZES | options)

    def test_gradients_are_those_of_finite_differences(self):
        layer = self.layer(dtype="f64", score_before_topk=True, num_shared_experts=1)
        x, dy = matrix(T, D, "d"), matrix(T, D, "d")

        def loss():
            y = layer.forward(x, train=True, overwrite_grad=True).tolist()
            return sum(y[t][i] * dy[t, i] for t in range(T) for i in range(D))

        def slope(write, value, step=1e-6):
            write(value + step)
            high = loss()
            write(value - step)
            low = loss()
            write(value)
            return (high - low) / (2 * step)

        loss()
        dx = layer.backward(dy).tolist()
        for t, i in ((0, 0), (5, 3), (T - 1, D - 1)):
            self.assertAlmostEqual(slope(lambda value: x.__setitem__((t, i), value), x[t, i]), dx[t][i], delta=1e-5)
        for name in layer.params:
            value = ctypes.c_double.from_address(layer.params[name].address + 8 * 5)
            grad = ctypes.c_double.from_address(layer.grads[name].address + 8 * 5).value
            self.assertAlmostEqual(slope(lambda number: setattr(value, "value", number), value.value), grad, delta=1e-5)

    def test_experts_that_do_nothing_give_x_back(self):
        layer, x = self.layer(expert="identity", expert_hidden_size=0), matrix(T, D)
        for row, mine in zip(layer(x).tolist(), x.tolist()):
            for a, b in zip(row, mine):
                self.assertAlmostEqual(a, b, places=5)

    def test_what_is_prepared_is_what_forward_does(self):
        layer, x, y, dx = self.layer(), matrix(T, D), matrix(T, D), matrix(T, D)
        wanted = layer.forward(x, train=True, stats=True)
        stats, dwanted = layer.stats, layer.backward(wanted)
        call = layer.prepare(x, y, train=True, overwrite_grad=True)
        for _ in range(2):
            call.forward()
            call.backward(layer.matrix(y, "dy")[0], layer.matrix(dx, "dx")[0])
        self.assertEqual(y.tolist(), wanted.tolist())
        self.assertEqual(dx.tolist(), dwanted.tolist())
        self.assertEqual((stats.n_tokens, stats.n_kept, stats.n_dropped), (T, 2 * T, 0))

    def test_backward_is_of_the_last_forward_whoever_called_it(self):
        layer, y = self.layer(), matrix(T, D)
        x1, x2, dy = matrix(T, D), matrix(T, D), matrix(T, D)

        def gradients(first):
            layer.zero_grad()
            first()
            return [layer.backward(dy).tolist(), *(grad.tolist() for grad in layer.grads.values())]

        prepared = [layer.prepare(x, y, train=True, stats=x is x2) for x in (x1, x2)]
        wanted = gradients(lambda: layer.forward(x2, train=True))
        layer.forward(x1, train=True)
        self.assertEqual(gradients(prepared[1].forward), wanted)
        self.assertEqual(layer.stats.n_kept, 2 * T)
        prepared[0].forward()
        with self.assertRaisesRegex(ValueError, "not asked for statistics"):
            layer.stats
        with self.assertRaisesRegex(ValueError, "not the layer's last"):
            prepared[1].backward(layer.matrix(dy, "dy")[0], layer.matrix(y, "dx")[0])
        y[0, 0] = float("nan")
        with self.assertRaises(moekit.Error):
            layer.forward(y, train=True)
        with self.assertRaisesRegex(ValueError, "no forward of this layer comes last"):
            layer.backward(dy)

    def test_names_of_other_systems_and_presets(self):
        layer = moekit.Layer(self.context, preset="mixtral", d_model=D, num_local_experts=4, num_experts_per_tok=3,
                             moe_intermediate_size=16)
        found = layer.options
        self.assertEqual((found["d_model"], found["num_experts"], found["top_k"]), (D, 4, 3))
        kinds = self.layer(expert_kinds=["8", "2x16", "identity"])
        self.assertIn("experts.1.up.weight", kinds.params)

    def test_none_is_not_said(self):
        plain = self.layer().options
        for name in ("activation", "moe.activation", "capacity_factor", "moe_router_topk_scaling_factor", "expert_kinds"):
            self.assertEqual(self.layer(**{name: None}).options, plain, name)
        self.assertEqual(self.layer(moe_router_dtype=None).options["router_dtype"], "auto")
        with self.assertRaisesRegex(moekit.Error, "unknown option 'activaton'; the nearest is 'moe.activation'"):
            self.layer(activaton=None)

    def test_layers_are_told_apart_by_their_index(self):
        gates = [self.layer(layer_index=i).params["gate.weight"].tolist() for i in (0, 0, 1)]
        self.assertEqual(gates[0], gates[1])
        self.assertNotEqual(gates[0], gates[2])

    def test_routing_and_masks(self):
        layer, mask = self.layer(), bytearray([1] * 9 + [0] * 3)
        layer.forward(matrix(T, D), token_mask=mask)
        routing = layer.routing
        self.assertEqual(sum(routing.kept.tolist()), 9 * 2)
        for expert, weight in zip(routing.expert.tolist()[:9], routing.weight.tolist()):
            self.assertEqual(len(set(expert)), 2)
            self.assertAlmostEqual(sum(weight), 1, places=5)
        self.assertEqual(routing.expert.tolist()[9:], [[-1, -1]] * 3)
        layer.reserve(T + 1)
        with self.assertRaisesRegex(ValueError, "given back"):
            routing.kept.tolist()
        with self.assertRaisesRegex(ValueError, "token_mask: u8 .* needs 12 elements of u8"):
            layer.forward(matrix(T, D), token_mask=bytearray(5))

    def test_packed_weights(self):
        layer, x = self.layer(expert_hidden_size=32, d_model=32), matrix(T, 32)
        wanted = layer(x).tolist()
        self.assertIs(layer.quantize("int8", group=32), layer)
        packed = layer(x).tolist()
        self.assertNotEqual(wanted, packed)
        for a, b in zip(sum(wanted, []), sum(packed, [])):
            self.assertAlmostEqual(a, b, delta=0.05 * max(map(abs, sum(wanted, []))))
        self.assertGreater(layer.memory(T)["packed"], 0)
        with self.assertRaisesRegex(moekit.Error, "format"):
            layer.quantize("")
        with self.assertRaisesRegex(ValueError, "they are of a format"):
            layer.quantize(None, group=32)
        with self.assertRaisesRegex(moekit.Error, "preset"):
            self.layer(preset="")
        layer.quantize(None)
        self.assertEqual(layer(x).tolist(), wanted)
        up = layer.params["experts.up.weight"]
        layer.quantize("int8", group=32, drop_weights=True)
        self.assertEqual(layer(x).tolist(), packed)
        for use in (up.tolist, up.__dlpack__, lambda: up.__array_interface__):
            with self.assertRaisesRegex(ValueError, "given back"):
                use()
        self.assertEqual(len(layer.params["gate.weight"].tolist()), 4)

    def test_bf16_is_16_bits(self):
        x, draw = matrix(T, D, "H"), random.Random(SEED)
        wide = memoryview(bytearray(4 * T * D)).cast("f", [T, D])
        for t in range(T):
            for i in range(D):
                x[t, i] = draw.randrange(2) << 15 | draw.randrange(120, 130) << 7 | draw.randrange(128)
        words = wide.cast("B").cast("I", [T, D])
        for at in ((t, i) for t in range(T) for i in range(D)):
            words[at] = x[at] << 16
        for row, mine in zip(self.layer(dtype="bf16", expert="identity", expert_hidden_size=0)(x).tolist(), wide.tolist()):
            for a, b in zip(row, mine):
                self.assertAlmostEqual(a, b, delta=2**-7 * abs(b))
        layer = self.layer(dtype="bf16")
        for name, param in layer.param_shapes.items():
            self.assertEqual((param.dtype, param.grad_dtype), ("bf16", "f32"), name)

    def test_what_is_frozen_keeps_its_gradient(self):
        layer, x, dy = self.layer(), matrix(T, D), matrix(T, D)
        layer.freeze("experts.up.weight")
        self.assertTrue(layer.param_shapes["experts.up.weight"].frozen)
        layer.forward(x, train=True)
        layer.backward(dy)
        self.assertEqual(list(layer.grads), ["gate.weight", "experts.down.weight"])
        layer.freeze("experts.down.weight")
        before = layer.grads["experts.down.weight"].tolist()
        layer.forward(x, train=True)
        layer.backward(dy)
        self.assertEqual(layer.grads["experts.down.weight"].tolist(), before)
        with self.assertRaisesRegex(KeyError, "no parameter 'experts'; there are gate.weight"):
            layer.freeze("experts")
        for name, frozen, text in (("gate.weight", True, "the router is by router_frozen"),
                                   ("experts.up.weight", False, "reserved for MOE_TRAIN without its gradient")):
            with self.assertRaisesRegex(moekit.Error, text):
                layer.freeze(name, frozen=frozen)

    def test_steps_of_training(self):
        layer = self.layer(selection_bias=True, selection_bias_update_rate=0.1, score_function="sigmoid")
        layer.forward(matrix(T, D), train=True)
        kept = layer.routing.kept.tolist()
        layer.end_step()
        for bias, rows in zip(layer.params["gate.selection_bias"].tolist(), kept):
            self.assertAlmostEqual(bias, 0.1 * ((rows < 6) - (rows > 6)), places=6)
        layer.end_step(array.array("q", [9, 0, 0, 0]))

    def test_what_does_not_fit_is_told(self):
        layer, x = self.layer(), matrix(T, D)
        wide = matrix(T, 2 * D)
        self.assertEqual(layer(wide.cast("B").cast("f", [2, T, D])).shape, (2, T, D))
        for array_, wrong, text in ((matrix(T, D, "d"), TypeError, "x: dtype is f64; this layer computes in f32"),
                                    (wide, moekit.Error, r"x: \[12, 16\]"), (x.obj, ValueError, r"needs \[tokens, width\]"),
                                    ("text", TypeError, "x: a str is no array"),
                                    ([[1.0]], TypeError, r"x: a list; .* give np.asarray\(x, np.float32\)"),
                                    (None, TypeError, "NoneType"),
                                    (x.toreadonly(), TypeError, "writable")):
            with self.assertRaisesRegex(wrong, text):
                layer.forward(array_, matrix(T, D))
        with self.assertRaisesRegex(TypeError, "stepp: no field of a call"):
            layer.forward(x, stepp=3)
        with self.assertRaises(moekit.Error) as caught:
            self.layer(d_modle=3)
        self.assertEqual(caught.exception.status, moekit.Status.ARGUMENT)
        self.assertIn("nearest is 'moe.d_model'", str(caught.exception))
        self.assertEqual(repr(layer), "moekit.Layer(gate.weight [4, 8], experts.up.weight [4, 8, 32], "
                         "experts.down.weight [4, 16, 8])")
        with self.assertRaisesRegex(ValueError, "no forward of this layer comes last"):
            layer.backward(x)
        for scale in (-1, -0.5, float("nan")):
            with self.assertRaisesRegex(ValueError, f"loss_scale: {scale}; it is at least 0"):
                layer.forward(x, train=True, loss_scale=scale)
        with self.assertRaisesRegex(KeyError, "there are gate.weight, experts.up.weight"):
            layer.params["gate"]
        for device in ("tpu", "cuda:\N{SUPERSCRIPT TWO}"):
            with self.assertRaisesRegex(ValueError, f"'{device}'"):
                moekit.Context(device)
        for seed in (-1, 2**64):
            with self.assertRaisesRegex(ValueError, f"seed: {seed}"):
                moekit.Context(seed=seed)
        with self.assertRaisesRegex(moekit.Error, "isa"):
            moekit.Context(isa="avx9")
        with self.assertRaisesRegex(TypeError, "threads: '2'; it is a whole number"):
            moekit.Context(threads="2")
        for use, text in ((lambda: self.layer(preset=3), "preset: 3"), (lambda: moekit.Context(isa=3), "isa: 3"),
                          (lambda: moekit.Context(None), "device: None"), (lambda: layer.quantize(4), "format: 4")):
            with self.assertRaisesRegex(TypeError, f"{text}; it is a name"):
                use()
        with self.assertRaisesRegex(TypeError, "context: 'cpu'; it is a moekit.Context"):
            moekit.Layer("cpu", **SIZES)
        for step in (-1, 2**64):
            with self.assertRaisesRegex(ValueError, f"step: {step}"):
                layer.forward(x, train=True, step=step)
        with self.assertRaisesRegex(KeyError, "there are none until reserve"):
            self.layer().grads["gate.weight"]
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with self.assertRaisesRegex(TypeError, "save what layer.params has"):
                use(layer)
        sizes = {key: value for key, value in SIZES.items() if key != "d_model"}
        self.assertEqual(moekit.Layer(self.context, n_embd=24, **sizes).options["d_model"], 24)
        with self.assertRaisesRegex(TypeError, "d_model, n_embd: two names of one setting"):
            self.layer(n_embd=24)

    def test_dtypes_by_the_names_that_others_have(self):
        numpy_like = type("float32", (), {})  # numpy.float32 is a class of that name
        torch_like = types.SimpleNamespace(__name__="torch.bfloat16")
        for spelt, name in (("f64", "f64"), ("bfloat16", "bf16"), ("torch.float64", "f64"), (numpy_like, "f32"),
                            (torch_like, "bf16")):
            self.assertEqual(self.layer(dtype=spelt).dtype, name)
        for spelt, wrong in (("float16", ValueError), ("", ValueError), (float, TypeError), (None, TypeError)):
            with self.assertRaisesRegex(wrong, "it is one of f32, f64, bf16, or float32, float64, bfloat16"):
                self.layer(dtype=spelt)
        self.assertIn("gemm", self.context.kernel("gemm_rows", "bfloat16"))

    def test_what_is_not_there_yet_is_no_attribute(self):
        layer = self.layer()
        self.assertFalse(hasattr(layer, "stats"))
        layer.forward(matrix(T, D))
        with self.assertRaisesRegex(AttributeError, "not asked for statistics"):
            layer.stats
        layer.forward(matrix(T, D), stats=True)
        self.assertTrue(hasattr(layer, "stats"))


if __name__ == "__main__":
    print(f"MOEKIT_TEST_SEED={SEED}")
    unittest.main()
