"""nanochat's checkpoints open with the logits that transformers' NanoChat has for them, or are refused with reasons."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.registry
import torch
from torch import Tensor

from gptlab.data.tokenizers import BPETokenizer, JsonTokenizer
from gptlab.formats import nanochat, nanochat_tokenizer, open_model
from gptlab.formats.huggingface_backend import NANOCHAT_PATTERN
from gptlab.models import GPTConfig
from gptlab.system.errors import UserError
from tests.conftest import ROOT

transformers = pytest.importorskip("transformers")

T, LAYERS, ROWS = 23, 3, 384  # positions; rows of the embedding, a multiple of 64
TEXT = (ROOT / "LICENSE").read_text()
SPECIAL = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")
CONFIG = {"sequence_len": T, "n_layer": LAYERS, "n_head": 6, "n_kv_head": 3, "n_embd": 60}
LEARNED = BPETokenizer.fit([TEXT], 331).merges
V = len(LEARNED) + len(SPECIAL)


def encoding(
    pattern: str = NANOCHAT_PATTERN, special: tuple[str, ...] = SPECIAL, more: list[bytes] | None = None
) -> tiktoken.Encoding:
    tokens = LEARNED + (more or [])
    return tiktoken.Encoding(
        "rustbpe",
        pat_str=pattern,
        mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens={name: i for i, name in enumerate(special, len(tokens))},
    )


def theirs() -> Any:
    """What such a checkpoint is in transformers."""
    torch.manual_seed(7)
    sizes = {"vocab_size": ROWS, "max_position_embeddings": T, "num_hidden_layers": LAYERS, "hidden_size": 60}
    sizes |= {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 240, "rms_norm_eps": 2.0**-23}
    model = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def checkpoint_of(model: Any) -> dict[str, Tensor]:
    """Their weights under nanochat's names."""
    renamed = {"embed_tokens": "transformer.wte", "layers": "transformer.h", "self_attn": "attn", "o_proj": "c_proj"}
    renamed |= {"q_proj": "c_q", "k_proj": "c_k", "v_proj": "c_v", "fc1": "c_fc", "fc2": "c_proj"}
    names = {name: [renamed.get(part, part) for part in name.split(".")] for name in model.state_dict()}
    return {".".join(part for part in names[name] if part != "model"): x for name, x in model.state_dict().items()}


def write(folder: Path, state: dict[str, Tensor] | None = None, step: int = 700, **changes: Any) -> Path:
    """A folder as nanochat writes it, with the tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"model_{step:06d}.pt"
    torch.save(checkpoint_of(theirs()) if state is None else state, file)
    about = {"step": step, "val_bpb": 0.9, "model_config": CONFIG | {"vocab_size": V} | changes}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(about))
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding()))
    return file


@torch.no_grad()
def assert_same(ours: Any, model: Any) -> None:
    idx = torch.randint(V, (5, T), generator=torch.Generator().manual_seed(3))
    logits = model(idx).logits[..., :V]
    assert logits.std() > 0.5  # or the comparison would show little
    torch.testing.assert_close(ours(idx), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_is_opened_by_its_folder_and_its_name(tmp_path: Path, prefix: str) -> None:
    model = theirs()
    write(tmp_path, {name: torch.zeros(1) for name in checkpoint_of(model)}, step=99)
    file = write(tmp_path, {prefix + name: value for name, value in checkpoint_of(model).items()}, step=1000)
    for name in (tmp_path, file):
        ours, tokenizer, info = open_model.load_model(name)
        assert_same(ours, model)
        assert isinstance(ours.config, GPTConfig)
        assert (ours.config.block_size, ours.config.n_kv_head, ours.config.logit_softcap) == (T, 3, 15.0)
        assert ours.config.vocab_size == tokenizer.vocab_size == V
        assert (info.path, info.step, info.metrics, info.origin) == (file, 1000, {}, "nanochat")


def test_what_later_checkpoints_have_and_does_nothing_is_left_out(tmp_path: Path) -> None:
    state = checkpoint_of(theirs())
    state |= {"resid_lambdas": torch.ones(LAYERS), "x0_lambdas": torch.zeros(LAYERS)}
    state |= {"smear_gate.weight": torch.ones(1, 24), "smear_lambda": torch.zeros(1), "backout_lambda": torch.zeros(1)}
    ours, _, _ = open_model.load_model(write(tmp_path, state, window_pattern="l"))
    assert_same(ours, theirs())


def test_half_precision_comes_as_fp32(tmp_path: Path) -> None:
    state = checkpoint_of(theirs())
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    ours, _, _ = open_model.load_model(write(tmp_path, state))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    model = theirs()
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.bfloat16().float()
    assert_same(ours, model)


def later(state: dict[str, Tensor]) -> None:
    """As nanochat trains them now."""
    state |= {"resid_lambdas": torch.full((LAYERS,), 1.1), "x0_lambdas": torch.full((LAYERS,), 0.2)}
    state |= {"smear_gate.weight": torch.ones(1, 24), "smear_lambda": torch.ones(1), "backout_lambda": torch.ones(1)}
    state |= {"value_embeds.0.weight": torch.zeros(ROWS, 30), "transformer.h.0.attn.ve_gate.weight": torch.zeros(3, 12)}


def test_a_later_checkpoint_is_refused_with_every_reason(tmp_path: Path) -> None:
    state = checkpoint_of(theirs())
    later(state)
    message = (
        r"model_000700.pt: this nanochat is none of gptlab's models: it has model_config.engrams=3, which gptlab does "
        r"not know; window_pattern=SSSL \(windows in some layers only: all must be L\); resid_lambdas other than 1; "
        r"x0_lambdas other than 0; smear_lambda other than 0; backout_lambda other than 0; value embeddings$"
    )
    with pytest.raises(UserError, match=message):
        open_model.load_model(write(tmp_path, state, window_pattern="SSSL", engrams=3))


def cut(state: dict[str, Tensor]) -> None:
    state["transformer.h.1.attn.c_k.weight"] = torch.zeros(29, 60)


def scalar(state: dict[str, Tensor]) -> None:
    state["transformer.wte.weight"] = torch.zeros(())


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (cut, {}, r"model_000700.pt: weights that do not fit .* \(1\): transformer.h.1.attn.c_k.weight is \[29, 60\]"),
        (scalar, {}, r"transformer.wte.weight is \[\] and must be \[1, 60\]"),
        (dict.clear, {}, r"weights that do not fit .* \(20\): lm_head.weight is missing"),
        (None, {"n_layer": 4}, r"\(6\): transformer.h.3.attn.c_k.weight is missing"),
        (None, {"n_layer": None}, r"model_config lacks numbers for n_layer$"),
        (None, {"n_head": 7}, r"model_000700.pt: model.n_embd=60 is not divisible by model.n_head=7"),
        (None, {"vocab_size": 300}, rf"the tokenizer has {V} tokens and the model 300: they do not belong together"),
        (None, {"window_pattern": "LS"}, r"window_pattern=LS \(windows in some layers only"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_reason(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None] | None, changes: dict[str, Any], message: str
) -> None:
    state = checkpoint_of(theirs())
    if damage is not None:
        damage(state)
    with pytest.raises(UserError, match=message):
        open_model.load_model(write(tmp_path, state, **changes))


def test_a_window_in_the_last_layer_alone_is_none(tmp_path: Path) -> None:
    """nanochat's last layer sees all positions, whatever the pattern says."""
    ours, _, _ = open_model.load_model(write(tmp_path, window_pattern="LLS"))
    assert_same(ours, theirs())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "base_checkpoints" / "d3")
    (file.parent / "tokenizer.pkl").rename(tmp_path / "kept.pkl")
    with pytest.raises(UserError, match=rf"its tokenizer.pkl is neither beside it nor at {tmp_path}/tokenizer/token"):
        open_model.load_model(file)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "kept.pkl").rename(tmp_path / "tokenizer" / "tokenizer.pkl")
    assert_same(open_model.load_model(file.parent)[0], theirs())
    (file.parent / "meta_000700.json").write_text("{}")
    with pytest.raises(UserError, match=r"meta_000700.json has no model_config"):
        open_model.load_model(file)
    (file.parent / "meta_000700.json").unlink()
    with pytest.raises(UserError, match=r"model_000700.pt: its description meta_000700.json is not beside it"):
        open_model.load_model(file.parent)


def test_texts_have_the_ids_of_tiktoken_and_begin_with_bos(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(encoding()))
    ours = nanochat_tokenizer.read_tokenizer(tmp_path / "tokenizer.pkl", tmp_path)
    assert isinstance(ours, JsonTokenizer)
    assert ours.begin == (len(LEARNED),)
    assert ours.end_of_text == len(LEARNED)
    assert ours.special_tokens == {name: i for i, name in enumerate(SPECIAL, len(LEARNED))}
    odd = "I'LL don't\n\n\n x  1234567 \t\u3000a\r\n!!?\r \ud55c\u0301 \U0001f600 <|bos|>  "
    for text in (TEXT, odd, "", " ", *odd):
        expected = encoding().encode_ordinary(text)
        assert np.array_equal(ours.encode(text), expected)
        assert ours.decode(expected) == text


@pytest.mark.parametrize(("name", "size"), [("gpt2", 50257), ("gpt9", None)])
def test_a_vocabulary_of_openai_goes_by_its_name(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int | None
) -> None:
    registered = tiktoken.Encoding(name, pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, name, registered)
    content = pickle.dumps(registered)
    assert b"mergeable_ranks" not in content
    (tmp_path / "tokenizer.pkl").write_bytes(content)
    if size is not None:
        assert nanochat_tokenizer.read_tokenizer(tmp_path / "tokenizer.pkl", data_dir).vocab_size == size
        return
    with pytest.raises(UserError, match=r"it names the vocabulary gpt9; gptlab has gpt2, cl100k_base"):
        nanochat_tokenizer.read_tokenizer(tmp_path / "tokenizer.pkl", data_dir)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.path).mkdir, (self.path,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: pickle.dumps(Bomb(path)), r"it would do more than read: "),
        (
            lambda path: pickle.dumps(encoding(), 4).replace(b"Encoding", b"encoding"),
            r"more than read: tiktoken.core.e",
        ),
        (lambda path: pickle.dumps({"a": 1}), r"is no tokenizer of nanochat: AttributeError"),
        (lambda path: b"", r"pickle exhausted"),
        (lambda path: pickle.dumps(encoding())[:-3], r"tokenizer.pkl is no tokenizer of nanochat: "),
        (lambda path: pickle.dumps(encoding(more=[b"a" * 5000])), r"it has a token of 5,000 bytes; at most 4,096 can"),
        (lambda path: pickle.dumps(encoding("[a-z]+|.")), r"its pattern is not nanochat's: \[a-z\]\+"),
        (lambda path: pickle.dumps(encoding(special=("<|x|>",))), r"it has no <\|bos\|> or <\|endoftext\|>"),
    ],
)
def test_a_tokenizer_that_is_more_or_less_is_refused_and_not_executed(
    tmp_path: Path, content: Callable[[Path], bytes], message: str
) -> None:
    file, struck = write(tmp_path), tmp_path / "struck"
    (tmp_path / "tokenizer.pkl").write_bytes(content(struck))
    with pytest.raises(UserError, match=message):
        open_model.load_model(file)
    assert not struck.exists()


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    (tmp_path / "model_x.pt").touch()
    assert nanochat.newest(tmp_path) is None
    assert nanochat.newest(tmp_path / "nowhere") is None
    assert nanochat.newest(tmp_path / ("x" * 300)) is None
    assert not nanochat.is_checkpoint(tmp_path / "model_x.pt")
