"""Attacks by a malicious file, one at a time; test_fuzz.py has the random ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptlab import evaluate, models
from gptlab.data import corpora, downloads, pieces, prepare, survey, text_files, tokenizers
from gptlab.data.corpus import Corpus
from gptlab.data.split import Split
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import CharTokenizer, TokenizerConfig
from gptlab.evaluation import eval_data
from gptlab.formats import (
    checkpoint,
    description,
    huggingface,
    huggingface_tokenizer,
    nanogpt,
    safetensors_file,
    writing,
)
from gptlab.formats.description import ModelInfo
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import fill, parameters
from gptlab.reports import records
from gptlab.reports.report import build_report
from gptlab.runs import directory
from gptlab.system import files
from gptlab.system.errors import UserError
from tests.data.helpers import read
from tests.reports.test_report import fake_run

TINY = GPTConfig(5, block_size=7, n_layer=1, n_head=2, n_embd=4)
CHARS = "abcde"


class Bomb:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def content(model: models.Model | None = None, **about: Any) -> dict[str, Any]:
    """The dict in a checkpoint."""
    model = model or models.build(TINY)
    described = checkpoint.describe(model, CharTokenizer(CHARS), {"name": "a"}, "7d", 7, {}) | about
    return {description.KEY: described, "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}


def quick(started: float) -> bool:
    return time.perf_counter() - started < 2


# Code


@pytest.mark.parametrize("place", [(), (description.KEY,), (description.KEY, "config"), ("state_dict",)])
def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path: Path, place: tuple[str, ...]) -> None:
    whole = node = content()
    for key in place:
        node = node[key]
    node["x"] = Bomb(tmp_path / "struck")
    checkpoint.save_checkpoint(whole, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"is (broken or )?no checkpoint"):
        checkpoint.load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "struck").exists()


def test_a_checkpoint_builds_nothing_but_tensors_and_plain_data(tmp_path: Path) -> None:
    for junk in (bytearray(9), {1, 2}, Bomb(tmp_path / "struck")):
        checkpoint.save_checkpoint(content() | {"x": junk}, tmp_path / "a.ckpt")
        started = time.perf_counter()
        with pytest.raises(UserError, match="it would call"):
            checkpoint.load_checkpoint(tmp_path / "a.ckpt")
        assert quick(started)


def test_a_target_in_a_config_is_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = {"_target_": "os.mkdir", "path": str(tmp_path / "struck")}
    where = {"name": "text", "path": str(tmp_path / "a.txt"), "text_key": "text", "subset": None, "revision": None}
    config = {"name": "a", "data": where | {"max_documents": None, "x": target}, "tokenizer": target, "model": target}
    (tmp_path / "a.txt").write_text("abcde" * 99)
    checkpoint.save_checkpoint(content(config=config, data_sha256=None), tmp_path / "a.ckpt")
    assert checkpoint.load_checkpoint(tmp_path / "a.ckpt")[2].config == config
    evaluate.main([str(tmp_path / "a.ckpt")])
    assert "nats per token" in capsys.readouterr().out
    with pytest.raises(UserError, match="this version's GPTConfig does not fit"):
        models.from_dict({"name": "gpt", **target})
    assert not (tmp_path / "struck").exists()


# Memory and time


@pytest.mark.parametrize(
    "field", ["n_layer", "n_embd", "n_head", "head_dim", "block_size", "vocab_size", "n_inner", "window"]
)
@pytest.mark.parametrize("size", [10**6, 1 << 24, 10**9, 10**30])
def test_sizes_that_a_file_does_not_hold_are_refused_at_once(tmp_path: Path, field: str, size: int) -> None:
    started, changed = time.perf_counter(), content()
    changed[description.KEY]["model"][field] = size
    checkpoint.save_checkpoint(changed, tmp_path / "a.ckpt")
    if field == "window" and size <= 1 << 24:
        checkpoint.load_checkpoint(tmp_path / "a.ckpt")  # it says how far is seen, and that is no further than there is
    else:
        with pytest.raises(UserError):
            checkpoint.load_checkpoint(tmp_path / "a.ckpt")
    assert quick(started)


def test_heads_that_are_too_many_and_too_large_together_are_refused() -> None:
    sizes = {"name": "gpt", "vocab_size": 3, "n_embd": 1 << 24, "n_head": 1 << 24, "head_dim": 1 << 24}
    with pytest.raises(
        UserError, match=r"model.head_dim=16777216: 16,777,216 heads of this size are wider than 16,777"
    ):
        models.from_dict(sizes)


def test_tensors_that_claim_more_than_they_hold_are_refused() -> None:
    config = GPTConfig(1 << 20, block_size=7, n_layer=1, n_head=2, n_embd=1 << 10)
    large = {name: torch.zeros(1).expand(p.shape) for name, p in shapes(config).items()}
    with pytest.raises(UserError, match=r"its tensors claim [\d,]+ bytes and hold \d+$"):
        fill(config, large)
    one = torch.zeros(1 << 10, 1 << 10)  # many, each of which is there, but not all of them at once
    shared = {name: one.reshape(-1)[: p.numel()].view(p.shape) for name, p in shapes(GPTConfig(9, n_embd=36)).items()}
    with pytest.raises(UserError, match="its tensors claim"):
        fill(GPTConfig(9, n_embd=36), shared | {f"x{i}": one for i in range(9)})


def test_tensors_that_share_their_storage_are_no_forgery() -> None:
    config = GPTConfig(11, block_size=7, n_layer=2, n_head=2, n_embd=6)
    state = {name: torch.randn(p.shape) for name, p in shapes(config).items()}
    of_block_0 = {name.replace("h.0.", "h.1."): tensor for name, tensor in state.items() if name.startswith("h.0.")}
    model = fill(config, state | of_block_0 | {"lm_head.weight": state["wte.weight"]})
    assert torch.equal(model.h[1].attn.c_attn.weight, state["h.0.attn.c_attn.weight"])  # type: ignore[union-attr]
    assert model.h[1].attn.c_attn.weight is not model.h[0].attn.c_attn.weight  # type: ignore[union-attr]
    one = torch.zeros(1 << 12, 1 << 11)  # under so many names that copies would fill the memory
    shared = {f"h.{i}.attn.c_attn.weight": one for i in range(40)}
    with pytest.raises(UserError, match=r"its tensors claim 1,342,177,280 bytes and hold 33,554,432"):
        fill(GPTConfig(9, n_layer=40, n_embd=36), shared)


def shapes(config: GPTConfig) -> Any:
    with torch.device("meta"):
        return parameters(models.build(config))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(5, 4, device="meta"),
        torch.zeros(5, 4, dtype=torch.int64),
        torch.zeros(5, 4, dtype=torch.complex64),
        torch.zeros(5, 4).to_sparse(),
        [[0.0] * 4] * 5,
    ],
    ids=["meta", "integers", "complex", "sparse", "list"],
)
def test_weights_are_numbers_in_memory(tensor: Any) -> None:
    state = dict(parameters(models.build(TINY))) | {"wte.weight": tensor}
    with pytest.raises(UserError, match=r"wte.weight (is no tensor|has a shape)"):
        fill(TINY, state)


def test_a_foreign_config_is_no_larger_than_its_weights(tmp_path: Path) -> None:
    for field in ("n_layer", "n_embd", "n_positions", "n_head"):
        writing.write_hf(
            models.build(TINY), CharTokenizer(CHARS), ModelInfo(tmp_path, None, {}, {}, None, ""), tmp_path
        )
        about = json.loads((tmp_path / "config.json").read_text()) | {field: 1 << 24, "n_inner": 7}
        (tmp_path / "config.json").write_text(json.dumps(about))
        started = time.perf_counter()
        with pytest.raises(UserError):
            huggingface.open_folder(tmp_path, tmp_path)
        assert quick(started)


def backend(**changes: Any) -> str:
    vocab = {"<unk>": 0, "a": 1, "b": 2}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    parts |= {"pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model}
    return json.dumps(parts | changes)


def replaced(pattern: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": by}


@pytest.mark.parametrize("i", [1 << 22, (1 << 32) - 1])
def test_ids_that_no_memory_holds_are_refused(tmp_path: Path, i: int) -> None:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": i}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(backend(model=model))
    with pytest.raises(UserError, match="it has the id"):
        huggingface_tokenizer.read_folder(tmp_path)
    state = tokenizers.BPETokenizer.fit(["to be"], 257).to_dict()
    with pytest.raises(UserError, match="have not an id each"):
        tokenizers.from_dict(state | {"special": {tokenizers.END_OF_TEXT: i}})
    with pytest.raises(UserError, match="have not an id each"):
        tokenizers.from_dict(state | {"special": {tokenizers.END_OF_TEXT: -1}})


def test_steps_that_blow_a_text_up_are_refused(tmp_path: Path) -> None:
    steps = [replaced("a", "aa") for _ in range(60)]
    (tmp_path / "tokenizer.json").write_text(backend(normalizer={"type": "Sequence", "normalizers": steps}))
    with pytest.raises(UserError, match="more than 64 times as long"):
        huggingface_tokenizer.read_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(backend(normalizer=replaced(" ", "▁")))
    assert huggingface_tokenizer.read_folder(tmp_path).encode("a").tolist() == [1]


def test_a_pattern_that_is_tried_for_ever_is_given_up(tmp_path: Path) -> None:
    cut = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(backend(pre_tokenizer=cut))
    tokenizer, started = huggingface_tokenizer.read_folder(tmp_path), time.perf_counter()
    with pytest.raises(UserError, match="cannot be applied to the text"):
        tokenizer.encode("a" * 40 + "b")
    assert quick(started)
    state = tokenizers.BPETokenizer.fit(["to be"], 257).to_dict()
    with pytest.raises(UserError, match="its pattern is not"):
        tokenizers.from_dict(state | {"pattern": "(a+)+$"})


@pytest.mark.parametrize(
    "operations",
    [b"r\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00", b"(((((l", b")\x94" + b"h\x00h\x00\x86\x94" * 9],
    ids=["memo", "length", "lists", "tuples"],
)
def test_a_meta_pkl_is_dicts_and_letters_only(tmp_path: Path, operations: bytes) -> None:
    (tmp_path / "meta.pkl").write_bytes(b"\x80\x04}" + operations + b".")
    sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
    args = {name: getattr(TINY, name) for name in sizes}
    torch.save({"model": {}, "model_args": args}, tmp_path / "ckpt.pt")
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"meta.pkl is no meta.pkl"):
        nanogpt.open_checkpoint(tmp_path / "ckpt.pt", tmp_path)
    assert quick(started)


def test_a_packed_text_is_read_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a " * (1 << 23)))
    assert max(map(len, text_files.characters(tmp_path / "a.txt.gz", TextOptions()))) <= text_files.PIECE
    monkeypatch.setattr(text_files, "LINE", 1 << 21)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a " * (1 << 23)))
    with pytest.raises(UserError, match=r"has a row of more than 2,097,152 characters"):
        list(corpora.load("text", [str(tmp_path / "a.jsonl.gz")], tmp_path, tmp_path).read())


def test_lines_of_any_length_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["x" * n for n in (0, 1, 5, 17, 0, 4, 3)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    for size in (1, 2, 3, 7, 100):
        monkeypatch.setattr(text_files, "PIECE", size)
        assert read(tmp_path / "a.jsonl") == [line for line in lines if line]


# Places


def strangers(tmp_path: Path, **data: Any) -> ModelInfo:
    """The info of a checkpoint whose config names folders."""
    where = {"name": "text", "path": str(tmp_path / "a.txt"), "text_key": "text", "subset": None, "revision": None}
    where |= {"max_documents": None, "dir": str(tmp_path / "chosen"), "cache_dir": str(tmp_path / "chosen")} | data
    (tmp_path / "a.txt").write_text("abcde" * 99)
    config = {"name": "a", "data": where, "tokenizer": {"name": "char", "vocab_size": None}}
    checkpoint.save_checkpoint(content(config=config, data_sha256=None), tmp_path / "a.ckpt")
    return checkpoint.load_checkpoint(tmp_path / "a.ckpt")[2]


def test_a_checkpoint_does_not_choose_where_gptlab_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.delenv("GPTLAB_DATA", raising=False)
    monkeypatch.setattr(survey, "LARGE", 0)
    (tmp_path / "chosen").mkdir()
    info = strangers(tmp_path)
    source = eval_data.source_of_run("a", info.config, CharTokenizer(CHARS))
    assert source.pieces("val")
    assert list((tmp_path / "chosen").iterdir()) == []
    assert list((tmp_path / "mine" / "gptlab").iterdir())


def test_a_stream_is_opened_where_the_run_has_prepared_it_and_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.delenv("GPTLAB_DATA", raising=False)
    found = [pieces.Piece(f"{i} abcde", True) for i in range(99)]
    corpus = Corpus("hub", lambda counts: iter(found), True, "here", None)
    monkeypatch.setattr(corpora, "load", lambda *_, **__: corpus)
    info = strangers(tmp_path, name="hub", split="document", val_fraction=0.3)
    split, how = Split("document", 0.3, 0.0), TokenizerConfig("char", None)
    first = eval_data.source_of_run("a", info.config, CharTokenizer(CHARS)).prepared
    assert first is not None
    assert first.folder.parent == tmp_path / "mine" / "gptlab"
    assert not (tmp_path / "chosen").exists()
    theirs = prepare.prepare(corpus, split, how, tmp_path, tmp_path / "chosen")
    before = sorted((tmp_path / "chosen").rglob("*"))
    again = eval_data.source_of_run("a", info.config, CharTokenizer(CHARS)).prepared
    assert again is not None
    assert again.folder == theirs.folder
    assert sorted((tmp_path / "chosen").rglob("*")) == before


def test_a_run_finds_its_text_where_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"abcde" * 99
    known = ("t.txt", "nowhere://", hashlib.sha256(text).hexdigest())
    monkeypatch.setitem(downloads.DOWNLOADS, "verdict", known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("GPTLAB_DATA", str(tmp_path / "empty"))
    info = strangers(tmp_path, name="verdict")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "t.txt").write_bytes(text)
    assert eval_data.source_of_run("a", info.config, CharTokenizer(CHARS)).pieces("all")[0].text == text.decode()
    (tmp_path / "chosen" / "t.txt").write_bytes(text[1:])
    with pytest.raises(UserError, match="is not the text that data=verdict means"):
        eval_data.source_of_run("a", info.config, CharTokenizer(CHARS))


@pytest.mark.parametrize("data", [{"path": 5}, {"path": {"a": 1}}, {"val_fraction": "x"}, {"name": ["text"]}])
def test_a_damaged_config_names_the_way_out(tmp_path: Path, data: dict[str, Any]) -> None:
    info = strangers(tmp_path, **data)
    for config in (info.config, {"data": None}, {}):
        with pytest.raises(UserError, match=r"give (a text|it) with --data FILE"):
            eval_data.source_of_run("a", config, CharTokenizer(CHARS))


def test_what_has_no_end_is_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in ("/dev/zero", str(tmp_path / "pipe.txt")):
        with pytest.raises(UserError, match="is no file"):
            corpora.load("text", [path], tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", "", "\0"])
def test_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        corpora.load(name, [], tmp_path, tmp_path)
    with pytest.raises(UserError):
        TokenizerConfig(name, None)
    with pytest.raises(UserError):
        tokenizers.from_dict({"name": name, "chars": "ab", "end_of_text": False})
    writing.write_hf(models.build(TINY), CharTokenizer(CHARS), ModelInfo(tmp_path, None, {}, {}, None, ""), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": f"{name}/x"}}))
    with pytest.raises(UserError, match=r"which is no file of this folder"):
        huggingface.open_folder(tmp_path, tmp_path)


# Checksums


def test_our_export_is_verified_and_an_older_one_is_read(tmp_path: Path) -> None:
    model, file = models.build(TINY), tmp_path / "model.safetensors"
    writing.write_safetensors(
        model, CharTokenizer(CHARS), ModelInfo(tmp_path, 7, {}, {"name": "a"}, None, ""), tmp_path
    )
    torch.testing.assert_close(safetensors_file.open_export(file)[0].state_dict(), model.state_dict(), rtol=0, atol=0)
    whole = file.read_bytes()
    for place in (-1, whole.index(b'\\"step\\": 7') + len('\\"step\\": 7') - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(UserError, match="has changed since gptlab wrote it"):
            safetensors_file.open_export(file)
    file.write_bytes(whole)
    state, header = safetensors_file.read_safetensors(file)
    save_file(state, file, metadata={description.KEY: header[description.KEY], "format": "pt"})
    assert safetensors_file.open_export(file)[2].step == 7
    writing.write_hf(model, CharTokenizer(CHARS), ModelInfo(tmp_path, None, {}, {}, None, ""), tmp_path)
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    assert load_file(file)  # which nobody else would notice
    with pytest.raises(UserError, match="has changed since gptlab wrote it"):
        huggingface.open_folder(tmp_path, tmp_path)


def test_a_broken_download_of_the_hub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache, a large file is a link to a file named by its sha256."""
    import huggingface_hub

    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    name = hashlib.sha256(b"weights").hexdigest()
    (blobs / name).write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(blobs / name)
    assert huggingface.download("gpt2") == snapshot
    (blobs / name).write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"is not what openai-community/gpt2 has \(its sha256 differs\)"):
        huggingface.download("gpt2")


def seal(tmp_path: Path) -> Path:
    run = fake_run(tmp_path / "run", 1.25)
    (run / "config.yaml").write_text(files.seal((run / "config.yaml").read_text()))
    files.write_json(run / "summary.json", json.loads((run / "summary.json").read_text()))
    return run


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.yaml", "n_head: 4", "n_head: 8"),
        ("config.yaml", "# sha", "# Sha"),
        ("config.yaml", "follows: ", "follows: 0"),
        ("config.yaml", "# sha256 of what follows: ", ""),
        ("summary.json", '"val/loss": 1.25', '"val/loss": 1.15'),
        ("summary.json", "sha256 of", "sha257 of"),
        ("summary.json", "\n}", ',\n"x": 1}'),
    ],
)
def test_a_run_that_was_changed_is_left_out_with_its_reason(tmp_path: Path, file: str, old: str, new: str) -> None:
    run = seal(tmp_path)
    assert records.read_run(run).summary["val/loss"] == 1.25
    edit(run / file, old, new)
    with pytest.raises(UserError, match=f"^{file} has changed since gptlab wrote it"):
        records.read_run(run)
    fake_run(tmp_path / "good", 1.5)
    (left,) = build_report([tmp_path]).left_out
    assert left.path == run
    assert "has changed" in left.why
    assert file != "summary.json" or directory.read_summary(run) is None


def test_who_deletes_the_seal_lets_a_change_count(tmp_path: Path) -> None:
    run = seal(tmp_path)
    edit(run / "config.yaml", "n_head: 4", "n_head: 8")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().partition("\n")[2])
    lines = (run / "summary.json").read_text().replace("1.25", "1.15").partition("\n")[2]
    (run / "summary.json").write_text("{" + lines)
    found = records.read_run(run)
    assert (found.config["model.n_head"], found.summary["val/loss"]) == (8, 1.15)


def test_sealed_json_comes_back_as_it_was(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True], "b": {"ü": "\ud800"}, "sha256": "x" * 64}
    for indent in (None, 2):
        files.write_json(tmp_path / "a.json", content, indent)
        assert files.read_json(tmp_path / "a.json") == content
        assert list(json.loads((tmp_path / "a.json").read_text()))[1:] == list(content)
    (tmp_path / "a.json").write_text(json.dumps(content, indent=2))
    assert files.read_json(tmp_path / "a.json", must_be_sealed=False) == content
    with pytest.raises(UserError, match="its first line, with the checksum, is missing"):
        files.read_json(tmp_path / "a.json")


LAUGHS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "has more than 100,000 values"),
        ("a: &a [*a]", "nested more than 30 deep"),
        ("a: " + "[" * 900 + "]" * 900, "nested more than 30 deep"),
        ("b: 1\na: 0x" + "f" * 9999, "has a value that none"),
        ("b: 1\na: " + "9" * 9999, "cannot be read"),
        ("a: 2001-99-99", "cannot be read"),
        ("a: !!bool x", "cannot be read"),
        ("a: !!python/object/apply:os.mkdir [x]", "cannot be read"),
        ("a: b\n" * 300_000, "are the most"),
    ],
    ids=["laughs", "loop", "deep", "hexadecimal", "digits", "date", "bool", "code", "long"],
)
def test_a_config_that_asks_too_much_leaves_its_run_out(tmp_path: Path, text: str, words: str) -> None:
    run, started = fake_run(tmp_path / "run", 1.5), time.perf_counter()
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        records.read_run(run)
    assert quick(started)


def test_a_pipe_in_a_run_directory_is_not_waited_for(tmp_path: Path) -> None:
    for seed, name in enumerate(("config.yaml", "summary.json", "metrics.csv", "job.json")):
        run = fake_run(tmp_path / name, 1.5, seed)
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    report = build_report([tmp_path])
    assert {each.path.name for each in report.left_out} == {"config.yaml", "summary.json"}
