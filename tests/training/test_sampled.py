"""What is measured of sampled answers is what it is called: against counting, and float64, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.alignment.reference import Reference
from gptlab.alignment.rewards import best_of_n_kl, open_reward
from gptlab.alignment.scoring import Scorer
from gptlab.models import Network
from gptlab.models.heads import HeadConfig, HeadedGPT
from gptlab.training import sampled
from gptlab.training.sampled import SampledAnswers
from tests.alignment.policies import END_ID, PROMPTS, A, B, of_shares, tiny_gpt
from tests.data.chat.helpers import CHAT

SHARES = {A: 0.5, B: 0.25, END_ID: 0.25}
RIGHTS = ["a", "ab", None, "b"]


def measured(
    model: Network, first: Network | None, samples: int = 4, judge: HeadedGPT | None = None, part: str = "val"
) -> tuple[dict[str, float], SampledAnswers]:
    rule = open_reward("exact")
    reference = None if first is None else Reference(first)
    found = SampledAnswers(CHAT, Scorer(CHAT.tokenizer, rule, judge), samples, 5, 1, reference, known=True)
    return found.measure(model, model, PROMPTS, RIGHTS, part), found


def answers(model: Network, samples: int, part: str = "val") -> list[list[str]]:
    """What the model says to each prompt; an answer without an end gets a mark."""
    _, measure = measured(model, None, samples)
    asked = [each for each in PROMPTS for _ in range(samples)]
    replies = measure._drawn(model, asked, part, sampled.POLICY).replies
    texts = [CHAT.tokenizer.decode(r.ids[:-1]) if r.ended else CHAT.tokenizer.decode(r.ids) + "..." for r in replies]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def test_pass_at_k_counts_the_right_answers_that_end() -> None:
    model, samples = of_shares(SHARES), 40
    found, measure = measured(model, None, samples)
    said = answers(model, samples)
    right = [[text == wanted for text in texts] for texts, wanted in zip(said, RIGHTS, strict=True)]
    assert found["val/pass_at_1"] == pytest.approx(np.mean(right))
    assert found["val/pass_at_40"] == pytest.approx(np.mean([any(row) for row in right]))
    assert 0 < found["val/pass_at_1"] < found["val/pass_at_40"] <= 3 / 4
    rewarded = [
        [text.removesuffix("...") == each.messages[-1].content for text in texts]
        for texts, each in zip(said, PROMPTS, strict=True)
    ]
    assert found["val/reward"] == pytest.approx(np.mean(rewarded))
    assert {f"val/{name}" for name in measure.measures} == found.keys()


def test_entropy_and_divergence_are_those_of_float64() -> None:
    """Of the whole vocabulary, at the positions of the answers: the entropy of a token, the divergence of an answer."""
    p, q = SHARES, {A: 0.2, B: 0.5, END_ID: 0.3}
    found, _ = measured(of_shares(p), of_shares(q), 50)
    assert found["val/entropy"] == pytest.approx(-sum(x * math.log(x) for x in p.values()), abs=1e-5)
    of_token = sum(p[token] * math.log(p[token] / q[token]) for token in p)
    tokens = [
        len(text.removesuffix("...")) + (not text.endswith("...")) for row in answers(of_shares(p), 50) for text in row
    ]
    assert found["val/kl"] == pytest.approx(of_token * np.mean(tokens), abs=1e-4)


def test_two_models_that_are_the_same_win_half_the_time() -> None:
    """They draw apart, so that it is so in expectation; and they are exactly 0 nats apart."""
    found, measure = measured(of_shares(SHARES), of_shares(SHARES), 300)
    assert found["val/kl"] == 0
    assert found["val/win_rate"] == pytest.approx(0.5, abs=0.03)
    assert found["val/reward"] != measure.of_reference["val"].gold.mean()
    better, _ = measured(of_shares(SHARES), of_shares({A: 0.01, B: 0.01, END_ID: 0.98}), 100)
    assert better["val/win_rate"] > 0.53
    again = measure.measure(of_shares(SHARES), of_shares(SHARES), PROMPTS, RIGHTS, "val")
    assert again == found  # the same numbers at each validation


def test_the_best_of_n_of_the_reference_is_chosen_by_the_judge_if_there_is_one() -> None:
    """Over-optimisation is seen where the gold reward of what a judge chooses is measured."""
    first = of_shares(SHARES)
    _, by_gold = measured(first, first, 16, part="test")
    assert [n for n, _, _ in by_gold.best_of_n] == [1, 2, 4, 8, 16]
    assert [kl for _, _, kl in by_gold.best_of_n] == [best_of_n_kl(n) for n in (1, 2, 4, 8, 16)]
    gold = by_gold.of_reference["test"].gold
    assert by_gold.best_of_n[0][1] == pytest.approx(gold.mean())
    assert by_gold.best_of_n[-1][1] == pytest.approx(gold.max(1).mean())
    torch.manual_seed(0)
    judge = HeadedGPT(tiny_gpt(), HeadConfig("reward")).eval()
    found, by_judge = measured(first, first, 16, judge, part="test")
    judged = by_judge.of_reference["test"].judged
    assert judged is not None
    chosen = [row[by == by.max()].mean() for row, by in zip(gold, judged, strict=True)]
    assert by_judge.best_of_n[-1][1] == pytest.approx(np.mean(chosen))
    assert by_judge.best_of_n[-1][1] < by_gold.best_of_n[-1][1]
    assert found["test/judged_reward"] != found["test/reward"]


def test_without_samples_nothing_is_sampled(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any) -> None:
        raise AssertionError("an answer was sampled")

    monkeypatch.setattr(sampled, "roll_out", none)
    monkeypatch.setattr("gptlab.training.sampled.SampledAnswers.__init__", none)
    short = ("trainer.max_steps=1", "data=arithmetic", "data.problems.digits=1", "data.problems.held_out=0.3")
    summary = run(tmp_path, *short, "data.val_fraction=0.2", "task.answer_tokens=4", "task.check=5")
    assert "test/reward" not in summary
    assert "best_of_n" not in summary


@pytest.mark.parametrize("pos", ["learned", "rope"])
def test_answers_are_sampled_where_they_fit_the_row(run: Any, tmp_path: Path, pos: str) -> None:
    """Of task=sft, too, whose most probable answers may be longer than the row."""
    asked = ("data=arithmetic", "data.problems.digits=1", "data.problems.held_out=0.3", "data.val_fraction=0.2")
    arch = () if pos == "learned" else ("arch=llama", "model.n_embd=36")
    short = ("trainer.max_steps=1", "task.check=5", "task.samples=2", "model.block_size=12", "task.answer_tokens=4")
    summary = run(tmp_path, *asked, *short, *arch)
    assert {"test/reward", "test/pass_at_1", "test/pass_at_2", "test/entropy"} <= summary.keys()
    assert "test/kl" not in summary  # there is no reference
    assert [n for n, _, _ in summary["best_of_n"]] == [1, 2]
