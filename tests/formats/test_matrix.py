"""Foreign folders over a matrix of heads, prefixes and vocabularies: the logits of transformers, or a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gptlab.data.tokenizers import CharTokenizer
from gptlab.formats import huggingface
from gptlab.formats.huggingface_backend import build_backend
from gptlab.models import Model
from gptlab.system.errors import UserError
from tests.formats.test_huggingface_names import shaken

transformers = pytest.importorskip("transformers")

ROWS, T = 37, 23  # of the embedding; positions
CHARS = "".join(chr(0x4E00 + i) for i in range(ROWS))
PAD = "<pad>"
KIN = {"vocab_size": ROWS, "max_position_embeddings": T, "num_hidden_layers": 2, "num_attention_heads": 6}
KIN |= {"num_key_value_heads": 2, "hidden_size": 42, "head_dim": 10, "intermediate_size": 53}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 13}
NEOX = {"vocab_size": ROWS, "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 30}
NEOX |= {"intermediate_size": 53}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": ROWS, "n_positions": T, "n_layer": 2, "n_head": 3, "n_embd": 33},
    "llama": KIN | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 13}},
    "mistral": KIN | {"sliding_window": 7},
    "qwen2": KIN | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0}},
    "qwen3": KIN | {"rope_parameters": YARN},
    "gpt_neox": NEOX | {"max_position_embeddings": T, "rotary_pct": 0.6},
    "opt": {"vocab_size": ROWS, "max_position_embeddings": T, "num_hidden_layers": 2, "num_attention_heads": 3}
    | {"hidden_size": 33, "ffn_dim": 53, "pad_token_id": None},
    "gpt_neo": {"vocab_size": ROWS, "max_position_embeddings": T, "num_layers": 2, "num_heads": 3, "hidden_size": 33}
    | {"attention_types": [[["global", "local"], 1]], "window_size": T},
    "gemma": KIN | {"pad_token_id": None},
    "nanochat": KIN | {"final_logit_softcapping": 3.0, "pad_token_id": None},
}
# What config.json says, and what the file holds: the embedding, the head.
HEADS = {
    "tied, embedding alone": (True, "embedding"),
    "tied, head alone": (True, "head"),
    "tied, both equal": (True, "equal"),
    "tied, both different": (True, "different"),
    "untied, both": (False, "different"),
    "untied, both equal": (False, "equal"),
    "untied, embedding alone": (False, "embedding"),
    "untied, head alone": (False, "head"),
}
REFUSED = {"untied, embedding alone", "untied, head alone"}  # transformers draws the other at random
PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod._fsdp_wrapped_module.",
    "model.",
    "base",
)
# The tokenizer's characters, the id of a pad token besides (None: there is none), and the tokens that are read.
VOCABULARIES = {
    "exact": (ROWS, None, ROWS),
    "padded": (31, None, 31),
    "added, with a row": (36, 36, 37),
    "added, without a row": (37, 37, 37),
    "added, in padding": (31, 31, 32),
    "added, after a gap": (31, 34, 35),
}
PLACES = ("tokenizer.json", "added_tokens_decoder", "added_tokens.json", "special_tokens_map.json")


def some_of(many: Iterable[str], few: Iterable[str]) -> list[tuple[str, str, str]]:
    """Each family with every pair of two columns; those after the first five with each value of both once or more."""
    many, few = [*many], [*few]
    every = [(a, b) for a in many for b in few]
    each = [(a, few[i % len(few)]) for i, a in enumerate(many)]
    return [(family, *pair) for i, family in enumerate(FAMILIES) for pair in (every if i < 5 else each)]


@cache
def theirs(family: str) -> Any:
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family], tie_word_embeddings=False)
    return shaken(transformers.AutoModelForCausalLM.from_config(config))


def weights(family: str, holds: str) -> dict[str, Tensor]:
    """The weights of `theirs`, with an embedding, a head or both, equal or different."""
    state = dict(theirs(family).state_dict())
    embedding = next(name for name in state if name.endswith(("wte.weight", "embed_tokens.weight", "embed_in.weight")))
    if holds == "equal":
        state["lm_head.weight"] = state[embedding]
    if holds in ("embedding", "head"):
        del state["lm_head.weight" if holds == "embedding" else embedding]
        if holds == "head":
            state["lm_head.weight"] = theirs(family).state_dict()[embedding]
    return state


def renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if prefix != "base":
        return {prefix + name: tensor for name, tensor in state.items()}
    return {re.sub(r"^(transformer|model|gpt_neox)\.", "", name): tensor for name, tensor in state.items()}


def write(folder: Path, family: str, tied: bool, state: dict[str, Tensor], pickled: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = theirs(family).config.to_dict() | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}))
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(
            {name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    return folder


def write_tokenizer(folder: Path, characters: int, pad: int | None, place: str) -> None:
    """A tokenizer of characters and, declared in one of the `PLACES`, a pad token with that id."""
    spec = json.loads(build_backend(CharTokenizer(CHARS[:characters]), {}).to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": T}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    token = flags | {"content": PAD}
    if pad is not None and place == "tokenizer.json":
        spec["added_tokens"] = [token | {"id": pad}]
        if pad > characters:  # as the library writes it: only in the vocabulary may an id come later
            spec["model"]["vocab"][PAD] = pad
    if pad is not None and place == "added_tokens_decoder":
        config["added_tokens_decoder"] = {str(pad): token}
    if pad is not None and place == "added_tokens.json":
        (folder / "added_tokens.json").write_text(json.dumps({PAD: pad}))
    if pad is not None and place == "special_tokens_map.json":
        (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": token}))
    for name, content in (("tokenizer.json", spec), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content))


@cache
def reference(family: str, head: str, tmp: Path) -> Any:
    """What transformers makes of a folder without prefixes."""
    tied, holds = HEADS[head]
    folder = write(tmp / f"{family} {head}", family, tied, weights(family, holds))
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


@torch.no_grad()
def assert_same(ours: Model, model: Any, tokens: int) -> None:
    idx = torch.randint(tokens, (3, T), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(idx), model(idx).logits[..., :tokens], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "head", "prefix"), some_of(HEADS, PREFIXES))
def test_heads_and_prefixes(
    family: str, head: str, prefix: str, tmp: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tied, holds = HEADS[head]
    pickled = PREFIXES.index(prefix) % 2 == 0
    write(tmp_path, family, tied, renamed(weights(family, holds), prefix), pickled)
    write_tokenizer(tmp_path, ROWS, None, "")
    if head in REFUSED:
        with pytest.raises(UserError, match=r"weight is missing, .* If they are one matrix, write \"tie_word_embed"):
            huggingface.open_folder(tmp_path, tmp_path)
        return
    model, _, _ = huggingface.open_folder(tmp_path, tmp_path)
    assert_same(model, reference(family, head, tmp), ROWS)
    assert model.config.tied == (tied and holds != "different")  # type: ignore[union-attr]
    assert ("the head is not the embedding" in caplog.text) == (head == "tied, both different")


DECLARED = {"<a>": 31, "<b>": 32, "<c>": 35, "<d>": 36}  # in the padding, the last two after a gap


@pytest.mark.parametrize("in_file", [0, 1, 2])
def test_each_token_has_the_id_that_is_declared(tmp_path: Path, in_file: int) -> None:
    write(tmp_path, "gpt2", True, weights("gpt2", "embedding"))
    write_tokenizer(tmp_path, 31, None, "")
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    spec["added_tokens"] = [flags | {"content": name, "id": i} for name, i in [*DECLARED.items()][:in_file]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "added_tokens.json").write_text(json.dumps(dict([*DECLARED.items()][in_file:])))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": list(DECLARED)}))
    model, tokenizer, _ = huggingface.open_folder(tmp_path, tmp_path)
    assert model.config.vocab_size == tokenizer.vocab_size == 37
    for name, i in DECLARED.items():
        assert tokenizer.encode_special(CHARS[5] + name).tolist() == [5, i]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ('{"<a>": "x"}', r"tokenizer.json: beside it <a> is declared with the id x$"),
        ('{"<a>": -1}', r"tokenizer.json: beside it <a> is declared with the id -1$"),
        ('["<a>"]', r"added_tokens.json has no names and values$"),
        ("{", r"added_tokens.json cannot be read \(JSONDecodeError"),
    ],
)
def test_a_token_that_is_declared_wrongly_is_named(tmp_path: Path, declared: str, message: str) -> None:
    write(tmp_path, "gpt2", True, weights("gpt2", "embedding"))
    write_tokenizer(tmp_path, 31, None, "")
    (tmp_path / "added_tokens.json").write_text(declared)
    with pytest.raises(UserError, match=message):
        huggingface.open_folder(tmp_path, tmp_path)


def test_a_text_that_begins_with_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "gpt2", True, weights("gpt2", "embedding"))
    write_tokenizer(tmp_path, ROWS, ROWS, "tokenizer.json")
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    begin = [{"SpecialToken": {"id": PAD, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {PAD: {"id": PAD, "ids": [ROWS], "tokens": [PAD]}}
    spec["post_processor"] = {"type": "TemplateProcessing", "single": begin, "pair": begin, "special_tokens": tokens}
    spec["post_processor"]["pair"] = [*begin, {"Sequence": {"id": "B", "type_id": 1}}]
    spec["model"]["vocab"]["a"] = spec["model"]["vocab"].pop(CHARS[0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"begins every text with the ids \(37,\), and the model has only 37 tokens"):
        huggingface.open_folder(tmp_path, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_inside_names_and_an_averages_count(family: str, tmp: Path, tmp_path: Path) -> None:
    """As FSDP, activation checkpointing and torch.optim.swa_utils.AveragedModel save them."""
    inside = {
        "_forward_module." + re.sub(r"\.(\d+)\.", r".\1._fsdp_wrapped_module._checkpoint_wrapped_module.", name): tensor
        for name, tensor in weights(family, "embedding").items()
    }
    averaged = renamed(weights(family, "embedding"), "module.") | {"n_averaged": torch.tensor(7)}
    for i, state in enumerate((inside, averaged)):
        folder = write(tmp_path / str(i), family, True, state, pickled=True)
        write_tokenizer(folder, ROWS, None, "")
        assert_same(huggingface.open_folder(folder, folder)[0], reference(family, "tied, embedding alone", tmp), ROWS)


@pytest.mark.parametrize(("family", "vocabulary", "place"), some_of(VOCABULARIES, PLACES))
def test_vocabularies(
    family: str, vocabulary: str, place: str, tmp: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    characters, pad, tokens = VOCABULARIES[vocabulary]
    if place == "special_tokens_map.json" and vocabulary == "added, after a gap":
        tokens = 32  # which names no ids: the next free one
    head = "untied, both" if characters == ROWS else "tied, embedding alone"
    write(tmp_path, family, *(HEADS[head][0], weights(family, HEADS[head][1])))
    write_tokenizer(tmp_path, characters, pad, place)
    model, tokenizer, _ = huggingface.open_folder(tmp_path, tmp_path)
    assert model.config.vocab_size == tokenizer.vocab_size == tokens
    assert_same(model, reference(family, head, tmp), tokens)
    assert tokenizer.encode(CHARS[:characters]).tolist() == list(range(characters))
    if tokens > characters:
        assert tokenizer.encode_special(CHARS[3] + PAD).tolist() == [3, tokens - 1]
        assert tokenizer.decode([3, tokens - 1]) == CHARS[3] + PAD
    assert ("<pad> (37)" in caplog.text) == (vocabulary == "added, without a row")
