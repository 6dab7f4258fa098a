#!/usr/bin/env python3
"""transformers loads what moekit saves, and moekit what transformers saves: the same logits, the same greedy text.

Random small models in the forms of Mixtral, Qwen3-MoE and OLMoE, written and read through libmoekit-lm's C interface;
logits to 1e-4 of the largest.
Runs under $MOEKIT_PYTHON where that is set. Exit code 77: torch or transformers is not installed.
"""
import ctypes
import json
import os
import sys
import tempfile

import need

os.environ["HF_HUB_OFFLINE"] = "1"
need.modules("torch", "transformers")

import torch
import transformers

COMMON = {
    "model.vocab_size": 64, "model.d_model": 32, "model.n_layers": 3, "model.n_heads": 4, "model.n_kv_heads": 2,
    "model.context": 48, "model.init_std": 0.15, "model.norm_eps": 1e-5, "moe.num_experts": 6, "moe.top_k": 2,
    "moe.expert_hidden_size": 40,
}
QWEN, OLMOE = {"model.qk_norm": "head"}, {"model.qk_norm": "full"}
# class of transformers -> name -> what differs from COMMON
CASES = {"MixtralForCausalLM": {
    "grouped heads": {},
    "tied embeddings": {"model.tie_embeddings": "true", "model.n_kv_heads": 4},
    "wide heads, other rotary base": {"model.head_dim": 24, "model.rope_base": 500000},
    "defaults of bytes": {"model.vocab_size": 256, "model.n_kv_heads": 0, "moe.top_k": 0, "moe.num_experts": 8},
    "renormalised scores, losses": {
        "moe.score_before_topk": "true", "moe.norm_topk_prob": "true", "moe.z_loss_coeff": 0.01,
        "moe.aux_loss_coeff": 0.02, "moe.input_jitter_eps": 0.1, "moe.top_k": 3,
    },
    "one expert": {"moe.top_k": 1},
    "gelu by erf": {"moe.activation": "geglu_exact"},
    "gelu by tanh": {"moe.activation": "geglu"},
    "relu": {"moe.activation": "reglu"},
    "settings of training": {
        "moe.dropout": 0.1, "moe.expert_dropout": 0.1, "moe.seq_aux_loss_coeff": 0.01, "moe.recompute": "layer",
        "moe.token_rounding": 4, "moe.router_frozen": "true",
    },
}, "Qwen3MoeForCausalLM": {
    "renormalised": QWEN,
    "wide heads, scores as they are": {**QWEN, "model.head_dim": 12, "moe.score_before_topk": "true"},
    "one expert with its score": {**QWEN, "moe.top_k": 1, "moe.score_before_topk": "true"},
    "one expert": {**QWEN, "moe.top_k": 1},
    "every second layer": {**QWEN, "model.moe_layer_freq": 2, "model.moe_layer_offset": 1},
    "layers without experts": {**QWEN, "model.dense_layers": "0,2", "model.ffn_hidden_size": 28,
                               "model.tie_embeddings": "true"},
    "jitter in training": {**QWEN, "moe.input_jitter_eps": 0.1, "moe.score_before_topk": "true",
                           "moe.norm_topk_prob": "true"},
}, "OlmoeForCausalLM": {
    "scores as they are": {**OLMOE, "moe.score_before_topk": "true", "moe.top_k": 3},
    "renormalised, tied": {**OLMOE, "model.tie_embeddings": "true", "moe.score_before_topk": "true",
                           "moe.norm_topk_prob": "true"},
    "as many key heads": {**OLMOE, "model.n_kv_heads": 0, "model.rope_base": 500000},
    "clipped": {**OLMOE, "model.clip_qkv": 0.75},
}}
# no model of theirs: saved as moekit's own, which transformers does not take for one of its models
OWN = {
    "one expert with its score": {"moe.top_k": 1, "moe.score_before_topk": "true", "moe.norm_topk_prob": "true"},
    "scores as they are": {"moe.score_before_topk": "true"},
    "heads wider than OLMoE's": {**OLMOE, "model.head_dim": 12},
    "experts in the first of every two layers": {**QWEN, "model.moe_layer_freq": 2},
}
THEIRS = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 48, "num_experts": 6, "num_experts_per_tok": 2, "bos_token_id": None,
          "eos_token_id": None, "pad_token_id": None}
QWEN_SIZES = {"intermediate_size": 28, "moe_intermediate_size": 24, "head_dim": 12}
# saved by transformers: configuration, what differs from THEIRS, type of the file
SAVED = {
    "renormalised": ("Qwen3MoeConfig", {**QWEN_SIZES, "norm_topk_prob": True}, torch.float32),
    "scores as they are": ("Qwen3MoeConfig", {**QWEN_SIZES, "tie_word_embeddings": True}, torch.float32),
    "every second layer, bfloat16": ("Qwen3MoeConfig", {**QWEN_SIZES, "decoder_sparse_step": 2}, torch.bfloat16),
    "a layer without experts, float16": ("Qwen3MoeConfig", {**QWEN_SIZES, "mlp_only_layers": [1]}, torch.float16),
    "layers named that are not there": ("Qwen3MoeConfig", {**QWEN_SIZES, "mlp_only_layers": [7, 0, -1]}, torch.float32),
    "OLMoE": ("OlmoeConfig", {"intermediate_size": 24}, torch.float32),
    "OLMoE, renormalised": ("OlmoeConfig", {"intermediate_size": 24, "norm_topk_prob": True}, torch.float16),
    "OLMoE, clipped": ("OlmoeConfig", {"intermediate_size": 24, "clip_qkv": 1.0}, torch.bfloat16),
}
N_SEQ, LENGTH, PROMPT, NEW = 2, 40, 6, 30


class ContextDesc(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("device", ctypes.c_int), ("n_threads", ctypes.c_int32),
                ("isa", ctypes.c_char_p), ("seed", ctypes.c_uint64), ("host", ctypes.c_void_p * 3),
                ("log", ctypes.c_void_p), ("log_user", ctypes.c_void_p)]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 500)]


class Sampler(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("temperature", ctypes.c_float), ("top_k", ctypes.c_int32),
                ("top_p", ctypes.c_float), ("seed", ctypes.c_uint64)]


TOKEN_FN = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32)


def open_library():
    command = os.environ.get("MOEKIT")
    folder = os.environ.get("MOEKIT_LIB") or (os.path.dirname(command) if command else "")
    library = ctypes.CDLL(os.path.join(folder, "libmoekit-lm.so"))
    library.moe_ctx_error.restype = ctypes.c_char_p
    return library


class Model:
    """One model, random with settings or read from a directory, and its context."""

    def __init__(self, library, settings=None, directory=None):
        self.library = library
        self.ctx, self.lm, error = ctypes.c_void_p(), ctypes.c_void_p(), Error()
        desc = ContextDesc(size=ctypes.sizeof(ContextDesc), n_threads=2, seed=2024)
        status = library.moe_ctx_create(ctypes.byref(desc), ctypes.byref(self.ctx), ctypes.byref(error))
        assert status == 0, error.text
        if directory:
            self.check(library.moe_lm_load_as(self.ctx, directory.encode(), b"f32", ctypes.byref(self.lm)))
        else:
            self.create(settings)

    def create(self, settings):
        library, config, error = self.library, ctypes.c_void_p(), Error()
        status = library.moe_lm_config_create(ctypes.byref(config), ctypes.byref(error))
        assert status == 0, error.text
        for key, value in settings.items():
            status = library.moe_lm_config_set(config, key.encode(), str(value).encode(), b"test", ctypes.byref(error))
            assert status == 0, error.text
        self.check(library.moe_lm_create(self.ctx, config, ctypes.byref(self.lm)))
        library.moe_lm_config_destroy(config)

    def check(self, status):
        assert status == 0, self.library.moe_ctx_error(self.ctx).decode()

    def save(self, directory):
        self.check(self.library.moe_lm_save(self.lm, directory.encode()))

    def logits(self, tokens, vocab):
        n_seq, length = tokens.shape
        flat = (ctypes.c_int32 * tokens.numel())(*tokens.flatten().tolist())
        out = (ctypes.c_float * (tokens.numel() * vocab))()
        shape = (ctypes.c_int64(n_seq), ctypes.c_int64(length))
        self.check(self.library.moe_lm_reserve(self.lm, *shape, 0))
        self.check(self.library.moe_lm_logits(self.lm, flat, *shape, out))
        return torch.tensor(list(out)).reshape(n_seq, length, vocab)

    def greedy(self, prompt, n_new):
        tokens, sampler = [], Sampler(size=ctypes.sizeof(Sampler))
        take = TOKEN_FN(lambda _, token: tokens.append(token) or True)
        flat = (ctypes.c_int32 * len(prompt))(*prompt)
        self.check(self.library.moe_lm_generate(self.lm, flat, ctypes.c_int64(len(prompt)), ctypes.c_int64(n_new),
                                                ctypes.byref(sampler), take, None))
        return tokens

    def close(self):
        self.library.moe_lm_destroy(self.lm)
        self.library.moe_ctx_destroy(self.ctx)


def load(name, kind, directory):
    """What transformers makes of a directory, as f32."""
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True,
                                                                     dtype=torch.float32)
    assert type(theirs).__name__ == kind, f"{name}: {type(theirs)}"
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[trouble], f"{name}: {trouble}: {info[trouble]}"
    return theirs.eval()


def compare(name, ours, theirs, vocab):
    torch.manual_seed(7)
    tokens = torch.randint(0, vocab, (N_SEQ, LENGTH))
    with torch.no_grad():
        right = theirs(tokens).logits
        wanted = theirs.generate(tokens[:1, :PROMPT], max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
    off = ((ours.logits(tokens, vocab) - right).abs().max() / right.abs().max()).item()
    text = ours.greedy(tokens[0, :PROMPT].tolist(), NEW)
    assert off < 1e-4, f"{name}: logits off by {off:g} of the largest"
    assert len(wanted) == NEW, f"{name}: transformers stopped after {len(wanted)} tokens"
    assert text == wanted, f"{name}: greedy text {text}, transformers {wanted}"
    print(f"ok: {name}: logits off by {off:.1e} of the largest, {NEW} greedy tokens the same")


def saves(library, kind, name, changes, directory):
    settings = {**COMMON, **changes}
    ours = Model(library, settings)
    ours.save(directory)
    compare(f"{kind}: {name}", ours, load(name, kind, directory), settings["model.vocab_size"])
    ours.close()


def reads(library, name, config, changes, dtype, directory):
    """Theirs, in shards, read; and saved once more by us, read by transformers."""
    config = getattr(transformers, config)(**{**THEIRS, **changes})
    torch.manual_seed(5)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            one = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(one + (0.4 if one else 0.15) * torch.randn_like(parameter))
    theirs.to(dtype).save_pretrained(directory, max_shard_size="40KB")
    assert os.path.exists(os.path.join(directory, "model.safetensors.index.json")), "one file is no shards"
    kind, vocab = type(theirs).__name__, THEIRS["vocab_size"]
    ours = Model(library, directory=directory)
    compare(f"{kind}: {name}, read", ours, load(name, kind, directory), vocab)
    ours.save(directory + "-again")
    compare(f"{kind}: {name}, saved again", ours, load(name, kind, directory + "-again"), vocab)
    ours.close()


def stays_own(library, name, changes, directory):
    ours = Model(library, {**COMMON, **changes})
    ours.save(directory)
    ours.close()
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        assert json.load(file)["model_type"] == "moekit", name
    try:
        transformers.AutoModelForCausalLM.from_pretrained(directory)
    except ValueError:
        print(f"ok: {name}: not taken for a model of transformers")
        return
    raise AssertionError(f"{name}: transformers loaded it")


def main():
    transformers.logging.set_verbosity_error()
    library = open_library()
    with tempfile.TemporaryDirectory() as top:
        for kind, cases in CASES.items():
            for index, (name, changes) in enumerate(cases.items()):
                saves(library, kind, name, changes, os.path.join(top, f"{kind}{index}"))
        for index, (name, case) in enumerate(SAVED.items()):
            reads(library, name, *case, os.path.join(top, f"theirs{index}"))
        for index, (name, changes) in enumerate(OWN.items()):
            stays_own(library, name, changes, os.path.join(top, f"own{index}"))


main()
