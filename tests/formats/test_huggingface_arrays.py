"""Folders of `transformers` that open without torch: what they are, and that they are those that torch would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from gptlab.data.tokenizers import CharTokenizer
from gptlab.formats import writing
from gptlab.formats.array_model import open_arrays
from gptlab.formats.description import ModelInfo
from gptlab.formats.open_model import open_model
from gptlab.generation.opening import open_to_generate
from gptlab.models.arrays import as_floats
from gptlab.models.packed import Packed
from gptlab.models.weights import parameters
from gptlab.system.errors import UserError
from tests.formats.test_huggingface_names import OURS, THEIRS, V, ours, theirs
from tests.generation.contexts import check_opens_with_torchs_logits
from tests.generation.test_cpu_decoder import needs_library

TOKENIZER = CharTokenizer("".join(map(chr, range(192, 192 + V))))
FEWER = CharTokenizer(TOKENIZER.chars[: V - 4])  # than the model has rows
LEFT = {  # to torch: of families that are only read, and with biases that some layers lack
    *(name for name in THEIRS if name.startswith(("GPTNeoForCausalLM", "GemmaForCausalLM"))),
    *("LlamaForCausalLM attention_bias", "LlamaForCausalLM mlp_bias", "LlamaForCausalLM narrow heads, biases"),
    *("OPTForCausalLM without biases", "OPTForCausalLM of Galactica", "GPTNeoXForCausalLM yarn"),
}


def export(name: str, folder: Path) -> Path:
    folder.mkdir()
    writing.write_hf(ours(name), TOKENIZER, ModelInfo(folder, None, {}, {}, None, "gptlab run"), folder)
    return folder


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = theirs(name).to(dtype)
    model.save_pretrained(folder)
    writing.write_tokenizer(FEWER, model.config.max_position_embeddings, folder)
    return folder


def check_same(folder: Path) -> None:
    """Check that a folder opens as arrays, and as the model that torch opens."""
    found, expected = open_arrays(str(folder)), open_model(str(folder))
    assert found is not None
    assert found.tokenizer.to_dict() == expected.tokenizer.to_dict()
    assert (found.info, found.words, found.chat) == (expected.info, expected.words, expected.chat)
    assert found.info is not None
    assert expected.info is not None
    assert found.info.family == expected.info.family
    assert found.model.config == expected.model.config
    state = parameters(expected.model)
    assert found.model.weights.keys() == state.keys()
    for name, weight in found.model.weights.items():
        assert not isinstance(weight, Packed)
        assert np.array_equal(as_floats(weight), state[name].numpy()), name


@pytest.mark.parametrize("name", OURS)
def test_an_export_is_the_model_that_torch_opens(name: str, tmp_path: Path) -> None:
    check_same(export(name, tmp_path / "model"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in THEIRS if name not in LEFT])
def test_a_folder_of_transformers_is_the_model_that_torch_opens(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check_same(saved(name, tmp_path / "model", dtype))


@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_is_more_is_left_to_torch(name: str, tmp_path: Path) -> None:
    assert open_arrays(str(saved(name, tmp_path / "model"))) is None


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("GPT2LMHeadModel", torch.float32),
        ("GPT2LMHeadModel", torch.bfloat16),
        ("LlamaForCausalLM grouped", torch.float16),
        ("NanoChatForCausalLM", torch.float32),
        ("GPTNeoXForCausalLM", torch.bfloat16),
    ],
)
def test_each_precision_has_the_logits_of_the_model_that_torch_opens(
    name: str, dtype: torch.dtype, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_opens_with_torchs_logits(str(saved(name, tmp_path / "model", dtype)), precision, monkeypatch)


def change(key: str, value: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))

    return changed


def rewrite(make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Change the weights of a folder, without the checksum of ours."""

    def rewritten(folder: Path) -> None:
        file = folder / "model.safetensors"
        safetensors.torch.save_file(make(safetensors.torch.load_file(file)), file, {"format": "pt"})

    return rewritten


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def spoil(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")


def rename(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.bin")


def moved_rows(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights in which a part has a row too many, and another one too few."""
    q, k = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    return state | {q: state[q][:-1].clone(), k: torch.cat((state[k], state[q][-1:]))}


REFUSED: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "changed since it was written": spoil,
    "no weights": rename,
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "a tokenizer of more tokens": change("vocab_size", V - 1),
    "too few layers": change("num_hidden_layers", 2),
    "another family": change("model_type", "bert"),
    "no family": change("model_type", None),
    "an activation that we lack": change("hidden_act", "tanh"),
    "no config": lambda folder: (folder / "config.json").write_text("{"),
    "a weight less": rewrite(lambda state: {name: each for name, each in state.items() if "up_proj" not in name}),
    "a weight more": rewrite(lambda state: state | {"model.more": torch.zeros(3)}),
    "rows that belong elsewhere": rewrite(moved_rows),
    "integers": rewrite(lambda state: state | {"model.norm.weight": torch.ones(60, dtype=torch.int64)}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_broken_is_refused_as_torch_refuses_it(kind: str, tmp_path: Path) -> None:
    folder = export("LlamaForCausalLM", tmp_path / "model")
    REFUSED[kind](folder)
    assert open_arrays(str(folder)) is None
    with pytest.raises(UserError) as expected:
        open_model(str(folder))
    with pytest.raises(UserError) as found:
        open_to_generate(str(folder), "cpu", "fp32", is_compiled=False)
    assert str(found.value) == str(expected.value)


def test_a_tied_head_in_the_file_is_left_to_torch(tmp_path: Path) -> None:
    folder = export("LlamaForCausalLM tied", tmp_path / "model")
    rewrite(lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1})(folder)
    assert open_arrays(str(folder)) is None
    assert open_model(str(folder)).model.config.tied is False  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("part", "dtype"), [("", torch.float64), ("layers.1.self_attn.q_proj", torch.bfloat16), ("gate", torch.float16)]
)
def test_weights_of_64_bits_or_of_two_types_in_one_of_ours_are_left_to_torch(
    part: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = export("LlamaForCausalLM", tmp_path / "model")
    rewrite(lambda state: {name: each.to(dtype) if part in name else each for name, each in state.items()})(folder)
    assert open_arrays(str(folder)) is None
    open_model(str(folder))


def test_norms_may_have_more_bits_than_matrices(tmp_path: Path) -> None:
    folder = export("LlamaForCausalLM", tmp_path / "model")
    rewrite(lambda state: {name: each if "norm" in name else each.bfloat16() for name, each in state.items()})(folder)
    check_same(folder)


def test_names_without_the_base_and_buffers_are_known(tmp_path: Path) -> None:
    folder = export("GPT2LMHeadModel", tmp_path / "model")
    mask = {"h.0.attn.bias": torch.ones(1, 1, 5, 5)}
    rewrite(lambda state: {name.removeprefix("transformer."): each for name, each in state.items()} | mask)(folder)
    check_same(folder)
