"""What is read from disk may be damaged, or made by a stranger: the result of the intact file, or a message.

A case damages one file of a set, at a fixed seed, and reads the set as gptlab does. Whatever comes of it, it comes
within seconds, starts no program, and writes nowhere else. Of formats with a checksum, all of ours, the result is that
of the intact files or a `UserError`; of those without one, a changed weight or letter cannot be noticed: there it is
any result or a `UserError`.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import pickle
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab import models
from gptlab.data import corpora, meta_pickle, prepare, ready_ids, survey, tokenizers
from gptlab.data.shards import ShardWriter
from gptlab.data.split import Split
from gptlab.data.tokenizers import CharTokenizer, TokenizerConfig
from gptlab.formats import (
    checkpoint,
    description,
    gguf,
    huggingface,
    huggingface_config,
    huggingface_families,
    huggingface_tokenizer,
    llama2c,
    nanochat,
    nanogpt,
    open_model,
    safetensors_file,
    writing,
)
from gptlab.formats.huggingface_backend import NANOCHAT_PATTERN
from gptlab.formats.model_card import model_card
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import parameters
from gptlab.reports import records
from gptlab.system import files
from gptlab.system.errors import UserError
from tests.formats.test_llama2c import LLAMA, of_version
from tests.reports.test_report import fake_run

LONGEST = 5  # seconds for a case
TEXT = "".join(random.Random(0).choice("to be or not, that is\n") for _ in range(3000))
CHARS = "".join(sorted(set(TEXT)))
GPT2 = GPTConfig(len(CHARS), block_size=7, n_layer=2, n_head=2, n_embd=4)
WORDS = tokenizers.WordTokenizer(["be", "not", "to"], True)

# What no file may do

STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pty.spawn")
watched: list[tuple[Path, list[str]]] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not watched:
        return
    folder, found = watched[-1]
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if event in STARTED or (writes and str(folder) not in str(arguments[0])):
        found.append(f"{event} {arguments[:2]}")


sys.addaudithook(hook)  # which is for ever: it listens where something is watched


class TooLong(BaseException):
    pass


@contextmanager
def watch(folder: Path) -> Iterator[None]:
    """Check that no process starts, nothing outside of `folder` is written, and it takes at most LONGEST."""

    def stop(*_: Any) -> None:
        raise TooLong

    found: list[str] = []
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    watched.append((folder, found))
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about what they see
            yield
    finally:
        watched.pop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not found
    assert time.perf_counter() - begun < LONGEST


def said(error: UserError) -> None:
    """Check that there is a message, and that it fits on a screen."""
    assert 0 < len(str(error)) < 3000


# Damages


def flip(content: bytearray, draw: random.Random, most: int = 1) -> None:
    for _ in range(draw.randint(1, most)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def overwrite(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    length = min(draw.choice((1, 2, 8, 64)), len(content) - place)
    content[place : place + length] = draw.randbytes(length) if draw.random() < 0.7 else bytes(length)


def remove(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    del content[place : place + draw.choice((1, 2, 8, 64))]


def insert(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content) + 1)
    content[place:place] = draw.randbytes(draw.choice((1, 2, 8, 64)))


def repeat(content: bytearray, draw: random.Random) -> None:
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in "ab")
    content[end:end] = content[begin:end]


def renumber(content: bytearray, draw: random.Random) -> None:
    """Replace a digit by another one, which keeps every format well-formed."""
    places = [i for i, byte in enumerate(content) if 48 <= byte < 58]
    if places:
        content[draw.choice(places)] = draw.randrange(48, 58)


def noise(content: bytearray, draw: random.Random) -> None:
    content[:] = draw.randbytes(draw.randrange(2 * len(content)))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, flip, flip, lambda content, draw: flip(content, draw, 20), truncate, overwrite, remove, insert),
    *(repeat, renumber, renumber, noise),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        draw.choice(DAMAGES)(changed, draw)
    return bytes(changed)


# What is read


@dataclass(frozen=True)
class Kind:
    """A set of files: `make` writes it, `read` gives what can be compared.

    Args:
        sealed: whether damage is always noticed.
        quick, slow: how many cases are tried in each test run, and how many more by `make test-all`.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    sealed: bool
    quick: int
    slow: int


def gpt() -> models.Model:
    torch.manual_seed(1)
    return models.build(GPT2).eval()


def seen(model: models.Model, tokenizer: tokenizers.Tokenizer, info: description.ModelInfo | None = None) -> Any:
    """Everything in a loaded model, by value; it is also used."""
    about = (info.step, info.metrics, info.config, info.data_sha256) if info else ()
    with torch.no_grad():
        model(torch.zeros(1, min(3, model.config.block_size), dtype=torch.int64))
    weights = {name: weight.numpy().tobytes() for name, weight in parameters(model).items()}
    return models.to_dict(model.config), weights, used(tokenizer), repr(about)


def used(tokenizer: tokenizers.Tokenizer) -> Any:
    """Everything in a tokenizer, by value; it is also used."""
    ids = tokenizer.encode("to be, <|endoftext|> ü")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size
    return tokenizer.to_dict(), ids.tolist(), tokenizer.decode(ids.tolist()), tokenizer.end_of_text


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


def make_hf(folder: Path) -> None:
    writing.write_hf(gpt(), CharTokenizer(CHARS), description.ModelInfo(folder, None, {}, {}, None, "x"), folder)


def read_hf(folder: Path) -> Any:
    return seen(*huggingface.open_folder(folder, folder))


def make_gguf(folder: Path) -> None:
    """A file of numbers as they are, and of characters."""
    gguf.write_gguf(gpt(), CharTokenizer(CHARS), description.ModelInfo(folder, None, {}, {}, None, "x"), folder)


def make_quantised(folder: Path) -> None:
    """A file of numbers in blocks, of merges, and with scaled positions."""
    llama = {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qkv_bias": True, "bias": False, "n_kv_head": 1}
    slowed = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_size": 8}
    tokenizer = tokenizers.BPETokenizer.fit(["to be or not to be, that is"], 264)
    torch.manual_seed(1)
    model = models.build(GPTConfig(tokenizer.vocab_size, 7, 1, 2, n_embd=32, n_inner=32, **llama, **slowed)).eval()
    gguf.write_gguf(model, tokenizer, description.ModelInfo(folder, None, {}, {}, None, "x"), folder, "q4_0")


def read_gguf(folder: Path) -> Any:
    return seen(*gguf.open_gguf(folder / gguf.FILE))


def make_bin(folder: Path) -> None:
    make_hf(folder)
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def make_nanogpt(folder: Path) -> None:
    sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
    state = {f"_orig_mod.transformer.{k}": v for k, v in parameters(gpt()).items()}
    args = {name: getattr(GPT2, name) for name in sizes}
    torch.save({"model": state, "model_args": args, "iter_num": 3, "config": {"dataset": "a"}}, folder / "ckpt.pt")
    itos = dict(enumerate(CHARS))
    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": itos, "stoi": {c: i for i, c in itos.items()}}))


def read_nanogpt(folder: Path) -> Any:
    return seen(*nanogpt.open_checkpoint(folder / "ckpt.pt", folder))


def make_nanochat(folder: Path) -> None:
    torch.manual_seed(1)
    sizes = {"sequence_len": 7, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 4}
    state = {"transformer.wte.weight": torch.randn(320, 4), "lm_head.weight": torch.randn(320, 4)}
    shapes = {"attn.c_q": (4, 4), "attn.c_k": (2, 4), "attn.c_v": (2, 4), "attn.c_proj": (4, 4)}
    shapes |= {"mlp.c_fc": (16, 4), "mlp.c_proj": (4, 16)}
    state |= {
        f"transformer.h.{i}.{name}.weight": torch.randn(shape) for i in range(2) for name, shape in shapes.items()
    }
    torch.save(state | {"x0_lambdas": torch.zeros(2)}, folder / "model_000003.pt")
    about = {"model_config": sizes | {"vocab_size": 271, "window_pattern": "L"}}
    (folder / "meta_000003.json").write_text(json.dumps(about))
    ranks = {token: i for i, token in enumerate(bpe().merges)}
    special = {"<|bos|>": len(ranks), "<|user_start|>": len(ranks) + 1}
    encoding = tiktoken.Encoding("a", pat_str=NANOCHAT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))


def read_nanochat(folder: Path) -> Any:
    return seen(*nanochat.open_checkpoint(folder / "model_000003.pt", folder))


def make_llama2c(version: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        torch.manual_seed(1)
        config = GPTConfig(256, 7, n_layer=2, n_head=2, n_kv_head=1, n_embd=4, n_inner=8, **LLAMA)
        info = description.ModelInfo(folder, None, {}, {}, None, "x")
        llama2c.write_llama2c(models.build(config).eval(), tokenizers.ByteTokenizer(), info, folder)
        if version:
            of_version(version, folder / "model.bin", folder / "other", group=4)
            (folder / "other" / "model.bin").replace(folder / "model.bin")
            (folder / "other").rmdir()

    return make


def read_llama2c(folder: Path) -> Any:
    return seen(*open_model.load_model(folder / "model.bin"))


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


def make_ids(ending: str) -> Callable[[Path], None]:
    """Files of ids as others write them, with nanoGPT's characters, or with our tokenizer, beside them."""

    def make(folder: Path) -> None:
        tokenizer = CharTokenizer(CHARS)
        for part, text in (("train", TEXT[:300]), ("val", TEXT[300:340])):
            ids, path = tokenizer.encode(text), folder / f"{part}{ending}"
            if ending == ".npy":
                np.save(path, ids)
                continue
            header = np.array([20240801, 7, len(ids)], "<i4").tobytes().ljust(1024, b"\0") if "_" in ending else b""
            path.write_bytes(header + ids.astype("<u4" if header else "<u2").tobytes())
        if ending == ".bin":
            (folder / "meta.pkl").write_bytes(meta_pickle.meta_of(tokenizer))
        else:
            files.write_json(folder / ready_ids.TOKENIZER, tokenizer.to_dict())

    return make


def read_ids(folder: Path) -> Any:
    how = TokenizerConfig("gpt2", None)
    found = ready_ids.open_ready_ids([str(folder)], Split("position", 0.1, 0.0), how, folder / "none", folder / "cache")
    ids = {part: found.ids(part)[:].tolist() for part in found.files}
    assert all(0 <= i < found.tokenizer.vocab_size for part in ids.values() for i in part)
    return found.sha256, ids, used(found.tokenizer)


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


def read_tokenizer(folder: Path) -> Any:
    return used(huggingface_tokenizer.read_folder(folder))


def write_tokenizer(tokenizer: tokenizers.Tokenizer) -> Callable[[Path], None]:
    return lambda folder: writing.write_tokenizer(tokenizer, 7, folder)


def bpe() -> tokenizers.BPETokenizer:
    return tokenizers.BPETokenizer.fit([TEXT], 270)


def make_two_files(folder: Path) -> None:
    """A tokenizer as vocab.json and merges.txt."""
    content = json.loads(huggingface_tokenizer.tokenizer_files(bpe(), 7)["tokenizer.json"])["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = (" ".join(merge) if isinstance(merge, list) else merge for merge in content["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def foreign(folder: Path) -> None:
    """A tokenizer like Llama's, which none of ours can express."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {"<unk>": 0, "<s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}}
    vocab |= {c: len(vocab) + i for i, c in enumerate("▁tobe")}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(",", "isolated")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>"])
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<s>"}}))


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
    "hf chars": Kind(write_tokenizer(CharTokenizer(CHARS)), read_tokenizer, False, 100, 400),
    "hf bpe": Kind(write_tokenizer(bpe()), read_tokenizer, False, 60, 440),
    "hf two files": Kind(make_two_files, read_tokenizer, False, 100, 400),
    "hf foreign": Kind(foreign, read_tokenizer, False, 100, 400),
    "hf model": Kind(make_hf, lambda folder: seen(*huggingface.open_folder(folder, folder)), False, 100, 400),
    "hf pickle": Kind(make_bin, lambda folder: seen(*huggingface.open_folder(folder, folder)), False, 100, 400),
    "nanogpt": Kind(
        make_nanogpt, lambda folder: seen(*nanogpt.open_checkpoint(folder / "ckpt.pt", folder)), False, 100, 400
    ),
    "gguf": Kind(make_gguf, read_gguf, False, 80, 920),
    "gguf, quantised": Kind(make_quantised, read_gguf, False, 80, 920),
    "nanochat": Kind(make_nanochat, read_nanochat, False, 100, 1900),
    **{f"llama2c {version}": Kind(make_llama2c(version), read_llama2c, False, 100, 1900) for version in range(3)},
    "txt": Kind(make_text("a.txt", TEXT[:400].encode()), read_text, False, 60, 200),
    "jsonl": Kind(make_text("a.jsonl", JSONL.encode()), read_text, False, 60, 200),
    "gz": Kind(make_text("a.txt.gz", gz(TEXT)), read_text, True, 60, 300),
    "jsonl.gz": Kind(make_text("a.jsonl.gz", gz(JSONL)), read_text, True, 60, 300),
    "zst": Kind(make_text("a.txt.zst", zst(TEXT)), read_text, False, 60, 300),
    "parquet": Kind(make_parquet, read_text, False, 60, 300),
    "bin": Kind(make_ids(".bin"), read_ids, False, 200, 500),
    "bin shards": Kind(make_ids("_000001.bin"), read_ids, False, 200, 500),
    "npy": Kind(make_ids(".npy"), read_ids, False, 200, 500),
}
NOTHING = ("", ([], {}))  # of a packed file of no bytes


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(KINDS[name], range(KINDS[name].quick), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_more_damage_is_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    fuzz(kind, range(kind.quick, kind.quick + kind.slow), tmp_path, monkeypatch)


def fuzz(kind: Kind, seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prepare, survey):
        monkeypatch.setattr(module, "LARGE", 0)  # so that what is remembered of a text is read, too
    kind.make(folder)
    intact = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    expected = kind.read(folder)
    targets = [path for path in intact if path.name not in ("text.kept", "verified.json")]
    for seed in seeds:
        draw = random.Random(seed)
        for path, content in intact.items():
            path.parent.mkdir(exist_ok=True)
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        file = targets[seed % len(targets)]
        file.write_bytes(damaged(intact[file], draw))
        where = f"seed {seed}, {file.relative_to(folder)}"
        try:
            with watch(folder):
                found = kind.read(folder)
        except UserError as error:
            said(error)
        except BaseException as error:
            raise AssertionError(where) from error
        else:
            assert not kind.sealed or found == expected or found in NOTHING, where


def test_there_are_ten_thousand_cases() -> None:
    assert sum(kind.quick + kind.slow for kind in KINDS.values()) + QUICK + SLOW >= 10_000


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
