"""What is read from disk may be damaged, or made by a stranger: the result of the intact file, or a message.

Here are our own files and texts, and dicts; test_fuzz_of_others.py has the formats of others. What a case is stands in
fuzzing.py.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab import models
from gptlab.data import corpora, prepare, tokenizers
from gptlab.data.shards import ShardWriter
from gptlab.data.split import Split
from gptlab.data.tokenizers import CharTokenizer, TokenizerConfig
from gptlab.formats import (
    checkpoint,
    description,
    huggingface_config,
    huggingface_families,
    huggingface_tokenizer,
    safetensors_file,
    writing,
)
from gptlab.formats.model_card import model_card
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import parameters
from gptlab.reports import records
from gptlab.system import files
from gptlab.system.errors import UserError
from tests.formats import fuzzing
from tests.formats.fuzzing import CHARS, GPT2, TEXT, Kind, bpe, fuzz, gpt, said, seen, used, watch
from tests.formats.test_fuzz_of_others import KINDS as OF_OTHERS
from tests.formats.test_fuzz_of_others import foreign
from tests.reports.test_report import fake_run

WORDS = tokenizers.WordTokenizer(["be", "not", "to"], True)

# What is read


def content_of_a_checkpoint() -> dict[str, Any]:
    model = gpt()
    about = checkpoint.describe(
        model, CharTokenizer(CHARS), {"name": "a", "data": {"name": "text"}}, "7d", 7, {"a": 1.5}
    )
    return {description.KEY: about, "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, "x": [1, 2]}


def make_export(folder: Path) -> None:
    info = description.ModelInfo(folder, 7, {"a": 1.5}, {"name": "a", "data": {"name": "text"}}, "7d", "run")
    writing.write_safetensors(gpt(), CharTokenizer(CHARS), info, folder)


def read_export(folder: Path) -> Any:
    return seen(*safetensors_file.open_export(folder / "model.safetensors"))


def make_prepared(folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT)
    os.utime(folder / "text.txt", (7, 7))
    read_prepared(folder)
    (folder / "text.txt").rename(folder / "text.kept")  # the truth is not what is damaged here


def read_prepared(folder: Path) -> Any:
    """The result where the text is at hand: damage is always repaired."""
    whole = folder / "text.kept"
    paths = [str(whole if whole.exists() else folder / "text.txt")]
    corpus = dataclasses.replace(corpora.load("text", paths, folder, folder), origin="here")
    prepared = prepare.prepare(corpus, Split("position", 0.1, 0.1), TokenizerConfig("char", None), folder, folder)
    ids = {split: prepared.ids(split)[:].tolist() for split in prepared.files}
    return prepared.sha256, prepared.tokenizer.to_dict(), prepared.files, prepared.unknown, ids


UNITS = [{"train": np.arange(40, dtype=np.uint16) + i, "val": np.arange(7, dtype=np.uint16) + i} for i in range(9)]


def make_stopped(folder: Path) -> None:
    writer = ShardWriter(folder)
    for ids in UNITS[:5]:
        writer.add(ids, {"x"})
    writer.save(2)


def read_stopped(folder: Path) -> Any:
    """The result when the preparation is continued or started again."""
    writer = ShardWriter(folder)
    for ids in UNITS[writer.units :]:
        writer.add(ids, {"x"})
    found = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    return found, writer.sha256(), writer.counts, writer.units, writer.unknown


def make_run(folder: Path) -> None:
    path = fake_run(folder / "run", 1.25)
    (path / "metrics.csv").unlink()
    (path / "environment.json").unlink()
    text, summary = (path / "config.yaml").read_text(), json.loads((path / "summary.json").read_text())
    (path / "config.yaml").write_text(files.seal(text))
    files.write_json(path / "summary.json", summary)


def make_around(folder: Path) -> None:
    """The files that a report does not need."""
    path = fake_run(folder / "run", 1.25)
    files.write_json(path / "job.json", {"overrides": {"model.n_head": "4"}, "baseline": {}})
    for name in ("config.yaml", "summary.json"):
        (path / name).rename(folder / name)


def read_around(folder: Path) -> Any:
    path = shutil.copytree(folder / "run", folder / "copy", dirs_exist_ok=True)
    for name in ("config.yaml", "summary.json"):
        shutil.copy(folder / name, path / name)
    run = records.read_run(path)
    assert run.baseline in ({}, None)
    assert run.typed in ({}, {"model.n_head": 4})
    return run.summary["val/loss"], records.read_curves(path).columns.to_list()


def hand_made_run(folder: Path) -> None:
    fake_run(folder / "run", 1.25)


def tokenizer_dict(tokenizer: tokenizers.Tokenizer) -> Kind:
    """The value as a JSON file of ours holds it."""
    return Kind(
        lambda folder: files.write_json(folder / "tokenizer.json", tokenizer.to_dict()),
        lambda folder: used(tokenizers.from_dict(files.read_json(folder / "tokenizer.json"))),
        *(True, 80, 220),
    )


def make_text(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def read_text(folder: Path) -> str:
    file = next(folder.iterdir())
    return "".join(piece.text for piece in corpora.load("text", [str(file)], folder, folder).read())


def gz(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def zst(text: str) -> bytes:
    return pyarrow.compress(text.encode(), "zstd", asbytes=True)


JSONL = "".join(json.dumps({"text": line, "n": i}) + "\n" for i, line in enumerate(TEXT[:600].split("\n")))


def make_parquet(folder: Path) -> None:
    table = pyarrow.table({"text": TEXT[:600].split("\n")})
    pyarrow.parquet.write_table(table, folder / "a.parquet", write_page_checksum=True)


KINDS = {
    "checkpoint": Kind(
        lambda folder: checkpoint.save_checkpoint(content_of_a_checkpoint(), folder / "a.ckpt"),
        lambda folder: seen(*checkpoint.load_checkpoint(folder / "a.ckpt")),
        sealed=description.FORMAT > 1,
        quick=250,
        slow=1500,
    ),
    "export": Kind(
        make_export, lambda folder: seen(*safetensors_file.open_export(folder / "model.safetensors")), True, 250, 1000
    ),
    "prepared": Kind(make_prepared, read_prepared, True, 100, 1150),
    "stopped": Kind(make_stopped, read_stopped, True, 250, 1000),
    "run": Kind(make_run, lambda folder: records.read_run(folder / "run"), True, 250, 1000),
    "around a run": Kind(make_around, read_around, False, 60, 300),
    "run, hand-made": Kind(hand_made_run, lambda folder: records.read_run(folder / "run"), False, 60, 300),
    "chars": tokenizer_dict(CharTokenizer(CHARS)),
    "words": tokenizer_dict(WORDS),
    "bpe": tokenizer_dict(bpe()),
    "txt": Kind(make_text("a.txt", TEXT[:400].encode()), read_text, False, 60, 200),
    "jsonl": Kind(make_text("a.jsonl", JSONL.encode()), read_text, False, 60, 200),
    "gz": Kind(make_text("a.txt.gz", gz(TEXT)), read_text, True, 60, 300),
    "jsonl.gz": Kind(make_text("a.jsonl.gz", gz(JSONL)), read_text, True, 60, 300),
    "zst": Kind(make_text("a.txt.zst", zst(TEXT)), read_text, False, 60, 300),
    "parquet": Kind(make_parquet, read_text, False, 60, 300),
}


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(KINDS[name], range(KINDS[name].quick), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_more_damage_is_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    fuzz(kind, range(kind.quick, kind.quick + kind.slow), tmp_path, monkeypatch)


def never_end() -> None:
    with suppress(fuzzing.TooLong):  # as readers do that take all for damage
        while True:
            pass


@pytest.mark.parametrize(
    "deed",
    [
        lambda folder: os.system("true"),
        lambda folder: (folder / "elsewhere").write_text("a"),
        lambda folder: never_end(),
        lambda folder: len(b"a" * 16 * fuzzing.MOST),  # a system may take back some of what was there meanwhile
    ],
    ids=["start", "write", "hang", "memory"],
)
def test_what_no_file_may_do_is_seen_where_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: Callable[[Path], Any]
) -> None:
    def refuse() -> None:
        with watch(tmp_path / "here"):
            deed(tmp_path)
            raise UserError("it is damaged")

    monkeypatch.setattr(fuzzing, "LONGEST", 0.2)
    with pytest.raises(AssertionError):
        refuse()


def test_there_are_ten_thousand_cases() -> None:
    assert sum(kind.quick + kind.slow for kind in (*KINDS.values(), *OF_OTHERS.values())) + QUICK + SLOW >= 10_000


# Dicts of strangers

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1 << 20, 10**9, 10**30, -(10**9), 0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "none", "\ud800", "\0", "x" * 100_000, "../../x", "[" * 500, b"", b"\xff", (), (1, 2), set(), object),
    *([], [[]], [None] * 9, {}, {"a": 1}, {1: 2}, {"_target_": "os.system", "command": "true"}, ["a", 1, {}], 1j),
    *(torch.zeros(2), torch.zeros(1).expand(1 << 40), torch.zeros(3, dtype=torch.int64), torch.empty(9, device="meta")),
)
QUICK, SLOW = 800, 3700


def with_junk(content: Any, draw: random.Random) -> Any:
    """A copy in which one place or a few are changed, removed or added."""
    if isinstance(content, dict) and content and draw.random() < 0.95:
        changed = dict(content)
        key = draw.choice([*content])
        way = draw.random()
        if way < 0.1:
            del changed[key]
        elif way < 0.15:
            changed[draw.choice(("_target_", "x", 3, ""))] = draw.choice(JUNK)
        else:
            changed[key] = with_junk(content[key], draw)
        return with_junk(changed, draw) if draw.random() < 0.2 else changed
    if isinstance(content, list | str) and content and draw.random() < 0.5:
        place = draw.randrange(len(content))
        if isinstance(content, str):
            return content[:place] + draw.choice(("", "\0", "=", " ", "\ud800", "\U0010ffff")) + content[place + 1 :]
        return [*content[:place], draw.choice(JUNK), *content[place + 1 :]]
    return draw.choice(JUNK)


def test_dicts_of_strangers_are_built_or_refused(tmp_path: Path) -> None:
    strange_dicts(range(QUICK), tmp_path)


@pytest.mark.slow
def test_more_dicts_of_strangers_are_built_or_refused(tmp_path: Path) -> None:
    strange_dicts(range(QUICK, QUICK + SLOW), tmp_path)


def strange_dicts(seeds: range, folder: Path) -> None:
    foreign(folder)
    model, content = gpt(), content_of_a_checkpoint()
    about, state = content[description.KEY], parameters(model)
    yarn = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": True}
    beside = {
        "rope_parameters": yarn,
        "attention_types": [[["global", "local"], 12]],
        "layer_types": ["full_attention"],
    }
    theirs = [
        {"model_type": name, **family.defaults, **beside} for name, family in huggingface_families.FAMILIES.items()
    ]
    llama = GPTConfig(9, n_layer=1, n_head=1, n_embd=4, pos="rope", norm="rmsnorm", mlp="swiglu", bias=False)
    described = [
        CharTokenizer(CHARS),
        WORDS,
        bpe(),
        tokenizers.ByteTokenizer(),
        huggingface_tokenizer.read_folder(folder),
    ]
    dicts = [tokenizer.to_dict() for tokenizer in described]

    def restored(draw: random.Random) -> None:
        both = with_junk({"about": about, "state": state}, draw)
        if isinstance(both, dict) and isinstance(both.get("about"), dict) and isinstance(both.get("state"), dict):
            found, tokenizer, info = checkpoint.restore(both["about"], dict(both["state"]), folder, "test")
            seen(found, tokenizer, info)
            assert info.words
            model_card(found, tokenizer, info, "safetensors", "a")

    def model_config(draw: random.Random) -> None:
        plain = with_junk(models.to_dict(draw.choice((GPT2, llama))), draw)
        if isinstance(plain, dict):
            models.from_dict(plain)

    def foreign_config(draw: random.Random) -> None:
        config = with_junk(draw.choice((*theirs, *map(huggingface_config.config_to_hf, (GPT2, llama)))), draw)
        if isinstance(config, dict):
            huggingface_config.config_from_hf(json.loads(json.dumps(config, default=str, skipkeys=True)))

    readers: list[Callable[[random.Random], Any]] = [
        restored,
        model_config,
        foreign_config,
        lambda draw: used(tokenizers.from_dict(with_junk(draw.choice(dicts), draw))),
    ]
    for seed in seeds:
        draw = random.Random(seed)
        try:
            with watch(folder):
                readers[seed % len(readers)](draw)
        except UserError as error:
            said(error)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
fields = st.sampled_from([*models.to_dict(GPT2), "chars", "words", "merges", "special", "pattern", "end_of_text"])
names = st.sampled_from(["gpt", "bigram", *tokenizers.NAMES, tokenizers.JSON])


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(fields, trees, max_size=9), names)
def test_any_tree_is_built_or_refused(tree: dict[str, Any], name: str) -> None:
    for build in (models.from_dict, tokenizers.from_dict):
        try:
            build(tree | {"name": name})  # type: ignore[operator]
        except UserError as error:
            said(error)
