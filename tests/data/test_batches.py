"""Batch number i is the same for everybody, and a validation sees every character once."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptlab.data import batches as batches_module
from gptlab.data.batches import IGNORED, EvalBatches, Ids, Share, TrainBatches, crop_starts, eval_batch_size
from gptlab.data.shards import Shards, id_type, shard
from tests.data.helpers import opened

CPU = torch.device("cpu")
ALONE = Share(0, 1, 1)


def stored(folder: Path, ids: np.ndarray, vocab_size: int, *cuts: int) -> Shards:
    """`ids` on disk, in files that begin at `cuts`."""
    parts = np.split(ids.astype(id_type(vocab_size)), cuts)
    for i, part in enumerate(parts):
        part.tofile(shard(folder, "train", i))
    return opened(folder, "train", [len(part) for part in parts], vocab_size)


def train_batches(ids: Ids, **changes: Any) -> TrainBatches:
    arguments = {"seed": 1337, "batch_size": 8, "block_size": 13, "share": ALONE, "device": CPU}
    return TrainBatches(ids, **{**arguments, **changes})


@pytest.fixture(params=[(), (5, 509, 510, 1008)], ids=["one file", "several files"])
def ids(request: pytest.FixtureRequest, tmp_path: Path) -> Shards:
    """1,009 ids on disk, each telling its place."""
    return stored(tmp_path, np.arange(1009), 1009, *request.param)


def same(a: tuple[Tensor | None, ...], b: tuple[Tensor | None, ...]) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_targets_are_the_inputs_one_ahead(ids: Shards) -> None:
    for step in range(17):
        x, y, *_ = train_batches(ids, batch_size=7).batch(step, 0)
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


# Of steps 0 and 3136, in which the second epoch begins.
EPOCHS = {
    0: [646604, 231372, 541132, 245580, 615628, 241036, 993548, 599500, 63884, 27908],
    4294967295: [586016, 743904, 95136, 577248, 538144, 679200, 177824, 933344, 483808, 439981],
}


@pytest.mark.parametrize(("seed", "step"), GOLDEN)
def test_crops_begin_where_they_always_began(seed: int, step: int) -> None:
    assert crop_starts(seed, step, 7, 1_003_598).tolist() == GOLDEN[seed, step]


def test_where_crops_begin_depends_on_nothing_drawn_before_or_meanwhile() -> None:
    """The generator is used again and again, by each thread its own."""
    steps = list(range(40))
    alone = [crop_starts(7, step, 3, 1_003_598).tolist() for step in steps]
    crop_starts(8, 1, 1001, 5)  # leaves the generator in the middle of its numbers
    with ThreadPoolExecutor(8) as pool:
        drawn = pool.map(lambda step: crop_starts(7, step, 3, 1_003_598).tolist(), steps * 20)
    assert list(drawn) == alone * 20


def test_a_batch_is_cut_at_those_places(ids: Shards) -> None:
    x, *_ = train_batches(ids, seed=7, batch_size=5).batch(3, 0)
    assert x[:, 0].tolist() == crop_starts(7, 3, 5, 1009 - 13).tolist()


def test_a_batch_depends_on_seed_and_step_and_nothing_else(ids: Shards) -> None:
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
    ids: Shards, world_size: int, accumulation: int
) -> None:
    ranks = [train_batches(ids, share=Share(rank, world_size, accumulation)) for rank in range(world_size)]
    for step in (0, 5):
        parts = [rank.batch(step, micro) for micro in range(accumulation) for rank in ranks]
        assert all(len(part.idx) == 8 // world_size // accumulation for part in parts)
        whole = train_batches(ids).batch(step, 0)
        assert same(tuple(torch.cat([part[i] for part in parts]) for i in range(3)), whole[:3])


def test_iteration_goes_on_from_the_step_that_training_has_reached(ids: Shards) -> None:
    reached = 5
    batches = train_batches(ids, share=Share(1, 2, 2), start=lambda: reached)
    for reached in (5, 11):
        iterator = iter(batches)
        for step in (reached, reached + 1, reached + 2):
            for micro in (0, 1):
                assert same(next(iterator), batches.batch(step, micro))


def test_an_epoch_is_all_of_the_text_cut_elsewhere_each_time(ids: Shards) -> None:
    crops = (1009 - 13) // 13  # 76: a batch of 7 ends one epoch and begins the next
    batches = train_batches(ids, batch_size=7, order="epochs")
    starts = np.concatenate([batches.starts(step) for step in range(crops)]).reshape(7, crops)
    firsts = []
    for epoch in starts:
        places = np.sort(epoch)
        assert set(np.diff(places)) == {13}  # side by side
        assert 0 <= places[0] < 26 > 1009 - 13 - places[-1]
        assert not np.array_equal(places, epoch)
        firsts.append(int(places[0]))
    assert len(set(firsts)) > 3
    assert not np.array_equal(np.argsort(starts[0]), np.argsort(starts[1]))
    x, *_ = batches.batch(11, 0)
    assert x[:, 0].tolist() == batches.starts(11).tolist()


@pytest.mark.parametrize("spare", [1, 2, 12, 13, 14, 26])
def test_an_epoch_reaches_every_id_of_a_short_text(spare: int) -> None:
    batches = train_batches(np.arange(13 + spare, dtype=np.uint16), batch_size=5, order="epochs")
    seen = [batches.batch(step, 0) for step in range(97)]
    assert {int(i) for _, ys, *_ in seen for i in ys.flatten()} == set(range(1, 13 + spare))
    assert {int(i) for xs, *_ in seen for i in xs.flatten()} == set(range(12 + spare))


@pytest.mark.parametrize("seed", EPOCHS)
def test_epochs_have_the_order_that_they_always_had(seed: int) -> None:
    batches = train_batches(np.zeros(1_003_854, dtype=np.uint8), seed=seed, block_size=64, batch_size=5, order="epochs")
    assert batches.starts(0).tolist() + batches.starts(3136).tolist() == EPOCHS[seed]


def test_overfitting_cycles_through_the_same_batches(ids: Shards) -> None:
    batches = train_batches(ids, distinct=3)
    for step in range(11):
        batch = batches.batch(step, 0)
        assert same(batch[:2], train_batches(ids).batch(step % 3, 0)[:2])
        assert same(batch[2:], train_batches(ids).batch(step, 0)[2:])  # dropout does not repeat itself


@pytest.mark.parametrize("spare", [1, 2, 7])
def test_crops_reach_the_last_id_and_never_past_it(spare: int) -> None:
    batches = train_batches(np.arange(13 + spare, dtype=np.uint16))
    seen = [batches.batch(step, 0) for step in range(31)]
    assert {int(x[0]) for xs, *_ in seen for x in xs} == set(range(spare))
    assert max(int(ys.max()) for _, ys, *_ in seen) == 13 + spare - 1


@pytest.mark.parametrize("vocab_size", [1 << 16, 99_991])
@pytest.mark.parametrize("cuts", [(), (1, 500, 508, 1000)], ids=["one file", "several files"])
def test_a_text_too_large_for_memory_gives_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int, cuts: tuple[int, ...]
) -> None:
    ids = stored(tmp_path, (np.arange(1009) * 97 % vocab_size)[::-1], vocab_size, *cuts)
    small = train_batches(ids)
    assert isinstance(small.ids, Tensor)
    monkeypatch.setattr(batches_module, "RESIDENT_BYTES", 0)
    large = train_batches(ids)
    assert large.ids is ids
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
    for x, y, *_ in in_order:
        assert x.shape == y.shape == (batch_size, block_size)
        assert x.dtype == y.dtype == torch.int64
    idx, targets = (torch.cat([batch[i].flatten() for batch in in_order]) for i in (0, 1))
    counted = targets != IGNORED
    assert targets[counted].tolist() == ids[1:].tolist()
    assert idx[counted].tolist() == ids[:-1].tolist()
    assert counted[: n - 1].all()
    assert not idx[~counted].any()  # an id that every vocabulary has


def test_validation_reads_several_files_as_one_text(ids: Shards) -> None:
    array = np.arange(1009, dtype=np.uint16)
    theirs, ours = (EvalBatches(source, batch_size=5, block_size=7, share=ALONE, device=CPU) for source in (array, ids))
    assert all(same(a, b) for a, b in zip(theirs, ours, strict=True))


def test_validation_can_be_repeated() -> None:
    batches = EvalBatches(np.arange(101), batch_size=5, block_size=7, share=ALONE, device=CPU)
    assert all(same(a, b) for a, b in zip(batches, batches, strict=True))


@pytest.mark.parametrize(
    ("length", "vocab_size", "size"), [(64, 65, 128), (1024, 50257, 2), (1024, 1 << 20, 1), (9000, 65, 1)]
)
def test_a_batch_of_evaluation_has_as_many_windows_as_memory_allows(length: int, vocab_size: int, size: int) -> None:
    assert eval_batch_size(length, vocab_size) == size
