"""The files that transformers.js and onnxruntime-genai read beside an ONNX graph with a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptlab.data.chat.chat_format import Format
from gptlab.data.tokenizers import GPT2_PATTERN, BPETokenizer, ByteTokenizer, JsonTokenizer, Tokenizer
from gptlab.formats.gguf_tokenizer_json import cut_of
from gptlab.formats.huggingface_config import config_to_hf, family_of
from gptlab.formats.huggingface_tokenizer import is_qwen2, named_tokens
from gptlab.formats.writing import generation_config, token_ids, write_json_files, write_tokenizer
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
PAST, PRESENT = "past_key_values.%d.", "present.%d."  # and key or value
GRAPH = "onnx/model.onnx"  # where transformers.js looks for it
WEIGHTS = "model.onnx_data"  # and for what does not fit into one file
CUTS = ("gpt-2", "qwen2", "llama-bpe")  # ways to cut a text in which onnxruntime-genai gave the ids of `tokenizers`


def write_readers_files(tokenizer: Tokenizer, config: GPTConfig, chat: Format | None, folder: Path) -> str | None:
    """Write config.json, generation_config.json, the tokenizer's files, and genai_config.json if it can be right.

    Returns:
        Why onnxruntime-genai cannot read it right, as it would do silently; None if it can.
    """
    write_tokenizer(tokenizer, config.block_size, folder, config.vocab_size, chat)
    named = named_tokens(tokenizer, config.vocab_size)
    generation = generation_config(named, chat)
    weights = {"use_external_data_format": True} if (folder / GRAPH).with_name(WEIGHTS).exists() else {}
    ours = {"transformers.js_config": {"dtype": "fp32", **weights}}
    contents = {
        "config.json": _config(config, tokenizer) | token_ids(named) | ours,
        "generation_config.json": generation,
    }
    wrong = _misread(tokenizer, generation)
    if wrong is None:
        contents["genai_config.json"] = _genai_config(config, generation)
    write_json_files(folder, contents)
    return wrong


def _config(config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the config of `transformers`; for what that lacks, one that says how large a cache is, as Llama's does.

    Beside qwen2 `transformers` would read any tokenizer as Qwen's.
    """
    try:
        if family_of(config) != "qwen2" or is_qwen2(tokenizer):
            return config_to_hf(config)
    except UserError:
        pass
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.block_size,
    }


def _misread(tokenizer: Tokenizer, generation: dict[str, Any]) -> str | None:
    """Return why onnxruntime-genai misreads a tokenizer; None if it does not.

    Args:
        generation: the content of generation_config.json.
    """
    if isinstance(tokenizer, JsonTokenizer):
        spec = json.loads(tokenizer.content)
        known = spec["model"].get("type") == "BPE" and cut_of(spec) in CUTS
    elif isinstance(tokenizer, BPETokenizer):
        known = tokenizer.pattern == GPT2_PATTERN
    else:
        known = isinstance(tokenizer, ByteTokenizer)
    if not known:
        return f"onnxruntime-genai has other ids for tokenizer={tokenizer.name}, or none"
    if generation["eos_token_id"] is None:
        return "the tokenizer has no end of text, in place of which onnxruntime-genai would take another token"
    return None


def _genai_config(config: GPTConfig, generation: dict[str, Any]) -> dict[str, Any]:
    """Return the config of onnxruntime-genai; greedy, as its default.

    Args:
        generation: the content of generation_config.json.
    """
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH,
        "head_size": config.head_size,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "num_hidden_layers": config.n_layer,
        "inputs": {
            **{name: name for name in (IDS, MASK, POSITIONS)},
            "past_key_names": f"{PAST}key",
            "past_value_names": f"{PAST}value",
        },
        "outputs": {
            LOGITS: LOGITS,
            "present_key_names": f"{PRESENT}key",
            "present_value_names": f"{PRESENT}value",
        },
    }
    ids = {name: i for name, i in generation.items() if name.endswith("_token_id") and i is not None}
    model = {"type": "decoder", "vocab_size": config.vocab_size, "context_length": config.block_size, **ids}
    search = {"do_sample": False, "max_length": config.block_size, "past_present_share_buffer": False}
    return {"model": model | {"decoder": decoder}, "search": search}
