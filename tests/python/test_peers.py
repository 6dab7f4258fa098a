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


def errors(text, spoil):
    problem = parse(text)
    numbers = draw(problem)
    wanted = right(problem, numbers, backward=True)
    if spoil:
        numbers["w1"] = np.roll(numbers["w1"], 1, axis=0)
    peer = CPeer("moekit", problem, numbers, True, problem.T, 2)
    peer.run(0)
    found = {name: distance(value, wanted[name]) for name, value in peer.outputs().items()}
    peer.close()
    return found


for text in PROBLEMS:
    bound = BOUND[parse(text).dtype]
    found = errors(text, spoil=False)
    assert found.keys() == {"y", "dx", "dw1", "dw2"} and max(found.values()) < bound, (text, found)
    assert min(errors(text, spoil=True).values()) > bound, f"{text}: weights of other experts passed"
    print(f"ok: {text}: off by {max(found.values()):.1e} at most, wrong weights are found out")

with open(os.path.join(TREE, "docs", "peers.md"), encoding="utf-8") as file:
    assert file.read() == peer_page.page(), "docs/peers.md is not of bench/results/: run bench/peers/peer_page.py"
print("ok: docs/peers.md is what was measured")

FOLDER = os.path.join(TREE, "bench", "peers")
refused = subprocess.run([sys.executable, os.path.join(FOLDER, "bench_peers.py"), "--build", BUILD, "--turns", "0"],
                         stderr=subprocess.PIPE, text=True)
assert refused.returncode == 2 and "--turns is at least 1" in refused.stderr, refused
# a KeyError is a fault, and not a peer that is not here
answer = subprocess.run([sys.executable, os.path.join(FOLDER, "peer_process.py"), "nobody"], input='{"do": "close"}\n',
                        stdout=subprocess.PIPE, text=True, check=True).stdout
assert json.loads(answer) == {"failed": "KeyError: 'nobody'"}, answer

told = subprocess.run(
    [sys.executable, os.path.join(FOLDER, "bench_peers.py"), "--build", BUILD, "--turns", "1",
     "--seconds", "0", "--only", "moekit,oneDNN,OpenBLAS,libxsmm", *(f"--problem={text}=step" for text in PROBLEMS),
     "--problem=e5,t6,d24,n20,k2,f32=decode"], stdout=subprocess.PIPE, text=True, check=True).stdout
print(told)
rows = [line.split("|") for line in told.splitlines() if line.startswith("| e5")]
assert len(rows) == 3 and all(float(row[5].split()[0]) > 0 for row in rows), "a time of ours in every row"
assert "numbers are off" not in told
