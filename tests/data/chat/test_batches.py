"""Rows of conversations: nothing is lost in them, and step i is the same for everybody."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.batches import IGNORED, Batch, Share
from gptlab.data.chat.batches import MULTIPLE, ChatEvalBatches, ChatTrainBatches, Rows
from gptlab.data.chat.chat_format import Encoded
from gptlab.data.chat.encoding import encode_conversations
from tests.data.chat.helpers import CHAT, talk

CPU, ALONE, T = torch.device("cpu"), Share(0, 1, 1), 41


def conversations(count: int = 101) -> list[Encoded]:
    """Conversations of different lengths; their first id tells which it is."""
    draw = np.random.default_rng(0)
    found = []
    for i in range(count):
        ids = np.concatenate([[1000 + i], draw.integers(1, 99, int(draw.integers(1, T + 1)))])
        counted = draw.random(len(ids)) < 0.5
        counted[0], counted[-1] = False, True
        found.append(Encoded(ids, counted))
    return found


def texts(idx: torch.Tensor, targets: torch.Tensor, places: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """The idx and targets of each text of the rows, cut where places are 0."""
    found = []
    for x, y, place in zip(idx.tolist(), targets.tolist(), places.tolist(), strict=True):
        begins = [i for i, each in enumerate(place) if each == 0]
        for begin, end in zip(begins, [*begins[1:], len(place)], strict=True):
            assert place[begin:end] == list(range(end - begin))
            found.append((x[begin:end], y[begin:end]))
    return found


def expected(each: Encoded) -> tuple[list[int], list[int]]:
    """What a conversation's inputs and targets must be: written out, one target after the other."""
    targets = [int(i) if c else IGNORED for i, c in zip(each.ids, each.counted, strict=True)]
    return each.ids.tolist()[:-1], targets[1:]


def is_padding(text: tuple[list[int], list[int]]) -> bool:
    return not any(text[0]) and set(text[1]) == {IGNORED}


@pytest.mark.parametrize("packed", [True, False])
def test_every_conversation_is_in_the_rows_once_and_whole(packed: bool) -> None:
    """Fault 1: the mask is not shifted with the targets. Fault 5: one of T + 1 ids does not fit a row of T."""
    given = conversations()
    assert max(len(each.ids) for each in given) == T + 1
    rows = Rows(given, T, packed)
    for batch in ChatEvalBatches(rows, batch_size=7, share=ALONE, device=CPU):
        assert batch.idx.dtype == batch.targets.dtype == batch.places.dtype == torch.int64
        assert batch.idx.shape == batch.targets.shape == batch.places.shape
        assert not packed or batch.idx.shape == (7, T)
    found = [
        text
        for batch in ChatEvalBatches(rows, batch_size=7, share=ALONE, device=CPU)
        for text in in_batch(batch)
        if not is_padding(text)
    ]
    assert sorted(found) == sorted(map(expected, given))
    if not packed:  # in order, one a row; the rest of a row is a text of its own
        assert found == [*map(expected, given)]
    assert rows.counted.sum() == sum(int(each.counted.sum()) for each in given)


def test_packing_saves_rows() -> None:
    given = conversations()
    packed, alone = Rows(given, T, True), Rows(given, T, False)
    assert len(alone) == 101
    assert len(packed) < 58
    assert packed.fill > 0.95
    assert packed.fill == pytest.approx(sum(len(each.ids) - 1 for each in given) / len(packed) / T)


def test_without_packing_a_batch_is_as_long_as_its_longest_rounded_up() -> None:
    given = [Encoded(np.arange(n), np.ones(n, dtype=bool)) for n in (2, 5, 34, 35, 71)]
    rows = Rows(given, 70, False)
    widths = {number: rows.width([number]) for number in range(5)}
    assert widths == {0: 32, 1: 32, 2: 64, 3: 64, 4: 70}
    assert rows.width([0, 4]) == 70
    assert rows.filled([0], 64)[0].shape == (1, 64)
    assert MULTIPLE == 32


def in_batch(batch: Batch) -> list[Any]:
    return texts(batch.idx, batch.targets, batch.places)


def train_batches(**changes: Any) -> ChatTrainBatches:
    rows = changes.pop("rows", None) or Rows(conversations(), T, True)
    return ChatTrainBatches(rows, **{"seed": 1337, "batch_size": 8, "share": ALONE, "device": CPU, **changes})


def begins(batches: ChatTrainBatches, steps: range) -> list[int]:
    """The first ids of all conversations in these steps."""
    found = [text for step in steps for text in in_batch(batches.batch(step, 0))]
    return [text[0][0] for text in found if not is_padding(text)]


@pytest.mark.parametrize("packed", [True, False])
def test_every_conversation_comes_once_an_epoch(packed: bool) -> None:
    rows = Rows(conversations(), T, packed)
    batches = train_batches(rows=rows, batch_size=1)
    first, second = (begins(batches, range(e * len(rows), (e + 1) * len(rows))) for e in (0, 1))
    assert sorted(first) == sorted(second) == [1000 + i for i in range(101)]
    assert first != second
    several = train_batches(rows=rows, batch_size=len(rows) * 2 + 3)  # more than an epoch in a step
    assert Counter(begins(several, range(len(rows)))) == Counter(first * (2 * len(rows) + 3))


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_is_the_same_however_it_is_shared(packed: bool) -> None:
    rows = Rows(conversations(), T, packed)
    whole = train_batches(rows=rows).batch(5, 0)
    for world_size, accumulation in ((2, 1), (1, 4), (2, 2)):
        shares = [Share(rank, world_size, accumulation) for rank in range(world_size)]
        parts = [
            train_batches(rows=rows, share=share).batch(5, micro) for micro in range(accumulation) for share in shares
        ]
        for name in ("idx", "targets", "places", "noise"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert {part.tokens for part in parts} == {whole.tokens}


def test_the_targets_of_the_whole_step_are_counted() -> None:
    """Fault 9: a mean of the micro-batches' means, instead of a sum over the step's count of targets."""
    batches = train_batches(share=Share(0, 1, 4))
    parts = [batches.batch(3, micro) for micro in range(4)]
    own = [int((part.targets != IGNORED).sum()) for part in parts]
    assert len(set(own)) > 1  # or a mean of means would be as good
    assert {part.tokens for part in parts} == {sum(own)}


def test_steps_depend_on_the_seed_and_begin_where_a_run_resumes() -> None:
    batches = train_batches()
    later = iter(train_batches(start=lambda: 3))
    for step in (3, 4):
        assert torch.equal(next(later).idx, batches.batch(step, 0).idx)
    assert not torch.equal(train_batches(seed=1).batch(0, 0).idx, batches.batch(0, 0).idx)


def test_steps_repeat_where_that_is_asked_for() -> None:
    batches = train_batches(distinct=2)
    assert torch.equal(batches.batch(0, 0).idx, batches.batch(2, 0).idx)
    assert not torch.equal(batches.batch(0, 0).idx, batches.batch(1, 0).idx)
    assert not torch.equal(batches.batch(0, 0).noise, batches.batch(2, 0).noise)


def test_processes_evaluate_each_row_once() -> None:
    rows = Rows(conversations(), T, True)
    parts = [ChatEvalBatches(rows, batch_size=5, share=Share(rank, 3, 1), device=CPU) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    found = [text for part in parts for batch in part for text in in_batch(batch)]
    assert sorted(text[0][0] for text in found if not is_padding(text)) == [1000 + i for i in range(101)]


def test_no_row_of_training_is_without_a_target() -> None:
    """Fault 4: all targets of a row are masked after truncation, and the loss is 0/0."""
    said = [talk("x" * length, "y") for length in range(1, 99)]
    counts: Counter[str] = Counter()
    rows = Rows(encode_conversations(said, CHAT, 31, counts), 31, False)
    assert counts.total() > 50
    assert rows.counted.min() == 2  # the answer and its end


def test_the_order_is_the_same_in_every_version() -> None:
    """Written down with numpy 2.4.6: other versions must not change anybody's runs."""
    batches = train_batches(rows=Rows(conversations(20), T, False))
    assert batches.numbers(3).tolist() == [16, 18, 1, 9, 5, 7, 11, 17]
