#!/bin/bash
# check-names.sh BUILD_DIR: the names in the built libraries are those the headers promise.
#   - every MOE_API declaration is exported by exactly one library, and nothing else is exported
#   - every other global name of the static twins begins with moei_ (libmoekit) or moelm_ (libmoekit-lm), so that
#     it collides with nobody's
#   - a type has one definition in src and lm together
set -uo pipefail
export LC_ALL=C # one order for sort and comm
build=$(realpath "${1:?usage: check-names.sh BUILD_DIR}")
cd "$(dirname "$0")/.." || exit
failed=0
complain() {
    if [ -n "$2" ]; then
        printf '%s:\n%s\n' "$1" "$2"
        failed=1
    fi
}
exported() { nm --dynamic --defined-only "$1" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort; }
global() { nm --extern-only --defined-only "$1" 2>/dev/null | awk 'NF == 3 { print $3 }' | sort -u; }
declared() { # the name is the last word before the first parenthesis of a declaration
    cat "$@" | awk '/^MOE_API/ { on = 1 }
        on && match($0, /moe_[a-z0-9_]+\(/) { print substr($0, RSTART, RLENGTH - 1); on = 0 }' | sort
}

layer=$(exported "$build/libmoekit.so")
complain "declared in moe.h, option.h, expert.h, op.h, quant.h or cuda.h, not exported by libmoekit" \
    "$(comm -23 <(declared include/moekit/{moe,option,expert,op,quant,cuda}.h) <(echo "$layer"))"
complain "exported by libmoekit, declared in no header" \
    "$(comm -13 <(declared include/moekit/{moe,option,expert,op,quant,cuda}.h) <(echo "$layer"))"
static=$(global "$build/libmoekit.a")
if [ -e "$build/libmoekit-lm.so" ]; then
    models=$(exported "$build/libmoekit-lm.so")
    complain "declared in lm.h or tokenizer.h, not exported by libmoekit-lm" \
        "$(comm -23 <(declared include/moekit/{lm,tokenizer}.h) <(echo "$models"))"
    complain "exported by libmoekit-lm, not declared in lm.h or tokenizer.h" \
        "$(comm -13 <(declared include/moekit/{lm,tokenizer}.h) <(echo "$models"))"
    internal=$(global "$build/libmoekit-lm.a")
    complain "inside libmoekit-lm, but begin with none of moe_lm_, moe_token and moelm_" \
        "$(grep -Ev '^(moe_lm_|moe_token|moelm_|$)' <<<"$internal")"
    static+=$'\n'$internal
fi
complain "types that are defined twice" \
    "$(find src lm -name '*.[ch]' -exec grep -hE '^} (moe|moei|moelm)_[a-z0-9_]+;$' {} + | sort | uniq -d)"
complain "global names that begin with none of moe_, moei_, moelm_" \
    "$(grep -Ev '^(moe_|moei_|moelm_|$)' <<<"$static")"
complain "begin with moe_ but are declared in no public header: make them moei_" \
    "$(comm -13 <(declared include/moekit/*.h) <(grep '^moe_' <<<"$static" | sort -u))"
exit $failed
