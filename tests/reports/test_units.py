"""Nats per token compare the same tokens only, bits per byte the same text only; where neither does, a note says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from rich.console import Console

from gptlab.reports import tables
from gptlab.reports.difference import compare_runs
from gptlab.reports.plots.figures import figures
from gptlab.reports.plots.style import STYLE
from gptlab.reports.report import build_report
from tests.reports.test_report import fake_run, labels

BITS = {260: 7.0, 512: 4.9, 1024: 2.4}  # by vocabulary, the reverse of nats per token


def vocabularies(root: Path, sha256: str = "7deb6b2c") -> Path:
    for size, bits in BITS.items():
        for seed in (1, 2):
            data = {"name": "text", "sha256": sha256, "tokenizer": "bpe", "vocab_size": size}
            summary = {"data": data, "val/bpb": bits + seed / 100}
            overrides = {"tokenizer.vocab_size": str(size)}
            path = root / f"{size}-{seed}"
            fake_run(
                path,
                5 + size / 1e4 + seed / 100,
                seed,
                overrides,
                {"tokenizer.vocab_size": "260"},
                summary,
                tokenizer__vocab_size=size,
            )
            (path / "metrics.csv").write_text(f"step,train/loss,val/loss,val/bpb\n1,5,5,{bits}\n2,5,5,{bits}\n")
    return root


def test_a_sweep_over_vocabularies_is_decided_by_bits_per_byte(tmp_path: Path) -> None:
    report = build_report([vocabularies(tmp_path)])
    assert report.metric == "val/bpb"
    assert labels(report) == ["vocab_size=1024", "vocab_size=512", "vocab_size=260"]
    assert report.baseline == "vocab_size=260"
    assert report.groups["difference"]["vocab_size=512"] == pytest.approx(4.9 - 7.0)
    assert "val/bpb" in tables.table_columns(report)
    (note,) = report.notes
    assert note.startswith(
        "the vocabularies differ (bpe of 1024, bpe of 260, bpe of 512): val/bpb, bits per byte, decides"
    )


def test_nats_are_shown_where_they_are_asked_for_with_a_note(tmp_path: Path) -> None:
    for metric, instead in (("val/loss", "val/bpb"), ("best_val_loss", "val/bpb"), ("test/loss", "test/bpb")):
        root = vocabularies(tmp_path / instead.replace("/", "_") / metric.replace("/", "_"))
        for path in root.glob("*/summary.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"test/loss": 5.0}))
        report = build_report([root], metric)
        assert report.metric == metric
        assert report.notes[-1].startswith(f"{metric} does not compare tokenizers (bpe of 1024")
        assert report.notes[-1].endswith(f"use --metric {instead}")


def test_plots_show_the_unit_that_compares(tmp_path: Path) -> None:
    report = build_report([vocabularies(tmp_path)])
    with matplotlib.rc_context(STYLE):
        drawn = dict(figures(report))
    assert "size" not in drawn  # gaps are nats per token
    assert {axes.get_ylabel() for axes in drawn["curves"].axes} == {"val/bpb (bits per byte)"}
    assert drawn["losses"].axes[0].get_xlabel() == "val/bpb (bits per byte)"


def test_the_same_tokens_and_text_keep_nats(tmp_path: Path) -> None:
    for number, lr in enumerate((1e-3, 1e-4)):
        fake_run(tmp_path / str(lr), 1.5 + number, 1, {"optim.lr": str(lr)}, {"optim.lr": "0.001"}, optim__lr=lr)
    report = build_report([tmp_path])
    assert (report.metric, report.curve, report.notes) == ("val/loss", "val/loss", [])


@pytest.mark.parametrize(
    ("other", "config"),
    [
        ({"name": "text", "sha256": "another", "tokenizer": "char", "vocab_size": 65}, {}),
        (
            {"name": "shakespeare_char", "sha256": "7deb6b2c", "tokenizer": "char", "vocab_size": 65},
            {"val_fraction": 0.2},
        ),
    ],
)
def test_other_texts_compare_in_no_unit_and_that_is_said(tmp_path: Path, other: dict[str, Any], config: Any) -> None:
    fake_run(tmp_path / "a", 1.5, 1)
    path = fake_run(tmp_path / "b", 1.4, 1, summary={"data": other})
    if config:
        text = (path / "config.yaml").read_text().replace("\ndata:\n", "\ndata:\n  val_fraction: 0.2\n")
        (path / "config.yaml").write_text(text)
    report = build_report([tmp_path])
    assert report.metric == "val/bpb"
    assert any("validated on 2 different texts: neither nats per token nor bits" in note for note in report.notes)


def test_words_compare_with_nothing_else(tmp_path: Path) -> None:
    for tokenizer, size in (("word", 900), ("byte", 256)):
        data = {"name": "text", "sha256": "7deb6b2c", "tokenizer": tokenizer, "vocab_size": size}
        fake_run(tmp_path / tokenizer, 1.5, 1, {"tokenizer": tokenizer}, {"tokenizer": "word"}, {"data": data})
    assert any("not even bits per byte compare" in note for note in build_report([tmp_path]).notes)


def test_older_runs_do_not_say_their_vocabulary(tmp_path: Path) -> None:
    for seed in (1, 2):
        fake_run(tmp_path / str(seed), 1.5, seed, summary={"data": {"sha256": "7deb6b2c"}})
    fake_run(tmp_path / "new", 1.5, 3)
    report = build_report([tmp_path])
    assert (report.metric, report.notes) == ("val/loss", [])
    fake_run(tmp_path / "bpe", 1.5, 1, summary={"data": {"sha256": "7deb6b2c", "tokenizer": "bpe", "vocab_size": 300}})
    assert build_report([tmp_path]).metric == "val/bpb"


def test_a_diff_says_what_does_not_compare(tmp_path: Path) -> None:
    root = vocabularies(tmp_path / "v")
    other = vocabularies(tmp_path / "w", sha256="another")
    for b, words in (
        (root / "512-1", "the vocabularies differ"),
        (other / "260-1", "the texts differ"),
        (root / "260-2", ""),
    ):
        with (console := Console(width=200)).capture() as capture:
            tables.print_difference(compare_runs(root / "260-1", b), root / "260-1", b, console)
        assert ("note: " in capture.get()) == bool(words)
        assert words in capture.get()
