#!/usr/bin/env python3
"""docs/peers-gpu.md and its picture from bench/results/peers-gpu.json, which peers.py --save writes.

Of each problem the medians of all turns; a figure is TFLOP/s of the experts' products forward, backward (a step less a
forward), both. Run: python3 bench/gpu/peers_page.py [FOLDER: docs]
"""
import json
import os
import statistics
import sys

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAVED = os.path.join("bench", "results", "peers-gpu.json")
OURS, BOUND, RIVAL = "moekit", "bound", "sonicmoe"
LOADS = ("drawn evenly", "dealt in turn")  # come first; the picture is of the first
LABEL = {OURS: "moekit", BOUND: "dense bound (cuBLAS)", RIVAL: "SonicMoE", "sigma": "sigma-MoE's Triton layer"}

HEAD = """# Peers on a GPU

moekit's MoE layer beside others on one GPU, in bf16, router included. `bench/gpu/peers_page.py` writes this page from
what `bench/gpu/peers.py --save {saved}` measured. How the kernels work and what limits them:
[kernels-cuda.md](kernels-cuda.md).

![TFLOP/s forward and backward, each shape: SonicMoE, moekit and the dense bound](peers-gpu.svg)

## How it was measured

- All peers of a shape take turns in one process, and medians count.
- Before a layer is timed, its y and all its gradients are compared with f32.
- Before each turn come up to 20 products of 8192^3. They hide the launches and tell what the card does in that minute.
  Then 256 MiB are written, so that L2 is cold.
- Backward is the time of a step less that of a forward.
- FLOPs are those of the experts' products alone.
- Weight gradients are stored anew in every step, those of experts in bf16, for all peers alike.
- The bound is cuBLAS batched products of the same sizes with even rows: no router, gather, activation or sum.
- Experts are drawn like a router's, each as likely as the others. Where they are dealt in turn instead, groups of
  experts have the very same tokens, whose rows are then read from L2.

In the tables, f / b / both are TFLOP/s forward, backward and both together. "Of the bound" is our rate for both as a
share of the dense bound's. "Takes" is the peer's time forward and backward, as multiples of ours.
"""


def times(row, peer):
    """Medians of forward, backward and both, in seconds; None where it was not timed."""
    turns = row["timed"].get(peer)
    if not turns:
        return None
    forward, step = statistics.median(turns["forward"]), statistics.median(turns["step"])
    return forward, step - forward, step


def rates(row, peer):
    """TFLOP/s forward, backward, both."""
    return [share * row["flop"] * 1e-12 / time for share, time in zip((1, 2, 3), times(row, peer))]


def cell(row, peer):
    return " / ".join(f"{rate:.0f}" for rate in rates(row, peer)) if times(row, peer) else ""


def takes(row, peer):
    ours, theirs = times(row, OURS), times(row, peer)
    return f"{theirs[0] / ours[0]:.2f}, {theirs[1] / ours[1]:.2f} x" if ours and theirs else ""


def table(rows, peer):
    lines = [f"| shape | 8192^3 | bound f / b / both | moekit f / b / both | of the bound | {LABEL[peer]} f / b / both | takes |",
             "|---" * 7 + "|"]
    for row in rows:
        share = f"{100 * times(row, BOUND)[2] / times(row, OURS)[2]:.1f} %" if BOUND in row["timed"] else ""
        lines.append(f"| {row['problem']} | {row['rate'] * 1e-12:.0f} | {cell(row, BOUND)} | {cell(row, OURS)} | {share} | "
                     f"{cell(row, peer)} | {takes(row, peer)} |")
    return "\n".join(lines)


def chapter(rows, peer, load):
    some = [row for row in rows if times(row, peer) and row["load"] == load]
    if not some:
        return ""
    shown = [row["problem"] for row in some if not row["hidden"]]
    note = f"\nThe launches of {' and '.join(shown)} were not hidden: they took longer than the products ahead of them.\n" if shown else ""
    return f"## {LABEL[peer]}, experts {load}\n\n{verdict(some, peer)}\n\n{table(some, peer)}\n{note}"


def verdict(rows, peer):
    """How often we are ahead, and by how much."""
    both = [(times(row, OURS), times(row, peer)) for row in rows if times(row, OURS) and times(row, peer)]
    parts = []
    for i, name in enumerate(("forward", "backward")):
        ratios = [theirs[i] / ours[i] for ours, theirs in both]
        parts.append(f"{name} in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} shapes "
                     f"({min(ratios):.2f} to {max(ratios):.2f} times our time, median {statistics.median(ratios):.2f})")
    return f"{LABEL[peer]} is slower " + ", ".join(parts) + "."


def software(rows):
    seen = dict.fromkeys(row["timed"][peer]["about"] for row in rows for peer in row["timed"])
    return "; ".join(seen)


SVG_STYLE = ("text{font:12px system-ui,sans-serif;fill:#1b2125}.soft{fill:#58636c}.grid{stroke:#dfddd5}"
             f".{OURS}{{fill:#086a72}}.{RIVAL}{{fill:#d08a3c}}.{BOUND}{{fill:#c9ced1}}"
             "@media(prefers-color-scheme:dark){text{fill:#e5e8ea}.soft{fill:#9da8b0}.grid{stroke:#333c43}"
             f".{OURS}{{fill:#5fcdc4}}.{RIVAL}{{fill:#f0b660}}.{BOUND}{{fill:#56626b}}}}")
BAR, GAP, LEFT, TOP, WIDTH, BETWEEN, SPAN = 7, 9, 92, 62, 330, 44, 800  # SPAN: TFLOP/s at the right end of a panel


def panel(rows, which, x):
    """One of forward and backward: three bars a shape, from the left edge x."""
    out = [f'<text x="{x}" y="{TOP - 12}">{("forward", "backward")[which]}, TFLOP/s</text>']
    bottom = TOP + len(rows) * (3 * BAR + GAP)
    for tick in range(0, SPAN + 1, 200):
        at = x + WIDTH * tick / SPAN
        out.append(f'<line class="grid" x1="{at:g}" x2="{at:g}" y1="{TOP - 4}" y2="{bottom}"/>'
                   f'<text class="soft" x="{at:g}" y="{bottom + 14}" text-anchor="middle">{tick}</text>')
    for i, row in enumerate(rows):
        for j, peer in enumerate((RIVAL, OURS, BOUND)):
            if times(row, peer):
                rate = rates(row, peer)[which]
                out.append(f'<rect class="{peer}" x="{x}" y="{TOP + i * (3 * BAR + GAP) + j * BAR}" '
                           f'width="{WIDTH * rate / SPAN:.1f}" height="{BAR - 1}"><title>{row["problem"]}, {LABEL[peer]}: '
                           f'{rate:.0f} TFLOP/s</title></rect>')
    return out


def picture(rows):
    height, width = TOP + len(rows) * (3 * BAR + GAP) + 26, LEFT + 2 * (WIDTH + BETWEEN)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
           f"<title>The MoE layer on {rows[0]['card']}</title><style>{SVG_STYLE}</style>"]
    for i, peer in enumerate((RIVAL, OURS, BOUND)):
        out.append(f'<rect class="{peer}" x="{LEFT + 170 * i}" y="12" width="12" height="12"/>'
                   f'<text x="{LEFT + 18 + 170 * i}" y="22">{LABEL[peer]}</text>')
    for i, row in enumerate(rows):
        out.append(f'<text x="{LEFT - 8}" y="{TOP + i * (3 * BAR + GAP) + 15}" text-anchor="end">{row["problem"]}</text>')
    out += panel(rows, 0, LEFT) + panel(rows, 1, LEFT + WIDTH + BETWEEN)
    return "\n".join(out + ["</svg>", ""])


def main(folder):
    with open(os.path.join(TREE, SAVED), encoding="utf-8") as file:
        rows = [row for row in json.load(file) if OURS in row["timed"]]
    for row in rows:
        for peer, turns in row["timed"].items():
            if {len(turns["forward"]), len(turns["step"])} != {row["rounds"]}:
                sys.exit(f"peers_page.py: {SAVED}: {row['problem']}, {peer}: not {row['rounds']} turns")
    drawn = [row for row in rows if times(row, RIVAL) and row["load"] == LOADS[0]]
    if not drawn:
        sys.exit(f"peers_page.py: {SAVED} has no shape with {LABEL[RIVAL]}, experts {LOADS[0]}: nothing to draw")
    parts = [HEAD.format(saved=SAVED)]
    loads = dict.fromkeys(LOADS + tuple(row["load"] for row in rows))
    parts += [text for peer in (RIVAL, "sigma") for load in loads if (text := chapter(rows, peer, load))]
    parts.append("## Shapes\n\n" + "\n".join(f"- {line}" for line in dict.fromkeys(row["sizes"] for row in rows)) + "\n")
    about = dict.fromkeys(f"{row['date']}, {row['card']}, torch {row['torch']}, {row['rounds']} turns" for row in rows)
    parts.append(f"{'; '.join(about)}. {software(rows)}. Raw: `{SAVED}`.\n")
    for name, text in (("peers-gpu.md", "\n".join(parts)),
                       ("peers-gpu.svg", picture(drawn))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(TREE, "docs"))
