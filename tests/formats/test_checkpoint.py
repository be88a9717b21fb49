"""A checkpoint alone restores model and tokenizer; a broken or foreign file is refused, and nothing in it runs."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gptlab.data import corpora
from gptlab.data.batches import EvalBatches, Share
from gptlab.data.prepare import prepare
from gptlab.data.split import Split
from gptlab.data.tokenizers import TokenizerConfig
from gptlab.formats import adapters, checkpoint, description
from gptlab.models import GPT, GPTConfig
from gptlab.system.errors import UserError

BEST = Path("checkpoints") / "best.ckpt"
LAST = Path("checkpoints") / "last.ckpt"


@pytest.fixture(scope="module")
def content(trained: Path) -> dict[str, Any]:
    """The checkpoint of a finished run as torch reads it; tests must not change it."""
    return torch.load(trained / LAST, weights_only=True)


@pytest.mark.parametrize("inside", [Path(), BEST, LAST])
def test_a_run_or_a_file_of_it_brings_back_model_and_tokenizer(trained: Path, inside: Path) -> None:
    model, tokenizer, info = checkpoint.load_checkpoint(trained / inside)
    assert info.path == trained / (BEST if inside == Path() else inside)
    assert (info.step, info.config["name"], info.origin) == (7, "gpt800k", "gptlab run")
    assert isinstance(model.config, GPTConfig)
    assert (model.config.n_embd, model.config.block_size, model.config.dropout) == (33, 17, 0.1)
    assert not model.training
    assert model.config.vocab_size == tokenizer.vocab_size
    assert tokenizer.decode(tokenizer.encode("the old cat.\n").tolist()) == "the old cat.\n"


def test_a_loaded_model_has_the_loss_that_its_checkpoint_claims(trained: Path, text_file: Path, tmp_path: Path) -> None:
    model, _, info = checkpoint.load_checkpoint(trained)
    corpus = corpora.load("text", [str(text_file)], tmp_path, tmp_path)
    split, characters = Split("position", 0.1, 0.0), TokenizerConfig("char", None)
    ids = prepare(corpus, split, characters, tmp_path, tmp_path).ids("val")
    nats = 0.0
    batches = EvalBatches(ids, batch_size=31, block_size=17, share=Share(0, 1, 1), device=torch.device("cpu"))
    for idx, targets, *_ in batches:
        with torch.no_grad():
            nats += F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), reduction="sum").item()
    assert info.metrics["val/loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)


def test_a_run_without_a_best_checkpoint_gives_its_last(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained / LAST, tmp_path / LAST)
    assert checkpoint.load_checkpoint(tmp_path)[2].path == tmp_path / LAST


def test_a_checkpoint_moves_to_another_place(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / BEST, tmp_path / "gpt.pt")
    moved, here = checkpoint.load_checkpoint(tmp_path / "gpt.pt")[0], checkpoint.load_checkpoint(trained)[0]
    assert all(torch.equal(a, b) for a, b in zip(moved.parameters(), here.parameters(), strict=True))


def test_a_loaded_model_needs_its_file_no_longer(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / BEST, tmp_path / "gpt.ckpt")
    model = checkpoint.load_checkpoint(tmp_path / "gpt.ckpt")[0]
    os.truncate(tmp_path / "gpt.ckpt", 0)  # what is only mapped would be gone
    here = checkpoint.load_checkpoint(trained)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), here.parameters(), strict=True))


def test_loading_draws_no_random_numbers(trained: Path) -> None:
    before = torch.get_rng_state()
    checkpoint.load_checkpoint(trained)
    assert torch.equal(torch.get_rng_state(), before)


def assert_plain(value: Any, place: str) -> None:
    assert type(value) in (dict, OrderedDict, list, tuple, str, int, float, bool, type(None), torch.Tensor), place
    if isinstance(value, dict):
        for key, inner in value.items():
            assert type(key) in (str, int), place
            assert "_orig_mod" not in str(key), place
            assert_plain(inner, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            assert_plain(inner, f"{place}.{i}")


def test_a_checkpoint_is_made_of_plain_things(content: dict[str, Any]) -> None:
    assert_plain(content, "checkpoint")
    assert_plain(pickle.loads(pickle.dumps(content[description.KEY])), description.KEY)
    assert {"state_dict", "optimizer_states", "lr_schedulers", description.KEY} <= content.keys()


def test_a_compiled_model_leaves_no_trace_in_its_checkpoint(run: Any, content: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, "compile.backend=eager", "trainer.max_steps=1", "model.dropout=0.1")
    compiled = torch.load(tmp_path / LAST, weights_only=True)
    assert_plain(compiled, "checkpoint")
    assert compiled["state_dict"].keys() == content["state_dict"].keys()
    checkpoint.load_checkpoint(tmp_path)


def foreign(path: Path, content: dict[str, Any]) -> None:
    torch.save({"a": 1}, path)


def foreign_tensor(path: Path, content: dict[str, Any]) -> None:
    torch.save(torch.zeros(7), path)


def newer(path: Path, content: dict[str, Any]) -> None:
    checkpoint.save_checkpoint(content | {"gptlab": content["gptlab"] | {"format": 7, "version": "9.9.9"}}, path)


def wrong_shape(path: Path, content: dict[str, Any]) -> None:
    checkpoint.save_checkpoint(
        content | {"state_dict": content["state_dict"] | {"model.wpe.weight": torch.zeros(5, 7)}}, path
    )


def missing_weight(path: Path, content: dict[str, Any]) -> None:
    checkpoint.save_checkpoint(
        content | {"state_dict": {k: v for k, v in content["state_dict"].items() if "ln_f" not in k}}, path
    )


def other_size(path: Path, content: dict[str, Any]) -> None:
    about = content["gptlab"]
    checkpoint.save_checkpoint(content | {"gptlab": about | {"model": about["model"] | {"n_layer": 3}}}, path)


def unknown_model(path: Path, content: dict[str, Any]) -> None:
    about = content["gptlab"]
    checkpoint.save_checkpoint(content | {"gptlab": about | {"model": about["model"] | {"name": "mamba"}}}, path)


def no_step(path: Path, content: dict[str, Any]) -> None:
    checkpoint.save_checkpoint(content | {"gptlab": {k: v for k, v in content["gptlab"].items() if k != "step"}}, path)


def truncated(path: Path, content: dict[str, Any]) -> None:
    checkpoint.save_checkpoint(content, path)
    os.truncate(path, path.stat().st_size * 2 // 3)


def a_flipped_bit(path: Path, content: dict[str, Any]) -> None:
    checkpoint.save_checkpoint(content, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_its_checksum(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)


def random_bytes(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(torch.randint(256, (997,), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy())


def text(path: Path, content: dict[str, Any]) -> None:
    path.write_text("To be, or not to be\n")


def empty(path: Path, content: dict[str, Any]) -> None:
    path.touch()


def a_directory(path: Path, content: dict[str, Any]) -> None:
    path.mkdir()


def an_unfinished_run(path: Path, content: dict[str, Any]) -> None:
    (path / "checkpoints").mkdir(parents=True)


def nothing(path: Path, content: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, r"no such run directory or checkpoint file; runs lie in outputs/<name>/<time>"),
        (a_directory, r"is not a run directory with a checkpoint .*; runs lie in outputs/<name>/<time>"),
        (an_unfinished_run, r"is not a run directory with a checkpoint .*has one from its first validation on"),
        (empty, r"is broken or no checkpoint: torch.load says EOFError; copy it again, or give a run directory"),
        (random_bytes, r"is broken or no checkpoint: torch.load says \w+Error"),
        (text, r"is broken or no checkpoint: torch.load says \w+Error"),
        (truncated, r"is broken or no checkpoint: torch.load says \w+Error"),
        (a_flipped_bit, r"is broken: its contents do not have the checksum that it was written with"),
        (without_its_checksum, r"is broken: it lacks the checksum that it was written with"),
        (foreign, r"is not a checkpoint of gptlab \(it has no 'gptlab' entry\)"),
        (foreign_tensor, r"is not a checkpoint of gptlab"),
        (newer, r"has checkpoint format 7, written by gptlab 9.9.9; .* reads formats up to 2: update gptlab"),
        (wrong_shape, r"does not fit together: .*wpe.weight.*\[5, 7\]"),
        (missing_weight, r"does not fit together: .*ln_f.weight"),
        (other_size, r"does not fit together: .*h.2.ln_1.weight"),
        (no_step, r"does not fit together: KeyError: 'step'"),
        (unknown_model, r"model.name=mamba: no such model; there are bigram, gpt"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name_and_reason(
    content: dict[str, Any], tmp_path: Path, make: Callable[[Path, dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "gpt.ckpt"
    make(path, content)
    with pytest.raises(UserError, match=f"(?s){message}") as refused:
        checkpoint.load_checkpoint(path)
    assert str(path) in str(refused.value)


def test_a_prompt_in_the_models_place_is_no_run() -> None:
    with pytest.raises(UserError, match="no such run directory or checkpoint file"):
        checkpoint.load_checkpoint(Path("to be or not to be " * 17))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_checkpoint_is_not_executed(content: dict[str, Any], tmp_path: Path, write: Any) -> None:
    path, struck = tmp_path / "gpt.ckpt", tmp_path / "struck"
    write(content | {"losses": Bomb(struck)}, path)
    with pytest.raises(UserError, match=r"gpt.ckpt is (broken or )?no checkpoint"):
        checkpoint.load_checkpoint(path)
    assert not struck.exists()


def test_a_saved_checkpoint_is_whole_and_alone(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "gpt.ckpt"
    for step in (5, 7):  # the second time over the first
        checkpoint.save_checkpoint(content | {"gptlab": content["gptlab"] | {"step": step}}, path)
        assert checkpoint.load_checkpoint(path)[2].step == step
        assert list(path.parent.iterdir()) == [path]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes, so that writing fails as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [11, 1009, 100_003])  # in the first bytes; in the middle of the weights
def test_a_full_disk_is_named_and_leaves_the_old_checkpoint_and_no_other_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "gpt.ckpt"
    path.write_bytes(b"the old one")
    with (
        full_disk(size),
        pytest.raises(UserError, match=r"cannot write in .*: File too large; free some space"),
    ):
        checkpoint.save_checkpoint({"weights": torch.zeros(100_003)}, path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_saved_leaves_the_old_checkpoint_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "gpt.ckpt"
    path.write_bytes(b"the old one")
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint.save_checkpoint({"weights": torch.zeros(7), "code": lambda: None}, path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("fields", "sha256"),
    [
        ({}, "23275f3cf35e88b34d4f302d1ca34266eef72d72a10c4b071b0eb8c16909becd"),
        (
            {"pos": "rope", "norm": "rmsnorm", "rope_scaling": "linear", "rope_factor": 2.0},
            "ec629efab7d54459f61ecc2665a0af7bbbdcfc2df5c126d8ef9cadab01e35e52",
        ),
    ],
)
def test_the_base_of_older_adapters_is_still_known(fields: dict[str, Any], sha256: str) -> None:
    """The hashes that models had when the first checkpoints with adapters were written."""
    sizes = {"vocab_size": 7, "block_size": 5, "n_layer": 1, "n_head": 2, "n_embd": 4}
    model = GPT(GPTConfig(**(sizes | fields)))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.fill_(i / 8)
    assert adapters.digest(model) == sha256
    if fields:
        changed = GPT(dataclasses.replace(model.config, rope_beta_fast=3.0, rope_scaling="yarn", rope_original_size=3))
        changed.load_state_dict(model.state_dict())
        assert adapters.digest(changed) != sha256
