#!/usr/bin/env python3
"""moekit generate and eval of checkpoints with a tokenizer, beside transformers: the same tokens, text and loss.

Random small models that transformers saves in shards, of each family, with tokenizers of tests/golden/tokenizer: greedy
continuations token by token, where they end, and bits of a text. Runs under $MOEKIT_PYTHON where that is set. Exit code
77: torch or transformers is not installed.
"""
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

import need

os.environ["HF_HUB_OFFLINE"] = "1"
need.modules("torch", "transformers")

import torch
import transformers

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZES = {"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 96, "num_experts_per_tok": 2, "initializer_range": 0.3, "pad_token_id": None}
# class -> sizes of its own, tokenizer, what texts begin with
CASES = {
    "Olmoe": ({"intermediate_size": 24, "num_experts": 6}, "neox", None),
    "Qwen3Moe": ({"moe_intermediate_size": 24, "intermediate_size": 40, "head_dim": 12, "num_experts": 6}, "qwen", None),
    "Mixtral": ({"intermediate_size": 24, "num_local_experts": 6}, "llama_prepend", "<s>"),
}
PROMPTS = ["The capital of France is", "Paris", "x = 1", "Grüße, 世界! 12345", "def f(x):\n    return x"]
NEW = 40


def moekit(*arguments):
    run = subprocess.run([os.environ["MOEKIT"], *arguments, "--json"], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    return json.loads(run.stdout)


def save(name, directory):
    """A random model and its tokenizer as transformers has them, with files of both in the directory."""
    sizes, tokenizer_name, begin = CASES[name]
    source = os.path.join(TOP, "tests", "golden", "tokenizer", tokenizer_name + ".json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=source, clean_up_tokenization_spaces=False)
    begin_id = tokenizer.convert_tokens_to_ids(begin) if begin else None
    config = getattr(transformers, name + "Config")(**SIZES, **sizes, bos_token_id=begin_id, eos_token_id=None)
    torch.manual_seed(11)
    model = getattr(transformers, name + "ForCausalLM")(config).float().eval()
    model.save_pretrained(directory, max_shard_size="60KB")
    assert len([file for file in os.listdir(directory) if file.endswith(".safetensors")]) > 1, "no shards"
    shutil.copy(source, os.path.join(directory, "tokenizer.json"))
    if begin:
        with open(os.path.join(directory, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            json.dump({"bos_token": begin}, file)
    return model, tokenizer, begin_id


def continue_text(model, ids, end=None):
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW,
                             eos_token_id=end, pad_token_id=0)
    return out[0, len(ids):].tolist()


def check_generate(model, tokenizer, directory):
    spaced = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        ids = ids[:-1] if tokenizer.convert_ids_to_tokens(ids[-1]) == "<|endoftext|>" else ids  # no end before the text
        theirs = continue_text(model, ids)
        ours = moekit("generate", "-m", directory, "-p", prompt, "-n", str(NEW), "--temp", "0")
        assert ours["tokens"] == theirs, (prompt, ours["tokens"], theirs)
        assert not ours["ended"]
        before = tokenizer.decode(ids, skip_special_tokens=True)
        text = tokenizer.decode(ids + theirs, skip_special_tokens=True)
        assert text.startswith(before) and ours["text"] == text[len(before):], (prompt, ours["text"], text)
        spaced += ours["text"].startswith(" ")
    assert spaced, "choose a prompt behind which a space is drawn first"
    return ids, theirs


def check_end(model, directory, ids, tokens):
    end = tokens[NEW // 2]
    path = os.path.join(directory, "generation_config.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"eos_token_id": [end]}, file)
    theirs = continue_text(model, ids, end)
    ours = moekit("generate", "-m", directory, "-p", PROMPTS[-1], "-n", str(NEW), "--temp", "0")
    assert ours["tokens"] == theirs and theirs[-1] == end and ours["ended"], (ours["tokens"], theirs)
    os.remove(path)


def nats(model, ids):
    """What every token but the first costs, in windows of the context that overlap by half, as moekit's do."""
    longest, n, done, cost, start = SIZES["max_position_embeddings"], len(ids) - 1, 0, 0.0, 0
    while done < n:
        length = min(n, longest)
        at = min(start, n - length)
        with torch.no_grad():
            scores = model(torch.tensor([ids[at:at + length]])).logits[0].double().log_softmax(-1)
        cost -= sum(scores[j, ids[at + j + 1]].item() for j in range(done - at, length))
        done, start = at + length, start + length // 2
    return cost


def check_eval(model, tokenizer, directory, begin_id):
    text = " ".join(PROMPTS) * 6
    path = os.path.join(directory, "text.txt")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = ids if begin_id is None else [begin_id, *ids]
    assert len(whole) > 2 * SIZES["max_position_embeddings"]
    cost = nats(model, whole) + (math.log(SIZES["vocab_size"]) if begin_id is None else 0)
    got = moekit("eval", "-m", directory, "--text", path)
    assert got["tokens"] == len(ids) and got["bytes"] == len(text.encode())
    assert abs(got["perplexity"] / math.exp(cost / len(ids)) - 1) < 1e-4, (got, math.exp(cost / len(ids)))
    assert abs(got["bits_per_byte"] / (cost / math.log(2) / got["bytes"]) - 1) < 1e-4, got


def main():
    for name in CASES:
        with tempfile.TemporaryDirectory() as directory:
            model, tokenizer, begin_id = save(name, directory)
            ids, tokens = check_generate(model, tokenizer, directory)
            check_end(model, directory, ids, tokens)
            check_eval(model, tokenizer, directory, begin_id)
            print(name, "agrees")
    return 0


sys.exit(main())
