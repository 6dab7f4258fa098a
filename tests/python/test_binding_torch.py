#!/usr/bin/env python3
"""moekit.torch.MoE on the CPU: the numbers of transformers' blocks, and what torch asks of a module of its own.

Runs under $MOEKIT_PYTHON where that is set. Exit code 77: torch is not installed. Without transformers its blocks are not
compared; with a GPU (MOEKIT_TEST_DEVICE=cuda) everything runs there.
"""
import contextlib
import copy
import functools
import gc
import importlib.util
import inspect
import io
import os
import random
import re
import sys
import unittest
import warnings

import need

need.modules("torch")

import torch

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("MOEKIT_LIBRARY", os.path.join(os.path.dirname(os.path.abspath(os.environ["MOEKIT"])), "libmoekit.so"))
sys.path.insert(0, os.path.join(TOP, "python"))

import moekit
import moekit.torch

SEED = int(os.environ.get("MOEKIT_TEST_SEED", random.randrange(2**31)))
DEVICE = os.environ.get("MOEKIT_TEST_DEVICE", "cpu")
D, SIZES = 16, {"d_model": 16, "num_experts": 4, "top_k": 2, "expert_hidden_size": 24, "init_std": 0.4}


def module(**options):
    options = SIZES | {"device": DEVICE} | options
    return moekit.torch.MoE(**options)


def tokens(*shape, dtype=torch.float32, grad=False):
    return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=grad)


class Case(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(SEED)

    def near(self, a, b, bound=1e-5):
        self.assertEqual(a.shape, b.shape)
        self.assertEqual(a.dtype, b.dtype)
        error = (a.double() - b.double()).norm()
        self.assertLessEqual(error.item(), bound * b.double().norm().item())

    def step(self, layer, x, dy, **how):
        """y, dx and the gradients, new ones."""
        x = x.detach().clone().requires_grad_()
        layer.zero_grad()
        y = layer(x, **how)
        y.backward(dy)
        return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]

    def same(self, a, b):
        self.assertEqual(len(a), len(b))
        for one, other in zip(a, b):
            self.assertTrue(torch.equal(one, other))


class Transformers(Case):
    def compare(self, block, dtype, bound):
        """In bf16 theirs is computed in f32 from the same numbers: their own logits in bf16 choose other experts."""
        for param in block.parameters():
            torch.nn.init.normal_(param, std=0.3)
        layer = moekit.torch.MoE.from_mixtral(block.to(DEVICE, dtype))
        x, dy = tokens(3, 7, D, dtype=dtype), tokens(3, 7, D, dtype=dtype)
        theirs, ours = self.step(block.float(), x.float(), dy.float()), self.step(layer, x, dy)
        names = dict(block.named_parameters())
        grads = [names[name].grad for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")]
        for a, b in zip(ours, [*theirs[:2], grads[0], grads[1].mT, grads[2].mT]):
            self.assertEqual(a.dtype, dtype)
            self.near(a.float(), b, bound)

    def test_their_blocks(self):
        try:
            from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock
            from transformers.models.olmoe.modeling_olmoe import OlmoeConfig, OlmoeSparseMoeBlock
            from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeConfig, Qwen2MoeSparseMoeBlock
            from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock
        except ImportError as error:
            self.skipTest(str(error))
        mixtral = MixtralConfig(hidden_size=D, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)
        for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            self.compare(MixtralSparseMoeBlock(mixtral), dtype, bound)
            for norm in (True, False):
                qwen = Qwen3MoeConfig(hidden_size=D, moe_intermediate_size=24, num_experts=5, num_experts_per_tok=3,
                                      norm_topk_prob=norm)
                self.compare(Qwen3MoeSparseMoeBlock(qwen), dtype, bound)
        olmoe = OlmoeConfig(hidden_size=D, intermediate_size=24, num_experts=5, num_experts_per_tok=3)
        self.compare(OlmoeSparseMoeBlock(olmoe), torch.float32, 1e-5)
        qwen2 = Qwen2MoeConfig(hidden_size=D, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=4,
                               num_experts_per_tok=2)
        more = MixtralSparseMoeBlock(mixtral)
        more.shared_expert = torch.nn.Linear(D, D)
        for block, text in ((Qwen2MoeSparseMoeBlock(qwen2), "Qwen2MoeSparseMoeBlock: this takes over MixtralSparseMoeBlock"),
                            (torch.nn.Linear(2, 2), "Linear: this takes over"), (more, "parameters .*shared_expert.bias")):
            with self.assertRaisesRegex(TypeError, text):
                moekit.torch.MoE.from_mixtral(block)
        block = MixtralSparseMoeBlock(mixtral).to(DEVICE)
        for param in block.parameters():  # which are nobody's numbers outside of a model
            torch.nn.init.normal_(param)
        for options, wrong, text in (({"dtype": torch.bfloat16}, TypeError, "dtype: that is the block's"),
                                     ({"preset": "deepseek_v3"}, TypeError, "preset: that is the block's"),
                                     ({"n_experts": 8}, ValueError, r"gate.weight: \[4, 16\] in the block")):
            with self.assertRaisesRegex(wrong, text):
                moekit.torch.MoE.from_mixtral(block, **options)
        more = {"selection_bias": True, "router_bias": True, "num_shared_experts": 1, "expert_bias": True}
        torch.manual_seed(SEED)
        layer = moekit.torch.MoE.from_mixtral(block, **more)
        torch.manual_seed(SEED)
        drawn = module(score_before_topk=True, init_std=0.02, **more).state_dict()
        for name, value in layer.state_dict().items():
            if name not in ("gate.weight", "experts.up.weight", "experts.down.weight"):
                self.assertTrue(torch.equal(value, drawn[name]), name)
        self.assertTrue(torch.equal(layer.experts.up.weight, block.experts.gate_up_proj.mT))


class Gradients(Case):
    @unittest.skipIf(DEVICE != "cpu", "f64 is of the CPU")
    def test_they_are_those_of_finite_differences(self):
        layer = module(dtype=torch.float64, expert_bias=True, num_shared_experts=1, shared_expert_gate=True)
        names = [name for name, _ in layer.named_parameters()]

        def of(x, *params):
            return torch.func.functional_call(layer, dict(zip(names, params)), (x,))

        x = tokens(5, D, dtype=torch.float64, grad=True)
        self.assertTrue(torch.autograd.gradcheck(of, (x, *layer.parameters()), fast_mode=True))

    def test_forward_mode_is_refused(self):
        layer, x = module(), tokens(5, D)

        def of(gate):
            return torch.func.functional_call(layer, {"gate.weight": gate}, (x,))

        for function, at in ((layer, x), (of, layer.gate.weight.detach())):
            with self.assertRaisesRegex(NotImplementedError, "forward-mode"):
                torch.func.jvp(function, (at,), (torch.ones_like(at),))

    def test_second_derivatives_are_refused(self):
        layer, x = module(), tokens(5, D, grad=True)
        dx, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with self.assertRaisesRegex(NotImplementedError, "a derivative of a derivative"):
            dx.sum().backward()

    def test_losses_join_in_backward(self):
        layer, x = module(aux_loss_coeff=0.5, score_before_topk=True), tokens(9, D)
        dy, found = torch.zeros(9, D, device=DEVICE), []
        for scale in (0.0, 1.0, 2.0):
            layer.loss_scale = scale
            found.append(self.step(layer, x, dy)[2])
        gate = layer.gate.weight.detach().clone().requires_grad_()
        prob = torch.softmax(x @ gate.T, -1)
        share = torch.zeros(9, 4, device=DEVICE).scatter_(1, prob.topk(2).indices, 1).mean(0) / 2
        (0.5 * 4 * (share * prob.mean(0)).sum()).backward()
        self.assertEqual(found[0].abs().max(), 0)
        self.near(found[1], gate.grad, 1e-4)
        self.near(found[2], 2 * found[1])

    def test_a_forward_between_changes_nothing(self):
        layer, other = module(dropout=0.3), tokens(20, D)
        inputs = [(tokens(6, D, grad=True), tokens(6, D)) for _ in range(2)]
        torch.manual_seed(SEED)
        wanted = [self.step(layer, *pair) for pair in inputs]
        torch.manual_seed(SEED)
        layer.zero_grad()
        outputs = [layer(x) for x, _ in inputs]
        layer.eval()(other)
        layer.train()
        for y, (x, dy), want in zip(outputs, inputs, wanted):
            layer.zero_grad()
            y.backward(dy, retain_graph=True)
            self.same([y.detach(), x.grad, *(p.grad for p in layer.parameters())], want)
            x.grad = None
            layer.zero_grad()
            y.backward(dy)
            self.same([x.grad, *(p.grad for p in layer.parameters())], want[1:])

    def test_tools_look_at_a_new_module(self):
        layer, x = module(), tokens(6, D)
        for made in (layer, torch.nn.Sequential(layer)):
            names = [name for name, _ in inspect.getmembers(made)]
            self.assertIn("forward", names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            traced = torch.jit.trace(torch.nn.Sequential(layer.eval()), x)
        self.same([traced(x)], [layer(x)])

    def test_statistics_are_of_the_last_forward(self):
        layer, x = module(), tokens(6, D)
        layer.measure = True
        for ask in (lambda: layer.last_stats, lambda: layer.routing):
            with self.assertRaisesRegex(ValueError, "no forward of this module comes last"):
                ask()
            self.assertFalse(hasattr(layer, "last_stats") or hasattr(layer, "routing"))
        with self.assertRaisesRegex(AttributeError, "'MoE' object has no attribute 'last_stat'"):
            layer.last_stat
        layer.measure = False
        layer(x)
        with self.assertRaisesRegex(ValueError, "measure = True of moekit.torch.MoE"):
            layer.last_stats
        layer.measure = True
        y = layer(x)
        layer(tokens(7, D))
        self.assertEqual(layer.routing.expert.shape, (7, 2))
        y.sum().backward()
        self.assertEqual(layer.last_stats.n_tokens, 7)
        with self.assertRaisesRegex(ValueError, "run its forward again"):
            layer.routing
        with self.assertRaisesRegex(ValueError, "no forward of this module comes last"):
            copy.deepcopy(layer).last_stats

    def test_a_frozen_router_has_no_gradients(self):
        layer = module(num_groups_outer=2, router_type="gshard_top2", router_frozen=True)
        layer(tokens(6, D)).sum().backward()
        with_gradient = [name for name, param in layer.named_parameters() if param.grad is not None]
        self.assertEqual(with_gradient, ["experts.up.weight", "experts.down.weight"])
        self.assertEqual([p.requires_grad for p in layer.parameters()], [False, False, True, True])

    def test_experts_that_are_not_trained_have_none(self):
        layer, x = module(expert_bias=True), tokens(6, D, grad=True)
        layer(x).sum().backward()
        want = {name: param.grad for name, param in layer.named_parameters()} | {"x": x.grad}
        for frozen in (["experts.up.weight"], ["experts.down.weight", "experts.up.bias"], list(want)[:-1], ["gate.weight"], []):
            layer.zero_grad(set_to_none=True)
            x.grad = None
            for name, param in layer.named_parameters():
                param.requires_grad_(name not in frozen)
            layer(x).sum().backward()
            for name, param in [*layer.named_parameters(), ("x", x)]:
                if name in frozen:
                    self.assertIsNone(param.grad, name)
                else:
                    self.assertTrue(torch.equal(param.grad, want[name]), name)

    def test_a_bias_that_moved_before_backward_is_told(self):
        layer = module(selection_bias=True, selection_bias_update_rate=0.1, score_function="sigmoid")
        y = layer(tokens(6, D))
        layer.end_step()
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()

    def test_checkpointing_draws_the_same(self):
        layer, x, dy = module(dropout=0.3, input_jitter_eps=0.1), tokens(8, D, grad=True), tokens(8, D)
        torch.manual_seed(SEED)
        want = self.step(layer, x, dy)
        torch.manual_seed(SEED)
        layer.zero_grad()
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        y.backward(dy)
        self.same([y.detach(), x.grad, *(p.grad for p in layer.parameters())], want)
        self.assertFalse(torch.equal(self.step(layer, x, dy)[0], want[0]))

    def test_a_graph_keeps_its_module(self):
        x = tokens(5, D, grad=True)
        y = module()(x)
        gc.collect()
        y.sum().backward()
        self.assertGreater(x.grad.abs().max(), 0)

    def test_a_module_learns(self):
        layer, x = module(), tokens(64, D)
        wanted, optimizer, losses = torch.tanh(x.roll(1, -1)), torch.optim.AdamW(layer.parameters(), 1e-2), []
        for _ in range(60):
            optimizer.zero_grad()
            losses.append(torch.nn.functional.mse_loss(layer(x), wanted))
            losses[-1].backward()
            optimizer.step()
        self.assertLess(losses[-1], 0.3 * losses[0])


class Operators(Case):
    def test_torch_checks_them(self):
        layer = module(expert_bias=True)
        x, mask = tokens(6, D, grad=True), torch.tensor([1, 1, 1, 1, 0, 1], device=DEVICE)
        for train in (True, False):
            given = (x, layer.tensors(), mask, torch.tensor(5), layer._handle, D, layer.trained, train, False, 1.0, 0)
            kinds = ("test_schema", "test_faketensor") + ("test_autograd_registration", "test_aot_dispatch_dynamic") * train
            torch.library.opcheck(torch.ops.moekit.forward, given, test_utils=kinds)

    def test_compiled_is_eager(self):
        layer, x, dy = module(), tokens(2, 5, D), tokens(2, 5, D)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        want = self.step(layer, x, dy)
        self.same(self.step(compiled, x, dy), want)
        self.same([compiled.eval()(x)], [layer(x)])

    def test_modules_share_what_was_compiled(self):
        x, seen = tokens(5, D), []

        def backend(graph, inputs):
            seen.append(graph)
            return graph.forward

        for _ in range(10):
            layer = module()
            self.same([torch.compile(layer, fullgraph=True, backend=backend)(x)], [layer(x)])
        self.assertLess(len(seen), 4)

    def test_eval_keeps_nothing_for_backward(self):
        layer, x = module().eval(), tokens(4, D, grad=True)
        with self.assertRaisesRegex(RuntimeError, "call train"):
            layer(x).sum().backward()
        self.assertTrue(torch.equal(layer(x), layer.train()(x)))


class Modules(Case):
    def test_states_and_copies(self):
        layer, x, dy = module(selection_bias=True, score_function="sigmoid"), tokens(4, D), tokens(4, D)
        self.assertEqual(list(layer.state_dict()), ["gate.weight", "gate.selection_bias", "experts.up.weight",
                                                    "experts.down.weight"])
        want, file, other = self.step(layer, x, dy), io.BytesIO(), module(selection_bias=True, score_function="sigmoid")
        torch.save(layer, file)
        file.seek(0)
        other.load_state_dict(layer.state_dict())
        for twin in (other, copy.deepcopy(layer), torch.load(file, weights_only=False)):
            self.assertIsNot(twin.gate.weight, layer.gate.weight)
            self.same(self.step(twin, x, dy), want)

    def test_devices_and_dtypes(self):
        x = tokens(6, D)
        with self.assertRaisesRegex(TypeError, "x: torch.float32; the parameters are torch.bfloat16"):
            module().bfloat16()(x)
        for wrong, what in (([1.0], "list"), (torch.tensor(1.0), "a number")):
            with self.assertRaisesRegex(TypeError, f"x: {what}; it is a torch.Tensor"):
                module()(wrong)
        with self.assertRaisesRegex(ValueError, "routing_unit task: this module is not told"):
            module(routing_unit="task", num_tasks=3)
        self.assertEqual(module(dtype="bf16").gate.weight.dtype, torch.bfloat16)
        layer = module(device="meta").to_empty(device=DEVICE)
        torch.manual_seed(SEED)
        layer.reset_parameters()
        torch.manual_seed(SEED)
        want = module()
        self.same(list(layer.parameters()), list(want.parameters()))
        half = copy.deepcopy(want).bfloat16()
        self.near(half(x.bfloat16()).float(), want(x), 5e-2)
        for use in (want.half, lambda: want.to(torch.float16)):
            with self.assertRaisesRegex(TypeError, "it is one of f32, f64, bf16"):
                use()
        self.same([want.cpu().to(DEVICE)(x)], [want(x)])
        want.gate.half()
        for use in (lambda: want(x.half()), want.reset_parameters):
            with self.assertRaisesRegex(TypeError, "dtype: torch.float16; it is one of f32, f64, bf16, or float32"):
                use()
        self.assertEqual(half(x.bfloat16()).dtype, torch.bfloat16)

    def test_autocast_casts_x(self):
        layer, x, dy = module(), tokens(2, 5, D), tokens(2, 5, D)
        narrow, auto = x.bfloat16(), functools.partial(torch.autocast, DEVICE, torch.bfloat16)
        y, dx, *grads = want = self.step(layer, narrow.float(), dy)
        with auto():
            self.same(self.step(layer, narrow, dy), [y, dx.bfloat16(), *grads])
            self.same(self.step(torch.compile(layer, fullgraph=True, backend="aot_eager"), narrow, dy),
                      [y, dx.bfloat16(), *grads])
            self.same(self.step(layer, narrow.float(), dy), want)
            model = torch.nn.Sequential(torch.nn.Linear(D, D, device=DEVICE), layer, torch.nn.Linear(D, 3, device=DEVICE))
            self.assertEqual(layer(model[0](x)).dtype, torch.float32)
            model(x).float().square().sum().backward()
            self.assertGreater(model[0].weight.grad.abs().max(), 0)
            half, f64 = copy.deepcopy(layer).bfloat16(), x.double()
            self.same([half(narrow.float())], [half(narrow)])
            self.assertEqual(half(x).dtype, torch.bfloat16)
            for wrong in (f64, narrow.long()):
                with self.assertRaisesRegex(TypeError, "x: .* the parameters are torch.float32: give x.to"):
                    layer(wrong)
        for off in (contextlib.nullcontext(), auto(enabled=False)):
            with off, self.assertRaisesRegex(TypeError, "under torch.autocast the layer casts x itself"):
                layer(narrow)

    def test_buffers_stay_as_wide_as_sums(self):
        options = {"selection_bias": True, "score_function": "sigmoid", "selection_bias_update_rate": 0.1}
        layer = module(**options)
        layer.gate.selection_bias.copy_(torch.tensor([0.0, 0, 5.1, 0]))
        for move in (layer.bfloat16, lambda: layer.to(torch.bfloat16), lambda: layer.to(DEVICE, torch.bfloat16)):
            self.assertEqual(move().gate.selection_bias.dtype, torch.float32)
        self.assertEqual(layer.gate.weight.dtype, torch.bfloat16)
        layer(tokens(8, D, dtype=torch.bfloat16))
        self.assertTrue(all(2 in chosen for chosen in layer.routing.expert.tolist()))
        kept = torch.tensor(layer.routing.kept.tolist(), device=DEVICE)
        before = layer.gate.selection_bias.clone()
        layer.end_step()
        self.near(layer.gate.selection_bias, before + 0.1 * torch.sign(4 - kept))
        self.assertEqual(layer.double().gate.selection_bias.dtype, torch.float64)
        self.assertEqual(layer.float().gate.selection_bias.dtype, torch.float32)

    def test_parameters_that_are_not_the_layers_are_refused(self):
        def emptied(layer):
            layer.experts.up.weight.data.untyped_storage().resize_(0)

        def reshaped(layer):
            layer.experts.up.weight.data = layer.experts.up.weight.data.mT

        for spoil, text in ((lambda layer: layer.experts.bfloat16(), "experts.up.weight: torch.bfloat16"),
                            (lambda layer: layer.experts.to("meta"), "parameters on meta, and x on"),
                            (reshaped, r"experts.up.weight: .*\[4, 48, 16\]"), (emptied, "it has no memory")):
            layer, x = module().eval(), tokens(6, D)
            layer(x)
            spoil(layer)
            with self.assertRaisesRegex((TypeError, ValueError), text):
                layer(x)

    def test_uneven_memory(self):
        layer, x, dy = module(), tokens(6, D), tokens(6, D)
        want, wide = self.step(layer, x, dy), torch.zeros(6, 3 * D, device=DEVICE)
        for param in layer.parameters():
            store = torch.empty(param.numel() + 1, device=DEVICE)
            store[1:] = param.data.flatten()
            param.data = store[1:].view(param.shape)
        wide[:, D:2 * D] = x
        self.same([layer(wide[:, D:2 * D]).detach()], want[:1])
        self.same(self.step(layer, x, dy), want)

    def test_masks_and_empty_batches(self):
        layer, x, dy = module(), tokens(2, 4, D), tokens(2, 4, D)
        mask = torch.tensor([[True, True, True, False], [True, True, False, False]], device=DEVICE)
        y, dx, *grads = self.step(layer, x, dy, mask=mask)
        self.assertEqual(y[~mask].abs().max(), 0)
        self.near(y[mask], layer(x[mask]).detach(), 1e-6)
        for a, b in zip(grads, self.step(layer, x[mask], dy[mask])[2:]):
            self.near(a, b)
        for numbers in ((mask * 256).long(), mask * 0.5):
            self.same(self.step(layer, x, dy, mask=numbers), [y, dx, *grads])
        for wrong in (mask[:, :3], mask[0], mask.to("meta")):
            with self.assertRaisesRegex(ValueError, r"mask: .*; it needs one of each of 8 tokens"):
                layer(x, mask=wrong)
        y, dx, *grads = self.step(layer, x[:, :0], dy[:, :0])
        self.assertEqual((y.shape, dx.shape), ((2, 0, D), (2, 0, D)))
        self.assertEqual([grad.abs().max().item() for grad in grads], [0, 0, 0])

    def test_routing_statistics_and_steps(self):
        layer = module(selection_bias=True, selection_bias_update_rate=0.1, score_function="sigmoid", num_experts=5)
        layer.measure = True
        layer(tokens(7, D))
        self.assertEqual(layer.last_stats.n_routed, 14)
        kept = torch.from_dlpack(layer.routing.kept).clone()
        layer.to(DEVICE).requires_grad_().end_step()
        want = 0.1 * torch.sign(14 / 5 - kept).to(DEVICE, torch.float32)
        self.near(layer.gate.selection_bias, want)
        for tensor in layer.tensors():
            store = torch.empty(tensor.numel() + 1, device=DEVICE)
            store[1:] = tensor.data.flatten()
            tensor.data = store[1:].view(tensor.shape)
        versions = [tensor._version for tensor in layer.tensors()]
        layer(tokens(7, D))
        kept = torch.from_dlpack(layer.routing.kept).clone()
        layer.end_step()
        self.near(layer.gate.selection_bias, want + 0.1 * torch.sign(14 / 5 - kept).to(DEVICE, torch.float32))
        moved = [tensor._version - version for tensor, version in zip(layer.tensors(), versions)]
        self.assertEqual(moved, [0, 1, 0, 0])

    def test_packed_weights(self):
        layer, x = module(d_model=32, expert_hidden_size=64), tokens(3, 32)
        layer(x)
        want = layer.eval()(x)
        self.assertIs(layer.quantize("int8", group=32), layer)
        packed = layer(x)
        self.near(packed, want, 0.05)
        self.assertFalse(torch.equal(packed, want))
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
            self.same([twin(x)], [packed])
        other = module(d_model=32, expert_hidden_size=64)
        state = copy.deepcopy(layer.state_dict())
        layer.load_state_dict(other.state_dict())
        other.eval().quantize("int8", group=32)
        self.same([layer(x)], [other(x)])
        torch.nn.Sequential(layer).load_state_dict({"0." + name: value for name, value in state.items()})
        self.same([layer(x)], [packed])
        with self.assertRaisesRegex(moekit.Error, "int9"):
            layer.quantize("int9")
        self.same([layer(x)], [packed])
        with self.assertRaisesRegex(moekit.Error, r"packed the weights .*quantize\(None\) to train"):
            layer.train()(x)
        layer.quantize(None)
        self.same([layer(x)], [want])


class Arrays(Case):
    @unittest.skipIf(DEVICE != "cpu", "of the CPU")
    def test_torch_and_numpy_see_the_same_memory(self):
        layer = moekit.Layer(**SIZES, dtype="bf16")
        up = torch.from_dlpack(layer.params["experts.up.weight"])
        self.assertEqual((up.dtype, up.shape), (torch.bfloat16, (4, D, 48)))
        x = tokens(6, D, dtype=torch.bfloat16)
        self.assertGreater(torch.from_dlpack(layer(x)).abs().max(), 0)
        y = torch.empty_like(x)
        layer.forward(x, y)
        self.assertTrue(torch.equal(torch.from_dlpack(layer(x)), y))
        up.zero_()
        self.assertEqual(torch.from_dlpack(layer(x)).abs().max(), 0)
        with self.assertRaisesRegex(ValueError, "strides"):
            layer(x.T.contiguous().T)
        try:
            import numpy
        except ImportError:
            return
        layer = moekit.Layer(**SIZES)
        x = numpy.ones([6, 2, D], numpy.float32)
        numpy.asarray(layer.params["experts.down.weight"])[:] = 0
        self.assertEqual(numpy.abs(numpy.asarray(layer(x[:, 1]))).max(), 0)
        x.flags.writeable = False
        with self.assertRaisesRegex(ValueError, "y: it is read-only"):
            layer.forward(numpy.ones([6, D], numpy.float32), x[:, 0])


class Pages(Case):
    @unittest.skipIf(DEVICE != "cpu", "of the CPU")
    def test_programs_of_the_page_run(self):
        if not importlib.util.find_spec("numpy"):
            self.skipTest("no module named 'numpy'")
        with open(os.path.join(TOP, "docs", "python.md"), encoding="utf-8") as file:
            programs = re.findall(r"```python\n(.*?)```", file.read(), re.S)
        self.assertEqual(len(programs), 2)
        for program in programs:
            exec(program, {"print": lambda *words: self.assertEqual(len(words), 3)})


if __name__ == "__main__":
    print(f"MOEKIT_TEST_SEED={SEED}")
    unittest.main()
