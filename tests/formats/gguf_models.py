"""Tiny models and tokenizers of every kind that a GGUF file can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers as hf
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gptlab import models as our_models
from gptlab.data.tokenizers import (
    CL100K_PATTERN,
    CL100K_SPECIAL,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
)
from gptlab.formats import gguf
from gptlab.formats.description import ModelInfo
from gptlab.formats.gguf_tokenizer_json import LLAMA3_PATTERN
from gptlab.formats.huggingface_tokenizer import QWEN2_PATTERN
from gptlab.models import GPT, GPTConfig
from tests.conftest import ROOT

ENGLISH = (ROOT / "LICENSE").read_text()
TEXT = ENGLISH + "\u00e9\u20ac\U0001f600"
CHAT = ["<|user|>", "<|end|>"]
OURS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharTokenizer.fit([TEXT]),
    "char, ended": lambda: CharTokenizer.fit([TEXT], end_of_text=True),
    "char, chat": lambda: CharTokenizer.fit([TEXT]).with_special(CHAT),
    "byte": lambda: ByteTokenizer(),
    "byte, ended": lambda: ByteTokenizer(end_of_text=True),
    "bpe": lambda: BPETokenizer.fit([TEXT], 601),
    "bpe, chat": lambda: BPETokenizer.fit([TEXT], 601).with_special(CHAT),
    "cl100k_base": lambda: BPETokenizer(
        "cl100k_base", BPETokenizer.fit([TEXT], 601).merges, CL100K_PATTERN, CL100K_SPECIAL
    ),
}
LLAMA: dict[str, Any] = {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "n_kv_head": 2}
SCALED = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_size": 32}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # the architecture in llama.cpp, and the fields
    "gpt2": ("gpt2", {}),
    "gpt2, other sizes": ("gpt2", {"bias": False, "tied": False, "n_kv_head": 2, "n_inner": 40, "norm_eps": 1e-3}),
    "gpt2, no scales": ("gpt2", {"norm_weight": False}),
    "llama": ("llama", LLAMA | {"tied": False, "rope_base": 97.0}),
    "llama, biases": ("llama", LLAMA | {"bias": True, "n_kv_head": 1, "window": 64}),
    "llama, biases of q, k and v": ("llama", LLAMA | {"qkv_bias": True, "head_dim": 6}),
    "llama, slowed": ("llama", LLAMA | SCALED),
    "llama, slowed evenly": ("llama", LLAMA | {"rope_scaling": "linear", "rope_factor": 3.0}),
    "qwen2": ("qwen2", LLAMA | {"qkv_bias": True, "tied": False}),
    "qwen3": ("qwen3", LLAMA | {"qk_norm": True, "head_dim": 6}),
    "qwen3, slowed evenly": ("qwen3", LLAMA | {"qk_norm": True, "rope_scaling": "linear", "rope_factor": 3.0}),
}
SIZES = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32}


def a_model(tokenizer: Tokenizer, **fields: Any) -> GPT:
    """A random model whose logits and greedy tokens vary."""
    torch.manual_seed(7)
    model = our_models.build(GPTConfig(tokenizer.vocab_size, **(SIZES | fields))).eval()
    assert isinstance(model, GPT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def no_info(folder: Path) -> ModelInfo:
    return ModelInfo(folder, None, {}, {}, None, "x")


def written(model: our_models.Model, tokenizer: Tokenizer, folder: Path, quant: str = "f32") -> Path:
    """The file of a model."""
    folder.mkdir(exist_ok=True)
    gguf.write_gguf(model, tokenizer, no_info(folder), folder, quant)
    return folder / "model.gguf"


# Tokenizers of others

CUTS: dict[str, tuple[Any, str | None]] = {  # the steps that cut a text, and llama.cpp's name for them
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
    "qwen2": (pre_tokenizers.Split(hf.Regex(QWEN2_PATTERN), "isolated"), "qwen2"),
    "llama 3": (pre_tokenizers.Split(hf.Regex(LLAMA3_PATTERN), "isolated"), "llama-bpe"),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), "smollm"),
}


def byte_level(cut: str, lacking: str = "", **changes: Any) -> JsonTokenizer:
    """A byte-level tokenizer as Qwen, Llama 3 and SmolLM have it, learned from English.

    Args:
        lacking: a byte, as a letter, that it has not.
    """
    step = CUTS[cut][0]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut in ("gpt-2", "smollm"))
    backend = hf.Tokenizer(models.BPE(ignore_merges=cut == "llama 3"))
    backend.pre_tokenizer = letters if cut == "gpt-2" else pre_tokenizers.Sequence([step, letters])
    trainer = hf.trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([TEXT, "12345 678"], trainer)
    backend.decoder = decoders.ByteLevel()
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<|begin|>", "<|end_of_it|>"])
    backend.add_tokens([hf.AddedToken("License", normalized=False)])
    if cut == "llama 3":
        begin = [("<|begin|>", backend.token_to_id("<|begin|>"))]
        backend.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=begin)
    if lacking:
        model = json.loads(backend.to_str())["model"]
        vocab = {token.replace(lacking, "[none]"): i for token, i in model["vocab"].items()}
        merges = [pair for pair in model["merges"] if lacking not in "".join(pair)]
        changes["model"] = changes.get("model", {}) | {"vocab": vocab, "merges": merges}
    return json_tokenizer(backend, "<|end_of_it|>", **changes)


def sentencepiece(whole: bool = True, order: int = 1, **changes: Any) -> JsonTokenizer:
    """A tokenizer of Llama 2's form: bytes as a fallback, <s> and a space before each text.

    Args:
        whole: list all pairs that make a token, as `transformers` does for the tokens of SentencePiece.
        order: -1: sorted by the second of each pair.
    """
    learner = hf.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = hf.trainers.BpeTrainer(vocab_size=300, show_progress=False)
    learner.train_from_iterator([ENGLISH], trainer)
    learned = json.loads(learner.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    vocab = {token: i for i, token in enumerate([*special, *learned["vocab"]])}
    pairs = [(a, b) for a, b in learned["merges"]]
    if whole:
        made = [a + b for a, b in pairs]
        pairs = [(t[:i], t[i:]) for t in made for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    pairs = sorted(pairs, key=lambda pair: pair[1]) if order < 0 else pairs
    backend = hf.Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return json_tokenizer(backend, "</s>", **changes)


def json_tokenizer(backend: hf.Tokenizer, end: str, **changes: Any) -> JsonTokenizer:
    """A tokenizer of the library as ours, with other steps than it has."""
    spec = json.loads(backend.to_str())
    model = spec["model"] | changes.pop("model", {})
    return JsonTokenizer(json.dumps(spec | changes | {"model": model}), backend.token_to_id(end))


THEIRS: dict[str, Callable[[], JsonTokenizer]] = {cut: lambda cut=cut: byte_level(cut) for cut in CUTS}  # type: ignore[misc]
THEIRS["sentencepiece"] = sentencepiece
