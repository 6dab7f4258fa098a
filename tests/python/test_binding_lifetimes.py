#!/usr/bin/env python3
"""The Python binding: who may call when, and what is left of a context, a layer and their arrays when they are closed.

With the standard library alone; a second thread is refused, never waited for, and nothing that is gone is touched.
"""
import array
import ctypes
import gc
import threading
import time
import types
import unittest

from binding import D, SEED, SIZES, T, matrix

import moekit


class Threads(unittest.TestCase):
    def test_a_second_thread_is_refused_while_one_is_in_a_call(self):
        with moekit.Context(threads=1, seed=SEED) as context:
            layer = moekit.Layer(context, d_model=256, num_experts=4, top_k=2, expert_hidden_size=512)
            call = layer.prepare(matrix(2048, 256, draw=lambda *_: 0.5), matrix(2048, 256, draw=lambda *_: 0))
            caller, refused = threading.Thread(target=lambda: [call.forward() for _ in range(3)]), []
            caller.start()
            while caller.is_alive():
                try:
                    context.isa
                    time.sleep(0.001)
                except moekit.Error as error:
                    refused.append(error)
            caller.join()
            self.assertTrue(refused)
            self.assertEqual(refused[0].status, moekit.Status.STATE)
            self.assertRegex(str(refused[0]), "moe_ctx_isa: another thread is in a call of this context")
            call.forward()  # as if nothing had been
            self.assertTrue(context.isa)

    def test_an_error_is_that_of_the_call(self):
        with moekit.Context(threads=1, seed=SEED) as context:
            layer = moekit.Layer(context, **SIZES)
            status, other = layer._library.moe_layer_freeze(layer.handle, 77, True), []

            def fail():  # before the first asks for its text
                try:
                    layer.reserve(-1)
                except moekit.Error as error:
                    other.append(str(error))

            caller = threading.Thread(target=fail)
            caller.start()
            caller.join()
            self.assertRegex(other[0], "max_tokens: -1")
            held, go = threading.Event(), threading.Event()

            def hold():
                with context._library._turn:
                    held.set()
                    go.wait(10)

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            try:
                with self.assertRaisesRegex(moekit.Error, "parameter 77: this layer has"):
                    context.check(status)
            finally:
                go.set()
                holder.join()

    def test_the_collector_waits_for_its_turn(self):
        with moekit.Context(threads=1, seed=SEED) as context:
            layer, other = (moekit.Layer(context, **SIZES) for _ in range(2))
            held, go = threading.Event(), threading.Event()

            def hold():  # the turn, as a call does
                with context._library._turn:
                    held.set()
                    go.wait(10)

            caller, closer = threading.Thread(target=hold), threading.Thread(target=other.close)
            caller.start()
            held.wait()
            closer.start()
            closer.join(0.05)
            self.assertTrue(closer.is_alive())
            go.set()
            caller.join()
            closer.join()
            self.assertTrue(other.closed)
            layer(matrix(T, D))


class Lifetimes(unittest.TestCase):
    def test_closed_is_said(self):
        with moekit.Context(threads=1) as context:
            layer = moekit.Layer(context, **SIZES)
            y, params = layer(matrix(T, D)), layer.params
            layer.close()
            layer.close()
            for use in (lambda: layer(matrix(T, D)), lambda: params["gate.weight"].tolist(), lambda: layer.options):
                with self.assertRaisesRegex(ValueError, "closed"):
                    use()
            y.tolist()
        self.assertTrue(context.closed)
        with self.assertRaisesRegex(ValueError, "closed"):
            y.tolist()
        with self.assertRaisesRegex(ValueError, "closed"):
            moekit.Layer(context, **SIZES)

    def test_views_keep_what_they_see(self):
        weight = moekit.Layer(**SIZES).params["gate.weight"]
        y = moekit.Layer(**SIZES)(matrix(T, D))
        gc.collect()
        self.assertEqual(len(weight.tolist()), 4)
        self.assertEqual(len(y.tolist()), T)

    def test_parts_of_an_array(self):
        layer = moekit.Layer(**SIZES)
        y, up = layer(matrix(T, D)), layer.params["experts.up.weight"]
        rows, blocks = y.tolist(), up.tolist()
        self.assertEqual((len(y), [row.tolist() for row in y]), (T, rows))
        self.assertEqual((y[3].tolist(), y[-1].tolist(), y[3, 5], y[-1, -2]), (rows[3], rows[-1], rows[3][5], rows[-1][-2]))
        self.assertEqual((y[2:5].tolist(), y[3, 1:4].tolist(), y[:0].tolist()), (rows[2:5], rows[3][1:4], []))
        self.assertEqual((up[1, 2].tolist(), up[1, 2:4].tolist(), up[3, 7, 0]), (blocks[1][2], blocks[1][2:4], blocks[3][7][0]))
        ctypes.c_float.from_address(up[2, 1].address).value = 7
        self.assertEqual(up[2, 1, 0], 7)
        for at in (T, -T - 1, (0, D), (0, 0, 0), slice(0, 4, 2), (slice(0, 2), 0)):
            with self.assertRaises(IndexError):
                y[at]
        with self.assertRaises(TypeError):
            y[0.5]
        routing = layer.routing.expert
        self.assertEqual(repr(routing[:2]), f"moekit.Array([2, 2], i32, cpu, {routing[:2].tolist()})")
        self.assertRegex(repr(y), r"^moekit.Array\(\[12, 8\], f32, cpu, \[\[([-\d.e]+, ){6}\.\.\.\], .*\.\.\.\]\)$")
        layer.close()
        self.assertEqual(repr(up), "moekit.Array([4, 8, 32], f32, cpu, closed)")

    def test_nobody_takes_a_capsule(self):
        array_ = moekit.Layer(**SIZES).params["gate.weight"]
        for _ in range(100):
            array_.__dlpack__()
        self.assertEqual(array_.__dlpack_device__(), (1, 0))
        self.assertEqual(len(moekit.array._exported), 0)

    def test_arrays_meet_by_dlpack_and_interface(self):
        class Dlpack:
            def __init__(self, of):
                self.__dlpack__, self.__dlpack_device__ = of.__dlpack__, of.__dlpack_device__

        class Interface:
            def __init__(self, of):
                self.__array_interface__ = of.__array_interface__

        layer = moekit.Layer(**SIZES)
        y = layer(matrix(T, D))
        wanted = layer(y).tolist()
        self.assertEqual(layer(Dlpack(y)).tolist(), wanted)
        self.assertEqual(layer(Interface(y)).tolist(), wanted)

    def test_arrays_that_do_not_lie_as_they_must(self):
        class Interface:
            def __init__(self, of, **other):
                self.__array_interface__ = of.__array_interface__ | other

        class Elsewhere:
            """An array that says it lies on another device, of DLPack's types."""
            def __init__(self, of, *device):
                self.__dlpack__, self.__dlpack_device__ = (lambda **_: of.__dlpack__()), lambda: device

        layer, source = moekit.Layer(**SIZES), matrix(40, D)
        y = layer(source)
        address, shape = y.address, (T, D)
        for strides, where, text in (((4 * D + 1, 4), 0, "whole numbers"), ((4 * D, 5), 0, "whole numbers"),
                                     (None, 1, "begins within an element")):
            with self.assertRaisesRegex(ValueError, f"x: .*{text}"):
                layer(Interface(y, shape=shape, strides=strides, data=(address + where, False)))
        one = Interface(y, shape=(1, D), strides=(4 * D + 1, 4))
        self.assertEqual(layer(one).tolist(), layer(y).tolist()[:1])
        apart = Interface(y, shape=(4, 1, D), strides=(4 * D * 5, 4 * D, 4))
        self.assertEqual([row for row, in layer(apart).tolist()], layer(y).tolist()[:20:5])
        for device, text in (((8, 0), "DLPack's type 8"), ((2, 0), "memory of a GPU")):
            with self.assertRaisesRegex(ValueError, f"x: .*{text}"):
                layer(Elsewhere(y, *device))
        for device in (3, 13):
            self.assertEqual(layer(Elsewhere(y, device, 0)).tolist(), layer(y).tolist())
        for how in ({"copy": True}, {"dl_device": (2, 0)}):
            with self.assertRaises(BufferError):
                y.__dlpack__(**how)

    def test_arrays_of_a_gpu_say_which_and_its_stream(self):
        context = types.SimpleNamespace(device="cuda", index=0, stream=7)
        here = moekit.Array(context, 4096, [T, D], "f32", types.SimpleNamespace(closed=False))
        self.assertEqual(here.__cuda_array_interface__["stream"], 7)
        self.assertEqual(moekit.array.matrix(here, "x", "f32", context)[0].data, 4096)
        there = types.SimpleNamespace(device="cuda", index=1)
        with self.assertRaisesRegex(ValueError, "x: it lies on cuda:0, and this context is of cuda:1"):
            moekit.array.matrix(here, "x", "f32", there)
        with moekit.Context(threads=1) as cpu:
            self.assertIsNone(cpu.stream)

    def test_the_log_is_heard(self):
        heard = []
        with moekit.Context(threads=1, log=lambda level, text: heard.append(text)) as context:
            with self.assertRaises(moekit.Error):
                moekit.Layer(context, **SIZES)(matrix(T, D + 1))
        self.assertIn("x: [12, 9]; this call needs [12, 8]", heard)


if __name__ == "__main__":
    print(f"MOEKIT_TEST_SEED={SEED}")
    unittest.main()
