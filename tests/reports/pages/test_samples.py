"""The texts of samples.txt."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from gptlab.reports.pages.samples import read_samples, some


def test_each_text_has_its_step(tmp_path: Path) -> None:
    (tmp_path / "samples.txt").write_text("--- step 0\n\nab\n--- step 250\nc\x1bd\n\n")
    assert read_samples(tmp_path, {0, 250}) == [{"step": 0, "text": "\nab"}, {"step": 250, "text": "c\ufffdd\n"}]
    assert read_samples(tmp_path / "none", set()) == []


def test_a_file_without_headings_has_none(tmp_path: Path) -> None:
    """As one that was cut when a run went on from a step before its first sample."""
    for text in ("", "ab\n", "--- step 5\nab\n"):
        (tmp_path / "samples.txt").write_text(text)
        assert read_samples(tmp_path, {10}) == []


def test_a_text_that_looks_like_a_heading_is_none(tmp_path: Path) -> None:
    text = "--- step 10\na\n--- step 15\n--- step 10\n--- step 0\n--- step 20x\nb\n"
    (tmp_path / "samples.txt").write_text(f"{text}--- step 20\nc\n")
    found = read_samples(tmp_path, {10, 20})
    assert [each["step"] for each in found] == [10, 20]
    assert found[0]["text"] == text.partition("\n")[2].removesuffix("\n")
    assert [each["step"] for each in read_samples(tmp_path, set())] == [10, 15, 20]  # validations are not known


def test_of_many_some_are_shown_to_the_last() -> None:
    samples = [{"step": step, "text": "x" * 100} for step in range(1000)]
    shown = [each["step"] for each in some(samples, most=10_000)]
    assert shown[-1] == 999
    assert shown == sorted(shown)
    assert 50 <= len(shown) <= 100
    assert len({after - before for before, after in pairwise(shown)}) == 1
    assert some(samples[:3], most=1000) == samples[:3]
    assert some([{"step": 1, "text": "x" * 100}], most=10) == [{"step": 1, "text": "x" * 10}]
    assert some([]) == []
