"""A problem's string, its numbers, and what a layer has to make of them, in numpy, and as files between processes.

The strings are those of `moekit bench`: e16,t2048,d2048,n768,k2,skew=zipf1.0,bf16. Numbers are saved as files, which
the peers' processes map; bf16 is uint16.
"""
import os
import re
import sys

import numpy as np

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import peer_problem
from peer_problem import BOUND, SEED, Problem

__all__ = ["BOUND", "INPUTS", "OUTPUTS", "Absent", "distance", "draw", "load", "parse", "right", "save", "to_f32"]
INPUTS = ("x", "dy", "w1", "w2", "expert", "weight")
OUTPUTS = ("y", "dx", "dw1", "dw2")  # forward has y alone


class Absent(Exception):
    """A peer is not on this machine, or has no layer for this problem; the text says why."""


def parse(text):
    form = r"e(\d+),t(\d+),d(\d+),n(\d+),k(\d+)(?:,skew=(?:even|zipf([\d.]+)))?,(f32|bf16)(?:,(int8|int4))?"
    match = re.fullmatch(form, text)
    if not match:
        raise SystemExit(f"bench_peers: '{text}' is not like e16,t2048,d2048,n768,k2,skew=zipf1.0,bf16,int8")
    E, T, d, n, K = (int(group) for group in match.groups()[:5])
    return Problem(text, T, d, n, E, K, zipf=float(match[6]) if match[6] else None, dtype=match[7],
                   weights=match[8] or "")


def to_bf16(x):
    """uint16: the upper half of a float, to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_f32(x):
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def draw(problem):
    random = np.random.default_rng(SEED)
    E, T, d, n, K = problem.E, problem.T, problem.d, problem.n, problem.K

    def normal(*shape, scale=1.0):
        numbers = random.standard_normal(shape, np.float32) * np.float32(scale)
        return to_bf16(numbers) if problem.dtype == "bf16" else numbers

    weight = random.random((T, K), np.float32) + np.float32(0.1)
    expert = peer_problem.choose(np, problem, lambda *shape: random.random(shape))
    return {
        "x": normal(T, d), "dy": normal(T, d), "w1": normal(E, d, 2 * n, scale=d**-0.5),
        "w2": normal(E, n, d, scale=n**-0.5), "expert": expert.astype(np.int32),
        "weight": weight / weight.sum(axis=1, keepdims=True),
    }


def right(problem, numbers, backward):
    """y and, backward, dx, dw1, dw2: f64 where the peers work in f32, f32 where they work in bf16."""
    wide = np.float64 if problem.dtype == "f32" else np.float32
    given = {name: to_f32(numbers[name]).astype(wide) for name in ("x", "dy", "weight")} | {"expert": numbers["expert"]}
    out = {"y": np.zeros_like(given["x"])}
    if backward:
        out |= {"dx": np.zeros_like(given["x"]), "dweight": np.zeros_like(given["weight"])}
        out |= {name: np.zeros(numbers[name[1:]].shape, np.float32) for name in ("dw1", "dw2")}

    def matrices(e):
        return [to_f32(numbers[name][e]).astype(wide) for name in ("w1", "w2")]

    peer_problem.add_experts(np, problem, given, matrices, out)
    return {name: out[name].astype(np.float32) for name in OUTPUTS if name in out}


def save(folder, arrays):
    for name, value in arrays.items():
        np.save(os.path.join(folder, name + ".npy"), value)


def load(folder, names):
    return {name: np.load(os.path.join(folder, name + ".npy"), mmap_mode="r") for name in names}


def distance(got, wanted):
    return peer_problem.distance(np, np.asarray(got, np.float32), np.asarray(wanted))
