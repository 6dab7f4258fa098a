"""Peers of PyTorch's world: its own operations, the blocks of transformers, and kt-kernel.

bf16 tensors are numpy's uint16 in other clothes. Weights are laid out once as the peer's own models have them.
"""
import logging

import numpy as np
import torch
import torch.nn.functional as F

from cpu_numbers import Absent


def tensor(array):
    """A copy of numpy's numbers; uint16 are bf16."""
    copy = torch.from_numpy(np.array(array))
    return copy.view(torch.bfloat16) if array.dtype == np.uint16 else copy


def linear_weights(array):
    """[E, in, out] as torch.nn.Linear keeps it: [E, out, in]."""
    return tensor(array).transpose(1, 2).contiguous()


class TorchPeer:
    """Subclasses say how the layer is made (make: sets parameters) and called (layer)."""

    transposed = True  # parameters are [E, out, in]

    def __init__(self, problem, numbers, backward, tokens, threads):
        torch.set_num_threads(threads)
        self.problem, self.backward, self.tokens = problem, backward, tokens
        self.make(numbers)
        for parameter in (self.w1, self.w2):
            parameter.requires_grad_(backward)
        pieces = [tensor(numbers[name]).split(tokens) for name in ("x", "dy", "expert", "weight")]
        self.batches = [(x.requires_grad_(backward), dy, expert.long(), weight)
                        for x, dy, expert, weight in zip(*pieces)]
        self.y = [None] * len(self.batches)

    def make(self, numbers):
        form = linear_weights if self.transposed else tensor
        self.w1, self.w2 = (torch.nn.Parameter(form(numbers[name])) for name in ("w1", "w2"))

    def about(self):
        return f"PyTorch {torch.__version__}"

    def run(self, i):
        x, dy, expert, weight = self.batches[i]
        if not self.backward:
            with torch.inference_mode():
                self.y[i] = self.layer(x, expert, weight)
            return
        self.w1.grad = self.w2.grad = x.grad = None
        self.y[i] = self.layer(x, expert, weight)
        self.y[i].backward(dy)

    def outputs(self):
        out = {"y": torch.cat(self.y).detach()}
        if self.backward:
            out["dx"] = torch.cat([x.grad for x, *_ in self.batches])
            turn = (lambda w: w.transpose(1, 2)) if self.transposed else (lambda w: w)
            out |= {"dw1": turn(self.w1.grad), "dw2": turn(self.w2.grad)}
        return {name: value.float().numpy() for name, value in out.items()}

    def close(self):
        pass


class Loop(TorchPeer):
    """Rows sorted by expert once, then two linear layers an expert, as the best of plain PyTorch does it."""

    def layer(self, x, expert, weight):
        order = torch.argsort(expert.flatten(), stable=True)
        token = order // expert.shape[1]
        rows = torch.bincount(expert.flatten(), minlength=self.problem.E).tolist()
        parts = []
        for e, part in enumerate(x[token].split(rows)):
            if rows[e]:
                gate, up = F.linear(part, self.w1[e]).chunk(2, dim=-1)
                parts.append(F.linear(F.silu(gate) * up, self.w2[e]))
        weighted = torch.cat(parts) * weight.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add(0, token, weighted)


class Grouped(TorchPeer):
    """grouped_mm, one call for all experts."""

    transposed = False

    def layer(self, x, expert, weight):
        grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
        order = torch.argsort(expert.flatten(), stable=True)
        token = order // expert.shape[1]
        offset = torch.bincount(expert.flatten(), minlength=self.problem.E).cumsum(0).int()
        gate, up = grouped_mm(x[token], self.w1, offs=offset).chunk(2, dim=-1)
        rows = grouped_mm(F.silu(gate) * up, self.w2, offs=offset)
        return torch.zeros_like(x).index_add(0, token, rows * weight.flatten()[order, None].to(x.dtype))


class GivenRoute(torch.nn.Module):
    """Stands in for a block's router, so that every peer has the same routes."""

    def forward(self, _):
        return None, self.weight, self.expert


class Block(TorchPeer):
    """A sparse block of transformers with its experts run in one of the ways it offers."""

    def build(self, problem):
        raise NotImplementedError

    def make(self, numbers):
        logging.getLogger("transformers").setLevel(logging.ERROR)
        with torch.device("meta"):
            self.block = self.build(self.problem)
        experts = self.block.experts
        experts.gate_up_proj, experts.down_proj = (
            torch.nn.Parameter(linear_weights(numbers[name])) for name in ("w1", "w2"))
        self.w1, self.w2 = experts.gate_up_proj, experts.down_proj
        self.block.gate = GivenRoute()

    def about(self):
        import transformers

        return f"transformers {transformers.__version__}, PyTorch {torch.__version__}"

    def layer(self, x, expert, weight):
        self.block.gate.expert, self.block.gate.weight = expert, weight
        return self.block(x[None])[0]


class Mixtral(Block):
    def build(self, problem):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        return MixtralSparseMoeBlock(MixtralConfig(
            hidden_size=problem.d, intermediate_size=problem.n, num_local_experts=problem.E,
            num_experts_per_tok=problem.K, experts_implementation="eager"))


class Qwen3(Block):
    def build(self, problem):
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        return Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(
            hidden_size=problem.d, moe_intermediate_size=problem.n, num_experts=problem.E,
            num_experts_per_tok=problem.K, experts_implementation="grouped_mm"))


class KTransformers:
    """kt-kernel's bf16 experts, inference only."""

    def __init__(self, problem, numbers, backward, tokens, threads):
        if backward or problem.dtype != "bf16":
            raise Absent("kt-kernel has bf16 inference")
        import kt_kernel

        self.kt, ext = kt_kernel, kt_kernel.kt_kernel_ext
        pool = ext.WorkerPoolConfig()
        pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [threads]
        self.engine = ext.CPUInfer(pool)
        on_gpu = torch.zeros(problem.E, dtype=torch.bool)
        config = ext.moe.MOEConfig(problem.E, problem.K, problem.d, problem.n, on_gpu.data_ptr())
        config.pool, config.max_len, config.layer_idx = self.engine.backend_, max(tokens, 32), 0
        w1, w2 = linear_weights(numbers["w1"]), linear_weights(numbers["w2"])
        halves = [w1[:, :problem.n].contiguous(), w1[:, problem.n:].contiguous(), w2]
        for name, weights in zip(("gate", "up", "down"), halves):
            setattr(config, name + "_projs", [[expert.data_ptr() for expert in weights]])
            setattr(config, name + "_scales", [[0] * problem.E])
        self.moe = ext.moe.AMXBF16_MOE(config)
        order = torch.arange(problem.E)
        self.engine.submit(self.moe.load_weights_task(order.data_ptr()))
        self.engine.sync()
        x, expert, weight = (tensor(numbers[name]) for name in ("x", "expert", "weight"))
        self.y = torch.full_like(x, torch.nan)
        self.batches = list(zip(*(part.split(tokens) for part in (x, expert.long(), weight, self.y))))
        self.length = torch.tensor([tokens], dtype=torch.int32)
        self.kept = on_gpu, config, x, expert

    def about(self):
        return f"kt-kernel {self.kt.__version__} ({self.kt.__cpu_variant__})"

    def run(self, i):
        x, expert, weight, y = self.batches[i]
        self.engine.submit(self.moe.forward_task(self.length.data_ptr(), expert.shape[1], expert.data_ptr(),
                                                 weight.data_ptr(), x.data_ptr(), y.data_ptr(), False))
        self.engine.sync()

    def outputs(self):
        return {"y": self.y.float().numpy()}

    def close(self):
        pass
