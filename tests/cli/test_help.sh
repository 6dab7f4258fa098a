#!/bin/bash
# Help, versions, unknown names, colours: the habits of every verb.
. "$(dirname "$0")/support/common.sh"

expect 2 "$MOEKIT"
silent out
says err 'name a verb'
for way in help --help -h; do
    expect 0 "$MOEKIT" $way
    says out '^usage: moekit VERB'
    silent err
done
# every status of the library is an exit code that the help tells
for code in $(sed -nE 's/^ +MOE_(ERR_[A-Z]+|OK) = ([0-9]+).*/\2/p' "$tree/include/moekit/moe.h"); do
    [ "$code" -eq 6 ] || says out "^  $code +[A-Za-z]" # no verb has collectives
done
for verb in train eval generate report bench verify doctor config version help; do
    expect 0 "$MOEKIT" $verb --help
    says out "^usage: moekit $verb"
    silent err
    cp out with_option
    expect 0 "$MOEKIT" help $verb
    cmp out with_option || complain "'moekit help $verb' and --help differ"
    expect 0 "$MOEKIT" help $verb --json
    json out
    expect 2 "$MOEKIT" $verb --no-such-thing
    silent out
    says err "^moekit $verb: unknown option '--no-such-thing'"
done

expect 0 "$MOEKIT" version
says out '^moekit [0-9]+\.[0-9]+\.[0-9]+$'
expect 0 "$MOEKIT" --version
says out '^moekit [0-9]'
expect 0 "$MOEKIT" --json version
json out
says out '"isa":"'
expect 0 "$MOEKIT" help --json
json out

expect 0 "$MOEKIT" doctor
grep -q '^kernel' out && complain 'doctor tells of kernels unasked'
grep -Ev '^(.{25} [^ ]|all is well)' out && complain 'a line of doctor runs over its column'
expect 0 "$MOEKIT" doctor -v
grep -Ev '^(.{25} [^ ]|all is well)' out && complain 'a line of doctor -v runs over its column'

# what was meant
expect 2 "$MOEKIT" trian
says err "did you mean 'train'"
expect 2 "$MOEKIT" help reprot
says err "did you mean 'report'"
expect 2 "$MOEKIT" zzzzzzzzz
says err "moekit help"
expect 2 "$MOEKIT" generate --promt x
says err "did you mean '--prompt'"
expect 2 "$MOEKIT" train --moe.topk 2
says err "did you mean '--moe.top_k'"
expect 2 "$MOEKIT" config show moe.num_exprts=2
says err "did you mean 'moe.num_experts'"
expect 2 "$MOEKIT" generate -Z
says err "unknown option '-Z'"

# values
expect 2 "$MOEKIT" generate --run
says err 'needs a value'
expect 2 "$MOEKIT" generate -m . -n many
says err "'many' is not a whole number"
expect 2 "$MOEKIT" generate -m . --top-p 1.5
says err 'from 0 to 1'
expect 2 "$MOEKIT" generate -m . --top-p 0
says err '--temp 0 takes the likeliest'
expect 2 "$MOEKIT" generate -m . --temp 0x1
says err "'0x1' is not a number"
expect 2 "$MOEKIT" generate -m . -p ''
says err 'a prompt needs at least one byte'
expect 2 "$MOEKIT" doctor --json=yes
says err 'takes no value'
expect 2 "$MOEKIT" report something
says err "unexpected argument 'something'"
expect 2 "$MOEKIT" version --color sometimes
says err 'auto, always, never'

# colours: none into a file, none with NO_COLOR, some when asked
expect 2 "$MOEKIT" trian
grep -q $'\033' err && complain 'colours in a file'
expect 0 "$MOEKIT" doctor --color always
says out $'\033\\['
expect 0 env NO_COLOR=1 "$MOEKIT" doctor
grep -q $'\033' out && complain 'colours in spite of NO_COLOR'

# results that cannot be written are a failure
if [ -w /dev/full ]; then
    "$MOEKIT" config options >/dev/full 2>err
    [ $? -eq 1 ] || complain 'a full standard output is exit code 1'
    says err 'standard output'
fi
finish
