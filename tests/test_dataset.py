"""Batch number i is the same for everybody, and a validation sees every character once."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptlab import dataset
from gptlab.dataset import IGNORED, EvalBatches, Share, TrainBatches, crop_starts, id_type, prepare
from gptlab.errors import UserError
from gptlab.tokenizers import CharTokenizer

CPU = torch.device("cpu")
ALONE = Share(0, 1, 1)
TEXT = "To be, or not to be: that is the question.\n" * 31


def train_batches(ids: np.ndarray, **changes: Any) -> TrainBatches:
    arguments = {"seed": 1337, "batch_size": 8, "block_size": 13, "share": ALONE, "device": CPU}
    return TrainBatches(ids, **{**arguments, **changes})


@pytest.fixture
def ids(tmp_path: Path) -> np.ndarray:
    """1,009 memory-mapped ids, each telling its place."""
    np.arange(1009, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    return np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")


def same(a: dataset.Batch, b: dataset.Batch) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_targets_are_the_inputs_one_ahead(ids: np.ndarray) -> None:
    for step in range(17):
        x, y = train_batches(ids, batch_size=7).batch(step, 0)
        assert x.shape == y.shape == (7, 13)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(y, x + 1)  # in this text an id is a place


# Written down with numpy 2.4.6, the same with 1.26.4: other versions must not change anybody's runs.
GOLDEN = {
    (1337, 0): [720011, 940031, 187240, 776619, 585524, 608629, 586757],
    (1337, 1): [444198, 182229, 991136, 12722, 421518, 397228, 328730],
    (0, 0): [2167, 285482, 468797, 619728, 48683, 513873, 298749],
    (4294967295, 600000): [130961, 575853, 139875, 730857, 509703, 584773, 908296],
}


@pytest.mark.parametrize(("seed", "step"), GOLDEN)
def test_crops_begin_where_they_always_began(seed: int, step: int) -> None:
    assert crop_starts(seed, step, 7, 1_003_598).tolist() == GOLDEN[seed, step]


def test_a_batch_is_cut_at_those_places(ids: np.ndarray) -> None:
    x, _ = train_batches(ids, seed=7, batch_size=5).batch(3, 0)
    assert x[:, 0].tolist() == crop_starts(7, 3, 5, 1009 - 13).tolist()


def test_a_batch_depends_on_seed_and_step_and_nothing_else(ids: np.ndarray) -> None:
    batches = train_batches(ids)
    first = batches.batch(5, 0)
    np.random.seed(0)  # what others draw must not matter
    torch.manual_seed(0)
    batches.batch(6, 0)
    assert same(batches.batch(5, 0), first)
    assert same(train_batches(ids).batch(5, 0), first)
    assert not same(batches.batch(6, 0), first)
    assert not same(train_batches(ids, seed=1338).batch(5, 0), first)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1), (2, 2), (1, 1)])
def test_any_division_of_a_batch_gives_the_same_crops_in_the_same_order(
    ids: np.ndarray, world_size: int, accumulation: int
) -> None:
    ranks = [train_batches(ids, share=Share(rank, world_size, accumulation)) for rank in range(world_size)]
    for step in (0, 5):
        parts = [rank.batch(step, micro) for micro in range(accumulation) for rank in ranks]
        assert all(len(x) == 8 // world_size // accumulation for x, _ in parts)
        whole = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        assert same(whole, train_batches(ids).batch(step, 0))


def test_iteration_goes_on_from_the_step_that_training_has_reached(ids: np.ndarray) -> None:
    reached = 5
    batches = train_batches(ids, share=Share(1, 2, 2), start=lambda: reached)
    for reached in (5, 11):
        iterator = iter(batches)
        for step in (reached, reached + 1, reached + 2):
            for micro in (0, 1):
                assert same(next(iterator), batches.batch(step, micro))


def test_overfitting_cycles_through_the_same_batches(ids: np.ndarray) -> None:
    batches = train_batches(ids, distinct=3)
    for step in range(11):
        assert same(batches.batch(step, 0), train_batches(ids).batch(step % 3, 0))


@pytest.mark.parametrize("spare", [1, 2, 7])
def test_crops_reach_the_last_id_and_never_past_it(spare: int) -> None:
    batches = train_batches(np.arange(13 + spare, dtype=np.uint16))
    seen = [batches.batch(step, 0) for step in range(31)]
    assert {int(x[0]) for xs, _ in seen for x in xs} == set(range(spare))
    assert max(int(ys.max()) for _, ys in seen) == 13 + spare - 1


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_text_too_large_for_memory_gives_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    top = np.iinfo(np.uint16).max if dtype is np.uint16 else 99_991
    (np.arange(1009) * 97 % (top + 1)).astype(dtype)[::-1].tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=dtype, mode="r")
    small = train_batches(mapped)
    assert isinstance(small.ids, Tensor)
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    large = train_batches(mapped)
    assert isinstance(large.ids, np.memmap)
    for step in range(7):
        assert same(small.batch(step, 0), large.batch(step, 0))
        assert large.batch(step, 0)[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("n", "batch_size", "block_size", "world_size"),
    [
        (1009, 5, 7, 1),
        (1009, 5, 7, 3),
        (1009, 3, 101, 2),
        (36, 5, 7, 1),  # one batch exactly
        (37, 5, 7, 1),  # and one more target
        (71, 5, 7, 2),
        (8, 1, 7, 1),
        (2, 5, 7, 3),  # most processes have nothing
        (1009, 1, 1, 1),
    ],
)
def test_validation_predicts_every_id_but_the_first_once_and_in_order(
    n: int, batch_size: int, block_size: int, world_size: int
) -> None:
    ids = np.arange(1, n + 1, dtype=np.uint16)
    ranks = [
        EvalBatches(ids, batch_size=batch_size, block_size=block_size, share=Share(rank, world_size, 1), device=CPU)
        for rank in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    turns = math.ceil((n - 1) / (batch_size * block_size * world_size))
    assert {len(b) for b in batches} == {len(rank) for rank in ranks} == {turns}
    in_order = [batch for turn in zip(*batches, strict=True) for batch in turn]
    for x, y in in_order:
        assert x.shape == y.shape == (batch_size, block_size)
        assert x.dtype == y.dtype == torch.int64
    idx, targets = (torch.cat([batch[i].flatten() for batch in in_order]) for i in (0, 1))
    counted = targets != IGNORED
    assert targets[counted].tolist() == ids[1:].tolist()
    assert idx[counted].tolist() == ids[:-1].tolist()
    assert counted[: n - 1].all()
    assert not idx[~counted].any()  # an id that every vocabulary has


def test_validation_can_be_repeated() -> None:
    batches = EvalBatches(np.arange(101), batch_size=5, block_size=7, share=ALONE, device=CPU)
    assert all(same(a, b) for a, b in zip(batches, batches, strict=True))


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, np.uint16), (65536, np.uint16), (65537, np.uint32), (10**6, np.uint32)]
)
def test_ids_take_two_bytes_where_the_vocabulary_allows_it(vocab_size: int, dtype: type) -> None:
    assert id_type(vocab_size) is dtype


def test_prepared_ids_are_the_text_split_by_position(tmp_path: Path) -> None:
    prepared = prepare("text", TEXT + "~", 0.1, tmp_path)
    cut = int(len(TEXT + "~") * 0.9)
    decode = prepared.tokenizer.decode
    assert decode(prepared.ids("train").tolist()) == TEXT[:cut]
    assert decode(prepared.ids("val").tolist()) == TEXT[cut:]  # without the ~ that training never saw
    assert prepared.tokenizer.to_dict() == CharTokenizer.fit(TEXT[:cut]).to_dict()
    assert prepared.sha256 == hashlib.sha256((TEXT + "~").encode()).hexdigest()
    assert isinstance(prepared.ids("train"), np.memmap)


def test_a_vocabulary_beyond_two_bytes_keeps_its_ids(tmp_path: Path) -> None:
    chars = "".join(map(chr, range(0x10000, 0x10000 + 70_001)))
    prepared = prepare("text", chars + chars[-7001:], 0.08, tmp_path)
    assert prepared.ids("train").dtype == np.uint32
    assert prepared.tokenizer.decode(prepared.ids("val").tolist()) == chars[-len(prepared.ids("val")) :]


def files(folder: Path) -> dict[str, os.stat_result]:
    return {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}


def test_a_text_is_prepared_once(tmp_path: Path) -> None:
    first = prepare("text", TEXT, 0.1, tmp_path)
    before = files(tmp_path)
    assert {Path(name).name for name in before} == {first.folder.name, "train.bin", "val.bin", "tokenizer.json"}
    os.utime(tmp_path, (7, 7))
    second = prepare("text", TEXT, 0.1, tmp_path)
    assert files(tmp_path) == before
    assert tmp_path.stat().st_mtime == 7  # not even a temporary folder came and went
    assert (second.folder, second.sha256) == (first.folder, first.sha256)
    assert second.tokenizer.to_dict() == first.tokenizer.to_dict()
    assert np.array_equal(second.ids("val"), first.ids("val"))


@pytest.mark.parametrize(
    ("name", "text", "val_fraction"), [("text", TEXT + ".", 0.1), ("text", TEXT, 0.2), ("other", TEXT, 0.1)]
)
def test_another_recipe_is_another_folder(tmp_path: Path, name: str, text: str, val_fraction: float) -> None:
    first = prepare("text", TEXT, 0.1, tmp_path)
    before = first.ids("train").copy()
    assert prepare(name, text, val_fraction, tmp_path).folder != first.folder
    assert np.array_equal(first.ids("train"), before)


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(28, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_preparation_that_stops_half_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, raised: type[BaseException]
) -> None:
    real, calls = CharTokenizer.encode, []

    def encode(self: CharTokenizer, text: str) -> np.ndarray:
        calls.append(text)
        if len(calls) == 2:  # train.bin is written
            raise failure
        return real(self, text)

    monkeypatch.setattr(CharTokenizer, "encode", encode)
    with pytest.raises(raised) as stopped:
        prepare("text", TEXT, 0.1, tmp_path)
    if raised is UserError:
        assert f"cannot write in {tmp_path}: No space left on device; free some space" in str(stopped.value)
        assert "data.cache_dir=..." in str(stopped.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(prepare("text", TEXT, 0.1, tmp_path).ids("val"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in \S+cache: .*choose another folder .*data.cache_dir="):
        prepare("text", TEXT, 0.1, tmp_path / "file" / "cache")


def test_processes_that_prepare_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    barrier, results = threading.Barrier(5), []

    def work() -> None:
        barrier.wait()
        results.append(prepare("text", TEXT, 0.1, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 5
    (folder,) = tmp_path.iterdir()
    assert all(result.folder == folder for result in results)
    assert all(np.array_equal(result.ids("train"), results[0].ids("train")) for result in results)


def test_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dataset.tempfile.mkdtemp

    def mkdtemp(**arguments: Any) -> str:
        monkeypatch.undo()
        prepare("text", TEXT, 0.1, tmp_path)  # the other process, while this one is about to write
        before.update(files(tmp_path))
        return real(**arguments)

    before: dict[str, os.stat_result] = {}
    monkeypatch.setattr(dataset.tempfile, "mkdtemp", mkdtemp)
    prepared = prepare("text", TEXT, 0.1, tmp_path)
    assert before
    assert files(tmp_path) == before
    assert prepared.tokenizer.decode(prepared.ids("train").tolist()) == TEXT[: int(len(TEXT) * 0.9)]


@pytest.mark.parametrize(
    ("text", "val_fraction", "message"),
    [
        (
            "a" * 7,
            0.1,
            r"the val part of data=text has 1 characters \(7 in all, data.val_fraction=0.1\): give more text",
        ),
        ("", 0.1, r"the train part of data=text has 0 characters \(0 in all, data.val_fraction=0.1\): give more text"),
        ("abcdefg", 0.9, r"the train part of data=text has 0 characters \(7 in all, data.val_fraction=0.9\)"),
    ],
)
def test_too_short_a_text_is_refused(tmp_path: Path, text: str, val_fraction: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare("text", text, val_fraction, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_validation_part_of_unknown_characters_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data=text: the val part has no characters of the train part: give more text"):
        prepare("text", "a" * 97 + "b" * 11, 0.1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_folder_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    first = prepare("text", TEXT, 0.1, tmp_path)
    (first.folder / "val.bin").unlink()
    again = prepare("text", TEXT, 0.1, tmp_path)
    assert again.folder == first.folder
    assert len(again.ids("val")) > 0
