"""Ids in many files read like one array, and a writer that was killed loses nothing but what came after its mark."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptlab.data import shards
from gptlab.data.shards import Shards, ShardWriter, id_type, shard
from tests.data.helpers import opened

often = settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes its files anew
)
places = st.one_of(st.none(), st.integers(-50, 50))


def stored(folder: Path, parts: list[np.ndarray], vocab_size: int = 50257, split: str = "train") -> Shards:
    for i, part in enumerate(parts):
        part.astype(id_type(vocab_size)).tofile(shard(folder, split, i))
    return opened(folder, split, [len(part) for part in parts], vocab_size)


def numbered(sizes: list[int]) -> list[np.ndarray]:
    """Parts of such sizes; each id tells its place."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, np.uint16), (65536, np.uint16), (65537, np.uint32), (10**6, np.uint32)]
)
def test_ids_take_two_bytes_where_the_vocabulary_allows_it(vocab_size: int, dtype: type, tmp_path: Path) -> None:
    assert id_type(vocab_size) is dtype
    ids = stored(tmp_path, [np.array([0, vocab_size - 1]), np.array([vocab_size - 1])], vocab_size)
    assert ids[:].dtype == ids[:1].dtype == ids[:0].dtype == dtype
    assert ids[:].tolist() == [0, vocab_size - 1, vocab_size - 1]


@often
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.tuples(places, places), min_size=1, max_size=9))
def test_any_stretch_of_many_files_is_that_of_one_array(
    tmp_path: Path, sizes: list[int], stretches: list[tuple[int | None, int | None]]
) -> None:
    ids, whole = stored(tmp_path, numbered(sizes)), np.arange(sum(sizes))
    assert len(ids) == len(whole)
    for begin, end in stretches:
        assert ids[begin:end].tolist() == whole[begin:end].tolist()


def test_every_stretch_of_three_files_is_that_of_one_array(tmp_path: Path) -> None:
    ids, whole = stored(tmp_path, numbered([3, 1, 4])), np.arange(8)
    for begin, end in itertools.product(range(-9, 11), repeat=2):
        assert ids[begin:end].tolist() == whole[begin:end].tolist()
        assert isinstance(ids[begin:end], np.ndarray)


def test_a_stretch_within_one_file_is_not_copied(tmp_path: Path) -> None:
    ids = stored(tmp_path, numbered([5, 7]))
    assert np.shares_memory(ids[6:9], ids.parts[1])
    assert not ids[6:9].flags.writeable


# Writing.


def unit(number: int, *splits: str) -> dict[str, np.ndarray]:
    """Seven ids and more for each split, which tell the unit and the split."""
    return {split: np.arange(7 + number, dtype=np.uint16) + 100 * number + len(split) for split in splits}


UNITS = [unit(0, "train"), unit(1, "train", "val"), unit(2, "val"), unit(3, "train"), unit(4, "train", "val", "test")]
UNITS += [unit(5, "train"), {"train": np.array([], np.uint16), "val": np.array([7], np.uint16)}]


def write(writer: ShardWriter, units: list[dict[str, np.ndarray]]) -> None:
    for ids in units[writer.units :]:
        writer.add(ids, {str(writer.units)})


def contents(folder: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    return {split: [files.pop(name) for name in sorted(files) if name.startswith(split)] for split in SPLITS} | files


SPLITS = ("train", "val", "test")


@pytest.fixture(params=[1, 7, 20, 1000])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Ids from which on a new file begins."""
    monkeypatch.setattr(shards, "SHARD", request.param)
    return request.param


def test_what_was_added_is_read_in_files_of_bounded_size(tmp_path: Path, size: int) -> None:
    writer = ShardWriter(tmp_path)
    write(writer, UNITS)
    for split, counts in writer.counts.items():
        ids = opened(tmp_path, split, counts, 50257)
        assert ids[:].tolist() == np.concatenate([ids[split] for ids in UNITS if split in ids]).tolist()
        assert all(count < size + 12 for count in counts)  # 12 are the largest unit
        assert all(count >= size for count in counts[:-1])
        assert all(counts)
    assert len(writer.counts["train"]) == {1: 5, 7: 5, 20: 2, 1000: 1}[size]
    assert writer.units == len(UNITS)
    assert writer.unknown == {"0", "1", "2", "3", "4", "5", "6"}
    assert len(list(tmp_path.iterdir())) == sum(map(len, writer.counts.values()))  # and no mark that soon


@pytest.mark.parametrize("stop", range(len(UNITS) + 1))
def test_a_writer_goes_on_after_its_last_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, stop: int
) -> None:
    monkeypatch.setattr(shards, "SAVE_EVERY", 2)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    whole = ShardWriter(undisturbed)
    write(whole, UNITS)
    write(ShardWriter(killed), UNITS[:stop])
    with shard(killed, "train", 0).open("ab") as file:
        file.write(b"half an i")  # it was in the middle of a write
    again = ShardWriter(killed)
    assert again.units == stop // 2 * 2
    assert again.unknown == set(map(str, range(again.units)))
    write(again, UNITS)
    assert contents(killed) == contents(undisturbed)
    assert (again.counts, again.units, again.unknown) == (whole.counts, whole.units, whole.unknown)


def test_what_no_mark_knows_is_removed(tmp_path: Path) -> None:
    for split, number in (("train", 0), ("val", 0), ("train", 1)):
        shard(tmp_path, split, number).write_bytes(b"ids of a killed process")
    (tmp_path / "tokenizer.json").touch()
    writer = ShardWriter(tmp_path)
    assert (writer.units, writer.counts) == (0, {})
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_files_that_came_after_the_mark_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 1)
    writer = ShardWriter(tmp_path)
    write(writer, UNITS[:1])
    writer.save(2)
    write(writer, UNITS[:4])
    assert len(list(tmp_path.glob("*.bin"))) == 5
    ShardWriter(tmp_path)
    assert [path.name for path in tmp_path.glob("*.bin")] == ["train-00000.bin"]


@pytest.mark.parametrize("damage", ["mark", "count", "gone", "short", "flip"])
def test_after_a_damage_a_writer_begins_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    writer = ShardWriter(tmp_path)
    write(writer, UNITS[:3])
    writer.save(2)
    file = shard(tmp_path, "val", 0)
    if damage == "mark":
        writer.mark.write_text(writer.mark.read_text()[:-5])
    elif damage == "count":
        writer.mark.write_text(writer.mark.read_text().replace('"units": 3', '"units": 2'))
    elif damage == "gone":
        file.unlink()
    elif damage == "flip":
        file.write_bytes(file.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    else:
        file.write_bytes(file.read_bytes()[:-4])  # as after a power cut
    again = ShardWriter(tmp_path)
    assert (again.units, again.counts, again.unknown) == (0, {}, set())
    assert not list(tmp_path.glob("*.bin"))
    assert ("progress.json" if damage in ("mark", "count") else "val-00000.bin") in caplog.text


def test_a_mark_tells_the_size_of_an_id(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add({"train": np.array([1, 70_000], np.uint32)}, set())
    writer.save(4)
    assert json.loads(writer.mark.read_text())["item_size"] == 4
    assert ShardWriter(tmp_path).counts == {"train": [2]}
    assert shard(tmp_path, "train", 0).stat().st_size == 8
