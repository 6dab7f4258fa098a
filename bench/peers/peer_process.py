"""One peer in a process of its own, told by lines of JSON on stdin what to do; each is answered by one on stdout.

open: the problem whose numbers lie in a folder. check: run once, tell how far the outputs are from what is right. turn:
run for some seconds, tell the seconds of each run. close.
"""
import ctypes
import functools
import importlib
import json
import os
import signal
import sys
import time

from cpu_numbers import INPUTS, OUTPUTS, Absent, distance, load, parse

PR_SET_PDEATHSIG = 1
# name -> where its class is
PEERS = {
    "moekit": "peer_c.CPeer", "oneDNN": "peer_c.CPeer", "OpenBLAS": "peer_c.CPeer", "libxsmm": "peer_c.CPeer",
    "PyTorch loop": "peer_torch.Loop", "PyTorch grouped_mm": "peer_torch.Grouped",
    "Mixtral block": "peer_torch.Mixtral", "Qwen3-MoE block": "peer_torch.Qwen3",
    "kt-kernel": "peer_torch.KTransformers",
    "ggml": "peer_ggml.Ggml", "ggml Q4_K": "peer_ggml.KQuants",
    "ggml Q4_K --no-repack": "peer_ggml.KQuantsAsTheyCome",
}
PACKED = ("moekit", "ggml", "ggml Q4_K", "ggml Q4_K --no-repack")  # have weights in 8 and 4 bits


class Served:
    def __init__(self, name):
        self.name = name
        module, kind = PEERS[name].split(".")
        self.make = getattr(importlib.import_module(module), kind)
        if module == "peer_c":
            self.make = functools.partial(self.make, name.lower())
        self.peer = None

    def open(self, problem, folder, backward, tokens, threads):
        self.close()
        self.folder, self.backward = folder, backward
        problem = parse(problem)
        if problem.weights and self.name not in PACKED:
            raise Absent("its weights are not packed in 8 or 4 bits here")
        self.peer = self.make(problem, load(folder, INPUTS), backward, tokens, threads)
        self.n, self.next = problem.T // tokens, 0
        return self.peer.about()

    def check(self):
        for i in range(self.n):
            self.peer.run(i)
        names = OUTPUTS if self.backward else OUTPUTS[:1]
        wanted, outputs = load(self.folder, names), self.peer.outputs()
        return {name: distance(outputs[name], wanted[name]) for name in names}

    def turn(self, seconds):
        """The first run, after others had the machine, does not count."""
        times = []
        while len(times) < 2 or sum(times[1:]) < seconds:
            began = time.perf_counter()
            self.peer.run(self.next)
            times.append(time.perf_counter() - began)
            self.next = (self.next + 1) % self.n
        return times[1:]

    def close(self):
        if self.peer:
            self.peer.close()
        self.peer = None


def main():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # stopped, it would not see the end of stdin
    answers = os.fdopen(os.dup(1), "w")  # libraries print to stdout
    os.dup2(2, 1)
    served = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            served = served or Served(sys.argv[1])
            answer = {"ok": getattr(served, order.pop("do"))(**order)}
        except (Absent, ImportError) as why:
            answer = {"absent": str(why)}
        except Exception as why:
            answer = {"failed": f"{type(why).__name__}: {why}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
