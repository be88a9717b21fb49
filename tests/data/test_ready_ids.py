"""Ids that others have written are read where they lie, or refused with their place and a way out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data import id_files, ready_ids, shards, tokenizers
from gptlab.data.meta_pickle import meta_of, read_meta
from gptlab.data.prepared import Prepared
from gptlab.data.ready_ids import open_ready_ids
from gptlab.data.split import Split
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, TokenizerConfig
from gptlab.data.write_bin import write_bin
from gptlab.system.errors import UserError

GPT2, UINT32 = (20240520, 1, "<u2"), (20240801, 7, "<u4")
BYTE = TokenizerConfig("byte", None)
BY_POSITION = Split("position", 0.1, 0.0)
ABC = {0: "\n", 1: "a", 2: "b"}


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def opened(
    *paths: Path,
    config: TokenizerConfig | Tokenizer = BYTE,
    split: Split = BY_POSITION,
    **options: Any,
) -> Prepared:
    cache = paths[0].parent / "cache"
    return open_ready_ids([str(path) for path in paths], split, config, cache, cache, TextOptions(**options))


def raw(path: Path, ids: Any) -> Path:
    """A .bin of nanoGPT."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array(ids, "<u2").tofile(path)
    return path


def shard(path: Path, ids: Any, kind: tuple[int, int, str] = GPT2, count: int | None = None) -> Path:
    """A shard of llm.c."""
    magic, version, dtype = kind
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())
    return path


def array(path: Path, ids: np.ndarray, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, ids, **how)
    return path


def ids_of(found: Prepared) -> dict[str, list[int]]:
    return {part: found.ids(part)[:].tolist() for part in found.files}


def refusal(*paths: Path, **how: Any) -> str:
    with pytest.raises(UserError) as refused:
        opened(*paths, **how)
    return str(refused.value)


# What is read


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8"])
def test_every_form_holds_the_same_ids(tmp_path: Path, dtype: str) -> None:
    train, val = list(range(40)), [7, 256, 7]
    raw(tmp_path / "nanogpt" / "train.bin", train)
    raw(tmp_path / "nanogpt" / "val.bin", val)
    kind = UINT32 if dtype == "<u4" else GPT2
    for name, ids in (("fineweb_train_000001", train[:17]), ("fineweb_train_000002", train[17:])):
        shard(tmp_path / "llm.c" / f"{name}.bin", ids, kind)
        array(tmp_path / "arrays" / f"{name}.npy", np.array(ids, dtype))
        array(tmp_path / "folders" / "train" / f"{name[-6:]}.npy", np.array(ids, dtype))
    shard(tmp_path / "llm.c" / "fineweb_val_000000.bin", val, kind)
    array(tmp_path / "arrays" / "fineweb_val_000000.npy", np.array(val, dtype))
    array(tmp_path / "folders" / "val" / "000000.npy", np.array(val, dtype))
    for folder in ("nanogpt", "llm.c", "arrays", "folders"):
        found = opened(tmp_path / folder)
        assert ids_of(found) == {"train": train, "val": val}
        assert found.ids("train")[15:20].tolist() == train[15:20]  # over the border of two files
        assert (found.name, found.tokenizer.name, found.unknown) == ("bin", "byte", [])


def test_what_is_read_lies_where_it_lay_and_nothing_is_written(tmp_path: Path) -> None:
    raw(tmp_path / "ids" / "train.bin", range(50))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = opened(tmp_path / "ids")
    assert all(isinstance(part, np.memmap) for part in found.ids("train").parts)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_files_that_are_not_divided_are_split_by_position_over_their_borders(tmp_path: Path) -> None:
    paths = [array(tmp_path / "ids" / f"{i}.npy", np.arange(i * 10, i * 10 + 10, dtype="<i4")) for i in range(3)]
    found = opened(tmp_path / "ids", split=Split("position", 0.5, 0.2))
    parts = {"train": list(range(9)), "val": list(range(9, 24)), "test": list(range(24, 30))}
    assert ids_of(found) == parts
    assert ids_of(opened(*paths, split=Split("position", 0.5, 0.2))) == parts
    assert ids_of(opened(tmp_path / "ids" / "*.npy", split=Split("position", 0.5, 0.2))) == parts
    assert opened(*reversed(paths)).ids("train")[:3].tolist() == [20, 21, 22]  # in the order given


def test_a_val_part_that_is_not_there_is_cut_from_the_end_of_train(tmp_path: Path) -> None:
    raw(tmp_path / "ids" / "train.bin", range(20))
    raw(tmp_path / "ids" / "test.bin", [1, 2, 3])
    assert ids_of(opened(tmp_path / "ids")) == {"train": list(range(18)), "val": [18, 19], "test": [1, 2, 3]}
    assert ids_of(opened(tmp_path / "ids" / "train.bin")) == {"train": list(range(18)), "val": [18, 19]}
    assert len(opened(tmp_path / "ids", named_parts=False).ids("train")) == int(23 * 0.9)


def test_only_named_parts_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("train", "val", "more"):
        raw(tmp_path / "ids" / f"{name}.bin", range(9))
    assert "data.named_parts=true reads those parts alone" in refusal(tmp_path / "ids")
    assert ids_of(opened(tmp_path / "ids", named_parts=True)) == {"train": list(range(9)), "val": list(range(9))}


# Their tokens


def test_nanogpts_characters_are_the_tokens(tmp_path: Path) -> None:
    raw(tmp_path / "ids" / "train.bin", [1, 2, 0] * 9)
    meta = {"vocab_size": 3, "itos": ABC, "stoi": {c: i for i, c in ABC.items()}}
    (tmp_path / "ids" / "meta.pkl").write_bytes(pickle.dumps(meta))
    found = opened(tmp_path / "ids" / "train.bin", config=TokenizerConfig("gpt2", None))  # the default
    assert found.tokenizer.to_dict() == CharTokenizer("\nab").to_dict()
    assert found.tokenizer.decode(found.ids("train")[:3].tolist()) == "ab\n"
    assert opened(tmp_path / "ids", config=TokenizerConfig("char", None)).sha256 == found.sha256
    assert opened(tmp_path / "ids", config=CharTokenizer("\nab", added=["<|user|>"])).tokenizer.vocab_size == 4
    assert "tokenizer=byte: what lies beside the ids says" in refusal(tmp_path / "ids")
    assert "init_from's (char, 2): begin with" in refusal(tmp_path / "ids", config=CharTokenizer("ab"))


def test_without_characters_the_config_names_the_tokens(tmp_path: Path, data_dir: Path) -> None:
    path = raw(tmp_path / "train.bin", [15496, 995, 50256] * 9)
    found = open_ready_ids([str(path)], Split("position", 0.2, 0), TokenizerConfig("gpt2", None), data_dir, tmp_path)
    assert found.tokenizer.decode(found.ids("val")[-3:-1].tolist()) == "Hello world"
    assert found.tokenizer.text_bytes(found.ids("train")[:3]).tolist() == [5, 6, 0]
    for name in ("char", "word", "bpe"):
        config = TokenizerConfig(name, 300 if name == "bpe" else None)
        assert f"tokenizer={name}: is learned from a text, and data=bin has ids" in refusal(path, config=config)


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharTokenizer("\n !ITabdehinoqrstu"),
        CharTokenizer("\n ITabdehinoqrstu", end_of_text=True),
        ByteTokenizer(True),
        tokenizers.WordTokenizer(["be", "to"], True),
        tokenizers.BPETokenizer.fit(["to be or not to be"], 260),
    ],
    ids=lambda tokenizer: f"{tokenizer.name}-{tokenizer.end_of_text}",
)
def test_what_is_written_is_read_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = np.arange(200) % tokenizer.vocab_size
    given = opened(array(tmp_path / "a" / "train.npy", ids), config=tokenizer, split=Split("position", 0.1, 0.2))
    (tmp_path / "out").mkdir()
    write_bin(given, tmp_path / "out")
    again = opened(tmp_path / "out", config=TokenizerConfig("gpt2", None))
    assert ids_of(again) == ids_of(given)
    assert again.tokenizer.to_dict() == tokenizer.to_dict()
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == ids[:140].tolist()  # as nanoGPT does
    if isinstance(tokenizer, CharTokenizer):
        meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
        assert "".join(meta["itos"][i] for i in ids[:9]) == tokenizer.decode(ids[:9].tolist())
        assert [meta["stoi"][character] for character in "to be"] == tokenizer.encode("to be").tolist()
        assert meta["vocab_size"] == tokenizer.vocab_size
        assert read_meta(tmp_path / "out" / "meta.pkl").to_dict() == tokenizer.to_dict()


def test_ids_of_a_large_vocabulary_are_written_as_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.data.write_bin.SHARD", 13)
    tokenizer = CharTokenizer("".join(map(chr, [*range(0xD800), *range(0xE000, 72_048)])))
    ids = np.arange(30) * 2000
    given = opened(array(tmp_path / "a" / "train.npy", ids), config=tokenizer)
    (tmp_path / "out").mkdir()
    write_bin(given, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("out/*.bin")) == [
        *(f"bin_train_{i:06d}.bin" for i in range(3)),
        "bin_val_000000.bin",
    ]
    assert (tmp_path / "out" / "bin_train_000000.bin").stat().st_size == 1024 + 13 * 4
    assert ids_of(opened(tmp_path / "out", config=TokenizerConfig("char", None))) == ids_of(given)


def test_two_that_name_different_tokens_are_refused(tmp_path: Path) -> None:
    given = opened(raw(tmp_path / "train.bin", [0, 1] * 9), config=CharTokenizer("ab"))
    (tmp_path / "ids").mkdir()
    write_bin(given, tmp_path / "ids")
    assert opened(tmp_path / "ids", config=TokenizerConfig("gpt2", None)).tokenizer.vocab_size == 2
    (tmp_path / "ids" / "meta.pkl").write_bytes(meta_of(CharTokenizer("xyz")))
    assert "name different tokens: remove the one that is not" in refusal(tmp_path / "ids")
    (tmp_path / "ids" / "gptlab_tokenizer.json").write_text("{}")
    assert "gptlab_tokenizer.json is damaged: " in refusal(tmp_path / "ids")


# The hash


def test_the_hash_is_of_the_ids_their_parts_and_their_tokens(tmp_path: Path) -> None:
    def sha256(name: str, ids: Any = range(40), val: Any = (1, 2, 3), meta: bytes | None = None) -> str:
        raw(tmp_path / name / "train.bin", ids)
        raw(tmp_path / name / "val.bin", val)
        if meta:
            (tmp_path / name / "meta.pkl").write_bytes(meta)
        return opened(tmp_path / name, config=TokenizerConfig("gpt2", None) if meta else BYTE).sha256

    first = sha256("a")
    assert sha256("elsewhere") == first
    (tmp_path / "a" / "train.bin").touch()
    assert opened(tmp_path / "a").sha256 == first
    characters = [meta_of(CharTokenizer("".join(map(chr, range(begin, begin + 41))))) for begin in (40, 41)]
    others = [sha256("b", range(1, 41)), sha256("c", val=(1, 2, 4)), *(sha256("d", meta=each) for each in characters)]
    assert len({first, *others}) == 5


def test_large_files_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = id_files.read_content
    monkeypatch.setattr(ready_ids, "ALWAYS", 10)
    monkeypatch.setattr(ready_ids, "read_content", lambda file: (read.append(file.path), real(file))[1])
    monkeypatch.setattr(id_files, "CHUNK", 7)
    path = raw(tmp_path / "ids" / "train.bin", range(40))
    first = opened(tmp_path / "ids")
    assert opened(tmp_path / "ids").sha256 == first.sha256
    assert len(read) == 1
    assert "at position 0, and the vocabulary" not in refusal(tmp_path / "ids", config=CharTokenizer("ab"))
    assert len(read) == 1  # the vocabulary is another, the ids are not
    raw(path, range(1, 41))
    assert opened(tmp_path / "ids").sha256 != first.sha256
    assert len(read) == 2
    (remembered,) = (tmp_path / "cache").glob(".ids-*.json")
    remembered.write_text(remembered.read_text().replace("40", "39"))
    opened(tmp_path / "ids")
    assert len(read) == 3


# What is refused


@pytest.mark.parametrize("chunk", [3, 1 << 22])
@pytest.mark.parametrize("dtype", ["<u2", "<i8"])
def test_ids_beyond_the_vocabulary_are_refused_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: str
) -> None:
    monkeypatch.setattr(id_files, "CHUNK", chunk)
    ids = np.array([5] * 20 + [1257] + [5] * 9, dtype)
    path = array(tmp_path / "train.npy", ids)
    found = refusal(path)
    assert f"data.path={path} has the id 1,257 at position 20, and the vocabulary of tokenizer=byte has 257" in found
    assert "choose the tokenizer that the ids are of" in found
    if dtype == "<i8":
        assert "has the id -1 at position 11" in refusal(array(path, np.where(np.arange(30) == 11, -1, 5)))


def damaged(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pickled(folder: Path) -> Path:
    return array(folder / "train.npy", np.array([Bomb(folder / "struck")], object), allow_pickle=True)


REFUSED: dict[str, tuple[Any, str]] = {
    "odd": (lambda folder: damaged(folder / "train.bin", b"\1" * 7), "has 7 bytes, an odd number"),
    "empty": (lambda folder: damaged(folder / "train.bin", b""), "is empty (0 bytes)"),
    "empty array": (lambda folder: array(folder / "a.npy", np.zeros(0, "<u2")), "is empty (0 ids)"),
    "cut header": (
        lambda folder: damaged(folder / "a.bin", np.array([20240520, 1], "<i4").tobytes()),
        "has 8 bytes, and the header of a shard of llm.c alone has 1,024: it is cut off",
    ),
    "cut shard": (
        lambda folder: shard(folder / "a.bin", [1, 2, 3], count=5),
        "says that it has 5 ids, which makes 1,034 bytes, and it has 1,030: it is cut off",
    ),
    "long shard": (
        lambda folder: shard(folder / "a.bin", [1, 2, 3], UINT32, count=1),
        "says that it has 1 id, which makes 1,028 bytes, and it has 1,036: there is more in it than that",
    ),
    "no count": (lambda folder: shard(folder / "a.bin", [1], count=-4), "says that it has -4 ids"),
    "version": (
        lambda folder: shard(folder / "a.bin", [1], (20240520, 2, "<u2")),
        "is of version 2, and of the shards that begin with 20240520 only version 1 can be read",
    ),
    "weights": (
        lambda folder: shard(folder / "a.bin", [1], (20240326, 3, "<u2")),
        "begins with the number 20240326, and shards of ids with 20240520 (version 1) and 20240801 (version 7)",
    ),
    "magic": (lambda folder: shard(folder / "a.bin", [1], (77, 1, "<u2")), "begins with the number 77"),
    "big-endian": (
        lambda folder: damaged(folder / "a.bin", np.array([20240520, 1, 0, *[0] * 253], ">i4").tobytes()),
        "is big-endian, and a shard of llm.c is little-endian",
    ),
    "big-endian array": (
        lambda folder: array(folder / "a.npy", np.ones(9, ">u2")),
        "is of type >u2, big-endian, and ids are uint16, uint32, int32 or int64, little-endian: write them with "
        "np.save('a.npy', ids.astype(np.uint16))",
    ),
    "float": (lambda folder: array(folder / "a.npy", np.ones(9)), "is of type float64, and ids are uint16"),
    "2-D": (
        lambda folder: array(folder / "a.npy", np.ones((3, 3), "<u2")),
        "has 2 axes (its shape is (3, 3)), and ids have one: write them with np.save('a.npy', ids.reshape(-1))",
    ),
    "0-D": (lambda folder: array(folder / "a.npy", np.uint16(3)), "has 0 axes"),
    "pickled": (pickled, "holds Python objects (dtype object), which numpy would unpickle, and so execute"),
    "no array": (lambda folder: damaged(folder / "a.npy", b"PK\3\4" * 9), "is no array of numpy: ValueError"),
    "cut array": (
        lambda folder: damaged(folder / "a.npy", array(folder / "b.npy", np.ones(9, "<u2")).read_bytes()[:-4]),
        "says that it has 9 ids, which makes 146 bytes, and it has 142: it is cut off",
    ),
    "no file": (lambda folder: folder / "train.bin", "no such file or folder; give a folder with nanoGPT's train.bin"),
    "long name": (lambda folder: folder / ("x" * 999), "cannot be read: File name too long"),
    "a text": (
        lambda folder: damaged(folder / "a.txt", b"a"),
        "files of ids end with .bin or .npy; a text is data=text",
    ),
    "no ids": (
        lambda folder: damaged(folder / "none" / "a.txt", b"a").parent,
        "none: no ids in this folder (there are 1 .txt): give one with nanoGPT's train.bin and val.bin, llm.c's",
    ),
    "no train": (
        lambda folder: raw(folder / "ids" / "val.bin", [1, 2]).parent,
        "val.bin is for val by name, and there is nothing to train on: add train.bin, or data.named_parts=false",
    ),
    "no folder of train": (
        lambda folder: raw(folder / "ids" / "val" / "0.bin", [1, 2]).parent.parent,
        "data.path: val/0.bin is for val by name, and there is nothing to train on",
    ),
    "two kinds": (
        lambda folder: array(raw(folder / "ids" / "train.bin", [1]).with_suffix(".npy"), np.ones(1, "<u2")).parent,
        "this folder has .bin and .npy files, perhaps the same ids twice: ",
    ),
    "short": (
        lambda folder: raw(folder / "train.bin", range(9)),
        "the val part has 1 id, and 2 are the least (data.val_fraction=0.1): give more ids",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_ids_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    found = refusal(make(tmp_path))
    assert message in found
    assert "\n" not in found
    assert not (tmp_path / "struck").exists()
    assert not (tmp_path / "cache").exists()


def test_code_in_meta_pkl_is_not_executed(tmp_path: Path) -> None:
    raw(tmp_path / "ids" / "train.bin", [0, 1] * 9)
    meta = tmp_path / "ids" / "meta.pkl"
    for content, message in (
        (pickle.dumps({"itos": Bomb(tmp_path / "struck")}), "it would do more than read"),
        (pickle.dumps({"itos": {0: "a", 1: "bc"}}), "it has texts that are no single characters"),
        (pickle.dumps({"itos": {0: "a", 1: "b"}, "vocab_size": 3}), "it has 2 characters, and its vocab_size is 3"),
        (b"", "pickle exhausted"),
    ):
        meta.write_bytes(content)
        assert f"{meta} is no meta.pkl of nanoGPT's characters: " in (found := refusal(tmp_path / "ids"))
        assert message in found
    assert not (tmp_path / "struck").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"split": Split("document", 0.1, 0.0)}, "data.split=document: data=bin has ids and no documents"),
        ({"separator": "\n\n"}, "data.separator="),
        ({"format": "json"}, "data.format=json: is for texts, and data=bin has ids; leave it out"),
        ({"text_key": "body"}, "data.text_key=body: is for texts"),
        ({"split": Split("position", 0.1, 0.1)}, "data.test_fraction=0.1: the text has parts of its own (train, val)"),
    ],
)
def test_options_of_texts_are_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    raw(tmp_path / "ids" / "train.bin", range(40))
    raw(tmp_path / "ids" / "val.bin", range(40))
    assert message in refusal(tmp_path / "ids", **how)


def test_documents_cannot_be_counted(tmp_path: Path) -> None:
    raw(tmp_path / "train.bin", range(40))
    with pytest.raises(UserError, match=r"data.max_documents=3: data=bin has ids and no documents; leave it out"):
        open_ready_ids([str(tmp_path)], BY_POSITION, BYTE, tmp_path, tmp_path, max_documents=3)
    with pytest.raises(UserError, match=r"data=bin needs a folder of ids: add data.path=DIR, with nanoGPT's train.bin"):
        open_ready_ids([], BY_POSITION, BYTE, tmp_path, tmp_path)


def test_stretches_of_files_are_cut_at_any_place(tmp_path: Path) -> None:
    files = [id_files.read_id_file(shard(tmp_path / f"{i}.bin", range(5 * i, 5 * i + 5), UINT32)) for i in range(3)]
    for begin in range(15):
        for end in range(begin + 1, 16):
            assert shards.Shards(shards.cut(files, begin, end))[:].tolist() == list(range(begin, end))
