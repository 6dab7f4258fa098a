"""The shapes timed on a GPU, the numbers drawn for one, and what a layer with its router has to make of them, in torch.

Numbers, bf16: x, dy [T, d], gate [E, d], w1, w2 as in peer_problem.py. The shapes are SonicMoE's twelve and six more;
FLOPs are those of the experts' products, 6 T n d K forward and 12 backward (relu: 4 and 8), as its authors count them.
"""
import math
import os
import sys

import torch

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from peer_problem import BOUND, SEED, Problem, add_experts, choose, distance

NAMES = ("y", "dx", "dw1", "dw2", "dgate")
# Of distance(). Other layers round routing weights to bf16: a sigmoid's gradient w (1 - w), where the chosen lie near
# w = 0.95, is then off by (2^-8 / sqrt(12)) / 0.05 = 2e-2 of itself, and so is dgate.
OURS = dict.fromkeys(NAMES, 1e-2)
OTHERS = dict.fromkeys(NAMES, BOUND["bf16"]) | {"dgate": 3e-2}
PLANTED = 3.0  # the chosen experts' logits lie so much higher than those of the others, which are -1 .. 1

PROBLEMS = [
    Problem("1.4B-n256", 40960, 768, 256, 128, 8), Problem("1.4B-n512", 40960, 768, 512, 64, 4),
    Problem("1.4B-n1024", 40960, 768, 1024, 32, 2), Problem("7B-n256", 24576, 1536, 256, 128, 8),
    Problem("7B-n512", 24576, 1536, 512, 64, 4), Problem("7B-n1024", 24576, 1536, 1024, 32, 2),
    Problem("30B-n256", 32768, 4096, 256, 256, 16), Problem("30B-n512", 32768, 4096, 512, 128, 8),
    Problem("30B-n1024", 32768, 4096, 1024, 64, 4), Problem("120B-n512", 32768, 4096, 512, 256, 16),
    Problem("120B-n1024", 32768, 4096, 1024, 128, 8), Problem("120B-n2048", 32768, 4096, 2048, 64, 4),
    Problem("olmoe", 32768, 2048, 1024, 64, 8), Problem("qwen3-30b", 32768, 2048, 768, 128, 8),
    Problem("mixtral", 16384, 4096, 14336, 8, 2), Problem("e128-d4096", 32768, 4096, 1024, 128, 8),
    Problem("sigma-e64", 32768, 1024, 128, 64, 4, "relu"), Problem("sigma-e16", 32768, 512, 128, 16, 4, "relu"),
]
SHORT = ["7B-n256", "7B-n1024", "30B-n1024"]

# Forward and backward TFLOP/s that SonicMoE's authors print for one H100 (arXiv 2512.14080, figure 14).
PUBLISHED = {
    "sonicmoe": [(338, 366), (399, 400), (405, 436), (363, 404), (434, 438), (466, 466), (427, 459), (502, 511),
                 (551, 553), (517, 526), (558, 566), (596, 586)],
    "scattermoe": [(182, 205), (203, 244), (235, 269), (205, 212), (233, 248), (265, 280), (260, 236), (324, 302),
                   (367, 339), (335, 315), (380, 352), (384, 369)],
    "momoe": [(150, 167), (207, 227), (235, 254), (192, 184), (261, 244), (306, 280), (240, 197), (345, 275),
              (410, 317), (337, 266), (423, 335), (466, 367)],
}


def published(peer, problem):
    """(forward, backward), or None where its authors print nothing for the shape, or for uneven loads."""
    names = [p.name for p in PROBLEMS[:12]]
    known = peer in PUBLISHED and problem.name in names and not problem.zipf
    return PUBLISHED[peer][names.index(problem.name)] if known else None


def sizes(problem):
    return f"{problem.name}: T {problem.T}, d {problem.d}, n {problem.n}, E {problem.E}, K {problem.K}, {problem.act}"


def draw(problem, device):
    """Numbers whose router chooses what `choose` says by a wide margin, so that layers that round logits to bf16 route
    as the reference does, and differences are those of the products: x is noise, moved within the span of the gate."""
    random = torch.Generator(device).manual_seed(SEED)
    T, d, n, E = problem.T, problem.d, problem.n, problem.E

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, device=device, generator=random) * scale

    gate, x = normal(E, d, scale=d**-0.5).bfloat16().float(), normal(T, d)
    logits = (normal(T, E) / 2).clamp(-1, 1)
    with torch.device(device):
        chosen = choose(torch, problem, lambda *shape: torch.rand(*shape, generator=random))
    logits.scatter_add_(1, chosen, torch.full((T, problem.K), PLANTED, device=device))
    x += torch.linalg.solve(gate @ gate.T, (logits - x @ gate.T).T).T @ gate
    return {"x": x.bfloat16(), "gate": gate.bfloat16(), "dy": normal(T, d).bfloat16(),
            "w1": normal(E, d, problem.wide(), scale=d**-0.5).bfloat16(),
            "w2": normal(E, n, d, scale=n**-0.5).bfloat16()}


def reference(problem, numbers):
    """y and the gradients in f32 (the device's full f32, no tf32); routing weights are the softmax of the K largest
    logits, or (relu) their sigmoids, as sigma-MoE has it."""
    x, gate, w1, w2, dy = (numbers[key].float() for key in ("x", "gate", "w1", "w2", "dy"))
    value, chosen = (x @ gate.T).topk(problem.K, -1)
    weight = value.softmax(-1) if problem.act == "swiglu" else value.sigmoid()
    like = {"y": x, "dx": x, "dw1": w1, "dw2": w2, "dweight": weight}
    out = {name: torch.zeros_like(value) for name, value in like.items()}
    add_experts(torch, problem, {"x": x, "dy": dy, "expert": chosen, "weight": weight}, lambda e: (w1[e], w2[e]), out)
    dweight = out.pop("dweight")
    if problem.act == "swiglu":
        dvalue = weight * (dweight - (weight * dweight).sum(-1, keepdim=True))
    else:
        dvalue = weight * (1 - weight) * dweight
    dlogits = torch.zeros(problem.T, problem.E, device=x.device).scatter_(1, chosen, dvalue)
    out["dgate"] = dlogits.T @ x
    out["dx"] += dlogits @ gate
    return out


def errors(got, want):
    """distance() by name; NaN where numbers are missing or not finite."""
    return {name: distance(torch, got[name].to(value.device).float(), value) if name in got else math.nan
            for name, value in want.items()}


def agrees(found, bound):
    return all(error <= bound[name] for name, error in found.items())  # NaN is not
