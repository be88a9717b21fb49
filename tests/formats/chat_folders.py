"""Hugging Face folders of tiny models with chat templates in the manner of well-known ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken

from gptlab import models
from gptlab.data.tokenizers import JsonTokenizer
from gptlab.formats import writing
from gptlab.formats.description import ModelInfo
from gptlab.models.gpt_config import GPTConfig
from tests.data.test_special_tokens import byte_level


class Template(NamedTuple):
    source: str
    bos: str | None
    eos: str
    special: tuple[str, ...]
    ends: tuple[str, ...]
    """The tokens of eos_token_id in generation_config.json."""


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}" + CHATML
)
MARKED = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
TURNS = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATES = {
    "chatml": Template(CHATML, None, "<|im_end|>", TURNS, ("<|im_end|>", "<|endoftext|>")),
    "default system": Template(DEFAULT_SYSTEM, None, "<|im_end|>", TURNS, ("<|im_end|>",)),
    "marked": Template(MARKED, None, "<|endoftext|>", TURNS, ("<|endoftext|>",)),
    "llama 3": Template(LLAMA3, "<|begin|>", "<|endoftext|>", ("<|begin|>", *HEADERS), ("<|endoftext|>", "<|eot_id|>")),
    "zephyr": Template(ZEPHYR, None, "<|endoftext|>", (), ("<|endoftext|>",)),
}


def chat_folder(path: Path, name: str) -> Path:
    """Write the folder of a random GPT-2, or Llama, that brings one of `TEMPLATES`, as `transformers` saves it."""
    template = TEMPLATES[name]
    names = dict.fromkeys((*template.special, "<|endoftext|>"))
    found = byte_level(*(AddedToken(name, special=True, normalized=False) for name in names))
    tokenizer = JsonTokenizer(found.content, found.special_tokens["<|endoftext|>"])
    torch.manual_seed(1)
    llama: dict[str, Any] = (
        {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False} if name == "llama 3" else {}
    )
    shape = GPTConfig(tokenizer.vocab_size, block_size=97, n_layer=2, n_head=3, n_embd=42, dropout=0.0, **llama)
    path.mkdir()
    writing.write_hf(models.build(shape), tokenizer, ModelInfo(path, None, {}, {}, None, ""), path)
    about = json.loads((path / "tokenizer_config.json").read_text())
    about |= {"bos_token": template.bos, "eos_token": template.eos}
    (path / "tokenizer_config.json").write_text(json.dumps(about))
    (path / "chat_template.jinja").write_text(template.source)
    ends = [tokenizer.special_tokens[name] for name in template.ends]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path
