#!/usr/bin/env python3
"""Random texts have the tokens that Hugging Face's tokenizers gives them, and those the same text again.

The tokenizers are those of tests/golden/tokenizer; MOEKIT_TOKENIZER names others, files of that kind, separated by
colons. Runs under $MOEKIT_PYTHON; without tokenizers there it is skipped by name.
"""
import ctypes
import glob
import os
import random
import sys
import threading
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "tests", "python"))

import need

need.modules("tokenizers")

from tokenizers import Tokenizer

SEED = int(os.environ.get("MOEKIT_TEST_SEED", random.randrange(2**31)))
N_TEXTS = int(os.environ.get("MOEKIT_TEST_TEXTS", 400))
TEMPLATE, PLAIN, SKIP_SPECIAL = 1, 2, 4


class TokenList(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_size_t), ("capacity", ctypes.c_size_t)]


class TokenText(ctypes.Structure):
    _fields_ = [("bytes", ctypes.POINTER(ctypes.c_char)), ("count", ctypes.c_size_t), ("capacity", ctypes.c_size_t)]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 500)]


C = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(os.environ["MOEKIT"])), "libmoekit-lm.so"))
C.moe_tokenizer_load.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(Error)]
C.moe_tokenizer_destroy.argtypes = [ctypes.c_void_p]
C.moe_tokenizer_encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint,
                                   ctypes.POINTER(TokenList), ctypes.POINTER(Error)]
C.moe_tokenizer_decode.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t, ctypes.c_uint,
                                   ctypes.POINTER(TokenText), ctypes.POINTER(Error)]
C.moe_token_list_free.argtypes = [ctypes.POINTER(TokenList)]
C.moe_token_text_free.argtypes = [ctypes.POINTER(TokenText)]


class Ours:
    def __init__(self, path):
        self.handle, self.error = ctypes.c_void_p(), Error()
        self.check(C.moe_tokenizer_load(os.fsencode(path), ctypes.byref(self.handle), ctypes.byref(self.error)))

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.error.text.decode())

    def close(self):
        C.moe_tokenizer_destroy(self.handle)

    def encode(self, text, flags):
        data, ids = text.encode(), TokenList()
        self.check(C.moe_tokenizer_encode(self.handle, data, len(data), flags, ctypes.byref(ids), ctypes.byref(self.error)))
        made = ids.ids[:ids.count]
        C.moe_token_list_free(ctypes.byref(ids))
        return made

    def decode(self, ids, flags):
        text = TokenText()
        self.check(C.moe_tokenizer_decode(self.handle, (ctypes.c_int32 * len(ids))(*ids), len(ids), flags,
                                          ctypes.byref(text), ctypes.byref(self.error)))
        made = text.bytes[:text.count].decode()
        C.moe_token_text_free(ctypes.byref(text))
        return made


# What texts are made of, so that most of what tokenizers tell apart meets often. Nothing newer than Unicode 13.
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \t\n\r", ".,;:!?'\"()[]{}<>|/\\-_=+*&^%$#@~`",
    "\u00e9\u00e8\u00fc\u00df\u00f1\u0130\u01c5\u00c5\u00bd\u00b2\u00ad\u00a0\u0085", "\u0301\u0323\u0307\u0308\u0327\u05b0\u05bc\u0345",
    "\u05d0\u05d1\u05e9\u05ea\u0645\u0631\u062d", "\u8d77\u521d\u795e\u3042\u30ab\uac00\u1100\u1161\u11a8\u3002\uff0c\uff21", "\u0915\u094d\u0937\u093f\u0e33",
    "\U0001f468\u200d\U0001f469\ufe0f\U0001f1ef\U0001f3fd\u2764", "\u2581\u2028\u3000\u200b\ufeff\u2003", "\u212b\ufb01\u2167\ufdfa\u2460\ufffd\U00010348",
    "\x00\x01\x1b\x7f",
]
WORDS = ["the", " the", "'s", "'LL", " and", "LORD", "earth", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<mask>",
         "<0x41>", "<left>", "<right>", "<both>", "word", "Hello", "cafe\u0301", "<\uff5cUser\uff5c>", "\n\n", "    ", "1234567"]


def draw_text(random_state):
    parts = []
    for _ in range(random_state.randrange(1, 25)):
        if random_state.random() < 0.3:
            parts.append(random_state.choice(WORDS))
        else:
            letters = random_state.choice(ALPHABETS)
            parts.append("".join(random_state.choices(letters, k=random_state.choice([1, 1, 2, 3, 5, 9, 60]))))
    return "".join(parts)


class Same(unittest.TestCase):
    def compare(self, path):
        theirs, ours = Tokenizer.from_file(path), Ours(path)
        self.addCleanup(ours.close)
        state = random.Random(SEED)
        for index in range(N_TEXTS):
            text = draw_text(state)
            where = f"{os.path.basename(path)}, MOEKIT_TEST_SEED={SEED}, text {index}: {text!r}"
            theirs.encode_special_tokens = False
            around = theirs.encode(text).ids
            self.assertEqual(ours.encode(text, 0), theirs.encode(text, add_special_tokens=False).ids, where)
            self.assertEqual(ours.encode(text, TEMPLATE), around, where)
            self.assertEqual(ours.decode(around, 0), theirs.decode(around, skip_special_tokens=False), where)
            self.assertEqual(ours.decode(around, SKIP_SPECIAL), theirs.decode(around), where)
            theirs.encode_special_tokens = True
            self.assertEqual(ours.encode(text, PLAIN), theirs.encode(text, add_special_tokens=False).ids, where)
            ids = [state.randrange(theirs.get_vocab_size() + 5) for _ in range(state.randrange(40))]
            self.assertEqual(ours.decode(ids, 0), theirs.decode(ids, skip_special_tokens=False), f"{where}, ids {ids}")

    def test_random_texts(self):
        given = os.environ.get("MOEKIT_TOKENIZER")
        folder = os.path.join(TOP, "tests", "golden", "tokenizer")
        paths = given.split(":") if given else sorted(glob.glob(os.path.join(folder, "*.json")))
        paths = [path for path in paths if not path.endswith((".expected.json", "texts.json"))]
        self.assertGreaterEqual(len(paths), 1 if given else 9)
        for path in paths:
            with self.subTest(os.path.basename(path)):
                self.compare(path)

    def test_threads_share_a_tokenizer(self):
        ours = Ours(os.path.join(TOP, "tests", "golden", "tokenizer", "qwen.json"))
        self.addCleanup(ours.close)
        state = random.Random(SEED)
        texts = [draw_text(state) for _ in range(200)]
        alone = [ours.encode(text, 0) for text in texts]
        results = [None] * 4

        def work(index):
            results[index] = [ours.encode(text, 0) for text in texts]

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [alone] * 4)


if __name__ == "__main__":
    unittest.main()
