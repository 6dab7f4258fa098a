#!/usr/bin/env python3
"""make.py: small tokenizers of the constructions that real checkpoints have, and what Hugging Face's tokenizers
0.23.3 makes of texts with them: NAME.json and NAME.expected.json beside this file, texts.json for all.

    /opt/venv/bin/python3 tests/golden/tokenizer/make.py     needs tokenizers and Debian's bible-kjv

The vocabularies are trained on the King James text and the texts below, all in the public domain or ours.
texts.json: a text, or {"hex": bytes} where it is no UTF-8 or has a NUL. expected: for each text its ids, those with the
template around it, and the text of both, with and without special tokens.
"""
import json
import os
import subprocess

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
# The regexes of Qwen2 and later, of DeepSeek-V3 and of o200k: facts of those formats.
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "", " ", "a", "In the beginning God created the heaven and the earth.", "  leading and trailing  ",
    "The LORD's day: they'll say I'VE, we'Re, don't and 'tis.", "caf\u00e9 cafe\u0301 na\u00efve nai\u0308ve \u1e69 s\u0323\u0307 s\u0307\u0323",
    "\u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea \u05d1\u05b8\u05bc\u05e8\u05b8\u05d0 \u05d0\u05b1\u05dc\u05b9\u05d4\u05b4\u05d9\u05dd",
    "\u8d77\u521d\uff0c\u795e\u521b\u9020\u5929\u5730\u3002\u306f\u3058\u3081\u306b\u795e\u306f\u5929\u3068\u5730\u3068\u3092\u5275\u9020\u3055\u308c\u305f\u3002 \ud55c\uae00 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 flag \U0001f1ef\U0001f1f5 skin \U0001f44d\U0001f3fd heart \u2764\ufe0f",
    "1 22 333 4444 55555 3.14159 1,000,000 \u0661\u0662\u0663 \u2167 \u00bd x\u00b2",
    "int main(void) {\n\treturn printf(\"%d\\n\", a[i]->b & 0x1F) != 0; /* ok */\n}\n\n\n#include <stdio.h>",
    "spaces:" + " " * 37 + "end" + " " * 16 + "\n" + "\t" * 9 + "x" + "\n" * 21 + "\r\n\r\n \n \n",
    "\u00a0nbsp\u2003em\u3000ideographic\u2028line\u200bzero\ufeffbom",
    "<s>begin</s><|endoftext|>mid <|im_start|>user\nhi<|im_end|> <unk> <pad>x<mask>  y", "<|im_start|", "<|endoftext|>",
    "a <left> b<right>  c <both> d word sword words word", "\u2581mark \u2581\u2581two", "\u0130stanbul \u03a3\u03a3 \u00df \u01c5 \ufb01 \u2460 \u212b \ufdfa",
    "a" * 300, "ab" * 200 + "the" * 100, "\u0301" * 5 + "a" + "\u0301\u0323" * 40, "Hello\ufffdWorld\ufffd",
    "\U00010348\U0001d54f \u0915\u094d\u0937\u093f \u0e01\u0e33 \u1e0b\u0323", "A.B,C;D:E!F?G(H)I[J]K{L}\u00abM\u00bb\u2014N\u2026",
    "UPPER lower MiXeD CamelCase snake_case kebab-case HTTPServer x1y2z3",
    "http://example.org/path?q=1&r=2#frag user@host.tld ~/dir/file.txt $HOME 100% #tag",
    b"bad \xff\xfe byte, \xc3( cut \xe2\x82", b"\xf0\x9f\x98", b"nul \x00 in it", b"\xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80",
    "\u0000".encode() + "\x01\x1f\x7f\x80\x9f\xad".encode(),
]


def training_text():
    verses = subprocess.run(["bible", "-f", "gen1:1-gen50:26"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    own = [text for text in TEXTS if isinstance(text, str)]
    return verses.stdout.decode().split("\n") + own * 6


def train(pre_tokenizer, normalizer, size, special, alphabet):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    return json.loads(made.to_str())


def added(made, content, **switches):
    row = {"id": None, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
           "special": True, **switches}
    vocab = made["model"]["vocab"]
    largest = max([*vocab.values(), *[other["id"] for other in made["added_tokens"]]])
    row["id"] = vocab.get(content, largest + 1)
    made["added_tokens"] = [other for other in made["added_tokens"] if other["content"] != content] + [row]


def template(made, before=(), after=()):
    ids = {row["content"]: row["id"] for row in made["added_tokens"]}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in before]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": name, "type_id": 0}} for name in after]
    return {"type": "TemplateProcessing", "single": single, "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in [*before, *after]}}


def byte_level(split, normalizer, size, special):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    made = train(pre_tokenizers.Sequence([*steps, last]) if steps else last, normalizer, size, special,
                 pre_tokenizers.ByteLevel.alphabet())
    made["decoder"] = json.loads(decoders.ByteLevel().__getstate__())
    return made


def neox():
    made = byte_level([], normalizers.NFC(), 900, ["<|endoftext|>", "<|padding|>"])
    for count in range(24, 1, -1):
        added(made, " " * count, normalized=True, special=False)
    added(made, "caf\u00e9 cafe\u0301", normalized=True, special=False)
    made["model"]["merges"] = [" ".join(pair) for pair in made["model"]["merges"]]
    made["post_processor"] = template(made, after=["<|endoftext|>"])
    return made


def qwen():
    made = byte_level([QWEN], normalizers.NFC(), 900, [])
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        added(made, name)
    added(made, "<think>", special=False)
    made["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return made


def deepseek():
    made = byte_level([r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK], None, 900,
                      ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"])
    added(made, "<\uff5cUser\uff5c>", special=False)
    made["normalizer"] = {"type": "Sequence", "normalizers": []}
    made["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        template(made, before=["<\uff5cbegin\u2581of\u2581sentence\uff5c>"])]}
    return made


def o200k():
    made = byte_level([O200K], None, 900, ["<|startoftext|>", "<|return|>"])
    made["model"]["ignore_merges"] = True
    # A word that merges do not reach, as a vocabulary taken over from elsewhere may have.
    made["model"]["vocab"]["\u0120earth"] = made["model"]["vocab"].get("\u0120earth", 900)
    made["model"]["merges"] = [pair for pair in made["model"]["merges"] if "".join(pair) != "\u0120earth"
                               and "\u0120earth" not in pair]
    return made


def sentencepiece(size):
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made = train(pre_tokenizers.Metaspace(prepend_scheme="always"), None, size, special + fallback, [])
    made["added_tokens"] = [row for row in made["added_tokens"] if row["content"] in special]
    rare = [token for token in made["model"]["vocab"] if len(token) == 1 and ord(token) > 0x2fff]
    merged = {part for pair in made["model"]["merges"] for part in pair}
    for token in rare:  # so that some characters fall back to bytes
        if token not in merged:
            del made["model"]["vocab"][token]
    ids = {token: at for at, token in enumerate(sorted(made["model"]["vocab"], key=made["model"]["vocab"].get))}
    made["model"].update(vocab=ids, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    made["post_processor"] = template(made, before=["<s>"])
    return made


def llama_prepend():
    made = sentencepiece(1200)
    made["pre_tokenizer"] = None
    made["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    made["model"]["merges"] = [" ".join(pair) for pair in made["model"]["merges"]]
    return made


def llama_metaspace():
    made = sentencepiece(1200)
    made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    added(made, "<mask>", lstrip=True, normalized=True)
    return made


def metaspace_split():
    made = sentencepiece(800)
    made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    made["decoder"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    made["model"].update(byte_fallback=False, fuse_unk=False)
    made["post_processor"] = template(made, before=["<s>"], after=["</s>", "</s>"])
    return made


def words():
    """What no family of ours has, but the format."""
    pieces = [pre_tokenizers.Split("kebab", "merged_with_previous"), pre_tokenizers.Split(Regex("[aeiou]+"), "merged_with_next"),
              pre_tokenizers.Split(Regex(r"\s"), "removed"), pre_tokenizers.Split(Regex("[^x]+"), "contiguous", invert=True),
              pre_tokenizers.Split(Regex("z*"), "isolated"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True),
              pre_tokenizers.Whitespace()]
    normal = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.Strip(), normalizers.NFKC(),
                                   normalizers.Replace(Regex("l+"), "l"), normalizers.NFD(), normalizers.Replace("ph", "f")])
    made = train(pre_tokenizers.Sequence(pieces), normal, 500, ["<unk>"], [])
    made["model"].update(unk_token="<unk>", fuse_unk=True)
    alphabet = {token for token in made["model"]["vocab"] if len(token) == 1 and ord(token) > 0x4fff}
    kept = [token for token in made["model"]["vocab"] if token not in alphabet]
    made["model"]["vocab"] = {token: at for at, token in enumerate(kept)} # no gap: added tokens come behind
    made["model"]["merges"] = [pair for pair in made["model"]["merges"]
                               if pair[0] in made["model"]["vocab"] and pair[1] in made["model"]["vocab"]
                               and "".join(pair) in made["model"]["vocab"]]
    added(made, "<left>", lstrip=True)
    added(made, "<right>", rstrip=True)
    added(made, "<both>", lstrip=True, rstrip=True, normalized=True)
    added(made, "word", single_word=True, special=False)
    added(made, "Hello", normalized=True, special=False)
    return made


def digits():
    """Two more ways to cut, without a decoder's say and with a chain of them."""
    pieces = [pre_tokenizers.Digits(False), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous"),
              pre_tokenizers.ByteLevel(add_prefix_space=True)]
    made = train(pre_tokenizers.Sequence(pieces), None, 500, ["<s>"], [])
    made["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Strip", "content": "\u0120", "start": 1, "stop": 0},
        {"type": "Replace", "pattern": {"Regex": "\u0120+"}, "content": "\u0120\u0120"},
        json.loads(decoders.ByteLevel().__getstate__()),
        {"type": "Strip", "content": "e", "start": 2, "stop": 0}]}
    return made


def as_text(text):
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text


def expect(tokenizer, text):
    plain = tokenizer.encode(as_text(text), add_special_tokens=False).ids
    around = tokenizer.encode(as_text(text)).ids
    return {"ids": plain, "around": around, "text": tokenizer.decode(around, skip_special_tokens=False),
            "skipped": tokenizer.decode(around)}


def write(name, content):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def main():
    write("texts.json", [{"hex": text.hex()} if isinstance(text, bytes) else text for text in TEXTS])
    for build in (neox, qwen, deepseek, o200k, llama_prepend, llama_metaspace, metaspace_split, words, digits):
        made = build()
        write(f"{build.__name__}.json", made)
        tokenizer = Tokenizer.from_str(json.dumps(made))
        rows = [expect(tokenizer, text) for text in TEXTS]
        tokenizer.encode_special_tokens = True
        for row, text in zip(rows, TEXTS):
            row["plain"] = tokenizer.encode(as_text(text), add_special_tokens=False).ids
            for key in ("text", "skipped"):
                row[key] = {"hex": row[key].encode().hex()} if "\0" in row[key] else row[key]
        write(f"{build.__name__}.expected.json", rows)


if __name__ == "__main__":
    main()
