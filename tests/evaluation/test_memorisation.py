"""All copies are found, at their full length, and nothing else."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from gptlab.data.tokenizers import CharTokenizer
from gptlab.evaluation.memorisation import SAMPLE_ROWS, SEAM, draw_sample, find_copies
from gptlab.models import GPT, GPTConfig


def by_hand(text: str, source: str) -> list[tuple[int, int]]:
    """The begin and length of each copy that cannot be extended at either end."""
    longest = [next((k for k in range(end, 0, -1) if text[end - k : end] in source), 0) for end in range(len(text) + 1)]
    ends = [end for end in range(1, len(text) + 1) if end == len(text) or longest[end + 1] <= longest[end]]
    return [(end - longest[end], longest[end]) for end in ends if longest[end]]


@pytest.mark.parametrize("letters", ["ab", "abcd"])
def test_copies_are_those_that_a_naive_search_finds(letters: str) -> None:
    draw = random.Random(5)
    for _ in range(500):
        source = "".join(draw.choices(letters[:-1], k=draw.randint(0, 37)))
        text = "".join(draw.choices(letters, k=draw.randint(1, 23)))
        found = find_copies(text, [source[:7], source[7:]])  # a piece may end within a copy
        assert [(copy.begin, len(copy.text)) for copy in found.found] == by_hand(text, source)
        for copy in found.found:
            assert source[copy.found : copy.found + len(copy.text)] == copy.text
            assert text[copy.begin : copy.begin + len(copy.text)] == copy.text


def test_what_lies_in_long_copies_counts_once() -> None:
    found = find_copies("xxabcdefyycdefgh", ["-abcdef-cdefgh-"])
    assert [copy.text for copy in found.top(9)] == ["abcdef", "cdefgh"]
    assert found.longest == 6
    assert (found.share(6), found.share(7), found.share(1)) == (12 / 16, 0, 12 / 16)
    overlapping = find_copies("abcde", ["abcd bcde"])
    assert overlapping.share(4) == 1
    assert [copy.text for copy in overlapping.top(9)] == ["abcd"]
    assert [copy.text for copy in find_copies("ab-ab", ["ab"]).top(9)] == ["ab"]
    assert (find_copies("xyz", ["abc"]).longest, find_copies("xyz", [""]).share(1)) == (0, 0)


def test_no_copy_reaches_across_a_seam() -> None:
    found = find_copies(f"abc{SEAM}def", ["abcdef"])
    assert [copy.text for copy in found.top(9)] == ["abc", "def"]
    assert found.characters == 6
    assert found.share(3) == 1


def test_a_megabyte_takes_a_second(data_dir: Path) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()
    train, val = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    start = time.process_time()
    found = find_copies(val[:10_000], [train])
    assert time.process_time() - start < 5
    assert found.top(1)[0].text == " all his lands and goods"


def test_a_models_sample_is_the_same_for_the_same_seed() -> None:
    torch.manual_seed(7)
    model = GPT(GPTConfig(vocab_size=3, block_size=11, n_layer=1, n_head=1, n_embd=6)).eval()
    tokenizer = CharTokenizer("\nab")
    first, again, other = (draw_sample(model, tokenizer, 67, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [len(text) for text in first.split(SEAM)] == [7] * SAMPLE_ROWS
