"""A problem: its string, numbers drawn for it, and what a layer has to make of them.

The strings are those of `moekit bench`: e16,t2048,d2048,n768,k2,skew=zipf1.0,bf16. Numbers are saved as files, which
the peers' processes map: x, dy [T, d], w1 [E, d, 2n] gate columns first, w2 [E, n, d], expert, weight [T, K].
"""
import os
import re
from dataclasses import dataclass

import numpy as np

SEED = 20261122
INPUTS = ("x", "dy", "w1", "w2", "expert", "weight")
OUTPUTS = ("y", "dx", "dw1", "dw2")  # forward has y alone
# of the norm of what is right; bf16 keeps 8 bits of x, z, h and y
BOUND = {"f32": 1e-5, "bf16": 2e-2}


class Absent(Exception):
    """A peer is not on this machine, or has no layer for this problem; the text says why."""


@dataclass
class Problem:
    text: str
    E: int
    T: int
    d: int
    n: int
    K: int
    zipf: float | None  # exponent; None: every expert gets the same number of rows
    dtype: str

    @classmethod
    def parse(cls, text):
        form = r"e(\d+),t(\d+),d(\d+),n(\d+),k(\d+)(?:,skew=(?:even|zipf([\d.]+)))?,(f32|bf16)"
        match = re.fullmatch(form, text)
        if not match:
            raise SystemExit(f"bench_peers: '{text}' is not like e16,t2048,d2048,n768,k2,skew=zipf1.0,bf16")
        sizes = [int(group) for group in match.groups()[:5]]
        return cls(text, *sizes, float(match[6]) if match[6] else None, match[7])

    def rows(self):
        return self.T * self.K

    def flop(self, n_tokens):
        """Of one forward of a swiglu layer; backward takes twice that."""
        return 6 * n_tokens * self.K * self.d * self.n

    def expert_bytes(self):
        return 3 * self.d * self.n * (2 if self.dtype == "bf16" else 4)


def to_bf16(x):
    """uint16: the upper half of a float, to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_f32(x):
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def route(problem, random):
    """Experts [T, K], none twice for a token. Zipf: the K largest of log p(e) + Gumbel noise (Kool et al. 2019)."""
    T, K, E = problem.T, problem.K, problem.E
    if problem.zipf is None:
        return (np.arange(T * K) % E).reshape(T, K)
    noise = -np.log(-np.log(random.random((T, E))))
    return np.argsort(-(noise - problem.zipf * np.log(np.arange(1, E + 1))), axis=1)[:, :K]


def draw(problem):
    random = np.random.default_rng(SEED)
    E, T, d, n, K = problem.E, problem.T, problem.d, problem.n, problem.K

    def normal(*shape, scale=1.0):
        numbers = random.standard_normal(shape, np.float32) * np.float32(scale)
        return to_bf16(numbers) if problem.dtype == "bf16" else numbers

    weight = random.random((T, K), np.float32) + np.float32(0.1)
    return {
        "x": normal(T, d), "dy": normal(T, d), "w1": normal(E, d, 2 * n, scale=d**-0.5),
        "w2": normal(E, n, d, scale=n**-0.5), "expert": route(problem, random).astype(np.int32),
        "weight": weight / weight.sum(axis=1, keepdims=True),
    }


def right(problem, numbers, backward):
    """y and, backward, dx, dw1, dw2: f64 where the peers work in f32, f32 where they work in bf16."""
    wide = np.float64 if problem.dtype == "f32" else np.float32
    x, dy, weight = (to_f32(numbers[name]).astype(wide) for name in ("x", "dy", "weight"))
    out = {"y": np.zeros_like(x)}
    if backward:
        out |= {"dx": np.zeros_like(x)}
        out |= {name: np.zeros(numbers[name[1:]].shape, np.float32) for name in ("dw1", "dw2")}
    n = problem.n
    for e in range(problem.E):
        token, slot = np.nonzero(numbers["expert"] == e)
        w1, w2 = (to_f32(numbers[name][e]).astype(wide) for name in ("w1", "w2"))
        z = x[token] @ w1
        sigmoid = 1 / (1 + np.exp(-z[:, :n]))
        h = z[:, :n] * sigmoid * z[:, n:]
        out["y"][token] += weight[token, slot, None] * (h @ w2)
        if not backward:
            continue
        dyr = weight[token, slot, None] * dy[token]
        dh = dyr @ w2.T
        dz = np.hstack((dh * z[:, n:] * sigmoid * (1 + z[:, :n] * (1 - sigmoid)), dh * z[:, :n] * sigmoid))
        out["dw2"][e] = h.T @ dyr
        out["dw1"][e] = x[token].T @ dz
        out["dx"][token] += dz @ w1.T
    return {name: value.astype(np.float32) for name, value in out.items()}


def save(folder, arrays):
    for name, value in arrays.items():
        np.save(os.path.join(folder, name + ".npy"), value)


def load(folder, names):
    return {name: np.load(os.path.join(folder, name + ".npy"), mmap_mode="r") for name in names}


def distance(got, wanted):
    """|got - wanted| / |wanted| in norm; NaN passes no bound."""
    got, wanted = np.asarray(got, np.float32).ravel(), np.asarray(wanted).ravel()
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
