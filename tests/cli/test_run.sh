#!/bin/bash
# From a text to a report, and what must not happen on the way.
. "$(dirname "$0")/support/common.sh"
make_config

expect 0 "$MOEKIT" train small.yaml --run run --dry-run
[ -e run ] && complain 'a dry run made something'
says out '^parameters     [0-9]+, of which a token meets [0-9]+$'
cp out dry
# what the run would refuse, and what it would warn of
silent err
expect 0 "$MOEKIT" train small.yaml --run run --dry-run data.train=
says err 'data\.train is not set: no text was checked'
expect 3 "$MOEKIT" train small.yaml --run run --dry-run data.train=nope.txt
says err 'data\.train: .*/nope\.txt: cannot open'
expect 3 "$MOEKIT" train small.yaml --run run --dry-run data.eval=/dev/null
says err 'data\.eval'
expect 0 "$MOEKIT" train small.yaml --run run --dry-run data.eval=train.txt
says err 'same text: nothing is held out'
# a model that no machine holds is counted, and said to be too big
expect 4 "$MOEKIT" train small.yaml --dry-run model.d_model=8192 model.n_heads=64 model.n_layers=100 moe.expert_hidden_size=32768
says err 'training 349\.0 G parameters, .* takes [0-9.]+ GiB, and this machine has [0-9.]+; lower model\.d_model'
expect 4 "$MOEKIT" train small.yaml --run run model.d_model=8192 model.n_heads=64 model.n_layers=100 moe.expert_hidden_size=32768
says err 'lower model\.d_model'
[ -e run ] && complain 'a run without memory made something'
expect 0 "$MOEKIT" train small.yaml --run run
says out '^checkpoint  run/checkpoints/step-00000030$'
says err '^step=10/30 loss=[0-9.]+ eta=[^ ]+ aux=[0-9.]+ z=[0-9.]+ lr=[0-9.e-]+ gnorm=[0-9.]+ tok/s=[^ ]+ drop=[0-9.]+% cv='
says out '^held-out    [0-9.]+ bits per byte$'
grep -q '^step=20/30 .*eval=' err && complain 'the held-out figure of step 15 in the line of step 20'
grep -q $'\r' err && complain 'a living line without a terminal'
for name in run.json config.resolved.yaml metrics.jsonl load.bin main.log checkpoints/step-00000030/config.json; do
    [ -s run/$name ] || complain "run/$name is missing or empty"
done
json run/run.json
says run/run.json 'moekit train small.yaml --run run'

[ "$(sed -n 's/^parameters *\([0-9]*\),.*/\1/p' dry)" = "$(sed -n 's/.*"total": *\([0-9]*\).*/\1/p' run/run.json)" ] ||
    complain "shapes are counted otherwise than the model: $(cat dry)"

# what is over says so, and how to go on
expect 0 "$MOEKIT" train --run run --resume
says err '^step=30/30 over; there is nothing to resume'
says err "'moekit train --from run --run ANOTHER' goes on"
expect 0 "$MOEKIT" train --run run --resume --json --quiet
json out
says out '"step":30,"loss":null,"eval_bits_per_byte":[0-9.]+,"eval_step":30'
expect 0 "$MOEKIT" train small.yaml --run timed train.steps=1000000 train.max_seconds=0.5 train.log_every=0
says err '^step=[0-9]+/1000000 over, as its time \(train\.max_seconds 0\.5\) has passed$'
says err "'moekit train --from timed --run ANOTHER' goes on"

# a run's directory, or a checkpoint's, as a file of settings
expect 0 "$MOEKIT" config show --changed run
says out '^train.steps=30$'
expect 0 "$MOEKIT" config show --changed run/checkpoints/step-00000030
says out '^model.d_model=32$'
grep -q '^train' out && complain 'a checkpoint told of training'
grep -q '^moe.dropout' out && complain '--changed shows a default'
expect 0 "$MOEKIT" config show run/checkpoints/step-00000030 moe_router_load_balancing_type=seq_aux_loss
says out '^moe.aux_loss_type=seq' # no word of the checkpoint is against it
mkdir empty
expect 3 "$MOEKIT" config check empty
says err 'empty: is a directory without config\.resolved\.yaml or config\.json'

# what is there stays there
cp run/metrics.jsonl before
expect 2 "$MOEKIT" train small.yaml --run run
says err 'run'
cmp before run/metrics.jsonl || complain 'a refused run changed the old one'
expect 0 "$MOEKIT" train small.yaml --run run --move-old --train.steps 3 --json --quiet
silent err
json out
cmp before run.1/metrics.jsonl || complain '--move-old lost the old run'
expect 2 "$MOEKIT" train small.yaml --run run --move-old --resume
expect 3 "$MOEKIT" train small.yaml --run run/ --move-old data.train=missing.txt
[ -e run.2 ] && complain '--move-old moved before the texts were known good'
expect 0 "$MOEKIT" train small.yaml --run run/ --move-old --train.steps 3
says err 'moved what was there to run\.2'
[ -s run.2/metrics.jsonl ] || complain '--move-old with a slash lost the old run'
rm -rf run.2
expect 2 "$MOEKIT" train small.yaml
says err '--run DIR'
rm -rf run
mv run.1 run

# closed descriptors: nothing that is said lands in a file of the run
(exec <&- >&- 2>&-; exec "$MOEKIT" train small.yaml --run closed train.steps=2)
[ $? -eq 1 ] || complain 'results that had nowhere to go were no error'
grep -l '^step=.* loss=' -r closed | grep -qv main.log && complain 'log lines landed in files of the run'
json closed/run.json
"$MOEKIT" version >&- 2>err && complain 'a closed standard output was no error'
says err 'standard output'

# a directory that is no run is not resumed in
mkdir foreign
cp run/metrics.jsonl foreign
for claim in --dry-run ''; do
    expect 3 "$MOEKIT" train small.yaml --run foreign --resume $claim
    says err 'config\.resolved\.yaml'
done
cmp run/metrics.jsonl foreign/metrics.jsonl || complain 'resuming changed a foreign directory'
[ "$(ls foreign)" = metrics.jsonl ] || complain 'resuming left files in a foreign directory'
# nor renamed; an empty one is
for claim in --dry-run ''; do
    expect 3 "$MOEKIT" train small.yaml --run foreign --move-old $claim
    says err 'foreign: holds metrics\.jsonl'
done
[ "$(ls -d foreign*)" = foreign ] || complain '--move-old renamed a directory that is no run'
mkdir bare
expect 0 "$MOEKIT" train small.yaml --run bare// --move-old train.steps=2
[ -d bare.1 ] && [ -s bare/run.json ] || complain '--move-old did not take an empty directory'

# a run goes on from anywhere; what cannot be told in run.json is refused before anything is made
mkdir elsewhere-dir
expect 0 "$MOEKIT" train small.yaml --run "$PWD/far" train.steps=2
says far/config.resolved.yaml "train: $PWD/train.txt$"
(cd elsewhere-dir && "$MOEKIT" train --resume --run ../far >../out 2>../err) || complain "cannot resume from elsewhere: $(cat err)"
before=$(ls)
for claim in '' --dry-run; do
    expect 2 "$MOEKIT" train small.yaml --run $'deep/new\nline' $claim
    says err 'control character 10'
    expect 2 "$MOEKIT" train small.yaml --run $'latin\xe9' $claim
    says err 'not UTF-8'
    # nor in what is no directory
    expect 1 "$MOEKIT" train small.yaml --run train.txt/deep/new $claim
    says err 'train\.txt/deep.*: cannot (be made|make)'
done
[ "$(ls)" = "$before" ] || complain 'a refused path left something behind'
expect 3 "$MOEKIT" train --resume --run none
says err 'none: no such run directory'
expect 0 "$MOEKIT" train small.yaml --resume --run none train.steps=2
says err 'resume: no run is in none yet, from the start'
expect 2 "$MOEKIT" train small.yaml --run run --dry-run
says err 'run exists already'
# who may not write into a run can read it all the same
cp -r run readable
rm -f readable/sample.txt readable/eval.json
mkdir readable/sample.txt readable/eval.json
expect 2 "$MOEKIT" generate --run readable -n 2
says err '^with --no-save nothing is written'
expect 0 "$MOEKIT" generate --run readable -n 2 --no-save
expect 2 "$MOEKIT" eval --run readable
says err 'with --dry-run nothing is written'
expect 0 "$MOEKIT" eval --run readable --dry-run
expect 3 "$MOEKIT" generate -m run
says err 'run: is a run and no checkpoint; name it by --run'
expect 2 "$MOEKIT" train --run run --resume train.lr=1 --dry-run
says err "train\.lr is '1' now"
# a text that changed since, and kernels that round otherwise
cp -r run other-text
cp train.txt kept.txt
printf 'x' >>train.txt
for claim in '' --dry-run; do
    expect 2 "$MOEKIT" train --run other-text --resume $claim
    says err 'was trained on another text'
done
mv kept.txt train.txt
expect 2 "$MOEKIT" train --run other-text --resume --isa ref --dry-run
says err 'was computed with'
expect 0 "$MOEKIT" train --run other-text --resume --dry-run
rm -r other-text
for claim in '' --dry-run; do
    expect 2 "$MOEKIT" train small.yaml --run foreign $claim
    says err 'foreign exists already and is no run; name a directory that is to be made'
    expect 2 "$MOEKIT" train small.yaml --run train.txt $claim
    says err 'train\.txt exists already and is no run'
done
expect 3 "$MOEKIT" train small.yaml --from nope --run other
says err 'nope: no such directory'
# a text where settings belong
expect 3 "$MOEKIT" train heldout.txt --run other
says err 'heldout\.txt is read as settings \(YAML\), and a text to train on is --data\.train heldout\.txt'
mkfifo pipe.txt
for text in pipe.txt elsewhere-dir; do
    expect 3 "$MOEKIT" eval --run run --text $text
    says err "$text: is no plain file"
done
expect 5 "$MOEKIT" train small.yaml --run nan train.lr=1000 train.warmup_steps=0 train.clip=0 train.steps=400
says err 'step ([0-9]+): the .* is (nan|inf); step [0-9]+ was not applied'
expect 5 "$MOEKIT" train small.yaml --run nan2 train.lr=1000 train.warmup_steps=0 train.clip=1e6 train.steps=400
says err 'or lower train\.clip$'

# the resolved settings repeat the run
expect 0 "$MOEKIT" train run/config.resolved.yaml --run again -q
cmp run/checkpoints/step-00000030/model.safetensors again/checkpoints/step-00000030/model.safetensors ||
    complain 'the resolved settings do not repeat the run'

expect 0 "$MOEKIT" eval --run run
says out 'moekit'
says out '^            [0-9.]+  gzip -9$'
json run/eval.json
says run/eval.json '"baselines"'
grep -q eta err && complain 'a living line without a terminal'
if command -v script >/dev/null; then
    script -qec "'$MOEKIT' eval --run run" typed >/dev/null </dev/null
    says typed '[0-9]+ of [0-9]+ bytes, eta [0-9]+ s'
fi
cp run/eval.json kept.json
expect 0 "$MOEKIT" eval --run run --bytes 100
says err 'eval\.json is left alone: this is a part of the text'
cmp run/eval.json kept.json || complain 'a part of the text took the place of the whole one in eval.json'
expect 3 "$MOEKIT" eval --run run --text gone.txt
says err 'gone\.txt: no such text file'
grep -q 'left alone' err && complain 'eval speaks of eval.json before it knows its text'
printf x >one.txt
expect 3 "$MOEKIT" eval --run run --text one.txt
says err 'one\.txt has 1 byte; it takes 2'
expect 0 env PATH=/nonexistent "$MOEKIT" eval --run run --dry-run
says out 'gzip is not on this machine'
expect 0 "$MOEKIT" eval -m run/checkpoints/step-00000030 --text train.txt --bytes 500 --json
json out
says out '"bytes":500,'
expect 2 "$MOEKIT" eval -m run/checkpoints/step-00000030 --text train.txt --bytes 1
says err '2 or more'
expect 0 "$MOEKIT" eval -m run/checkpoints/step-00000030 --text train.txt --bytes 2 --json
says out '"bytes":2,'
expect 0 "$MOEKIT" eval --run run --json -o other.json
json other.json

# eval.json is the run's own: its newest checkpoint on its data.eval
says run/eval.json '"text_sha256": "[0-9a-f]{64}"'
cp run/eval.json own.json
expect 0 "$MOEKIT" eval --run run --text train.txt
says err 'eval\.json is left alone: .*another text'
expect 0 "$MOEKIT" eval --run run -m run/checkpoints/step-00000020
says err 'another checkpoint'
cmp own.json run/eval.json || complain 'another text or checkpoint changed eval.json'
expect 0 "$MOEKIT" report --run run -o page.html
says page.html 'On held-out text \(heldout\.txt, [0-9,]+ bytes; step-00000030\)'
expect 0 "$MOEKIT" eval --run run --text train.txt -o run/eval.json
expect 0 "$MOEKIT" report --run run -o page.html
says page.html 'trained on</strong> \(train\.txt'
expect 0 "$MOEKIT" eval --run run
expect 0 "$MOEKIT" train small.yaml --run same data.eval=train.txt train.steps=2
says err 'same text: nothing is held out'
expect 0 "$MOEKIT" report --run same
grep -qi 'held-out' same/report.html && complain 'a text that was trained on is called held-out'
expect 0 "$MOEKIT" generate --run same -m run/checkpoints/step-00000030 -n 5
says err 'sample\.txt is left alone'
[ -e same/sample.txt ] && complain 'sample.txt of another checkpoint'
mkdir same/sample.txt
expect 2 "$MOEKIT" generate --run same -n 5
says err 'sample\.txt: is there and is no plain file'
[ -s out ] && complain 'text was drawn that has no place'
rmdir same/sample.txt

expect 0 "$MOEKIT" generate --run run -p 'And the' -n 40 -s 5
[ "$(wc -c <out)" -eq 41 ] || complain "40 bytes and a line break were wanted: $(wc -c <out)"
says run/sample.txt '^And the'
cp out first
expect 0 "$MOEKIT" generate --run run -p 'And the' -n 40 -s 5 -t 1
cmp first out || complain 'the same seed drew another text on one thread'
expect 0 "$MOEKIT" generate --run run -p 'And the' -n 40 -s 6 --no-save
cmp -s first out && complain 'another seed drew the same text'
says run/sample.txt "$(head -n 1 first | cut -c 1-8 | sed 's/[^a-z ]/./g')"
printf 'And "\\ \377 x' >prompt
expect 0 "$MOEKIT" generate -m run/checkpoints/step-00000030 -f prompt -n 5 --temp 0 --json
json out
"$MOEKIT" generate -m run/checkpoints/step-00000030 -f - -n 5 --temp 0 --json <prompt 2>/dev/null >piped
cmp <(sed 's/"seconds".*//' out) <(sed 's/"seconds".*//' piped) ||
    complain 'standard input and the file it came from were continued differently'
expect 2 "$MOEKIT" generate --run run -p x -f prompt
if command -v script >/dev/null; then
    script -qec "'$MOEKIT' generate -m run/checkpoints/step-00000030 -n 2000 --temp 1000 --top-p 1" typed >/dev/null </dev/null
    says typed '\\x1b'
    tail -n +2 typed | grep -q $'\x1b' && complain 'a control byte that was drawn reached the terminal'
fi
: >nothing
expect 3 "$MOEKIT" generate --run run -f nothing
expect 3 "$MOEKIT" generate --run run -f missing
expect 2 "$MOEKIT" generate -p x
says err '--run DIR'
expect 3 "$MOEKIT" generate --run elsewhere
says err 'elsewhere: no such run'

# several at once: each is what its seed draws alone, in order, however many are drawn together
expect 0 "$MOEKIT" generate --run run -p 'And the' -p house --samples 2 -n 40 -s 5 -v
says err '4 texts, 160 bytes'
cmp out run/sample.txt || complain 'sample.txt is not what was printed'
cp out together
says out '^==> prompt 2 of 2, sample 1 of 2, seed 5 <==$'
for batch in 1 3; do
    expect 0 "$MOEKIT" generate --run run -p 'And the' -p house --samples 2 -n 40 -s 5 --batch $batch
    cmp out together || complain "--batch $batch drew other texts"
done
{
    for prompt in 'And the' house; do
        for seed in 5 6; do
            [ "$prompt$seed" = 'And the5' ] || echo
            echo "==> prompt $([ "$prompt" = house ] && echo 2 || echo 1) of 2, sample $((seed - 4)) of 2, seed $seed <=="
            printf '%s' "$prompt"
            "$MOEKIT" generate --run run -p "$prompt" -n 40 -s $seed --no-save 2>/dev/null
        done
    done
} >one_by_one
cmp together one_by_one || complain 'texts drawn together are not those drawn one by one'
printf 'And the\nhouse' >lines
expect 0 "$MOEKIT" generate --run run --prompts lines --samples 2 -n 40 -s 5 --no-save
cmp out together || complain 'prompts of a file and of the command line were continued differently'
expect 0 "$MOEKIT" generate --run run --prompts lines --samples 2 -n 9 --json
json out
says out '"prompt":"house","sample":2,.*"bytes":9,"seed":2'
[ "$(grep -c '"prompt":' out)" -eq 4 ] || complain 'four texts were wanted, one a line'
"$MOEKIT" generate --run run --prompts - -n 9 --json --no-save <lines 2>/dev/null | grep -q '"prompt":"house","sample":1' ||
    complain 'prompts of standard input'
expect 0 "$MOEKIT" generate --run run -p x --samples 2 --temp 0 -n 5 --no-save
says err 'will be the same'
# what does not fit is told in the command's words, and a prompt that is too long once
expect 0 "$MOEKIT" train small.yaml --run wide-context train.steps=1 model.context=100000 train.length=16 data.eval= -q
expect 2 "$MOEKIT" generate --run wide-context -p x --samples 65536 --batch 65536 -n 99999 --no-save
says err '65536 of 100000 tokens are more than [0-9]+ tokens; lower --batch or --n-predict'
head -c 100 train.txt | tr '\n' ' ' >wide
expect 0 "$MOEKIT" generate --run run -f wide --samples 5 --batch 1 -n 3 --no-save
[ "$(grep -c 'longer than the context' err)" -eq 1 ] || complain "a prompt that is too long is told otherwise than once: $(cat err)"
printf 'a\n\nb\n' >gap
expect 3 "$MOEKIT" generate --run run --prompts gap
says err 'gap: line 2: empty'
silent out
expect 3 "$MOEKIT" generate --run run --prompts nothing
expect 3 "$MOEKIT" generate --run run --prompts missing
expect 2 "$MOEKIT" generate --run run --prompts lines -p x
says err 'only one of'
expect 2 "$MOEKIT" generate --run run -p x -p ''
expect 2 "$MOEKIT" generate --run run -p x --samples 0
expect 2 "$MOEKIT" generate --run run -p x --batch 0

expect 0 "$MOEKIT" report --run run
[ "$(cat out)" = run/report.html ] || complain 'report prints its path and nothing else'
says run/report.html '<svg'
expect 0 "$MOEKIT" report --run run -o page.html --json
json out
[ -s page.html ] || complain 'page.html is missing'
expect 2 "$MOEKIT" report --run run -o run
says err 'no plain file'
expect 3 "$MOEKIT" report --run elsewhere
expect 2 "$MOEKIT" report

# texts that are not there, or nothing
expect 3 "$MOEKIT" train small.yaml --run bad data.train=missing.txt
says err 'missing.txt'
expect 3 "$MOEKIT" train small.yaml --run bad data.train=nothing
says err 'nothing'
expect 3 "$MOEKIT" train small.yaml --run bad data.eval=nothing
expect 2 "$MOEKIT" train small.yaml --run bad data.train=
[ -e bad ] && complain 'a run that could not start left a directory'
expect 3 "$MOEKIT" eval --run run --text missing.txt
says err 'missing.txt'
expect 3 "$MOEKIT" eval --run run --text nothing
expect 3 "$MOEKIT" train nosuch.yaml --run bad
says err 'nosuch.yaml'
finish
