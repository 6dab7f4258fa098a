# common.sh: what the tests of the command share. Source it; it moves to an empty directory that goes away.
#   expect CODE COMMAND...  runs it, keeps `out` and `err`, and wants this exit code
#   says FILE PATTERN       wants a line of the file to match (grep -E)
#   silent FILE             wants it empty
# The script goes on after a failure and ends with `finish`.
set -uo pipefail
: "${MOEKIT:?set MOEKIT to the command to test}"
MOEKIT=$(realpath "$MOEKIT")
tree=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset "${!MOEKIT_@}" NO_COLOR OMP_PLACES
export HOME=$work XDG_CONFIG_HOME=$work/xdg OMP_NUM_THREADS=2
failures=0

complain() {
    failures=$((failures + 1))
    echo "FAILED: $*"
}

expect() {
    local want=$1 got=0
    shift
    "$@" >out 2>err </dev/null || got=$?
    [ "$got" -eq "$want" ] && return
    complain "exit code $got, not $want: $*"
    tail -n 5 out err
}

says() {
    grep -Eq -e "$2" "$1" && return
    complain "no line of $1 matches '$2'; it says:"
    head -n 10 "$1"
}

silent() {
    [ -s "$1" ] || return 0
    complain "$1 should be empty; it says:"
    head -n 10 "$1"
}

# A JSON text is good where jq or python3 reads it.
json() {
    if command -v jq >/dev/null; then
        jq . "$1" >/dev/null || complain "$1 is not JSON"
    else
        python3 -m json.tool "$1" >/dev/null || complain "$1 is not JSON"
    fi
}

# A small model that learns a small text in a second or two.
make_text() {
    local i
    for i in $(seq "$1"); do
        echo "And $((i * 7 % 13)) sons of the house of number $((i % 5)) went up to the hill, and the day was $i."
    done
}

make_config() {
    make_text 120 >train.txt
    make_text 30 >heldout.txt
    cat >small.yaml <<END
model: {d_model: 32, n_layers: 2, n_heads: 2, context: 64}
moe: {num_experts: 4, top_k: 2, expert_hidden_size: 32}
train: {steps: 30, batch_size: 4, lr: 3e-3, warmup_steps: 5, log_every: 10, save_every: 10, eval_every: 15}
data: {train: train.txt, eval: heldout.txt}
END
}

finish() {
    [ "$failures" -eq 0 ] || exit 1
}
