"""The peers: each takes the numbers of a problem in its own layout and does what the layer does, its router included.

Those without a router get torch's: logits, topk, softmax. Every class says what it imports, so that `peers.py --list`
can tell what is missing; none of their code is here.
"""
import importlib
import importlib.metadata
import importlib.util

import torch
import torch.nn.functional as F

from peer_moekit import Moekit, MoekitAdds


class Bound:
    """cuBLAS batched products of the same sizes, rows perfectly even; no router, gather, activation nor sum."""
    package, acts = "torch", ("swiglu", "relu")

    def __init__(self, problem, numbers):
        self.w1, self.w2, m = numbers["w1"], numbers["w2"], problem.T * problem.K // problem.E
        device = numbers["x"].device

        def rows(width):
            return torch.randn(problem.E, m, width, device=device, dtype=torch.bfloat16)

        self.x, self.y, self.z, self.a = (rows(w) for w in (problem.d, problem.d, problem.wide(), problem.n))
        self.dw1, self.dw2 = torch.empty_like(self.w1), torch.empty_like(self.w2)

    def about(self):
        return f"torch {torch.__version__}"

    def forward(self):
        torch.bmm(self.x, self.w1, out=self.z)
        torch.bmm(self.a, self.w2, out=self.y)

    def step(self):
        self.forward()
        torch.bmm(self.y, self.w2.mT, out=self.a)
        torch.bmm(self.a.mT, self.y, out=self.dw2)
        torch.bmm(self.z, self.w1.mT, out=self.x)
        torch.bmm(self.x.mT, self.z, out=self.dw1)

    def close(self):
        pass


class Autograd:
    """What torch differentiates: `leaves` by name, and `back`, from a leaf's layout to that of the problem's numbers."""
    acts = ("swiglu",)

    def __init__(self, problem, numbers):
        self.problem, self.dy = problem, numbers["dy"]
        self.leaves = {"x": numbers["x"].clone(), "gate": numbers["gate"].clone(), "w1": self.put_w1(numbers["w1"]),
                       "w2": self.put_w2(numbers["w2"])}
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        self.module = importlib.import_module(self.module_name) if self.module_name else None

    module_name = None

    def put_w1(self, w1):
        return w1.clone()

    put_w2 = back_w1 = back_w2 = put_w1

    def about(self):
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{self.package}, from source"

    def route(self):
        value, chosen = F.linear(self.leaves["x"], self.leaves["gate"]).topk(self.problem.K, -1)
        scored = value.float().softmax(-1) if self.problem.act == "swiglu" else value.float().sigmoid()
        return scored.bfloat16(), chosen

    def step(self):
        for leaf in self.leaves.values():
            leaf.grad = None
        y = self.forward()
        y.backward(self.dy)
        return y

    def outputs(self):
        y = self.step()
        grads = {name: leaf.grad for name, leaf in self.leaves.items()}
        return {"y": y.detach(), "dx": grads["x"], "dgate": grads["gate"], "dw1": self.back_w1(grads["w1"]),
                "dw2": self.back_w2(grads["w2"])}

    def close(self):
        self.leaves.clear()


class GroupedMm(Autograd):
    """torch alone: argsort, gather, grouped_mm, index_add."""
    package, acts = "torch", ("swiglu", "relu")

    def forward(self):
        x, w1, w2 = (self.leaves[key] for key in ("x", "w1", "w2"))
        weight, chosen = self.route()
        order = chosen.flatten().argsort(stable=True)
        ends = torch.bincount(chosen.flatten(), minlength=self.problem.E).cumsum(0).int()
        z = F.grouped_mm(x[order // self.problem.K], w1, offs=ends)
        if self.problem.act == "swiglu":
            gate, up = z.chunk(2, -1)
            a = F.silu(gate) * up
        else:
            a = z.relu()
        y = F.grouped_mm(a, w2, offs=ends) * weight.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, order // self.problem.K, y)


class Transposed(Autograd):
    """Weights [E, out, in]."""

    def put_w1(self, w1):
        return w1.mT.contiguous()

    put_w2 = put_w1

    def back_w1(self, w1):
        return w1.mT

    back_w2 = back_w1


class ScatterMoe(Transposed):
    package, module_name = "scattermoe", "scattermoe.parallel_experts"

    def put_w1(self, w1):  # up first
        return torch.cat(w1.mT.chunk(2, 1)[::-1], 1).contiguous()

    def back_w1(self, w1):
        return torch.cat(w1.mT.chunk(2, 2)[::-1], 2)

    def forward(self):
        x, w1, w2 = (self.leaves[key] for key in ("x", "w1", "w2"))
        weight, chosen = self.route()
        expert, row, ends = self.module.flatten_sort_count(chosen, num_experts=self.problem.E)
        z = self.module.parallel_linear(x, w1.mT, self.problem.K, expert, row, ends, grouped_out=True)
        up, gate = z.chunk(2, -1)
        return self.module.parallel_linear(F.silu(gate) * up, w2.mT, 1, expert, row, ends, gates=weight, grouped_in=True)


class Liger(Transposed):
    package, module_name = "liger-kernel", "liger_kernel.ops.fused_moe"

    def forward(self):
        weight, chosen = self.route()
        return self.module.LigerFusedMoEFunction.apply(self.leaves["x"], self.leaves["w1"], self.leaves["w2"],
                                                       chosen.int(), weight)


class MoMoe(Autograd):
    """With everything saved for backward."""
    package, module_name = "momoe", "momoe.momoe"

    def put_w1(self, w1):  # up first
        return torch.cat(w1.chunk(2, 2)[::-1], 2).contiguous()

    back_w1 = put_w1

    def forward(self):
        weight, chosen = self.route()
        empty = torch.zeros(self.problem.T, self.problem.E, device=weight.device)
        mask = empty.int().scatter(1, chosen, 1).T.contiguous()
        score = empty.bfloat16().scatter(1, chosen, weight).T.contiguous()
        return self.module.MoEFunction.apply(self.leaves["x"][None], self.leaves["w1"], self.leaves["w2"], mask, score,
                                             self.problem.K, 100)[0][0]


class SigmaMoe(Autograd):
    """The Triton layer of sigma-MoE: ReLU, sigmoid scores."""
    package, module_name, acts = "moe_layer", "moe_layer.moe_layer_simple", ("relu",)

    def __init__(self, problem, numbers):
        super().__init__(problem, numbers)
        self.layer = self.module.MoE(problem.d, problem.E, problem.n, problem.K).to(numbers["x"].device, torch.bfloat16)
        for name, key in (("keys", "w1"), ("values", "w2"), ("expert_sel", "gate")):
            leaf = torch.nn.Parameter(self.leaves[key].detach())
            setattr(self.layer, name, leaf)
            self.leaves[key] = leaf

    def forward(self):
        return self.layer(self.leaves["x"])[0]


class SonicMoe(Transposed):
    """Its own router; gate and up rows by turns, as its tests have them. The first steps of a shape tune its kernels."""
    package, module_name = "sonic-moe", "sonicmoe.functional"

    def put_w1(self, w1):
        E, d, wide = w1.shape
        return w1.view(E, d, 2, wide // 2).permute(0, 3, 2, 1).reshape(E, wide, d).contiguous()

    def back_w1(self, w1):
        E, wide, d = w1.shape
        return w1.view(E, wide // 2, 2, d).permute(0, 3, 2, 1).reshape(E, d, wide)

    def forward(self):
        w1, w2 = (self.leaves[key].permute(1, 2, 0) for key in ("w1", "w2"))
        return self.module.moe_TC_softmax_topk_layer(self.leaves["x"], self.leaves["gate"], w1, None, w2, None,
                                                     self.problem.K, torch.cuda.current_stream().cuda_stream,
                                                     "swiglu", False)[0]


class Ours(Moekit):
    package, acts = None, ("swiglu", "relu")


class OursAdds(MoekitAdds):
    package, acts = None, ("swiglu", "relu")


PEERS = {"moekit": Ours, "moekit-adds": OursAdds, "bound": Bound, "sonicmoe": SonicMoe, "grouped_mm": GroupedMm,
         "scattermoe": ScatterMoe, "momoe": MoMoe, "liger": Liger, "sigma": SigmaMoe}


def missing(name):
    """Why a peer cannot be tried at all; '' where it can."""
    module = getattr(PEERS[name], "module_name", None)
    try:
        return "" if not module or importlib.util.find_spec(module.split(".")[0]) else f"no module '{module}'"
    except ImportError as error:
        return str(error)
