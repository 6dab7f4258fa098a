#!/usr/bin/env python3
"""Our layer and its peers on the same numbers: checked first, then timed in turns; writes docs/peers.md.

  bench_peers.py --build BUILD [--cpus 0,1] [--turns N] [--seconds S] [--only PEER,...] [--problem STRING=PASS]...
                 [--remark TEXT] [--page] [--add] [--chapter NAME]

Each peer has a process of its own; the processes take turns, and between turns the machine's ceilings are measured.
--page saves the results in bench/results/ and writes the page from all that lie there; a table is printed always.
--add keeps this machine's saved results of other problems, so that a run may be made in parts. --chapter gives a run a
file and a chapter of its own beside this machine's others.
ggml is looked for in the folder $GGML_FOLDER (libggml-base.so and libggml-cpu.so: in llama.cpp's source `cmake -B build
-DCMAKE_BUILD_TYPE=Release` and `cmake --build build --target ggml` put them in build/bin), else in the Python package
llama-cpp-python.
Runs under $MOEKIT_PYTHON where that is set. Exit code 77: numpy is not installed.
"""
import argparse
import dataclasses
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "..", "..", "tests", "python"))
import need

need.modules("numpy")

import numpy

import peer_page
from cpu_numbers import draw, parse, right, save
from peer_process import PEERS

OURS = "moekit"
PASSES = ("forward", "step", "decode")
# Expert sizes of real models; fewer experts where their number is not what matters, so that all peers fit in memory.
DEFAULT = [
    ("e16,t2048,d2048,n768,k2,bf16", "forward"),  # Qwen3-30B's experts, 256 rows each
    ("e16,t2048,d2048,n768,k2,bf16", "step"),
    ("e16,t2048,d2048,n768,k2,skew=zipf1.0,bf16", "forward"),
    ("e16,t512,d2048,n768,k2,bf16", "forward"),  # 64 and 16 rows each
    ("e16,t128,d2048,n768,k2,bf16", "forward"),
    ("e32,t32,d2048,n768,k8,bf16", "decode"),  # a token at a time
    ("e32,t32,d2048,n768,k8,bf16,int8", "decode"),  # with packed weights
    ("e32,t32,d2048,n768,k8,bf16,int4", "decode"),
    ("e64,t2048,d1536,n256,k8,bf16", "forward"),  # the finest 7B of SonicMoE, 256 rows each
    ("e64,t2048,d1536,n256,k8,bf16", "step"),
    ("e16,t2048,d2048,n768,k2,f32", "forward"),
    ("e16,t2048,d2048,n768,k2,f32", "step"),
    ("e64,t2048,d1536,n256,k8,f32", "forward"),
    ("e16,t128,d2048,n768,k2,f32", "forward"),
]


class Process:
    """A peer's process, stopped while it is not its turn: some libraries' threads spin when they have nothing to do. An
    answer is what was asked for, or None and why not."""

    def __init__(self, name, environment, log):
        self.name = name
        self.child = subprocess.Popen([sys.executable, os.path.join(HERE, "peer_process.py"), name], env=environment,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(self, **order):
        self.child.send_signal(signal.SIGCONT)
        try:
            print(json.dumps(order), file=self.child.stdin, flush=True)
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        self.child.send_signal(signal.SIGSTOP)
        answer = json.loads(line) if line else {"failed": f"its process ended with {self.child.poll()}"}
        self.failed = "failed" in answer
        return answer.get("ok"), answer.get("absent") or answer.get("failed")

    def end(self):
        self.child.send_signal(signal.SIGCONT)
        self.child.stdin.close()
        self.child.wait()


def physical_cores():
    """Of the cores this process may use the first thread of each."""
    first = set()
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii") as file:
                siblings = [int(part) for part in file.read().replace("-", ",").split(",")]
        except OSError:
            siblings = [cpu]
        first.add(min(siblings) if min(siblings) in os.sched_getaffinity(0) else cpu)
    return sorted(first)


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.environment = os.environ | {
            "PEERS_FOLDER": os.path.join(options.build, "bench", "peers"), "OMP_NUM_THREADS": str(len(options.cpus)),
            "MOEKIT_NUM_THREADS": str(len(options.cpus)), "PYTHONDONTWRITEBYTECODE": "1"}
        if peer_page.cpu_has("avx512f"):  # a processor that OpenBLAS does not know gets its oldest kernels
            self.environment.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
        self.log = open(os.path.join(folder, "log"), "w+", encoding="utf-8")
        names = [OURS, *(name for name in options.only if name != OURS)]
        self.processes = [Process(name, self.environment, self.log) for name in names]
        self.about, self.notes, self.drawn = {}, [], (None, None)

    def ceilings(self, problem):
        """Operations a second in registers and bytes a second from memory, as `moekit bench layer` finds them."""
        command = [os.path.join(self.options.build, "moekit"), "bench", "layer", f"e1,t1,d64,n64,k1,{problem.dtype}",
                   "--json", "--repeat", "3"]
        told = json.loads(subprocess.run(command, env=self.environment, check=True, capture_output=True).stdout)
        self.isa = told["isa"]
        return told["peak_gflops"] * 1e9, told["bandwidth_gbs"] * 1e9

    def admit(self, problem, work):
        """The processes that have this problem's layer and make of it what is right, and their errors."""
        admitted, errors = [], {}
        tokens = 1 if work == "decode" else problem.T
        for process in self.processes:
            about, why = process.ask(do="open", problem=problem.name, folder=self.folder, backward=work == "step",
                                     tokens=tokens, threads=len(self.options.cpus))
            if not why:
                self.about[process.name] = about
                found, why = process.ask(do="check")
            if why:
                self.note(problem, work, process, why)
                continue
            errors[process.name] = found
            if all(error < problem.bound() for error in found.values()):
                admitted.append(process)
            else:
                process.failed = True
                self.note(problem, work, process, f"its numbers are off: {found}")
        return admitted, errors

    def note(self, problem, work, process, why):
        self.notes.append({"problem": problem.name, "work": work, "peer": process.name, "why": why,
                           "failed": process.failed})
        print(f"  {process.name}: {why}", flush=True)

    def measure(self, problem, work):
        print(f"{problem.name} {work}", flush=True)
        numbers = dataclasses.replace(problem, name="", weights="")  # the same for all formats of the weights
        if self.drawn[0] != numbers:
            self.drawn = numbers, draw(problem)
            save(self.folder, self.drawn[1])
        save(self.folder, right(problem, self.drawn[1], work == "step"))
        met = len(numpy.unique(self.drawn[1]["expert"]))
        admitted, errors = self.admit(problem, work)
        turns = {process.name: [] for process in admitted}
        peak = bandwidth = 0
        for _ in range(self.options.turns):
            ceilings = self.ceilings(problem)
            peak, bandwidth = max(peak, ceilings[0]), max(bandwidth, ceilings[1])
            for process in list(admitted):
                times, why = process.ask(do="turn", seconds=self.options.seconds)
                if why:
                    self.note(problem, work, process, why)
                    admitted.remove(process)
                    del turns[process.name]
                else:
                    turns[process.name].append(statistics.median(times))
        for process in self.processes:
            process.ask(do="close")
        result = {"problem": problem.name, "work": work, "commit": commit(), "peak": peak, "bandwidth": bandwidth, "isa": self.isa,
                  "bound": self.bound(problem, work, met, peak, bandwidth), "errors": errors, "turns": turns}
        for name, times in turns.items():
            print(f"  {name:20s} {1e3 * statistics.median(times):10.3f} ms", flush=True)
        return result

    @staticmethod
    def bound(problem, work, met, peak, bandwidth):
        """Seconds that a run takes at least: its operations at the peak, or its weights, read once (with backward twice
        and their gradients written) at the rate of reading, whichever is longer."""
        if work == "decode":
            flop, moved = problem.flop(1), problem.K * problem.expert_bytes()
        else:
            flop, moved = problem.flop(problem.T), met * problem.expert_bytes()
        if work == "step":
            flop, moved = 3 * flop, 3 * moved
        return max(flop / peak, moved / bandwidth)

    def run(self):
        """All problems; what is known is published after each, so that little is lost if a later one is cut off, but
        nothing more once our own layer was wrong."""
        told = {"date": datetime.date.today().isoformat(), "cpu": peer_page.cpu_name(),
                "threads": len(self.options.cpus), "chapter": self.options.chapter, "turns": self.options.turns,
                "remark": self.options.remark, "about": self.about, "notes": self.notes, "results": []}
        if self.options.add:
            peer_page.keep(told, self.options.problem)
        for text, work in self.options.problem:
            told["results"].append(self.measure(parse(text), work))
            if self.options.page and ours_is_right(told):
                peer_page.publish(told)
        for process in self.processes:
            process.end()
        return told


def commit():
    told = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=peer_page.TREE,
                          capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def ours_is_right(run):
    return all(note["peer"] != OURS for note in run["notes"])


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, help="build folder with moekit and bench/peers")
    parser.add_argument("--cpus", help="0,1: the processor's numbers to run on; default: one thread of every core")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn, after a run that does not count")
    parser.add_argument("--only", default=",".join(PEERS), help="names of peers: " + ", ".join(PEERS))
    parser.add_argument("--problem", action="append",
                        help="like e16,t512,d2048,n768,k2,bf16=forward (step, decode); packed: ...,bf16,int8=decode")
    parser.add_argument("--remark", default="", help="a sentence about this run, for the page")
    parser.add_argument("--page", action="store_true", help="save the results and write docs/peers.md")
    parser.add_argument("--chapter", default="", help="a name: results and chapter apart from this machine's others")
    parser.add_argument("--add", action="store_true", help="keep the saved results of other problems")
    options = parser.parse_args()
    if options.turns < 1:
        parser.error("--turns is at least 1")
    options.cpus = [int(cpu) for cpu in options.cpus.split(",")] if options.cpus else physical_cores()
    options.only = options.only.split(",")
    options.problem = [tuple(text.rsplit("=", 1)) for text in options.problem] if options.problem else DEFAULT
    for name in options.only:
        if name not in PEERS:
            parser.error(f"no peer '{name}': " + ", ".join(PEERS))
    for problem in options.problem:
        if len(problem) != 2 or problem[1] not in PASSES:
            parser.error(f"'{'='.join(problem)}' does not end in =forward, =step or =decode")
        if problem[1] == "step" and parse(problem[0]).weights:
            parser.error(f"'{'='.join(problem)}': packed weights are not trained")
    return options


def main():
    options = parse_options()
    os.sched_setaffinity(0, options.cpus)  # the processes started from here inherit it
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        bench = Bench(options, folder)
        run = bench.run()
        if any(note["failed"] for note in run["notes"]):
            bench.log.seek(0)
            sys.stderr.write(bench.log.read())
    print(peer_page.machine(run))
    return int(not ours_is_right(run))


sys.exit(main())
