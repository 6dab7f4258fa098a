#!/bin/bash
# generate and eval of checkpoints with a tokenizer.json: what is drawn are its tokens, a text ends where one says
# so, bits are per byte; and checkpoints that lack a tokenizer, or tensors, are refused before they are read.
. "$(dirname "$0")/support/common.sh"
cp -r "$tree/tests/golden/olmoe" model
chmod -R u+w model

# 48 tokens: an end, a blank, letters, a letter of two bytes by bytes, merges.
id=1
letters=
for letter in a b c d e f g h i j k l m n o p q r s t u v w x y z; do
    id=$((id + 1))
    letters+="\"$letter\": $id, "
done
cat >tokenizer.json <<END
{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
 "post_processor": null, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
 "added_tokens": [{"id": 0, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true}],
 "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
           "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
           "vocab": {"<end>": 0, " ": 1, $letters "th": 28, "the": 29, "and": 30, "an": 31, "<0xC3>": 32,
                     "<0xA9>": 33, "in": 34, "er": 35, "on": 36, "at": 37, "ed": 38, "es": 39, "or": 40, "ar": 41,
                     "al": 42, "en": 43, "ing": 44, "of": 45, "to": 46, "is": 47},
           "merges": ["t h", "th e", "a n", "an d", "i n", "e r", "o n", "a t", "e d", "e s", "o r", "a r", "a l",
                      "e n", "in g", "o f", "t o", "i s"]}}
END

# without it: told what would be right, and nothing is read
expect 8 "$MOEKIT" generate -m model -p 'the king'
unsupported=$(cat err)
case $unsupported in *'has 48 tokens and no tokenizer.json'*'published with'*) ;; *) complain "$unsupported" ;; esac
echo 'the king and the land of the sons' >text.txt
expect 8 "$MOEKIT" eval -m model --text text.txt
says err 'has 48 tokens and no tokenizer.json'

cp tokenizer.json model/
# what save_pretrained writes for a text of any length: a number that nobody reads
echo '{"model_max_length": 1000000000000000019884624838656}' >model/tokenizer_config.json
expect 0 "$MOEKIT" generate -m model -p 'the king' -n 20 --temp 0 --json
json out
says out '"text":"[^"]+","bytes":[0-9]+,"tokens":\[[0-9]+(,[0-9]+){19}\],"ended":false'
tokens=$(sed 's/.*"tokens":\[\([^]]*\)\].*/\1/' out)
text=$(sed 's/.*"text":"\([^"]*\)".*/\1/' out)
expect 0 "$MOEKIT" generate -m model -p 'the king' -n 20 --temp 0
silent err
[ "$(cat out)" = "$text" ] || complain "streamed '$(cat out)', in JSON '$text'"
expect 0 "$MOEKIT" generate -m model -p 'the king' -n 20 --temp 0 --threads 1
[ "$(cat out)" = "$text" ] || complain "with one thread '$(cat out)', with two '$text'"
expect 2 "$MOEKIT" generate -m model -p 'the king' --experts bf16x2,32
says err 'has no scales'
expect 2 "$MOEKIT" generate -m model -p 'the king' --experts int5
says err "'int5' is not one of int8, int4, nf4, mxfp4 and bf16x2"
expect 2 "$MOEKIT" generate -m model -p 'the king' --experts int4,x
says err 'a group is a number, as in int4,64'
expect 0 "$MOEKIT" generate -m model -p 'the king' -n 5 --experts int8,64
# several at once: each is what it is alone
expect 0 "$MOEKIT" generate -m model -p 'the king' -p 'sons of' -n 20 --temp 0 --json
json out
[ "$(grep -Fc "\"tokens\":[$tokens]" out)" -eq 1 ] || complain "beside another text other tokens than $tokens"

# the end of a text: the second token that is drawn
second=$(echo "$tokens" | cut -d, -f2)
[ "${tokens%%,*}" != "$second" ] || complain "token $second is drawn first: choose another prompt"
echo "{\"eos_token_id\": [0, $second]}" >model/generation_config.json
expect 0 "$MOEKIT" generate -m model -p 'the king' -n 20 --temp 0
says err '^the text has ended, with token 2 of 20$'
case $text in "$(cat out)"*) ;; *) complain "'$(cat out)' does not begin '$text'" ;; esac
expect 0 "$MOEKIT" generate -m model -p 'the king' -n 20 --temp 0 --json
says out "\"tokens\":\[$(echo "$tokens" | cut -d, -f1-2)\],\"ended\":true"
rm model/generation_config.json

# eval: what all tokens cost over the bytes of the text, and for a token
expect 0 "$MOEKIT" eval -m model --text text.txt --json
json out
python3 - "$(cat out)" "$(wc -c <text.txt)" <<'END' || complain "bits and perplexity do not agree: $(cat out)"
import json, sys
got, size = json.loads(sys.argv[1]), int(sys.argv[2])
bits = got["bits_per_byte"] * size
assert got["bytes"] == size and 10 < got["tokens"] < size
assert abs(2 ** (bits / got["tokens"]) / got["perplexity"] - 1) < 1e-6
assert 5 < got["perplexity"] < 500
END
expect 0 "$MOEKIT" eval -m model --text text.txt --window 8
says out '^bits/byte '
says out '^perplexity  [0-9.]+  a token, [0-9]+ tokens$'
expect 0 "$MOEKIT" eval -m model --text text.txt -n 20 -o analysis.json --record-routes routes.safetensors
says analysis.json '"tokens": [0-9]+'
expect 0 "$MOEKIT" eval -m model --text text.txt -n 20 --replay-routes routes.safetensors
# tokens typical of experts have their text, a space too
for i in $(seq 30); do echo 'the king and the land of the sonsé'; done >long.txt
expect 0 "$MOEKIT" eval -m model --text long.txt -o analysis.json
python3 - <<'END' || complain "typical tokens have other texts: $(cat analysis.json)"
import json
ids = json.load(open("tokenizer.json"))["model"]["vocab"]
text = {number: spelled.replace("\u0120", " ") for spelled, number in ids.items()}
text[32] = text[33] = None  # the two bytes of a letter
typical = [t for layer in json.load(open("analysis.json"))["layers"] for expert in layer["typical"] for t in expert]
assert typical and all(t.get("text") == text[t["token"]] for t in typical)
assert {32, 33} & {t["token"] for t in typical}
END
expect 2 "$MOEKIT" eval -m model --text text.txt -o model/tokenizer.json
says err 'a file of a checkpoint'
printf a >short.txt
expect 3 "$MOEKIT" eval -m model --text short.txt

# a number that is no number: said, and nothing about a training that is not there
cp -r model damaged
python3 - <<'END'
import json, struct
path = "damaged/model.safetensors"
data = bytearray(open(path, "rb").read())
(head,) = struct.unpack("<Q", data[:8])
norm = json.loads(data[8:8 + head])["model.norm.weight"]
assert norm["dtype"] == "F32"
at = 8 + head + norm["data_offsets"][0]
data[at:at + 4] = struct.pack("<f", float("nan"))
open(path, "wb").write(data)
END
expect 5 "$MOEKIT" eval -m damaged --text text.txt
says err 'a weight or an activation is not finite$'

# no prompt at all
expect 3 "$MOEKIT" generate -m model --file -
says err 'empty; a prompt needs at least one byte$'

# a report shows the text of tokens, whose numbers may be those of bytes, and counts tokens
for i in $(seq 200); do cat text.txt; done >train.txt
expect 0 "$MOEKIT" train --from model --run run --data.train train.txt --data.eval train.txt --train.steps 3 \
    --train.batch_size 2 --model.context 16 --train.eval_every 0
expect 0 "$MOEKIT" eval --run run
expect 0 "$MOEKIT" report --run run
says run/report.html '<kbd>and</kbd>'
says run/report.html '<kbd>the</kbd>'
says run/report.html 'at work on any one token'
says run/report.html 'Tokens seen</dt><dd>[0-9]+ <small>tokens<'
grep -q '<kbd>\\x' run/report.html && complain 'a token is shown as a byte'

# another model's tokenizer; tensors that do not fit the settings, by name (test_load_packed.c: before there is
# memory for them)
cp -r model wrong
cp "$tree/tests/golden/tokenizer/qwen.json" wrong/tokenizer.json
expect 3 "$MOEKIT" generate -m wrong -p a
says err 'tokenizer.json has 9[0-9]+ tokens and the model 48'
cp tokenizer.json wrong/
for change in 's/"hidden_size": *24/"hidden_size": 4096/' 's/"num_experts": *6/"num_experts": 60000/' \
    's/"intermediate_size": *12/"intermediate_size": 1000000/' 's/"num_hidden_layers": *2/"num_hidden_layers": 3/'; do
    sed "$change" model/config.json >wrong/config.json
    ! cmp -s model/config.json wrong/config.json || complain "nothing was changed by $change"
    expect 3 "$MOEKIT" generate -m wrong -p a
    says err 'tensor model\.[a-z0-9_.]*weight'
    expect 3 "$MOEKIT" eval -m wrong --text text.txt
    says err 'tensor model\.[a-z0-9_.]*weight'
done
finish
