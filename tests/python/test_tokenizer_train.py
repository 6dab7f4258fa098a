#!/usr/bin/env python3
"""A run on tokens leaves checkpoints whose tokenizer transformers' AutoTokenizer finds, with the same ids.

Runs under $MOEKIT_PYTHON; without transformers there it is skipped by name.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "tests", "python"))

import need

os.environ["HF_HUB_OFFLINE"] = "1"
need.modules("tokenizers", "transformers")

import transformers
from tokenizers import Tokenizer

GOLDEN = os.path.join(TOP, "tests", "golden", "tokenizer")
TEXTS = ["In the beginning God created the heaven and the earth.", "caf\u00e9 cafe\u0301 <|im_start|>user\n12345 \U0001f600  x"]
SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.context=16", "model.vocab_size=2048",
         "moe.num_experts=4", "moe.expert_hidden_size=8", "train.steps=2", "train.batch_size=2", "train.save_every=1"]


class Checkpoints(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.text = os.path.join(self.dir, "text.txt")
        with open(self.text, "w", encoding="utf-8") as file:
            file.write("".join(TEXTS) * 40)

    def train(self, name, *settings):
        run = os.path.join(self.dir, name)
        subprocess.run([os.environ["MOEKIT"], "train", "-q", "--run", run, f"data.train={self.text}", *settings],
                       check=True, stdout=subprocess.DEVNULL)
        steps = sorted(os.listdir(os.path.join(run, "checkpoints")))
        return os.path.join(run, "checkpoints", steps[-1])

    def check(self, checkpoint, tokenizer):
        theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
        for text in TEXTS:
            self.assertEqual(theirs(text)["input_ids"], tokenizer.encode(text).ids, text)

    def test_a_file(self):
        for name in ("qwen", "neox", "llama_metaspace"):
            with self.subTest(name):
                file = os.path.join(GOLDEN, f"{name}.json")
                self.check(self.train(name, f"data.tokenizer={file}", *SMALL), Tokenizer.from_file(file))

    def test_a_directory_and_a_run_from_its_checkpoint(self):
        there = os.path.join(self.dir, "there")
        os.mkdir(there)
        shutil.copy(os.path.join(GOLDEN, "deepseek.json"), os.path.join(there, "tokenizer.json"))
        with open(os.path.join(there, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>"}, file)
        first = self.train("first", f"data.tokenizer={there}", *SMALL)
        second = self.train("second", f"train.from={first}", "train.steps=1")
        tokenizer = Tokenizer.from_file(os.path.join(there, "tokenizer.json"))
        for checkpoint in (first, second):
            self.check(checkpoint, tokenizer)
            self.assertEqual(transformers.AutoTokenizer.from_pretrained(checkpoint).eos_token,
                             "<\uff5cend\u2581of\u2581sentence\uff5c>")


if __name__ == "__main__":
    unittest.main()
