#!/bin/bash
# kill -9 at 20 random moments, half of them inside a checkpoint's write: every resume succeeds, and each run
# ends with the very bits of the one that nobody disturbed. MOEKIT_TEST_SEED repeats the moments. One thread: two
# would wait for each other where other tests run beside this one.
seed=${MOEKIT_TEST_SEED:-$((($(date +%s%N) / 1000) % 1000000000))}
. "$(dirname "$0")/support/common.sh"
echo "MOEKIT_TEST_SEED=$seed"
RANDOM=$((seed % 32768))
make_config
settings=(--threads 1 train.steps=40 train.save_every=1 train.eval_every=10 train.load_every=4 train.log_every=2)
last=checkpoints/step-00000040

# bits RUN: what a run ends with; of metrics.jsonl without what the clock wrote.
bits() {
    (cd "$1" && sha256sum $last/model.safetensors $last/optimizer.safetensors $last/config.json load.bin &&
        sed -E 's/"(tokens_per_second|elapsed_s)":[^,]*,//g' metrics.jsonl | sha256sum)
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# kill_run RUN MILLISECONDS [writing]: a sitting that ends by kill -9 after this time, with `writing` at the
# next moment a checkpoint is half written. Says what it met in `met`.
kill_run() {
    "$MOEKIT" train small.yaml "${settings[@]}" --resume --run "$1" >out 2>err </dev/null &
    local pid=$! i
    sleep "$(printf '%d.%03d' $(($2 / 1000)) $(($2 % 1000)))"
    if [ "${3:-}" = writing ]; then
        for ((i = 0; i < 20000; ++i)); do
            compgen -G "$1/checkpoints/*.tmp-*" >/dev/null && break
            kill -0 $pid 2>/dev/null || break
        done
    fi
    kill -9 $pid 2>/dev/null && met=killed || met=finished
    wait $pid 2>/dev/null
    compgen -G "$1/checkpoints/*.tmp-*" >/dev/null && met="killed inside a write"
}

start=$(now_ms)
expect 0 "$MOEKIT" train small.yaml "${settings[@]}" --run whole
whole_ms=$(($(now_ms) - start))
whole=$(bits whole)

killed=0 inside=0
for round in 1 2 3 4 5 6 7 8 9 10; do
    run=run$round
    for way in anywhere writing; do
        delay=$((RANDOM * whole_ms / 32768 / 2)) # the second sitting begins where the first was killed
        kill_run $run $delay $way
        echo "$run: $met after $delay of $whole_ms ms"
        [ "$met" != finished ] || whole_ms=$((whole_ms * 3 / 4)) # the machine has more time now than before
        case $met in killed*) killed=$((killed + 1)) ;; esac
        case $met in *inside*) inside=$((inside + 1)) ;; esac
    done
    expect 0 "$MOEKIT" train small.yaml "${settings[@]}" --resume --run $run
    [ "$(bits $run)" = "$whole" ] || complain "seed $seed: $run ended with other bits: $(bits $run)"
    compgen -G "$run/checkpoints/*.tmp-*" >/dev/null && complain "seed $seed: $run keeps leftovers"
done
[ $killed -ge 12 ] || complain "only $killed of 20 moments came before the end: the runs are too short"
[ $inside -ge 5 ] || complain "only $inside moments were inside a write"
finish
