"""What the comparisons of bench/peers (numpy) and bench/gpu (torch) share: a layer's experts to time, whom its tokens go
to, and what they have to make of its numbers. `xp` is numpy or torch, in which all that is used here has the same name.

T tokens, d model width, n hidden width, E experts, K of them a token: x, dy [T, d], w1 [E, d, 2n] gate columns first
(relu: [E, d, n]), w2 [E, n, d], expert, weight [T, K].
"""
from dataclasses import dataclass

SEED = 20261122
# of distance(), by dtype or by the format of the weights: bf16 keeps 8 bits of x, z, h and y, int4 about 3 of a weight
BOUND = {"f32": 1e-5, "bf16": 2e-2, "int8": 2e-2, "int4": 0.25}
WEIGHT_BITS = {"f32": 32, "bf16": 16, "int8": 8.5, "int4": 4.5}


@dataclass(frozen=True)
class Problem:
    name: str
    T: int
    d: int
    n: int
    E: int
    K: int
    act: str = "swiglu"
    zipf: float | None = None  # tokens draw their experts by it, 0: each as likely; None: dealt in turn, all get as many rows
    dtype: str = "bf16"
    weights: str = ""  # "int8", "int4": packed in groups of 32; else as they are

    def wide(self):
        """Columns of w1."""
        return 2 * self.n if self.act == "swiglu" else self.n

    def load(self):
        """How tokens come to their experts, in words."""
        if self.zipf is None:
            return "dealt in turn"
        return f"drawn by zipf {self.zipf:g}" if self.zipf else "drawn evenly"

    def rows(self):
        return self.T * self.K

    def flop(self, n_tokens=None):
        """Of the experts' products in one forward, of all tokens or so many; backward takes twice that."""
        return 2 * (n_tokens or self.T) * self.K * self.d * (self.wide() + self.n)

    def bound(self):
        return BOUND[self.weights or self.dtype]

    def expert_bytes(self):
        """Bytes of an expert's weights; packed ones have a scale of 16 bits for each 32."""
        return self.d * (self.wide() + self.n) * WEIGHT_BITS[self.weights or self.dtype] / 8


def choose(xp, problem, uniform):
    """Experts [T, K], none twice for a token: dealt in turn, or drawn with probability ~ 1 / (e + 1)^zipf: the K largest of
    log p(e) + Gumbel noise (Kool et al. 2019), made of uniform(T, E), which lie in 0 .. 1."""
    T, K, E = problem.T, problem.K, problem.E
    if problem.zipf is None:
        return (xp.arange(T * K) % E).reshape(T, K)
    noise = -xp.log(-xp.log(uniform(T, E)))
    return xp.argsort(problem.zipf * xp.log(xp.arange(1, E + 1)) - noise)[:, :K]


def expert_outputs(xp, problem, x, w1, w2, weight, dy=None):
    """What one expert makes of its rows x [r, d], weighted by weight [r, 1]: y [r, d] and, where dy [r, d] is given, the
    gradients of x, w1, w2 and the weights."""
    z, n = x @ w1, problem.n
    if problem.act == "swiglu":
        gate, up = z[:, :n], z[:, n:]
        sigmoid = 1 / (1 + xp.exp(-gate))
        h = gate * sigmoid * up
    else:
        h = z * (z > 0)
    out = {"y": weight * (h @ w2)}
    if dy is None:
        return out
    dh = dy @ w2.T
    out |= {"dweight": (dh * h).sum(1), "dw2": (weight * h).T @ dy}
    dh = weight * dh
    if problem.act == "swiglu":
        dz = xp.hstack((dh * up * sigmoid * (1 + gate * (1 - sigmoid)), dh * gate * sigmoid))
    else:
        dz = dh * (z > 0)
    return out | {"dx": dz @ w1.T, "dw1": x.T @ dz}


def add_experts(xp, problem, numbers, matrices, out):
    """Adds to y [T, d] of `out` what the experts make of x, expert, weight of `numbers`; where there is a dx, of dy the
    gradients dx [T, d], dweight [T, K] and dw1, dw2, which are written. matrices(e) gives w1, w2 of an expert."""
    backward = "dx" in out
    for e in range(problem.E):
        token, slot = xp.where(numbers["expert"] == e)
        made = expert_outputs(xp, problem, numbers["x"][token], *matrices(e), numbers["weight"][token, slot][:, None],
                              numbers["dy"][token] if backward else None)
        out["y"][token] += made["y"]
        if backward:
            out["dx"][token] += made["dx"]
            out["dweight"][token, slot] = made["dweight"]
            out["dw1"][e], out["dw2"][e] = made["dw1"], made["dw2"]


def distance(xp, got, wanted):
    """|got - wanted| / |wanted| in norm; NaN passes no bound."""
    return float(xp.linalg.norm(got - wanted) / xp.linalg.norm(wanted))
