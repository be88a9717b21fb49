"""Sampled pairs are the model's own, labelled with the probability that is promised, and survive a file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.alignment import preferences
from gptlab.alignment.preferences import (
    LEFT_OUT,
    SAMPLED_ANEW,
    TRIES,
    gold_differences,
    sample_preferences,
    write_preferences,
)
from gptlab.alignment.rewards import Answer, bayes_accuracy
from gptlab.data.chat.conversations import Message, Messages, Preference, read_examples
from gptlab.models import Bigram, BigramConfig
from gptlab.system.errors import UserError
from tests.data.chat.helpers import CHAT

END, ANSWER = (CHAT.tokenizer.special_tokens[name] for name in ("<|end|>", "<|assistant|>"))
A, B = CHAT.tokenizer.encode("ab").tolist()
PROMPTS: list[Messages] = [(Message("user", f"prompt {i}"),) for i in range(5)]
SHARES = {A: 0.5, B: 0.3, END: 0.2}  # of the next token, always


def model_of(shares: dict[int, float]) -> Bigram:
    """A model whose next token is drawn from these, whatever came before."""
    model = Bigram(BigramConfig(vocab_size=CHAT.tokenizer.vocab_size))
    with torch.no_grad():
        model.wte.weight.fill_(-1e9)
        for token, share in shares.items():
            model.wte.weight[:, token] = math.log(share)
    return model.eval()


def count_a(answers: Sequence[Answer]) -> list[float]:
    assert all(answer.prompt.startswith("prompt ") for answer in answers)
    return [answer.text.count("a") / len(answer.text) for answer in answers]


def sample(counts: Counter[str] | None = None, **changes: Any) -> list[Preference]:
    shares, prompts = changes.pop("shares", SHARES), changes.pop("prompts", PROMPTS)
    options = {"pairs": 40, "noise": 0.5, "seed": 1, "max_new_tokens": 30} | changes
    found: Counter[str] = Counter() if counts is None else counts
    return sample_preferences(model_of(shares), CHAT, prompts, count_a, found, **options)


def answers(each: Preference) -> tuple[str, str]:
    assert [message.role for message in each.chosen + each.rejected] == ["assistant", "assistant"]
    return each.chosen[0].content, each.rejected[0].content


def test_pairs_are_distinct_answers_with_their_gold_rewards() -> None:
    found = sample()
    assert [each.prompt for each in found] == PROMPTS * 8
    for each in found:
        chosen, rejected = answers(each)
        assert chosen != rejected
        assert chosen
        assert rejected
        assert each.gold == (chosen.count("a") / len(chosen), rejected.count("a") / len(rejected))
    assert len({frozenset(answers(each)) for each in found}) > 25  # the same prompt gets other answers


def test_they_are_a_function_of_the_seed_and_a_shorter_list_is_the_beginning() -> None:
    found = sample()
    assert sample(batch_size=7) == found
    assert sample(pairs=17) == found[:17]  # whose labels are the pairs' own, too
    assert sample(seed=2) != found


def test_answers_have_the_models_distribution_given_that_they_differ() -> None:
    """The lengths of two answers with ends, not empty, not the same: by summing over all short texts."""
    found = sample(pairs=1500)
    share = np.mean([len(text) == 1 for each in found for text in answers(each)])
    texts: dict[str, float] = {"": 1.0}
    probability = {"": 0.2}
    for _ in range(12):
        texts = {text + c: p * q for text, p in texts.items() for c, q in (("a", 0.5), ("b", 0.3))}
        probability |= {text: p * 0.2 for text, p in texts.items()}
    probability.pop("")
    total = 0.8  # of all texts that are not empty
    same = sum(p * p for p in probability.values())
    single = sum(probability[c] * (total - probability[c]) for c in "ab")
    wanted = single / (total * total - same)
    assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 3000))


@pytest.mark.parametrize("noise", [0.0, 0.2, 2.0])
def test_labels_are_right_as_often_as_the_bayes_accuracy_says(noise: float) -> None:
    found = sample(pairs=800, noise=noise)
    differences = gold_differences(found)
    assert differences is not None
    assert differences.tolist() == [each.gold[0] - each.gold[1] for each in found if each.gold]
    right = np.mean((np.sign(differences) + 1) / 2)
    best = bayes_accuracy(differences, noise)
    by_hand = np.mean([1 / (1 + math.exp(-abs(d) / noise)) if noise else (1 if d else 0.5) for d in differences])
    assert best == pytest.approx(by_hand)
    assert right == pytest.approx(best, abs=4 * 0.5 / math.sqrt(800))
    if noise == 0:
        assert differences.min() == 0  # the worse one is never chosen


def test_the_noise_does_not_change_what_is_sampled() -> None:
    both = [[frozenset(answers(each)) for each in sample(noise=noise)] for noise in (0.0, 9.0)]
    assert both[0] == both[1]


def test_a_pair_without_a_difference_is_sampled_anew_and_then_left_out_and_counted() -> None:
    counts: Counter[str] = Counter()
    found = sample(counts, shares={A: 0.3, B: 0.2, END: 0.5}, pairs=800)
    same = 0.5**2 * 0.13 / 0.87  # the sum of the squares of all texts' probabilities, of one letter or more
    missed = 1 - (0.5**2 - same)
    assert counts[LEFT_OUT] == pytest.approx(800 * missed**TRIES, abs=55)  # four standard deviations
    assert counts[SAMPLED_ANEW] == pytest.approx(800 * (missed + missed**2 + missed**3), abs=130)
    assert len(found) == 800 - counts[LEFT_OUT]
    assert {*counts} == {LEFT_OUT, SAMPLED_ANEW}


def test_an_answer_with_a_special_token_in_it_is_no_text() -> None:
    """Read again as text, the token would be the letters of its name."""
    counts: Counter[str] = Counter()
    found = sample(counts, shares={A: 0.4, B: 0.2, ANSWER: 0.2, END: 0.2}, pairs=200)
    assert counts[SAMPLED_ANEW] > 200 * (1 - 0.5**2) / 2  # half of all answers have one
    assert {letter for each in found for text in answers(each) for letter in text} == {"a", "b"}


def test_which_pairs_are_left_out_does_not_change_the_labels_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [(Message("user", f"prompt {i}"),) for i in range(80)]
    options: dict[str, Any] = {"prompts": prompts, "pairs": 80, "shares": {A: 0.4, B: 0.3, END: 0.3}, "noise": 9.0}
    many = {each.prompt: each for each in sample(**options)}
    monkeypatch.setattr(preferences, "TRIES", 1)
    few = sample(**options)
    assert 10 < len(few) < len(many) - 10
    assert all(many[each.prompt] == each for each in few)


def test_an_answer_that_does_not_end_is_in_no_pair() -> None:
    found = sample(max_new_tokens=3, pairs=400)
    lengths = {len(text) for each in found for text in answers(each)}
    assert lengths == {1, 2}  # and its end
    with pytest.raises(
        UserError, match=r"none of 40 pairs of answers can be compared; .* more than 30 tokens, or .* task=sft"
    ):
        sample(shares={A: 0.5, B: 0.5})
    with pytest.raises(UserError, match=r"temperature=0: must be above 0, or both answers would be the same"):
        sample(temperature=0)


def test_the_temperature_is_that_of_the_samples() -> None:
    cold, hot = (sample(temperature=t, pairs=300) for t in (0.5, 2.0))
    share = [np.mean([text.count("a") / len(text) for each in some for text in answers(each)]) for some in (cold, hot)]
    assert share[0] > share[1] + 0.03


def test_they_are_written_and_read(tmp_path: Path) -> None:
    system = Preference(
        (Message("system", "Be \u2028 short"), Message("user", "a\nb")),
        (Message("assistant", "é"),),
        (Message("assistant", "f"), Message("user", "g"), Message("assistant", "h")),
    )
    sampled = sample()
    write_preferences(tmp_path / "a" / "pairs.jsonl", [*sampled, system])
    found = read_examples([tmp_path / "a" / "pairs.jsonl"])
    assert found.rows == [*sampled, system]
    assert gold_differences(found.rows) is None  # that of one is not known
    assert np.array_equal(gold_differences(found.rows[:-1]), gold_differences(sampled))  # type: ignore[arg-type]
    first = json.loads((tmp_path / "a" / "pairs.jsonl").read_text().split("\n")[0])
    assert [*first] == ["prompt", "chosen", "rejected", "gold_chosen", "gold_rejected"]
    assert first["prompt"] == "prompt 0"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["pairs.jsonl"]
