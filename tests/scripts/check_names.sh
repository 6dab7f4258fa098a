#!/bin/bash
# scripts/check-names.sh is given libraries made of the declared names, then with one fault each.
set -uo pipefail
check=$PWD/scripts/check-names.sh
command -v gcc >/dev/null || { echo "gcc is not here"; exit 77; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
failed=0
public=$(sed -n '/^MOE_API/,/;/s/.*\b\(moe_[a-z0-9_]*\)(.*/\1/p' include/moekit/{moe,option,expert,op,quant,cuda}.h)
if [ "$(wc -w <<<"$public")" -lt 20 ]; then
    echo "the headers must declare more than $(wc -w <<<"$public") calls"
    exit 1
fi

# libraries NAME...: both forms of libmoekit with these functions.
libraries() {
    printf 'void %s(void) {}\n' "$@" >"$place/names.c"
    gcc -c -fPIC -o "$place/names.o" "$place/names.c" &&
        gcc -shared -o "$place/libmoekit.so" "$place/names.o" &&
        rm -f "$place/libmoekit.a" && ar rc "$place/libmoekit.a" "$place/names.o"
}
breaks() { # EXPECTED: the complaint about the libraries as they are
    local said
    if said=$("$check" "$place") || ! grep -q "$1" <<<"$said"; then
        printf 'expected a complaint with "%s", got:\n%s\n' "$1" "$said"
        failed=1
    fi
}

# shellcheck disable=SC2086 # a list of words
{
    libraries $public
    "$check" "$place" || { echo "the declared names must pass"; failed=1; }
    libraries ${public#*$'\n'}
    breaks 'not exported by libmoekit'
    libraries $public moe_undeclared
    breaks 'declared in no header'
    breaks 'make them moei_'
    libraries $public helper
    breaks 'begin with none of'
}
exit $failed
