"""Models leave for llama2.c's run.c with their logits and text, and its files open with the logits that they hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    WordTokenizer,
)
from gptlab.formats import llama2c, llama2c_tokenizer, open_model
from gptlab.formats.description import ModelInfo
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig
from gptlab.system.errors import UserError
from tests.conftest import ROOT
from tests.formats import llama2c_by_hand as by_hand
from tests.formats.test_huggingface_names import shaken
from tests.formats.test_huggingface_tokenizer import llama

TEXT = (ROOT / "LICENSE").read_text()[:3000]
T = 23
LLAMA: dict[str, Any] = {"norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "bias": False, "tied": False}
SHAPES = {
    "untied": LLAMA,
    "tied, grouped": LLAMA | {"tied": True, "n_kv_head": 2, "n_inner": 53},
    "without scales": LLAMA | {"norm_weight": False, "n_kv_head": 1},
}
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharTokenizer.fit([TEXT + "éß한"]),
    "char, ended": lambda: CharTokenizer.fit([TEXT + "éß"], end_of_text=True).with_special(["<|user|>"]),
    "char without a space and a line": lambda: CharTokenizer("abcé"),
    "byte": lambda: ByteTokenizer(),
    "byte, ended": lambda: ByteTokenizer(end_of_text=True),
    "bpe": lambda: BPETokenizer.fit([TEXT + " déjà vu déjà vu"], 340),
    "json, like Llama's": lambda: JsonTokenizer(llama().to_str(), 2),
}
NO_INFO = ModelInfo(Path("x"), None, {}, {}, None, "a run")


def gpt(vocab_size: int, **fields: Any) -> GPT:
    torch.manual_seed(7)
    return shaken(GPT(GPTConfig(vocab_size, block_size=T, n_layer=2, n_head=4, n_embd=32, **fields)))


def export(model: Any, tokenizer: Tokenizer, folder: Path) -> tuple[by_hand.Model, by_hand.Tokenizer]:
    folder.mkdir(exist_ok=True)
    assert llama2c.write_llama2c(model, tokenizer, NO_INFO, folder) == "llama2.c, version 0, for run.c"
    return by_hand.Model(folder / "model.bin"), by_hand.Tokenizer(folder / "tokenizer.bin")


def moved(tokenizer: Tokenizer) -> dict[int, int]:
    """Each of our ids to that of the export."""
    sources = llama2c_tokenizer.layout_of(tokenizer).sources
    return {ours: theirs for theirs, ours in enumerate(sources) if ours is not None}


@pytest.mark.parametrize(
    ("name", "shape"), [("byte", shape) for shape in SHAPES] + [(name, "tied, grouped") for name in TOKENIZERS]
)
@torch.no_grad()
def test_the_file_has_our_logits(tmp_path: Path, name: str, shape: str) -> None:
    tokenizer = TOKENIZERS[name]()
    model = gpt(tokenizer.vocab_size, **SHAPES[shape])
    theirs, _ = export(model, tokenizer, tmp_path)
    places = moved(tokenizer)
    used = [i for i in range(tokenizer.vocab_size) if i in places]
    ids = [used[i] for i in torch.randint(len(used), (T,), generator=torch.Generator().manual_seed(3))]
    logits = theirs.logits([places[i] for i in ids])
    expected = model(torch.tensor([ids]))[0, :, used]
    assert expected.std() > 0.25  # or the comparison would show little
    found = torch.from_numpy(logits[:, [places[i] for i in used]])
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-5)
    new = [i for i in range(len(logits[0])) if i not in places.values()]
    zeros = len(new) / (len(new) + np.exp(logits[:, [*places.values()]]).sum(axis=1))
    taken = 1 - np.exp(logits[:, [*places.values()]]).sum(axis=1) / np.exp(logits).sum(axis=1)
    assert taken.mean() < 2 * zeros.mean() + 1e-9  # of new rows; those of a trained model take far less than zeros
    np.testing.assert_allclose(theirs.cosines[5, 1], np.cos(5 * 10_000 ** (-2 / 8)), atol=1e-6)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_has_our_ids_after_a_begin_and_a_space(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    _, theirs = export(gpt(tokenizer.vocab_size, **LLAMA), tokenizer, tmp_path)
    places = moved(tokenizer)
    texts = ["", "abc", "bacé"] if "without" in name else ["", "You may", "Licensor é 2.0", "é"]
    texts += [TEXT[:300]] if name in ("char", "byte", "json, like Llama's") else []
    for text in texts:
        space = "" if tokenizer.leading_space or not text else " "
        expected = [places[i] for i in tokenizer.encode(space + text).tolist()]
        lacking = [theirs.ids[b" "]] if text and "without" in name else []
        assert theirs.encode(text) == [1, *lacking, *expected]
        assert theirs.decode(theirs.encode(text)[1:]).decode() == text


@pytest.mark.parametrize("name", ["char", "char, ended", "byte, ended", "bpe"])
@torch.no_grad()
def test_the_first_token_reads_as_what_begins_our_texts(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    model = gpt(tokenizer.vocab_size, **LLAMA | {"tied": True})
    theirs, _ = export(model, tokenizer, tmp_path)
    places = moved(tokenizer)
    first = tokenizer.end_of_text if tokenizer.end_of_text is not None else tokenizer.encode("\n").tolist()[0]
    rest = tokenizer.encode("You may").tolist()
    used = [*places]
    found = theirs.logits([1, *(places[i] for i in rest)])[:, [places[i] for i in used]]
    expected = model(torch.tensor([[first, *rest]]))[0, :, used]
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, atol=1e-5, rtol=1e-5)
    assert (1 in places.values()) == (tokenizer.end_of_text is not None)  # at which run.c stops


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_an_export_comes_back_with_the_ids_of_run_c(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    model = gpt(tokenizer.vocab_size, **SHAPES["tied, grouped"])
    theirs, its_tokenizer = export(model, tokenizer, tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / "model.bin"):
        again, back, info = open_model.load_model(path)
        assert (info.path, info.step, info.origin) == (tmp_path / "out" / "model.bin", None, "llama2.c, version 0")
        idx = torch.randint(theirs.vocab, (3, T), generator=torch.Generator().manual_seed(3))
        expected = torch.from_numpy(np.stack([theirs.logits(row.tolist()) for row in idx])).float()
        torch.testing.assert_close(again(idx), expected, atol=1e-5, rtol=1e-5)
    assert back.begin == (1,)
    assert back.end_of_text == 1
    for text in ("", "You may", "a cab", TEXT[:300], "déjà 한 \U0001f600", "<s> <0x41>"):
        ids = its_tokenizer.encode(text)
        assert [*back.begin, *back.encode(text).tolist()] == ids
        assert back.decode(ids[1:]) == its_tokenizer.decode(ids[1:]).decode()
    once_more = export(again, back, tmp_path / "twice")
    assert once_more[1].texts == its_tokenizer.texts
    assert (tmp_path / "twice" / "model.bin").read_bytes() == (tmp_path / "out" / "model.bin").read_bytes()


def of_version(version: int, file: Path, folder: Path, group: int = 8) -> Path:
    """Write a file of version 0 as one of version 1 or 2, by the format's description."""
    model, sizes = by_hand.Model(file), list(struct.unpack_from("<7i", file.read_bytes()))
    shared, sizes[5] = sizes[5] > 0, abs(sizes[5])
    header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, shared)
    header += struct.pack("<i", group) if version == 2 else b""
    norms = [model.norm_1, model.norm_2, model.last]
    matrices = [model.embedding, model.q, model.k, model.v, model.o, model.w1, model.w2, model.w3]
    matrices += [] if shared else [model.head]
    content = [header.ljust(256, b"\0"), *(norm.astype("<f4").tobytes() for norm in norms)]
    for stacked in matrices:
        for matrix in stacked if stacked.ndim == 3 else [stacked]:
            if version == 1:
                content.append(matrix.astype("<f4").tobytes())
                continue
            groups = matrix.reshape(-1, group)
            scales = np.maximum(np.abs(groups).max(axis=1), 1e-30).astype("<f4") / 127
            content += [np.round(groups / scales[:, None]).astype(np.int8).tobytes(), scales.astype("<f4").tobytes()]
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"".join(content))
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("version", "tolerance"), [(1, 0.0), (2, 0.2)])
@torch.no_grad()
def test_other_versions_are_read(tmp_path: Path, version: int, tolerance: float, tied: bool) -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    export(gpt(257, **LLAMA | {"tied": tied, "n_kv_head": 2, "n_inner": 56}), tokenizer, tmp_path / "out")
    folder = of_version(version, tmp_path / "out" / "model.bin", tmp_path / "other")
    (tmp_path / "out" / "tokenizer.bin").rename(folder / "tok259.bin")  # the other name that llama2.c has for it
    model, _, info = open_model.load_model(folder)
    assert info.origin == f"llama2.c, version {version}"
    assert isinstance(model, GPT)
    assert model.config.tied == tied
    (folder / "tok259.bin").rename(tmp_path / "out" / "tokenizer.bin")
    original = open_model.load_model(tmp_path / "out")[0]
    idx = torch.randint(259, (3, T), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(idx), original(idx), atol=tolerance, rtol=0)
    if version == 2:  # each number within half a step
        for a, b in zip(model.parameters(), original.parameters(), strict=True):
            assert (a - b).abs().max() <= b.abs().max() / 253


def test_rows_behind_the_last_token_are_cut_off(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer(end_of_text=True).with_special(["<|a|>", "<|b|>"])
    _, theirs = export(gpt(259, **LLAMA), tokenizer, tmp_path)
    content = (tmp_path / "tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(content[: -8 - len(theirs.texts[-1])])
    model, tokenizer_back, _ = open_model.load_model(tmp_path)
    assert model.config.vocab_size == tokenizer_back.vocab_size == 260


def test_a_loaded_model_needs_its_file_no_longer(tmp_path: Path) -> None:
    export(gpt(256, **LLAMA), ByteTokenizer(), tmp_path)
    model = open_model.load_model(tmp_path)[0]
    before = model(torch.arange(T)[None])
    (tmp_path / "model.bin").write_bytes(b"")
    assert torch.equal(model(torch.arange(T)[None]), before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"run.c of llama2.c has no model of this shape; what parts it from Llama: model.norm=layernorm \(not rms"),
        (LLAMA | {"norm_eps": 1e-6}, r"from Llama: model.norm_eps=1e-06 \(not 1e-05\); use --format"),
        (LLAMA | {"rope_base": 500_000.0, "window": 7}, r"model.window=7 \(not null\), model.rope_base=500000.0 \(not"),
        (LLAMA | {"head_dim": 10}, r"model.head_dim=10 \(not null\); use --format"),
        (
            LLAMA | {"mlp": "geglu", "qkv_bias": True},
            r"model.mlp=geglu \(not swiglu\), model.qkv_bias=true \(not false",
        ),
    ],
)
def test_a_shape_that_run_c_lacks_is_refused_with_every_reason(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        llama2c.write_llama2c(gpt(256, **fields), ByteTokenizer(), NO_INFO, tmp_path)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: WordTokenizer(["be", "to"]), r"run.c merges characters, and the tokenizer word has whole words"),
        (lambda: CharTokenizer("a\udc80"), r"lone surrogates, which are no UTF-8"),
        (lambda: BPETokenizer.fit(["\0\0\0\0 a" * 99], 260), r"one of its tokens has the byte 0"),
        (lambda: JsonTokenizer(json.dumps(json.loads(llama().to_str()) | {"normalizer": None}), 2), r"like Llama 2's"),
    ],
)
def test_a_tokenizer_that_run_c_lacks_is_refused(
    tmp_path: Path, tokenizer: Callable[[], Tokenizer], message: str
) -> None:
    ours = tokenizer()
    with pytest.raises(UserError, match=message):
        llama2c.write_llama2c(gpt(ours.vocab_size, **LLAMA), ours, NO_INFO, tmp_path)


def test_a_table_of_bigrams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llama2.c has no Bigram; use --format safetensors or --format onnx"):
        llama2c.write_llama2c(Bigram(BigramConfig(256)), ByteTokenizer(), NO_INFO, tmp_path)


def test_patterns_that_run_c_lacks_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("byte", "bpe"):
        tokenizer = TOKENIZERS[name]()
        export(gpt(tokenizer.vocab_size, **LLAMA), tokenizer, tmp_path)
        assert ("run.c cuts no text by a pattern before it merges" in caplog.text) == (name == "bpe")


def sizes(content: bytearray, *values: int) -> None:
    struct.pack_into("<7i", content, 0, *values)


def with_magic(version: int, *values: int, group: int = 8) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        struct.pack_into("<Ii7iBi", content, 0, 0x616B3432, version, *values, 1, group)

    return change


PLAIN = (32, 88, 2, 4, 4, 259, T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.append(0), r"model.bin has [\d,]+ bytes, and a model of llama2.c with its header has"),
        (lambda content: content.__delitem__(slice(-9, None)), r"bytes, and a model .*; is the download complete\?"),
        (lambda content: sizes(content, 32, 88, 2, 4, 4, 259, 1 << 24), r"header has [\d,]+; is the download complete"),
        (lambda content: sizes(content, 32, 88, 2, 3, 4, 259, T), r"model.bin is broken or no checkpoint"),
        (with_magic(3, *PLAIN), r"is a model of llama2.c of version 3; gptlab reads 0, 1 and 2"),
        (with_magic(1, 32, 88, 2, 4, 3, 259, T), r"is a damaged model of llama2.c: no model has the sizes 32, 88, 2,"),
        (with_magic(1, 32, 88, 2, 4, 4, -259, T), r"no model has the sizes 32, 88, 2, 4, 4, -259"),
        (with_magic(1, *PLAIN), r"bytes, and a model of llama2.c with its header has"),
        (with_magic(2, *PLAIN, group=7), r"its matrices have no groups of 7 numbers"),
        (with_magic(2, *PLAIN, group=0), r"its matrices have no groups of 0 numbers"),
        (with_magic(2, *PLAIN, group=-8), r"its matrices have no groups of -8 numbers"),
    ],
)
def test_a_damaged_model_is_named_with_the_reason(
    tmp_path: Path, change: Callable[[bytearray], None], message: str
) -> None:
    export(gpt(256, **LLAMA), ByteTokenizer(), tmp_path)
    content = bytearray((tmp_path / "model.bin").read_bytes())
    change(content)
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_model.load_model(tmp_path / "model.bin")


def entries(*changes: tuple[int, bytes]) -> Callable[[list[bytes]], bytes]:
    def change(texts: list[bytes]) -> bytes:
        for i, text in changes:
            texts[i : i + 1] = [text]
        return b"\0\0\0\0" + b"".join(struct.pack("<fI", 0.0, len(text)) + text for text in texts)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda texts: b"", r"tokenizer.bin: it has 0 tokens, without all of <unk>, <s>, </s> and the 256"),
        (lambda texts: entries()(texts) + b"\0" * 5, r"it has more than the model's 259 tokens: they do not belong"),
        (lambda texts: entries()(texts[:-1])[:-3], r"token 257 claims 6 bytes"),
        (
            lambda texts: entries()(texts[:-1]) + b"\0" * 5,
            r"tokenizer.bin: it cannot be read as a tokenizer \(error: unpack_from",
        ),
        (lambda texts: entries()(texts[:200]), r"it has 200 tokens, without all of"),
        (entries((68, b"B")), r"token 68 is not <0x41>, but 'B'"),
        (entries((258, b"<0xFE>")), r"token 258 is not <0xFF>, but '<0xFE>'"),
        (entries((258, b"\xff")), r"token 258 is a part of a character, which gptlab cannot read"),
        (entries((258, b"a" * 600)), r"token 258 claims 600 bytes"),
    ],
)
def test_a_damaged_tokenizer_is_named_with_the_reason(
    tmp_path: Path, change: Callable[[list[bytes]], bytes], message: str
) -> None:
    _, theirs = export(gpt(256, **LLAMA), ByteTokenizer(), tmp_path)
    (tmp_path / "tokenizer.bin").write_bytes(change([*theirs.texts]))
    with pytest.raises(UserError, match=message):
        open_model.load_model(tmp_path)


def test_a_missing_tokenizer_is_asked_for(tmp_path: Path) -> None:
    export(gpt(256, **LLAMA), ByteTokenizer(), tmp_path)
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(UserError, match=r"its tokenizer, tokenizer.bin or tok259.bin, is not beside it: copy it there"):
        open_model.load_model(tmp_path)


def test_a_token_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer().with_special(["<|a|>", "<|b|>"])
    _, theirs = export(gpt(258, **LLAMA), tokenizer, tmp_path)
    (tmp_path / "tokenizer.bin").write_bytes(entries((260, b"<|a|>"))([*theirs.texts]))
    with pytest.raises(UserError, match=r"tokens 259 and 260 are both '<\|a\|>'"):
        open_model.load_model(tmp_path)


def test_files_of_others_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    torch.save({"a": torch.zeros(99)}, tmp_path / "zip.bin")
    torch.save({"a": torch.zeros(99)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("empty.bin", "zip.bin", "old.bin", "none.bin"):
        assert llama2c.read_header(tmp_path / name) is None
