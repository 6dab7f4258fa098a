#!/bin/bash
# get-kjv.sh [DIR]: the King James text (public domain, Debian package bible-kjv) as training data.
# One verse a line, "Ge1:1 In the beginning ...". Every tenth chapter, counted through the whole book,
# goes to DIR/heldout.txt, the others to DIR/train.txt. DIR is data/kjv where not given.
set -euo pipefail
dir=${1:-$(dirname "$0")/../data/kjv}
sha256=cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d

command -v bible >/dev/null || { echo "get-kjv: the command 'bible' is missing: apt-get install bible-kjv" >&2; exit 3; }
mkdir -p "$dir"
new=$(mktemp -d "$dir/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT

bible -f 'gen1:1-rev22:21' </dev/null >"$new/kjv.txt"
if ! echo "$sha256  $new/kjv.txt" | sha256sum --check --status; then
    echo "get-kjv: this text is not the expected one: $(wc -c <"$new/kjv.txt") bytes, sha256" \
        "$(sha256sum <"$new/kjv.txt" | cut -d' ' -f1); expected 4404412 bytes, $sha256" >&2
    exit 3
fi

awk -v train="$new/train.txt" -v heldout="$new/heldout.txt" '{
    chapter = $1
    sub(/:.*/, "", chapter)
    if (chapter != last) { ++n; last = chapter }
    print > (n % 10 == 0 ? heldout : train)
}' "$new/kjv.txt"
mv "$new/train.txt" "$new/heldout.txt" "$dir/"
echo "King James text: sha256 matches; $(wc -c <"$dir/train.txt") bytes to train on," \
    "$(wc -c <"$dir/heldout.txt") held out (every tenth chapter)"
