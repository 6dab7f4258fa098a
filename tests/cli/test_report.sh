#!/bin/bash
# A report as a browser sees it. Pages of a real small run, and of two made-up ones (3 layers of 8 experts, 48 of
# 128), are parsed strictly and opened in headless Chromium at four widths, light and dark: nothing may stick
# out of the page, no letters in a picture may overlap, and text must stand out from its ground.
set -euo pipefail
moekit=${MOEKIT:?the command to test}
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "skipped: chromium is not installed"
    exit 77
}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

fail() {
    echo "FAIL $*"
    failed=1
}

# A text of words in a row that a model can learn a little of.
words() { # LINES
    awk -v lines="$1" 'BEGIN {
        n = split("in the beginning was a word and it came to pass that men spoke of rivers stones houses", word, " ")
        for (i = 0; i < lines; ++i) {
            for (j = 0; j < 9; ++j) printf "%s ", word[(i * 7 + j * (i % 5 + 1)) % n + 1]
            print "."
        }
    }'
}

real_run() { # DIR
    words 1000 >"$dir/train.txt"
    words 150 >"$dir/heldout.txt"
    "$moekit" train --run "$1" data.train="$dir/train.txt" data.eval="$dir/heldout.txt" model.d_model=32 \
        model.n_layers=2 model.n_heads=2 model.context=64 moe.num_experts=4 moe.expert_hidden_size=32 \
        train.steps=40 train.batch_size=4 train.eval_every=10 train.log_every=1 train.load_every=2
    "$moekit" eval --run "$1"
    "$moekit" generate --run "$1" -n 100
}

# The page holds all it needs: no script, nothing fetched, well-formed as XML, and every section.
check_markup() { # FILE
    if grep -q -i -E '<script|javascript:|[ :]on[a-z]+="|https?:|src=|url\(|@import|<link' "$1"; then
        fail "$1: has a script or reaches outside itself"
    fi
    for id in training load balance layers tokens sample configuration environment; do
        grep -q "<section id=\"$id\"" "$1" || fail "$1: lacks the section $id"
    done
    if command -v xmllint >/dev/null; then
        xmllint --noout --nonet "$1" || fail "$1: not well-formed"
    elif command -v python3 >/dev/null; then
        python3 -c 'import sys, xml.dom.minidom as d; d.parse(sys.argv[1])' "$1" || fail "$1: not well-formed"
    else
        echo "not checked, for lack of xmllint and python3: well-formed XML"
    fi
}

# A page of ours that holds the report in a frame, makes it as wide as each screen, and writes what it measures into
# its title.
write_probe() { # REPORT
    cat >"$dir/probe.html" <<'PROBE'
<!DOCTYPE html><html><head><title>nothing measured</title></head><body><script>
function light(color) {
    const c = color.match(/[\d.]+/g).slice(0, 3).map(x => x / 255);
    const l = c.map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
}
function contrast(a, b) {
    return (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
}
function overlaps(svg) {
    const box = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect());
    let n = 0;
    for (let i = 0; i < box.length; ++i)
        for (let j = i + 1; j < box.length; ++j)
            if (box[i].left + 1 < box[j].right && box[j].left + 1 < box[i].right &&
                box[i].top + 3 < box[j].bottom && box[j].top + 3 < box[i].bottom) ++n;
    return n;
}
function measure(doc, width) {
    const faults = [], view = doc.documentElement, style = e => doc.defaultView.getComputedStyle(e);
    const ground = style(doc.body).backgroundColor;
    if (view.scrollWidth > view.clientWidth) faults.push("page is " + view.scrollWidth + " wide");
    for (const e of doc.querySelectorAll("body :not(.wide *)")) {
        const box = e.getBoundingClientRect();
        if (box.right > view.clientWidth + 0.5 || box.left < -0.5) faults.push(e.tagName + " sticks out");
    }
    for (const svg of doc.querySelectorAll("svg")) {
        const n = overlaps(svg);
        if (n) faults.push(n + " texts overlap in " + svg.querySelector("title").textContent);
    }
    for (const e of doc.querySelectorAll("h1, h2, p, li, dt, td, th, a, small, summary"))
        if (contrast(style(e).color, ground) < 4.5) faults.push("faint " + e.tagName + "." + e.className);
    for (const e of doc.querySelectorAll(".line"))
        if (contrast(style(e).stroke, ground) < 3) faults.push("faint line " + e.className.baseVal);
    return width + " " + (light(ground) > 0.5 ? "light" : "dark") + ": " + ([...new Set(faults)].join(", ") || "good");
}
const frame = document.createElement("iframe");
frame.onload = () => {
    const said = [];
    for (const width of [360, 380, 1024, 1600]) {
        frame.style = "border:0;height:800px;width:" + width + "px";
        said.push(measure(frame.contentDocument, width));
    }
    document.title = said.join("; ");
};
frame.src = "REPORT";
document.body.append(frame);
</script></body></html>
PROBE
    sed -i "s,REPORT,$1," "$dir/probe.html"
}

check_looks() { # FILE
    write_probe "$1"
    for scheme in 0 1; do # dark, light
        local said expected=light
        [ $scheme = 1 ] || expected=dark
        said=$("$browser" --headless=new --no-sandbox --disable-gpu --user-data-dir="$dir/profile" \
            --allow-file-access-from-files --blink-settings=preferredColorScheme=$scheme \
            --virtual-time-budget=20000 --dump-dom "file://$dir/probe.html" 2>"$dir/browser.log" |
            sed -n 's,.*<title>\(.*\)</title>.*,\1,p')
        echo "$1: $said"
        [ "$(grep -o "[0-9]* $expected: good" <<<"$said" | wc -l)" = 4 ] || fail "$1, $expected: $said"
    done
}

mkdir "$dir/runs"
real_run "$dir/runs/real" >"$dir/log" 2>&1 || { cat "$dir/log" && exit 1; }
made_up=$(dirname "$moekit")/tests/unit.report.test_report
if [ -x "$made_up" ]; then
    "$made_up" "$dir/runs"
else
    echo "not checked, for lack of $made_up: made-up runs"
fi
for run in "$dir"/runs/*; do
    page=$("$moekit" report --run "$run")
    check_markup "$page"
    check_looks "$page"
done
exit $failed
