"""Rows of conversations: nothing is lost in them, and step i is the same for everybody."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.batches import IGNORED, Batch, Share
from gptlab.data.chat.batches import (
    MULTIPLE,
    ChatEvalBatches,
    ChatTrainBatches,
    LabelledRows,
    PairBatch,
    PairRows,
    PromptBatches,
    Rows,
    width_of,
)
from gptlab.data.chat.chat_format import Encoded
from gptlab.data.chat.encoding import EncodedLabelled, EncodedPair, encode_conversations, encode_preferences
from gptlab.system.errors import UserError
from tests.data.chat.helpers import CHAT, pair, talk

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


def train_batches(**changes: Any) -> ChatTrainBatches[Any]:
    rows = changes.pop("rows", None) or Rows(conversations(), T, True)
    return ChatTrainBatches(rows, **{"seed": 1337, "batch_size": 8, "share": ALONE, "device": CPU, **changes})


def begins(batches: ChatTrainBatches[Any], steps: range) -> list[int]:
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


def pairs(count: int = 23) -> list[EncodedPair]:
    """Pairs whose answers have a common beginning, the last text of T ids; the first id of a text tells which it is."""
    draw = np.random.default_rng(1)
    found = []
    for i in range(count):
        prompt = [1000 + i, *draw.integers(1, 99, int(draw.integers(1, 25))).tolist()]
        shared = draw.integers(1, 99, 3).tolist()
        sides = [[*prompt, *shared, *draw.integers(1, 99, int(draw.integers(1, 9))).tolist(), 7] for _ in range(2)]
        if i == count - 1:
            sides[1] = prompt + [5] * (T - len(prompt))
        counted = [np.arange(len(ids)) >= len(prompt) for ids in sides]
        found.append(EncodedPair(*(Encoded(np.array(ids), c) for ids, c in zip(sides, counted, strict=True))))
    return found


def sides_of(batch: PairBatch) -> list[tuple[list[int], list[int], int]]:
    """Each text's inputs up to its length, its targets up to there, and its length: of a pair, chosen then rejected."""
    b, found = len(batch.counted), []
    for i in range(b):
        for row in (i, b + i):
            length = int(batch.lengths[row])
            assert not batch.idx[row, length:].any()
            assert (batch.targets[row, length:] == IGNORED).all()
            if batch.counted[i]:
                found.append((batch.idx[row, :length].tolist(), batch.targets[row, :length].tolist(), length))
    return found


def side(each: Encoded) -> tuple[list[int], list[int], int]:
    """What must be of a text: every id is read, and each that counts is a target once, one place before its own."""
    targets = [IGNORED] * len(each.ids)
    for place, (token, counts) in enumerate(zip(each.ids.tolist(), each.counted.tolist(), strict=True)):
        if counts:
            targets[place - 1] = token
    return each.ids.tolist(), targets, len(each.ids)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 30])
def test_every_pair_is_in_the_rows_once_and_whole(batch_size: int) -> None:
    """Faults 1, 2, 5 and 8: the answer's first token and its end have a loss, a text of T ids fits, and the beginning
    that both answers share counts in both.
    """
    given = pairs()
    assert max(len(each.ids) for pair in given for each in pair.both) == T
    batches = [*ChatEvalBatches(PairRows(given, T), batch_size=batch_size, share=ALONE, device=CPU)]
    found = [text for batch in batches for text in sides_of(batch)]
    assert found == [side(each) for pair in given for each in pair.both]
    for batch in batches:
        assert batch.idx.dtype == batch.targets.dtype == batch.lengths.dtype == torch.int64
        assert batch.idx.shape == batch.targets.shape == (2 * batch_size, batch.idx.shape[1])
        assert (batch.noise, batch.pairs) == (None, None)
        assert batch.lengths.min() >= 1
    assert sum(int(batch.counted.sum()) for batch in batches) == len(given)


def test_a_pair_of_one_more_token_than_a_row_has_inputs_keeps_all_its_targets() -> None:
    """Fault 5: off by one at block_size + 1."""
    whole = Encoded(np.arange(1, T + 2), np.arange(T + 1) > 3)
    (batch,) = ChatEvalBatches(PairRows([EncodedPair(whole, whole)], T), batch_size=1, share=ALONE, device=CPU)
    assert batch.idx[0].tolist() == [*range(1, T + 1)]
    assert batch.targets[0].tolist() == [IGNORED] * 3 + [*range(5, T + 2)]


def test_no_pair_is_without_a_target_on_either_side() -> None:
    """Faults 3 and 4: a long prompt is cut, and all that is left is masked."""
    said = [pair("x" * length, "yes", "no") for length in range(1, 60)]
    counts: Counter[str] = Counter()
    encoded = encode_preferences(said, CHAT, 20, counts, end_is_read=True)
    assert counts.total() > 30
    (batch,) = ChatEvalBatches(PairRows(encoded, 20), batch_size=59, share=ALONE, device=CPU)
    answers = (batch.targets != IGNORED).sum(1).tolist()
    assert answers == [4] * 59 + [3] * 59  # with their ends
    end = CHAT.tokenizer.special_tokens["<|end|>"]
    for idx, targets, length in sides_of(batch):
        assert idx[-1] == end  # which a head reads
        assert targets[length - 2 :] == [end, IGNORED]


def labelled(count: int = 23) -> list[EncodedLabelled]:
    draw = np.random.default_rng(2)
    found = [np.array([1000 + i, *draw.integers(1, 99, int(draw.integers(0, T)))]) for i in range(count)]
    return [EncodedLabelled(ids, i % 3) for i, ids in enumerate([*found[1:], np.arange(1000, 1000 + T)])]


@pytest.mark.parametrize("batch_size", [1, 5, 23, 30])
def test_every_labelled_text_is_in_the_rows_once_and_whole(batch_size: int) -> None:
    given, found = labelled(), []
    for batch in ChatEvalBatches(LabelledRows(given, T), batch_size=batch_size, share=ALONE, device=CPU):
        assert batch.idx.shape[0] == len(batch.lengths) == len(batch.labels) == batch_size
        assert batch.idx.dtype == batch.lengths.dtype == batch.labels.dtype == torch.int64
        assert (batch.noise, batch.texts) == (None, None)
        for ids, length, label in zip(*(each.tolist() for each in batch[:3]), strict=True):
            assert not any(ids[length:])
            if label != IGNORED:
                found.append((ids[:length], label))
    assert found == [(each.ids.tolist(), each.label) for each in given]


SETS: dict[str, Any] = {
    "pairs": (lambda: PairRows(pairs(), T), ("counted", "pairs")),
    "labelled": (lambda: LabelledRows(labelled(), T), ("idx", "lengths", "labels", "noise", "texts")),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_step_of_pairs_or_texts_is_the_same_however_it_is_shared(kind: str) -> None:
    """Fault 9, too: the count is that of the step, as is the width, so that dropout is the same."""
    rows = SETS[kind][0]()
    whole = train_batches(rows=rows).batch(5, 0)
    for world_size, accumulation in ((2, 1), (1, 4), (2, 2), (1, 8)):
        shares = [Share(rank, world_size, accumulation) for rank in range(world_size)]
        parts = [
            train_batches(rows=rows, share=share).batch(5, micro) for micro in range(accumulation) for share in shares
        ]
        for name in whole._fields:
            values = [getattr(part, name) for part in parts]
            if name in ("pairs", "texts"):
                assert {*values, getattr(whole, name)} == {8}
            elif kind == "pairs" and name not in ("counted", "margins"):  # all chosen texts, then all rejected ones
                halves = [torch.cat(each) for each in zip(*(value.chunk(2) for value in values), strict=True)]
                assert torch.equal(torch.cat(halves), getattr(whole, name))
            else:
                assert torch.equal(torch.cat(values), getattr(whole, name))
    numbers = train_batches(rows=rows).numbers(5)
    assert len({width_of(rows.lengths, [i], T) for i in numbers.tolist()}) == 2  # or each part would have the width
    assert whole.idx.shape[1] == T


def test_both_answers_of_a_pair_have_the_same_noise_and_each_pair_its_own() -> None:
    noise = train_batches(rows=PairRows(pairs(), T)).batch(0, 0).noise
    assert torch.equal(noise[:8], noise[8:])
    assert len(set(noise.tolist())) == 8


@pytest.mark.parametrize("kind", SETS)
def test_every_pair_and_text_comes_once_an_epoch(kind: str) -> None:
    rows = SETS[kind][0]()
    batches = train_batches(rows=rows, batch_size=1)
    seen = [int(batches.batch(step, 0).idx[0, 0]) for step in range(2 * len(rows))]
    assert len(set(seen[: len(rows)])) == len(rows)
    assert sorted(seen[: len(rows)]) == sorted(seen[len(rows) :])
    assert seen[: len(rows)] != seen[len(rows) :]


@pytest.mark.parametrize("kind", SETS)
def test_processes_evaluate_each_pair_and_text_once(kind: str) -> None:
    rows = SETS[kind][0]()
    parts = [[*ChatEvalBatches(rows, batch_size=4, share=Share(rank, 3, 1), device=CPU)] for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    there = [batch.counted if kind == "pairs" else batch.labels != IGNORED for part in parts for batch in part]
    assert sum(int(each.sum()) for each in there) == len(rows) == 23


def prompt_batches(count: int = 10, **changes: Any) -> PromptBatches:
    return PromptBatches(count, **{"seed": 1337, "batch_size": 24, "group": 4, "share": ALONE, **changes})


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 8), (2, 1), (2, 4), (3, 8), (6, 2)])
def test_answers_of_a_step_are_of_the_same_prompts_however_they_are_shared(world_size: int, accumulation: int) -> None:
    """A micro-batch may cut through a group, a process not: its advantages need all of the group."""
    whole = prompt_batches().batch(5, 0)
    answers = np.repeat(whole.numbers, 4)
    assert (whole.rows, whole.first, len(whole.numbers)) == (slice(0, 24), 0, 6)
    trained = []
    for rank in range(world_size):
        batches = prompt_batches(share=Share(rank, world_size, accumulation))
        own = [batches.batch(5, micro) for micro in range(accumulation)]
        assert [each.micro for each in own] == [*range(accumulation)]
        assert len({(each.step, each.numbers, each.first) for each in own}) == 1
        local = np.repeat(own[0].numbers, 4)
        for each in own:
            rows = [*range(24)[each.rows]]
            assert len(rows) == 24 // world_size // accumulation
            assert answers[rows].tolist() == [local[row - each.first] for row in rows]
            trained += rows
    assert sorted(trained) == [*range(24)]


def test_every_prompt_comes_once_an_epoch_and_a_resumed_run_goes_on() -> None:
    batches = prompt_batches(12)
    found = [number for step in range(4) for number in batches.batch(step, 0).numbers]
    assert sorted(found[:12]) == sorted(found[12:]) == [*range(12)]
    assert found[:12] != found[12:]
    assert next(iter(prompt_batches(12, start=lambda: 3))) == batches.batch(3, 0)
    assert prompt_batches(12, seed=1).batch(0, 0).numbers != batches.batch(0, 0).numbers
    assert prompt_batches(12, distinct=1).batch(3, 0).numbers == batches.batch(0, 0).numbers
    stream = iter(prompt_batches(12, share=Share(0, 1, 2)))
    assert [(each.step, each.micro) for each in (next(stream) for _ in range(3))] == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(("world_size", "least"), [(4, 32), (5, 40)])
def test_a_group_is_not_divided_among_processes(world_size: int, least: int) -> None:
    words = (
        rf"data.batch_size=24 counts the answers .* task.group=4 times {world_size} device\(s\).*batch_size={least}$"
    )
    with pytest.raises(UserError, match=words):
        prompt_batches(share=Share(0, world_size, 1))
