#!/bin/bash
# The runner of recorded runs: what is changed, missing, relabelled or of no known kind fails by its name.
. "$(dirname "$0")/support/common.sh"
golden=$(dirname "$MOEKIT")/tests/golden
recorded=$tree/tests/golden/golden_shared.safetensors

# changed PATTERN TEXT: ./bad is the recorded file with one text of its header for another of the same length.
changed() {
    LC_ALL=C sed -b "s/$1/$2/" "$recorded" >bad
    [ "$(wc -c <bad)" -eq "$(wc -c <"$recorded")" ] || complain "'$1' and '$2' differ in length"
    ! cmp -s bad "$recorded" || complain "nothing was changed by '$1'"
}
# fails PATTERN: the runner refuses ./bad, and a line of it says why.
fails() {
    expect 1 "$golden" bad
    says out "$1"
    says out '[0-9]+ passed, [1-9][0-9]* failed'
}

expect 0 "$golden" "$recorded"
says out '^50 passed, 0 failed$'
says out 'automodel_relu2.*not recorded: aux_loss'

# shapes: [E, d, n] of the experts turned round, a gradient unlike its parameter
changed '\(automodel_aux\/experts_down_projs":{"dtype":"F32","shape":\)\[8,12,16\]' '\1[8,16,12]'
fails "FAIL automodel_aux .*'experts_down_projs' has another shape"

# options: one unknown, one of the wrong type, a size that does not fit
changed 'loss_coef\\": 0.01' 'loss_cool\\": 0.01'
fails "FAIL lucid.*option 'loss_cool' is not known"
changed 'hidden_dim\\": 24' 'hidden_dim\\": 25'
fails 'FAIL lucid_hier_all .*shape'
changed '\\"dim\\": 16' '\\"dim\\": []'
fails "FAIL lucid_hier_all .*'dim' is missing or not an integer"
changed 'lucidrains MoE hierarchical' 'lucidrains MoE hieroglyphic'
fails "system 'lucidrains MoE hieroglyphic' is not known"

# tensors: an input lost, one that no case of its kind has
changed 'automodel_aux\/gate_weight' 'automodel_aux\/gate_weighs'
fails "FAIL automodel_aux .*gate"
changed 'automodel_aux\/aux_loss' 'automodel_aux\/aux_lost'
fails "FAIL automodel_aux .*'automodel_aux/aux_lost' is neither an input nor compared"

# numbers: one byte of a map; the file cut short, empty, of another kind
byte=$(($(wc -c <"$recorded") - 300))
case $(tail -c 300 "$recorded" | head -c 1 | od -An -tu1) in *0) other='\001' ;; *) other='\000' ;; esac
cp "$recorded" bad && printf '%b' "$other" | dd of=bad conv=notrunc bs=1 seek=$byte status=none
fails '^FAIL '
head -c 1000000 "$recorded" >bad
fails '^FAIL .*bad'
: >bad
fails '^FAIL .*bad'
echo 'no tensors at all' >bad
fails '^FAIL .*bad'
expect 1 "$golden" nowhere
says out '^FAIL .*nowhere'
expect 2 "$golden"
says err '^usage: golden'
expect 0 "$golden" --help
finish
