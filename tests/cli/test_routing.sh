#!/bin/bash
# Presets, alarms and route traces from the command line.
. "$(dirname "$0")/support/common.sh"
make_config

# a preset gives way to other keys of its level, wherever it stands, and stands over earlier levels
expect 0 "$MOEKIT" config show small.yaml moe.capacity_factor=3 moe.preset=lucidrains
says out '^moe.router_type=gshard_top2$'
says out '^moe.capacity_factor=3$'
says out '^moe.aux_loss_coeff=0$'
says out '^moe.num_experts=4$'
printf 'moe: {score_function: softmax, preset: sigma_moe}\n' >preset.yaml
expect 0 "$MOEKIT" config show --origin small.yaml preset.yaml
says out '^preset.yaml:1 +moe.score_function=softmax$'
says out '^preset.yaml:1, preset sigma_moe +moe.expert_dropout=0.05$'
expect 0 env MOEKIT_MOE_PRESET=mixtral "$MOEKIT" config show preset.yaml
says out '^moe.entropy_loss_coeff=0$'
expect 2 "$MOEKIT" config show moe.preset=mixtrel
says err 'mixtral, deepseek_v3'
expect 2 "$MOEKIT" config check small.yaml moe.preset=mixtral train.alarm_action=stop
says err 'train.alarm_action'

# 8 rows a step for 32 experts: some stand idle
idle='moe.num_experts=32 moe.top_k=1 train.batch_size=1 train.length=8 train.alarm_dead_steps=4'
expect 0 "$MOEKIT" train small.yaml --run warned $idle
says err 'alarm: layer 0: expert [0-9]+ had no row for 4 steps$'
says warned/metrics.jsonl '"alarms":\[\{"kind":"dead"'
expect 7 "$MOEKIT" train small.yaml --run stopped $idle train.alarm_action=stop
says err 'alarm in step 4: .*resume stopped'
[ -s stopped/checkpoints/step-00000004/model.safetensors ] || complain 'an alarm stopped without a checkpoint'
expect 7 "$MOEKIT" train --resume --run stopped
expect 0 "$MOEKIT" train small.yaml --run revived $idle train.alarm_action=revive
says revived/main.log 'begins again as expert [0-9]+, with noise$'
expect 0 "$MOEKIT" report --run revived
says revived/report.html 'id="alarms"'

# a trace replays to the bit, and only on its own text
expect 0 "$MOEKIT" train small.yaml --run run moe.preset=deepseek_v3 moe.num_experts=8 train.steps=10
expect 0 "$MOEKIT" eval --run run --record-routes routes.safetensors --json
cp out first
expect 0 "$MOEKIT" eval --run run --replay-routes routes.safetensors --record-routes again.safetensors --json
bits='s/.*"bits_per_byte":\([0-9.]*\).*/\1/p'
[ "$(sed -n "$bits" first)" = "$(sed -n "$bits" out)" ] || complain 'the replay costs other bits than its recording'
cmp routes.safetensors again.safetensors || complain 'the replay was recorded as another trace'
# and is no analysis of the run's own
expect 0 "$MOEKIT" eval --run run
cp run/eval.json own.json
expect 0 "$MOEKIT" eval --run run --replay-routes routes.safetensors
says err 'left alone: this is a replay'
cmp own.json run/eval.json || complain 'a replay changed eval.json'
says own.json '"replayed_routes": *null'
expect 0 "$MOEKIT" eval --run run --replay-routes routes.safetensors -o replayed.json
says replayed.json '"replayed_routes": *"routes\.safetensors"'
expect 3 "$MOEKIT" eval --run run --text train.txt --replay-routes routes.safetensors
says err 'was recorded with text_sha256 [0-9a-f]{64}, and this evaluation has'
head -c 2000 routes.safetensors >cut.safetensors
expect 3 "$MOEKIT" eval --run run --replay-routes cut.safetensors
says err 'cut.safetensors'
expect 2 "$MOEKIT" eval --run run --record-routes run

# nothing that is read is written over
cp train.txt text.txt
checkpoint=$(echo run/checkpoints/step-*)
for output in '-o text.txt' '--record-routes ./text.txt' "--record-routes $checkpoint/model.safetensors" \
    "-o $checkpoint/config.json" '--replay-routes routes.safetensors --record-routes routes.safetensors' \
    '-o both --record-routes ./both'; do
    # shellcheck disable=SC2086
    expect 2 "$MOEKIT" eval --run run --text text.txt $output
    says err 'which would be lost|name a file for each'
done
cmp train.txt text.txt || complain 'eval replaced its text'
expect 2 "$MOEKIT" report --run run -o run/run.json
says err 'run.json: is a file of a run'
expect 2 "$MOEKIT" eval --run run -o run/metrics.jsonl
says err 'metrics.jsonl: is a file of a run'
cp small.yaml picture.svg
md5sum $checkpoint/* run/* train.txt picture.svg 2>/dev/null >before.md5
for line in "report --run run -o $checkpoint/trainer.json" "report --run run -o train.txt" \
    "eval --run run --record-routes train.txt" "eval -m $checkpoint --text text.txt -o run/load.bin" \
    "bench presets small.yaml -q --run unasked -o train.txt" "bench sparsity small.yaml -q --run unasked -o p.svg" \
    "bench sparsity small.yaml -q --run unasked --data.train picture.svg -o picture.md"; do
    # shellcheck disable=SC2086
    expect 2 "$MOEKIT" $line
    says err 'which would be lost|is the name of the picture'
done
md5sum --quiet -c before.md5 || complain 'a file that is read was replaced'
expect 2 "$MOEKIT" bench presets small.yaml -o small.yaml --run unasked -q
says err 'small.yaml: is a configuration that is read'
expect 0 "$MOEKIT" eval --run run --quiet

# every preset learns, and the page tells how
expect 2 "$MOEKIT" bench presets small.yaml moe.preset=mixtral
says err 'moe.preset: presets are what is compared'
expect 0 "$MOEKIT" bench presets small.yaml moe.num_experts=8 -o presets.md --run presets -q --json
json out
says out '"preset":"sigma_moe","first_loss":[0-9.]+'
for preset in mixtral deepseek_v3 megatron automodel lucidrains t2t_top2 t2t_noisy sigma_moe; do
    says presets.md "^\| $preset \| [0-9.]+ \| [0-9.]+ \| [0-9.]+ \|"
    says presets.md "^- $preset: \`"
done
expect 2 "$MOEKIT" bench presets small.yaml moe.num_experts=8 --run presets -q
says err 'exists already'
# what one of them would refuse is told before the first has trained
expect 2 "$MOEKIT" bench presets small.yaml moe.num_experts=4 moe.top_k=1 --run unasked -q
says err 'deepseek_v3: .*8 groups do not divide num_experts 4'
[ ! -e unasked ] || complain 'presets were trained beside one that cannot be'
expect 2 "$MOEKIT" bench layer moe.top_k=3
says err 'takes problems'
expect 2 "$MOEKIT" bench layer --device gpu
says err 'not one of: cpu, cuda'
for subject in gemm '' e4,t16,d32,n32,k2; do # the last two: bench, with no subject named
    expect 2 "$MOEKIT" bench $subject --device cuda
    says err "is for 'layer' \(moekit bench layer"
done
expect 2 "$MOEKIT" bench layer --graph
says err 'goes with --device cuda'
# where there is a GPU it runs, elsewhere it says what is missing
"$MOEKIT" bench layer --device cuda e4,t32,d32,n32,k2 --repeat 1 --json >out 2>err </dev/null
case $? in
    0) says out '"device":".*"isa":"(cuda|sm90)","threads":[0-9]' ;;
    8) says err 'device cuda: this (machine|libmoekit) ' ;;
    *) complain "bench layer --device cuda: $(cat err)" ;;
esac

# where a step's time goes, and experts against dense models, trained beside each other
expect 0 "$MOEKIT" bench step small.yaml --repeat 2
says out '^matrix products .*%'
says err '^step=[0-9]+/[0-9]+ loss='
grep checkpoint err && complain 'bench step names a file that is gone when it ends'
says out '^step .*100\.0 %'
expect 0 "$MOEKIT" bench step small.yaml --repeat 2 -q --json
json out
expect 0 "$MOEKIT" bench sparsity small.yaml --seeds 2 --jobs 3 --threads 1 -o sparsity.md --run sparsity -q --json
json out
says out '"model":"mixture","seed":2,.*"curve":\[\[[0-9.]+,[0-9.]+\]'
says sparsity.md '^\| mixture \| [0-9.]+ \|'
says sparsity.md '^\| dense, equal total size \| [0-9.]+ \|'
says sparsity.svg '^<polyline'
[ -d sparsity/dense-total-2 ] || complain 'no run of the second seed'
# the report of a dense one does not ask for what cannot be measured
expect 0 "$MOEKIT" eval --run sparsity/dense-total-2
expect 0 "$MOEKIT" report --run sparsity/dense-total-2 -o dense.html
says dense.html 'No layer of this model has routed experts'
grep -qE 'did not run yet|no such measurement|how its router|href="#load"|c-aux|Tokens typical' dense.html &&
    complain 'the report of a dense model speaks of experts'
expect 2 "$MOEKIT" bench sparsity small.yaml --seeds 2 --jobs 3 --run sparsity -q
says err 'exists already'
expect 1 "$MOEKIT" bench sparsity small.yaml --run unasked -o nowhere/x.md -q
says err 'nowhere/x\.svg: cannot write there: No such file'
[ ! -e unasked ] || complain 'models were trained for a page that cannot be written'
expect 2 "$MOEKIT" bench sparsity small.yaml model.moe_layer_freq=0 -q
says err 'model.moe_layer_freq is 0'
expect 2 "$MOEKIT" bench sparsity small.yaml moe.num_experts=1 moe.top_k=1 -q
says err 'num_experts'

# verify knows every option of the layer
for preset in deepseek_v3 lucidrains t2t_noisy; do
    expect 0 "$MOEKIT" verify grad --preset $preset moe.num_experts=8 --tokens 12 --sequences 3
done
expect 0 "$MOEKIT" verify grad moe.routing_unit=task moe.num_tasks=2 --tokens 12 --sequences 3
expect 0 "$MOEKIT" verify determinism moe.output_size=5 moe.router_frozen=true moe.selection_bias=true moe.score_before_topk=true
expect 0 "$MOEKIT" verify determinism moe.router_type=expert_choice
says err 'not compared'
expect 2 "$MOEKIT" verify grad --sequences 2 --tokens 13
says err 'do not divide'
expect 8 "$MOEKIT" verify grad moe.router_type=random
finish
