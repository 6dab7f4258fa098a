#!/usr/bin/env python3
"""bench/gpu/peers.py on a CPU: its list, what it refuses, and that our layer agrees with its reference, both activations.

Runs under $MOEKIT_PYTHON where that is set. Exit code 77: torch is not installed.
"""
import json
import os
import subprocess
import sys
import tempfile

python = os.environ.get("MOEKIT_PYTHON", sys.executable)
if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode:
    print(f"skipped: tests/python/test_gpu_peers.py: no module named 'torch' in {python}")
    sys.exit(77)

build = os.path.dirname(os.path.abspath(os.environ["MOEKIT"]))
environment = dict(os.environ, MOEKIT_LIBRARY=os.path.join(build, "libmoekit.so"))
n_expected, failed = 0, 0

# A peer that raises what nobody expects, at its first step (when it is checked) or a later one (when it is timed).
ODD_PEER = """
import sys
sys.path.insert(0, "bench/gpu")
import peer_layers, peers

class Odd(peer_layers.Ours):
    left = int(sys.argv.pop())

    def step(self):
        Odd.left -= 1
        if Odd.left == 0:
            raise KeyError("no such kernel")
        super().step()

peer_layers.PEERS["liger"] = Odd
sys.exit(peers.main())
"""
EVEN_LOADS = """
import dataclasses, sys
sys.path.insert(0, "bench/gpu")
from gpu_numbers import PROBLEMS, published
assert published("sonicmoe", PROBLEMS[3]) == (363, 404)
assert published("sonicmoe", dataclasses.replace(PROBLEMS[3], zipf=1.0)) is None
"""


def run(*words, program=("bench/gpu/peers.py",)):
    return subprocess.run([python, *program, *words], capture_output=True, text=True, env=environment, check=False)


def expect(what, right, answer):
    global n_expected, failed
    n_expected += 1
    if not right:
        failed += 1
        print(f"FAIL {what}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}")


answer = run("--list")
expect("list", answer.returncode == 0 and "7B-n256: T 24576, d 1536, n 256, E 128, K 8, swiglu" in answer.stdout, answer)
for words, text in ((["7b"], "neither of"), (["8,8,8,2,3"], "neither of"), (["--peers", "theirs"], "no peer 'theirs'"),
                    (["--skew", "odd"], "neither even nor like"), (["--skew", "zipfx"], "followed by its exponent")):
    answer = run(*words)
    expect(f"refusal of {words}", answer.returncode != 0 and text in answer.stderr, answer)
answer = run("--device", "cpu", "--rounds", "1", "--peers", "moekit,bound,sigma", "96,64,32,8,2", "96,64,32,8,3,relu")
timed = [line.split()[:2] for line in answer.stdout.splitlines() if " ms " in line and line.endswith("x")]
expect("trial", answer.returncode == 0 and timed == [["96,64,32,8,2", "moekit"], ["96,64,32,8,2", "bound"],
                                                     ["96,64,32,8,3,relu", "moekit"], ["96,64,32,8,3,relu", "bound"]],
       answer)
answer = run("--device", "cpu", "--rounds", "1", "--peers", "moekit,moekit-adds", "--skew", "zipf1", "96,64,32,8,2")
expect("zipf", answer.returncode == 0 and "drawn by zipf 1" in answer.stdout
       and any(line.split()[1:2] == ["moekit-adds"] and line.endswith("x") for line in answer.stdout.splitlines()), answer)
for step in ("1", "3"):
    answer = run("--device", "cpu", "--rounds", "2", "--peers", "liger,moekit", "96,64,32,8,2", step,
                 program=("-c", ODD_PEER))
    rows = [line for line in answer.stdout.splitlines() if line.startswith("96,64,32,8,2 ")]
    expect(f"a peer that fails at step {step}", answer.returncode == 0 and len(rows) == 2
           and rows[0].endswith("not run: KeyError: 'no such kernel'") and rows[1].endswith("x"), answer)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "saved.json")
    for peers, skew, problems in (("moekit,bound", "zipf0", ["96,64,32,8,2", "64,32,16,4,2"]),
                                  ("moekit", "zipf0", ["96,64,32,8,2"]), ("moekit", "even", ["64,32,16,4,2"])):
        answer = run("--device", "cpu", "--rounds", "2", "--peers", peers, "--skew", skew, "--save", path, *problems)
    with open(path, encoding="utf-8") as file:
        saved = {(row["problem"], row["load"]): row["timed"] for row in json.load(file)}
    expect("saved turns: a problem again replaces its own, of the same load", answer.returncode == 0
           and {key: list(timed) for key, timed in saved.items()} == {
               ("64,32,16,4,2", "drawn evenly"): ["moekit", "bound"], ("64,32,16,4,2", "dealt in turn"): ["moekit"],
               ("96,64,32,8,2", "drawn evenly"): ["moekit"]}
           and len(saved["96,64,32,8,2", "drawn evenly"]["moekit"]["step"]) == 2, answer)
answer = run(program=("-c", EVEN_LOADS))
expect("authors' figures", answer.returncode == 0, answer)
print(f"{'FAIL' if failed else 'ok'}: {n_expected - failed} passed, {failed} failed")
sys.exit(failed > 0)
