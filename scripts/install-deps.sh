#!/bin/bash
# install-deps.sh build|demo|check: installs the Debian or Ubuntu packages that a purpose needs.
# Quiet, and without network, where nothing is missing. Packages named optional are asked for where the
# distribution has them; the tests that need them skip themselves by name.
set -euo pipefail

build="gcc libc6-dev cmake ninja-build pkg-config libyaml-dev libjansson-dev libonig-dev libutf8proc-dev"
demo="$build bible-kjv gzip bzip2 xz-utils"
check="$demo git clang libclang-rt-dev clang-format libcmocka-dev python3"
check_optional="chromium scdoc shellcheck"

case "${1:-}" in
    build) wanted=$build optional= ;;
    demo) wanted=$demo optional= ;;
    check) wanted=$check optional=$check_optional ;;
    *) echo "usage: $0 build|demo|check" >&2 && exit 2 ;;
esac

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
offered() { [[ "$(apt-cache policy "$1")" == *"Candidate: "[^\(]* ]]; }

if ! command -v dpkg-query >/dev/null; then
    echo "install-deps: not a Debian or Ubuntu machine; please install the like of: $wanted $optional" >&2
    exit 0
fi
missing=()
for package in $wanted; do installed "$package" || missing+=("$package"); done
absent=()
for package in $optional; do installed "$package" || absent+=("$package"); done
stamp=${XDG_CACHE_HOME:-$HOME/.cache}/moekit-optional-packages # what could not be had is not asked for daily
if ((${#missing[@]} == 0)) && { ((${#absent[@]} == 0)) || [ -n "$(find "$stamp" -mtime -1 2>/dev/null)" ]; }; then
    exit 0
fi

root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "install-deps: as root, please: apt-get install ${missing[*]} ${absent[*]}" >&2
        exit $((${#missing[@]} > 0))
    fi
    root=(sudo)
fi
apt() { ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >"$log" 2>&1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

echo "installing: ${missing[*]} ${absent[*]}"
apt update || { ((${#missing[@]} == 0)) || { cat "$log" >&2; exit 1; }; }
if ((${#missing[@]} > 0)); then
    apt install --no-install-recommends "${missing[@]}" || { cat "$log" >&2; exit 1; }
fi
for package in "${absent[@]}"; do
    if ! offered "$package" || ! apt install --no-install-recommends "$package"; then
        echo "not to be had here: $package (tests that need it are skipped)"
        mkdir -p "$(dirname "$stamp")" && touch "$stamp"
    fi
done
