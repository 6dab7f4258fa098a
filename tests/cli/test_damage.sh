#!/bin/bash
# Checkpoints that are broken, cut short, of another kind or hold NaN: a message that names the file, no crash.
. "$(dirname "$0")/support/common.sh"
make_config
expect 0 "$MOEKIT" train small.yaml --run run -q
good=run/checkpoints/step-00000030

# refused CODE PATTERN: eval and generate of ./bad exit with the code and name what is wrong.
refused() {
    expect "$1" "$MOEKIT" eval -m bad --text heldout.txt
    says err "$2"
    expect "$1" "$MOEKIT" generate -m bad -p And -n 20
    says err "$2"
}
fresh() {
    rm -rf bad
    cp -r $good bad
}

expect 3 "$MOEKIT" eval -m nowhere --text heldout.txt
says err nowhere
mkdir bad
refused 3 'bad.*config\.json'
fresh && rm bad/model.safetensors
refused 3 'model\.safetensors'
fresh && truncate -s -100 bad/model.safetensors
refused 3 'model\.safetensors'
fresh && truncate -s 5 bad/model.safetensors
refused 3 'model\.safetensors'
fresh && : >bad/model.safetensors
refused 3 'model\.safetensors'
fresh && printf '\377\377\377\377\377\377\377\177' | dd of=bad/model.safetensors conv=notrunc status=none
refused 3 'model\.safetensors'
fresh && printf '{' >bad/config.json
refused 3 'config\.json'
fresh && sed -i 's/"num_hidden_layers": *[0-9]*/"num_hidden_layers": 3/; s/"n_layers": *[0-9]*/"n_layers": 3/' bad/config.json
refused 3 'bad'

# a flipped byte among the numbers is a number still: only the recorded sha256 tells
fresh && printf '\177' | dd of=bad/model.safetensors bs=1 seek=40003 conv=notrunc status=none
refused 3 'bad/model\.safetensors: damaged or changed'

# every number of the file NaN, and no sha256 recorded: the header's length is in its first 8 bytes
fresh && rm bad/trainer.json
head_bytes=$(($(od -An -t u4 -N 4 bad/model.safetensors) + 8))
data_bytes=$(($(stat -c %s bad/model.safetensors) - head_bytes))
head -c $head_bytes $good/model.safetensors >bad/model.safetensors
head -c $data_bytes /dev/zero | tr '\0' '\377' >>bad/model.safetensors
refused 5 '[Nn]a[Nn]|finite'

# A run whose newest checkpoint is cut goes on from the one before: the warning names both, the cut one is set
# aside, and the run ends with the bits of the unbroken one.
cp -r run cut
newest=cut/checkpoints/step-00000030
truncate -s 5 $newest/model.safetensors
expect 0 "$MOEKIT" train --resume --run cut
says err 'cut/checkpoints/step-00000020: 1 checkpoint after it is damaged and set aside .*step-00000030'
says err 'resume cut/checkpoints/step-00000020'
[ -e $newest.damaged/model.safetensors ] || complain 'the cut checkpoint was not set aside'
cmp run/checkpoints/step-00000030/model.safetensors $newest/model.safetensors ||
    complain 'after the cut checkpoint the run ended with other bits'
# where none can be read, the first is named and nothing changes
for checkpoint in cut/checkpoints/*; do truncate -s 5 "$checkpoint/trainer.json"; done
ls -R cut >before
expect 3 "$MOEKIT" train --resume --run cut
says err 'step-00000030/trainer\.json'
ls -R cut >after
cmp before after || complain 'a run that cannot be resumed was changed'
rm -rf cut/checkpoints/*
expect 3 "$MOEKIT" eval --run cut
says err 'cut'
finish
