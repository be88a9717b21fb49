"""Answers earn what their rule or their judge says, whatever stands beside them; without an end what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptlab.alignment.rewards import open_reward
from gptlab.alignment.rollouts import as_rows
from gptlab.alignment.scoring import Scorer, reply_text
from gptlab.data.chat.conversations import Conversation, Message
from gptlab.generation.replies import Reply
from gptlab.models.heads import HeadConfig, HeadedGPT
from gptlab.system.errors import UserError
from tests.alignment.policies import END_ID, IDS, PROMPTS, tiny_gpt
from tests.data.chat.helpers import CHAT, talk

TOKENIZER = CHAT.tokenizer
SAID = (("a", True), ("ab", False), ("a sweet heart", True), ("", True))  # to PROMPTS, which want a, ab, b and b


def reply(text: str, ended: bool) -> Reply:
    ids = TOKENIZER.encode(text).tolist() + [END_ID] * ended
    return Reply(ids, ended, [-1.0] * len(ids))


REPLIES = [reply(text, ended) for text, ended in SAID]


@pytest.fixture
def own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, in a folder on Python's path."""
    code = "def short(answers):\n    return [len(a.prompt) - len(a.text) + 10 * len(a.expected) for a in answers]\n"
    (tmp_path / "my_own_rules.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("name", "argument", "earned"),
    [
        ("exact", "", [1, 1, 0, 0]),
        ("regex", r"^a", [1, 1, 1, 0]),
        ("lexicon", "sweet heart", [0, 0, 2 / 3, 0]),
        ("function", "my_own_rules:short", [3 - 1 + 10, 7 - 2 + 20, 1 - 13 + 10, 18 - 0 + 10]),
    ],
)
def test_a_rule_reads_prompt_answer_and_what_was_expected(
    own_rules: None, name: str, argument: str, earned: list[float]
) -> None:
    gold = Scorer(TOKENIZER, open_reward(name, argument)).gold(PROMPTS, REPLIES)
    assert gold.dtype == np.float64
    assert gold.tolist() == earned


def test_a_rule_reads_what_the_user_said_last(own_rules: None) -> None:
    """Of a row with two answers in a row the last is expected, and the first is no prompt."""
    one = talk("one", "a")
    asked = Conversation((*one.messages, Message("assistant", "ab")), given=1)
    gold = Scorer(TOKENIZER, open_reward("function", "my_own_rules:short")).gold([asked], [reply("", True)])
    assert gold.tolist() == [len("one") + 10 * len("ab")]


def test_the_end_is_no_part_of_what_is_said() -> None:
    assert [reply_text(each, TOKENIZER) for each in REPLIES] == [text for text, _ in SAID]


@pytest.mark.parametrize(("unended", "earned"), [(None, [1, 1, 0, 0]), (0.0, [1, 0, 0, 0]), (-2.0, [1, -2, 0, 0])])
def test_an_answer_without_an_end_earns_what_was_asked_for(unended: float | None, earned: list[float]) -> None:
    gold = Scorer(TOKENIZER, open_reward("exact"), unended=unended).gold(PROMPTS, REPLIES)
    assert gold.tolist() == earned


def test_a_function_that_returns_too_few_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_wrong_rules.py").write_text("def one(answers):\n    return [1.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="'my_wrong_rules:one': returned 1 number for 4 answers"):
        Scorer(TOKENIZER, open_reward("function", "my_wrong_rules:one")).gold(PROMPTS, REPLIES)


@pytest.mark.parametrize("rows", [1, 3, 256])
def test_a_judge_reads_the_whole_text_to_its_last_token_and_nothing_of_the_padding(rows: int) -> None:
    torch.manual_seed(1)
    judge = HeadedGPT(tiny_gpt(), HeadConfig("reward")).eval()
    judge.requires_grad_(False)
    replies = [*REPLIES[:3], reply("x" * 15, True)]
    rollouts = as_rows(IDS, replies, torch.device("cpu"))
    found = Scorer(TOKENIZER, open_reward("exact"), judge).judged(rollouts, rows)
    for prompt, answer, reward in zip(IDS, replies, found, strict=True):
        text = torch.tensor([[*prompt, *answer.ids]])
        assert reward == pytest.approx(float(judge(text, torch.tensor([text.shape[1]]))), abs=1e-5)
    assert len(set(found.round(3))) == 4
    instead = Scorer(TOKENIZER, open_reward("exact"), judge, unended=-7.0).judged(rollouts, rows)
    assert instead.tolist() == [found[0], -7, found[2], found[3]]
