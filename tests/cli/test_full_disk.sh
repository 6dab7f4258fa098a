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

# /proc takes no directory, from root neither
"$MOEKIT" train small.yaml --run /proc/moekit-run >out 2>err
code=$?
[ $code -eq 1 ] || complain "a directory that cannot be made is exit code 1, not $code"
says err '/proc/moekit-run'

# The real thing where a file system may be mounted.
mkdir disk
if ! mount -t tmpfs -o size=200k tmpfs disk 2>/dev/null; then
    echo 'skipped: the full file system: mounting one is not allowed here'
    finish
    exit 0
fi
trap 'umount "$work/disk"; rm -rf "$work"' EXIT
expect 1 "$MOEKIT" train small.yaml --run disk/run --train.steps 100
says err 'disk/run'
says err '[Nn]o space|free'
mount -o remount,ro disk
expect 1 "$MOEKIT" train small.yaml --run disk/other
says err 'disk/other'
finish
