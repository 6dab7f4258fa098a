#!/usr/bin/env python3
"""docs/peers-gpu.md and its picture are what bench/gpu/peers_page.py makes of the saved turns, to the letter."""
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

failed = 0
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "bench/gpu/peers_page.py", folder], check=True)
    xml.etree.ElementTree.parse(os.path.join(folder, "peers-gpu.svg"))
    for name in ("peers-gpu.md", "peers-gpu.svg"):
        with open(os.path.join(folder, name), encoding="utf-8") as made, open(f"docs/{name}", encoding="utf-8") as kept:
            if made.read() != kept.read():
                failed += 1
                print(f"FAIL docs/{name} is not of bench/results/peers-gpu.json: run bench/gpu/peers_page.py")
print(f"{'FAIL' if failed else 'ok'}: {2 - failed} passed, {failed} failed")
sys.exit(failed > 0)
