#!/bin/bash
# What can be told of the pages without reading them: links and raw files lead somewhere, a table's rows have as many
# cells as its head (else no renderer shows a table), the README's program is the first example, its commands exist.
set -uo pipefail
failed=0
complain() {
    echo "$1"
    failed=1
}

for page in README.md CONTRIBUTING.md docs/*.md; do
    while read -r link; do
        [ -e "$(dirname "$page")/$link" ] || complain "$page: the link to '$link' leads nowhere"
    done < <(grep -oE '\]\([^)#]+' "$page" | sed 's/^](//' | grep -v '^https\?:' || true)
    while read -r raw; do
        compgen -G "bench/results/$raw" >/dev/null || complain "$page: there is no bench/results/$raw"
    done < <(grep -oE '`(bench/results/)?[a-z0-9*-]+\.(txt|json)`' "$page" | tr -d '`' | grep -E '^bench/results/|-20[0-9]{2}-' |
        sed 's,^bench/results/,,')
    awk -v page="$page" '
        /^ *```/ { code = !code }
        code || !/^ *\|/ { cells = 0; next }
        {
            text = $0
            gsub(/`[^`]*`/, "", text)
            n = gsub(/\|/, "", text)
            if (cells && n != cells) { printf "%s:%d: %d cells, and %d in the head\n", page, NR, n - 1, cells - 1; bad = 1 }
            if (!cells) cells = n
        }
        END { exit bad }' "$page" || failed=1
done

diff <(awk '/^```c$/ { on = 1; next } /^```/ { on = 0 } on' README.md) \
    <(tail -n +2 examples/01_layer.c) || complain "README.md: its program is not examples/01_layer.c"
for goal in $(grep -ohE '(^|`)make [a-z-]+' README.md CONTRIBUTING.md docs/*.md | awk '{ print $2 }' | sort -u); do
    grep -q "^$goal:" Makefile || complain "a page speaks of 'make $goal', which the Makefile does not have"
done
for preset in $(grep -ohE -- '--preset [a-z]+' README.md CONTRIBUTING.md docs/*.md | awk '{ print $2 }' | sort -u); do
    grep -q "{\"name\": \"$preset\", \"configurePreset\"" CMakePresets.json ||
        complain "a page speaks of the preset '$preset', which CMakePresets.json does not have"
done
exit $failed
