#!/bin/bash
# The first SIGINT, SIGTERM or SIGHUP saves and exits with 130, 143 or 129, a second stops at once, --resume goes on.
. "$(dirname "$0")/support/common.sh"
make_config
long=(train.steps=100000 train.log_every=1 train.save_every=0 train.eval_every=0)

# background ARGUMENT...: the command as `pid`. Without job control the shell would have it ignore SIGINT.
background() {
    : >out
    : >err
    set -m
    "$MOEKIT" "$@" >out 2>err &
    pid=$!
    set +m
}

# started WHAT: waits until two steps are logged.
started() {
    for _ in $(seq 600); do
        [ "$(grep -c '^step=.* loss=' err)" -ge 2 ] && return
        sleep 0.05
    done
    complain "did not start: $* $(cat err)"
}

# start ARGUMENT...: trains in the background.
start() {
    background train "$@"
    started "$@"
}

# stopped SIGNAL CODE RUN: what is in the background ends as it should; `step` is the last it made.
stopped() {
    local code=0
    kill -s "$1" $pid
    wait $pid || code=$?
    [ $code -eq "$2" ] || complain "$1: exit code $code, not $2: $(tail -n 3 err)"
    says err "train --resume --run $3"
    says out "^checkpoint  $3/checkpoints/step-[0-9]+$"
    [ -s "$(sed -n 's/^checkpoint  //p' out)/model.safetensors" ] || complain "$1: no checkpoint was saved"
    step=$(sed -n 's/^checkpoint.*step-0*//p' out)
    says err "^step=$step/100000 loss="
}

start small.yaml --run first "${long[@]}"
# nobody moves it away meanwhile
code=0
"$MOEKIT" train small.yaml --run first/ --move-old >out2 2>err2 || code=$?
[ $code -eq 2 ] || complain "--move-old of a run that trains: exit code $code"
says err2 'first: another process is training in it'
[ -e first.1 ] && complain '--move-old renamed a run that trains'
stopped INT 130 first
start small.yaml --run hung "${long[@]}"
stopped HUP 129 hung
start small.yaml --run second "${long[@]}" train.eval_every=3
stopped TERM 143 second
before=$step
held=$(sed -nE 's/^held-out .*\(of step ([0-9]+)\)$/\1/p' out)
[ "${held:-$step}" -eq $((step - step % 3)) ] || complain "after step $step: $(grep '^held-out' out)"

# a shell without job control has what is in the background ignore SIGINT, and it stays so
: >err
"$MOEKIT" train small.yaml --run deaf "${long[@]}" >out 2>err &
pid=$!
started deaf
kill -s INT $pid
stopped TERM 143 deaf

# a bench saves nothing, and tells the signal too; its processes end with it
for jobs in 1 2; do
    background bench sparsity small.yaml --run bench$jobs --jobs $jobs "${long[@]}"
    until [ "$(compgen -G "bench$jobs/*/main.log" | wc -l)" -eq $jobs ] || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
    kill -s TERM $pid
    code=0
    wait $pid || code=$?
    [ $code -eq 143 ] || complain "bench --jobs $jobs: exit code $code after SIGTERM: $(cat err)"
    # lines of two processes may run into each other
    [ "$(grep -o 'stopped; a bench' err | wc -l)" -eq $jobs ] || complain "bench --jobs $jobs: $(cat err)"
done

# it goes on where it stopped, with the settings it had, and does no step twice
start --resume --run second
stopped INT 130 second
[ "$(grep -c '^stopping and saving; once more stops at once$' err)" -eq 1 ] || complain 'no remark at the first signal'
[ "$step" -gt "$before" ] || complain "the resumed run went from step $before to $step"
says err "^step=$((before + 1))/100000 loss="
grep -q "^step=$before/100000 loss" err && complain 'a step was done twice'

# --resume where nothing is to be resumed
expect 3 "$MOEKIT" train --resume --run nowhere
says err 'nowhere'


# before the first step is finished: its forwards are many, and none is waited for but the one at hand
background train small.yaml --run early train.grad_accum=1000000
until [ -e early/main.log ] || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
sleep 0.2
kill -s INT $pid
code=0
wait $pid || code=$?
[ $code -eq 130 ] || complain "a stop inside a step: exit code $code: $(cat err)"
says out '^checkpoint  none: no step was finished$'

# who reads along may leave
"$MOEKIT" train small.yaml --run piped 2>&1 >piped.out | head -n 1 >/dev/null
says piped/main.log '^step=30/30 loss='
says piped.out '^checkpoint  piped'

# impatience: two signals at once stop it even in the middle of a step
start small.yaml --run third "${long[@]}"
kill -s STOP $pid
kill -s INT $pid
kill -s TERM $pid
kill -s CONT $pid
code=0
wait $pid || code=$?
[ $code -eq 130 ] || [ $code -eq 143 ] || complain "two signals: exit code $code"

# an interrupted text is whole up to where it was stopped
expect 0 "$MOEKIT" train small.yaml --run text -q
background generate --run text -p And -n 100000000
until [ -s out ] || ! kill -0 $pid; do sleep 0.05; done
kill -s INT $pid
code=0
wait $pid || code=$?
[ $code -eq 130 ] || complain "generate: exit code $code after SIGINT: $(cat err)"
says text/sample.txt '^And'

# of several texts what was drawn is told, and those that had not begun are not
background generate --run text -p And -p The --samples 3 --batch 4 -n 100000000 --json
until (($(sed -n 's/^SigCgt:[[:space:]]*/0x/p' /proc/$pid/status) & 1 << 14)) || ! kill -0 $pid; do sleep 0.05; done # for SIGTERM
sleep 1
kill -s TERM $pid
code=0
wait $pid || code=$?
[ $code -eq 143 ] || complain "generate of several: exit code $code after SIGTERM: $(cat err)"
json out
[ "$(grep -c '"prompt":' out)" -eq 4 ] || complain "four texts had begun: $(cut -c 1-80 out)"
says text/sample.txt '^==> prompt 2 of 2, sample 1 of 3, seed 1 <==$'
finish
