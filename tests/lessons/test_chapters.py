"""What the chapters compute themselves, without their trainings: `make lessons` makes those."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.lessons import (
    chapter_01_table,
    chapter_03_heads,
    chapter_04_ladder,
    chapter_05_gradients,
    text,
)
from gptlab.lessons.answers import is_right
from gptlab.models import GPTConfig
from gptlab.models.networks import build
from gptlab.system.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def small_text(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Ids in place of Tiny Shakespeare's, (6000,)."""
    ids = np.random.default_rng(0).integers(0, 13, 6000)
    monkeypatch.setattr(text, "shakespeare", lambda: (None, ids, ids))
    return ids


# Chapter 1


def test_pairs_are_counted_and_their_loss_is_that_of_their_probabilities() -> None:
    ids = np.array([0, 1, 0, 1, 2])
    counts = chapter_01_table.counted_pairs(ids, 3)
    assert counts.tolist() == [[0, 2, 0], [1, 0, 1], [0, 0, 0]]
    table = chapter_01_table.add_one(counts)
    assert table.tolist() == [[1 / 5, 3 / 5, 1 / 5], [2 / 5, 1 / 5, 2 / 5], [1 / 3] * 3]
    loss = chapter_01_table.nats_of_pairs(table, np.array([0, 1, 2, 2]))
    assert loss == pytest.approx(-math.log(3 / 5 * 2 / 5 * 1 / 3) / 3)


def test_the_counted_table_is_the_lessons(data_dir: Path) -> None:
    assert chapter_01_table.add_one_loss() == pytest.approx(2.482, abs=5e-4)
    assert chapter_01_table.followers("q")[0][0] == "u"
    for exercise, said in zip(chapter_01_table.LESSON.exercises, ("10.82", "0.9", "b"), strict=True):
        assert is_right(exercise, said, Path())


# Chapter 3


def test_where_heads_look_is_read_from_a_run(trained: Path, small_text: np.ndarray) -> None:
    maps = chapter_03_heads.head_maps(trained, "the king")
    assert maps.shape == (3, 8, 8)
    assert maps.sum(2) == pytest.approx(np.ones((3, 8)))
    assert np.triu(maps, 1).max() == 0
    shares = chapter_03_heads.shares_by_distance(trained)
    assert shares.shape == (3, 17)
    assert shares.sum(1) == pytest.approx(np.ones(3))


def test_the_share_of_distance_0_is_what_a_position_gives_itself(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlab.formats.open_model import open_model

    tokenizer: Any = open_model(str(trained)).tokenizer
    ids = np.array(tokenizer.encode("the king sees a q"))
    monkeypatch.setattr(text, "shakespeare", lambda: (None, ids, ids))
    monkeypatch.setattr(chapter_03_heads, "WINDOWS", 1)
    last = chapter_03_heads.head_maps(trained, "the king sees a q")[:, -1]
    assert chapter_03_heads.shares_by_distance(trained) == pytest.approx(last[:, ::-1], abs=1e-6)


# Chapter 4


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    """The folder of chapter 4 after a sweep whose rungs have the lessons' losses."""
    for rung, (_, loss) in chapter_04_ladder.RUNGS.items():
        folder = tmp_path / chapter_04_ladder.SWEEP / rung
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"overrides": {"experiment": rung, "seed": "1337"}}))
        summary = {"status": "finished", "steps": 5000, "val/loss": loss or 2.3, "best_val_loss": 2.0, "parameters": 42}
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_the_lessons_own_losses_are_inside_of_the_intervals(ladder: Path) -> None:
    for expected in chapter_04_ladder.LESSON.expected:
        assert expected.low <= expected.read(ladder) <= expected.high, expected.name
    assert is_right(chapter_04_ladder.LESSON.exercises[1], "42", ladder)


def test_the_ladder_is_drawn_beside_the_lessons(ladder: Path) -> None:
    (axes,) = chapter_04_ladder.draw(ladder).axes
    ours, theirs = (line.get_ydata() for line in axes.lines)
    assert list(ours) == [2.5, 2.4, 2.28, 2.24, 2.3, 2.08, 2.06]
    assert list(theirs) == [2.5, 2.4, 2.28, 2.24, 2.08, 2.06]


def test_every_rung_of_the_sweep_is_in_the_chapter() -> None:
    sweep = (ROOT / "conf" / "sweep" / "ladder.yaml").read_text()
    axis = next(line for line in sweep.splitlines() if "experiment:" in line)
    assert axis.partition(": ")[2].split(",") == [*chapter_04_ladder.RUNGS]


# Chapter 5


def test_the_five_layers_have_the_lessons_gradients() -> None:
    for expected in chapter_05_gradients.LESSON.expected[:4]:
        assert expected.low <= expected.read(Path()) <= expected.high, expected.name
    assert is_right(chapter_05_gradients.LESSON.exercises[0], "25", Path())


@pytest.mark.parametrize(("residual", "lost"), [(False, (2, 9)), (True, (-0.5, 0.5))])
def test_without_residuals_the_gradient_is_lost_on_its_way_down(
    small_text: np.ndarray, residual: bool, lost: tuple[float, float]
) -> None:
    switches: dict[str, Any] = {"norm": "none", "init": "torch", "mlp": "relu", "residual": residual}
    torch.manual_seed(0)
    model = build(GPTConfig(vocab_size=13, block_size=5, n_layer=6, n_head=2, n_embd=22, **switches))
    gradients = chapter_05_gradients.gradients_by_block(model)
    assert len(gradients) == 6
    assert lost[0] < chapter_05_gradients.powers_of_ten(gradients) < lost[1]


def test_the_network_before_its_first_step_is_that_of_the_run(run: Any, small_text: np.ndarray, tmp_path: Path) -> None:
    """Made anew from the run's config and seed, it has the first weights of a run that hardly moves them."""
    run(tmp_path, "trainer.max_steps=1", "optim.lr=1e-12", "seed=5")
    before, after = chapter_05_gradients.gradients_of_run(tmp_path)
    assert len(before) == 2
    assert before == pytest.approx(after, rel=1e-5)


def test_a_run_that_has_not_finished_is_named(tmp_path: Path) -> None:
    for compute in (chapter_05_gradients.gradients_of_run, chapter_03_heads.head_maps):
        with pytest.raises(UserError, match="there is no finished run"):
            compute(tmp_path)
