#!/usr/bin/env python3
"""The comparison with peers (bench/peers) works here: our layer passes its check, wrong weights do not.

Tiny problems; of the peers only ours and those made of C libraries, which start quickly.
Runs under $MOEKIT_PYTHON where that is set. Exit code 77: numpy is not installed.
"""
import json
import os
import subprocess
import sys

import need

need.modules("numpy")

import numpy as np

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.dirname(os.environ["MOEKIT"])
sys.path.insert(0, os.path.join(TREE, "bench", "peers"))
sys.dont_write_bytecode = True
os.environ["PEERS_FOLDER"] = os.path.join(BUILD, "bench", "peers")

if not os.path.exists(os.path.join(os.environ["PEERS_FOLDER"], "peer_moekit.so")):
    print("skipped: tests/python/test_peers.py: built for a sanitizer or another machine, without bench/peers")
    sys.exit(77)

import peer_page  # noqa: E402
from peer_c import CPeer  # noqa: E402
from cpu_numbers import BOUND, distance, draw, parse, right  # noqa: E402

PROBLEMS = ("e5,t37,d24,n20,k2,skew=zipf1.0,f32", "e5,t37,d24,n20,k2,bf16")


PACKED = ("e5,t37,d64,n96,k2,bf16,int8", "e5,t37,d64,n96,k2,bf16,int4", "e5,t37,d64,n96,k2,f32,int8")


def errors(text, spoil):
    problem = parse(text)
    backward = not problem.weights
    numbers = draw(problem)
    wanted = right(problem, numbers, backward)
    if spoil:
        numbers["w1"] = np.roll(numbers["w1"], 1, axis=0)
    peer = CPeer("moekit", problem, numbers, backward, problem.T, 2)
    peer.run(0)
    found = {name: distance(value, wanted[name]) for name, value in peer.outputs().items()}
    peer.close()
    return found


for text in PROBLEMS + PACKED:
    problem = parse(text)
    bound = problem.bound()
    found = errors(text, spoil=False)
    wanted = {"y"} if problem.weights else {"y", "dx", "dw1", "dw2"}
    assert found.keys() == wanted and max(found.values()) < bound, (text, found)
    assert not problem.weights or found["y"] > BOUND[problem.dtype] / 10, f"{text}: too near to be packed"
    assert min(errors(text, spoil=True).values()) > bound, f"{text}: weights of other experts passed"
    print(f"ok: {text}: off by {max(found.values()):.1e} at most, wrong weights are found out")

with open(os.path.join(TREE, "docs", "peers.md"), encoding="utf-8") as file:
    assert file.read() == peer_page.page(), "docs/peers.md is not of bench/results/: run bench/peers/peer_page.py"
print("ok: docs/peers.md is what was measured")


def row(form, off):
    return {"problem": f"e4,t1,d64,n32,k2,bf16{form}", "work": "decode", "peak": 1e9, "bandwidth": 1e9, "isa": "ref",
            "bound": 1e-3, "turns": {"moekit": [2e-3, 4e-3], "ggml": [3e-3, 4e-3]},
            "errors": {"moekit": {"y": off}, "ggml": {"y": 2 * off}}}


run = {"cpu": "A (R) CPU", "threads": 1, "chapter": "Beside B", "date": "2026-01-01", "turns": 2, "remark": "",
       "about": {}, "notes": [], "results": [row("", 1e-3), row(",int4", 0.1)]}
assert os.path.basename(peer_page.saved(run)) == "peers-cpu-a-cpu-beside-b-1.json", peer_page.saved(run)
for said in ("## A (R) CPU, 1 thread, 2026-01-01, Beside B\n",
             "| e4,t1,d64,n32,k2,bf16,int4 | decode | 1 | 33 % | 3 | 3.5 (1.2) |",
             "at most: bf16: moekit 0.1 %, ggml 0.2 %; int4: moekit 10 %, ggml 20 %."):
    assert said in peer_page.machine(run), (said, peer_page.machine(run))
run["results"][1]["commit"] = "abc1234"
for said in ("| problem | pass | rows | commit | bound | moekit | ggml |", "| 1 |  | 33 % | 3 |", "| 1 | `abc1234` | 33 % | 3 |"):
    assert said in peer_page.machine(run), (said, peer_page.machine(run))
for turns, told in (([1.25, 1.25, 1.25], "1.25"), ([1.2, 1.26, 1.3], "1.26"), ([1.1, 1.26, 1.4], "1.3"), ([1.26], "1.3")):
    found = peer_page.told_ratio({"turns": {"moekit": [1.0] * len(turns), "ggml": turns}}, "ggml")
    assert found == told, (turns, found, told)
assert peer_page.errors(run | {"results": run["results"][:1]}) == "", "errors where no weights are packed"
print("ok: a chapter of its own, with errors")

FOLDER = os.path.join(TREE, "bench", "peers")
for words, text in ((["--turns", "0"], "--turns is at least 1"),
                    (["--problem", f"{PACKED[0]}=step"], "packed weights are not trained")):
    refused = subprocess.run([sys.executable, os.path.join(FOLDER, "bench_peers.py"), "--build", BUILD, *words],
                             stderr=subprocess.PIPE, text=True)
    assert refused.returncode == 2 and text in refused.stderr, refused
# a KeyError is a fault, and not a peer that is not here
answer = subprocess.run([sys.executable, os.path.join(FOLDER, "peer_process.py"), "nobody"], input='{"do": "close"}\n',
                        stdout=subprocess.PIPE, text=True, check=True).stdout
assert json.loads(answer) == {"failed": "KeyError: 'nobody'"}, answer


def bench(peers, *problems, **environment):
    """What it prints."""
    told = subprocess.run(
        [sys.executable, os.path.join(FOLDER, "bench_peers.py"), "--build", BUILD, "--turns", "1", "--seconds", "0",
         "--only", peers, *(f"--problem={problem}" for problem in problems)],
        env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(told)
    assert "numbers are off" not in told
    rows = [line.split("|") for line in told.splitlines() if line.startswith("| e5")]
    assert len(rows) == len(problems) and all(float(row[5].split()[0]) > 0 for row in rows), "no time of ours"
    return told


bench("moekit,oneDNN,OpenBLAS,libxsmm,ggml", *(f"{text}=step" for text in PROBLEMS), "e5,t6,d24,n20,k2,f32=decode",
      "e5,t6,d64,n96,k2,bf16=decode", *(f"{text}=forward" for text in PACKED))
assert "- ggml: no /nowhere/libggml-base.so" in bench("moekit,ggml", f"{PACKED[0]}=forward", GGML_FOLDER="/nowhere")
