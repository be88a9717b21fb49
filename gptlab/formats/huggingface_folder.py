"""What a folder of `transformers` has beside the weights: a tokenizer and a chat template. None of it needs torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gptlab.data.tokenizers import BPETokenizer, Tokenizer
from gptlab.formats import chat_template, huggingface_tokenizer
from gptlab.formats.description import ModelInfo
from gptlab.formats.reading import GPT2_SIZES
from gptlab.models.gpt_config import GPTConfig

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")


def read_tokenizer(folder: Path, config: GPTConfig, raw_dir: Path) -> Tokenizer:
    """Read the tokenizer in a model's folder; if there is none, a model of GPT-2's vocabulary gets GPT-2's.

    Raises:
        UserError: there is no tokenizer, or it cannot be read.
    """
    if config.vocab_size in GPT2_SIZES and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return BPETokenizer.gpt2(raw_dir)
    return huggingface_tokenizer.read_folder(folder, config.vocab_size)


def folder_info(folder: Path, family: str, tokenizer: Tokenizer) -> ModelInfo:
    """Return what is known of a model of the `model_type` `family`; its chat template is read when it is asked for."""
    read_chat = partial(chat_template.read_chat_format, folder, tokenizer)
    return ModelInfo(folder, None, {}, {}, None, f"Hugging Face {family}", read_chat, family=family)
