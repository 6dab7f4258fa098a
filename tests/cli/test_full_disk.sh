#!/bin/bash
# A disk that is full or cannot be written: exit code 1, a message with the path, and nothing lost.
. "$(dirname "$0")/support/common.sh"
make_config
# A limit on the size of files stands in for a full disk: writing fails, for root as well. What is said goes
# through a pipe, which has no size.
limited() { # KILOBYTES COMMAND...
    local kilobytes=$1
    shift
    (
        trap '' XFSZ
        ulimit -f "$kilobytes"
        exec "$@" 2>&1
    ) | cat >said
    return "${PIPESTATUS[0]}"
}

expect 0 "$MOEKIT" train small.yaml --run run -q
rm -r run/checkpoints/step-00000030
cp run/checkpoints/step-00000020/model.safetensors before
expect 1 limited 16 "$MOEKIT" train --resume --run run
says said 'run/checkpoints'
says said 'no step after 20 is saved. Make room, then resume run'
says said "'moekit train --resume --run run' goes on"
cmp run/checkpoints/step-00000020/model.safetensors before || complain 'a failed save harmed an older checkpoint'
[ -e run/checkpoints/step-00000030 ] && complain 'half a checkpoint has the name of a whole one'
expect 0 "$MOEKIT" train --resume --run run -q

expect 1 limited 0 "$MOEKIT" generate --run run -p And -n 20
says said 'sample\.txt'
[ -e run/sample.txt ] && complain 'half a sample was left'
expect 1 limited 1 "$MOEKIT" report --run run
says said 'report\.html'
[ -e run/report.html ] && complain 'half a report was left'
expect 1 limited 0 "$MOEKIT" eval --run run
says said 'eval\.json'
[ -e run/eval.json ] && complain 'half an analysis was left'

# what is not a full disk is not said to be one
"$MOEKIT" train small.yaml --run broken train.steps=1000000 train.save_every=5 2>said >out &
pid=$!
until grep -q ' checkpoint broken/' broken/main.log || ! kill -0 $pid; do sleep 0.05; done 2>/dev/null
kill -STOP $pid
mv broken/checkpoints aside
: >broken/checkpoints
kill -CONT $pid
wait $pid
code=$?
[ $code -eq 1 ] || complain "a checkpoint that cannot be written is exit code 1, not $code"
says said 'no step after [0-9]+ is saved\. Mend that, then resume broken'

# /proc takes no directory, from root neither
"$MOEKIT" train small.yaml --run /proc/moekit-run >out 2>err
code=$?
[ $code -eq 1 ] || complain "a directory that cannot be made is exit code 1, not $code"
says err '/proc/moekit-run'

# without the shell's trap the limit is an error too, and not a death by SIGXFSZ
(
    ulimit -f 16
    exec "$MOEKIT" train small.yaml --run killed 2>&1
) | cat >said
[ "${PIPESTATUS[0]}" -eq 1 ] || complain 'a file over the size limit ends the command otherwise than with 1'
says said 'killed'
finish
