#!/bin/bash
# make-docs.sh MOEKIT [--check]: writes docs/options.md and docs/man/*.scd, which the command prints from
# its own tables. --check compares instead, and exits 1 with a diff if a page is not what the command says.
set -euo pipefail
moekit=$(realpath "${1:?usage: make-docs.sh MOEKIT [--check]}")
cd "$(dirname "$0")/.."
pages=docs
if [ "${2:-}" = --check ]; then
    pages=$(mktemp -d)
    trap 'rm -rf "$pages"' EXIT
fi
# The pages say what the defaults are, whoever writes them.
export XDG_CONFIG_HOME=/nonexistent

mkdir -p "$pages/man"
"$moekit" config options --markdown >"$pages/options.md"
"$moekit" help --man >"$pages/man/moekit.1.scd"
for verb in $("$moekit" help --json | sed -n 's/.*"name":"\([a-z]*\)".*/\1/p'); do
    "$moekit" help --man "$verb" >"$pages/man/moekit-$verb.1.scd"
done
if [ "${2:-}" = --check ]; then
    diff -u docs/options.md "$pages/options.md"
    diff -ru docs/man "$pages/man"
fi
