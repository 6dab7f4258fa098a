#!/usr/bin/env python3
"""peers.py: one MoE layer, ours beside others on one GPU: forward and backward, router included, bf16.

Every peer's y and gradients are first compared with an f32 reference; one that differs, or cannot run, is not timed,
and its authors' figure stands in its place where there is one, marked so. Then all take turns in one process, each
behind 8192^3 products that keep the GPU busy while they launch (and tell what the card does in that minute) and a
write of 256 MiB that empties L2; medians count. Backward is a step less a forward, as SonicMoE's authors count it.
Needs torch; the peers are whatever is installed. MOEKIT_LIBRARY says which libmoekit.so.
"""
import argparse
import datetime
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field, replace

import torch

from gpu_numbers import (OTHERS, OURS, PROBLEMS, SHORT, Problem, agrees, draw, errors, published, reference,
                         sizes)
from peer_layers import PEERS, missing

BUSY = 8192  # of the product between the turns
MOST_AHEAD = 20  # such products before a run
FLUSH = 256 << 20  # bytes: more than any L2


@dataclass
class Result:
    problem: Problem
    peer: str
    forward: list = field(default_factory=list)  # seconds, one a round
    step: list = field(default_factory=list)
    error: dict = field(default_factory=dict)
    note: str = ""

    def times(self):
        """Medians of forward, backward and both."""
        forward, step = statistics.median(self.forward), statistics.median(self.step)
        return forward, step - forward, step


class Gpu:
    """Times on the device's own clock."""

    def __init__(self):
        self.a, self.b, self.c = (torch.randn(BUSY, BUSY, device="cuda").bfloat16() for _ in range(3))
        self.sweep = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
        self.begin()

    def begin(self):
        """A problem begins."""
        self.ahead = 1  # products that outlast any peer's launches on the host; the same number for all
        self.keep()

    def keep(self):
        """From now on turns count."""
        self.rates = []
        self.longest = 0  # of any peer's launches, in products

    def time(self, run):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        for _ in range(self.ahead):
            torch.mm(self.a, self.b, out=self.c)
        marks[0].record()
        torch.mm(self.a, self.b, out=self.c)
        marks[1].record()
        self.sweep.zero_()
        marks[2].record()
        began = time.perf_counter()
        run()
        launched = time.perf_counter() - began
        marks[3].record()
        torch.cuda.synchronize()
        product = marks[0].elapsed_time(marks[1]) * 1e-3
        self.rates.append(2 * BUSY**3 / product)
        self.ahead = max(self.ahead, min(MOST_AHEAD, math.ceil(1.5 * launched / product)))
        self.longest = max(self.longest, launched / product)
        return marks[2].elapsed_time(marks[3]) * 1e-3

    def rate(self):
        """Of the 8192^3 products since keep(): what the card does in this minute."""
        return statistics.median(self.rates) if self.rates else 0

    def hidden(self):
        """Whether the products ahead outlasted all launches."""
        return self.longest <= self.ahead

    def about(self):
        shown = "" if self.hidden() else "; launches of a peer outlast the products ahead of them"
        return f"8192^3 product {self.rate() * 1e-12:.0f} TFLOP/s, {self.ahead} ahead of each run{shown}"

    def release(self):
        torch.cuda.empty_cache()


class Cpu:
    """For trying this program where there is no GPU."""

    def begin(self):
        pass

    def keep(self):
        pass

    def hidden(self):
        return False

    def time(self, run):
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def rate(self):
        return 0

    def about(self):
        return "on the CPU: a trial, no measurement"

    def release(self):
        pass


def parse_problem(text):
    """A name, or T,d,n,E,K[,relu]."""
    for problem in PROBLEMS:
        if problem.name == text:
            return problem
    words = text.split(",")
    try:
        sizes = [int(word) for word in words[:5]]
    except ValueError:
        sizes = []
    if len(sizes) != 5 or words[5:] not in ([], ["relu"], ["swiglu"]) or min(sizes) < 1 or sizes[4] > sizes[3]:
        raise SystemExit(f"peers.py: '{text}' is neither of {', '.join(p.name for p in PROBLEMS)} nor like "
                         "24576,1536,256,128,8 (T, d, n, E, K; a sixth word relu: not gated)")
    return Problem(text, *sizes, *words[5:])


def parse_skew(text):
    """None where tokens are dealt in turn, else the exponent they are drawn by."""
    if text == "even":
        return None
    if not text.startswith("zipf"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither even nor like zipf1.0")
    try:
        return float(text[4:])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}': zipf is followed by its exponent, as in zipf1.0") from error


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="problems: all, short or names of --list")
    parser.add_argument("problem", nargs="*", default=SHORT, help=f"what to time (default: {' '.join(SHORT)})")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, with commas (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each, of which the median counts (7)")
    parser.add_argument("--skew", type=parse_skew, default=0.0, metavar="even|zipfS",
                        help="the load, as in moekit bench: dealt in turn, or drawn with probability ~ 1/(e+1)^S (zipf0)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial of this program")
    parser.add_argument("--output", help="a file that gets what is printed, too")
    parser.add_argument("--save", help="a JSON file that gets every turn; what it has of other problems stays (peers_page.py)")
    parser.add_argument("--list", action="store_true", help="the problems, and which peers are installed; no GPU needed")
    args = parser.parse_args()
    names = []
    for word in args.problem:
        names += {"all": [p.name for p in PROBLEMS], "short": SHORT}.get(word, [word])
    args.problems = [replace(parse_problem(name), zipf=args.skew) for name in dict.fromkeys(names)]
    args.peers = args.peers.split(",")
    for name in args.peers:
        if name not in PEERS:
            parser.error(f"no peer '{name}'; there are {', '.join(PEERS)}")
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    return args


def print_list():
    for problem in PROBLEMS:
        print(sizes(problem))
    for name in PEERS:
        print(f"{name:11} {missing(name) or 'installed'}")


def reason(error):
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:160]


def prepare(name, problem, numbers, want, results):
    """The peer, checked; None where it cannot run or differs, and the result says why."""
    result = Result(problem, name)
    if problem.act not in PEERS[name].acts:
        return None
    results.append(result)
    result.note = missing(name)
    if result.note:
        return None
    peer = None
    try:
        peer = PEERS[name](problem, numbers)
        result.note = peer.about()
        if name != "bound":
            result.error = errors(peer.outputs(), want)
    except Exception as error:  # whatever others' code and compilers raise
        result.note = reason(error)
    else:
        if agrees(result.error, OURS if name.startswith("moekit") else OTHERS):
            return peer
        result.note = f"differs from the reference: {' '.join(f'{k} {v:.1e}' for k, v in result.error.items())}"
    if peer:
        peer.close()
    return None


def take_turns(peers, results, rounds, clock):
    """Times every peer once a round; one that fails is heard no more, and the result says why."""
    for i in range(-2, rounds):  # turn -2 warms, -1 tells how long launches take
        if i == -1:
            clock.begin()
        if i == 0:
            clock.keep()
        for result in results:
            if result.peer not in peers:
                continue
            peer = peers[result.peer]
            try:
                forward, step = clock.time(peer.forward), clock.time(peer.step)
            except Exception as error:
                result.forward, result.step, result.note = [], [], reason(error)
                peers.pop(result.peer).close()
                clock.release()
                continue
            if i >= 0:
                result.forward.append(forward)
                result.step.append(step)


def run_problem(problem, args, clock, say, results):
    """Fills results, which outlive what stops this."""
    numbers = draw(problem, args.device)
    want, peers = reference(problem, numbers), {}
    for name in args.peers:
        peer = prepare(name, problem, numbers, want, results)
        if peer:
            peers[name] = peer
        clock.release()
    del want
    clock.release()
    take_turns(peers, results, args.rounds, clock)
    for peer in peers.values():
        peer.close()
    say(f"{sizes(problem)}, {problem.load()}; {clock.about()}")
    for result in results:
        line = f"  {result.peer}: {result.note}"
        if result.forward:
            forward, backward, _ = result.times()
            line += (f"; forward {forward * 1e3:.3f} ms ({min(result.forward) * 1e3:.3f} to {max(result.forward) * 1e3:.3f}), "
                     f"backward {backward * 1e3:.3f} ms")
        if result.forward and result.error:
            line += f"; errors {', '.join(f'{k} {v:.1e}' for k, v in result.error.items())}"
        say(line)


def save(path, problem, results, clock, about):
    """Every turn of one problem, in place of what the file has of it; problems stay in the order of PROBLEMS."""
    saved = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            saved = [row for row in json.load(file) if (row["sizes"], row["load"]) != (sizes(problem), problem.load())]
    timed = {r.peer: {"about": r.note, "forward": r.forward, "step": r.step} for r in results if r.forward}
    saved.append({"problem": problem.name, "sizes": sizes(problem), "load": problem.load(), "flop": problem.flop(), "rate": clock.rate(), "hidden": clock.hidden(),
                  "timed": timed, "absent": {r.peer: r.note for r in results if not r.forward}} | about)
    names = [p.name for p in PROBLEMS]
    saved.sort(key=lambda row: names.index(row["problem"]) if row["problem"] in names else len(names))
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(saved, file, indent=1)
        file.write("\n")
    os.replace(path + ".part", path)


def print_table(results, say):
    """Times of one problem together; 'of bound' and 'moekit is' are of forward and backward together."""
    say(f"\n{'problem':22} {'peer':11} {'forward':>9} {'TFLOP/s':>8} {'backward':>9} {'TFLOP/s':>8} {'both':>8} "
        f"{'of bound':>8} {'moekit is':>10}")
    both = {(r.problem, r.peer): r.times()[2] for r in results if r.forward}
    for result in results:
        problem, head = result.problem, f"{result.problem.name:22} {result.peer:11}"
        figures = published(result.peer, problem)
        if result.forward:
            forward, backward, step = result.times()
            bound, ours = both.get((problem, "bound")), both.get((problem, "moekit"))
            flop = problem.flop() * 1e-12
            say(f"{head} {forward * 1e3:6.3f} ms {flop / forward:8.1f} {backward * 1e3:6.3f} ms {2 * flop / backward:8.1f} "
                f"{3 * flop / step:8.1f} {f'{100 * bound / step:.1f} %' if bound else '-':>8} "
                f"{f'{step / ours:.2f} x' if ours else '-':>10}")
        elif figures:
            say(f"{head} {'':9} {figures[0]:8} {'':9} {figures[1]:8}   as published, not run here: {result.note}")
        else:
            say(f"{head} not run: {result.note}")


def main():
    args = parse_args()
    if args.list:
        print_list()
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not run here: peers.py needs a CUDA GPU that torch sees (--device cpu tries the program itself)")
        return 77
    output = open(args.output, "w", encoding="utf-8") if args.output else None

    def say(line):
        print(line, flush=True)
        if output:
            print(line, file=output, flush=True)

    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    about = {"date": str(datetime.date.today()), "card": card, "torch": torch.__version__, "rounds": args.rounds}
    say(f"# peers.py, {about['date']}, {card}, torch {torch.__version__}, CUDA {torch.version.cuda}; errors at most "
        f"{OTHERS['y']:g}, of dgate {OTHERS['dgate']:g} (moekit {OURS['y']:g}); {args.rounds} rounds")
    results, stopped = [], False
    # never the legacy stream: NULL means moekit's own
    with torch.cuda.stream(torch.cuda.Stream() if args.device == "cuda" else None):
        clock = Gpu() if args.device == "cuda" else Cpu()
        try:
            for problem in args.problems:
                results.append([])
                run_problem(problem, args, clock, say, results[-1])
                if args.save:
                    save(args.save, problem, results[-1], clock, about)
                clock.release()
        except (Exception, KeyboardInterrupt) as error:
            stopped = True
            say(f"stopped by {reason(error)}; what was done by then:")
    results = sum(results, [])
    print_table(results, say)
    ours = [result for result in results if result.peer.startswith("moekit")]
    return int(stopped or not all(result.forward for result in ours))


if __name__ == "__main__":
    sys.exit(main())
