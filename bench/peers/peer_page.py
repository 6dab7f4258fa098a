"""docs/peers.md from the results in bench/results/peers-cpu-*.json: a chapter a run, a machine's newest first."""
import glob
import json
import os
import re
import statistics

from cpu_numbers import BOUND, parse
from peer_process import PEERS

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OURS = "moekit"
# what has to be shown at 256 rows an expert or more: dtype, pass, times as fast as the fastest of these peers
GOALS = [
    ("bf16", "forward", 2.0, ["oneDNN"]), ("bf16", "step", 2.5, ["PyTorch loop", "PyTorch grouped_mm"]),
    ("f32", "forward", 1.0, ["OpenBLAS"]),
]
WORK = {"forward": "forward", "step": "forward, backward", "decode": "decode"}

HEAD = """# Peers on a CPU

moekit's MoE layer beside other ways to run the same experts on a CPU. `make bench-peers` (`bench/peers/`) writes this
page, with a chapter for the newest run on each machine. An older run that has what the newest lacks may be kept; it
then follows and says so in its heading (`kept` in its file).

## How it was measured

- Every peer gets the same x, weights, routes and routing weights, and runs in a process of its own.
- Its y, dx and weight gradients are first compared with direct sums (to {f32:g} of the norm in f32, {bf16:g} in bf16,
  also with weights in 8 bits, {int4:g} with weights in 4). A peer that differs is not timed.
- Then the processes take turns. Each runs once unmeasured and then for a while; between turns the machine's ceilings
  are measured. A time is the median over turns of the median of a turn.
- Weights are laid out beforehand as the peer likes them. Weight gradients are stored anew, in the weights' dtype. Time
  stops when all outputs are in memory.

The peers:

- **moekit**: `moe_layer_forward` and `moe_layer_backward`, its router's scores included. Where a chapter says so, its
  bf16 weights are put in order once for inference (`moe_layer_quantize` with `bf16x2`, which loses no bit).
- **oneDNN, OpenBLAS, libxsmm**: one product per expert. Between the products run loops of our own on all threads
  (gather, swiglu, weighted sum; `bench/peers/peer_gemm.c`). For inference oneDNN reorders its weights once. The
  OpenBLAS and libxsmm of Debian have no bf16 product of whole matrices.
- **PyTorch loop**: rows sorted by expert, two `linear` per expert. **PyTorch grouped_mm**: one call for all experts.
- **Mixtral block** (`eager`), **Qwen3-MoE block** (`grouped_mm`): the sparse blocks of transformers, with the given
  routes instead of their routers.
- **kt-kernel**: `AMXBF16_MOE`, inference only.
- **ggml**: the CPU backend of llama.cpp, inference only (`bench/peers/peer_ggml.py`; `bench_peers.py --help` tells how
  to get it). It runs the graph that llama.cpp builds for a sparse block, router's scores included, with the given
  routes. Between operations numbers are f32. Weights are of type BF16, Q8_0 for int8 and Q4_0 for int4, in the layout
  that llama.cpp chooses for the machine. **ggml Q4_K** is the other type of 4 bits, which most files have; with
  llama.cpp's `--no-repack` it stays as the file has it, which is faster for many rows. Beside packed weights ggml
  rounds the rows to 8 bits as well, which we do not; a chapter with packed weights tells both errors. A call computes a
  graph of one layer, and ggml makes a pool of threads for it (the threads are OpenMP's and stay); llama.cpp has all
  layers in one graph.

How to read the tables:

- A problem's e, t, d, n, k are experts, tokens, model width, hidden width and experts per token. Loads are even unless
  a skew is named. "Rows" are rows per expert. With `int8` or `int4` at its end its weights are packed, in groups of 32.
- A cell has milliseconds and, in brackets, how many times ours that is. The ratio is taken turn by turn, since a busy
  moment of a shared machine meets both, and its median is shown; so it need not be the ratio of the two times. It has
  one decimal where the middle half of the turns spans a tenth of it or more.
- "Bound" is our share of what the machine allows: arithmetic at the unit's peak, or reading the weights from memory,
  whichever takes longer.
- "Commit" stands where rows of a chapter were measured at different times: moekit's code is of it, or a little older.
"""


def cpu_line(name):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(rf"^{name}\s*: (.*)$", file.read(), re.MULTILINE)
    return found[1] if found else ""


def cpu_name():
    return cpu_line("model name") or "unknown processor"


def cpu_has(feature):
    return feature in cpu_line("flags").split()


def median(result, name):
    return statistics.median(result["turns"][name]) if name in result["turns"] else None


def ratios(result, name):
    """Of the peer's time to ours, turn by turn, so that a busy moment meets both."""
    pairs = zip(result["turns"].get(name, []), result["turns"].get(OURS, []))
    return [theirs / ours for theirs, ours in pairs]


def ratio(result, name):
    return statistics.median(ratios(result, name))


def told_ratio(result, name):
    """With as many decimals as the turns agree on; a single turn tells of no spread."""
    turns = ratios(result, name)
    low, middle, high = statistics.quantiles(turns, n=4, method="inclusive") if len(turns) > 1 else (0, turns[0], 2)
    return f"{middle:.2f}" if high - low < 0.1 * middle else f"{middle:.1f}"


def cell(result, name):
    time = median(result, name)
    if time is None:
        return ""
    text = f"{1e3 * time:.4g}"
    return text if name == OURS or OURS not in result["turns"] else f"{text} ({told_ratio(result, name)})"


def table(run):
    names = [name for name in PEERS if any(name in result["turns"] for result in run["results"])]
    mixed = len({result.get("commit") for result in run["results"]}) > 1
    heads = ["problem", "pass", "rows"] + ["commit"] * mixed + ["bound"] + names
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for result in run["results"]:
        problem = parse(result["problem"])
        rows = problem.K if result["work"] == "decode" else problem.rows() / problem.E
        share = f"{100 * result['bound'] / median(result, OURS):.0f} %" if OURS in result["turns"] else ""
        each = "1" if result["work"] == "decode" else f"{rows:g}"
        commit = [f"`{result['commit']}`" if "commit" in result else ""] * mixed
        cells = [result["problem"], WORK[result["work"]], each, *commit, share] + [cell(result, name) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(run):
    lines = []
    for dtype, work, goal, peers in GOALS:
        found = []
        for result in run["results"]:
            problem = parse(result["problem"])
            many = problem.rows() / problem.E >= 256 and not problem.weights
            timed = [(ratio(result, peer), told_ratio(result, peer)) for peer in peers
                     if {peer, OURS} <= result["turns"].keys()]
            if problem.dtype == dtype and result["work"] == work and many and timed:
                found.append(min(timed))
        if found:
            (least, _), (most, _) = min(found), max(found)
            verdict = "met" if least >= goal else "met in part" if most >= goal else "missed"
            span = " to ".join(dict.fromkeys(told for _, told in (min(found), max(found))))
            whose = peers[0] if len(peers) == 1 else "the faster of " + " and ".join(peers)
            lines.append(f"- {dtype}, {WORK[work]}, 256 rows per expert: {span} times as fast as {whose}; the goal, "
                         f"{goal:g}, is {verdict}.")
    return "\n".join(lines)


def absent(run):
    """Why a peer was not timed, once where it is the same for all problems."""
    why = {}
    for note in run["notes"]:
        why.setdefault((note["peer"], note["why"]), []).append(f"{note['problem']} {note['work']}")
    lines = []
    for (peer, reason), where in why.items():
        everywhere = len(where) == len(run["results"])
        lines.append(f"- {peer}: {reason}" + ("" if everywhere else f" ({len(where)} of {len(run['results'])} rows)"))
    return "\n".join(lines)


def kept_rows(run):
    """Which rows an earlier run measured (keep)."""
    runs = {}
    for row in run["results"]:
        if "from" in row:
            runs.setdefault(row["from"], []).append(f"{row['problem']} {WORK[row['work']]}")
    return "\n".join(f"Of an earlier run ({when}): {'; '.join(rows)}." for when, rows in runs.items())


def errors(run):
    """How far y is off where weights are packed, by format; nothing where none are."""
    found = {}
    for result in run["results"]:
        problem = parse(result["problem"])
        for name in result["turns"]:
            off = found.setdefault(problem.weights or problem.dtype, {}).setdefault(name, [])
            off.append(result["errors"][name]["y"])
    if not any(parse(result["problem"]).weights for result in run["results"]):
        return ""
    told = [f"{weights}: " + ", ".join(f"{name} {100 * max(off):.2g} %" for name, off in by_name.items())
            for weights, by_name in found.items()]
    return f"Error of y, in norm, at most: {'; '.join(told)}."


def ceilings(run):
    best = {}
    for result in run["results"]:
        dtype = parse(result["problem"]).dtype
        peak, bandwidth, _ = best.get(dtype, (0, 0, ""))
        best[dtype] = max(peak, result["peak"]), max(bandwidth, result["bandwidth"]), result["isa"]
    return "; ".join(f"{dtype} {peak * 1e-9:.0f} GFLOP/s in registers, {bandwidth * 1e-9:.1f} GB/s read, `{isa}`"
                     for dtype, (peak, bandwidth, isa) in best.items())


def machine(run, file=None):
    versions = "; ".join(dict.fromkeys(", ".join(run["about"].values()).split(", ")))
    kept = f", {run['kept']}" if "kept" in run else ""
    chapter = f", {run['chapter']}" if run.get("chapter") else ""
    threads = f"{run['threads']} thread" + ("s" if run["threads"] > 1 else "")
    parts = [f"## {run['cpu']}, {threads}, {run['date']}{chapter}{kept}",
             f"{run['turns']} turns. Ceilings: {ceilings(run)}. {run['remark']}".strip(),
             table(run), kept_rows(run), errors(run), goals(run),
             f"Versions: {versions}." + (f" Raw: `bench/results/{file}`." if file else "")]
    if run["notes"]:
        parts.append("Not timed:\n\n" + absent(run))
    return "\n\n".join(part for part in parts if part) + "\n"


def saved(run):
    """A machine's file, or one of its chapter's with so many threads."""
    name = run["cpu"] + (f" {run['chapter']} {run['threads']}" if run.get("chapter") else "")
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", name).lower()).strip("-")
    return os.path.join(TREE, "bench", "results", f"peers-cpu-{slug}.json")


def keep(run, problems):
    """Takes over what this machine's saved run has of other problems, if there is one; each row says of which run."""
    if not os.path.exists(saved(run)):
        return
    with open(saved(run), encoding="utf-8") as file:
        before = json.load(file)
    run["about"].update(before["about"])
    for what in ("notes", "results"):
        run[what].extend(row for row in before[what] if (row["problem"], row["work"]) not in problems)
    for row in run["results"]:
        if (row["problem"], row["work"]) not in problems:
            row.setdefault("from", f"{before['date']}, {before['turns']} turns")


def publish(run):
    with open(saved(run), "w", encoding="utf-8") as file:
        json.dump(run, file, indent=1)
        file.write("\n")
    write_page()


def page():
    folder = os.path.join(TREE, "bench", "results")
    runs = []
    for path in sorted(glob.glob(os.path.join(folder, "peers-cpu-*.json"))):
        with open(path, encoding="utf-8") as file:
            runs.append((os.path.basename(path), json.load(file)))
    runs.sort(key=lambda named: named[1]["date"], reverse=True)
    runs.sort(key=lambda named: (named[1]["cpu"], "kept" in named[1], named[1].get("chapter", ""),
                               -named[1]["threads"]))
    chapters = [machine(run, name) for name, run in runs]
    return HEAD.format(**BOUND) + "\n" + "\n".join(chapters)


def write_page():
    """Also for itself: python3 bench/peers/peer_page.py"""
    with open(os.path.join(TREE, "docs", "peers.md"), "w", encoding="utf-8") as file:
        file.write(page())


if __name__ == "__main__":
    write_page()
